//! What can go wrong, and how a person reads it: what was being done, to what, what the kernel said, what to do.

use std::fmt;
use std::io;

use nix::errno::Errno;
use serde::Serialize;

use crate::layers::Layer;

/// A room that is not made because what was asked cannot be, or must not be, done. Found before anything was touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Refusal {
    /// The layer that refuses.
    pub layer: Layer,
    /// What was asked.
    pub what: String,
    /// Why it is refused.
    pub why: String,
    /// What to do about it.
    pub fix: String,
}

impl Refusal {
    /// A refusal by `layer`. What was asked may hold anything, and is shown as one line.
    pub fn new(layer: Layer, what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { layer, what: one_line(what.into()), why: one_line(why.into()), fix: one_line(fix.into()) }
    }
}

/// With control characters spelled out: a newline in a path must not look like a message of its own.
fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let spelled = |letter: char| if letter.is_control() { letter.escape_default().to_string() } else { letter.into() };
    text.chars().map(spelled).collect()
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({}): {}", self.layer, self.what, self.why, self.fix)
    }
}

/// A step of the plan that the kernel, or a peer, did not let us do. The payload was never started.
#[derive(Clone, Debug, Serialize, thiserror::Error)]
pub struct StepFailure {
    /// Its place in the plan, from 0.
    pub step: usize,
    /// The layer it belongs to.
    pub layer: Layer,
    /// What was being done, to what.
    pub doing: String,
    /// The kernel's answer.
    #[serde(serialize_with = "errno_as_number")]
    pub errno: Errno,
    /// More words than errno has, where there are any.
    pub detail: Option<String>,
    /// What to do about it.
    pub fix: Option<String>,
}

fn errno_as_number<S: serde::Serializer>(errno: &Errno, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i32(*errno as i32)
}

impl fmt::Display for StepFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: cannot {}: {} ({:?})", self.layer, self.doing, self.errno.desc(), self.errno)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        if let Some(fix) = &self.fix {
            write!(f, "; {fix}")?;
        }
        Ok(())
    }
}

/// Why a payload did not run, or why its room could not be watched to the end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked is refused; nothing was touched.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A step of the set-up failed; everything was taken back and the payload never started.
    #[error(transparent)]
    SetUp(#[from] StepFailure),
    /// The set-up went well, but the command could not be executed.
    #[error("cannot execute {program}: {} ({errno:?}){hint}", errno.desc())]
    Exec {
        /// As it was asked for.
        program: String,
        /// execve's answer.
        errno: Errno,
        /// What it may mean, beginning with a separator, or nothing.
        hint: String,
    },
    /// The room did not turn out as planned: a layer read back from the kernel is not what was asked.
    #[error(
        "{layer}: the kernel does not show what was set up: {what}; the command was not started; please report this with `anchorhold doctor --json`"
    )]
    NotSealed {
        /// The layer.
        layer: Layer,
        /// What differs.
        what: String,
    },
    /// The launcher was called from a process with more than one thread.
    #[error(
        "the room can only be entered from a process with one thread, this one has {threads}: start a launcher process of its own"
    )]
    ManyThreads {
        /// How many there are.
        threads: u64,
    },
    /// The caller was told to end while the room was being made.
    #[error("ended by signal {signal} while the room was being made; the command was not started")]
    Interrupted {
        /// Its number.
        signal: i32,
    },
    /// A part of the set-up process died without a word.
    #[error("the room's first process ended before its set-up was complete ({how}); the command was not started")]
    SetUpDied {
        /// Its wait status in words.
        how: String,
    },
    /// The supervisor's own system calls.
    #[error("{doing}: {source}")]
    Supervisor {
        /// What the supervisor was doing.
        doing: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn supervisor(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Supervisor { doing: doing.into(), source: source.into() }
    }
}

/// The errno of a number, for those who do not use crate `nix`.
pub fn errno_from_number(number: i32) -> Errno {
    Errno::from_raw(number)
}
