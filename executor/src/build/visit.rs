//! A visit to a kept build: its room once more, with a visitor in the builder's place.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anchorhold_sandbox::Room;
use anchorhold_sandbox::room::{Entry, Limits, Output, Outside, Process, Stdin};

use super::keep::{BUILD, Kept};
use super::realise::Ids;
use super::running::Running;
use super::scratch::{self, Scratch};
use super::tools::{INSIDE, Tools};
use crate::store::Store;
use crate::tree;

/// Where a visit puts what lasts no longer than itself, below the kept build.
const VISITS: &str = "visits";

/// How a visitor's standard streams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// A terminal of the room's own, shown on the visitor's.
    Terminal,
    /// The visitor's standard input, which is no terminal, and pipes.
    Input,
    /// Pipes, and nothing to read: a terminal is never handed over as it is.
    NoInput,
}

impl Streams {
    /// Writes them into a process.
    pub fn put_into(self, process: &mut Process) {
        (process.stdin, process.output) = match self {
            Self::Terminal => (Stdin::Null, Output::Terminal),
            Self::Input => (Stdin::Inherit, Output::Pipe),
            Self::NoInput => (Stdin::Null, Output::Pipe),
        };
    }
}

/// A visit to a kept build, ready to begin. What it needs is gone when it is dropped; the build directory stays as the visitor left it.
pub struct Visit {
    /// The room to enter.
    pub room: Room,
    kept: Kept,
    // Dropped in this order: the directories first, then the ids that they belong to.
    _scratch: Scratch,
    ids: Ids,
}

impl Visit {
    /// Prepares a visit. `store` is where tools may come from.
    ///
    /// # Errors
    /// What a person reads.
    pub fn prepare(
        kept: Kept,
        store: Option<&Store>,
        tools: &Tools,
        streams: Streams,
        command: &[OsString],
    ) -> Result<Self, String> {
        let io = |doing: &'static str| move |error: io::Error| format!("{doing}: {error}");
        if let Some(gone) = kept.room.mounts.iter().find_map(gone) {
            return Err(format!(
                "the build's input {} is not there any more; build its derivation again, with --keep-failed",
                gone.display()
            ));
        }
        let visits = kept.path.join(VISITS);
        scratch::sweep(&visits).map_err(io("removing what an earlier visit left"))?;
        // An id of its own even where builds run as build users: a visit must not wait for one of them.
        let ids = Ids::take(None)?;
        let scratch = Scratch::create(&visits, ids.owner()).map_err(io("making directories for the visit"))?;
        let brought = scratch.path().join("visitor");
        std::fs::create_dir(&brought)
            .and_then(|()| std::fs::set_permissions(&brought, std::os::unix::fs::PermissionsExt::from_mode(0o755)))
            .and_then(|()| tools.lay_out(&brought, &kept.room.process, &prompt(&kept.path)))
            .map_err(io("laying the tools out"))?;
        if let Some((uid, gid)) = ids.owner() {
            tree::give(kept.directory.as_fd(), BUILD.as_ref(), uid, gid)
                .map_err(|error| format!("giving the build directory to the room: {error}"))?;
        }
        let places = Places {
            build: kept.path.join(BUILD),
            store: scratch.store(),
            tmp: scratch.tmp(),
            tools: brought,
            real_store: store.map(|store| (store.real_dir(), PathBuf::from(store.dir().as_str()))),
        };
        let room = room(kept.room.clone(), &places, tools, ids.outside(), streams, command);
        Ok(Self { room, kept, _scratch: scratch, ids })
    }
}

impl Visit {
    /// Whom its room runs under, if not the visitor: uid and gid.
    pub fn owner(&self) -> Option<(u32, u32)> {
        self.ids.owner()
    }
}

/// What a room is to show and is not there: an input that was collected meanwhile.
fn gone(entry: &Entry) -> Option<PathBuf> {
    match entry {
        Entry::Bind { inside, outside, writable: false, optional: false, .. } => {
            let path = outside.as_ref().unwrap_or(inside);
            path.symlink_metadata().is_err().then(|| path.clone())
        }
        _ => None,
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.ids.owner().is_some() {
            // Everything in the room is dead. What does not work now, the next visit does.
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            let _ = tree::give(self.kept.directory.as_fd(), BUILD.as_ref(), uid, gid);
        }
    }
}

/// What the shell shows before each line: which build it is in.
fn prompt(kept: &Path) -> String {
    let name = kept.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_prefix("nix-build-").unwrap_or(&name);
    let name = name.rsplit_once(".drv").map_or(name, |(name, _)| name);
    prompt_for(name, "failed")
}

/// A prompt that names a build. What is not plain is left out: it would be read by a shell.
pub fn prompt_for(name: &str, state: &str) -> String {
    let plain = |letter: &char| letter.is_ascii_alphanumeric() || "+-._?=".contains(*letter);
    format!("[{state} {}] \\w \\$ ", name.chars().filter(plain).collect::<String>())
}

/// Host paths of a visit.
struct Places {
    build: PathBuf,
    store: PathBuf,
    tmp: PathBuf,
    tools: PathBuf,
    /// The store that tools come from: where its files lie, and how it names itself.
    real_store: Option<(PathBuf, PathBuf)>,
}

/// The room of a build, for a visitor: the same but for what the visitor brings, the kernel ids behind its own, which may be
/// another room's by now, and the limits on time and output, which are a builder's.
fn room(
    mut room: Room,
    places: &Places,
    tools: &Tools,
    outside: Outside,
    streams: Streams,
    command: &[OsString],
) -> Room {
    let build_dir = room.process.directory.clone();
    for entry in &mut room.mounts {
        if let Entry::Bind { inside, outside, writable: true, .. } = entry {
            *outside = Some(match inside {
                inside if *inside == build_dir => places.build.clone(),
                inside if *inside == Path::new("/tmp") => places.tmp.clone(),
                _ => places.store.clone(),
            });
        }
    }
    let mut show = |inside: PathBuf, outside: PathBuf| {
        if !room.mounts.iter().any(|entry| entry.inside() == inside) {
            let outside = Some(outside);
            room.mounts.push(Entry::Bind { inside, outside, writable: false, optional: false, noexec: false });
        }
    };
    show(INSIDE.into(), places.tools.clone());
    if let Some((inside, outside)) = tools.mounts() {
        show(inside, outside);
    }
    if let (Tools::Store { closure, .. }, Some((real, dir))) = (tools, &places.real_store) {
        for path in closure {
            show(dir.join(path.as_str()), real.join(path.as_str()));
        }
    }
    room.identity.outside = outside;
    room.limits = Limits { time: None, silence: None, output: None, ..room.limits };
    room.process = tools.process(&room.process, command);
    streams.put_into(&mut room.process);
    room
}

/// The room of a build at work, for a visitor: what is done of it is only what makes their process one of the room's. The payload's
/// supervisor answers for its limits and records its refusals; a visitor is no part of either.
pub fn running_room(running: &Running, tools: &Tools, streams: Streams, command: &[OsString]) -> Room {
    let mut room = running.room.clone();
    room.identity.outside = Outside::User { uid: running.ids.0, gid: running.ids.1 };
    room.seccomp.record = Some(false);
    room.limits = Limits {
        memory: None,
        cpu: None,
        cpu_weight: None,
        io_weight: None,
        account: false,
        time: None,
        silence: None,
        output: None,
        ..room.limits
    };
    room.process = tools.process(&room.process, command);
    streams.put_into(&mut room.process);
    room
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(inside: &str, outside: &str, writable: bool) -> Entry {
        Entry::Bind { inside: inside.into(), outside: Some(outside.into()), writable, optional: false, noexec: false }
    }

    #[test]
    fn a_visitors_room_is_the_builds_but_for_places_and_limits_of_time() {
        let kept = Room {
            mounts: vec![
                bind("/nix/store", "/gone/store", true),
                bind("/build", "/gone/build", true),
                bind("/tmp", "/gone/tmp", true),
                bind("/nix/store/input", "/real/input", false),
            ],
            limits: Limits {
                time: Some(anchorhold_sandbox::quantity::Duration(5)),
                pids: Some(7),
                ..Limits::default()
            },
            process: Process {
                program: "/nix/store/input/bin/sh".into(),
                directory: "/build".into(),
                ..Process::default()
            },
            ..Room::default()
        };
        let places = Places {
            build: "/kept/build".into(),
            store: "/visit/store".into(),
            tmp: "/visit/tmp".into(),
            tools: "/visit/visitor".into(),
            real_store: None,
        };
        let tools = Tools::Busybox("/unused".into());
        let outside = Outside::User { uid: 7, gid: 7 };
        let visit = room(kept.clone(), &places, &tools, outside, Streams::Terminal, &[]);
        assert_eq!(
            visit.mounts,
            [
                bind("/nix/store", "/visit/store", true),
                bind("/build", "/kept/build", true),
                bind("/tmp", "/visit/tmp", true),
                bind("/nix/store/input", "/real/input", false),
                bind("/.visitor", "/visit/visitor", false),
            ]
        );
        assert_eq!((visit.limits.time, visit.limits.pids), (None, Some(7)));
        assert_eq!(visit.process.output, Output::Terminal);
        // Everything else is untouched: whatever is added to a room later, a visitor's has it too.
        let Room { mounts, limits, process, .. } = kept.clone();
        let identity = kept.identity.clone();
        assert_eq!(Room { mounts, limits, process, identity, ..visit }, kept);
    }

    #[test]
    fn a_prompt_holds_nothing_that_a_shell_acts_on() {
        assert_eq!(prompt_for("hello-2.12'$(x)`", "failed"), "[failed hello-2.12x] \\w \\$ ");
        assert_eq!(prompt(Path::new("/tmp/nix-build-hello-1.drv-0")), "[failed hello-1] \\w \\$ ");
    }
}
