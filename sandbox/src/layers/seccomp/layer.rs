//! The layer's three parts, over the mechanics of its neighbours.

use std::fmt;

use serde::Serialize;

use super::Choices;
use crate::error::Refusal;
use crate::host::Host;
use crate::layers::Layer;
use crate::plan::{Draft, Stage};
use crate::room::{Profile, Room};
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site};

/// The steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// seccomp(2) with the program for these choices.
    Load {
        /// Whether refusals are recorded.
        record: bool,
        /// Whether what nested rooms need is allowed.
        nested: bool,
        /// Whether 32-bit programs run.
        compat: bool,
        /// Whether changes of owner answer success and do nothing.
        ignore_chown: bool,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Load { record, nested, compat, ignore_chown } = self;
        f.write_str("load the system call filter")?;
        for (on, words) in [
            (*record, ", refusals recorded"),
            (*nested, ", entering namespaces allowed"),
            (!*compat, ", no 32-bit programs"),
            (*ignore_chown, ", changes of owner do nothing"),
        ] {
            if on {
                f.write_str(words)?;
            }
        }
        Ok(())
    }
}

pub(in crate::layers) fn plan(room: &Room, _: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    if room.has(Layer::Seccomp) {
        draft.add(
            Stage::Seccomp,
            Action::Load {
                record: room.record_refusals(),
                nested: room.profile == Profile::Nested,
                compat: room.seccomp.compat,
                ignore_chown: room.seccomp.ignore_chown,
            },
        );
    }
    Ok(())
}

pub(in crate::layers) fn apply(action: &Action, site: &mut Site<'_>) -> Outcome {
    let Action::Load { record, nested, compat, ignore_chown } = *action;
    site.listener = site.sys.load_filter(Choices { record, nested, compat, ignore_chown })?;
    let recording = match (record, &site.listener) {
        (true, Some(_)) => "on",
        (true, None) => "impossible here: an outer sandbox listens already, or the kernel is older than 5.0",
        (false, _) => "off",
    };
    site.note(Layer::Seccomp, "recording", recording);
    if ignore_chown {
        site.note(Layer::Seccomp, "chown", "does nothing");
    }
    Ok(())
}

pub(in crate::layers) fn verify(_: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    finding.expect("Seccomp", view.status("Seccomp"), "2");
    finding.fact("Seccomp_filters", view.status("Seccomp_filters").unwrap_or("unknown"));
    for key in ["recording", "chown"] {
        if let Some(noted) = view.note(Layer::Seccomp, key) {
            finding.fact(key, noted);
        }
    }
    finding
}
