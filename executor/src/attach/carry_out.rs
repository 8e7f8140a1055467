//! One build for Nix, from the request to outputs at the scratch paths.
//!
//! We run as the build user that Nix has chosen, or as root where there are no build users; then the room gets a kernel id
//! of its own, as in `anchorhold build`. The process has one thread, so the room is entered from it and no launcher process is needed.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anchorhold_sandbox::launcher::{Options as LauncherOptions, Sink, Stream};
use anchorhold_sandbox::outcome::End as RoomEnd;
use anchorhold_sandbox::{Error, Launcher, Outcome, Plan, Room};
use rustix::fs::{AtFlags, Dir, Gid, Mode, OFlags, Uid};

use super::kind::{Known, find_out};
use super::request::Request;
use super::voice::Voice;
use crate::build::environment::BuilderInput;
use crate::build::launcher::{host_for, without_network};
use crate::build::policy::{Policy, Rejection};
use crate::build::realise::Ids;
use crate::build::room::{Grants, Parts, ScratchPaths, room};
use crate::build::scratch::{self, Scratch};
use crate::machines;
use crate::machines::build::{Trouble, trouble};
use crate::machines::granted::{Enclosed, Granted};
use crate::tree::{self, OutsideLinks, TreeError};

/// The most refusals of the room's filter that a failed build is told.
const REFUSALS: usize = 5;

/// The directory below the one that Nix made, in which ours are.
const OURS: &str = "anchorhold";

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// How a build ended, of which Nix is told by our own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The builder ended with this status. With 0, its outputs are where Nix wants them.
    Exited(i32),
    /// The builder was ended by this signal.
    Signaled(i32),
}

/// Why a build does not end as its builder did.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// It is not built here.
    #[error("cannot build ‘{name}’ here: {why}")]
    Rejected {
        /// The derivation's name.
        name: String,
        /// Why.
        why: Rejection,
    },
    /// It was not started.
    #[error("cannot build ‘{name}’: {why}")]
    NotStarted {
        /// The derivation's name.
        name: String,
        /// What failed.
        why: String,
    },
    /// It was ended, or its outputs are not taken.
    #[error("‘{name}’ {why}")]
    Failed {
        /// The derivation's name.
        name: String,
        /// How.
        why: String,
    },
    /// We were told to end by this signal while the room was being made.
    #[error("ended by signal {0} before the builder was started")]
    Interrupted(i32),
}

/// What is wanted, and what is allowed.
#[derive(Debug)]
pub struct Attachment<'a> {
    /// The build.
    pub request: &'a Request,
    /// What is allowed. Its system, directories and variables do not matter: Nix decides on those.
    pub policy: &'a Policy,
}

impl Attachment<'_> {
    /// Builds. When this returns, every process of the build is dead.
    ///
    /// # Errors
    /// See [`Stopped`]. Nothing of this build is at the scratch paths then.
    pub fn carry_out<W: Write>(&self, voice: &mut Voice<W>) -> Result<End, Stopped> {
        let request = self.request;
        let known = find_out(request).map_err(|error| Stopped::NotStarted {
            name: request.outputs.values().next().map(ToString::to_string).unwrap_or_default(),
            why: error.to_string(),
        })?;
        let name = known.derivation.name.clone();
        let not_started = |why: String| Stopped::NotStarted { name: name.clone(), why };
        let grants = self
            .policy
            .grants(&known.derivation, &known.options)
            .map_err(|why| Stopped::Rejected { name: name.clone(), why })?;
        if known.derivation.is_builtin() {
            return Err(not_started(
                "Nix does what begins with ‘builtin:’ itself; take ‘builtin’ out of ‘systems’".into(),
            ));
        }
        let granted = Granted::of(&grants, self.policy.machines.as_ref(), &known.derivation)
            .map_err(|error| not_started(error.to_string()))?;
        let ids = Ids::take(None).map_err(not_started)?;
        let given = Given::give(request, ids.owner()).map_err(not_started)?;
        let ours = Ours(request.top_dir.join(OURS));
        let scratch = Scratch::create(&ours.0, ids.owner()).map_err(|error| not_started(error.to_string()))?;
        let mut tell = |line: &str| drop(voice.say(line));
        let (room, machine) =
            self.room(&known, grants, granted.as_ref(), &ids, &scratch, &mut tell).map_err(not_started)?;
        let _known = granted.as_ref().and_then(|granted| granted.known(&format!("builds {name}"), &work(&scratch)));
        let outcome =
            run(machine.as_ref().map_or(&room, |machine| &machine.room), voice).map_err(|error| match error {
                Error::Interrupted { signal } => Stopped::Interrupted(signal),
                error @ Error::Exec { .. } => {
                    Stopped::Failed { name: name.clone(), why: format!("was not started: {error}") }
                }
                error => {
                    let advice = without_network(&error, &room);
                    Stopped::NotStarted { name: name.clone(), why: format!("{error}{advice}") }
                }
            })?;
        drop(given);
        let failed = |why: String| Stopped::Failed { name: name.clone(), why };
        let trouble = machine.and_then(|_| trouble(&machines::build::result(&work(&scratch)), outcome.end));
        if let Some(Trouble::NotRun(why) | Trouble::TimedOut(why) | Trouble::Failed(why)) = trouble {
            return Err(failed(format!("failed: {why}")));
        }
        let limits = &self.policy;
        match outcome.end {
            RoomEnd::Exited(0) => {}
            RoomEnd::Exited(status) => {
                tell_refusals(&outcome, voice);
                return Ok(End::Exited(status));
            }
            RoomEnd::Signaled(signal) => {
                tell_refusals(&outcome, voice);
                return Ok(End::Signaled(signal));
            }
            RoomEnd::Time => return Err(failed(format!("was ended: it ran longer than {}", text(limits.timeout)))),
            RoomEnd::Silence => {
                return Err(failed(format!("was ended: it wrote nothing for {}", text(limits.max_silent_time))));
            }
            RoomEnd::Output => {
                return Err(failed(format!("was ended: it wrote more than {} of log", text(limits.max_log_size))));
            }
            RoomEnd::Memory => {
                return Err(failed(format!("was ended: it used more memory than {}", text(limits.memory))));
            }
        }
        self.hand_over(&scratch, &ids).map_err(|error| failed(error.to_string()))?;
        // Now, so that a failure is told; dropped, it would be silent.
        if let Err(error) = scratch.remove() {
            let _ = voice.say(&format!("warning: what the build left could not be removed: {error}"));
        }
        Ok(End::Exited(0))
    }

    /// The builder's room, and the room of the machine around it where there is one.
    fn room(
        &self,
        known: &Known,
        grants: Grants,
        granted: Option<&Granted<'_>>,
        ids: &Ids,
        scratch: &Scratch,
        tell: &mut dyn FnMut(&str),
    ) -> Result<(Room, Option<Enclosed>), String> {
        let Attachment { request, policy } = self;
        let (store, tmp) = (scratch.store(), scratch.tmp());
        let elsewhere = granted.map(Granted::build_directory).transpose().map_err(|error| error.to_string())?.flatten();
        let build_dir = elsewhere.unwrap_or_else(|| request.build_dir_inside.display().to_string());
        let room = room(Parts {
            store_dir: &request.store_dir,
            real_store: &request.real_store,
            inputs: &request.inputs,
            scratch: ScratchPaths { store: &store, build: &request.build_dir, tmp: &tmp },
            build_dir: &build_dir,
            sandbox_paths: &policy.sandbox_paths,
            shm_size: policy.shm_size,
            fetch: policy.fetch.clone(),
            grants,
            limits: policy.limits(),
            outside: ids.outside(),
            command: command(known, request, &build_dir),
        });
        let enclose = |granted: &Granted<'_>| granted.enclose(&room, &work(scratch), ids.owner(), tell);
        let machine = granted.map(enclose).transpose().map_err(|error| error.to_string())?;
        Ok((room, machine))
    }

    /// Takes the outputs as an enemy's work, and moves them to where Nix looks for them. What is missing Nix finds out.
    fn hand_over(&self, scratch: &Scratch, ids: &Ids) -> Result<(), TakeError> {
        let left = scratch.open("store").map_err(TakeError::Look)?;
        let made: Vec<&OsStr> = self
            .request
            .outputs
            .values()
            .filter(|path| !scratch::is_absent(left.as_fd(), path.as_str()))
            .map(|path| OsStr::new(path.as_str()))
            .collect();
        let mine = rustix::process::geteuid().as_raw();
        let policy = match ids.owner() {
            Some((uid, _)) => tree::Policy {
                owners: uid..=uid,
                store_owner: Some((mine, rustix::process::getegid().as_raw())),
                outside_links: OutsideLinks::Keep,
            },
            // The builder's id is ours, so it could have linked to any file of ours that its room shows.
            None => tree::Policy { owners: mine..=mine, store_owner: None, outside_links: OutsideLinks::Refuse },
        };
        let trees: Vec<_> = made.iter().map(|name| (left.as_fd(), *name)).collect();
        tree::canonicalise_all(&trees, &policy).map_err(TakeError::Refused)?;
        let real = &self.request.real_store;
        let into = rustix::fs::open(real, DIRECTORY, Mode::empty())
            .map_err(|errno| TakeError::Look(std::io::Error::other(format!("opening {}: {errno}", real.display()))))?;
        for (count, name) in made.iter().enumerate() {
            if let Err(error) = move_tree(&left, name, &into) {
                // All or none. What cannot be taken back is no path of the store, and Nix removes it before it builds again.
                made[..count].iter().for_each(|moved| drop(tree::remove(into.as_fd(), moved)));
                return Err(TakeError::Move(error));
            }
        }
        Ok(())
    }
}

/// Why outputs do not get to Nix.
#[derive(Debug, thiserror::Error)]
enum TakeError {
    #[error("could not be looked at: {0}")]
    Look(std::io::Error),
    #[error("made an output that is refused: {0}")]
    Refused(TreeError),
    #[error("made outputs that could not be moved to where Nix wants them: {0}")]
    Move(TreeError),
}

/// By name where one file system holds both, by copy where not. Nobody else uses the name: Nix has locked it.
fn move_tree(from: &OwnedFd, name: &OsStr, into: &OwnedFd) -> Result<(), TreeError> {
    match tree::rename(from.as_fd(), name, into.as_fd(), name) {
        Err(TreeError::System { source, .. }) if source.kind() == std::io::ErrorKind::CrossesDevices => {
            tree::copy(from.as_fd(), name, into.as_fd(), name)
        }
        moved => moved,
    }
}

/// Where a machine is made ready, and what comes of it.
fn work(scratch: &Scratch) -> PathBuf {
    scratch.path().join("machine")
}

/// Runs what a room is for, to its end.
fn run<W: Write>(room: &Room, voice: &mut Voice<W>) -> Result<Outcome, Error> {
    let plan = Plan::compile(room, &host_for(room))?;
    Launcher::new(&plan, LauncherOptions::default()).run(&mut Log(voice))
}

/// What Nix sets to the build directory, or to what lies in it.
const IN_BUILD_DIRECTORY: [&str; 8] =
    ["NIX_BUILD_TOP", "TMPDIR", "TEMPDIR", "TMP", "TEMP", "PWD", "NIX_ATTRS_JSON_FILE", "NIX_ATTRS_SH_FILE"];

/// The builder's command is what Nix says. Its first argument is the builder's base name, as in Nix's own builds. Where a guest has the
/// build directory elsewhere, the variables that Nix itself sets to it say so.
fn command(known: &Known, request: &Request, build_dir: &str) -> BuilderInput {
    let base_name = request.builder.rsplit('/').next().unwrap_or_default().as_bytes().to_vec();
    let there = request.build_dir_inside.display().to_string();
    let moved = |name: &str, value: &str| -> Option<String> {
        let rest = IN_BUILD_DIRECTORY.contains(&name).then(|| value.strip_prefix(&there)).flatten()?;
        (rest.is_empty() || rest.starts_with('/')).then(|| format!("{build_dir}{rest}"))
    };
    BuilderInput {
        program: known.derivation.builder.clone(),
        arguments: std::iter::once(base_name).chain(known.derivation.arguments.iter().cloned()).collect(),
        environment: request
            .environment
            .iter()
            .map(|(name, value)| {
                let value = moved(name, value).unwrap_or_else(|| value.clone());
                (name.clone().into_bytes(), value.into_bytes())
            })
            .collect(),
        files: Vec::new(),
    }
}

/// The directories that Nix made as root, while they are the room's.
struct Given(Option<[OwnedFd; 2]>);

impl Given {
    /// Gives them to the id that the room will have, with the files in the builder's. Nothing of the build has run yet, so
    /// the files are Nix's.
    fn give(request: &Request, owner: scratch::Owner) -> Result<Self, String> {
        let Some((uid, gid)) = owner else { return Ok(Self(None)) };
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let give = || {
            let top = rustix::fs::open(&request.top_dir, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
            let name = request.build_dir.file_name().unwrap_or_default();
            let build = rustix::fs::openat(&top, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
            for entry in Dir::read_from(&build)? {
                let entry = entry?;
                if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                    rustix::fs::chownat(&build, entry.file_name(), uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                }
            }
            rustix::fs::fchown(&build, uid, gid)?;
            rustix::fs::fchown(&top, uid, gid)?;
            Ok([top, build])
        };
        give().map(|both| Self(Some(both))).map_err(|errno: rustix::io::Errno| {
            format!("giving {} to the room's user: {}", request.top_dir.display(), std::io::Error::from(errno))
        })
    }
}

impl Drop for Given {
    /// Nix may keep a failed build, and another room will have that id.
    fn drop(&mut self) {
        for directory in self.0.iter().flatten() {
            let _ = rustix::fs::fchown(directory, Some(rustix::process::geteuid()), Some(rustix::process::getegid()));
        }
    }
}

/// Our own directory; gone in the end, when what is in it is.
struct Ours(PathBuf);

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = rustix::fs::rmdir(&self.0);
    }
}

/// What the filter refused may be why a builder failed.
fn tell_refusals<W: Write>(outcome: &Outcome, voice: &mut Voice<W>) {
    for refused in outcome.refused.iter().take(REFUSALS) {
        let hint = refused.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
        // Whoever does not listen any more needs no hints.
        let _ = voice.say(&format!("the room refused: {refused}{hint}"));
    }
}

fn text(limit: Option<impl std::fmt::Display>) -> String {
    limit.map_or_else(|| "its limit".to_owned(), |limit| limit.to_string())
}

/// The builder's output on its way to Nix.
struct Log<'a, W>(&'a mut Voice<W>);

impl<W: Write> Sink for Log<'_, W> {
    fn output(&mut self, _: Stream, bytes: &[u8]) -> std::io::Result<()> {
        self.0.log(bytes)
    }

    fn standing(&mut self) -> std::io::Result<()> {
        self.0.stand()
    }
}

/// Where `result.json` lies for Nixes that look for one: beside the request.
pub fn result_file(request: &Request) -> PathBuf {
    request.top_dir.join("result.json")
}
