//! Plain lines, for files, pipes and simple terminals.

use std::collections::HashMap;
use std::io::Write;

use super::{BuildId, Ending, Event, Level, View, escapes, failure_lines, plain};

/// Writes lines, each with what it belongs to in front, each by one write: lines of several processes do not mix.
pub struct Raw<W> {
    sink: W,
    level: Level,
    colours: bool,
    /// The name and the derivation of what runs.
    builds: HashMap<BuildId, (String, String)>,
}

impl<W: Write + Send> Raw<W> {
    pub fn new(sink: W, level: Level, colours: bool) -> Self {
        Self { sink, level, colours, builds: HashMap::new() }
    }

    fn write(&mut self, mut text: String) {
        text.push('\n');
        // There is nobody to tell that nobody can be told.
        let _ = self.sink.write_all(text.as_bytes());
    }
}

impl<W: Write + Send> View for Raw<W> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::GraphKnown { builds } => {
                for build in *builds {
                    self.builds.insert(build.id, (plain(&build.name), plain(&build.drv_path)));
                }
                let head = match builds.len() {
                    0 => return,
                    1 => "this derivation will be built:".to_owned(),
                    count => format!("these {count} derivations will be built:"),
                };
                let paths = builds.iter().map(|build| format!("\n  {}", plain(&build.drv_path)));
                self.write(head + &paths.collect::<String>());
            }
            Event::Started(build) => {
                let path = plain(&build.drv_path);
                self.write(format!("building '{path}'..."));
                self.builds.insert(build.id, (plain(&build.name), path));
            }
            Event::Finished { id, ending, .. } => {
                let path = self.builds.remove(id).map(|(_, path)| path).unwrap_or_default();
                match ending {
                    Ending::Failed(failure) => self.write(failure_lines(&path, failure, self.colours).join("\n")),
                    Ending::DependencyFailed => {
                        self.write(format!("error: '{path}' was not built: a derivation that it needs failed"));
                    }
                    Ending::Done | Ending::Cancelled => {}
                }
            }
            Event::WaitingForLock { path } => self.write(format!("waiting for lock on '{}'", plain(path))),
            Event::Message { level, text } if *level <= self.level => {
                let head = match level {
                    Level::Error => "error: ",
                    Level::Warn => "warning: ",
                    _ => "",
                };
                self.write(format!("{head}{}", escapes::filter(text.as_bytes(), false)));
            }
            _ => {}
        }
    }

    fn line(&mut self, id: BuildId, line: &[u8]) {
        let name = self.builds.get(&id).map_or("?", |(name, _)| name.as_str());
        let text = format!("{name}> {}", escapes::filter_line(line, self.colours));
        self.write(text);
    }
}
