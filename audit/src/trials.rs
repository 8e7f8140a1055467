//! What one look from inside cannot tell: runs of their own in the same sandbox, each for one thing that ends it, or that can only
//! be seen from outside.
//!
//! * held: the sandbox stands and is looked at, then whoever started it is killed;
//! * bounded: it is started with a limit, and a probe goes beyond it;
//! * outputs: it registers an output that is not to be taken as it is.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anchorhold_probe::observation::{self, OutputKind, Standing};
use anchorhold_probe::verdict::{Finding, Verdict};
use anchorhold_probe::world::World;

use crate::battery::Battery;
use crate::error::Error;
use crate::observers::Observers;
use crate::observers::launcher::{Ended, Launcher};
use crate::outputs;
use crate::sandboxes::{Bound, Ground, Inside, Sandbox};
use crate::user::{self, User};

/// Somebody who is neither the user who builds nor one of the sandbox's: the last ids of the first range, which no account has.
const SOMEBODY_ELSE: u32 = 65_533;

/// What all trials of a sandbox share.
pub struct Trials<'a> {
    /// The sandbox.
    pub sandbox: &'a dyn Sandbox,
    /// What is there for it.
    pub ground: &'a Ground,
    /// Where things are, inside.
    pub inside: &'a Inside,
    /// Who starts it.
    pub user: Option<&'a User>,
    /// What probes are told, but for what the launcher sets up.
    pub world: &'a World,
    /// The folder outside.
    pub outside: &'a Path,
    /// The probe program, outside.
    pub probe: &'a Path,
    /// Those who watch.
    pub observers: &'a Observers,
}

impl Trials<'_> {
    /// Makes those that the battery has rows for, and puts what they found into the rows.
    ///
    /// # Errors
    /// What goes wrong outside.
    pub fn make(&self, battery: &mut Battery) -> Result<(), Error> {
        self.held(battery)?;
        for bound in Bound::TRIED {
            if let Some(bounded) = self.sandbox.bounded(bound).filter(|_| battery.row(bound.probe()).is_some()) {
                let finding = self.beyond(bounded.as_ref(), bound)?;
                put(battery, bound.probe(), finding);
            }
        }
        for kind in OutputKind::ALL.into_iter().filter(|kind| self.sandbox.registers(*kind)) {
            if battery.row(kind.probe()).is_some() {
                let finding = self.output(kind)?;
                put(battery, kind.probe(), finding);
            }
        }
        Ok(())
    }

    /// The words of the battery's program, with what it is told.
    fn words(&self, first: &[&str], world: &World, more: &[&str]) -> Vec<String> {
        let mut words = vec![self.inside.program.to_string_lossy().into_owned()];
        words.extend(first.iter().map(ToString::to_string));
        words.extend(["--world".into(), serde_json::to_string(world).expect("plain data has a JSON form")]);
        words.extend(more.iter().map(ToString::to_string));
        if let Some(output) = &self.inside.output {
            words.extend(["--output".into(), output.clone()]);
        }
        words
    }

    /// A launcher, and the world with what it has set up.
    fn launcher(&self) -> Result<(Launcher, World), Error> {
        self.sandbox.clean_up(self.ground);
        let mut world = self.world.clone();
        let launcher = Launcher::start(self.probe, self.user, self.outside, &mut world)?;
        Ok((launcher, world))
    }

    /// The sandbox stands, somebody else looks, its supervisor is killed.
    fn held(&self, battery: &mut Battery) -> Result<(), Error> {
        const JUDGED: [&str; 3] = ["life.parent.dead", "fs.builddir.outside", "res.mem"];
        let untold = |battery: &Battery| {
            let row = battery.row("res.mem");
            row.is_some_and(|row| row.finding.verdict == Verdict::Inconclusive) && self.world.memory_limit.is_none()
        };
        if JUDGED.iter().all(|id| battery.row(id).is_none() || (*id == "res.mem" && !untold(battery))) {
            return Ok(());
        }
        let (launcher, world) = self.launcher()?;
        let launch = match self.sandbox.launch(self.ground, &self.words(&["hold"], &world, &[])) {
            Ok(launch) => launch,
            Err(problem) => {
                JUDGED[..2].iter().for_each(|id| put(battery, id, Finding::inconclusive(problem.clone())));
                return Ok(());
            }
        };
        let mut standing = Standing::default();
        let mut looked = Finding::inconclusive("it takes root to be somebody else");
        let ended = launcher.hold(self.probe, launch, |seen| {
            standing = seen.clone();
            if let (Some(pid), true) = (seen.pid, user::is_root()) {
                looked = self.look(&world.mark(), pid);
            }
        })?;
        if standing.pid.is_none() {
            let problem = Finding::inconclusive(format!("it did not stand: {}", last_words(&ended)));
            JUDGED[..2].iter().for_each(|id| put(battery, id, problem.clone()));
            return Ok(());
        }
        put(battery, "fs.builddir.outside", looked);
        let left: Vec<String> = ended.survivors.iter().map(|one| format!("{} ({})", one.name, one.pid)).collect();
        let outlived = if left.is_empty() {
            Finding::held("all was gone")
        } else {
            Finding::reached(format!("left behind: {}", left.join(", ")))
        };
        put(battery, "life.parent.dead", outlived);
        if untold(battery) {
            match standing.memory {
                Some(observation::Bound::None) => {
                    put(battery, "res.mem", Finding::reached("no control group of the sandbox's own has a limit"));
                }
                Some(observation::Bound::Of(bytes)) => {
                    put(battery, "res.mem", Finding::held(format!("its control group has {} MiB", bytes >> 20)));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Somebody else of this host looks for the mark.
    fn look(&self, mark: &str, process: i32) -> Finding {
        let mut command = Command::new(self.probe);
        command.arg("look").arg(mark).arg(process.to_string());
        command.args([Path::new("/tmp"), Path::new("/nix/var/nix/builds"), Path::new("/var/tmp"), &self.ground.folder]);
        command.uid(SOMEBODY_ELSE).gid(SOMEBODY_ELSE).stdin(Stdio::null()).current_dir("/");
        let said = command.output().map_err(|error| error.to_string());
        said.and_then(|said| serde_json::from_slice(&said.stdout).map_err(|error| error.to_string()))
            .unwrap_or_else(|problem| Finding::inconclusive(format!("somebody else could not look: {problem}")))
    }

    /// A probe goes beyond a limit.
    fn beyond(&self, bounded: &dyn Sandbox, bound: Bound) -> Result<Finding, Error> {
        let (launcher, mut world) = self.launcher()?;
        bounded.grant(&mut world);
        let words = self.words(&["run"], &world, &["--only", bound.probe()]);
        let launch = match bounded.launch(self.ground, &words) {
            Ok(launch) => launch,
            Err(problem) => return Ok(Finding::inconclusive(problem)),
        };
        let ended = launcher.run(self.probe, &launch)?;
        let said = Battery::parse(&ended.output);
        let words = last_words(&ended);
        Ok(match said.row(bound.probe()) {
            Some(row) => row.finding.clone(),
            None if said.head.is_none() => Finding::inconclusive(format!("it was not started: {words}")),
            None if words.is_empty() => Finding::held("the sandbox was ended, without a word on why"),
            None => Finding::held(words),
        })
    }

    /// An output is made, and what became of it is looked at.
    fn output(&self, kind: OutputKind) -> Result<Finding, Error> {
        let (launcher, world) = self.launcher()?;
        let launch = match self.sandbox.launch(self.ground, &self.words(&["output", kind.name()], &world, &[])) {
            Ok(launch) => launch,
            Err(problem) => return Ok(Finding::inconclusive(problem)),
        };
        let ended = launcher.run(self.probe, &launch)?;
        let finding = outputs::judge(self, kind, &launch, &ended);
        if let Err(error) = self.observers.canary().restore() {
            return Err(Error::Observer { what: "canary", error });
        }
        Ok(finding)
    }
}

/// What a sandbox said last, in a few words.
pub fn last_words(ended: &Ended) -> String {
    let said = ended.problem.clone().unwrap_or_else(|| String::from_utf8_lossy(&ended.errors).into_owned());
    let said = if said.trim().is_empty() { String::from_utf8_lossy(&ended.output).into_owned() } else { said };
    let lines =
        said.lines().map(|line| line.trim_matches(|letter: char| letter.is_whitespace() || letter.is_control()));
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.contains("{\"")).collect();
    lines
        .iter()
        .rev()
        .take(4)
        .rev()
        .map(|line| line.chars().take(160).collect::<String>())
        .collect::<Vec<_>>()
        .join("; ")
}

/// Replaces what the battery could say itself.
fn put(battery: &mut Battery, id: &str, finding: Finding) {
    if let Some(row) = battery.rows.iter_mut().find(|row| row.id == id) {
        row.finding = finding;
    }
}
