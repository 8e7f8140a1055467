//! What an audit found, whole: everything that a reader needs to judge it and to repeat it.

pub mod html;
pub mod junit;
pub mod sarif;
pub mod terminal;

use anchorhold_probe::vocabulary::{Control, Head};
use serde::{Deserialize, Serialize};

use crate::battery::Battery;
use crate::catalogue::Catalogue;
use crate::silent::Silent;
use crate::verdicts::{self, Counts, State};

/// The battery in one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The word for the sandbox.
    pub sandbox: String,
    /// Who started it.
    pub user: String,
    /// Whether it is the bare host, against which others are read.
    pub baseline: bool,
    /// The sandbox's version; none when it could not be asked.
    pub version: Option<String>,
    /// The exact command line, but for the description of the observers.
    pub command: Vec<String>,
    /// Why the battery did not run, or not to its end.
    pub problem: Option<String>,
    /// Observers that could not be set up.
    pub missing: Vec<String>,
    /// Ids of probes, or beginnings of ids, whose reaching was asked for, as nested namespaces are by a profile.
    #[serde(default)]
    pub granted: Vec<String>,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
    /// What it said.
    pub battery: Battery,
}

impl Run {
    /// Sandbox and user.
    pub fn title(&self) -> String {
        if self.user == "root" { self.sandbox.clone() } else { format!("{} as {}", self.sandbox, self.user) }
    }

    /// Whether the battery ran to its end.
    pub fn is_whole(&self) -> bool {
        self.problem.is_none() && self.battery.complete
    }
}

/// A weakening, and what it did to the probes that name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlRun {
    /// The control.
    pub control: Control,
    /// How it was made, in words.
    pub how: String,
    /// The exact command line.
    pub command: Vec<String>,
    /// Why it did not run.
    pub problem: Option<String>,
    /// Probes that reached under it.
    pub fired: Vec<String>,
    /// Probes that did not, with their answers.
    pub silent: Vec<(String, String)>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The version of anchorhold.
    pub version: String,
    /// When it was made, in seconds since 1970.
    pub time: u64,
    /// The kernel's release, from the first battery that told it.
    pub kernel: String,
    /// The machine's architecture.
    pub machine: String,
    /// What was tried.
    pub catalogue: Catalogue,
    /// Where.
    pub runs: Vec<Run>,
    /// The weakenings that were needed for proofs.
    pub controls: Vec<ControlRun>,
    /// Controls that did not fire, with the reasons.
    #[serde(default)]
    pub silent: Vec<Silent>,
}

impl Report {
    /// The head of the first battery that has one.
    pub fn head(&self) -> Option<&Head> {
        self.runs.iter().find_map(|run| run.battery.head.as_ref())
    }

    /// It as JSON, with the state of every probe in every sandbox besides what was answered.
    pub fn to_json(&self) -> String {
        let mut value = serde_json::to_value(self).expect("plain data has a JSON form");
        for (run, place) in self.runs.iter().zip(value["runs"].as_array_mut().into_iter().flatten()) {
            let states: serde_json::Map<String, serde_json::Value> = self
                .catalogue
                .0
                .iter()
                .map(|probe| (probe.id.clone(), verdicts::state(self, run, probe).name().into()))
                .collect();
            let counts = Counts::of(self, run);
            place["open"] = counts.all(State::Open).into();
            place["states"] = states.into();
        }
        let proofs: serde_json::Map<String, serde_json::Value> = self
            .catalogue
            .0
            .iter()
            .map(|probe| (probe.id.clone(), verdicts::proof(self, probe).map_or(serde_json::Value::Null, Into::into)))
            .collect();
        value["proofs"] = proofs.into();
        let mut text = serde_json::to_string_pretty(&value).expect("plain data has a JSON form");
        text.push('\n');
        text
    }
}
