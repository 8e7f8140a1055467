//! No capability in any of the five sets, secure bits locked, no new privileges. capabilities(7).

use std::fmt;

use serde::Serialize;

use super::Layer;
use crate::error::Refusal;
use crate::host::Host;
use crate::plan::{Draft, Stage};
use crate::room::Room;
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site};

/// The steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// All sets emptied, secure bits locked.
    Drop,
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivileges,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drop => {
                "empty the effective, permitted, inheritable, bounding and ambient sets, lock the secure bits"
            }
            Self::NoNewPrivileges => "set no_new_privs",
        })
    }
}

pub(super) fn plan(room: &Room, _: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    if room.has(Layer::Capabilities) {
        draft.add(Stage::Capabilities, Action::Drop);
        draft.add(Stage::NoNewPrivileges, Action::NoNewPrivileges);
    }
    Ok(())
}

pub(super) fn apply(action: &Action, site: &mut Site<'_>) -> Outcome {
    match action {
        Action::Drop => site.sys.drop_capabilities()?,
        Action::NoNewPrivileges => site.sys.no_new_privileges()?,
    }
    Ok(())
}

pub(super) fn verify(_: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        finding.expect(set, view.status(set), "0000000000000000");
    }
    finding.expect("NoNewPrivs", view.status("NoNewPrivs"), "1");
    finding
}
