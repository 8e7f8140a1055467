//! The only place with effects: interprets a [`Plan`], watches the room, brings back its [`Outcome`].
//!
//! Three processes, each in a file of its own. The *supervisor* is the process that calls [`Launcher::run`]: it must have one thread. It forks
//! the *warden*, which gives up ids, enters the room's user and pid namespaces and forks the *room's first process*; that one does the rest
//! of the plan and becomes the payload. A step that only the supervisor can do is handed over by message and waited for.

mod clock;
mod doors;
mod frost;
mod init;
mod inside;
mod message;
mod pump;
mod signals;
mod sockets;
mod supervisor;
mod visit;
mod warden;
mod watch;

pub use doors::Resident;
pub(crate) use message::{Hatch, Report};
pub use visit::{Visit, Visited};

use std::io;

use nix::errno::Errno;

use crate::error::Error;
use crate::outcome::Outcome;
use crate::plan::Plan;

/// Where output of the payload goes.
pub trait Sink {
    /// Takes bytes that the payload wrote, in order within a stream.
    ///
    /// # Errors
    /// When they cannot be taken; the room is then ended.
    fn output(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()>;

    /// The room stands and is sealed; the payload is about to become a program in it.
    ///
    /// # Errors
    /// When whoever is to know cannot be told; the payload then never starts.
    fn standing(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Which stream of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal.
    Output,
    /// Standard error.
    Error,
}

/// Makes one step of a plan fail, to prove that a payload then never starts and that nothing stays behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its number in the plan, from 0.
    pub step: usize,
    /// How it fails.
    pub errno: Errno,
}

/// What the launcher is told beside the plan.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Whether the time of each step is taken.
    pub timing: bool,
    /// A step that is made to fail.
    pub fault: Option<Fault>,
}

/// Enters one room, once.
pub struct Launcher<'a> {
    plan: &'a Plan,
    options: Options,
}

impl<'a> Launcher<'a> {
    /// A launcher for this plan.
    pub fn new(plan: &'a Plan, options: Options) -> Self {
        Self { plan, options }
    }

    /// Makes the room, runs the payload in it, watches it to its end. When this returns, whatever it returns, every process of the
    /// room is dead and every namespace, mount and lock of it is gone.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(self, sink: &mut dyn Sink) -> Result<Outcome, Error> {
        let threads = crate::sys::process::thread_count()
            .map_err(|error| Error::supervisor("counting this process's threads", error))?;
        if threads != 1 {
            return Err(Error::ManyThreads { threads });
        }
        supervisor::run(self.plan, self.options, sink)
    }
}
