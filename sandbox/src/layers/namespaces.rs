//! Own pid, IPC, UTS, cgroup and time namespaces, and how many more the payload may make.
//!
//! The user and mount namespaces are what a room is made of and are there in any case; the network namespace belongs to the layer
//! `network`. user_namespaces(7), pid_namespaces(7), time_namespaces(7).

use std::fmt;
use std::path::Path;

use nix::sched::CloneFlags;
use serde::Serialize;

use super::Layer;
use crate::error::Refusal;
use crate::host::Host;
use crate::plan::{Draft, Stage};
use crate::room::{ProcSource, Profile, Room};
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site};

/// A kind of namespace, in the kernel's words (`/proc/<pid>/ns`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Ids and capabilities.
    User,
    /// Process ids.
    Pid,
    /// Clocks.
    Time,
    /// Mounts.
    Mnt,
    /// Network.
    Net,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// The root of the control groups that are seen.
    Cgroup,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::User, Self::Pid, Self::Time, Self::Mnt, Self::Net, Self::Ipc, Self::Uts, Self::Cgroup];

    /// The name of its link in `/proc/<pid>/ns`.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pid => "pid",
            Self::Time => "time",
            Self::Mnt => "mnt",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
        }
    }

    /// Its bit in unshare(2) and setns(2).
    pub fn flag(self) -> CloneFlags {
        match self {
            Self::User => CloneFlags::CLONE_NEWUSER,
            Self::Pid => CloneFlags::CLONE_NEWPID,
            // Not in crate `nix`: CLONE_NEWTIME shares its bit with the signal mask of clone(2).
            Self::Time => CloneFlags::from_bits_retain(libc::CLONE_NEWTIME),
            Self::Mnt => CloneFlags::CLONE_NEWNS,
            Self::Net => CloneFlags::CLONE_NEWNET,
            Self::Ipc => CloneFlags::CLONE_NEWIPC,
            Self::Uts => CloneFlags::CLONE_NEWUTS,
            Self::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        }
    }
}

/// The steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// unshare(2) of these.
    Unshare(Vec<Kind>),
    /// `/proc/self/timens_offsets`: the clocks start at zero.
    ZeroClocks,
    /// `/proc/sys/user/max_*_namespaces` of the room's own user namespace.
    Allow {
        /// The kind.
        kind: Kind,
        /// How many may exist below the room, this one's own included.
        most: u32,
    },
    /// sethostname(2) and setdomainname(2).
    Name {
        /// Host name.
        host: String,
        /// Domain name.
        domain: String,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unshare(kinds) => {
                let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
                write!(f, "unshare the namespaces {}", names.join(", "))
            }
            Self::ZeroClocks => f.write_str("start the clocks of the time namespace at zero"),
            Self::Allow { kind, most } => write!(f, "set user.max_{}_namespaces to {most}", kind.name()),
            Self::Name { host, domain } => write!(f, "name the machine {host}, domain {domain}"),
        }
    }
}

pub(super) fn plan(room: &Room, host: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    let whole = room.has(Layer::Namespaces);
    if let Some((why, fix)) = &host.no_user_namespaces {
        return Err(Refusal::new(Layer::Namespaces, "user namespace", why, fix));
    }
    if !whole && room.namespaces.time {
        return Err(Refusal::new(
            Layer::Namespaces,
            "a time namespace in a room without namespaces",
            "these exclude each other",
            "leave out one of them",
        ));
    }

    // These two act on the next child, so they come before the first process of the room is born.
    let mut early = vec![Kind::User];
    if whole {
        early.push(Kind::Pid);
    }
    if room.namespaces.time {
        early.push(Kind::Time);
    }
    draft.add(Stage::Unshare, Action::Unshare(early));
    if room.namespaces.time {
        draft.add(Stage::Maps, Action::ZeroClocks);
    }

    let mut late = vec![Kind::Mnt];
    if whole {
        late.extend([Kind::Ipc, Kind::Uts]);
        if crate::layers::cgroup::asked(room, host).is_nothing() {
            late.push(Kind::Cgroup);
        } else {
            draft.add(Stage::EnterCgroup, Action::Unshare(vec![Kind::Cgroup]));
        }
    }
    draft.add(Stage::Enter, Action::Unshare(late));
    if whole {
        draft.add(Stage::Enter, Action::Name { host: room.names.host.clone(), domain: room.names.domain.clone() });
        // One user namespace is still to come: the one that locks the room. See `identity`.
        let own = u32::from(room.has(Layer::Identity));
        match room.profile {
            _ if room.proc.source == ProcSource::Outer => {
                // Its /proc/sys is read-only in most containers, and the limits of namespaces stand there.
                draft.weaken(Layer::Namespaces, "user namespaces can be made inside: /proc/sys is not ours to write");
            }
            Profile::Build | Profile::Fetch | Profile::Machines => {
                draft.add(Stage::NamespaceLimits, Action::Allow { kind: Kind::User, most: own });
            }
            Profile::Nested => {
                draft.add(Stage::NamespaceLimits, Action::Allow { kind: Kind::Net, most: 0 });
            }
        }
    }
    Ok(())
}

pub(super) fn apply(action: &Action, site: &mut Site<'_>) -> Outcome {
    match action {
        Action::Unshare(kinds) => {
            let flags = kinds.iter().fold(CloneFlags::empty(), |flags, kind| flags | kind.flag());
            site.sys.unshare(flags)?;
        }
        Action::ZeroClocks => {
            // Offsets are subtracted from what the host's clocks show, so the room's begin near zero.
            for (clock, id) in
                [("monotonic", nix::time::ClockId::CLOCK_MONOTONIC), ("boottime", nix::time::ClockId::CLOCK_BOOTTIME)]
            {
                let now = nix::time::clock_gettime(id)?;
                let line = format!("{clock} {} 0\n", -now.tv_sec());
                site.sys.write_kernel_file(Path::new("/proc/self/timens_offsets"), line.as_bytes())?;
            }
        }
        Action::Allow { kind, most } => {
            let path = format!("/proc/sys/user/max_{}_namespaces", kind.name());
            site.sys.write_kernel_file(Path::new(&path), most.to_string().as_bytes())?;
        }
        Action::Name { host, domain } => {
            site.sys.set_hostname(host)?;
            site.sys.set_domainname(domain)?;
        }
    }
    Ok(())
}

pub(super) fn verify(room: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    let mut wanted = vec![Kind::User, Kind::Mnt];
    if room.has(Layer::Namespaces) {
        wanted.extend([Kind::Pid, Kind::Ipc, Kind::Uts, Kind::Cgroup]);
        if room.namespaces.time {
            wanted.push(Kind::Time);
        }
    }
    for kind in wanted {
        match view.namespace(kind) {
            Ok((inside, outside)) if inside != outside => finding.fact(kind.name(), inside),
            Ok(_) => finding.wrong(format!("the {} namespace is the launcher's own", kind.name())),
            Err(why) => finding.wrong(why),
        }
    }
    finding
}
