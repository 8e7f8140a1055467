//! A running room: its output, its limits, its signals, its refusals, its end.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::Sink;
use super::pump::{self, Pump, Read};
use super::signals::{RawTerminal, Signals};
use super::sockets::Sockets;
use super::supervisor::{Processes, ran_out_of_memory};
use crate::error::Error;
use crate::layers::cgroup::Cgroup;
use crate::layers::network::pasta::Pasta;
use crate::layers::seccomp::Recorder;
use crate::outcome::End;
use crate::plan::Plan;
use crate::sys::process::pidfd_signal;

/// Why the room is being ended.
pub enum Stop {
    /// It ended itself.
    Itself,
    /// A limit, or a signal that the payload did not take.
    For(End),
}

/// Watches a running room.
pub struct Watch<'a> {
    pub plan: &'a Plan,
    pub signals: Signals,
    pub pump: Pump,
    pub cgroup: Option<&'a Cgroup>,
    pub recorder: Option<&'a mut Recorder>,
    /// Who makes the sockets that 32-bit programs ask for; where there is a recorder.
    pub sockets: Option<Sockets<'a>>,
    pub pasta: Option<&'a mut Pasta>,
    pub sink: &'a mut dyn Sink,
    pub begun: Instant,
    /// When output last came.
    pub heard: Instant,
    /// Bytes of output handed on.
    pub output_bytes: u64,
    /// Where output is read to.
    pub buffer: Vec<u8>,
}

impl Watch<'_> {
    /// Until the first process has ended and every byte that it left is handed on; why, and how many bytes there were.
    pub fn until_the_end(mut self, room: &mut Processes) -> Result<(Stop, u64), Error> {
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
                    if let (Some(recorder), Some(sockets)) = (&mut self.recorder, &mut self.sockets) {
                        recorder
                            .answer(sockets)
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
        if waits_for_signals(*pid) {
            let _ = pidfd_signal(pidfd.as_fd(), signal as i32);
            return None;
        }
        Some(End::Signaled(signal as i32))
    }
}

/// Whether a process stands in sigtimedwait(2) or its kin, during which the kernel shows none of the signals as blocked that it
/// waits for.
fn waits_for_signals(pid: Pid) -> bool {
    let wait = crate::sys::process::SIGNAL_WAIT.to_string();
    crate::sys::file::read_proc(format!("/proc/{pid}/syscall")).is_ok_and(|text| text.split(' ').next() == Some(&wait))
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
