//! How resource control fails: a refusal before anything was made, or an operation that the kernel did not do.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::Serialize;

use super::Controller;

/// A controller that was asked for and cannot be had, found without creating anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("cgroup controller {controller} cannot be used: {why}; {fix}")]
pub struct Unusable {
    /// What was asked for.
    pub controller: Controller,
    /// What stands in the way, with the kernel's own answer.
    pub why: String,
    /// What a person can do about it.
    pub fix: String,
}

/// An operation on a group that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused an operation on a file of a group.
    #[error("{doing} {}: {errno}", path.display())]
    Kernel {
        /// What was being done, as a participle with its argument.
        doing: String,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A limit was written and the kernel holds another one.
    #[error("limit in {}: asked for {asked}, the kernel holds {holds}", path.display())]
    NotAsAsked {
        /// The limit's file.
        path: PathBuf,
        /// What was written.
        asked: String,
        /// What was read back.
        holds: String,
    },
    /// A state was waited for and did not come in time.
    #[error("{} did not become {state} within {} ms", path.display(), waited.as_millis())]
    Timeout {
        /// The group.
        path: PathBuf,
        /// The state.
        state: &'static str,
        /// For how long.
        waited: std::time::Duration,
    },
    /// The groups of this room have no means for the operation.
    #[error("no group of this room can {0}: ask for it when placing")]
    Absent(&'static str),
    /// `/proc/self/stat` could not be understood.
    #[error("/proc/self/stat has no start time")]
    NoStartTime,
}

impl Error {
    pub(super) fn kernel(doing: impl Into<String>, path: &Path, error: &io::Error) -> Self {
        Error::Kernel { doing: doing.into(), path: path.to_owned(), errno: errno_of(error) }
    }

    /// The kernel's answer, when it is one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Kernel { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// The errno of an I/O error; errors that the standard library makes up itself (invalid UTF-8) count as `EINVAL`.
pub(super) fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}
