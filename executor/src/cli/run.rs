//! `anchorhold run`: a command in a room.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anchorhold_sandbox::launcher::{Fault, Options, Sink, Stream};
use anchorhold_sandbox::outcome::{End, exit_status};
use anchorhold_sandbox::{Error, Launcher, Outcome, Plan};
use clap::Args;

use super::room_options::RoomOptions;
use super::{Subcommand, command, complain, exit_code, options};

pub const SUBCOMMAND: Subcommand =
    Subcommand { name: "run", command: || command::<RunOptions>("run", "Run a command in a sealed room"), run };

#[derive(Debug, Args)]
struct RunOptions {
    #[command(flatten)]
    room: RoomOptions,

    /// Write the seal, what the kernel showed of each layer, to this file as JSON
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    seal: Option<PathBuf>,

    /// Write how the room ended and what it used to this file as JSON
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    result: Option<PathBuf>,

    /// Print where the time of making the room went
    #[arg(long, help_heading = "Reports")]
    timing: bool,

    /// Make a step of the plan fail, to see that the command then never starts [STEP:ERRNO]
    #[arg(long, value_name = "FAULT", hide = true, value_parser = fault)]
    inject_fault: Option<Fault>,
}

fn fault(text: &str) -> Result<Fault, String> {
    let wrong = || "write STEP:ERRNO, for example 12:28".to_owned();
    let (step, errno) = text.split_once(':').ok_or_else(wrong)?;
    let step = step.parse().map_err(|_| wrong())?;
    let errno = anchorhold_sandbox::error::errno_from_number(errno.parse().map_err(|_| wrong())?);
    Ok(Fault { step, errno })
}

/// The payload's streams on our own.
#[derive(Default)]
pub(super) struct OwnStreams {
    /// Whoever read one of them has gone.
    pub(super) reader_gone: bool,
}

impl Sink for OwnStreams {
    fn output(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let done = match stream {
            Stream::Output => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Stream::Error => io::stderr().lock().write_all(bytes),
        };
        // The command is not to blame, but what it writes from now on has no reader.
        self.reader_gone |= done.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
        done
    }
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    let options: RunOptions = options(matches);
    let started = std::time::Instant::now();
    let room = match options.room.room() {
        Ok(room) => room,
        Err(why) => {
            complain(why);
            return exit_code(exit_status::NOT_STARTED);
        }
    };
    let host = options.room.host(&room);
    let plan = match Plan::compile(&room, &host) {
        Ok(plan) => plan,
        Err(refusal) => {
            complain(refusal);
            return exit_code(exit_status::NOT_STARTED);
        }
    };
    // When the command has run it is too late to refuse.
    let mut reports = Vec::new();
    for file in [&options.seal, &options.result].into_iter().flatten() {
        match Report::open(file) {
            Ok(report) => reports.push(report),
            Err(error) => {
                complain(format_args!("cannot write {}: {error}", file.display()));
                reports.iter().for_each(Report::take_back);
                return exit_code(exit_status::NOT_STARTED);
            }
        }
    }
    for layer in &room.without {
        complain(format_args!("warning: without {layer}: open is {}", layer.left_open()));
    }
    for weakening in &plan.weakenings {
        complain(format_args!("warning: {} is weaker: {}", weakening.layer, weakening.what));
    }
    let planned = started.elapsed();
    let launcher = Launcher::new(&plan, Options { timing: options.timing, fault: options.inject_fault });
    let mut streams = OwnStreams::default();
    let outcome = match launcher.run(&mut streams) {
        Ok(outcome) => outcome,
        // As any command of a pipeline whose reader has had enough: without a word, as if by SIGPIPE.
        Err(_) if streams.reader_gone => {
            reports.iter().for_each(Report::take_back);
            return exit_code(128 + 13);
        }
        Err(error) => {
            complain(&error);
            reports.iter().for_each(Report::take_back);
            return exit_code(status_of(&error));
        }
    };
    if options.timing {
        eprintln!("{:>9} µs  options, host, plan", planned.as_micros());
        for timing in &outcome.timings {
            eprintln!("{:>9} µs  {}", timing.microseconds, timing.what);
        }
    }
    explain_end(&outcome, &plan);
    if outcome.end != End::Exited(0) {
        explain_refusals(&outcome);
    }
    for (file, report) in [
        (&options.seal, serde_json::to_string_pretty(&outcome.seal)),
        (&options.result, serde_json::to_string_pretty(&outcome)),
    ] {
        if let Some(file) = file
            && let Err(error) = report.map_err(io::Error::other).and_then(|text| write_report(file, &text))
        {
            complain(format_args!("cannot write {}: {error}", file.display()));
            return exit_code(exit_status::NOT_STARTED);
        }
    }
    exit_code(outcome.end.exit_status())
}

/// A file that a report will be written to.
struct Report<'a> {
    path: &'a Path,
    is_new: bool,
}

impl<'a> Report<'a> {
    /// Makes sure that it can be written.
    fn open(path: &'a Path) -> io::Result<Self> {
        let mut options = std::fs::OpenOptions::new();
        let is_new = match options.write(true).create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                options.create_new(false).open(path)?;
                false
            }
            opened => opened.map(|_| true)?,
        };
        Ok(Self { path, is_new })
    }

    /// Leaves no empty file of ours when there is nothing to report.
    fn take_back(&self) {
        if self.is_new {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

fn write_report(file: &Path, text: &str) -> io::Result<()> {
    std::fs::write(file, format!("{text}\n"))
}

/// One line for an end that is not the command's own doing.
fn explain_end(outcome: &Outcome, plan: &Plan) {
    let limits = &plan.room.limits;
    match (outcome.end, limits.time, limits.silence, limits.output, limits.memory) {
        (End::Time, Some(limit), ..) => complain(format_args!("the command was ended: it ran longer than {limit}")),
        (End::Silence, _, Some(limit), ..) => {
            complain(format_args!("the command was ended: it wrote nothing for {limit}"));
        }
        (End::Output, _, _, Some(limit), _) => {
            complain(format_args!("the command was ended: it wrote more than {limit} of output"));
        }
        (End::Memory, _, _, _, Some(limit)) => {
            complain(format_args!("the command was ended: the room used more memory than {limit}"));
        }
        _ => {}
    }
}

/// What the filter refused, for a command that failed: it may have failed of that.
pub(super) fn explain_refusals(outcome: &Outcome) {
    const SHOWN: usize = 5;
    for refused in outcome.refused.iter().take(SHOWN) {
        match &refused.hint {
            Some(hint) => complain(format_args!("the room refused: {refused} ({hint})")),
            None => complain(format_args!("the room refused: {refused}")),
        }
    }
    let more = outcome.refused.len().saturating_sub(SHOWN) as u64 + outcome.refused_others;
    if more > 0 {
        complain(format_args!("the room refused {more} more kinds of calls: --result FILE lists them"));
    }
}

pub(super) fn status_of(error: &Error) -> i32 {
    match error {
        Error::Exec { errno, .. } if *errno as i32 == 2 => exit_status::NOT_FOUND,
        Error::Exec { .. } => exit_status::NOT_EXECUTABLE,
        Error::Interrupted { signal } => 128 + signal,
        _ => exit_status::NOT_STARTED,
    }
}
