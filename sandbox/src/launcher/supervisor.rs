//! The outer half: takes what only it can take, forks, answers, seals, watches, ends.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::inside::do_step;
use super::message::{Answer, Hatch, Report};
use super::pump::{self, Pump, Read};
use super::{Options, Sink, warden};
use crate::error::{Error, StepFailure};
use crate::layers::Action;
use crate::layers::cgroup::{self, Cgroup};
use crate::layers::identity::{self, Ids};
use crate::layers::network::pasta::Pasta;
use crate::layers::seccomp::Recorder;
use crate::outcome::{Account, End, Outcome, Timing, seconds, status_in_words};
use crate::plan::{Place, Plan};
use crate::seal::{self, Bare, Seal, Standing, View};
use crate::site::{Note, Site, Trouble};
use crate::sys::Kernel;
use crate::sys::process::{self, Forked, pidfd_signal};

/// Signals that are handed on to the payload.
const FORWARDED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

pub fn run(plan: &Plan, options: Options, sink: &mut dyn Sink) -> Result<Outcome, Error> {
    let begun = Instant::now();
    let mut clock = Clock::new(options.timing);
    let kernel = Kernel::default();
    let no_pool = crate::ids::Pool { first: 0, stride: 0, slots: 0, locks: std::path::PathBuf::new() };
    let pool = plan.ids.clone().unwrap_or(no_pool);
    let held = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let mut site = Site::new(&kernel, pool, held);

    let signals = Signals::take()?;
    let (streams, pump) = Pump::make(&plan.room)?;
    site.streams = streams;
    let (hatch, other_hatch) = Hatch::pair().map_err(|errno| Error::supervisor("making a socket pair", errno))?;
    let (leash, leash_held) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::supervisor("making a pipe", errno))?;
    clock.lap("streams");

    let first_elsewhere =
        plan.steps.iter().position(|step| step.place != Place::Supervisor).unwrap_or(plan.steps.len());
    for number in 0..first_elsewhere {
        let begun = Instant::now();
        do_step(plan, number, &mut site, options).map_err(|trouble| failure(plan, number, &trouble))?;
        clock.step(number, begun.elapsed());
    }

    clock.lap("reserve");
    let forked = process::fork().map_err(|errno| Error::supervisor("forking the warden", errno))?;
    let Forked::Parent { pid: warden_pid, .. } = forked else {
        // From here on this is the warden, which never returns.
        drop((hatch, leash_held, pump));
        warden::live_as_warden(plan, first_elsewhere, site, other_hatch, leash, options)
    };
    clock.lap("fork of the warden");
    drop((other_hatch, leash));
    // The payload's ends are the payload's alone: an end of file must mean that the room is empty.
    site.streams = Default::default();
    site.child = Some(warden_pid);
    site.given_ids = plan.steps.iter().find_map(|step| match &step.action {
        Action::Identity(identity::Action::Become { ids: Ids::Given { uid, gid }, .. }) => Some((*uid, *gid)),
        _ => None,
    });

    let mut room = Processes { warden: Some(warden_pid), leash: Some(leash_held), first: None };
    let made = make(plan, options, &hatch, &mut site, &mut room, &mut clock);
    let Made { seal, timings, listener } = match made {
        Ok(made) => made,
        Err(error) => {
            // Whoever waits for an answer gets an end of file instead, and ends; we are about to wait for that.
            drop(hatch);
            room.end();
            let _ = remove_cgroup(&mut site);
            return Err(error);
        }
    };
    if let Err(errno) = hatch.send(&Answer::Go, None) {
        drop(hatch);
        room.end();
        let _ = remove_cgroup(&mut site);
        return Err(Error::supervisor("starting the command", errno));
    }
    clock.lap("go");

    let mut recorder = listener.map(Recorder::new);
    let watch = Watch {
        plan,
        recorder: recorder.as_mut(),
        pasta: site.pasta.as_mut(),
        signals,
        pump,
        cgroup: site.cgroup.as_ref(),
        sink,
        begun,
        heard: Instant::now(),
        output_bytes: 0,
        buffer: vec![0; 16 * 1024],
    };
    let watched = watch.until_the_end(&mut room);
    let outcome = finish(plan, &mut room, watched);
    // A successful exec closed the other side without a word. Asked now, when it cannot block, and not while the room runs: the
    // answer would only wake us.
    let outcome = match hatch.receive::<Report>() {
        Ok(Some((Report::NoExec { errno }, _))) => Err(no_exec(plan, Errno::from_raw(errno))),
        _ => outcome,
    };
    clock.lap("payload");
    let used = site.cgroup.as_ref().map(|group| (group.account(), ran_out_of_memory(group), group.read_back().err()));
    let removed = remove_cgroup(&mut site);
    drop(site.pasta.take());
    let (mut end, mut account) = outcome?;
    if let Some((counted, out_of_memory, changed)) = used {
        add_counted(&mut account, &counted);
        if out_of_memory && end != End::Exited(0) {
            end = End::Memory;
        }
        if let Some(error) = changed {
            return Err(Error::supervisor(
                "a limit of the room's control group did not last",
                std::io::Error::other(error),
            ));
        }
    }
    removed?;
    account.wall_seconds = begun.elapsed().as_secs_f64();
    clock.steps.extend(timings);
    Ok(Outcome {
        end,
        account,
        refused: recorder.as_ref().map(Recorder::refusals).unwrap_or_default(),
        refused_others: recorder.as_ref().map(Recorder::others).unwrap_or_default(),
        seal,
        timings: clock.into_timings(plan),
    })
}

fn ran_out_of_memory(group: &Cgroup) -> bool {
    group.oom_kills().is_some_and(|kills| kills > 0)
}

fn remove_cgroup(site: &mut Site<'_>) -> Result<(), Error> {
    site.cgroup
        .take()
        .map_or(Ok(()), Cgroup::remove)
        .map_err(|error| Error::supervisor("removing the room's control group", std::io::Error::other(error)))
}

/// Takes over what the control group counted: it knows of processes that nobody waited for.
fn add_counted(account: &mut Account, counted: &cgroup::Account) {
    let seconds = |microseconds: u64| microseconds as f64 / 1e6;
    account.user_seconds = counted.cpu_user_us.map_or(account.user_seconds, seconds);
    account.system_seconds = counted.cpu_system_us.map_or(account.system_seconds, seconds);
    account.peak_memory_bytes = counted.memory_peak;
    account.peak_processes = counted.pids_peak;
    account.disk_read_bytes = counted.io_read;
    account.disk_written_bytes = counted.io_written;
}

/// A room that stands, before its payload.
struct Made {
    seal: Seal,
    timings: Vec<(usize, u64)>,
    listener: Option<OwnedFd>,
}

/// The set-up, up to the moment before the payload's exec.
fn make(
    plan: &Plan,
    options: Options,
    hatch: &Hatch,
    site: &mut Site<'_>,
    room: &mut Processes,
    clock: &mut Clock,
) -> Result<Made, Error> {
    // What is read while the room goes on. A room that has failed meanwhile shows nothing any more, and says itself why it failed.
    let mut standing = None;
    let mut bare = None;
    let mut cancelled = None;
    let own_keyring = process::session_keyring().map(|serial| serial.to_string()).unwrap_or_default();
    // The one step that is done ahead of its turn: see `Report::Born`.
    let joining = plan.steps.iter().position(|step| matches!(step.action, Action::Cgroup(cgroup::Action::Join)));
    loop {
        let said = hatch.receive::<Report>().map_err(|errno| Error::supervisor("listening to the room", errno))?;
        let Some((report, descriptor)) = said else {
            return Err(match cancelled.take() {
                Some(failure) => Error::from(failure),
                None => Error::SetUpDied { how: room.how_set_up_died() },
            });
        };
        match report {
            Report::Born(pid) => {
                let pid = Pid::from_raw(pid);
                let pidfd = process::pidfd_open(pid).map_err(|errno| Error::supervisor("pidfd_open", errno))?;
                room.first = Some((pid, pidfd));
                site.child = Some(pid);
                // Moving a process between control groups can wait for an RCU grace period, 5 to 20 ms: let the room
                // be built meanwhile. The room comes to this step before anything depends on it.
                if let Some(number) = joining {
                    take_turn(plan, number, site, options, clock)?;
                }
                clock.lap("until the first process is born");
            }
            Report::Turn(number) => {
                if joining != Some(number) {
                    take_turn(plan, number, site, options, clock)?;
                }
                hatch.send(&Answer::Done, None).map_err(|errno| Error::supervisor("answering the room", errno))?;
            }
            Report::Failed { step, errno, detail } => {
                let failure = failure(plan, step, &Trouble { errno: Errno::from_raw(errno), detail });
                if failure.errno == Errno::ECANCELED && cancelled.is_none() {
                    // It waited for another process's step. Why that one failed is the better answer, and may be still to come.
                    cancelled = Some(failure);
                    continue;
                }
                return Err(failure.into());
            }
            Report::NoExec { errno } => return Err(no_exec(plan, Errno::from_raw(errno))),
            Report::Locked => {
                clock.lap("until the room is locked");
                standing = Some(room.read("the mount table", Standing::read_from_kernel));
                clock.lap("reading mounts and namespaces back");
            }
            Report::Bare => {
                clock.lap("until the room is bare");
                bare = Some(room.read("limits and descriptors", Bare::read_from_kernel));
                clock.lap("reading limits and descriptors back");
            }
            Report::Ready { notes, timings } => {
                clock.lap("until the room stands");
                let (Some(standing), Some(bare)) = (standing.take(), bare.take()) else {
                    return Err(Error::SetUpDied { how: "it was ready too early".into() });
                };
                let seal = read_back(plan, room, (&standing?, &bare?), &notes, &own_keyring, site.cgroup.as_ref())?;
                clock.lap("reading the seal back");
                return Ok(Made { seal, timings, listener: descriptor });
            }
        }
    }
}

fn take_turn(
    plan: &Plan,
    number: usize,
    site: &mut Site<'_>,
    options: Options,
    clock: &mut Clock,
) -> Result<(), StepFailure> {
    let begun = Instant::now();
    // Only what the plan gives to the supervisor is done out here, whoever asks.
    let done = match plan.steps.get(number).map(|step| step.place) {
        Some(Place::Supervisor) => do_step(plan, number, site, options),
        _ => Err(Trouble::new(Errno::EPROTO, "the step is not the supervisor's")),
    };
    done.map_err(|trouble| failure(plan, number.min(plan.steps.len() - 1), &trouble))?;
    clock.step(number, begun.elapsed());
    Ok(())
}

fn read_back(
    plan: &Plan,
    room: &Processes,
    (standing, bare): (&Standing, &Bare),
    notes: &[Note],
    own_keyring: &str,
    cgroup: Option<&Cgroup>,
) -> Result<Seal, Error> {
    let pid = room.first.as_ref().map(|(pid, _)| *pid).ok_or_else(|| Error::SetUpDied { how: "unborn".into() })?;
    let view = View::read_from_kernel(pid, plan, standing, bare, notes, own_keyring, cgroup)
        .map_err(|error| Error::supervisor(format!("reading /proc/{pid}"), error))?;
    seal::seal(plan, &view)
}

pub(super) fn failure(plan: &Plan, number: usize, trouble: &Trouble) -> StepFailure {
    let step = &plan.steps[number];
    StepFailure {
        step: number,
        layer: step.action.layer(),
        doing: step.action.to_string(),
        errno: trouble.errno,
        detail: trouble.detail.clone(),
        fix: crate::advice::for_step(step, trouble.errno),
    }
}

fn no_exec(plan: &Plan, errno: Errno) -> Error {
    let hint = match errno {
        Errno::ENOENT => ": it is not in the room, or the interpreter or loader that it names is not",
        Errno::EACCES => ": it is not executable for the room's user, or lies on a mount without exec",
        Errno::ENOEXEC => ": it is neither a program for this machine nor a script with a #! line",
        Errno::E2BIG => ": arguments and environment together are longer than the kernel takes",
        _ => "",
    };
    Error::Exec { program: plan.room.process.program.to_string(), errno, hint: hint.into() }
}

/// The processes of one room, seen from outside.
struct Processes {
    warden: Option<Pid>,
    leash: Option<OwnedFd>,
    first: Option<(Pid, OwnedFd)>,
}

impl Processes {
    /// Reads something of the first process.
    fn read<T>(&self, what: &str, read: impl Fn(Pid) -> std::io::Result<T>) -> Result<T, Error> {
        let pid = self.first.as_ref().map(|(pid, _)| *pid).ok_or_else(|| Error::SetUpDied { how: "unborn".into() })?;
        read(pid).map_err(|error| Error::supervisor(format!("reading {what} of process {pid} back"), error))
    }

    /// Kills the room.
    fn kill(&self) {
        if let Some((_, pidfd)) = &self.first {
            let _ = pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// Kills what is left and waits for all of it. The kernel reports the first process's end only when its pid namespace is empty.
    fn end(&mut self) {
        self.kill();
        if let Some((pid, _)) = self.first.take() {
            let _ = process::wait(pid);
        }
        self.dismiss_warden();
        // A first process whose birth was never reported is our child all the same.
        while let Ok(status) = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
            if status == nix::sys::wait::WaitStatus::StillAlive {
                break;
            }
        }
    }

    fn dismiss_warden(&mut self) {
        drop(self.leash.take());
        if let Some(pid) = self.warden.take() {
            let _ = process::wait(pid);
        }
    }

    fn how_set_up_died(&mut self) -> String {
        self.kill();
        let pid = self.first.take().map(|(pid, _)| pid).or_else(|| self.warden.take());
        pid.and_then(|pid| process::wait(pid).ok())
            .map_or_else(|| "no status".to_owned(), |ended| status_in_words(ended.status))
    }
}

/// Why the room is being ended.
enum Stop {
    /// It ended itself.
    Itself,
    /// A limit, or a signal that the payload did not take.
    For(End),
}

/// Watches a running room.
struct Watch<'a> {
    plan: &'a Plan,
    signals: Signals,
    pump: Pump,
    cgroup: Option<&'a Cgroup>,
    recorder: Option<&'a mut Recorder>,
    pasta: Option<&'a mut Pasta>,
    sink: &'a mut dyn Sink,
    begun: Instant,
    heard: Instant,
    output_bytes: u64,
    buffer: Vec<u8>,
}

impl Watch<'_> {
    /// Until the first process has ended and every byte that it left is handed on; why, and how many bytes there were.
    fn until_the_end(mut self, room: &mut Processes) -> Result<(Stop, u64), Error> {
        let mut stop = Stop::Itself;
        let raw = RawTerminal::enter(&self.pump);
        let mut ended = false;
        loop {
            if !ended && let Some(limit) = self.expired() {
                stop = Stop::For(limit);
                room.kill();
                // Wait for its end, without limits now.
                self.drain_after_kill(room)?;
                break;
            }
            let happened = self.wait(room, ended, raw.is_some())?;
            if let Some(limit) = happened.limit {
                stop = Stop::For(limit);
                room.kill();
                self.drain_after_kill(room)?;
                break;
            }
            if let Some(signal) = happened.signal
                && let Some(end) = self.forward(signal, room)
            {
                stop = Stop::For(end);
                room.kill();
            }
            ended |= happened.room_ended;
            // Everything in the room is dead, so an empty pipe stays empty.
            if ended && (self.pump.sources.is_empty() || happened.quiet) {
                break;
            }
        }
        drop(raw);
        Ok((stop, self.output_bytes))
    }

    /// Hands on what a killed room had written already, as far as the limit of output allows.
    fn drain_after_kill(&mut self, room: &Processes) -> Result<(), Error> {
        if let Some((_, pidfd)) = &room.first {
            let mut waited = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            while matches!(poll(&mut waited, PollTimeout::NONE), Err(Errno::EINTR)) {}
        }
        for index in 0..self.pump.sources.len() {
            while let Taken::Some = self.take_output(index)? {}
        }
        Ok(())
    }

    fn expired(&self) -> Option<End> {
        let limits = &self.plan.room.limits;
        if limits.time.is_some_and(|limit| self.begun.elapsed() >= limit.std()) {
            return Some(End::Time);
        }
        // Cgroup v1 ends one process of a room that is out of memory; the rest would go on without it.
        if self.watches_memory() && self.cgroup.is_some_and(ran_out_of_memory) {
            return Some(End::Memory);
        }
        limits.silence.is_some_and(|limit| self.heard.elapsed() >= limit.std()).then_some(End::Silence)
    }

    fn watches_memory(&self) -> bool {
        self.cgroup.is_some() && self.plan.room.limits.memory.is_some()
    }

    fn next_deadline(&self) -> PollTimeout {
        let limits = &self.plan.room.limits;
        let left = |limit: Option<crate::quantity::Duration>, since: Instant| {
            limit.map(|limit| limit.std().saturating_sub(since.elapsed()))
        };
        let look_again = self.watches_memory().then_some(Duration::from_millis(200));
        let nearest =
            [left(limits.time, self.begun), left(limits.silence, self.heard), look_again].into_iter().flatten().min();
        match nearest {
            // One more millisecond: poll rounds down, and waking early would mean to spin.
            Some(left) => PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        }
    }

    /// Waits for anything to happen, and takes it in.
    fn wait(&mut self, room: &Processes, ended: bool, raw: bool) -> Result<Happened, Error> {
        let first = room.first.as_ref().map(|(_, pidfd)| pidfd);
        let stdin = std::io::stdin();
        let mut kinds = vec![Waited::Signals];
        let mut list = vec![PollFd::new(self.signals.descriptor.as_fd(), PollFlags::POLLIN)];
        let mut add = |kind, descriptor| {
            kinds.push(kind);
            list.push(PollFd::new(descriptor, PollFlags::POLLIN));
        };
        if let (Some(first), false) = (first, ended) {
            add(Waited::Room, first.as_fd());
        }
        if let Some(recorder) = self.recorder.as_deref().filter(|recorder| !recorder.over()) {
            add(Waited::Refusals, recorder.as_fd());
        }
        if let Some(pasta) = self.pasta.as_deref() {
            add(Waited::Pasta, pasta.as_fd());
        }
        for (index, (_, source)) in self.pump.sources.iter().enumerate() {
            add(Waited::Source(index), source.as_fd());
        }
        if raw {
            add(Waited::Keyboard, stdin.as_fd());
        }
        let timeout = if ended { PollTimeout::ZERO } else { self.next_deadline() };
        let ready = match poll(&mut list, timeout) {
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(Error::supervisor("waiting for the room", errno)),
            Ok(ready) => ready,
        };
        let happened: Vec<Waited> =
            kinds.iter().zip(&list).filter(|(_, fd)| fd.any().unwrap_or(true)).map(|(kind, _)| *kind).collect();
        drop(list);
        let mut found = Happened { quiet: ready == 0, ..Happened::default() };
        let mut closed = Vec::new();
        for kind in happened {
            match kind {
                Waited::Signals => found.signal = self.signals.next(),
                Waited::Room => found.room_ended = true,
                Waited::Source(index) => match self.take_output(index)? {
                    Taken::Some | Taken::None => {}
                    Taken::TooMuch => found.limit = Some(End::Output),
                    Taken::End => closed.push(index),
                },
                Waited::Keyboard => self.type_in(),
                Waited::Refusals => {
                    if let Some(recorder) = &mut self.recorder {
                        recorder
                            .answer()
                            .map_err(|error| Error::supervisor("answering the filter's refusals", error))?;
                    }
                }
                Waited::Pasta => {
                    let words = self.pasta.take().and_then(Pasta::ended).unwrap_or_default();
                    if !ended {
                        return Err(Error::supervisor("pasta ended before the room", std::io::Error::other(words)));
                    }
                }
            }
        }
        for index in closed.into_iter().rev() {
            self.pump.sources.remove(index);
        }
        Ok(found)
    }

    fn take_output(&mut self, index: usize) -> Result<Taken, Error> {
        let (stream, source) = &self.pump.sources[index];
        let (stream, read) = (*stream, pump::read(source, &mut self.buffer));
        match read.map_err(|errno| Error::supervisor("reading the command's output", errno))? {
            Read::Later => Ok(Taken::None),
            Read::End => Ok(Taken::End),
            Read::Some(length) => {
                self.heard = Instant::now();
                let most = self.plan.room.limits.output.map(|size| size.bytes(self.plan.memory));
                let room_left = most.map_or(u64::MAX, |most| most.saturating_sub(self.output_bytes));
                let length = length as u64;
                let shown = length.min(room_left);
                self.output_bytes += shown;
                self.sink
                    .output(stream, &self.buffer[..shown as usize])
                    .map_err(|error| Error::supervisor("handing on the command's output", error))?;
                Ok(if length > room_left { Taken::TooMuch } else { Taken::Some })
            }
        }
    }

    /// What the person types goes to the room's terminal.
    fn type_in(&mut self) {
        let mut buffer = [0; 4096];
        let Some(terminal) = &self.pump.terminal else { return };
        if let Ok(length) = nix::unistd::read(std::io::stdin().as_fd(), &mut buffer) {
            // A terminal that is full drops what is typed, as terminals do.
            let _ = crate::sys::file::write_whole(terminal.as_fd(), &buffer[..length]);
        }
    }

    /// Hands a signal on. A first process of a pid namespace is not ended by a signal that it has no handler for, not even by one
    /// from outside: where the default action is to end, we do that.
    fn forward(&mut self, signal: Signal, room: &Processes) -> Option<End> {
        if signal == Signal::SIGWINCH {
            if let Some(terminal) = &self.pump.terminal
                && let Ok(size) = crate::sys::device::window_size(std::io::stdin().as_fd())
            {
                let _ = crate::sys::device::set_window_size(terminal.as_fd(), &size);
            }
            return None;
        }
        let (pid, pidfd) = room.first.as_ref()?;
        if self.plan.room.process.init {
            // It waits for signals by sigwaitinfo(2), during which the kernel shows none of them as blocked.
            let _ = pidfd_signal(pidfd.as_fd(), signal as i32);
            return None;
        }
        let status = crate::sys::file::read_proc(format!("/proc/{pid}/status")).unwrap_or_default();
        let in_mask = |key: &str| {
            status
                .lines()
                .find_map(|line| u64::from_str_radix(line.strip_prefix(key)?.trim(), 16).ok())
                .is_some_and(|mask| mask & (1 << (signal as i32 - 1)) != 0)
        };
        if in_mask("SigCgt:") || in_mask("SigBlk:") {
            let _ = pidfd_signal(pidfd.as_fd(), signal as i32);
            return None;
        }
        if in_mask("SigIgn:") {
            return None;
        }
        Some(End::Signaled(signal as i32))
    }
}

#[derive(Clone, Copy)]
enum Waited {
    Signals,
    Room,
    Source(usize),
    Keyboard,
    Refusals,
    Pasta,
}

#[derive(Default)]
struct Happened {
    signal: Option<Signal>,
    room_ended: bool,
    limit: Option<End>,
    quiet: bool,
}

enum Taken {
    Some,
    None,
    TooMuch,
    End,
}

/// Waits for all processes and adds up.
fn finish(plan: &Plan, room: &mut Processes, watched: Result<(Stop, u64), Error>) -> Result<(End, Account), Error> {
    let (stop, output_bytes) = match watched {
        Ok(watched) => watched,
        Err(error) => {
            room.end();
            return Err(error);
        }
    };
    let Some((pid, _)) = room.first.take() else { return Err(Error::SetUpDied { how: "unborn".into() }) };
    let ended = process::wait(pid).map_err(|errno| Error::supervisor("waiting for the room's first process", errno))?;
    room.dismiss_warden();
    let end = match stop {
        Stop::For(end) => end,
        Stop::Itself if libc::WIFSIGNALED(ended.status) => End::Signaled(libc::WTERMSIG(ended.status)),
        Stop::Itself => match libc::WEXITSTATUS(ended.status) {
            // With an init between, the payload's signal comes as this.
            status if plan.room.process.init && status > 128 => End::Signaled(status - 128),
            status => End::Exited(status),
        },
    };
    let account = Account {
        user_seconds: seconds(ended.usage.ru_utime),
        system_seconds: seconds(ended.usage.ru_stime),
        largest_process_bytes: ended.usage.ru_maxrss as u64 * 1024,
        output_bytes,
        ..Account::default()
    };
    Ok((end, account))
}

/// Signals for the payload, taken in as events for as long as this lives.
struct Signals {
    descriptor: SignalFd,
    before: SigSet,
}

impl Signals {
    fn take() -> Result<Self, Error> {
        let say = |errno| Error::supervisor("blocking signals", errno);
        let set: SigSet = FORWARDED.into_iter().collect();
        let before = set.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK).map_err(say)?;
        let descriptor = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(say)?;
        Ok(Self { descriptor, before })
    }

    fn next(&mut self) -> Option<Signal> {
        let info = self.descriptor.read_signal().ok().flatten()?;
        Signal::try_from(info.ssi_signo as i32).ok()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// The caller's terminal in raw mode while the room's own is shown on it.
struct RawTerminal {
    before: nix::sys::termios::Termios,
}

impl RawTerminal {
    fn enter(pump: &Pump) -> Option<Self> {
        use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
        pump.terminal.as_ref()?;
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        use nix::sys::termios::{SetArg, tcsetattr};
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

/// Where the time goes.
struct Clock {
    on: bool,
    last: Instant,
    laps: Vec<Timing>,
    steps: Vec<(usize, u64)>,
}

impl Clock {
    fn new(on: bool) -> Self {
        Self { on, last: Instant::now(), laps: Vec::new(), steps: Vec::new() }
    }

    fn lap(&mut self, what: &str) {
        if self.on {
            let now = Instant::now();
            let microseconds = (now - self.last).as_micros() as u64;
            self.last = now;
            self.laps.push(Timing { what: what.into(), microseconds });
        }
    }

    fn step(&mut self, number: usize, time: Duration) {
        if self.on {
            self.steps.push((number, time.as_nanos() as u64));
        }
    }

    fn into_timings(mut self, plan: &Plan) -> Vec<Timing> {
        self.steps.sort_unstable();
        let steps = self.steps.iter().map(|(number, nanoseconds)| Timing {
            what: format!("step {number}, {}", plan.steps[*number]),
            microseconds: nanoseconds / 1000,
        });
        self.laps.into_iter().chain(steps).collect()
    }
}
