//! The live picture on a terminal.
//!
//! Events change the picture; a thread of its own draws it some times a second, so that a builder that writes a million
//! lines pays for none of them. What is to stay, a line for each build that has ended, is written above it at once.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::tree::Tree;
use super::{BuildId, Ending, Event, Level, View, escapes, failure_lines, plain, short};

/// Between two drawings.
const INTERVAL: Duration = Duration::from_millis(100);

/// Most lines of the picture, however high the terminal is.
const MAX_LINES: usize = 24;

/// The picture and the thread that draws it.
pub struct Bar {
    shared: Arc<Shared>,
    painter: Option<JoinHandle<()>>,
    drv_paths: std::collections::HashMap<BuildId, String>,
    level: Level,
    colours: bool,
}

struct Shared {
    canvas: Mutex<Canvas>,
    changed: Condvar,
}

struct Canvas {
    tree: Tree,
    terminal: MultiProgress,
    /// One for each line of the picture.
    lines: Vec<ProgressBar>,
    style: ProgressStyle,
    over: bool,
    height: Box<dyn Fn() -> usize + Send>,
}

impl Shared {
    fn canvas(&self) -> MutexGuard<'_, Canvas> {
        self.canvas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Canvas {
    fn draw(&mut self) {
        // One line is left for what is typed, and one for the cursor.
        let height = (self.height)().saturating_sub(2).clamp(1, MAX_LINES);
        let picture = self.tree.draw(height, Instant::now());
        while self.lines.len() > picture.len() {
            if let Some(line) = self.lines.pop() {
                line.finish_and_clear();
                self.terminal.remove(&line);
            }
        }
        while self.lines.len() < picture.len() {
            let line = ProgressBar::no_length().with_style(self.style.clone());
            self.lines.push(self.terminal.add(line));
        }
        for (line, text) in self.lines.iter().zip(picture) {
            line.set_message(text);
            line.tick();
        }
    }

    fn print(&self, text: &str) {
        // There is nobody to tell that nobody can be told.
        let _ = self.terminal.println(text);
    }

    fn end(&mut self) {
        self.over = true;
        // All lines at once; taken away one by one, each would draw the rest again.
        let _ = self.terminal.clear();
        self.terminal.set_draw_target(ProgressDrawTarget::hidden());
        self.lines.clear();
    }
}

impl Bar {
    /// A picture on `target`, for a terminal on standard error.
    pub fn new(target: ProgressDrawTarget, level: Level, colours: bool) -> Self {
        // Asked for at every drawing: the window may have another size by then.
        let height = || rustix::termios::tcgetwinsize(std::io::stderr()).map_or(24, |size| usize::from(size.ws_row));
        Self::with_height(target, level, colours, Box::new(height))
    }

    /// A picture on `target` that has as many lines as `height` says.
    pub fn with_height(
        target: ProgressDrawTarget,
        level: Level,
        colours: bool,
        height: Box<dyn Fn() -> usize + Send>,
    ) -> Self {
        let canvas = Canvas {
            tree: Tree::new(Instant::now(), colours),
            terminal: MultiProgress::with_draw_target(target),
            lines: Vec::new(),
            // Cut at the terminal's width as it is when the line is drawn.
            style: ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
            over: false,
            height,
        };
        let shared = Arc::new(Shared { canvas: Mutex::new(canvas), changed: Condvar::new() });
        let painted = Arc::clone(&shared);
        // Without a thread there is no live picture, but what is to stay is still written.
        let painter = std::thread::Builder::new().name("progress".into()).spawn(move || paint(&painted)).ok();
        Self { shared, painter, drv_paths: std::collections::HashMap::new(), level, colours }
    }

    fn end(&mut self) {
        self.shared.canvas().end();
        self.shared.changed.notify_all();
        if let Some(painter) = self.painter.take() {
            let _ = painter.join();
        }
    }
}

fn paint(shared: &Shared) {
    let mut canvas = shared.canvas();
    while !canvas.over {
        canvas.draw();
        canvas = shared.changed.wait_timeout(canvas, INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.end();
    }
}

impl View for Bar {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::AllDone = event {
            return self.end();
        }
        let mut canvas = self.shared.canvas();
        match event {
            Event::GraphKnown { builds } => {
                for build in *builds {
                    self.drv_paths.insert(build.id, plain(&build.drv_path));
                    canvas.tree.know(build);
                }
            }
            Event::Queued(build) => {
                self.drv_paths.insert(build.id, plain(&build.drv_path));
                canvas.tree.know(build);
            }
            Event::Started(build) => {
                self.drv_paths.insert(build.id, plain(&build.drv_path));
                canvas.tree.start(build, Instant::now());
            }
            Event::Phase { id, phase } => canvas.tree.phase(*id, phase),
            Event::Finished { id, ending, duration } => {
                let name = canvas.tree.finish(*id, ending).unwrap_or_default();
                let path = self.drv_paths.remove(id).unwrap_or_default();
                let time = short(*duration);
                match ending {
                    Ending::Done => canvas.print(&format!("{} {name} {time}", canvas.tree.paint("32", "✔"))),
                    Ending::Failed(failure) => {
                        let head = canvas.tree.paint("31", "✗");
                        let class = plain(&failure.class);
                        let story = failure_lines(&path, failure, self.colours).join("\n");
                        canvas.print(&format!("{head} {name} {time} {class}\n{story}"));
                    }
                    Ending::DependencyFailed => {
                        canvas.print(&format!("{} {name}: a build that it needs failed", canvas.tree.paint("31", "✗")));
                    }
                    Ending::Cancelled => {}
                }
            }
            Event::WaitingForLock { path } => canvas.print(&format!("waiting for lock on '{}'", plain(path))),
            Event::Message { level, text } if *level <= self.level => {
                let head = match level {
                    Level::Error => canvas.tree.paint("31", "error: "),
                    Level::Warn => canvas.tree.paint("33", "warning: "),
                    _ => String::new(),
                };
                canvas.print(&format!("{head}{}", escapes::filter(text.as_bytes(), false)));
            }
            Event::Message { .. } | Event::Log { .. } | Event::AllDone => {}
        }
    }

    fn line(&mut self, id: BuildId, line: &[u8]) {
        // What a terminal cannot show is not worth filtering.
        const SHOWN: usize = 1024;
        let shown = escapes::filter_line(&line[..line.len().min(SHOWN)], false);
        self.shared.canvas().tree.line(id, shown);
    }
}
