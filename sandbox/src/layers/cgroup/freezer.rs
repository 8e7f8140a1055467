//! Stopping a room that is at work by the group that it is in.

use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::Pid;

use super::stale::GroupName;
use super::{Controller, Error, Hierarchy, Layout, Version, files, v1, v2};

/// How long a group may take to freeze or thaw.
const PATIENCE: Duration = Duration::from_secs(5);

/// A group of a room, which holds all its processes and no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freezer {
    version: Version,
    directory: PathBuf,
}

impl Freezer {
    /// The one of a room whose first process this is; nothing when the room has no group of its own, or none that can freeze.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(first: Pid) -> Result<Option<Self>, Error> {
        let groups = files::read(&PathBuf::from(format!("/proc/{first}/cgroup")))?;
        let mounts = files::read(&PathBuf::from("/proc/self/mountinfo"))?;
        let layout = Layout::parse(&groups, &mounts);
        let own = |hierarchy: &Hierarchy| {
            let directory = hierarchy.directory.as_ref().ok()?;
            // The group with the limits may be above the one that the processes are in.
            let is_ours = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<GroupName>().is_ok());
            let group = directory.ancestors().find(|path| path.file_name().is_some_and(is_ours))?;
            Some(Self { version: hierarchy.version, directory: group.to_owned() })
        };
        Ok(layout.unified.as_ref().and_then(own).or_else(|| layout.legacy_tree(Controller::Freezer).and_then(own)))
    }

    /// Stops every process of the room and waits until all stand, or lets them go on; for at most 5 s.
    ///
    /// # Errors
    /// [`Error::Timeout`]; what the kernel refused.
    pub fn set(&self, frozen: bool) -> Result<(), Error> {
        match self.version {
            Version::V2 => v2::freeze(&self.directory, frozen, PATIENCE),
            Version::V1 => v1::freeze(&self.directory, frozen, PATIENCE),
        }
    }
}
