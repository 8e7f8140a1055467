//! What is tried: the probes of the battery, as the probe program lists them, and those that a reviewer adds.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How bad it is when a probe reaches what it tries to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The host, another build or a registered output falls.
    Critical,
    /// A secret, a channel between builds, or most of the way to the host.
    High,
    /// More attack surface than work needs, or a weakened second layer.
    Medium,
    /// Hardly of use to an attacker alone.
    Low,
    /// A fact that tells hosts apart; never counted.
    Fact,
}

impl Severity {
    /// Those that count, worst first.
    pub const COUNTED: [Self; 4] = [Self::Critical, Self::High, Self::Medium, Self::Low];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
            Self::Fact => "fact",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A weakening under which a probe must reach what it tries to reach. `controls` says how each is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the probe program's own list says what each is")]
pub enum Control {
    Host,
    HostRoot,
    Network,
    Pid,
    Ipc,
    Mounts,
    Seccomp,
    Landlock,
    KernelRoot,
    Capabilities,
    Writable,
    SetId,
    Descriptors,
    Environment,
    Terminal,
    Keyring,
    Limits,
    UserNamespaces,
    Fetch,
    ProcMasks,
    Devices,
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = serde_json::to_value(self).ok();
        f.pad(word.as_ref().and_then(serde_json::Value::as_str).unwrap_or("?"))
    }
}

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
