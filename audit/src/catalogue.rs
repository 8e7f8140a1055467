//! What is tried: the probes of the battery, as the probe program lists them, and those that a reviewer adds.

use std::path::PathBuf;

use anchorhold_probe::vocabulary::{Control, Severity};
use serde::{Deserialize, Serialize};

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Layer, object and attempt, for example `fs.canary.read`.
    pub id: String,
    /// One line for tables: what is open when it reaches.
    pub title: String,
    /// How bad that is.
    pub severity: Severity,
    /// CVE numbers, or the document that tells of it.
    #[serde(default)]
    pub reference: String,
    /// What is tried.
    #[serde(default)]
    pub tries: String,
    /// Which answers are safe.
    #[serde(default)]
    pub safe: String,
    /// What it means when it reaches.
    #[serde(default)]
    pub meaning: String,
    /// Weakenings under which it must reach.
    #[serde(default)]
    pub controls: Vec<Control>,
    /// That it proves something only as (mapped) root.
    #[serde(default)]
    pub root: bool,
    /// The reviewer's program that it comes from; none for the battery's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
}

impl Probe {
    /// The first word of the id: the table that it belongs to.
    pub fn layer(&self) -> &str {
        self.id.split_once('.').map_or(self.id.as_str(), |(layer, _)| layer)
    }
}

/// Whether an id was asked for: by itself, or by its beginning up to a dot. No words ask for all.
pub fn wanted(only: &[String], id: &str) -> bool {
    only.is_empty()
        || only
            .iter()
            .any(|word| id.strip_prefix(word.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// All probes of a run, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Catalogue(pub Vec<Probe>);

impl Catalogue {
    /// The probe of this id.
    pub fn find(&self, id: &str) -> Option<&Probe> {
        self.0.iter().find(|probe| probe.id == id)
    }

    /// Reads what a probe program lists, a line of JSON for each.
    ///
    /// # Errors
    /// The line that is not understood.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        text.lines()
            .filter(|line| !line.trim().is_empty())
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}
