//! The room's first process, up to the payload's first instruction.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use nix::errno::Errno;

use super::Options;
use super::message::{Answer, Hatch, Report};
use crate::plan::{Place, Plan, Stage};
use crate::site::{Site, Trouble};
use crate::sys::process::{self, exit_now};

/// Does the steps of one place, in order, handing over those of the supervisor that come between; the time of each when asked.
///
/// # Errors
/// The number of the step that failed, and how.
pub fn interpret(
    plan: &Plan,
    place: Place,
    range: std::ops::Range<usize>,
    site: &mut Site<'_>,
    hatch: &Hatch,
    options: Options,
) -> Result<Vec<(usize, u64)>, (usize, Trouble)> {
    let mut timings = Vec::new();
    for number in range {
        let step = &plan.steps[number];
        let begun = options.timing.then(Instant::now);
        let done = match step.place {
            mine if mine == place => do_step(plan, number, site, options),
            Place::Supervisor => hand_over(number, hatch),
            // The other of the two that are at work does it.
            Place::Warden | Place::Room => continue,
        };
        done.map_err(|trouble| (number, trouble))?;
        if let Some(begun) = begun.filter(|_| step.place == place) {
            timings.push((number, begun.elapsed().as_nanos() as u64));
        }
    }
    Ok(timings)
}

/// Does one step, unless it is the one that is to fail.
pub fn do_step(plan: &Plan, number: usize, site: &mut Site<'_>, options: Options) -> Result<(), Trouble> {
    match options.fault {
        Some(fault) if fault.step == number => Err(Trouble::new(fault.errno, "made to fail by request")),
        _ => plan.steps[number].action.apply(site),
    }
}

fn hand_over(number: usize, hatch: &Hatch) -> Result<(), Trouble> {
    hatch.send(&Report::Turn(number), None)?;
    match hatch.receive::<Answer>()? {
        Some((Answer::Done, _)) => Ok(()),
        // The supervisor knows why and says so; this process only ends.
        _ => Err(Errno::ECANCELED.into()),
    }
}

/// Tells the supervisor what failed, and ends.
pub fn fail(hatch: &Hatch, step: usize, trouble: &Trouble) -> ! {
    let report = Report::Failed { step, errno: trouble.errno as i32, detail: trouble.detail.clone() };
    let _ = hatch.send(&report, None);
    exit_now(1)
}

/// The whole life of the room's first process before the payload.
pub fn live(plan: &Plan, first_step: usize, mut site: Site<'_>, hatch: Hatch, options: Options) -> ! {
    let hatch = Rc::new(hatch);
    site.hatch = Some(Rc::clone(&hatch));
    let command = Command::prepare(plan);
    process::reset_signals();
    let end = plan.steps.len();
    let after = |stage| plan.steps.iter().position(|step| step.stage > stage).unwrap_or(end);
    let (locked, bare) = (after(Stage::Lock), after(Stage::Capabilities));
    for (range, done) in
        [(first_step..locked, Some(Report::Locked)), (locked..bare, Some(Report::Bare)), (bare..end, None)]
    {
        match interpret(plan, Place::Room, range, &mut site, &hatch, options) {
            Ok(taken) => site.timings.extend(taken),
            Err((step, trouble)) => fail(&hatch, step, &trouble),
        }
        if let Some(report) = done {
            // Changing ids made this process undumpable, and then the kernel shows it to root alone. A supervisor that is shown
            // nothing seals nothing; one that does not hear this is gone.
            let _ = process::stay_readable();
            let _ = hatch.send(&report, None);
        }
    }
    let ready = Report::Ready { notes: std::mem::take(&mut site.notes), timings: std::mem::take(&mut site.timings) };
    let told = hatch.send(&ready, site.listener.as_ref().map(AsFd::as_fd));
    drop(site.listener.take());
    let answer = told.and_then(|()| hatch.receive::<Answer>());
    if !matches!(answer, Ok(Some((Answer::Go, _)))) {
        exit_now(1);
    }
    let errno = if plan.room.process.init { super::init::live(&command) } else { command.exec() };
    let _ = hatch.send(&Report::NoExec { errno: errno as i32 }, None);
    exit_now(127)
}

/// A command line with all that allocates done before it is needed.
pub struct Command {
    program: OsString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    search: Vec<OsString>,
}

impl Command {
    /// The command of a plan.
    pub fn prepare(plan: &Plan) -> Self {
        let process = &plan.room.process;
        // The plan has refused NULs, so nothing is lost here.
        let c_string = |bytes: Vec<u8>| CString::new(bytes).unwrap_or_default();
        let variable = |(name, value): (&crate::text::Text, &crate::text::Text)| {
            let mut bytes = name.0.clone().into_vec();
            bytes.push(b'=');
            bytes.extend(value.0.as_bytes());
            c_string(bytes)
        };
        let path = process.environment.get(&"PATH".into());
        Self {
            program: process.program.0.clone(),
            arguments: plan.room.arguments().into_iter().map(|argument| c_string(argument.into_vec())).collect(),
            environment: process.environment.iter().map(variable).collect(),
            search: path
                .map(|path| {
                    path.0
                        .as_bytes()
                        .split(|byte| *byte == b':')
                        .map(|part| OsStr::from_bytes(part).to_owned())
                        .collect()
                })
                .unwrap_or_default(),
        }
    }

    /// Becomes the command; what execve(2) said if that failed, and when a name was looked for in several places the most telling
    /// of its answers, as execvp(3) does.
    pub fn exec(&self) -> Errno {
        if self.program.as_bytes().contains(&b'/') {
            return process::exec(&self.program, &self.arguments, &self.environment);
        }
        let mut answer = Errno::ENOENT;
        for directory in self.search.iter().filter(|directory| !directory.is_empty()) {
            match process::exec(
                Path::new(directory).join(&self.program).as_os_str(),
                &self.arguments,
                &self.environment,
            ) {
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES => answer = Errno::EACCES,
                other => return other,
            }
        }
        answer
    }
}

#[cfg(test)]
mod tests;
