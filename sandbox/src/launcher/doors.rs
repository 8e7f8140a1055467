//! The ways into a room that is at work: held, looked at, and gone through.
//!
//! The room is the enemy, and whoever enters it shares a uid with it: until its exec, such a process can not be looked into
//! (`PR_SET_DUMPABLE`), so nothing that it holds of the host's can be taken from it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::Error;
use crate::layers::Layer;
use crate::layers::namespaces::Kind;
use crate::room::Room;
use crate::sys::process::{self, pidfd_signal};
use crate::sys::{Kernel, Sys, namespace};

/// The first process of a room, as it was found: looked at again when the room is entered, so that it is this one and no later
/// one with its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Its id here.
    pub pid: i32,
    /// When it was started, in clock ticks after boot: field 22 of proc_pid_stat(5).
    pub start: u64,
}

/// The ways into a room, held.
pub struct Doors {
    /// Its first process.
    pub pidfd: OwnedFd,
    /// The user namespace that owns the room's other ones.
    pub owner: OwnedFd,
    /// The one that the payload is in.
    pub second: Option<OwnedFd>,
    /// Those that are not our own.
    pub others: Vec<(Kind, OwnedFd)>,
    /// Kernel uid and gid of the payload.
    pub ids: (u32, u32),
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

impl Doors {
    /// Opens them, where the room is the caller's and its command is at work.
    pub fn open(resident: Resident, room: &Room) -> Result<Self, Error> {
        let pid = Pid::from_raw(resident.pid);
        let doing = |what: &str| format!("{what} of the room's first process {pid}");
        let say = |what: &'static str| move |errno: Errno| Error::supervisor(doing(what), errno);
        let gone = || Error::supervisor("entering the room: it has ended", Errno::ESRCH);
        let pidfd = process::pidfd_open(pid).map_err(say("taking hold"))?;
        if start_time(pid) != Some(resident.start) {
            return Err(gone());
        }
        let status = Status::read(pid).map_err(|error| Error::supervisor(doing("reading the status"), error))?;
        let first = |key| status.numbers(key).first().copied().ok_or_else(gone);
        let ids = (first("Uid")?, first("Gid")?);
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        if ids.0 == 0 || ids.1 == 0 {
            return Err(Error::supervisor("entering the room: it runs as root, so it is none of ours", Errno::EACCES));
        }
        if own.0 != 0 && own != ids {
            return Err(Error::supervisor(
                format!(
                    "entering the room: it runs as uid {}, gid {}, and only that user and root may enter",
                    ids.0, ids.1
                ),
                Errno::EACCES,
            ));
        }
        if let Some(what) = status.is_weaker(room) {
            return Err(Error::supervisor(
                format!("entering the room: its command was not started yet ({what}); try again"),
                Errno::EAGAIN,
            ));
        }
        let door = |kind: Kind| {
            let path = format!("/proc/{pid}/ns/{}", kind.name());
            std::fs::File::open(&path)
                .map(OwnedFd::from)
                .map_err(|error| Error::supervisor(format!("opening {path}"), error))
        };
        let identity = |fd: &OwnedFd| {
            nix::sys::stat::fstat(fd).map(|found| (found.st_dev, found.st_ino)).map_err(say("looking at a namespace"))
        };
        let mut others = Vec::new();
        for kind in [Kind::Mnt, Kind::Net, Kind::Ipc, Kind::Uts, Kind::Cgroup, Kind::Pid] {
            let theirs = door(kind)?;
            let ours = nix::sys::stat::stat(Path::new(&format!("/proc/self/ns/{}", kind.name())))
                .map_err(say("looking at a namespace"))?;
            if identity(&theirs)? != (ours.st_dev, ours.st_ino) {
                others.push((kind, theirs));
            }
        }
        let mount = others.iter().find(|(kind, _)| *kind == Kind::Mnt).ok_or_else(gone)?;
        let owner = namespace::owner(mount.1.as_fd()).map_err(say("finding the owner"))?;
        let second = door(Kind::User)?;
        let second = if identity(&second)? == identity(&owner)? { None } else { Some(second) };
        // All of these were opened by its id: they are its own if it lives still.
        pidfd_signal(pidfd.as_fd(), 0).map_err(|_| gone())?;
        Ok(Self { pidfd, owner, second, others, ids, groups: status.numbers("Groups") })
    }

    /// Gives up what makes the caller root for what the payload is, out of the sight of the room.
    pub fn take_ids(&self, kernel: &Kernel) -> Result<(), Errno> {
        kernel.set_groups(&self.groups)?;
        kernel.become_ids(self.ids.0, self.ids.1)?;
        // The change made this process readable again.
        hide()
    }
}

/// `/proc/PID/status`.
pub struct Status(String);

impl Status {
    /// Of this process.
    pub fn read(pid: Pid) -> std::io::Result<Self> {
        crate::sys::file::read_proc(format!("/proc/{pid}/status")).map(Self)
    }

    /// The text behind a key.
    pub fn field(&self, key: &str) -> &str {
        let value = self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value.unwrap_or_default().trim()
    }

    /// The numbers behind a key.
    pub fn numbers(&self, key: &str) -> Vec<u32> {
        self.field(key).split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect()
    }

    /// What a process in this room must not have, and this one has.
    pub fn is_weaker(&self, room: &Room) -> Option<String> {
        let mut wanted = vec![("NoNewPrivs", "1")];
        if room.has(Layer::Seccomp) {
            wanted.push(("Seccomp", "2"));
        }
        if room.has(Layer::Capabilities) {
            let none = "0000000000000000";
            wanted.extend(["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| (set, none)));
        }
        let wrong = wanted.into_iter().find(|(key, value)| self.field(key) != *value)?;
        Some(format!("{} is {}", wrong.0, self.field(wrong.0)))
    }
}

/// Nobody of the same ids can look into this process, or trace it, until it executes something.
pub fn hide() -> Result<(), Errno> {
    nix::sys::prctl::set_dumpable(false)
}

/// When a process was started, in clock ticks after boot.
pub fn start_time(pid: Pid) -> Option<u64> {
    stat_field(pid, 22)?.parse().ok()
}

/// A field of `/proc/PID/stat`, by its number in proc_pid_stat(5), from 3 on.
pub fn stat_field(pid: Pid, number: usize) -> Option<String> {
    let stat = crate::sys::file::read_proc(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(number.checked_sub(3)?).map(str::to_owned)
}
