//! The groups of one room, from making them to removing them.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;
use serde::Serialize;

use super::error::errno_of;
use super::files::{keyed, read_keyed};
use super::placement::{Placement, Site};
use super::setting::Setting;
use super::stale::GroupName;
use super::{Account, Controller, Error, Version, files, v1, v2};

/// How long processes may take to die. A process in the midst of a disk write dies when the write ends.
const DIE: Duration = Duration::from_secs(10);
/// How long a group may take to freeze or thaw.
const FREEZE: Duration = Duration::from_secs(5);
/// How long the kernel may take to let go of a group whose processes were reaped.
const LET_GO: Duration = Duration::from_secs(5);
/// How often a group is made anew when a sweeper took it for stale between `mkdir` and the lock.
const ATTEMPTS: usize = 8;

/// A limit as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReadBack {
    /// Whose limit it is.
    pub controller: Controller,
    /// The file it was read from.
    pub file: PathBuf,
    /// What was written.
    pub asked: String,
    /// What the file says.
    pub holds: String,
}

/// The groups of one room.
///
/// Dropping it removes nothing: a forked child drops its copy too, and must not take the groups from under its parent.
/// Groups are removed by [`Cgroup::remove`], or, when their supervisor is gone, by [`super::sweep_stale`].
#[derive(Debug)]
pub struct Cgroup {
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    version: Version,
    controllers: Vec<Controller>,
    /// The group with the limits.
    directory: PathBuf,
    /// The group the processes are in: the same, or a group inside it.
    home: PathBuf,
    home_handle: File,
    settings: Vec<Setting>,
    /// The lock that says the group has a supervisor; held by being open.
    _lock: File,
}

impl Cgroup {
    /// Makes the groups, writes their limits and reads every limit back.
    ///
    /// Where the placement says so, this process moves into a leaf of its own and controllers are handed out first; those
    /// two stay when something fails later. Groups that were made are removed again.
    ///
    /// # Errors
    /// What the kernel refused; [`Error::NotAsAsked`] when it took a limit and holds another.
    pub fn create(placement: &Placement, name: &GroupName) -> Result<Cgroup, Error> {
        let mut made = Cgroup { groups: Vec::with_capacity(placement.sites.len()) };
        for site in &placement.sites {
            if let Err(error) = made.add(site, name) {
                // The reason to report is why it could not be made; what is left the next sweep finds.
                let _ = made.remove();
                return Err(error);
            }
        }
        Ok(made)
    }

    fn add(&mut self, site: &Site, name: &GroupName) -> Result<(), Error> {
        if site.vacate {
            v2::vacate(&site.parent)?;
        }
        if !site.enable.is_empty() {
            v2::enable(&site.parent, &site.enable)?;
        }
        let directory = site.parent.join(name.to_string());
        let lock = make_locked(&directory)?;
        // Limits are out of the room's reach only in a group above its own; a group without limits needs no such care.
        let nested = site.version == Version::V2 && !site.controllers.is_empty();
        let home = if nested { directory.join(v2::INNER) } else { directory.clone() };
        let settings: Vec<Setting> = site.settings.iter().map(|s| s.for_group(&directory).clone()).collect();
        let prepared = (|| {
            for setting in &settings {
                setting.apply(&directory)?;
            }
            if nested {
                fs::create_dir(&home).map_err(|e| Error::kernel("making", &home, &e))?;
            }
            open_directory(&home)
        })();
        match prepared {
            Ok(home_handle) => {
                self.groups.push(Group {
                    version: site.version,
                    controllers: site.controllers.clone(),
                    directory,
                    home,
                    home_handle,
                    settings,
                    _lock: lock,
                });
                Ok(())
            }
            Err(error) => {
                let _ = fs::remove_dir(&home);
                let _ = fs::remove_dir(&directory);
                Err(error)
            }
        }
    }

    /// The directories of the groups that hold the limits, v2 first.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.groups.iter().map(|g| g.directory.as_path())
    }

    /// Opens the membership list of every group for writing. A process that writes `0` into each has joined them, whatever
    /// its credentials are then: the kernel checks those of the opener (`cgroup_attach_permissions`,
    /// `__cgroup1_procs_write`). The descriptors close on exec; do not let a builder have them.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn join_files(&self) -> Result<Vec<File>, Error> {
        self.groups
            .iter()
            .map(|g| {
                let path = g.home.join("cgroup.procs");
                OpenOptions::new().write(true).open(&path).map_err(|e| Error::kernel("opening", &path, &e))
            })
            .collect()
    }

    /// Moves a process with all its threads into every group. May wait for an RCU grace period, see the module's
    /// documentation.
    ///
    /// # Errors
    /// `ESRCH` when there is no such process; what the kernel refused.
    pub fn attach(&self, process: Pid) -> Result<(), Error> {
        self.groups.iter().try_for_each(|g| files::write(&g.home.join("cgroup.procs"), &process.to_string()))
    }

    /// The directory of the room's v2 group, for `clone3(CLONE_INTO_CGROUP)` (Linux 5.7): a child born there needs no
    /// join for v2. The v1 groups are to be joined all the same, and joining v2 again does no harm.
    #[must_use]
    pub fn v2_directory(&self) -> Option<BorrowedFd<'_>> {
        self.v2().map(|g| g.home_handle.as_fd())
    }

    /// Ends every process of the room and waits until none is left, for at most 10 s. Zombies do not count: children of the
    /// caller may be reaped later. The caller must not be in the groups itself, or it ends itself.
    ///
    /// # Errors
    /// [`Error::Timeout`] when processes outlive it, in the kernel's uninterruptible sleep; what the kernel refused.
    pub fn kill(&self) -> Result<(), Error> {
        if let Some(group) = self.v2() {
            return v2::kill(&group.directory, DIE);
        }
        let freezer = self.with(Controller::Freezer).map(|g| g.directory.as_path());
        match self.groups.first() {
            Some(group) => v1::kill(&group.directory, freezer, DIE),
            None => Err(Error::Absent("kill")),
        }
    }

    /// Stops every process of the room and waits until all stand, for at most 5 s.
    ///
    /// # Errors
    /// [`Error::Absent`] when neither v2 nor v1's freezer is among the groups; [`Error::Timeout`].
    pub fn freeze(&self) -> Result<(), Error> {
        self.set_frozen(true)
    }

    /// Lets the processes run again.
    ///
    /// # Errors
    /// As [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<(), Error> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), Error> {
        if let Some(group) = self.v2() {
            v2::freeze(&group.directory, frozen, FREEZE)
        } else if let Some(group) = self.with(Controller::Freezer) {
            v1::freeze(&group.directory, frozen, FREEZE)
        } else {
            Err(Error::Absent("freeze"))
        }
    }

    /// What the room used so far. Read it before [`Cgroup::remove`].
    #[must_use]
    pub fn account(&self) -> Account {
        let mut account = Account::default();
        for group in &self.groups {
            account.add(group.version, &group.controllers, &group.directory);
        }
        account
    }

    /// How many processes of the room the kernel killed for want of memory, be it under the room's own limit, under one
    /// above it or because the machine had none left. With it a build that ran out of memory is told from one that
    /// crashed. `None` without the memory controller (v1: and before Linux 4.13).
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        let group = self.with(Controller::Memory)?;
        match group.version {
            Version::V2 => read_keyed(&group.directory.join("memory.events"), "oom_kill"),
            Version::V1 => read_keyed(&group.directory.join("memory.oom_control"), "oom_kill"),
        }
    }

    /// How often the room stood at its own memory limit and nothing could be reclaimed (v2), or how often an allocation
    /// met the limit at all (v1, which counts no closer). Zero beside [`Cgroup::oom_kills`] above zero means: not the
    /// room's limit but the machine's memory, or a limit above, ran out.
    #[must_use]
    pub fn memory_limit_hits(&self) -> Option<u64> {
        let group = self.with(Controller::Memory)?;
        match group.version {
            Version::V2 => read_keyed(&group.directory.join("memory.events"), "oom"),
            Version::V1 => files::read_number(&group.directory.join("memory.failcnt")),
        }
    }

    /// How often a fork was refused for the room's limit on processes. `None` without the controller.
    #[must_use]
    pub fn pids_refused(&self) -> Option<u64> {
        let group = self.with(Controller::Pids)?;
        let text = fs::read_to_string(group.directory.join("pids.events")).ok()?;
        keyed(&text, "max")
    }

    /// Reads every limit once more, for the seal, or at the end of a build to prove that it held throughout.
    ///
    /// # Errors
    /// [`Error::NotAsAsked`] when somebody changed a limit; `ENOENT` when somebody took the controller away, which systemd
    /// does to groups that were not really delegated.
    pub fn read_back(&self) -> Result<Vec<ReadBack>, Error> {
        let mut out = Vec::new();
        for group in &self.groups {
            for setting in &group.settings {
                out.push(ReadBack {
                    controller: setting.controller,
                    file: group.directory.join(setting.file),
                    asked: setting.value.clone(),
                    holds: setting.verify(&group.directory)?,
                });
            }
        }
        Ok(out)
    }

    /// Removes the groups; their processes must be dead. Waits for the kernel to let go of them for at most 5 s.
    ///
    /// # Errors
    /// [`Error::Timeout`] when a group still has processes; what the kernel refused. The locks are released all the same, so that a
    /// sweep can finish the work.
    pub fn remove(self) -> Result<(), Error> {
        let deadline = Instant::now() + LET_GO;
        let mut first_error = Ok(());
        for group in &self.groups {
            let removed = remove_tree(&group.directory, group.version, deadline);
            first_error = first_error.and(removed);
        }
        first_error
    }

    fn v2(&self) -> Option<&Group> {
        self.groups.iter().find(|g| g.version == Version::V2)
    }

    fn with(&self, controller: Controller) -> Option<&Group> {
        self.groups.iter().find(|g| g.controllers.contains(&controller))
    }
}

/// Makes a group and takes its lock. Between the two a sweeper may take the group for stale and remove it; then it is
/// made again.
fn make_locked(directory: &Path) -> Result<File, Error> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        fs::create_dir(directory).map_err(|e| Error::kernel("making", directory, &e))?;
        match lock_made(directory) {
            Err(e) if e.errno() == Some(Errno::ENOENT) && attempt < ATTEMPTS => {}
            other => return other,
        }
    }
}

fn lock_made(directory: &Path) -> Result<File, Error> {
    let handle = open_directory(directory)?;
    // A sweeper holds it for moments only.
    handle.lock().map_err(|e| Error::kernel("locking", directory, &e))?;
    let inode = |m: fs::Metadata| (m.dev(), m.ino());
    let opened = handle.metadata().map_err(|e| Error::kernel("looking at", directory, &e))?;
    let named = fs::metadata(directory).map_err(|e| Error::kernel("looking at", directory, &e))?;
    if inode(opened) != inode(named) {
        return Err(Error::Kernel { doing: "locking".to_owned(), path: directory.to_owned(), errno: Errno::ENOENT });
    }
    Ok(handle)
}

pub(super) fn open_directory(directory: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(directory)
        .map_err(|e| Error::kernel("opening", directory, &e))
}

/// Removes a group and the groups below it, waiting until `deadline` for processes that are dying.
pub(super) fn remove_tree(directory: &Path, version: Version, deadline: Instant) -> Result<(), Error> {
    loop {
        match remove_downwards(directory) {
            Ok(()) => return Ok(()),
            Err(e) if e.errno() == Some(Errno::EBUSY) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Error::Timeout { path: directory.to_owned(), state: "empty", waited: LET_GO });
                }
                match version {
                    Version::V2 => v2::await_empty(directory, left)?,
                    Version::V1 => v1::await_empty(directory, left)?,
                }
            }
            Err(e) => return Err(e),
        }
    }
}

fn remove_downwards(directory: &Path) -> Result<(), Error> {
    let done = |e: &std::io::Error| matches!(errno_of(e), Errno::ENOENT | Errno::ENODEV);
    match fs::remove_dir(directory) {
        Ok(()) => return Ok(()),
        Err(e) if done(&e) => return Ok(()),
        // A group with groups below it answers EBUSY as well, so look before waiting.
        Err(e) if errno_of(&e) == Errno::EBUSY => {}
        Err(e) => return Err(Error::kernel("removing", directory, &e)),
    }
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if done(&e) => return Ok(()),
        Err(e) => return Err(Error::kernel("listing", directory, &e)),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_downwards(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(e) if !done(&e) => Err(Error::kernel("removing", directory, &e)),
        _ => Ok(()),
    }
}
