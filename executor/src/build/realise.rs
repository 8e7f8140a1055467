//! One build, from a derivation whose inputs are there to registered outputs: each step in its order.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Instant, SystemTime};

use anchorhold_sandbox::host::Wanted;
use anchorhold_sandbox::ids::Reservation;
use anchorhold_sandbox::outcome::End;
use anchorhold_sandbox::room::Outside;
use anchorhold_sandbox::{Host, Room};

use super::build_users::BuildUser;
use super::environment::{self, BuilderInput};
use super::launcher::{Ended, FailureKind, Report, Worker};
use super::log::{LogWriter, Written};
use super::policy::Policy;
use super::reference_graph::{Inputs, PathFacts};
use super::result::{BuildResult, Status};
use super::room::{Parts, SandboxPath, ScratchPaths, room};
use super::scratch::{self, Scratch};
use super::telling::Telling;
use super::{builtin, checks, failure, keep, outputs, record, running};
use crate::derivation::Derivation;
use crate::derivation::options::Options;
use crate::derivation::paths::check_buildable;
use crate::machines;
use crate::machines::build::{Trouble, trouble};
use crate::machines::granted::{GrantError, Granted};
use crate::progress::lines::{LineSplitter, Tail};
use crate::store::{Direction, Store};
use crate::store_path::StorePath;
use crate::tree::{self, OutsideLinks};

/// Most bytes of a log that are repeated in a failure.
const TAIL_BYTES: usize = 16 << 10;

/// Less than this free on the store's or the build's file system is what made a build fail. Nix's number.
const DISK_FULL: u64 = 8 << 20;

/// What all builds of one call share.
pub struct Realiser<'a> {
    /// Where inputs are and outputs go.
    pub store: &'a Store,
    /// What is allowed.
    pub policy: &'a Policy,
    /// Who is told.
    pub telling: &'a Telling<'a>,
    /// Whether outputs that are there are built again and compared.
    pub check: bool,
}

/// What one thread that builds keeps from build to build.
#[derive(Default)]
pub struct Slot {
    worker: Option<Worker>,
    ids: Option<Ids>,
}

/// Whom a builder is outside its room.
pub(crate) enum Ids {
    /// The person who builds.
    Myself,
    /// One that no other room has.
    Reserved(Reservation),
    /// A user of the host that no other build has.
    Member(BuildUser),
}

impl Ids {
    pub(crate) fn take(group: Option<&str>) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Myself);
        }
        if let Some(group) = group {
            return BuildUser::take(group).map(Self::Member).map_err(|error| error.to_string());
        }
        match &Host::probe(Wanted::default()).ids {
            Ok(pool) => Reservation::take(1, pool).map(Self::Reserved).map_err(|trouble| trouble.to_string()),
            // The room says what is wrong with such a root, in more words than we have.
            Err(_) => Ok(Self::Myself),
        }
    }

    pub(crate) fn outside(&self) -> Outside {
        match self {
            Self::Myself => Outside::Auto,
            Self::Reserved(held) => Outside::User { uid: held.first, gid: held.first },
            Self::Member(user) => Outside::User { uid: user.uid, gid: user.gid },
        }
    }

    pub(crate) fn owner(&self) -> scratch::Owner {
        match self {
            Self::Myself => None,
            Self::Reserved(held) => Some((held.first, held.first)),
            Self::Member(user) => Some((user.uid, user.gid)),
        }
    }
}

/// Why a build stops.
pub(crate) struct Stopped {
    pub status: Status,
    pub message: String,
}

impl Stopped {
    pub(crate) fn new(status: Status, message: impl ToString) -> Self {
        Self { status, message: message.to_string() }
    }

    pub(crate) fn rejected(message: impl ToString) -> Self {
        Self::new(Status::InputRejected, format!("was not started: {}", message.to_string()))
    }

    pub(crate) fn misc(message: impl ToString) -> Self {
        Self::new(Status::MiscFailure, format!("could not be run: {}", message.to_string()))
    }
}

impl From<GrantError> for Stopped {
    fn from(error: GrantError) -> Self {
        match error {
            GrantError::Wish(error) => Self::rejected(error),
            error => Self::misc(error),
        }
    }
}

impl From<Trouble> for Stopped {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::NotRun(why) => Self::misc(why),
            Trouble::TimedOut(why) => Self::new(Status::TimedOut, format!("timed out: {why}")),
            Trouble::Failed(why) => Self::new(Status::PermanentFailure, format!("failed: {why}")),
        }
    }
}

impl From<outputs::Rejected> for Stopped {
    fn from(rejected: outputs::Rejected) -> Self {
        Self { status: rejected.status, message: rejected.message }
    }
}

/// A build in the making: what is known by the time it ends is in its result.
struct Attempt<'a> {
    realiser: &'a Realiser<'a>,
    path: &'a StorePath,
    derivation: &'a Derivation,
    result: BuildResult,
}

impl Realiser<'_> {
    /// Builds `derivation`, whose inputs are all valid.
    pub fn build(&self, slot: &mut Slot, path: &StorePath, derivation: &Derivation) -> BuildResult {
        let begun = Instant::now();
        let mut attempt =
            Attempt { realiser: self, path, derivation, result: BuildResult::new(path.clone(), Status::Built, "") };
        let done = attempt.run(slot);
        let mut result = attempt.result;
        match done {
            Ok(status) => {
                result.status = status;
                result.outputs = known_outputs(derivation);
            }
            Err(stopped) => {
                result.status = stopped.status;
                result.message = stopped.message;
            }
        }
        if let Some((_, took)) = &mut result.times {
            *took = begun.elapsed();
            let record = result.to_json(self.store.dir());
            if let Err(error) = record::write(&self.store.state_dir(), path, &record) {
                self.telling.warn(&format!("the record of ‘{path}’ could not be written: {error}"));
            }
        }
        result
    }
}

/// The outputs whose paths are known before they are built: all, for the kinds that are built here.
pub fn known_outputs(derivation: &Derivation) -> BTreeMap<String, StorePath> {
    derivation
        .outputs
        .iter()
        .filter_map(|(name, output)| output.path().map(|path| (name.clone(), path.clone())))
        .collect()
}

/// What one builder is given by policy.
struct Given<'a> {
    grants: super::room::Grants,
    /// The machine around it.
    machine: Option<Granted<'a>>,
    /// Paths of the operator's.
    paths: Vec<SandboxPath>,
    /// As the builder names it.
    build_directory: String,
}

impl Attempt<'_> {
    fn run(&mut self, slot: &mut Slot) -> Result<Status, Stopped> {
        let Realiser { store, policy, telling, check } = *self.realiser;
        let derivation = self.derivation;
        // Who builds from a graph has looked already; a client of a protocol may send anything.
        check_buildable(derivation).map_err(Stopped::rejected)?;
        let options = Options::read(derivation, store.dir()).map_err(Stopped::rejected)?;
        let grants = policy.grants(derivation, &options).map_err(Stopped::rejected)?;
        let wanted = known_outputs(derivation);

        let locks = store.lock_paths(wanted.values(), &mut |locked| telling.waiting(locked)).map_err(Stopped::misc)?;
        let valid = store.valid_of(&wanted.values().cloned().collect()).map_err(Stopped::misc)?;
        if check {
            if let Some(missing) = wanted.values().find(|path| !valid.contains(path)) {
                return Err(Stopped::misc(format!(
                    "there is nothing to compare with: its output ‘{}’ is not valid; build it without --check first",
                    store.dir().display(missing)
                )));
            }
        } else if valid.len() == wanted.len() {
            // Somebody else built it while we waited, or just before.
            return Ok(Status::AlreadyValid);
        }

        // Kept from the collector first, and only then looked for.
        for path in wanted.values().chain([self.path]) {
            store.add_temp_root(path).map_err(Stopped::misc)?;
        }
        let inputs = self.inputs()?;
        policy
            .upkeep
            .make_space(store, &mut |line| telling.notice(line))
            .unwrap_or_else(|error| telling.warn(&format!("garbage could not be collected: {error}")));
        let drv_path = store.dir().display(self.path);
        let extra_paths = policy
            .hooks
            .before(&drv_path, &store.real_dir(), &mut |line| telling.notice(&format!("pre-build-hook: {line}")))
            .map_err(Stopped::misc)?;
        let ids = match &slot.ids {
            Some(ids) => ids,
            None => slot.ids.insert(Ids::take(policy.build_users_group.as_deref()).map_err(Stopped::misc)?),
        };
        let scratch = Scratch::create(&policy.builds, ids.owner()).map_err(|error| self.disk(&error))?;
        let mut settings = policy.environment();
        let machine = Granted::of(&grants, policy.machines.as_ref(), derivation)?;
        let again = machine.as_ref().and_then(Granted::as_options);
        if let Some(directory) = machine.as_ref().and_then(|granted| granted.build_directory().transpose()) {
            settings.build_directory = directory.map_err(Stopped::misc)?;
        }
        let made_at = wanted.iter().map(|(name, path)| (name.clone(), store.dir().display(path))).collect();
        let command = environment::prepare(
            derivation,
            &options,
            store.dir(),
            &settings,
            &made_at,
            &StoreInputs { store, inputs: &inputs },
        )
        .map_err(Stopped::rejected)?;

        self.result.times = Some((SystemTime::now(), std::time::Duration::ZERO));
        telling.started(self.path);
        let room = if derivation.is_builtin() {
            builtin::run(derivation, &scratch)
                .map_err(|why| Stopped::new(Status::PermanentFailure, format!("failed: {why}")))?;
            None
        } else {
            let build_directory = settings.build_directory;
            let given = Given { grants, machine, paths: extra_paths, build_directory };
            Some(self.run_builder(slot, &scratch, &inputs, given, command)?)
        };
        let done = self.take_outputs(slot, &scratch, &inputs, &options);
        match (&done, &room) {
            // What differs is kept beside what it differs from, so that nothing else need be.
            (Err(stopped), _) if stopped.status == Status::NotDeterministic => {
                self.result.advice = failure::advice_on_difference(&self.result, store, policy);
            }
            (Err(_), Some(room)) => self.explain(&scratch, room, again.as_deref()),
            _ => {}
        }
        done?;
        if !check {
            self.look_after(&wanted)?;
        }
        drop(locks);
        Ok(Status::Built)
    }

    /// What the operator wants done about new outputs, which are valid by now.
    fn look_after(&self, outputs: &BTreeMap<String, StorePath>) -> Result<(), Stopped> {
        let Realiser { store, policy, telling, .. } = *self.realiser;
        policy
            .upkeep
            .optimise(store, outputs.values(), &mut |line| telling.warn(line))
            .unwrap_or_else(|error| telling.warn(&format!("new outputs could not be optimised: {error}")));
        let outputs: Vec<_> = outputs.values().map(|path| store.dir().display(path)).collect();
        let mut tell = |line: &str| telling.notice(&format!("post-build-hook: {line}"));
        policy.hooks.after(&store.dir().display(self.path), &outputs, store.root(), &mut tell).map_err(|error| {
            Stopped::new(Status::MiscFailure, format!("was built and its outputs are valid, but {error}"))
        })
    }

    /// Takes what the builder has left, and registers it or, for a check, compares it.
    fn take_outputs(
        &self,
        slot: &Slot,
        scratch: &Scratch,
        inputs: &[StorePath],
        options: &Options,
    ) -> Result<(), Stopped> {
        let Realiser { store, policy, check, .. } = *self.realiser;
        let left = scratch.open("store").map_err(Stopped::misc)?;
        let mine = rustix::process::geteuid().as_raw();
        let (builder, store_owner, outside_links) = match slot.ids.as_ref().and_then(Ids::owner) {
            Some((uid, _)) => (uid, Some((mine, rustix::process::getegid().as_raw())), OutsideLinks::Keep),
            // The builder's id is ours, so it could have linked to any file of ours that its room shows.
            None => (mine, None, OutsideLinks::Refuse),
        };
        let owned = tree::Policy { owners: builder..=builder, store_owner, outside_links };
        let taken = outputs::take(
            self.derivation,
            left.as_fd(),
            scratch.aside(),
            store.dir(),
            inputs,
            &owned,
            &options.unsafe_discard_references,
        )?;
        check_outputs(store, options, &taken)
            .map_err(|violation| Stopped::new(Status::OutputRejected, format!("made what it must not: {violation}")))?;
        if check {
            let differing = outputs::compare(store, left.as_fd(), &taken, policy.keep_failed).map_err(Stopped::misc)?;
            if let Some(story) = differing {
                return Err(Stopped::new(Status::NotDeterministic, story));
            }
        } else {
            outputs::register(store, left.as_fd(), self.path, &taken, &policy.upkeep).map_err(|why| self.disk(&why))?;
        }
        Ok(())
    }

    /// Keeps what a build that failed has left, if that is wanted, and says what to know and to do.
    fn explain(&mut self, scratch: &Scratch, room: &Room, machine: Option<&str>) {
        let Realiser { store, policy, telling, .. } = *self.realiser;
        if policy.keep_failed {
            match keep::keep(scratch, self.derivation, room, machine) {
                Ok((kept, left_out)) => {
                    self.result.kept = Some(kept);
                    for file in left_out {
                        telling.warn(&format!("the kept build is without {file}"));
                    }
                }
                Err(error) => telling.warn(&format!("the failed build could not be kept: {error}")),
            }
        }
        self.result.advice = failure::advice(&self.result, store, policy);
    }

    /// Runs the builder in its room, and stops here unless it ended well.
    fn run_builder(
        &mut self,
        slot: &mut Slot,
        scratch: &Scratch,
        inputs: &[StorePath],
        given: Given<'_>,
        command: BuilderInput,
    ) -> Result<Room, Stopped> {
        let Realiser { store, policy, telling, .. } = *self.realiser;
        let Given { grants, machine, paths, build_directory } = given;
        for file in &command.files {
            scratch.write(&file.name, &file.contents).map_err(|error| self.disk(&error))?;
        }
        let outside = slot.ids.as_ref().map_or(Outside::Auto, Ids::outside);
        let (store_dir, build_dir, tmp_dir) = (scratch.store(), scratch.build(), scratch.tmp());
        let room = room(Parts {
            store_dir: store.dir(),
            real_store: &store.real_dir(),
            inputs,
            scratch: ScratchPaths { store: &store_dir, build: &build_dir, tmp: &tmp_dir },
            build_dir: &build_directory,
            sandbox_paths: &[policy.sandbox_paths.as_slice(), &paths].concat(),
            shm_size: policy.shm_size,
            grants,
            fetch: policy.fetch.clone(),
            limits: policy.limits(),
            outside,
            command,
        });
        let work = scratch.path().join("machine");
        let again = machine.as_ref().and_then(Granted::as_options);
        let _known = machine.as_ref().and_then(|granted| granted.known(&format!("builds {}", self.path), &work));
        let machine = match &machine {
            Some(granted) => {
                let owner = slot.ids.as_ref().and_then(Ids::owner);
                let mut tell = |line: &str| telling.notice(line);
                let made = granted.enclose(&room, &work, owner, &mut tell).map_err(Stopped::misc)?;
                telling.notice(&format!("‘{}’ is built in {}", self.path, granted.in_words(&made.room)));
                Some(made)
            }
            None => None,
        };
        let entered = machine.as_ref().map_or(&room, |machine| &machine.room);
        let mut log = LogWriter::create(&store.log_dir(), self.path, None).map_err(|error| self.disk(&error))?;
        let (mut lines, mut tail) = (LineSplitter::new(), Tail::new(policy.log_lines, TAIL_BYTES));
        let worker = match &mut slot.worker {
            Some(worker) => worker,
            None => slot.worker.insert(
                Worker::start().map_err(|error| Stopped::misc(format!("starting a launcher process: {error}")))?,
            ),
        };
        if let Err(error) = running::announce(scratch, self.path, worker.id(), entered) {
            telling.warn(&format!("visitors will not find the build of ‘{}’: {error}", self.path));
        }
        let ran = worker.run(entered, &mut |bytes| {
            // The room keeps the limit of the log: nothing more than that comes.
            let _: Written = log.write(bytes).map_err(std::io::Error::other)?;
            lines.feed(bytes, |line| tail.push(line));
            telling.log(self.path, bytes);
            Ok(())
        });
        let report = match ran {
            Ok(report) => report,
            Err(error) => {
                // It is in the middle of something: never used again.
                slot.worker = None;
                return Err(self.disk(&format!("the build was ended: {error}")));
            }
        };
        log.finish().map_err(|error| self.disk(&error))?;
        if running::was_visited(scratch) {
            telling.warn(&format!(
                "somebody was in the room of ‘{}’ by `anchorhold shell --running`: what it made need not be its builder's work alone",
                self.path
            ));
        }
        lines.finish(|line| tail.push(line));
        self.result.last_lines = tail.lines().map(<[u8]>::to_vec).collect();
        let ended = match report {
            Report::Ended(ended) => *ended,
            Report::Failed(failed) => {
                return Err(match failed.kind {
                    FailureKind::NotExecutable => {
                        Stopped::new(Status::PermanentFailure, format!("could not be started: {failed}"))
                    }
                    _ => Stopped::misc(failed),
                });
            }
        };
        let trouble = machine.and_then(|_| trouble(&machines::build::result(&work), ended.end));
        let stopped = match trouble {
            None => judge(&ended, self.derivation, policy, self.is_disk_full()),
            Some(trouble) => Some(trouble.into()),
        };
        let Ended { account, refused, seal, .. } = ended;
        self.result.account = Some(account);
        self.result.seal = Some(seal);
        self.result.refused = refused;
        match stopped {
            None => Ok(room),
            Some(stopped) => {
                self.explain(scratch, &room, again.as_deref());
                Err(stopped)
            }
        }
    }

    fn is_disk_full(&self) -> bool {
        let Realiser { store, policy, .. } = self.realiser;
        is_disk_full([&store.real_dir(), &policy.builds])
    }

    /// A failure of our own that a full disk explains.
    fn disk(&self, error: &dyn std::fmt::Display) -> Stopped {
        if self.is_disk_full() {
            Stopped::new(
                Status::TransientFailure,
                format!("{error}; the disk is full: free some space, `anchorhold store gc` may help"),
            )
        } else {
            Stopped::misc(error)
        }
    }

    /// What the builder may see of the store.
    fn inputs(&self) -> Result<Vec<StorePath>, Stopped> {
        let store = self.realiser.store;
        let mut direct: BTreeSet<StorePath> = self.derivation.input_sources.clone();
        for (path, names) in &self.derivation.input_derivations {
            let known = store.derivation_outputs(path).map_err(Stopped::misc)?;
            for name in names {
                let output = known.get(name).ok_or_else(|| {
                    Stopped::rejected(format!(
                        "it needs the output ‘{name}’ of ‘{}’, which has none of this name",
                        store.dir().display(path)
                    ))
                })?;
                direct.insert(output.clone());
            }
        }
        for path in &direct {
            store.add_temp_root(path).map_err(Stopped::misc)?;
        }
        let valid = store.valid_of(&direct).map_err(Stopped::misc)?;
        if let Some(missing) = direct.difference(&valid).next() {
            return Err(Stopped::misc(format!("its input ‘{}’ is not valid any more", store.dir().display(missing))));
        }
        let closure = store.closure(&direct, Direction::Forward).map_err(Stopped::misc)?;
        Ok(closure.into_iter().collect())
    }
}

/// Why a builder's end is a failure, if it is one.
pub(crate) fn judge(ended: &Ended, derivation: &Derivation, policy: &Policy, disk_full: bool) -> Option<Stopped> {
    let failed = |how: String| {
        let transient = derivation.fixed_output().is_some() || disk_full;
        let status = if transient { Status::TransientFailure } else { Status::PermanentFailure };
        let full = if disk_full { "; the disk is full" } else { "" };
        Some(Stopped::new(status, format!("{how}{full}")))
    };
    let limit = |limit: Option<String>| limit.map_or_else(String::new, |limit| format!(" of {limit}"));
    match ended.end {
        End::Exited(0) => None,
        End::Exited(status) => failed(format!("failed with exit code {status}")),
        End::Signaled(signal) => failed(format!("failed due to signal {signal}{}", signal_name(signal))),
        End::Time => Some(Stopped::new(
            Status::TimedOut,
            format!("timed out: it ran longer than {}", limit_text(policy.timeout)),
        )),
        End::Silence => Some(Stopped::new(
            Status::TimedOut,
            format!("timed out: it wrote nothing for {}", limit_text(policy.max_silent_time)),
        )),
        End::Output => Some(Stopped::new(
            Status::LogLimitExceeded,
            format!(
                "wrote more than its limit{} of log and was ended",
                limit(policy.max_log_size.map(|size| size.to_string()))
            ),
        )),
        End::Memory => Some(Stopped::new(
            Status::PermanentFailure,
            format!(
                "ran out of memory: it used more than its limit{}; raise --memory",
                limit(policy.memory.map(|size| size.to_string()))
            ),
        )),
    }
}

/// Whether a file system of these is so full that it explains any failure.
pub(crate) fn is_disk_full<const N: usize>(places: [&Path; N]) -> bool {
    places.into_iter().any(|place| scratch::free_bytes(place).is_some_and(|free| free < DISK_FULL))
}

/// What its derivation allows of the outputs: what they may refer to, how large they may be.
pub(crate) fn check_outputs(
    store: &Store,
    options: &Options,
    taken: &BTreeMap<String, outputs::Taken>,
) -> Result<(), checks::CheckError> {
    let facts = |references: &BTreeSet<StorePath>, nar_size| checks::Facts { references: references.clone(), nar_size };
    let new = taken
        .iter()
        .map(|(name, one)| {
            let facts = facts(&one.references, one.nar_size);
            (name.clone(), checks::NewOutput { path: one.path.clone(), facts })
        })
        .collect();
    checks::check(options, &new, &|path| {
        Ok(store.query_path_info(path)?.map(|info| facts(&info.references, info.nar_size)))
    })
}

fn limit_text(limit: Option<anchorhold_sandbox::quantity::Duration>) -> String {
    limit.map_or_else(|| "its limit".to_owned(), |limit| limit.to_string())
}

/// In brackets, for signals that people know by name.
fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        13 => " (SIGPIPE)",
        15 => " (SIGTERM)",
        31 => " (SIGSYS)",
        _ => "",
    }
}

/// What the store knows of a build's inputs, which are sorted.
pub(crate) struct StoreInputs<'a> {
    pub store: &'a Store,
    pub inputs: &'a [StorePath],
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl Inputs for StoreInputs<'_> {
    fn is_input(&self, path: &StorePath) -> bool {
        self.inputs.binary_search(path).is_ok()
    }

    fn facts(&self, path: &StorePath) -> Result<Option<PathFacts>, AnyError> {
        Ok(self.store.query_path_info(path)?.map(|info| PathFacts {
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            references: info.references,
            content_address: info.content_address,
        }))
    }

    fn outputs(&self, path: &StorePath) -> Result<Vec<StorePath>, AnyError> {
        Ok(self.store.derivation_outputs(path)?.into_values().collect())
    }
}
