//! The payload of a machine's room: runs the programs around the guest, and the guest; writes down how it went.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anchorhold_sandbox::outcome::exit_status;
use anchorhold_vmm::exchange;
use anchorhold_vmm::failure::{Failure, FailureClass};
use anchorhold_vmm::linux::{self, Done, End};
use anchorhold_vmm::pair;
use anchorhold_vmm::pair::job::SOCKETS;
use anchorhold_vmm::visitors::Visitors;
use serde::{Deserialize, Serialize};

use super::typing::Typing;
use super::{COMMAND, Hook, ORDER, Order, Work, room};

/// The report's file.
pub const REPORT: &str = "result.json";
/// The console's file.
pub const CONSOLE: &str = "console.log";
/// The longest report that is read: it comes out of the room.
const MAX_REPORT: u64 = 4 << 20;

/// How a machine's room went, as its supervisor tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum Report {
    /// The program in the guest has ended.
    #[serde(rename_all = "kebab-case")]
    Ended {
        /// Its exit status, or 128 and the number of the signal.
        status: i32,
        /// The build of QEMU.
        qemu: String,
        /// The release of the guest's kernel.
        kernel: String,
        /// What executed it.
        accelerator: String,
        /// From the start of QEMU until the agent was ready, in milliseconds.
        ready_after: u64,
    },
    /// The program in the guest was never started.
    NotStarted {
        /// Why.
        why: String,
    },
    /// A program around the guest failed.
    Hook {
        /// Its name.
        name: String,
        /// How it ended.
        how: String,
    },
    /// The machine failed.
    Failed(Failure),
}

impl Report {
    /// The one in this directory, which a room wrote.
    ///
    /// # Errors
    /// That there is none, or what it is instead.
    pub fn read(directory: &Path) -> io::Result<Self> {
        use std::io::Read;
        use std::os::unix::fs::OpenOptionsExt;
        // The room had this directory: what is in the report's place may be anything.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file =
            fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(directory.join(REPORT))?;
        let mut text = Vec::new();
        file.take(MAX_REPORT).read_to_end(&mut text)?;
        serde_json::from_slice(&text).map_err(io::Error::other)
    }

    /// The exit status that a command line gives for it.
    pub fn exit_status(&self) -> i32 {
        match self {
            Self::Ended { status, .. } => *status,
            Self::NotStarted { .. } => exit_status::NOT_EXECUTABLE,
            Self::Hook { .. } | Self::Failed(_) => exit_status::MACHINE,
        }
    }

    /// One line for what is not the program's own doing.
    pub fn complaint(&self) -> Option<String> {
        match self {
            Self::Ended { .. } => None,
            Self::NotStarted { why } => Some(format!("the command could not be started in the guest: {why}")),
            Self::Hook { name, how } => Some(format!("{name} failed: {how}")),
            Self::Failed(failure) => Some(failure.to_string()),
        }
    }
}

/// Does the order in the room; the exit status.
pub fn serve() -> i32 {
    let report = supervise().unwrap_or_else(Report::Failed);
    let text = serde_json::to_vec_pretty(&report).unwrap_or_default();
    if let Err(error) = fs::write(Path::new(room::RESULT).join(REPORT), text) {
        eprintln!("anchorhold: writing {}/{REPORT}: {error}", room::RESULT);
        return exit_status::MACHINE;
    }
    if let Report::Failed(failure) = &report {
        for line in &failure.evidence.console {
            eprintln!("console: {line}");
        }
        for line in &failure.evidence.qemu {
            eprintln!("QEMU: {line}");
        }
    }
    if let Some(complaint) = report.complaint() {
        eprintln!("anchorhold: {complaint}");
    }
    report.exit_status()
}

fn supervise() -> Result<Report, Failure> {
    let broken =
        |what: &str, why: &dyn std::fmt::Display| Failure::new(FailureClass::NoKernel, format!("{what}: {why}"));
    let place = Path::new(room::ORDER);
    let order = fs::read(place.join(ORDER)).map_err(|error| broken(ORDER, &error))?;
    let order: Order = serde_json::from_slice(&order).map_err(|error| broken(ORDER, &error))?;
    let command = fs::read(place.join(COMMAND)).map_err(|error| broken(COMMAND, &error))?;
    let command = exchange::Command::decode(&command).map_err(|error| broken(COMMAND, &error))?;
    for hook in order.hooks.iter().filter(|hook| !hook.after) {
        if let Err(how) = run_hook(hook, None) {
            return Ok(Report::Hook { name: hook.name.clone(), how });
        }
    }
    let report = match in_guest(&order, command) {
        Ok(report) => report,
        Err(failure) => Report::Failed(failure),
    };
    for hook in order.hooks.iter().filter(|hook| hook.after) {
        let status = match &report {
            Report::Ended { status, .. } => status.to_string(),
            // Neither success nor a number that a program could have ended with.
            _ => "none".to_owned(),
        };
        match run_hook(hook, Some(&status)) {
            // What failed first is what is told.
            Err(how) if matches!(report, Report::Ended { status: 0, .. }) => {
                return Ok(Report::Hook { name: hook.name.clone(), how });
            }
            Err(how) => eprintln!("anchorhold: {} failed too: {how}", hook.name),
            Ok(()) => {}
        }
    }
    Ok(report)
}

/// Hands on what a program in a guest says: the room's own streams are its.
pub(super) fn hand_on(is_error: bool, bytes: &[u8]) -> io::Result<()> {
    if is_error {
        return io::stderr().lock().write_all(bytes);
    }
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

fn in_guest(order: &Order, command: exchange::Command) -> Result<Report, Failure> {
    let console = Path::new(room::RESULT).join(CONSOLE);
    let (done, accelerator) = match &order.work {
        Work::Linux(job) => {
            let socket = Path::new(room::RESULT).join(SOCKETS[0]);
            let visitors = Visitors::at(&socket)
                .map_err(|error| Failure::new(FailureClass::QemuRefused, format!("{}: {error}", socket.display())))?;
            if job.terminal {
                Typing::begin(&socket)?;
            }
            let mut told = |words: &str| eprintln!("anchorhold: {words}");
            (linux::run(job, command, &console, visitors, &mut hand_on, &mut told)?, job.accelerator)
        }
        Work::Pair(job) => {
            let place = Path::new(room::RESULT);
            (pair::job::run(job, &command, place, &mut hand_on)?, job.pair.accelerator)
        }
    };
    let Done { end, qemu, kernel, ready_after } = done;
    let status = match end {
        End::Status(status) => status.into(),
        End::Signal(signal) => 128 + i32::try_from(signal).unwrap_or(0),
        End::NotStarted(why) => return Ok(Report::NotStarted { why }),
    };
    Ok(Report::Ended {
        status,
        qemu,
        kernel,
        accelerator: accelerator.to_string(),
        ready_after: u64::try_from(ready_after.as_millis()).unwrap_or(u64::MAX),
    })
}

/// Runs a program in the room; how it ended, if not well.
fn run_hook(hook: &Hook, status: Option<&str>) -> Result<(), String> {
    let Some((program, arguments)) = hook.command.split_first() else { return Err("it is empty".to_owned()) };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    if let Some(status) = status {
        command.env("vmStatus", status);
    }
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(in_words(status)),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

fn in_words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, signal) => format!("it was ended by signal {}", signal.unwrap_or_default()),
    }
}
