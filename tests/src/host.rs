//! The host as it looks from outside: processes, locks, mounts, files, control groups.
//!
//! Tests run beside each other and beside other work, so nothing here counts: everything looks for what belongs to one room.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

use crate::room::Room;

/// Whether these tests run with the privileges of root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id here.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Its ids in the pid namespaces from ours inwards, ours first.
    pub inner_pids: Vec<i32>,
    /// Real, effective, saved and file system uid, in our user namespace.
    pub uids: Vec<u32>,
    /// The same of gids.
    pub gids: Vec<u32>,
    /// Everything else that `/proc/PID/status` says.
    pub status: String,
}

impl Process {
    /// Reads one; `None` when it has gone.
    pub fn read(pid: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Some(Self {
            pid,
            parent: numbers(&status, "PPid").first().copied()?,
            inner_pids: numbers(&status, "NSpid"),
            uids: numbers(&status, "Uid"),
            gids: numbers(&status, "Gid"),
            status,
        })
    }

    /// The words of its command line, joined by NULs; empty for a zombie.
    pub fn command_line(&self) -> String {
        String::from_utf8_lossy(&fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default()).into_owned()
    }

    /// A field of its status.
    pub fn field(&self, key: &str) -> &str {
        field(&self.status, key).unwrap_or_default()
    }
}

fn field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
}

fn numbers<T: std::str::FromStr>(status: &str, key: &str) -> Vec<T> {
    let value = field(status, key).unwrap_or_default();
    value.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect()
}

fn process_ids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Every living or dead child of a process, and theirs.
pub fn descendants(of: i32) -> Vec<Process> {
    let all: Vec<_> = process_ids().into_iter().filter_map(Process::read).collect();
    let mut found: Vec<Process> = Vec::new();
    loop {
        let belongs = |process: &&Process| {
            (process.parent == of || found.iter().any(|parent| parent.pid == process.parent))
                && !found.contains(process)
        };
        let more: Vec<_> = all.iter().filter(belongs).cloned().collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Every process that has a word in its command line.
pub fn processes_that_name(word: &str) -> Vec<i32> {
    let names_it = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(word.len()).any(|window| window == word.as_bytes())
    };
    process_ids().into_iter().filter(names_it).collect()
}

/// Waits for the end of a process, or for this long. A process that is not there has ended.
pub fn wait_for_end(pid: i32, at_most: Duration) -> bool {
    let Some(pidfd) = pidfd_open(pid) else { return true };
    let milliseconds = i32::try_from(at_most.as_millis()).unwrap_or(i32::MAX);
    let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
    let mut waited = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut waited, timeout), Ok(1))
}

/// A descriptor of a process, which becomes readable when it ends.
pub fn pidfd_open(pid: i32) -> Option<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let descriptor = i32::try_from(descriptor).ok().filter(|descriptor| *descriptor >= 0)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Looks again and again until `done`, for what has no event to wait for; false when it does not come within this long.
pub fn poll_until(at_most: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + at_most;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Locks that a process holds, as `/proc/locks` lists them.
pub fn locks_of(pid: i32) -> Vec<String> {
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    let holder = pid.to_string();
    table.lines().filter(|line| line.split_ascii_whitespace().nth(4) == Some(&holder)).map(str::to_owned).collect()
}

/// Control groups whose name holds a word.
pub fn control_groups_named(word: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().contains(word) {
                    found.push(entry.path());
                }
                left.push(entry.path());
            }
        }
    }
    found
}

/// Rooms that can be told from all others, so that what they leave behind can be seen.
#[derive(Debug)]
pub struct Footprint {
    /// A word that is in every command line.
    pub marker: String,
    /// A directory for the test; its folder `tmp` is the rooms' `TMPDIR`.
    pub directory: TempDir,
}

impl Default for Footprint {
    fn default() -> Self {
        Self::new()
    }
}

impl Footprint {
    /// A new one.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("tmp")).expect("a directory");
        fs::create_dir(directory.path().join("lent")).expect("a directory");
        Self { marker: format!("ANCHORHOLD_FOOTPRINT_{}_{count}", std::process::id()), directory }
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The room of `anchorhold run`, marked; `/lent` in it is the writable folder `lent`.
    pub fn room(&self) -> Room {
        let mut marked = OsString::from("--env=");
        marked.push(&self.marker);
        marked.push("=1");
        // The payload may be another user, where root starts the room.
        open_to_all(&self.path("lent"));
        Room::new().with([marked]).lending("/lent", &self.path("lent")).called_with("TMPDIR", self.path("tmp"))
    }

    /// Whether the command has left a file of this name in `/lent`.
    pub fn has_lent(&self, name: &str) -> bool {
        self.path("lent").join(name).exists()
    }

    /// Fails if a process, a mount, a temporary file, a lock or a control group of these rooms is left.
    #[track_caller]
    pub fn assert_nothing_left(&self, supervisor: i32) {
        assert_eq!(processes_that_name(&self.marker), Vec::<i32>::new(), "processes are left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("a mount table");
        let directory = self.directory.path().to_string_lossy().into_owned();
        let left: Vec<_> = mounts.lines().filter(|line| line.contains(&directory)).collect();
        assert!(left.is_empty(), "mounts are left: {left:?}");
        let files: Vec<_> = fs::read_dir(self.path("tmp")).expect("a directory").flatten().collect();
        assert!(files.is_empty(), "temporary files are left: {files:?}");
        assert_eq!(locks_of(supervisor), Vec::<String>::new(), "locks are left");
        let named = |group: &PathBuf| group.to_string_lossy().contains("anchorhold");
        let groups: Vec<_> =
            control_groups_named(&supervisor.to_string()).into_iter().filter(|group| named(group)).collect();
        assert!(groups.is_empty(), "control groups are left: {groups:?}");
    }
}

/// Lets everybody write a directory: what a room of root's is lent belongs to ids that are not known before.
pub fn open_to_all(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o1777)).expect("our own directory");
}
