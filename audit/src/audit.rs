//! A whole audit: baselines, sandboxes, and the controls that are needed for proofs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anchorhold_probe::verdict::Verdict;
use anchorhold_probe::vocabulary::{Control, Row, Severity};

use crate::catalogue::Catalogue;
use crate::controls::{self, Weakening};
use crate::error::Error;
use crate::external::{self, External};
use crate::interrupt;
use crate::program;
use crate::report::{ControlRun, Report, Run};
use crate::runner::{self, Programs};
use crate::sandboxes;
use crate::silent;
use crate::user::{self, User};
use crate::verdicts;

/// Which controls are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Controls {
    /// Those of probes that nothing else has proven.
    #[default]
    Needed,
    /// All of them.
    All,
    /// None; what the baselines do not prove is unproven.
    None,
}

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `anchorhold`.
    pub anchorhold: PathBuf,
    /// The probe program, if it is not beside it.
    pub probe_program: Option<PathBuf>,
    /// Sandboxes by their words; none for our own room in each profile.
    pub sandboxes: Vec<String>,
    /// Options for each room of ours.
    pub room_options: Vec<String>,
    /// Ids of probes, or beginnings of ids; none for all.
    pub only: Vec<String>,
    /// The ordinary user's name.
    pub user: Option<String>,
    /// Whether the bare host is left out.
    pub no_baseline: bool,
    /// Which controls are run.
    pub controls: Controls,
    /// Whether facts alone are collected.
    pub facts: bool,
    /// Folders with programs of a reviewer's own.
    pub probes: Vec<PathBuf>,
}

/// Makes it. `progress` is told what is being done.
///
/// # Errors
/// What goes wrong outside of the sandboxes.
pub fn make(request: &Request, progress: &mut dyn FnMut(&str)) -> Result<Report, Error> {
    interrupt::take_signals();
    let probe = program::find(request.probe_program.as_deref(), &request.anchorhold)?;
    let programs = Programs { battery: probe.clone(), probe, anchorhold: request.anchorhold.clone() };
    let mut whole = program::list(&programs.probe)?;
    let externals = external::find(&request.probes, &whole)?;
    whole.0.extend(externals.iter().flat_map(|external| external.probes.iter().cloned()));
    for word in &request.only {
        if !whole.0.iter().any(|probe| crate::catalogue::wanted(std::slice::from_ref(word), &probe.id)) {
            return Err(Error::NoProbe(word.clone()));
        }
    }
    let catalogue =
        Catalogue(whole.0.into_iter().filter(|probe| crate::catalogue::wanted(&request.only, &probe.id)).collect());
    let only: Vec<String> = if request.facts {
        let facts = catalogue.0.iter().filter(|probe| probe.severity == Severity::Fact);
        facts.map(|probe| probe.id.clone()).collect()
    } else {
        request.only.clone()
    };
    let ordinary = match &request.user {
        Some(name) => Some(User::named(name)?),
        None if user::is_root() => Some(User::ordinary()?),
        None => None,
    };
    let mut words: Vec<String> = Vec::new();
    if !request.no_baseline {
        words.push("host".into());
        if user::is_root() {
            words.push("user:host".into());
        }
    }
    if request.sandboxes.is_empty() {
        words.extend(
            ["room", "room:limited", "room:nested", "room:fetch", "room:machines", "build", "attach"]
                .map(str::to_owned),
        );
        if user::is_root() {
            words.extend(["user:room", "user:attach"].map(str::to_owned));
        }
    }
    words.extend(request.sandboxes.iter().cloned());
    let mut sandboxes = Vec::new();
    for word in &words {
        sandboxes.push(sandboxes::named(word)?);
    }
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        kernel: String::new(),
        machine: String::new(),
        catalogue,
        runs: Vec::new(),
        controls: Vec::new(),
        silent: Vec::new(),
    };
    for (sandbox, as_user) in &sandboxes {
        let user = ordinary.as_ref().filter(|_| *as_user);
        progress(&match user {
            Some(user) => format!("{} as {}", sandbox.name(), user.name),
            None => sandbox.name(),
        });
        let run = runner::run(sandbox.as_ref(), &programs, user, &request.room_options, &only)?;
        report.runs.push(with_externals(run, &externals, sandbox.as_ref(), &programs, user, request)?);
    }
    if let Some(head) = report.head().cloned() {
        report.kernel = head.kernel;
        report.machine = head.machine;
    }
    if request.controls != Controls::None {
        run_controls(&mut report, request.controls, &programs, ordinary.as_ref(), progress)?;
        report.silent = silent::silent(&report, request.controls == Controls::All);
    }
    Ok(report)
}

/// The run, with what a reviewer's own programs found in the same sandbox.
fn with_externals(
    mut run: Run,
    externals: &[External],
    sandbox: &dyn sandboxes::Sandbox,
    programs: &Programs,
    user: Option<&User>,
    request: &Request,
) -> Result<Run, Error> {
    if run.battery.rows.is_empty() {
        return Ok(run);
    }
    for external in externals {
        let ids = external.probes.iter().map(|probe| &probe.id);
        let only: Vec<String> = ids.filter(|id| crate::catalogue::wanted(&request.only, id)).cloned().collect();
        if only.is_empty() {
            continue;
        }
        let programs = Programs { battery: external.program.clone(), ..programs.clone() };
        let own = runner::run(sandbox, &programs, user, &request.room_options, &only)?;
        if let Some(problem) = own.problem {
            run.problem.get_or_insert(format!("{}: {problem}", external.program.display()));
        }
        // It speaks for its own probes, and for no others.
        run.battery.rows.extend(own.battery.rows.into_iter().filter(|row| only.contains(&row.id)));
    }
    Ok(run)
}

/// Runs each weakening that is still needed, with the probes that name it.
fn run_controls(
    report: &mut Report,
    which: Controls,
    programs: &Programs,
    ordinary: Option<&User>,
    progress: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let mut wanted: BTreeMap<Control, Vec<String>> = BTreeMap::new();
    for probe in report.catalogue.0.iter().filter(|probe| probe.severity != Severity::Fact && probe.program.is_none()) {
        if which == Controls::All || verdicts::proof(report, probe).is_none() {
            for control in &probe.controls {
                wanted.entry(*control).or_default().push(probe.id.clone());
            }
        }
    }
    for (control, ids) in wanted {
        let mut left = ids;
        for weakening in controls::weakenings(control) {
            if left.is_empty() {
                break;
            }
            let (word, options, user): (&str, &[&str], Option<&User>) = match weakening {
                Weakening::HostRoot if user::is_root() => ("host", &[], None),
                Weakening::HostUser => ("host", &[], ordinary),
                Weakening::Room(options) => ("room", options, None),
                Weakening::UserRoom(options) => ("room", options, ordinary),
                Weakening::Peer(word) => (word, &[], None),
                Weakening::HostRoot => continue,
            };
            let how = weakening.to_string();
            progress(&format!("control {control}: {how}"));
            let run = if word == "host" {
                // The baseline may have told already.
                let name = user.map(|user| user.name.as_str());
                let known = report.runs.iter().find(|run| {
                    run.baseline && (Some(run.user.as_str()) == name || (name.is_none() && run.user == "root"))
                });
                match known {
                    Some(run) => run.clone(),
                    None => runner::run(sandboxes::named("host")?.0.as_ref(), programs, user, &[], &left)?,
                }
            } else if word != "room" {
                runner::run(sandboxes::named(word)?.0.as_ref(), programs, user, &[], &left)?
            } else {
                runner::run(sandboxes::weakened_room(options).as_ref(), programs, user, &[], &left)?
            };
            let (fired, silent): (Vec<String>, Vec<String>) = left
                .into_iter()
                .partition(|id| run.battery.row(id).is_some_and(|row| row.finding.verdict == Verdict::Reached));
            left = silent;
            report.controls.push(control_run(control, how, &run, fired, &left));
        }
    }
    Ok(())
}

fn control_run(control: Control, how: String, run: &Run, fired: Vec<String>, silent: &[String]) -> ControlRun {
    let answer = |id: &String| (id.clone(), run.battery.row(id).map_or("lost".to_owned(), Row::answer));
    ControlRun {
        control,
        how,
        command: run.command.clone(),
        problem: run.problem.clone(),
        fired,
        silent: silent.iter().map(answer).collect(),
    }
}
