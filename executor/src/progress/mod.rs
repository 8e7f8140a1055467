//! What a person, or a program, is told while builds run.
//!
//! Builds report typed [`Event`]s from their threads to a [`Reporter`]. What a builder writes is handed over as it comes, in
//! pieces of any size; lines are made of it here, one splitter for each build, and what is shown of them has passed
//! [`escapes`].

mod bar;
pub mod escapes;
mod internal_json;
pub mod lines;
mod message;
mod raw;
mod tree;

use std::collections::HashMap;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lines::LineSplitter;
use message::BuilderMessage;

/// What tells one build from another in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildId(pub u64);

/// One derivation to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Of this run.
    pub id: BuildId,
    /// The whole path of the derivation, as `/nix/store/…-hello.drv`.
    pub drv_path: String,
    /// Short, for lines: the derivation's name without `.drv`.
    pub name: String,
    /// The names of the outputs wanted.
    pub outputs: Vec<String>,
    /// The builds of this run that must be done before.
    pub needs: Vec<BuildId>,
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Its outputs are in the store.
    Done,
    /// It was tried, and failed.
    Failed(Failure),
    /// A build that it needs failed; it was never begun.
    DependencyFailed,
    /// It was broken off because the whole run was.
    Cancelled,
}

/// The story of a failed build.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failure {
    /// The result class in one word, such as `permanent` or `timed-out`.
    pub class: String,
    /// What happened, to be read after “builder for '…'”: `failed with exit code 1`.
    pub reason: String,
    /// The last lines of the log as they were written, oldest first.
    pub log_tail: Vec<Vec<u8>>,
    /// More lines: what the room refused, what that suggests, how to do it again.
    pub advice: Vec<String>,
}

/// How much a message matters: Nix's own levels and numbers (`Verbosity` in `src/libutil/error.hh`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Something was not done.
    Error = 0,
    /// Something is not as it should be.
    Warn = 1,
    /// Something to know.
    Notice = 2,
    /// What is being done.
    Info = 3,
    /// How it is being done.
    Talkative = 4,
    /// For those who look for a fault.
    Debug = 6,
}

/// Something that happened.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// What is going to be built is known. Comes at most once, before all builds.
    GraphKnown {
        /// All of them, in any order.
        builds: &'a [Build],
    },
    /// A build that was not in the graph waits for its turn.
    Queued(&'a Build),
    /// A build has begun.
    Started(&'a Build),
    /// It has come to a phase.
    Phase {
        /// Which build.
        id: BuildId,
        /// The phase's name.
        phase: &'a str,
    },
    /// It has written something: any number of bytes, not necessarily whole lines.
    Log {
        /// Which build.
        id: BuildId,
        /// What it wrote.
        bytes: &'a [u8],
    },
    /// It has ended. Of a build that ended without being begun too.
    Finished {
        /// Which build.
        id: BuildId,
        /// How.
        ending: &'a Ending,
        /// From its start.
        duration: Duration,
    },
    /// Somebody else holds a lock that is waited for.
    WaitingForLock {
        /// The locked path.
        path: &'a str,
    },
    /// Something to say that belongs to no build.
    Message {
        /// How much it matters.
        level: Level,
        /// One line or more, without a newline at the end. May hold foreign text: it is filtered.
        text: &'a str,
    },
    /// Nothing more comes.
    AllDone,
}

/// Somebody who is told. Called from several threads.
pub trait Reporter: Send + Sync {
    /// Takes notice of an event. Never fails: a build does not end because nobody can be told of it.
    fn report(&self, event: Event<'_>);
}

/// Tells nobody anything.
#[derive(Debug, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn report(&self, _: Event<'_>) {}
}

/// The form of what is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// A live picture, for terminals.
    Bar,
    /// Plain lines.
    Raw,
    /// Nix's lines of JSON, for programs.
    InternalJson,
}

impl LogFormat {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Bar, Self::Raw, Self::InternalJson];

    /// Its name on the command line, Nix's own.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bar => "bar",
            Self::Raw => "raw",
            Self::InternalJson => "internal-json",
        }
    }

    /// The form for standard error as it is: a picture on a terminal that can draw one, lines anywhere else.
    pub fn for_stderr() -> Self {
        let able = std::env::var_os("TERM").is_some_and(|kind| kind != "dumb");
        if able && std::io::stderr().is_terminal() { Self::Bar } else { Self::Raw }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| format!("‘{text}’ is no log format: bar, raw and internal-json are"))
    }
}

/// A reporter on standard error. `format` is what was asked for, or nothing for the default; messages above `level` are left
/// out. A picture cannot be drawn where there is no terminal: then lines are written.
pub fn on_stderr(format: Option<LogFormat>, level: Level) -> Box<dyn Reporter> {
    let terminal = std::io::stderr().is_terminal();
    // https://no-color.org: set and not empty.
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match format.unwrap_or_else(LogFormat::for_stderr) {
        LogFormat::Bar if terminal => {
            let target = indicatif::ProgressDrawTarget::stderr();
            Box::new(Serialised::new(bar::Bar::new(target, level, colours)))
        }
        LogFormat::Bar | LogFormat::Raw => raw_to(std::io::stderr(), level, colours),
        LogFormat::InternalJson => internal_json_to(std::io::stderr(), level),
    }
}

/// Plain lines into `sink`, each by one write.
pub fn raw_to(sink: impl Write + Send + 'static, level: Level, colours: bool) -> Box<dyn Reporter> {
    Box::new(Serialised::new(raw::Raw::new(sink, level, colours)))
}

/// Nix's lines of JSON into `sink`, each by one write.
pub fn internal_json_to(sink: impl Write + Send + 'static, level: Level) -> Box<dyn Reporter> {
    Box::new(Serialised::new(internal_json::InternalJson::new(sink, level)))
}

/// What shows events, one at a time, log lines whole.
pub(crate) trait View: Send {
    /// Anything but [`Event::Log`].
    fn event(&mut self, event: &Event<'_>);
    /// A line of a builder's log without its end, not filtered.
    fn line(&mut self, id: BuildId, line: &[u8]);
}

/// Tells a view of our own, whose messages go elsewhere than to standard error.
pub(crate) fn to_view<'a>(view: impl View + 'a) -> impl Reporter + 'a {
    Serialised::new(view)
}

/// Makes a reporter of a view: one thread at a time, and lines of pieces.
struct Serialised<V>(Mutex<Inner<V>>);

struct Inner<V> {
    view: V,
    splitters: HashMap<BuildId, LineSplitter>,
}

impl<V: View> Serialised<V> {
    fn new(view: V) -> Self {
        Self(Mutex::new(Inner { view, splitters: HashMap::new() }))
    }
}

impl<V: View> Reporter for Serialised<V> {
    fn report(&self, event: Event<'_>) {
        // A thread that died while it was telling something leaves at worst a line untold.
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { view, splitters } = &mut *inner;
        match event {
            Event::Log { id, bytes } => {
                splitters.entry(id).or_default().feed(bytes, |line| tell_line(view, id, line));
            }
            Event::Finished { id, .. } => {
                if let Some(mut splitter) = splitters.remove(&id) {
                    splitter.finish(|line| tell_line(view, id, line));
                }
                view.event(&event);
            }
            Event::AllDone => {
                for (id, mut splitter) in splitters.drain() {
                    splitter.finish(|line| tell_line(view, id, line));
                }
                view.event(&event);
            }
            _ => view.event(&event),
        }
    }
}

fn tell_line(view: &mut impl View, id: BuildId, line: &[u8]) {
    match message::parse(line) {
        None => view.line(id, line),
        Some(BuilderMessage::Phase(phase)) => view.event(&Event::Phase { id, phase: &phase }),
        Some(BuilderMessage::Text(text)) => view.line(id, text.as_bytes()),
        Some(BuilderMessage::Ignored) => {}
    }
}

/// A foreign name on one line without anything that a terminal obeys.
pub(crate) fn plain(text: &str) -> String {
    escapes::filter_line(text.as_bytes(), false)
}

/// A duration as short as it can be said: `7s`, `2m03s`, `1h02m`.
fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// The lines that tell of a failure, in Nix's form.
fn failure_lines(drv_path: &str, failure: &Failure, colours: bool) -> Vec<String> {
    let mut lines = vec![format!("error: builder for '{}' {}", plain(drv_path), plain(&failure.reason))];
    if !failure.log_tail.is_empty() {
        lines[0].push(';');
        lines.push(format!("       last {} log lines:", failure.log_tail.len()));
        let tail = failure.log_tail.iter().map(|line| format!("       > {}", escapes::filter_line(line, colours)));
        lines.extend(tail);
    }
    lines.extend(failure.advice.iter().map(|line| format!("       {}", plain(line))));
    lines
}

#[cfg(test)]
mod tests;
