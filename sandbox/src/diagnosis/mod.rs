//! What this machine offers, layer by layer: works, is weaker, is missing; with the kernel's answer and what to do about it.
//!
//! Facts are gathered first ([`facts`], [`probe`]), by asking and by harmless attempts; then judged by pure functions, one file per group
//! of layers, which tests feed with made-up facts. What decides is neither: the default room is made for real ([`trial`]), and what
//! is true of it was read back from the kernel.

mod cgroup;
mod devices;
mod facts;
mod identity;
mod kernel;
mod landlock;
mod namespaces;
mod network;
mod probe;
mod proc;
mod seccomp;
mod settings;
mod trial;

use serde::Serialize;

use crate::layers::Layer;
use crate::seal::Seal;

pub use facts::Facts;
pub use trial::{Attempt, Failure, Payload};

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is there, in full.
    Works,
    /// It is there, and less than it could be.
    Weaker,
    /// It is not there, or of no use.
    Missing,
    /// Neither good nor bad for a room: worth knowing.
    Info,
}

impl Verdict {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Weaker => "weaker",
            Self::Missing => "missing",
            Self::Info => "info",
        }
    }
}

/// What a diagnosis is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// A layer of the default room that was made for this diagnosis; the aspect is the layer's name.
    Room,
    /// What the default room needs of the kernel and of what is around us.
    Host,
    /// What a room may be given when it is asked for.
    Option,
    /// Settings and surroundings that no room depends on.
    Setting,
}

impl Group {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Room, Self::Host, Self::Option, Self::Setting];
}

/// How it stands with one thing, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// What kind of thing it is.
    pub group: Group,
    /// Its name; with the group it is unique, and it does not change between versions.
    pub aspect: &'static str,
    /// The layer that needs it, where there is one.
    pub layer: Option<Layer>,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found, with the kernel's answer.
    pub found: String,
    /// What to do about it; absent when there is nothing to do.
    pub fix: Option<String>,
}

impl Diagnosis {
    fn new(group: Group, aspect: &'static str, layer: Layer, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { group, aspect, layer: Some(layer), verdict, found: found.into(), fix: None }
    }

    fn info(aspect: &'static str, found: impl Into<String>) -> Self {
        let group = Group::Setting;
        Self { group, aspect, layer: None, verdict: Verdict::Info, found: found.into(), fix: None }
    }

    fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }
}

/// The default room, as it turned out.
#[derive(Clone, Debug, Serialize)]
pub struct DefaultRoom {
    /// `works`, `weaker` (made, but a layer is less than it could be) or `missing` (it cannot be made).
    pub verdict: Verdict,
    /// Why it could not be made.
    pub failure: Option<Failure>,
    /// What the kernel showed of it.
    pub seal: Option<Seal>,
}

/// The whole diagnosis.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this form. Fields may be added to it, none changes its meaning or goes without a new one.
    pub version: u32,
    /// The program and version that made the diagnosis.
    pub made_by: &'static str,
    /// `uname -r`.
    pub kernel: String,
    /// Effective uid, in the user namespace that we live in.
    pub uid: u32,
    /// Whether we have what it takes to give rooms ids of their own.
    pub privileged: bool,
    /// The room that decides.
    pub default_room: DefaultRoom,
    /// Everything, in the order of [`Group::ALL`].
    pub diagnoses: Vec<Diagnosis>,
}

impl Report {
    /// Whether the default room can be made.
    pub fn works(&self) -> bool {
        self.default_room.failure.is_none()
    }

    /// The diagnoses of one group.
    pub fn of(&self, group: Group) -> impl Iterator<Item = &Diagnosis> {
        self.diagnoses.iter().filter(move |diagnosis| diagnosis.group == group)
    }
}

/// Examines this machine. The calling process must have one thread, as for the launcher.
pub fn examine(payload: &Payload) -> Report {
    let facts = Facts::gather();
    let default = trial::default_room(payload, &facts.host);
    let options = trial::Options::attempt(payload, &facts, &default);
    let (privileged, uid) = (facts.host.privileged, facts.host.uid);
    let kernel = facts.host.release.clone();
    let diagnoses = judge(&facts, &default, &options);
    let (verdict, failure, seal) = match default {
        Attempt::Made { seal, .. } => {
            let whole = seal.as_ref().is_none_or(Seal::is_whole);
            (if whole { Verdict::Works } else { Verdict::Weaker }, None, seal)
        }
        Attempt::Failed(failure) => (Verdict::Missing, Some(failure), None),
    };
    Report {
        version: 1,
        made_by: concat!("anchorhold ", env!("CARGO_PKG_VERSION")),
        kernel,
        uid,
        privileged,
        default_room: DefaultRoom { verdict, failure, seal },
        diagnoses,
    }
}

/// Every judgement on these facts and attempts. Pure.
fn judge(facts: &Facts, default: &Attempt, options: &trial::Options) -> Vec<Diagnosis> {
    let mut all = trial::judge(default);
    if !facts.proc_masks.is_empty() {
        let refused = |one: &&mut Diagnosis| one.layer == Some(Layer::Proc) && one.verdict == Verdict::Missing;
        if let Some(row) = all.iter_mut().find(refused) {
            row.fix = Some(proc::way_out_of_a_mask(&options.outer_proc));
        }
    }
    all.extend(namespaces::judge(facts));
    all.extend(identity::judge(facts, &options.id_range));
    all.extend(kernel::judge(facts));
    all.extend(proc::judge(facts, &options.outer_proc));
    all.extend(landlock::judge(facts));
    all.extend(seccomp::judge(facts));
    all.extend(trial::judge_options(options));
    all.extend(cgroup::judge(facts, &options.limits));
    all.extend(devices::judge(facts));
    all.extend(network::judge(facts, &options.fetch));
    all.extend(settings::judge(facts));
    // Stable: within a group they keep the order above.
    all.sort_by_key(|diagnosis| diagnosis.group);
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_diagnoses_have_one_name() {
        let facts = Facts::healthy();
        for default in [trial::tests::made(), trial::tests::failed(Layer::Namespaces)] {
            let all = judge(&facts, &default, &trial::tests::all_made());
            let names: BTreeSet<_> = all.iter().map(|one| (one.group, one.aspect)).collect();
            assert_eq!(names.len(), all.len());
        }
    }

    #[test]
    fn a_healthy_machine_needs_no_mending() {
        let all = judge(&Facts::healthy(), &trial::tests::made(), &trial::tests::all_made());
        let bad: Vec<_> = all
            .iter()
            .filter(|one| matches!(one.verdict, Verdict::Missing | Verdict::Weaker) || one.fix.is_some())
            .collect();
        assert!(bad.is_empty(), "{bad:#?}");
    }

    #[test]
    fn what_is_missing_or_weaker_has_a_fix() {
        let mut facts = Facts::healthy();
        facts.break_everything();
        let all = judge(&facts, &trial::tests::failed(Layer::Namespaces), &trial::tests::none_made());
        for one in all.iter().filter(|one| matches!(one.verdict, Verdict::Missing | Verdict::Weaker)) {
            assert!(one.fix.is_some(), "{one:?}");
        }
    }
}
