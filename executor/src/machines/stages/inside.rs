//! The payload of a stage's room: makes the stage, or revives a pair; writes down how it went.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anchorhold_sandbox::outcome::exit_status;
use anchorhold_vmm::exchange::Command;
use anchorhold_vmm::failure::{Failure, FailureClass};
use anchorhold_vmm::linux::End;
use anchorhold_vmm::machine::Run;
use anchorhold_vmm::pair::job::{self, CONSOLES, DOOR, Job, SOCKETS, Topology};
use anchorhold_vmm::pair::{Keys, Limits, PairRun, PairSpec};
use anchorhold_vmm::qemu::Installed;
use anchorhold_vmm::stages::{self, InstallSpec, Told};
use anchorhold_vmm::visitors::Visitors;
use serde::{Deserialize, Serialize};

use crate::machines::supervisor::{REPORT, Report, hand_on};
use crate::machines::typing::Typing;
use crate::machines::{COMMAND, ORDER, room};

/// The hidden subcommand that is the payload of a stage's room.
pub const SUBCOMMAND: &str = "stage";

/// The guest's disk, of a pair that was revived.
const OVERLAY: &str = "/tmp/disk.qcow2";
/// How often there is a look at what the consoles say, for whoever watches.
const LOOK: Duration = Duration::from_millis(500);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Order {
    /// QEMU, as it was found outside.
    pub qemu: Installed,
    /// The task.
    pub task: Task,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Task {
    /// The first stage.
    Install {
        /// The installation.
        spec: Box<InstallSpec>,
        /// Where it is written.
        directory: PathBuf,
    },
    /// The second.
    Suspend {
        /// The machines.
        pair: Box<PairSpec>,
        /// Which of them there are.
        topology: Topology,
        /// The file of the key.
        key: PathBuf,
        /// The file of the guest's host key.
        known_hosts: PathBuf,
        /// How long things may take.
        limits: Limits,
        /// The disk of the first stage.
        installed_disk: PathBuf,
        /// Where it is written.
        directory: PathBuf,
    },
    /// The third, and a command.
    Revive {
        /// The pair and how the command is run.
        job: Box<Job>,
        /// The saved pair.
        directory: PathBuf,
        /// The disk that its key knows.
        base: PathBuf,
        /// A session for a person instead of the command.
        session: bool,
    },
}

impl Task {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Install { .. } => "install",
            Self::Suspend { .. } => "suspend",
            Self::Revive { .. } => "revive",
        }
    }
}

/// A line to whoever waits outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Words {
    /// What is done now.
    Step(String),
    /// What a machine said.
    Line(String),
    /// It goes on.
    Still,
}

fn say(words: &Words) {
    let mut line = serde_json::to_vec(words).unwrap_or_default();
    line.push(b'\n');
    let mut out = io::stdout().lock();
    // Whoever does not listen any more is not waited for.
    let _ = out.write_all(&line).and_then(|()| out.flush());
}

fn tell(told: Told<'_>) {
    match told {
        Told::Step(what) => say(&Words::Step(what.to_owned())),
        Told::Line(line) => say(&Words::Line(line.to_owned())),
    }
}

/// Does the order in the room; the exit status.
pub fn serve() -> i32 {
    let report = work().unwrap_or_else(Report::Failed);
    let text = serde_json::to_vec_pretty(&report).unwrap_or_default();
    if let Err(error) = fs::write(Path::new(room::RESULT).join(REPORT), text) {
        eprintln!("anchorhold: writing {}/{REPORT}: {error}", room::RESULT);
        return exit_status::MACHINE;
    }
    report.exit_status()
}

fn broken(what: &str, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureClass::NoKernel, format!("{what}: {why}"))
}

fn work() -> Result<Report, Failure> {
    let place = Path::new(room::ORDER);
    let order = fs::read(place.join(ORDER)).map_err(|error| broken(ORDER, &error))?;
    let order: Order = serde_json::from_slice(&order).map_err(|error| broken(ORDER, &error))?;
    let command = fs::read(place.join(COMMAND)).map_err(|error| broken(COMMAND, &error))?;
    let command = Command::decode(&command).map_err(|error| broken(COMMAND, &error))?;
    let installed = order.qemu;
    let done = |status, accelerator: &dyn std::fmt::Display| Report::Ended {
        status,
        qemu: installed.version.to_string(),
        kernel: String::new(),
        accelerator: accelerator.to_string(),
        ready_after: 0,
    };
    match order.task {
        Task::Install { spec, directory } => {
            let watching = Watching::begin();
            stages::install(&installed, &spec, &directory, run(0)?, &mut tell)?;
            drop(watching);
            Ok(done(0, &spec.accelerator))
        }
        Task::Suspend { pair, topology, key, known_hosts, limits, installed_disk, directory } => {
            let keys = keys(&key, &known_hosts)?;
            let watching = Watching::begin();
            let run = runs(&topology)?;
            let parts = stages::Parts { installed: &installed, topology: &topology, keys: &keys, run, limits };
            stages::suspend(parts, &pair, &installed_disk, &directory, &mut tell)?;
            drop(watching);
            Ok(done(0, &pair.accelerator))
        }
        Task::Revive { job, directory, base, session } => {
            let accelerator = job.pair.accelerator;
            let status = revive(&installed, &job, &directory, &base, session, &command)?;
            Ok(match status {
                End::Status(status) => done(status.into(), &accelerator),
                End::Signal(signal) => done(128 + i32::try_from(signal).unwrap_or(0), &accelerator),
                End::NotStarted(why) => Report::NotStarted { why },
            })
        }
    }
}

fn keys(key: &Path, known_hosts: &Path) -> Result<Keys, Failure> {
    let read = |path: &Path| fs::read(path).map_err(|error| broken(&path.display().to_string(), &error));
    Ok(Keys { key: read(key)?, known_hosts: read(known_hosts)? })
}

/// All machines of a topology.
fn runs(topology: &Topology) -> Result<PairRun, Failure> {
    let controller = if *topology == Topology::Pair { run(1)? } else { Run::default() };
    Ok(PairRun { guest: run(0)?, controller, ..PairRun::default() })
}

/// One of two machines: the guest or the only one, or the controller.
fn run(number: usize) -> Result<Run, Failure> {
    let result = Path::new(room::RESULT);
    let socket = result.join(SOCKETS[number]);
    Ok(Run {
        console_log: Some(result.join(CONSOLES[number])),
        screenshot: (number == 0).then(|| result.join("guest.png")),
        visitors: Some(Visitors::at(&socket).map_err(|error| broken(&socket.display().to_string(), &error))?),
        ..Run::default()
    })
}

fn revive(
    installed: &Installed,
    job: &Job,
    directory: &Path,
    base: &Path,
    session: bool,
    command: &Command,
) -> Result<End, Failure> {
    let keys = keys(&job.key, &job.known_hosts)?;
    let behind = directory.join(stages::DISK);
    let pair = stages::overlay(&job.pair, Path::new(OVERLAY), &behind, base)?;
    let (topology, run) = (&job.topology, runs(&job.topology)?);
    let parts = stages::Parts { installed, topology, keys: &keys, run, limits: job.limits };
    let mut standing = stages::revive(parts, &pair, directory)?;
    let door = Path::new(room::RESULT).join(DOOR);
    if session {
        if *topology == Topology::Pair {
            Typing::begin(&Path::new(room::RESULT).join(SOCKETS[1]))?;
        }
        return job::session(&mut *standing, job, Some(&door));
    }
    job::in_standing(&mut *standing, job, command, Some(&door), &mut hand_on)
}

/// Tells the last line of the guest's console from time to time, in a thread of its own.
struct Watching {
    is_over: std::sync::Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watching {
    fn begin() -> Self {
        let is_over = std::sync::Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let thread = std::thread::spawn(move || {
            let mut last = String::new();
            while !over.load(Ordering::Relaxed) {
                std::thread::park_timeout(LOOK);
                if let Some(line) = last_line(&Path::new(room::RESULT).join(CONSOLES[0]))
                    && line != last
                {
                    say(&Words::Line(line.clone()));
                    last = line;
                } else {
                    say(&Words::Still);
                }
            }
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn last_line(log: &Path) -> Option<String> {
    use std::os::unix::fs::FileExt;
    const END: u64 = 2048;
    let file = fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    let mut end = vec![0; usize::try_from(length.min(END)).ok()?];
    let from = length - end.len() as u64;
    file.read_exact_at(&mut end, from).ok()?;
    let mut lines = anchorhold_vmm::lines::Lines::default();
    lines.feed(&end).into_iter().rfind(|line| !line.trim().is_empty())
}
