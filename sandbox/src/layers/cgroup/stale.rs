//! Names that say whose a group is, and the sweep for groups whose supervisor was killed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::getpid;

use super::group::{open_directory, remove_tree};
use super::layout::{Layout, Version};
use super::{Controller, Error, v1, v2};

const PREFIX: &str = "anchorhold";

/// How long one stale group may hold up a start.
const SWEEP: Duration = Duration::from_secs(2);

/// The name of a room's groups: `anchorhold-<pid>-<start time>-<serial>`, of the process that supervises the room.
///
/// The start time (clock ticks after boot, field 22 of proc_pid_stat(5)) tells a supervisor from a later process with its
/// pid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupName {
    pid: i32,
    start: u64,
    serial: u64,
}

impl GroupName {
    /// A name for a room that this process supervises, different at every call.
    ///
    /// # Errors
    /// When `/proc/self/stat` cannot be read.
    pub fn unique() -> Result<GroupName, Error> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let pid = getpid().as_raw();
        let path = Path::new("/proc/self/stat");
        let stat = fs::read_to_string(path).map_err(|e| Error::kernel("reading", path, &e))?;
        let start = start_time(&stat).ok_or(Error::NoStartTime)?;
        Ok(GroupName { pid, start, serial: SERIAL.fetch_add(1, Ordering::Relaxed) })
    }

    /// Whether the supervisor runs, as far as our own `/proc` shows: not when it lives in another pid namespace or is hidden
    /// from us.
    fn supervisor_seen(&self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        // A zombie waits only for being reaped; its descriptors, and with them its locks, are closed.
        start_time(&stat) == Some(self.start) && !is_zombie(&stat)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{}-{}-{}", self.pid, self.start, self.serial)
    }
}

/// A directory name that is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a room's group")]
pub struct NotOurs;

impl FromStr for GroupName {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let mut parts = text.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')).ok_or(NotOurs)?.split('-');
        let mut number = || parts.next().and_then(|p| p.parse::<u64>().ok()).ok_or(NotOurs);
        let (pid, start, serial) = (number()?, number()?, number()?);
        let name = GroupName { pid: i32::try_from(pid).map_err(|_| NotOurs)?, start, serial };
        // Only what we would write ourselves: no signs, no leading zeros, nothing behind.
        if name.to_string() == text { Ok(name) } else { Err(NotOurs) }
    }
}

/// The fields of a stat line behind the command name, which may itself contain blanks and parentheses. The first is the
/// state, field 3 in the manual's count.
fn behind_name(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace()
}

fn start_time(stat: &str) -> Option<u64> {
    behind_name(stat).nth(22 - 3)?.parse().ok()
}

fn is_zombie(stat: &str) -> bool {
    matches!(behind_name(stat).next(), Some("Z" | "X"))
}

/// Removes the groups of rooms whose supervisor is gone, wherever this process would make its own: in its own group of
/// every tree and, in v2, in the group above it. What still runs in such a group is killed first. Returns how many groups
/// were removed.
///
/// A group counts as stale when its lock can be taken (nobody supervises it) and no process of that pid and start time is
/// seen. Failures are passed over: what cannot be removed now is found again by the next sweep.
#[must_use = "the number of groups that a killed supervisor left is worth a line in the log"]
pub fn sweep_stale(layout: &Layout) -> usize {
    let v2 = layout.unified.iter().flat_map(|tree| {
        let above = tree.parent_directory();
        tree.directory.iter().cloned().chain(above).map(|d| (d, Version::V2))
    });
    // In trees of other controllers (cpuset, devices) we never make groups.
    let used = [
        Controller::Memory,
        Controller::Pids,
        Controller::Cpu,
        Controller::Cpuacct,
        Controller::Io,
        Controller::Freezer,
    ];
    let ours = layout.legacy.iter().filter(|tree| used.iter().any(|c| tree.controllers.contains(c.v1_name())));
    let v1 = ours.filter_map(|tree| Some((tree.directory.as_ref().ok()?.clone(), Version::V1)));
    let own: Vec<PathBuf> =
        layout.unified.iter().chain(&layout.legacy).filter_map(|tree| tree.directory.clone().ok()).collect();
    let mut stale: Vec<(PathBuf, Version)> =
        v2.chain(v1).flat_map(|(parent, version)| stale_in(&parent).map(move |d| (d, version))).collect();
    // Never our own room's, should we run in one.
    stale.retain(|(directory, _)| !own.iter().any(|o| o.starts_with(directory)));
    // A frozen process dies only when it is thawed, so v1's freezer comes before the other v1 trees.
    stale.sort_by_key(|(directory, version)| *version == Version::V1 && !is_freezer(directory));
    stale.iter().filter(|(directory, version)| sweep(directory, *version)).count()
}

/// Like [`sweep_stale`], for one group and at most `depth` levels of groups below it: for administrators, after services
/// that no longer start.
#[must_use = "see sweep_stale"]
pub fn sweep_below(group: &Path, version: Version, depth: usize) -> usize {
    let mut swept = stale_in(group).filter(|directory| sweep(directory, version)).count();
    if depth > 0
        && let Ok(entries) = fs::read_dir(group)
    {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) && !is_ours(&entry.file_name()) {
                swept += sweep_below(&entry.path(), version, depth - 1);
            }
        }
    }
    swept
}

fn is_ours(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|n| n.parse::<GroupName>().is_ok())
}

/// The groups in `parent` that bear our name and whose supervisor is not seen.
fn stale_in(parent: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(parent).into_iter().flatten().flatten().filter_map(|entry| {
        let name: GroupName = entry.file_name().to_str()?.parse().ok()?;
        (!name.supervisor_seen()).then(|| entry.path())
    })
}

fn is_freezer(directory: &Path) -> bool {
    directory.join("freezer.state").exists()
}

fn sweep(directory: &Path, version: Version) -> bool {
    let Ok(handle) = open_directory(directory) else { return false };
    if handle.try_lock().is_err() {
        return false;
    }
    let killed = match version {
        Version::V2 => v2::kill(directory, SWEEP),
        Version::V1 => v1::kill(directory, is_freezer(directory).then_some(directory), SWEEP),
    };
    killed.and_then(|()| remove_tree(directory, version, Instant::now() + SWEEP)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let name = GroupName { pid: 12, start: 34, serial: 5 };
        assert_eq!(name.to_string(), "anchorhold-12-34-5");
        assert_eq!("anchorhold-12-34-5".parse(), Ok(name));
        for other in [
            "anchorhold-supervisor",
            "anchorhold-12-34",
            "anchorhold-12-34-5-6",
            "anchorhold-012-34-5",
            "anchorhold-+12-34-5",
            "anchorhold--1-34-5",
            "anchorhold-99999999999-34-5",
            "anchorhold-12-34-5 ",
            "xanchorhold-12-34-5",
            "",
        ] {
            assert_eq!(other.parse::<GroupName>(), Err(NotOurs), "{other}");
        }
    }

    #[test]
    fn two_names_of_one_process_differ_and_it_is_seen() {
        let (a, b) = (GroupName::unique().unwrap(), GroupName::unique().unwrap());
        assert_ne!(a, b);
        assert!(a.supervisor_seen());
        assert!(!GroupName { start: a.start + 1, ..a }.supervisor_seen());
    }

    #[test]
    fn start_time_is_found_behind_any_command_name() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(start_time(stat), Some(4242));
        assert!(!is_zombie(stat));
        assert!(is_zombie("7 (x) Z 1"));
        assert_eq!(start_time("7 (x) S 1"), None);
        assert_eq!(start_time(""), None);
    }
}
