//! What is heard while a stage is made: of its room's supervisor, in words for whoever asked for it.

use std::time::Duration;

use anchorhold_sandbox::launcher::{Sink, Stream};
use anchorhold_vmm::stages::{Difference, Stage};

use super::inside::Words;

/// What is heard while a stage is made.
pub trait Listener {
    /// A stage begins; how long it took the last time.
    fn begins(&mut self, stage: Stage, why: Why<'_>, last: Option<Duration>);
    /// Something begins within it.
    fn step(&mut self, what: &str);
    /// A machine said something.
    fn line(&mut self, line: &str);
    /// It goes on, and nothing was said.
    fn still(&mut self) {}
    /// It is there now.
    fn done(&mut self, stage: Stage, took: Duration);
}

/// Why a stage is made.
#[derive(Debug, Clone, Copy)]
pub enum Why<'a> {
    /// There is none.
    None,
    /// There is one that depends on something else.
    Differs(&'a [Difference]),
    /// It was asked for.
    Again,
}

impl Why<'_> {
    /// For people; `last` is how long it took the last time.
    pub fn in_words(self, last: Option<Duration>) -> String {
        let why = match self {
            Self::None => "is made".to_owned(),
            Self::Again => "is made again".to_owned(),
            Self::Differs(differences) => {
                let fields: Vec<String> = differences.iter().take(3).map(ToString::to_string).collect();
                let more = differences.len().saturating_sub(3);
                let more = if more == 0 { String::new() } else { format!("; and {more} more") };
                format!("is made anew: {}{more}", fields.join("; "))
            }
        };
        let last = last.map(|last| format!(" (last time {:.1} s)", last.as_secs_f32())).unwrap_or_default();
        why + &last
    }
}

/// Hears nothing.
pub(super) struct Silent;

impl Listener for Silent {
    fn begins(&mut self, _: Stage, _: Why<'_>, _: Option<Duration>) {}
    fn step(&mut self, _: &str) {}
    fn line(&mut self, _: &str) {}
    fn done(&mut self, _: Stage, _: Duration) {}
}

/// Makes what a supervisor says into words for a listener.
pub(super) struct Heard<'a> {
    listener: &'a mut dyn Listener,
    begun: Vec<u8>,
}

impl<'a> Heard<'a> {
    pub(super) fn new(listener: &'a mut dyn Listener) -> Self {
        Self { listener, begun: Vec::new() }
    }
}

impl Sink for Heard<'_> {
    fn output(&mut self, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        if stream == Stream::Error {
            // Complaints come with the report too.
            return Ok(());
        }
        self.begun.extend_from_slice(bytes);
        while let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.begun.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(Words::Step(what)) => self.listener.step(&what),
                Ok(Words::Line(line)) => self.listener.line(&line),
                Ok(Words::Still) => self.listener.still(),
                Err(_) => {}
            }
        }
        // A room that never ends a line is not kept in memory.
        self.begun.truncate(1 << 20);
        Ok(())
    }
}
