//! The report for a person at a terminal: what is open first, and what that means.

use std::fmt::Write;

use anchorhold_probe::vocabulary::{Row, Severity};

use super::{Report, Run};
use crate::catalogue::Probe;
use crate::verdicts::{self, Counts, State};

/// How it is shown.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Whether there are colours.
    pub colour: bool,
    /// Columns.
    pub width: usize,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn severity(self, severity: Severity, text: &str) -> String {
        let code = match severity {
            Severity::Critical => "1;37;41",
            Severity::High => "1;31",
            Severity::Medium => "33",
            Severity::Low => "36",
            Severity::Fact => "2",
        };
        self.paint(code, text)
    }
}

/// The whole report.
pub fn show(report: &Report, style: Style) -> String {
    let mut text = String::new();
    let counted = report.catalogue.0.iter().filter(|probe| probe.severity != Severity::Fact).count();
    let facts = report.catalogue.0.len() - counted;
    let _ = writeln!(
        text,
        "{} probes and {facts} facts on Linux {} ({})\n",
        counted,
        if report.kernel.is_empty() { "?" } else { &report.kernel },
        report.machine
    );
    table(&mut text, report, style);
    let judged: Vec<&Run> = report.runs.iter().filter(|run| !run.baseline).collect();
    match judged.as_slice() {
        [] => {}
        few if few.len() <= 4 => few.iter().for_each(|run| open_list(&mut text, report, run, style)),
        many => matrix(&mut text, report, many, style),
    }
    not_shown(&mut text, report, &judged, style);
    text
}

/// A line for each sandbox: how much is open, by severity.
fn table(text: &mut String, report: &Report, style: Style) {
    let width = report.runs.iter().map(|run| run.title().chars().count()).max().unwrap_or(0).clamp(8, 40);
    let _ = write!(text, "{:width$}  {:>8} {:>6} {:>6} {:>6}", "open in", "critical", "high", "medium", "low");
    let _ = writeln!(text, "   {:>6} {:>8} {:>5} {:>4}", "closed", "unproven", "other", "n/a");
    for run in &report.runs {
        let title: String = run.title().chars().take(width).collect();
        let _ = write!(text, "{title:width$}  ");
        if run.battery.rows.is_empty() {
            let problem = run.problem.as_deref().unwrap_or("nothing was said");
            let _ = writeln!(text, "{}", style.paint("2", &format!("did not run: {problem}")));
            continue;
        }
        let counts = Counts::of(report, run);
        for (severity, columns) in Severity::COUNTED.into_iter().zip([8, 6, 6, 6]) {
            let open = counts.get(severity, State::Open);
            let cell = format!("{open:>columns$}");
            let cell = if open > 0 && !run.baseline { style.severity(severity, &cell) } else { cell };
            let _ = write!(text, "{cell}{}", if severity == Severity::Low { "" } else { " " });
        }
        let other = counts.all(State::Inconclusive) + counts.all(State::Lost);
        let _ = write!(
            text,
            "   {:>6} {:>8} {other:>5} {:>4}",
            counts.all(State::Closed),
            counts.all(State::Unproven),
            counts.all(State::NotApplicable)
        );
        let note = match (&run.problem, run.baseline) {
            (Some(problem), _) => style.paint("31", &format!("  {problem}")),
            (None, true) => style.paint("2", "  (no sandbox)"),
            (None, false) => String::new(),
        };
        let _ = writeln!(text, "{note}");
    }
}

/// Everything that is open in one sandbox, worst first, with what it means.
fn open_list(text: &mut String, report: &Report, run: &Run, style: Style) {
    let mut open: Vec<(&Probe, &Row)> = report
        .catalogue
        .0
        .iter()
        .filter(|probe| verdicts::state(report, run, probe) == State::Open)
        .filter_map(|probe| Some((probe, run.battery.row(&probe.id)?)))
        .collect();
    if run.battery.rows.is_empty() {
        return;
    }
    open.sort_by_key(|(probe, _)| (probe.severity, probe.layer().to_owned()));
    let _ = writeln!(text, "\n{}", style.paint("1", &format!("Open in {}:", run.title())));
    if open.is_empty() {
        let _ = writeln!(text, "  nothing");
    }
    for (probe, row) in open {
        let word = style.severity(probe.severity, &format!("{:8}", probe.severity.name()));
        let _ = writeln!(text, "  {word}  {}  {}", style.paint("1", &probe.id), probe.title);
        if !row.finding.detail.is_empty() {
            wrap(text, &format!("seen: {}", row.finding.detail), 12, style.width);
        }
        wrap(text, &probe.meaning, 12, style.width);
    }
}

/// Several sandboxes side by side: a line for each probe that is open in one of them.
fn matrix(text: &mut String, report: &Report, runs: &[&Run], style: Style) {
    let runs: Vec<&&Run> = runs.iter().filter(|run| !run.battery.rows.is_empty()).collect();
    let _ = writeln!(
        text,
        "\n{}",
        style.paint("1", "Open somewhere (X open, g granted, . closed, ~ unproven, ? not shown, - not applicable):")
    );
    for (number, run) in runs.iter().enumerate() {
        let _ = writeln!(text, "  {} {}", column(number), run.title());
    }
    let heads: String = (0..runs.len()).map(|number| format!(" {}", column(number))).collect();
    let mut probes: Vec<&Probe> = report
        .catalogue
        .0
        .iter()
        .filter(|probe| runs.iter().any(|run| verdicts::state(report, run, probe) == State::Open))
        .collect();
    probes.sort_by_key(|probe| (probe.severity, probe.layer().to_owned()));
    let wide = probes.iter().map(|probe| probe.id.len()).max().unwrap_or(0);
    let mut severity = None;
    for probe in probes {
        if severity != Some(probe.severity) {
            severity = Some(probe.severity);
            let _ = writeln!(
                text,
                "{:wide$}{heads}",
                style.severity(probe.severity, &format!("{:wide$}", probe.severity.name()))
            );
        }
        let marks: String = runs
            .iter()
            .map(|run| {
                let state = verdicts::state(report, run, probe);
                let mark = state.mark().to_string();
                format!(" {}", if state == State::Open { style.severity(probe.severity, &mark) } else { mark })
            })
            .collect();
        let title: String = probe.title.chars().take(style.width.saturating_sub(wide + 2 * runs.len() + 2)).collect();
        let _ = writeln!(text, "{:wide$}{marks}  {title}", probe.id);
    }
}

fn column(number: usize) -> char {
    (b'a' + u8::try_from(number % 26).unwrap_or(0)) as char
}

/// What the report does not show, and why.
fn not_shown(text: &mut String, report: &Report, judged: &[&Run], style: Style) {
    let ids = |state: State| -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for run in judged.iter().filter(|run| !run.battery.rows.is_empty()) {
            for probe in &report.catalogue.0 {
                if verdicts::state(report, run, probe) == state && !all.contains(&probe.id) {
                    all.push(probe.id.clone());
                }
            }
        }
        all
    };
    for (state, why) in [
        (State::Granted, "reached, because the sandbox was asked for what they need"),
        (State::Unproven, "refused, but nothing on this kernel made the probe reach, so that proves nothing"),
        (State::Inconclusive, "could not be set up in one of the sandboxes"),
        (State::Lost, "lost: a battery ended before it"),
    ] {
        let ids = ids(state);
        if !ids.is_empty() {
            let _ = writeln!(text, "\n{} {} probes: {why}", style.paint("1", state.name()), ids.len());
            wrap(text, &ids.join(", "), 2, style.width);
        }
        if state == State::Unproven {
            for id in &ids {
                let reasons = report.silent.iter().filter(|silent| silent.probe == *id);
                if let Some(reason) = reasons.filter_map(|silent| silent.reason.as_ref()).next() {
                    wrap(text, &format!("{id}: {reason}"), 4, style.width);
                }
            }
        }
    }
    for run in judged.iter().filter(|run| !run.missing.is_empty()) {
        let _ = writeln!(text, "\nwithout observers in {}: {}", run.title(), run.missing.join("; "));
    }
    let _ = writeln!(text, "\nanchorhold audit --explain ID tells a probe's story.");
}

/// A probe's story.
pub fn explain(probe: &Probe, width: usize) -> String {
    let mut text = format!("{}  ({})\n{}\n", probe.id, probe.severity, probe.title);
    for (heading, words) in [
        ("What is tried", &probe.tries),
        ("What is safe", &probe.safe),
        ("What it means when it reaches", &probe.meaning),
        ("Read more", &probe.reference),
    ] {
        if !words.is_empty() {
            let _ = writeln!(text, "\n{heading}:");
            wrap(&mut text, words, 2, width);
        }
    }
    if !probe.controls.is_empty() {
        let _ = writeln!(text, "\nHow the hole is opened on purpose, to see that the probe finds it:");
        for control in &probe.controls {
            for weakening in crate::controls::weakenings(*control) {
                let _ = writeln!(text, "  {control}: {weakening}");
            }
        }
    }
    if probe.root {
        let _ = writeln!(text, "\nIt proves something only as (mapped) root.");
    }
    text
}

/// Words in lines of at most so many columns, each indented.
fn wrap(text: &mut String, words: &str, indent: usize, width: usize) {
    let room = width.saturating_sub(indent).max(20);
    let mut line = String::new();
    for word in words.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
            let _ = writeln!(text, "{:indent$}{line}", "");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        let _ = writeln!(text, "{:indent$}{line}", "");
    }
}
