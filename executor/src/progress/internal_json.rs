//! Nix's own lines of JSON, which nix-output-monitor and others read.
//!
//! The shapes are those that Nix 2.8 writes with `--log-format internal-json` (`JSONLogger` in `src/libutil/logging.cc`).

use std::collections::HashMap;
use std::io::Write;

use serde_json::{Value, json};

use super::{BuildId, Ending, Event, Level, View, escapes, failure_lines, plain};

const ACTIVITY_REALISE: u64 = 102;
const ACTIVITY_BUILDS: u64 = 104;
const ACTIVITY_BUILD: u64 = 105;
const RESULT_LOG_LINE: u64 = 101;
const RESULT_SET_PHASE: u64 = 104;
const RESULT_PROGRESS: u64 = 105;
const RESULT_SET_EXPECTED: u64 = 106;

/// Writes one line for each event.
pub struct InternalJson<W> {
    sink: W,
    level: Level,
    next: u64,
    /// The two activities around all builds, while they are open.
    frame: Option<(u64, u64)>,
    builds: HashMap<BuildId, Known>,
    done: u64,
    running: u64,
    failed: u64,
    /// Builds that can still end well, and those that did.
    expected: u64,
}

struct Known {
    drv_path: String,
    activity: Option<u64>,
}

impl<W: Write + Send> InternalJson<W> {
    pub fn new(sink: W, level: Level) -> Self {
        Self {
            sink,
            level,
            // As in Nix: the numbers of two processes whose lines meet in one stream differ.
            next: u64::from(std::process::id()) << 32,
            frame: None,
            builds: HashMap::new(),
            done: 0,
            running: 0,
            failed: 0,
            expected: 0,
        }
    }

    fn write(&mut self, value: &Value) {
        // There is nobody to tell that nobody can be told.
        let _ = self.sink.write_all(format!("@nix {value}\n").as_bytes());
    }

    fn start(&mut self, kind: u64, level: Level, text: &str, fields: Option<Value>) -> u64 {
        let id = self.next;
        self.next += 1;
        let mut value = json!({"action": "start", "id": id, "level": level as u8, "text": text, "type": kind});
        if let Some(fields) = fields {
            value["fields"] = fields;
        }
        self.write(&value);
        id
    }

    fn stop(&mut self, id: u64) {
        self.write(&json!({"action": "stop", "id": id}));
    }

    fn result(&mut self, id: u64, kind: u64, fields: &Value) {
        self.write(&json!({"action": "result", "fields": fields, "id": id, "type": kind}));
    }

    fn message(&mut self, level: Level, text: &str) {
        let mut value = json!({"action": "msg", "level": level as u8, "msg": text});
        if level == Level::Error {
            for place in ["column", "file", "line"] {
                value[place] = Value::Null;
            }
            value["raw_msg"] = text.strip_prefix("error: ").unwrap_or(text).into();
        }
        self.write(&value);
    }

    fn frame(&mut self) -> (u64, u64) {
        if let Some(frame) = self.frame {
            return frame;
        }
        let realise = self.start(ACTIVITY_REALISE, Level::Error, "", None);
        let builds = self.start(ACTIVITY_BUILDS, Level::Error, "", None);
        self.frame = Some((realise, builds));
        (realise, builds)
    }

    fn progress(&mut self) {
        let (realise, builds) = self.frame();
        let fields = json!([self.done, self.expected, self.running, self.failed]);
        self.result(builds, RESULT_PROGRESS, &fields);
        self.result(realise, RESULT_SET_EXPECTED, &json!([ACTIVITY_BUILD, self.expected]));
    }

    fn know(&mut self, id: BuildId, drv_path: &str) {
        if self.builds.insert(id, Known { drv_path: plain(drv_path), activity: None }).is_none() {
            self.expected += 1;
        }
    }
}

impl<W: Write + Send> View for InternalJson<W> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::GraphKnown { builds } => {
                for build in *builds {
                    self.know(build.id, &build.drv_path);
                }
                self.progress();
            }
            Event::Queued(build) => {
                self.know(build.id, &build.drv_path);
                self.progress();
            }
            Event::Started(build) => {
                self.know(build.id, &build.drv_path);
                self.frame();
                let path = plain(&build.drv_path);
                // The path, the remote machine (none), and two numbers that are 1 since Nix builds no derivation twice.
                let fields = json!([path, "", 1, 1]);
                let activity = self.start(ACTIVITY_BUILD, Level::Info, &format!("building '{path}'"), Some(fields));
                self.builds.insert(build.id, Known { drv_path: path, activity: Some(activity) });
                self.running += 1;
                self.progress();
            }
            Event::Phase { id, phase } => {
                if let Some(activity) = self.builds.get(id).and_then(|known| known.activity) {
                    self.result(activity, RESULT_SET_PHASE, &json!([phase]));
                }
            }
            Event::Finished { id, ending, .. } => {
                let Some(known) = self.builds.remove(id) else { return };
                if known.activity.is_some() {
                    self.running -= 1;
                }
                match ending {
                    Ending::Done => self.done += 1,
                    Ending::Failed(failure) => {
                        self.failed += 1;
                        self.expected -= 1;
                        self.message(Level::Error, &failure_lines(&known.drv_path, failure, true).join("\n"));
                    }
                    Ending::DependencyFailed | Ending::Cancelled => self.expected -= 1,
                }
                self.progress();
                if let Some(activity) = known.activity {
                    self.stop(activity);
                }
            }
            Event::WaitingForLock { path } => {
                self.message(Level::Info, &format!("waiting for lock on '{}'", plain(path)));
            }
            Event::Message { level, text } => {
                if *level <= self.level {
                    let text = escapes::filter(text.as_bytes(), false);
                    let head = if *level == Level::Error { "error: " } else { "" };
                    self.message(*level, &format!("{head}{text}"));
                }
            }
            Event::AllDone => {
                let open: Vec<u64> = self.builds.drain().filter_map(|(_, known)| known.activity).collect();
                for activity in open {
                    self.stop(activity);
                }
                if let Some((realise, builds)) = self.frame.take() {
                    self.stop(builds);
                    self.stop(realise);
                }
            }
            Event::Log { .. } => {}
        }
    }

    fn line(&mut self, id: BuildId, line: &[u8]) {
        if let Some(activity) = self.builds.get(&id).and_then(|known| known.activity) {
            // Readers put it on a terminal as it is.
            self.result(activity, RESULT_LOG_LINE, &json!([escapes::filter_line(line, true)]));
        }
    }
}
