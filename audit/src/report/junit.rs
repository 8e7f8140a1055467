//! JUnit XML, which every CI shows: a suite for each sandbox, a case for each probe.

use std::fmt::Write;

use anchorhold_probe::vocabulary::{Row, Severity};

use super::Report;
use crate::verdicts::{self, State};

/// The report as JUnit XML. What is open at `limit` or worse fails; what is not shown is skipped, with the reason.
pub fn write(report: &Report, limit: Option<Severity>) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"anchorhold audit\">\n");
    for run in report.runs.iter().filter(|run| !run.baseline) {
        let states: Vec<_> =
            report.catalogue.0.iter().map(|probe| (probe, verdicts::state(report, run, probe))).collect();
        let fails =
            |severity: Severity, state: State| state == State::Open && limit.is_some_and(|limit| severity <= limit);
        let skipped =
            |state: State| matches!(state, State::Inconclusive | State::Lost | State::Unproven | State::NotApplicable);
        let _ = writeln!(
            text,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{}\">",
            escape(&run.title()),
            states.len() + usize::from(!run.is_whole()),
            states.iter().filter(|(probe, state)| fails(probe.severity, *state)).count(),
            usize::from(!run.is_whole()),
            states.iter().filter(|(_, state)| skipped(*state)).count(),
            seconds(run.milliseconds),
        );
        let _ = writeln!(
            text,
            "    <properties><property name=\"command\" value=\"{}\"/><property name=\"version\" value=\"{}\"/></properties>",
            escape(&run.command.join(" ")),
            escape(run.version.as_deref().unwrap_or("?")),
        );
        if !run.is_whole() {
            let problem = escape(run.problem.as_deref().unwrap_or("the battery was cut off"));
            let _ = writeln!(
                text,
                "    <testcase classname=\"audit\" name=\"the battery ran\"><error message=\"{problem}\"/></testcase>"
            );
        }
        for (probe, state) in states {
            let row = run.battery.row(&probe.id);
            let time = seconds(row.map_or(0, |row| row.milliseconds));
            let answer = escape(&row.map(Row::answer).unwrap_or_default());
            let _ = write!(
                text,
                "    <testcase classname=\"{}\" name=\"{} {}\" time=\"{time}\"",
                escape(probe.layer()),
                escape(&probe.id),
                escape(&probe.title)
            );
            let _ = if fails(probe.severity, state) {
                writeln!(
                    text,
                    "><failure type=\"{}\" message=\"{answer}\">{}</failure></testcase>",
                    probe.severity,
                    escape(&probe.meaning)
                )
            } else if skipped(state) {
                writeln!(text, "><skipped message=\"{}: {answer}\"/></testcase>", state.name())
            } else if matches!(state, State::Open | State::Granted) {
                writeln!(text, "><system-out>{}: {answer}</system-out></testcase>", state.name())
            } else {
                writeln!(text, "/>")
            };
        }
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000)
}

/// Text for XML and HTML, in contents and in quoted attributes. Characters that XML 1.0 does not have become `?`.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(' '),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => escaped.push('?'),
            _ => escaped.push(character),
        }
    }
    escaped
}
