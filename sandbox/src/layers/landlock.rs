//! Landlock, the second layer behind the mounts: read and execute everywhere in the room, everything in what is writable, nothing
//! elsewhere; no signal and no abstract socket out of the room. landlock(7).
//!
//! The best interface that both the kernel and crate `landlock` know is used, in full or not at all, and the seal names it.
//! It is never the network boundary: a denied connect passes with `MSG_FASTOPEN` on some kernels.

use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use serde::Serialize;

use super::Layer;
use crate::error::Refusal;
use crate::host::Host;
use crate::plan::{Draft, Stage};
use crate::room::{Entry, Room};
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site};
use crate::sys::MountFlags;

/// From this version on there are scopes (Linux 6.12).
pub const SCOPES_FROM: u32 = 6;

/// What is allowed below a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allowed {
    /// Reading and executing.
    Read,
    /// Reading, and writing files that exist: kernel files and device nodes.
    WriteExisting,
    /// Everything.
    All,
}

/// The steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Takes hold of the room's own POSIX message queues. They lie on a mount that is in nobody's tree, so no rule about a path would
    /// allow them: mq_overview(7).
    Queues,
    /// One ruleset, enforced.
    Restrict {
        /// Version of the interface.
        abi: u32,
        /// What is allowed where; no file rules at all when empty.
        files: Vec<(PathBuf, Allowed)>,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Restrict { abi, files } = self else {
            return f.write_str("take hold of the room's own message queues, for a rule that allows them");
        };
        write!(f, "restrict by Landlock, interface {abi}: ")?;
        if *abi >= SCOPES_FROM {
            f.write_str("no signals and no abstract sockets out of the room; ")?;
        }
        if files.is_empty() {
            return f.write_str("no file rules");
        }
        let list = |allowed| {
            let paths: Vec<_> =
                files.iter().filter(|(_, rule)| *rule == allowed).map(|(path, _)| path.display().to_string()).collect();
            paths.join(" ")
        };
        write!(
            f,
            "read below {}, write what exists below {}, everything below {}",
            list(Allowed::Read),
            list(Allowed::WriteExisting),
            list(Allowed::All)
        )
    }
}

pub(super) fn plan(room: &Room, host: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    let refuse = |why: String, fix: &str| Err(Refusal::new(Layer::Landlock, "Landlock", why, fix));
    if !room.has(Layer::Landlock) {
        return match room.landlock.require {
            Some(_) => refuse("it is required and left out at once".into(), "leave out one of the two"),
            None => Ok(()),
        };
    }
    let abi = host.landlock;
    if let Some(least) = room.landlock.require
        && abi < least
    {
        return refuse(
            format!("interface {least} is required, and this kernel with this program has {abi}"),
            "use a newer kernel, or require less",
        );
    }
    if abi == 0 {
        return refuse(
            "the kernel does not have it, or it is not in the list of active security modules".into(),
            "boot with `landlock` in lsm=, or leave the layer out by name with --without landlock",
        );
    }
    let mut files = Vec::new();
    if room.landlock_files() {
        // Without an IPC namespace they are the host's.
        if room.has(Layer::Namespaces) {
            draft.add(Stage::Devices, Action::Queues);
        }
        files.push(("/".into(), Allowed::Read));
        files.push(("/proc".into(), Allowed::WriteExisting));
        files.push(("/dev".into(), Allowed::WriteExisting));
        files.push(("/dev/shm".into(), Allowed::All));
        for entry in &room.mounts {
            match entry {
                Entry::Bind { inside, writable: true, .. } | Entry::Tmpfs { inside, .. } => {
                    files.push((inside.clone(), Allowed::All));
                }
                _ => {}
            }
        }
    } else if abi < SCOPES_FROM {
        draft.weaken(
            Layer::Landlock,
            "file rules are off in this profile, and this kernel has no scopes: nothing is left",
        );
        return Ok(());
    }
    draft.add(Stage::Landlock, Action::Restrict { abi, files });
    Ok(())
}

pub(super) fn apply(action: &Action, site: &mut Site<'_>) -> Outcome {
    let Action::Restrict { abi, files } = action else {
        site.queues = match site.sys.new_filesystem("mqueue", &[], MountFlags::PLAIN) {
            Ok(queues) => {
                // To be taken away with the old root: a mount that is in no tree when its descriptor is closed costs a grace period of
                // the kernel's of its own. Where there is no such directory it is slower, nothing else.
                match site.sys.move_mount(queues.as_fd(), AT_FDCWD, Path::new("/dev")) {
                    Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR) => Some(queues),
                    Err(errno) => return Err(errno.into()),
                }
            }
            // A kernel without them.
            Err(Errno::ENODEV) => None,
            Err(errno) => return Err(errno.into()),
        };
        return Ok(());
    };
    let status = site.sys.landlock(*abi, files, site.queues.take())?;
    site.note(Layer::Landlock, "interface", abi.to_string());
    site.note(Layer::Landlock, "ruleset", status);
    site.note(Layer::Landlock, "file-rules", files.len().to_string());
    Ok(())
}

pub(super) fn verify(_: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    // The kernel shows nobody a process's domain. What there is: landlock_restrict_self(2) succeeded in full.
    match view.note(Layer::Landlock, "ruleset") {
        Some("enforced in full") => {}
        Some(other) => finding.wrong(format!("the ruleset is {other}")),
        None if view.weakened(Layer::Landlock) => {}
        None => finding.wrong("the room did not report its ruleset"),
    }
    for key in ["interface", "file-rules"] {
        if let Some(value) = view.note(Layer::Landlock, key) {
            finding.fact(key, value);
        }
    }
    finding
}
