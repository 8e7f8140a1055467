//! One build for Nix's helper: inputs where they lie in the host's store, outputs in a directory of ours.
//!
//! Nothing is written to the store. Nix holds the locks of the outputs and keeps the inputs from the collector, for as long as
//! it waits for the hook.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Instant, SystemTime};

use crate::build::environment;
use crate::build::launcher::{FailureKind, Report, Worker};
use crate::build::outputs;
use crate::build::policy::Policy;
use crate::build::realise::{Ids, Stopped, StoreInputs, check_outputs, is_disk_full, judge, known_outputs};
use crate::build::result::{BuildResult, Status};
use crate::build::room::{Grants, Parts, SandboxPath, ScratchPaths, room};
use crate::build::scratch::Scratch;
use crate::build::telling::Telling;
use crate::build::{keep, running};
use crate::derivation::options::Options;
use crate::derivation::paths::{Calculator, check_buildable};
use crate::derivation::{Derivation, Kind};
use crate::machines;
use crate::machines::build::trouble;
use crate::machines::granted::Granted;
use crate::progress::lines::{LineSplitter, Tail};
use crate::store::{Direction, PathInfo, Store};
use crate::store_path::StorePath;
use crate::tree::{self, OutsideLinks};
use crate::wire::BasicDerivation;

/// Most bytes of a log that are repeated in a failure.
const TAIL_BYTES: usize = 16 << 10;

/// The most refusals of the room's filter that a failed build is told.
const REFUSALS: usize = 5;

/// Outputs that wait to be fetched. Gone when dropped.
#[derive(Debug)]
pub(super) struct Made {
    /// What is known of each.
    pub outputs: BTreeMap<StorePath, PathInfo>,
    scratch: Scratch,
}

impl Made {
    /// The directory in which the outputs lie, each under its store path's name.
    pub fn directory(&self) -> std::io::Result<OwnedFd> {
        self.scratch.open("store")
    }
}

/// A build in the making.
struct Attempt<'a> {
    host: &'a Store,
    policy: &'a Policy,
    telling: &'a Telling<'a>,
    path: &'a StorePath,
    derivation: &'a Derivation,
    worker: Option<Worker>,
    result: BuildResult,
}

/// Builds a derivation whose inputs are valid in the host's store, in a room of `worker` if one was started before.
pub(super) fn build(
    host: &Store,
    policy: &Policy,
    telling: &Telling<'_>,
    worker: Option<Worker>,
    basic: &BasicDerivation,
) -> (BuildResult, Option<Made>) {
    let BasicDerivation { path, derivation } = basic;
    let begun = Instant::now();
    let result = BuildResult::new(path.clone(), Status::Built, "");
    let mut attempt = Attempt { host, policy, telling, path, derivation, worker, result };
    let done = attempt.run();
    let mut result = attempt.result;
    if let Some((_, took)) = &mut result.times {
        *took = begun.elapsed();
    }
    match done {
        Ok(made) => {
            result.outputs = known_outputs(derivation);
            (result, Some(made))
        }
        Err(stopped) => {
            result.status = stopped.status;
            result.message = stopped.message;
            (result, None)
        }
    }
}

/// Where a builder works.
#[derive(Clone, Copy)]
struct Place<'a> {
    scratch: &'a Scratch,
    ids: &'a Ids,
    /// Where it has its build directory.
    build_directory: &'a str,
}

impl Attempt<'_> {
    fn run(&mut self) -> Result<Made, Stopped> {
        let Self { host, policy, telling, derivation, .. } = *self;
        match derivation.kind().map_err(Stopped::rejected)? {
            // Which path it has follows from derivations that only Nix has read.
            Kind::InputAddressed => {}
            Kind::Fixed => Calculator::new(host.dir(), BTreeMap::<StorePath, Derivation>::new())
                .check_outputs(derivation)
                .map_err(Stopped::rejected)?,
            Kind::Floating | Kind::Impure | Kind::Deferred => {
                check_buildable(derivation).map_err(Stopped::rejected)?;
            }
        }
        if derivation.is_builtin() {
            return Err(Stopped::rejected("Nix does what begins with ‘builtin:’ itself: let its system be ‘builtin’"));
        }
        let options = Options::read(derivation, host.dir()).map_err(Stopped::rejected)?;
        let grants = policy.grants(derivation, &options).map_err(Stopped::rejected)?;
        let machine = Granted::of(&grants, policy.machines.as_ref(), derivation)?;
        let wanted = known_outputs(derivation);
        let drv_path = host.dir().display(self.path);
        let extra_paths = policy
            .hooks
            .before(&drv_path, &host.real_dir(), &mut |line| telling.notice(&format!("pre-build-hook: {line}")))
            .map_err(Stopped::misc)?;
        let sandbox_paths = [policy.sandbox_paths.as_slice(), &extra_paths].concat();
        let (inputs, seen) = self.inputs(&sandbox_paths)?;
        let ids = Ids::take(policy.build_users_group.as_deref()).map_err(Stopped::misc)?;
        let scratch = Scratch::create(&policy.builds, ids.owner()).map_err(|error| self.disk(&error))?;
        let made_at = wanted.iter().map(|(name, path)| (name.clone(), host.dir().display(path))).collect();
        let known = StoreInputs { store: host, inputs: &inputs };
        let mut settings = policy.environment();
        if let Some(directory) = machine.as_ref().and_then(|granted| granted.build_directory().transpose()) {
            settings.build_directory = directory.map_err(Stopped::misc)?;
        }
        let command = environment::prepare(derivation, &options, host.dir(), &settings, &made_at, &known)
            .map_err(Stopped::rejected)?;
        let place = Place { scratch: &scratch, ids: &ids, build_directory: &settings.build_directory };

        self.result.times = Some((SystemTime::now(), std::time::Duration::ZERO));
        telling.started(self.path);
        self.run_builder(place, &seen, &sandbox_paths, (grants, machine), command)?;

        let left = scratch.open("store").map_err(Stopped::misc)?;
        let mine = rustix::process::geteuid().as_raw();
        let (builder, store_owner, outside_links) = match ids.owner() {
            Some((uid, _)) => (uid, Some((mine, rustix::process::getegid().as_raw())), OutsideLinks::Keep),
            // The builder's id is ours, so it could have linked to any file of ours that its room shows.
            None => (mine, None, OutsideLinks::Refuse),
        };
        let owned = tree::Policy { owners: builder..=builder, store_owner, outside_links };
        let discarded = &options.unsafe_discard_references;
        let taken = outputs::take(derivation, left.as_fd(), scratch.aside(), host.dir(), &inputs, &owned, discarded)?;
        check_outputs(host, &options, &taken)
            .map_err(|violation| Stopped::new(Status::OutputRejected, format!("made what it must not: {violation}")))?;
        let outputs = taken.into_values().map(|one| {
            let info = PathInfo {
                references: one.references,
                deriver: Some(self.path.clone()),
                content_address: one.content_address,
                ..PathInfo::new(one.path.clone(), one.nar_hash, one.nar_size)
            };
            (one.path, info)
        });
        Ok(Made { outputs: outputs.collect(), scratch })
    }

    /// The closure of the inputs, and all that the builder sees of the store: with it, what paths of configuration are in the
    /// store, and all that these need.
    fn inputs(&self, sandbox_paths: &[SandboxPath]) -> Result<(Vec<StorePath>, Vec<StorePath>), Stopped> {
        let Self { host, derivation, .. } = *self;
        let direct = &derivation.input_sources;
        let valid = host.valid_of(direct).map_err(Stopped::misc)?;
        if let Some(missing) = direct.difference(&valid).next() {
            return Err(Stopped::misc(format!("its input ‘{}’ is not valid", host.dir().display(missing))));
        }
        let closure = host.closure(direct, Direction::Forward).map_err(Stopped::misc)?;
        let configured: BTreeSet<StorePath> = sandbox_paths
            .iter()
            .filter_map(|path| host.dir().parse_below(path.outside.to_str()?).ok())
            .map(|(path, _)| path)
            .collect();
        let configured = host.valid_of(&configured).map_err(Stopped::misc)?;
        let mut seen = closure.clone();
        seen.extend(host.closure(&configured, Direction::Forward).map_err(Stopped::misc)?);
        Ok((closure.into_iter().collect(), seen.into_iter().collect()))
    }

    /// Runs the builder in its room, and stops here unless it ended well.
    fn run_builder(
        &mut self,
        Place { scratch, ids, build_directory }: Place<'_>,
        seen: &[StorePath],
        sandbox_paths: &[SandboxPath],
        (grants, machine): (Grants, Option<Granted<'_>>),
        command: environment::BuilderInput,
    ) -> Result<(), Stopped> {
        let Self { host, policy, telling, path, derivation, .. } = *self;
        for file in &command.files {
            scratch.write(&file.name, &file.contents).map_err(|error| self.disk(&error))?;
        }
        // Paths of configuration that are store paths stand there already.
        let sandbox_paths: Vec<_> = sandbox_paths
            .iter()
            .filter(|path| !(path.inside == path.outside && is_in(host, &path.outside)))
            .map(|path| SandboxPath { outside: on_host(host, &path.outside), ..path.clone() })
            .collect();
        let (store_dir, build_dir, tmp_dir) = (scratch.store(), scratch.build(), scratch.tmp());
        let room = room(Parts {
            store_dir: host.dir(),
            real_store: &host.real_dir(),
            inputs: seen,
            scratch: ScratchPaths { store: &store_dir, build: &build_dir, tmp: &tmp_dir },
            build_dir: build_directory,
            sandbox_paths: &sandbox_paths,
            shm_size: policy.shm_size,
            fetch: policy.fetch.clone(),
            grants,
            limits: policy.limits(),
            outside: ids.outside(),
            command,
        });
        let work = scratch.path().join("machine");
        let again = machine.as_ref().and_then(Granted::as_options);
        let _known = machine.as_ref().and_then(|granted| granted.known(&format!("builds {path}"), &work));
        let machine = match &machine {
            Some(granted) => {
                let mut tell = |line: &str| telling.notice(line);
                let made = granted.enclose(&room, &work, ids.owner(), &mut tell).map_err(Stopped::misc)?;
                telling.notice(&format!("‘{path}’ is built in {}", granted.in_words(&made.room)));
                Some(made)
            }
            None => None,
        };
        let (mut lines, mut tail) = (LineSplitter::new(), Tail::new(policy.log_lines, TAIL_BYTES));
        let mut worker = self
            .worker
            .take()
            .map_or_else(Worker::start, Ok)
            .map_err(|error| Stopped::misc(format!("starting a launcher process: {error}")))?;
        if let Err(error) = running::announce(scratch, path, worker.id(), &room) {
            telling.warn(&format!("visitors will not find the build of ‘{path}’: {error}"));
        }
        let ran = worker.run(machine.as_ref().map_or(&room, |machine| &machine.room), &mut |bytes| {
            lines.feed(bytes, |line| tail.push(line));
            telling.log(path, bytes);
            Ok(())
        });
        let report = ran.map_err(|error| self.disk(&format!("the build was ended: {error}")))?;
        if running::was_visited(scratch) {
            telling.warn(&format!(
                "somebody was in the room of ‘{path}’ by `anchorhold shell --running`: what it made need not be its builder's work alone"
            ));
        }
        lines.finish(|line| tail.push(line));
        self.result.last_lines = tail.lines().map(<[u8]>::to_vec).collect();
        let ended = match report {
            Report::Ended(ended) => *ended,
            Report::Failed(failed) if failed.kind == FailureKind::NotExecutable => {
                return Err(Stopped::new(Status::PermanentFailure, format!("could not be started: {failed}")));
            }
            Report::Failed(failed) => return Err(Stopped::misc(failed)),
        };
        let stopped = match machine.and_then(|_| trouble(&machines::build::result(&work), ended.end)) {
            None => judge(&ended, derivation, policy, self.is_disk_full()),
            Some(trouble) => Some(trouble.into()),
        };
        let Some(mut stopped) = stopped else {
            self.result.account = Some(ended.account);
            return Ok(());
        };
        for refused in ended.refused.iter().take(REFUSALS) {
            let hint = refused.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
            stopped.message.push_str(&format!("; the room refused: {refused}{hint}"));
        }
        self.result.account = Some(ended.account);
        if policy.keep_failed {
            match keep::keep(scratch, derivation, &room, again.as_deref()) {
                Ok((kept, _)) => telling.notice(&format!("note: keeping build directory '{}'", kept.display())),
                Err(error) => telling.warn(&format!("the failed build could not be kept: {error}")),
            }
        }
        Err(stopped)
    }

    fn is_disk_full(&self) -> bool {
        is_disk_full([&self.host.real_dir(), &self.policy.builds])
    }

    /// A failure of our own that a full disk explains.
    fn disk(&self, error: &dyn std::fmt::Display) -> Stopped {
        if self.is_disk_full() {
            Stopped::new(Status::TransientFailure, format!("{error}; the disk is full: free some space"))
        } else {
            Stopped::misc(error)
        }
    }
}

fn is_in(host: &Store, path: &std::path::Path) -> bool {
    path.to_str().is_some_and(|text| host.dir().parse_below(text).is_ok())
}

/// Where a file that is named as in the store really lies.
fn on_host(host: &Store, path: &std::path::Path) -> std::path::PathBuf {
    match path.strip_prefix(host.dir().as_str()) {
        Ok(below) if is_in(host, path) => host.real_dir().join(below),
        _ => path.to_owned(),
    }
}
