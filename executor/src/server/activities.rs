//! Builds as a client sees them: activities, and results that belong to them.
//!
//! The kinds and the order of their fields are those of `src/libutil/logging.hh` of Nix.

use std::collections::HashMap;
use std::io::Write;

use super::channel::{Channel, Field};
use crate::progress::{BuildId, Ending, Event, Level, View, escapes, plain};

const REALISE: u64 = 102;
const BUILDS: u64 = 104;
const BUILD: u64 = 105;
const LOG_LINE: u64 = 101;
const SET_PHASE: u64 = 104;
const PROGRESS: u64 = 105;
const SET_EXPECTED: u64 = 106;

/// Tells a client of the worker protocol.
pub(crate) struct Activities<'a> {
    channel: &'a Channel,
    /// The two activities around all builds, while they are open.
    frame: Option<(u64, u64)>,
    running: HashMap<BuildId, u64>,
    done: u64,
    expected: u64,
    failed: u64,
}

impl<'a> Activities<'a> {
    pub fn new(channel: &'a Channel) -> Self {
        Self { channel, frame: None, running: HashMap::new(), done: 0, expected: 0, failed: 0 }
    }

    fn frame(&mut self) -> (u64, u64) {
        *self.frame.get_or_insert_with(|| {
            let realise = self.channel.start(REALISE, Level::Error as u64, "", &[], 0);
            (realise, self.channel.start(BUILDS, Level::Error as u64, "", &[], realise))
        })
    }

    fn progress(&mut self) {
        let (realise, builds) = self.frame();
        let running = self.running.len() as u64;
        let numbers = [self.done, self.expected, running, self.failed].map(Field::Number);
        self.channel.result(builds, PROGRESS, &numbers);
        self.channel.result(realise, SET_EXPECTED, &[Field::Number(BUILD), Field::Number(self.expected)]);
    }
}

impl View for Activities<'_> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::GraphKnown { builds } => {
                self.expected += builds.len() as u64;
                self.progress();
            }
            Event::Queued(_) => {
                self.expected += 1;
                self.progress();
            }
            Event::Started(build) => {
                let (_, builds) = self.frame();
                let path = plain(&build.drv_path);
                // The machine, which is this one, and two numbers that are 1 since no derivation is built twice.
                let fields = [Field::Text(&path), Field::Text(""), Field::Number(1), Field::Number(1)];
                let text = format!("building '{path}'");
                let activity = self.channel.start(BUILD, Level::Info as u64, &text, &fields, builds);
                self.running.insert(build.id, activity);
                self.progress();
            }
            Event::Phase { id, phase } => {
                if let Some(activity) = self.running.get(id) {
                    self.channel.result(*activity, SET_PHASE, &[Field::Text(phase)]);
                }
            }
            Event::Finished { id, ending, .. } => {
                let activity = self.running.remove(id);
                match ending {
                    Ending::Done => self.done += 1,
                    Ending::Failed(_) => self.failed += 1,
                    Ending::DependencyFailed | Ending::Cancelled => self.expected = self.expected.saturating_sub(1),
                }
                self.progress();
                if let Some(activity) = activity {
                    self.channel.stop(activity);
                }
            }
            Event::WaitingForLock { path } => self.channel.note(&plain(path)),
            Event::Message { level, text } if *level <= Level::Notice => {
                self.channel.note(&escapes::filter(text.as_bytes(), false));
            }
            Event::Message { .. } | Event::Log { .. } => {}
            Event::AllDone => {
                for (_, activity) in self.running.drain() {
                    self.channel.stop(activity);
                }
                if let Some((realise, builds)) = self.frame.take() {
                    self.channel.stop(builds);
                    self.channel.stop(realise);
                }
            }
        }
    }

    fn line(&mut self, id: BuildId, line: &[u8]) {
        if let Some(activity) = self.running.get(&id) {
            // A client puts it on a terminal as it is.
            self.channel.result(*activity, LOG_LINE, &[Field::Text(&escapes::filter_line(line, true))]);
        }
    }
}

/// Writes log lines and nothing else: what a client of the serve protocol takes for the log.
pub(super) struct Lines<W>(pub W);

impl<W: Write + Send> View for Lines<W> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::WaitingForLock { path } => self.line(BuildId(0), path.as_bytes()),
            Event::Message { level, text } if *level <= Level::Warn => self.line(BuildId(0), text.as_bytes()),
            _ => {}
        }
    }

    fn line(&mut self, _: BuildId, line: &[u8]) {
        let line = format!("{}\n", escapes::filter_line(line, true));
        // There is nobody to tell that nobody can be told.
        let _ = self.0.write_all(line.as_bytes());
    }
}
