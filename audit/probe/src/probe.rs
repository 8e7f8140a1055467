//! What a probe is.

use serde::Serialize;

use crate::verdict::Finding;
use crate::world::World;

/// How bad it is when a probe reaches what it tries to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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

/// A weakening under which a probe must reach what it tries to reach: the proof that it can fire at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(dead_code, reason = "the words for whoever adds a probe; not each of them is needed at all times")]
pub enum Control {
    /// No sandbox at all, as the user who started.
    Host,
    /// No sandbox at all, as root.
    HostRoot,
    /// The outer network namespace.
    Network,
    /// The outer pid namespace.
    Pid,
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
}

/// When a probe runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// In its place: it leaves its surroundings as they were.
    #[default]
    Any,
    /// After all others, because what it tries may change mounts or use up a limit.
    Last,
}

/// One attempt: what it is called, what it tries, and the function that tries it.
#[derive(Clone, Copy, Serialize)]
pub struct Probe {
    /// Layer, object and attempt, for example `fs.canary.read`. Stable: reports are compared by it.
    pub id: &'static str,
    /// One line for tables.
    pub title: &'static str,
    /// How bad it is when it reaches.
    pub severity: Severity,
    /// CVE numbers, or the document that tells of it. May be empty.
    pub reference: &'static str,
    /// What is tried, in one or two sentences.
    pub tries: &'static str,
    /// Which answers are safe.
    pub safe: &'static str,
    /// What it means for the host when it reaches: the story for `--explain`.
    pub meaning: &'static str,
    /// Weakenings under each of which it must reach. Empty for facts.
    pub controls: &'static [Control],
    /// When it runs.
    pub order: Order,
    /// That it proves something only as (mapped) root.
    pub root: bool,
    /// The attempt itself, in a process of its own that is ended after [`crate::child::LIMIT`].
    #[serde(skip)]
    pub run: fn(&World) -> Finding,
}

impl Probe {
    /// The first word of the id: the table that the probe belongs to.
    #[cfg(test)]
    pub fn layer(&self) -> &'static str {
        self.id.split_once('.').map_or(self.id, |(layer, _)| layer)
    }

    /// A fact: compared between two runs, never counted.
    pub const fn fact(
        id: &'static str,
        title: &'static str,
        tries: &'static str,
        meaning: &'static str,
        run: fn(&World) -> Finding,
    ) -> Self {
        Self {
            id,
            title,
            severity: Severity::Fact,
            reference: "",
            tries,
            safe: "any: it is compared",
            meaning,
            controls: &[],
            order: Order::Any,
            root: false,
            run,
        }
    }
}
