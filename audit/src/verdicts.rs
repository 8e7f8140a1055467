//! What a row means: open, closed, or not shown.
//!
//! A probe that was refused shows something only if it could have been let through: on this kernel, with this program, there must
//! be a weakening under which it reaches. Without one the row is *unproven*, and never counts as safe. That a row does not apply
//! to a kernel at all is taken from the bare host alone: what is absent there was not closed by any sandbox.

use std::collections::BTreeMap;

use anchorhold_probe::verdict::Verdict;
use anchorhold_probe::vocabulary::Severity;
use serde::Serialize;

use crate::catalogue::Probe;
use crate::report::{Report, Run};

/// The state of one probe in one sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It was reached.
    Open,
    /// It was reached, and the sandbox was asked to allow that.
    Granted,
    /// The probe could not be set up there, so nothing was shown.
    Inconclusive,
    /// The sandbox did not let the battery come to this probe.
    Lost,
    /// It was refused, but no weakening on this kernel made the probe reach: the refusal proves nothing.
    Unproven,
    /// It was refused, and the same probe reaches under a weakening.
    Closed,
    /// The bare host does not have it either, or the sandbox has nothing of the kind: no outputs, say.
    NotApplicable,
    /// A fact, which is neither open nor closed.
    Fact,
}

impl State {
    /// All of them, in the order in which they are counted.
    pub const ALL: [Self; 8] = [
        Self::Open,
        Self::Granted,
        Self::Inconclusive,
        Self::Lost,
        Self::Unproven,
        Self::Closed,
        Self::NotApplicable,
        Self::Fact,
    ];

    /// The words for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Granted => "granted",
            Self::Inconclusive => "inconclusive",
            Self::Lost => "lost",
            Self::Unproven => "unproven",
            Self::Closed => "closed",
            Self::NotApplicable => "not applicable",
            Self::Fact => "fact",
        }
    }

    /// One character for a matrix.
    pub fn mark(self) -> char {
        match self {
            Self::Open => 'X',
            Self::Granted => 'g',
            Self::Inconclusive => '?',
            Self::Lost => '!',
            Self::Unproven => '~',
            Self::Closed => '.',
            Self::NotApplicable => '-',
            Self::Fact => 'i',
        }
    }
}

/// The weakening under which a probe was seen to reach, in words; none if there was none.
pub fn proof(report: &Report, probe: &Probe) -> Option<String> {
    let reached = |run: &Run| run.battery.row(&probe.id).is_some_and(|row| row.finding.verdict == Verdict::Reached);
    if let Some(run) = report.runs.iter().find(|run| run.baseline && reached(run)) {
        return Some(run.title());
    }
    if let Some(run) = report.controls.iter().find(|run| run.fired.contains(&probe.id)) {
        return Some(format!("{} ({})", run.control, run.how));
    }
    report.runs.iter().find(|run| reached(run)).map(Run::title)
}

/// The state of a probe in a run of the report.
pub fn state(report: &Report, run: &Run, probe: &Probe) -> State {
    let Some(row) = run.battery.row(&probe.id) else { return State::Lost };
    if probe.severity == Severity::Fact {
        return State::Fact;
    }
    // A probe that tells a fact was granted what it looks for, or there is nothing of the kind.
    if row.finding.verdict == Verdict::Info {
        return if row.finding.detail.starts_with("granted") { State::Granted } else { State::NotApplicable };
    }
    if row.finding.verdict == Verdict::Reached {
        return if wanted_by(&run.granted, &probe.id) { State::Granted } else { State::Open };
    }
    let proven = proof(report, probe).is_some();
    if !proven && absent_from_host(report, probe) {
        return State::NotApplicable;
    }
    match row.finding.verdict {
        Verdict::Inconclusive => State::Inconclusive,
        _ if proven => State::Closed,
        _ => State::Unproven,
    }
}

fn wanted_by(granted: &[String], id: &str) -> bool {
    !granted.is_empty() && crate::catalogue::wanted(granted, id)
}

/// Whether every baseline of this kernel calls it absent, root's among them.
fn absent_from_host(report: &Report, probe: &Probe) -> bool {
    let mut rows =
        report.runs.iter().filter(|run| run.baseline).filter_map(|run| run.battery.row(&probe.id)).peekable();
    rows.peek().is_some() && rows.all(|row| row.finding.verdict == Verdict::Absent)
}

/// How many probes of each severity are in each state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<(Severity, State), usize>);

impl Counts {
    /// Of a run.
    pub fn of(report: &Report, run: &Run) -> Self {
        let mut counts = BTreeMap::new();
        for probe in &report.catalogue.0 {
            *counts.entry((probe.severity, state(report, run, probe))).or_insert(0) += 1;
        }
        Self(counts)
    }

    /// The number.
    pub fn get(&self, severity: Severity, state: State) -> usize {
        self.0.get(&(severity, state)).copied().unwrap_or(0)
    }

    /// The number of all severities that count.
    pub fn all(&self, state: State) -> usize {
        Severity::COUNTED.iter().map(|severity| self.get(*severity, state)).sum()
    }
}

/// The worst severity that is open in a sandbox that was judged; none if nothing is.
pub fn worst_open(report: &Report) -> Option<Severity> {
    let judged = report.runs.iter().filter(|run| !run.baseline);
    judged
        .flat_map(|run| report.catalogue.0.iter().filter(move |probe| state(report, run, probe) == State::Open))
        .map(|probe| probe.severity)
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anchorhold_probe::verdict::Finding;
    use anchorhold_probe::vocabulary::{Control, Row};

    use crate::battery::Battery;
    use crate::catalogue::Catalogue;
    use crate::report::ControlRun;

    fn probe(id: &str, severity: Severity) -> Probe {
        Probe {
            id: id.into(),
            title: "a hole".into(),
            severity,
            reference: String::new(),
            tries: String::new(),
            safe: String::new(),
            meaning: String::new(),
            controls: vec![Control::Seccomp],
            root: false,
            program: None,
        }
    }

    fn run(sandbox: &str, verdict: Verdict) -> Run {
        let row =
            Row { id: "a.b".into(), finding: Finding { verdict, errno: None, detail: String::new() }, milliseconds: 0 };
        Run {
            sandbox: sandbox.into(),
            user: "root".into(),
            baseline: sandbox == "host",
            version: None,
            command: Vec::new(),
            problem: None,
            missing: Vec::new(),
            granted: Vec::new(),
            milliseconds: 0,
            battery: Battery { head: None, rows: vec![row], complete: true },
        }
    }

    fn report(host: Verdict, room: Verdict) -> Report {
        Report {
            version: String::new(),
            time: 0,
            kernel: String::new(),
            machine: String::new(),
            catalogue: Catalogue(vec![probe("a.b", Severity::High)]),
            runs: vec![run("host", host), run("room", room)],
            controls: Vec::new(),
            silent: Vec::new(),
        }
    }

    fn of_room(report: &Report) -> State {
        state(report, &report.runs[1], &report.catalogue.0[0])
    }

    #[test]
    fn a_refusal_counts_as_closed_only_when_the_probe_was_seen_to_reach() {
        assert_eq!(of_room(&report(Verdict::Reached, Verdict::Refused)), State::Closed);
        assert_eq!(of_room(&report(Verdict::Reached, Verdict::Absent)), State::Closed);
        let mut unproven = report(Verdict::Refused, Verdict::Refused);
        assert_eq!(of_room(&unproven), State::Unproven);
        unproven.controls.push(ControlRun {
            control: Control::Seccomp,
            how: "--without seccomp".into(),
            command: Vec::new(),
            problem: None,
            fired: vec!["a.b".into()],
            silent: Vec::new(),
        });
        assert_eq!(of_room(&unproven), State::Closed);
    }

    #[test]
    fn what_the_host_has_not_got_does_not_apply_unless_it_is_there_all_the_same() {
        assert_eq!(of_room(&report(Verdict::Absent, Verdict::Absent)), State::NotApplicable);
        assert_eq!(of_room(&report(Verdict::Absent, Verdict::Refused)), State::NotApplicable);
        assert_eq!(of_room(&report(Verdict::Absent, Verdict::Reached)), State::Open);
        let mut without = report(Verdict::Absent, Verdict::Absent);
        without.runs.remove(0);
        assert_eq!(state(&without, &without.runs[0], &without.catalogue.0[0]), State::Unproven, "no baseline tells so");
    }

    #[test]
    fn what_is_reached_is_open_and_the_worst_of_it_decides() {
        let mut open = report(Verdict::Refused, Verdict::Reached);
        assert_eq!(of_room(&open), State::Open);
        assert_eq!(worst_open(&open), Some(Severity::High));
        open.runs[1].granted = vec!["a".into()];
        assert_eq!(of_room(&open), State::Granted);
        assert_eq!(worst_open(&open), None);
        assert_eq!(worst_open(&report(Verdict::Reached, Verdict::Refused)), None, "the host is not judged");
        let mut told = report(Verdict::Reached, Verdict::Info);
        assert_eq!(of_room(&told), State::NotApplicable);
        told.runs[1].battery.rows[0].finding.detail = "granted; works".into();
        assert_eq!(of_room(&told), State::Granted);
        let mut lost = report(Verdict::Reached, Verdict::Refused);
        lost.runs[1].battery.rows.clear();
        assert_eq!(of_room(&lost), State::Lost);
    }

    #[test]
    fn facts_never_count() {
        let mut facts = report(Verdict::Reached, Verdict::Reached);
        facts.catalogue.0[0].severity = Severity::Fact;
        assert_eq!(of_room(&facts), State::Fact);
        assert_eq!(worst_open(&facts), None);
    }
}
