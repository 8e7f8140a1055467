//! What can keep an audit from being made.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// An audit that was not made, or not to its end. What a sandbox does is no error: the report tells of it.
#[derive(Debug, Error)]
pub enum Error {
    /// The probe program is nowhere.
    #[error("the probe program is not at {}: build it (cargo build --package anchorhold-probe) and put it beside anchorhold, or name it with --probe-program FILE", .0.display())]
    NoProbeProgram(PathBuf),
    /// A file or folder could not be read or made.
    #[error("{what} {}: {error}", path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The probe program does not speak as expected.
    #[error("{} {what}: {why}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// What was asked of it.
        what: &'static str,
        /// What came of it.
        why: String,
    },
    /// An observer could not be set up.
    #[error("setting up the observer {what}: {error}")]
    Observer {
        /// Which.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// A sandbox that is not known.
    #[error("no sandbox `{0}`: there are {1}, or a command line with {{}} in it")]
    UnknownSandbox(String, String),
    /// A user that does not exist.
    #[error("no user {0}: name one with --user")]
    NoUser(String),
    /// A probe that does not exist.
    #[error("no probe `{0}`: --list shows all of them")]
    NoProbe(String),
    /// Ended by a signal.
    #[error("ended by a signal")]
    Interrupted,
}

impl Error {
    /// For `map_err`: an error of a file.
    pub fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { what, path, error }
    }
}
