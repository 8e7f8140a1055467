//! `anchorhold audit` from end to end: what it finds in our own rooms, that it finds holes that are there, and that it leaves nothing
//! behind.
#![allow(missing_docs)]

mod holes;
mod left_behind;
mod reports;
mod rooms;

use std::process::{Command, Stdio};
use std::sync::RwLock;

use anchorhold_tests::room::{Ended, anchorhold};
use anchorhold_tests::running::Running;
use serde_json::Value;

/// Whoever looks for what an audit leaves behind must be alone; all others may run beside each other.
static AUDITS: RwLock<()> = RwLock::new(());

/// An audit with these words, to its end.
fn audit(words: &[&str]) -> Ended {
    let _beside_others = AUDITS.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    start(words).to_the_end()
}

fn start(words: &[&str]) -> Running {
    let mut line = Command::new(anchorhold());
    line.arg("audit").args(words).env_remove("NO_COLOR");
    line.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::start(line)
}

/// The report of an audit as JSON, whatever its status.
#[track_caller]
fn report(words: &[&str]) -> Value {
    let ended = audit(&[&["--json"], words].concat());
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// The run of this sandbox that is no baseline.
#[track_caller]
fn run<'a>(report: &'a Value, sandbox: &str) -> &'a Value {
    let runs = report["runs"].as_array().expect("runs");
    runs.iter().find(|run| run["sandbox"] == sandbox).unwrap_or_else(|| panic!("no run of {sandbox}"))
}

/// Ids of the probes in this state, of the severities that count.
fn in_state<'a>(report: &'a Value, run: &Value, state: &str) -> Vec<&'a str> {
    let probes = report["catalogue"].as_array().expect("a catalogue").iter();
    let ids = probes.filter_map(|probe| probe["id"].as_str());
    ids.filter(|id| run["states"][id] == state).collect()
}

fn severity<'a>(report: &'a Value, id: &str) -> &'a str {
    let probes = report["catalogue"].as_array().expect("a catalogue");
    probes.iter().find(|probe| probe["id"] == id).and_then(|probe| probe["severity"].as_str()).unwrap_or_default()
}
