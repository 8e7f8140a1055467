//! SARIF 2.1.0 (OASIS standard), which code hosts and review tools show: a rule for each probe, a result for each that is open.

use anchorhold_probe::vocabulary::{Row, Severity};
use serde_json::{Value, json};

use super::Report;
use crate::verdicts::{self, State};

/// The report as SARIF: one run of the tool, with a result for each probe that is open or not shown in a sandbox.
pub fn write(report: &Report) -> String {
    let rules: Vec<Value> = report
        .catalogue
        .0
        .iter()
        .map(|probe| {
            json!({
                "id": probe.id,
                "shortDescription": { "text": probe.title },
                "fullDescription": { "text": if probe.meaning.is_empty() { &probe.title } else { &probe.meaning } },
                "help": { "text": format!("Tries: {}\nSafe: {}\n{}", probe.tries, probe.safe, probe.reference) },
                "defaultConfiguration": { "level": level(probe.severity) },
                "properties": { "security-severity": score(probe.severity), "tags": ["security", probe.layer()] },
            })
        })
        .collect();
    let mut results = Vec::new();
    for run in report.runs.iter().filter(|run| !run.baseline) {
        for (index, probe) in report.catalogue.0.iter().enumerate() {
            let state = verdicts::state(report, run, probe);
            let (kind, level) = match state {
                State::Open => ("fail", level(probe.severity)),
                State::Granted => ("informational", "none"),
                State::Inconclusive | State::Lost | State::Unproven => ("open", "none"),
                State::Closed | State::NotApplicable | State::Fact => continue,
            };
            let answer = run.battery.row(&probe.id).map(Row::answer).unwrap_or_default();
            results.push(json!({
                "ruleId": probe.id,
                "ruleIndex": index,
                "kind": kind,
                "level": level,
                "message": { "text": format!("{} in {}: {} ({answer})", state.name(), run.title(), probe.title) },
                "locations": [{ "logicalLocations": [{ "name": run.title(), "fullyQualifiedName": run.command.join(" "), "kind": "module" }] }],
                "partialFingerprints": { "probeInSandbox/v1": format!("{}@{}", probe.id, run.title()) },
            }));
        }
    }
    let failed: Vec<Value> = report
        .runs
        .iter()
        .filter(|run| !run.baseline && !run.is_whole())
        .map(|run| json!({ "level": "error", "message": { "text": format!("{} was not judged: {}", run.title(), run.problem.as_deref().unwrap_or("cut off")) } }))
        .collect();
    let whole = json!({
        "version": "2.1.0",
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "runs": [{
            "tool": { "driver": { "name": "anchorhold audit", "version": report.version, "rules": rules } },
            "invocations": [{ "executionSuccessful": failed.is_empty(), "toolExecutionNotifications": failed }],
            "properties": { "kernel": report.kernel, "machine": report.machine },
            "results": results,
        }],
    });
    let mut text = serde_json::to_string_pretty(&whole).expect("plain data has a JSON form");
    text.push('\n');
    text
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical | Severity::High => "error",
        Severity::Medium => "warning",
        Severity::Low => "note",
        Severity::Fact => "none",
    }
}

/// What code hosts sort by, on the scale of CVSS.
fn score(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical => "9.5",
        Severity::High => "8.0",
        Severity::Medium => "5.5",
        Severity::Low => "2.0",
        Severity::Fact => "0.0",
    }
}
