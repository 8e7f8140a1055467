//! How bad a hole is, how one is opened on purpose, and the lines of a report.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::verdict::Finding;

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

/// A weakening under which a probe must reach what it tries to reach: the proof that it can fire at all. How each is made
/// the runner knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// No sandbox at all, as the user who started.
    Host,
    /// No sandbox at all, as root.
    HostRoot,
    /// The outer network namespace.
    Network,
    /// The outer pid namespace.
    Pid,
    /// A first process that collects no orphans: the command itself.
    FirstProcess,
    /// The outer IPC namespace.
    Ipc,
    /// The outer mount tree, or a root by chroot(2) alone.
    Mounts,
    /// No system call filter.
    Seccomp,
    /// No Landlock.
    Landlock,
    /// Ids of the room mapped to the kernel's uid 0.
    KernelRoot,
    /// Capabilities kept.
    Capabilities,
    /// Inputs bound writable.
    Writable,
    /// Mounts without nosuid and nodev.
    SetId,
    /// Descriptors kept.
    Descriptors,
    /// The starter's environment kept.
    Environment,
    /// The starter's session and terminal kept.
    Terminal,
    /// The starter's keyrings kept.
    Keyring,
    /// No limits.
    Limits,
    /// Nested user namespaces allowed.
    UserNamespaces,
    /// A room with network, as of fixed-output builds.
    Fetch,
    /// No covers in /proc.
    ProcMasks,
    /// The outer /dev.
    Devices,
    /// Outputs taken over as they are.
    Outputs,
    /// A supervisor whose death ends nothing.
    Supervisor,
    /// A host on btrfs.
    Btrfs,
    /// A host with a route to link-local addresses.
    LinkLocal,
    /// A host with a name server.
    NameServer,
    /// A host with one of the usual daemons.
    Daemon,
    /// A host with shared mounts.
    SharedMounts,
    /// The starter's oom_score_adj above the least that it may be.
    OomScore,
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = serde_json::to_value(self).ok();
        f.pad(word.as_ref().and_then(serde_json::Value::as_str).unwrap_or("?"))
    }
}

/// When a probe runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// In its place: it leaves its surroundings as they were.
    #[default]
    Any,
    /// After all others, because what it tries may change mounts or use up a limit.
    Last,
}

/// The first line of a report: who speaks, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The version of the battery.
    pub battery: String,
    /// The kernel's release.
    pub kernel: String,
    /// The machine's architecture.
    pub machine: String,
    /// The uid that the probes had, as they see it.
    pub uid: u32,
    /// The gid.
    pub gid: u32,
    /// How many probes were to follow.
    pub probes: usize,
}

/// The line of one probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The probe.
    pub id: String,
    /// What it found.
    #[serde(flatten)]
    pub finding: Finding,
    /// How long it took.
    #[serde(default)]
    pub milliseconds: u64,
}

impl Row {
    /// The answer in a few words: the error's name, or what was seen.
    pub fn answer(&self) -> String {
        match (&self.finding.errno, self.finding.detail.as_str()) {
            (Some(errno), "") => errno.clone(),
            (Some(errno), detail) if !detail.contains(errno.as_str()) => format!("{errno}: {detail}"),
            (_, detail) => detail.to_owned(),
        }
    }
}

/// The last line. A report without it was cut off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The number of rows.
    pub end: usize,
    /// How many there were of each verdict.
    #[serde(default)]
    pub verdicts: BTreeMap<String, usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_flat_and_comes_back_as_it_was() {
        let row = Row { id: "a.b".into(), finding: Finding::refused(libc::EPERM).with("no"), milliseconds: 3 };
        let text = serde_json::to_string(&row).expect("plain data has a JSON form");
        assert_eq!(text, r#"{"id":"a.b","verdict":"refused","errno":"EPERM","detail":"no","milliseconds":3}"#);
        assert_eq!(serde_json::from_str::<Row>(&text).expect("it was just written"), row);
        serde_json::from_str::<Row>(r#"{"id":"a.b"}"#).expect_err("a row without a verdict is none");
    }
}
