//! Who the payload is: never the kernel's uid 0 or gid 0, whoever started us; and the second user namespace.
//!
//! Started by root, the set-up process gives its ids up for unprivileged ones *before* it makes the room's user namespace. From
//! there on it is in the position of an ordinary user, and one code path serves both. The second user namespace, entered when
//! the tree stands, owns none of the room's mounts or other namespaces: a capability over it, should the payload ever come by one,
//! moves nothing that was set up. user_namespaces(7).

use std::fmt;
use std::path::Path;

use nix::sched::CloneFlags;
use serde::Serialize;

use super::Layer;
use crate::error::Refusal;
use crate::host::Host;
use crate::ids::{RANGE_LENGTH, Reservation};
use crate::plan::{Draft, Stage};
use crate::room::{Outside, ProcSource, Room};
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site};

/// One line of a uid or gid map: `length` ids from `inside` on are those from `outside` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// First id in the namespace.
    pub inside: u32,
    /// First id in the parent namespace.
    pub outside: u32,
    /// How many.
    pub length: u32,
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.inside, self.outside, self.length)
    }
}

/// Which kernel ids the room gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ids {
    /// The caller's own.
    Own {
        /// Kernel uid.
        uid: u32,
        /// Kernel gid.
        gid: u32,
    },
    /// These, taken on by a privileged caller.
    Given {
        /// Kernel uid.
        uid: u32,
        /// Kernel gid.
        gid: u32,
    },
    /// So many from the range that is allocated for rooms, locked while the room lives.
    Allocated {
        /// How many.
        length: u32,
    },
    /// From the caller's lines in /etc/subuid and /etc/subgid.
    Subordinate {
        /// First kernel uid.
        uid: u32,
        /// First kernel gid.
        gid: u32,
        /// How many.
        length: u32,
    },
}

/// The steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Locks ids of the allocated range.
    Reserve {
        /// How many.
        length: u32,
    },
    /// Gives up the caller's ids.
    Become {
        /// Those to take on.
        ids: Ids,
        /// The supplementary groups that are kept: none, or the one that owns a granted device.
        groups: Vec<u32>,
    },
    /// Writes the maps of the room's user namespace, from inside: one id, the writer's own.
    MapSelf {
        /// Inside.
        uid: u32,
        /// Inside.
        gid: u32,
    },
    /// Has the supervisor write the maps of the room's user namespace.
    MapRange {
        /// Which ids.
        ids: Ids,
    },
    /// Takes on the ids inside.
    BecomeInside {
        /// Inside.
        uid: u32,
        /// Inside.
        gid: u32,
    },
    /// unshare(2) of a second user namespace with the same ids.
    Lock {
        /// Inside, both sides of the map.
        uid: u32,
        /// Inside, both sides of the map.
        gid: u32,
        /// 1, or the whole range.
        length: u32,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserve { length } => write!(f, "reserve {length} kernel id(s) for this room alone"),
            Self::Become { ids, groups } => {
                match ids {
                    Ids::Own { uid, gid } | Ids::Given { uid, gid } => write!(f, "become kernel uid {uid}, gid {gid}")?,
                    Ids::Allocated { .. } => f.write_str("become the reserved kernel uid and gid")?,
                    Ids::Subordinate { .. } => f.write_str("stay the caller")?,
                }
                match groups.as_slice() {
                    [] => f.write_str(", with no other group"),
                    groups => write!(f, ", with the supplementary group(s) {groups:?}"),
                }
            }
            Self::MapSelf { uid, gid } => {
                write!(f, "map uid {uid} and gid {gid} to the ids held, deny setgroups")
            }
            Self::MapRange { .. } => f.write_str("have the supervisor map the range of ids"),
            Self::BecomeInside { uid, gid } => write!(f, "become uid {uid}, gid {gid} inside"),
            Self::Lock { uid, gid, length } => {
                write!(
                    f,
                    "enter a second user namespace (uid {uid}, gid {gid}, {length} id(s)) that owns nothing of the room"
                )
            }
        }
    }
}

pub(super) fn plan(room: &Room, host: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    let identity = &room.identity;
    let mut named = vec![identity.uid, identity.gid];
    if let Outside::User { uid, gid } = identity.outside {
        named.extend([uid, gid]);
    }
    if named.contains(&NO_ID) {
        return Err(Refusal::new(
            Layer::Identity,
            format!("the id {NO_ID}"),
            "for the kernel it is no id: setresuid(2) takes it for \"leave it as it is\"",
            "name another one",
        ));
    }
    let ids = choose(room, host)?;
    let (inside_uid, inside_gid) = (identity.uid, identity.gid);
    let range = match ids {
        Ids::Allocated { length } | Ids::Subordinate { length, .. } if length > 1 => Some(length),
        _ => None,
    };
    if let Some(length) = range
        && (inside_uid >= length || inside_gid >= length)
    {
        return Err(Refusal::new(
            Layer::Identity,
            format!("uid {inside_uid}, gid {inside_gid}"),
            format!("the room's range has the ids 0 to {}", length - 1),
            "choose ids inside it",
        ));
    }
    if range.is_some() && room.proc.source == ProcSource::Outer {
        return Err(Refusal::new(
            Layer::Identity,
            "a range of ids with the /proc around us",
            "the maps of the second user namespace are written through a /proc of the room's own",
            "leave out one of them",
        ));
    }
    if let Ids::Allocated { length } = ids {
        draft.add(Stage::Reserve, Action::Reserve { length });
    }
    if host.privileged {
        let groups = match (&host.kvm, room.devices.kvm) {
            (Ok(kvm), true) => kvm.group_needed.into_iter().collect(),
            _ => Vec::new(),
        };
        draft.add(Stage::TakeIdentity, Action::Become { ids, groups });
    }
    if range.is_some() {
        draft.add(Stage::Maps, Action::MapRange { ids });
        draft.add(Stage::Maps, Action::BecomeInside { uid: inside_uid, gid: inside_gid });
    } else {
        draft.add(Stage::Maps, Action::MapSelf { uid: inside_uid, gid: inside_gid });
    }
    if room.has(Layer::Identity) {
        draft.add(Stage::Lock, Action::Lock { uid: inside_uid, gid: inside_gid, length: range.unwrap_or(1) });
    }
    Ok(())
}

/// (uid_t) -1.
const NO_ID: u32 = u32::MAX;

/// Which kernel ids a room gets on this host.
fn choose(room: &Room, host: &Host) -> Result<Ids, Refusal> {
    let refuse = |what: &str, why: &str, fix: &str| Err(Refusal::new(Layer::Identity, what, why, fix));
    let holds = |first: u32, id: u32| (first..first.saturating_add(RANGE_LENGTH)).contains(&id);
    match room.identity.outside {
        Outside::User { uid, gid } => {
            if uid == host.kernel_root.uid || gid == host.kernel_root.gid || uid == 0 || gid == 0 {
                return refuse(
                    "the room's user",
                    "no id of a room is ever the kernel's uid 0 or gid 0: it would own the host's sysctls and files",
                    "name an unprivileged user and group",
                );
            }
            if host.privileged {
                Ok(Ids::Given { uid, gid })
            } else if (uid, gid) == (host.uid, host.gid) {
                Ok(Ids::Own { uid, gid })
            } else {
                refuse(
                    "running as another user",
                    &format!("only root may become uid {uid}"),
                    "start anchorhold as that user or as root",
                )
            }
        }
        Outside::Auto if host.privileged => Ok(Ids::Allocated { length: 1 }),
        Outside::Range if host.privileged => Ok(Ids::Allocated { length: RANGE_LENGTH }),
        _ if host.uid == host.kernel_root.uid || host.gid == host.kernel_root.gid => refuse(
            "the kernel's root with no other id to take on",
            "no id of a room is ever the kernel's uid 0 or gid 0, and another takes CAP_SETUID, CAP_SETGID, CAP_SYS_ADMIN and ids that are mapped here",
            "start anchorhold as an ordinary user, or as root with these capabilities where more ids are mapped",
        ),
        Outside::Auto => Ok(Ids::Own { uid: host.uid, gid: host.gid }),
        Outside::Range => match &host.subordinate {
            Ok(found) if holds(found.uid, host.kernel_root.uid) || holds(found.gid, host.kernel_root.gid) => refuse(
                "a range of ids",
                "the caller's subordinate ids hold the kernel's uid 0 or gid 0, and no id of a room is ever one of these",
                "give this user other ids in /etc/subuid and /etc/subgid",
            ),
            Ok(found) => {
                Ok(Ids::Subordinate { uid: found.uid, gid: found.gid, length: found.length.min(RANGE_LENGTH) })
            }
            Err(why) => refuse(
                "a range of ids",
                why,
                "install Debian's package uidmap and give this user at least 65,536 ids in /etc/subuid and /etc/subgid (usermod --add-subuids)",
            ),
        },
    }
}

pub(super) fn apply(action: &Action, site: &mut Site<'_>) -> Outcome {
    match action {
        Action::Reserve { length } => {
            site.reservation = Some(Reservation::take(*length, &site.ids)?);
        }
        Action::Become { ids, groups } => {
            site.sys.set_groups(groups)?;
            let (uid, gid) = match ids {
                Ids::Own { uid, gid } | Ids::Given { uid, gid } => (*uid, *gid),
                Ids::Allocated { .. } => {
                    let first = site.reservation.as_ref().ok_or(nix::errno::Errno::ENOLCK)?.first;
                    (first, first)
                }
                Ids::Subordinate { .. } => return Ok(()),
            };
            site.sys.become_ids(uid, gid)?;
            site.held_ids = (uid, gid);
        }
        Action::MapSelf { uid, gid } => {
            let (held_uid, held_gid) = site.held_ids;
            map_self(site, (*uid, held_uid), (*gid, held_gid))?;
        }
        Action::MapRange { ids } => map_range(ids, site)?,
        Action::BecomeInside { uid, gid } => {
            site.sys.set_groups(&[])?;
            site.sys.become_ids(*uid, *gid)?;
        }
        Action::Lock { uid, gid, length } => {
            if *length == 1 {
                site.sys.unshare(CloneFlags::CLONE_NEWUSER)?;
                map_self(site, (*uid, *uid), (*gid, *gid))?;
            } else {
                lock_range(site, *length)?;
            }
        }
    }
    Ok(())
}

fn map_self(site: &Site<'_>, uid: (u32, u32), gid: (u32, u32)) -> Outcome {
    let line = |(inside, outside)| Extent { inside, outside, length: 1 }.to_string();
    // A map of one's own id needs no privilege, but only once setgroups(2) is given up: a group can also take rights away.
    site.sys.write_kernel_file(Path::new("/proc/self/setgroups"), b"deny")?;
    site.sys.write_kernel_file(Path::new("/proc/self/uid_map"), line(uid).as_bytes())?;
    site.sys.write_kernel_file(Path::new("/proc/self/gid_map"), line(gid).as_bytes())?;
    Ok(())
}

/// Run by the supervisor, outside: the maps of a whole range.
fn map_range(ids: &Ids, site: &mut Site<'_>) -> Outcome {
    let pid = site.child.ok_or(nix::errno::Errno::ESRCH)?;
    match *ids {
        Ids::Allocated { length } => {
            let first = site.reservation.as_ref().ok_or(nix::errno::Errno::ENOLCK)?.first;
            let line = Extent { inside: 0, outside: first, length }.to_string();
            for map in ["uid_map", "gid_map"] {
                site.sys.write_kernel_file(&Path::new("/proc").join(pid.to_string()).join(map), line.as_bytes())?;
            }
            Ok(())
        }
        Ids::Subordinate { uid, gid, length } => {
            for (helper, outside) in [("newuidmap", uid), ("newgidmap", gid)] {
                crate::ids::run_map_helper(helper, pid, &Extent { inside: 0, outside, length })?;
            }
            Ok(())
        }
        Ids::Own { .. } | Ids::Given { .. } => Err(nix::errno::Errno::EINVAL.into()),
    }
}

/// The maps of a second namespace with a whole range: they take a capability over the *first* one, which is lost on entering
/// the second. A child that stays behind writes them.
fn lock_range(site: &mut Site<'_>, length: u32) -> Outcome {
    use crate::sys::process::{Forked, exit_now, fork, wait};
    let (waiting, entered) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    match fork()? {
        Forked::Child => {
            drop(entered);
            // One byte says "entered"; an end of file says that entering failed.
            let code = match nix::unistd::read(&waiting, &mut [0]) {
                Ok(1) => {
                    let line = Extent { inside: 0, outside: 0, length }.to_string();
                    let write =
                        |map: &str| site.sys.write_kernel_file(&Path::new("/proc/1").join(map), line.as_bytes());
                    match write("uid_map").and_then(|()| write("gid_map")) {
                        Ok(()) => 0,
                        Err(errno) => errno as i32,
                    }
                }
                _ => nix::errno::Errno::EPIPE as i32,
            };
            exit_now(code)
        }
        Forked::Parent { pid, .. } => {
            drop(waiting);
            site.sys.unshare(CloneFlags::CLONE_NEWUSER)?;
            site.sys.write_descriptor(std::os::fd::AsFd::as_fd(&entered), b"!")?;
            let ended = wait(pid)?;
            match libc::WEXITSTATUS(ended.status) {
                0 if libc::WIFEXITED(ended.status) => Ok(()),
                errno if libc::WIFEXITED(ended.status) => Err(nix::errno::Errno::from_raw(errno).into()),
                _ => Err(nix::errno::Errno::ECHILD.into()),
            }
        }
    }
}

pub(super) fn verify(room: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    // Read from outside, these are ids of the supervisor's own user namespace.
    let root = [view.kernel_root.uid.to_string(), view.kernel_root.gid.to_string()];
    for ((key, name), root) in [("Uid", "kernel-uids"), ("Gid", "kernel-gids")].into_iter().zip(root) {
        let ids = view.status(key).unwrap_or_default();
        let numbers: Vec<_> = ids.split_ascii_whitespace().collect();
        match numbers.first() {
            Some(first) if numbers.len() == 4 && numbers.iter().all(|id| id == first && *id != root) => {
                finding.fact(name, *first);
            }
            _ => finding.wrong(format!("{name} are {ids:?}: not one unprivileged id")),
        }
    }
    finding.fact("groups", view.status("Groups").unwrap_or_default());
    for map in ["uid_map", "gid_map"] {
        match view.standing_file(map) {
            Ok(text) => {
                let lines: Vec<Vec<u64>> = text
                    .lines()
                    .map(|line| line.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect())
                    .collect();
                let root = u64::from(if map == "uid_map" { view.kernel_root.uid } else { view.kernel_root.gid });
                let holds_root = |extent: &Vec<u64>| (extent[1]..extent[1] + extent[2]).contains(&root);
                if lines.is_empty() || lines.iter().any(|extent| extent.len() != 3 || holds_root(extent)) {
                    finding.wrong(format!("{map} is {text:?}"));
                } else {
                    finding.fact(map, text.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
                }
            }
            Err(why) => finding.wrong(why),
        }
    }
    match (view.namespace(super::namespaces::Kind::User), view.note(Layer::Identity, "first-user-namespace")) {
        (Ok((now, _)), Some(first)) if now != first => finding.fact("second-user-namespace", now),
        (Ok((now, _)), _) if room.has(Layer::Identity) => {
            finding.wrong(format!("the payload is still in the user namespace {now} that owns the room's mounts"));
        }
        (Err(why), _) => finding.wrong(why),
        _ => {}
    }
    finding
}
