//! The outer half: takes what only it can take, forks, answers, seals, watches, ends.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::clock::Clock;
use super::inside::do_step;
use super::message::{Answer, Hatch, Report};
use super::pump::Pump;
use super::signals::Signals;
use super::sockets::Sockets;
use super::watch::{Stop, Watch};
use super::{Options, Sink, warden};
use crate::error::{Error, StepFailure};
use crate::layers::Action;
use crate::layers::cgroup::{self, Cgroup};
use crate::layers::identity::{self, Ids};
use crate::layers::seccomp::Recorder;
use crate::outcome::{Account, End, Outcome, seconds, status_in_words};
use crate::plan::{Place, Plan};
use crate::seal::{self, Bare, Seal, Standing, View};
use crate::site::{Note, Site, Trouble};
use crate::sys::Kernel;
use crate::sys::process::{self, Forked, pidfd_signal};

pub fn run(plan: &Plan, options: Options, sink: &mut dyn Sink) -> Result<Outcome, Error> {
    let begun = Instant::now();
    let mut clock = Clock::new(options.timing);
    let kernel = Kernel::default();
    let no_pool = crate::ids::Pool { first: 0, stride: 0, slots: 0, locks: std::path::PathBuf::new() };
    let pool = plan.ids.clone().unwrap_or(no_pool);
    let held = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let mut site = Site::new(&kernel, pool, held);

    let mut signals = Signals::take()?;
    let (streams, mut pump) = Pump::make(&plan.room)?;
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
    let made = make(plan, options, (&hatch, &mut signals, &mut pump), &mut site, &mut room, &mut clock);
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
    let started = sink
        .standing()
        .map_err(|error| Error::supervisor("telling that the room stands", error))
        .and_then(|()| hatch.send(&Answer::Go, None).map_err(|errno| Error::supervisor("starting the command", errno)));
    if let Err(error) = started {
        drop(hatch);
        room.end();
        let _ = remove_cgroup(&mut site);
        return Err(error);
    }
    clock.lap("go");

    let mut recorder = listener.map(Recorder::new);
    let first = room.first.as_ref().map(|(pid, _)| *pid);
    let watch = Watch {
        plan,
        recorder: recorder.as_mut(),
        sockets: first.map(|first| Sockets::new(&plan.room, first, site.cgroup.as_ref())),
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
        // Cgroup v1 ends one process of the room, and the rest may be done, and well, before anybody looks. Over a limit that was asked for
        // is over it, however fast.
        if out_of_memory && (end != End::Exited(0) || plan.room.limits.memory.is_some()) {
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

/// Whether the kernel has ended a process of the room for its memory.
pub fn ran_out_of_memory(group: &Cgroup) -> bool {
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
    (hatch, signals, pump): (&Hatch, &mut Signals, &mut Pump),
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
        wait_for_word(hatch, signals)?;
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
            // Only a visitor's.
            Report::NotEntered { doing, errno } => return Err(Error::supervisor(doing, Errno::from_raw(errno))),
            Report::NoExec { errno } => return Err(no_exec(plan, Errno::from_raw(errno))),
            Report::Terminal => {
                let Some(master) = descriptor else {
                    return Err(Error::supervisor("taking the room's terminal", Errno::EBADMSG));
                };
                pump.take_terminal(&plan.room, master)?;
            }
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

/// Waits until the room says something; a signal that would end us ends the set-up instead.
pub(super) fn wait_for_word(hatch: &Hatch, signals: &mut Signals) -> Result<(), Error> {
    loop {
        let mut waited =
            [PollFd::new(hatch.as_fd(), PollFlags::POLLIN), PollFd::new(signals.descriptor.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waited, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(Error::supervisor("waiting for the room", errno)),
            Ok(_) => {}
        }
        if waited[0].any().unwrap_or(true) {
            return Ok(());
        }
        if let Some(signal @ (Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM)) = signals.next() {
            return Err(Error::Interrupted { signal: signal as i32 });
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

pub(super) fn no_exec(plan: &Plan, errno: Errno) -> Error {
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
pub struct Processes {
    warden: Option<Pid>,
    leash: Option<OwnedFd>,
    /// The room's first process, once it is born.
    pub first: Option<(Pid, OwnedFd)>,
}

impl Processes {
    /// None yet.
    pub fn none() -> Self {
        Self { warden: None, leash: None, first: None }
    }

    /// Reads something of the first process.
    fn read<T>(&self, what: &str, read: impl Fn(Pid) -> std::io::Result<T>) -> Result<T, Error> {
        let pid = self.first.as_ref().map(|(pid, _)| *pid).ok_or_else(|| Error::SetUpDied { how: "unborn".into() })?;
        read(pid).map_err(|error| Error::supervisor(format!("reading {what} of process {pid} back"), error))
    }

    /// Kills the room.
    pub fn kill(&self) {
        if let Some((_, pidfd)) = &self.first {
            let _ = pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// Kills what is left and waits for all of it. The kernel reports the first process's end only when its pid namespace is empty.
    pub fn end(&mut self) {
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

/// Waits for all processes and adds up.
pub(super) fn finish(
    plan: &Plan,
    room: &mut Processes,
    watched: Result<(Stop, u64), Error>,
) -> Result<(End, Account), Error> {
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
