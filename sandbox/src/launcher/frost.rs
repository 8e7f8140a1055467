//! A room that stands still for a visitor, and goes on afterwards whatever happens to the visitor.
//!
//! A process of its own, the *keeper*, stops the room and waits for the end of a pipe whose other end its parent holds: however the
//! parent ends, the kernel closes that, and the keeper lets the room go on. It is in a session of its own, so that what kills the
//! parent's process group does not kill it.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Pid;

use super::doors::{start_time, stat_field};
use crate::error::Error;
use crate::layers::cgroup::Freezer;
use crate::sys::process::{self, Forked, close_all_but, exit_now, pidfd_open, pidfd_signal};

/// How long all processes of a room may take to stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// A room that stands still for as long as this lives.
#[derive(Debug)]
pub struct Frost {
    keeper: Pid,
    leash: Option<OwnedFd>,
}

impl Frost {
    /// Stops the room of this first process, which is held.
    ///
    /// # Errors
    /// When not all of it could be stopped; then all of it goes on.
    pub fn lay(first: Pid, held: &OwnedFd) -> Result<Self, Error> {
        let say = |errno: Errno| Error::supervisor("freezing the room", errno);
        let (leash_end, leash) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(say)?;
        let (answer, answer_end) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(say)?;
        let keeper = match process::fork().map_err(say)? {
            Forked::Child => {
                drop((leash, answer));
                live_as_keeper(first, held, &leash_end, answer_end)
            }
            Forked::Parent { pid, .. } => pid,
        };
        drop((leash_end, answer_end));
        let frost = Self { keeper, leash: Some(leash) };
        let mut number = [0; 4];
        match nix::unistd::read(&answer, &mut number) {
            Ok(4) => match i32::from_ne_bytes(number) {
                0 => Ok(frost),
                number => Err(say(Errno::from_raw(number))),
            },
            _ => Err(say(Errno::ECHILD)),
        }
    }
}

impl Drop for Frost {
    fn drop(&mut self) {
        drop(self.leash.take());
        // Until the room goes on. In a forked copy of us the keeper is not a child, and there is nothing to wait for.
        let _ = process::wait(self.keeper);
    }
}

fn live_as_keeper(first: Pid, held: &OwnedFd, leash: &OwnedFd, answer: OwnedFd) -> ! {
    let _ = nix::sys::signal::SigSet::all().thread_block();
    let _ = nix::unistd::setsid();
    close_all_but(&[held.as_fd(), leash.as_fd(), answer.as_fd()]);
    let freezer = Freezer::of(first).ok().flatten();
    let mut stopped = Vec::new();
    let done = match &freezer {
        Some(freezer) => freezer.set(true).map_err(|error| error.errno().unwrap_or(Errno::ETIMEDOUT)),
        None => stop_all(first, held, &mut stopped),
    };
    let number = done.err().map_or(0, |errno| errno as i32);
    let _ = nix::unistd::write(&answer, &number.to_ne_bytes());
    drop(answer);
    while number == 0 && matches!(nix::unistd::read(leash, &mut [0]), Err(Errno::EINTR) | Ok(1..)) {}
    if let Some(freezer) = freezer {
        let _ = freezer.set(false);
    }
    // The first process last: it finds the others at work when it looks.
    for process in stopped.iter().rev() {
        let _ = pidfd_signal(process.as_fd(), libc::SIGCONT);
    }
    exit_now(0)
}

/// Stops every process of a room by signals, round after round until no new one is found and all stand. Those that stood before
/// are left out: they are not to be continued either.
fn stop_all(first: Pid, held: &OwnedFd, stopped: &mut Vec<OwnedFd>) -> Result<(), Errno> {
    let begun = Instant::now();
    let mut known: HashSet<(Pid, Option<u64>)> = HashSet::new();
    loop {
        let mut still = true;
        for pid in descendants(first) {
            let state = stat_field(pid, 3).unwrap_or_default();
            if matches!(state.as_str(), "Z" | "X" | "") {
                continue;
            }
            let start = start_time(pid);
            let stands = matches!(state.as_str(), "T" | "t");
            still &= stands;
            if !known.insert((pid, start)) || stands {
                continue;
            }
            still = false;
            let process = if pid == first {
                held.try_clone().map_err(|_| Errno::EMFILE)?
            } else {
                match pidfd_open(pid) {
                    Ok(process) if start_time(pid) == start => process,
                    _ => continue,
                }
            };
            match pidfd_signal(process.as_fd(), libc::SIGSTOP) {
                Ok(()) => stopped.push(process),
                Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno),
            }
        }
        // The first process must be there: a room that is gone does not stand still.
        pidfd_signal(held.as_fd(), 0)?;
        if still {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Every process that can be seen.
pub(super) fn processes() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
}

/// A process and all that descend from it: everything in the pid namespace whose first process it is, because what loses its
/// parent there becomes its child.
fn descendants(first: Pid) -> Vec<Pid> {
    let parents: Vec<(Pid, Option<i32>)> =
        processes().map(|pid| (pid, stat_field(pid, 4).and_then(|parent| parent.parse().ok()))).collect();
    let mut found = vec![first];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        found.extend(parents.iter().filter(|(_, its)| *its == Some(parent.as_raw())).map(|(pid, _)| *pid));
    }
    found
}
