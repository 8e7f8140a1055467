//! Stages that a build makes: by a process of their own, since rooms are entered by a program with one thread alone.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anchorhold_sandbox::outcome::exit_status;
use anchorhold_sandbox::sys::tied;
use anchorhold_vmm::failure::{Failure, FailureClass};
use anchorhold_vmm::profile::Profile;
use anchorhold_vmm::stages::Stage;
use serde::{Deserialize, Serialize};

use super::{Listener, Missing, Stages, Why, inside};
use crate::machines::Machines;

/// The word behind [`inside::SUBCOMMAND`] that makes what its standard input wants.
pub const MAKE: &str = "make";

/// What that process is told.
#[derive(Debug, Serialize, Deserialize)]
struct Wanted {
    machines: Machines,
    profile: Profile,
    /// Of the guest: memory in MiB, and processors.
    size: (u64, u32),
}

/// A line of what it tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Said {
    /// For people.
    Line(String),
    /// There is none, and this is why.
    Failed(Failure),
}

fn broken(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureClass::SaveFailed, format!("{what}: {error}"))
}

/// Has the stages made that are not there yet. What happens is told a line at a time.
///
/// # Errors
/// Why there is none.
pub fn make(
    machines: &Machines,
    profile: &Profile,
    size: (u64, u32),
    tell: &mut dyn FnMut(&str),
) -> Result<(), Failure> {
    let failed = |error: io::Error| broken("the process that saves machines", &error);
    let wanted = Wanted { machines: machines.clone(), profile: profile.clone(), size };
    let wanted = serde_json::to_vec(&wanted).map_err(|error| failed(error.into()))?;
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args([inside::SUBCOMMAND, MAKE]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    // It goes with whoever wanted it.
    tied::tie(&mut command, Vec::new());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not listen has ended, and its status tells of it.
        let _ = input.write_all(&wanted);
    }
    let mut failure = None;
    for line in child.stdout.take().into_iter().flat_map(|output| BufReader::new(output).lines()) {
        match serde_json::from_str(&line.map_err(failed)?) {
            Ok(Said::Line(line)) => tell(&line),
            Ok(Said::Failed(why)) => failure = Some(why),
            Err(error) => tell(&format!("what saves machines said something strange: {error}")),
        }
    }
    let status = child.wait().map_err(failed)?;
    match failure {
        Some(failure) => Err(failure),
        None if status.success() => Ok(()),
        None => Err(broken("the process that saves machines", &status)),
    }
}

/// Makes what the standard input wants; the exit status.
pub fn serve() -> i32 {
    match wanted() {
        Ok(()) => 0,
        Err(failure) => {
            say(&Said::Failed(failure));
            exit_status::MACHINE
        }
    }
}

fn wanted() -> Result<(), Failure> {
    let wanted: Wanted = serde_json::from_reader(io::stdin()).map_err(|error| broken("what is wanted", &error))?;
    let stages = Stages::of(wanted.machines, &wanted.profile.name, wanted.size)?.with_profile(wanted.profile);
    stages.suspend(Missing::Make, &mut Lines).map(drop)
}

fn say(said: &Said) {
    let mut line = serde_json::to_vec(said).unwrap_or_default();
    line.push(b'\n');
    // Who does not listen any more is gone, and so are we.
    let _ = io::stdout().lock().write_all(&line);
}

/// One line when a stage begins, and one when it is there.
struct Lines;

impl Listener for Lines {
    fn begins(&mut self, stage: Stage, why: Why<'_>, last: Option<Duration>) {
        say(&Said::Line(format!("{}: {}", stage.name(), why.in_words(last))));
    }

    fn step(&mut self, _: &str) {}

    fn line(&mut self, _: &str) {}

    fn done(&mut self, stage: Stage, took: Duration) {
        say(&Said::Line(format!("{}: done in {:.1} s", stage.name(), took.as_secs_f32())));
    }
}
