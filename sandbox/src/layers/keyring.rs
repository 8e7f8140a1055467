//! A fresh session keyring: without it the payload holds its caller's, can read the keys in it and leave some there for the
//! next build. keyrings(7).

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
    /// keyctl(2) `KEYCTL_JOIN_SESSION_KEYRING`.
    Join,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("join a fresh anonymous session keyring")
    }
}

pub(super) fn plan(room: &Room, _: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    if room.has(Layer::Keyring) {
        draft.add(Stage::Session, Action::Join);
    }
    Ok(())
}

pub(super) fn apply(Action::Join: &Action, site: &mut Site<'_>) -> Outcome {
    match site.sys.new_session_keyring() {
        // A kernel without keyrings has none to leak.
        Err(nix::errno::Errno::ENOSYS) => site.note(Layer::Keyring, "none", "the kernel has no keyrings"),
        Err(errno) => return Err(errno.into()),
        Ok(()) => {
            let serial = site.sys.session_keyring()?;
            site.note(Layer::Keyring, "session", serial.to_string());
        }
    }
    Ok(())
}

pub(super) fn verify(_: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    match (view.note(Layer::Keyring, "session"), view.note(Layer::Keyring, "none")) {
        (Some(inside), _) if inside == view.own_keyring => finding.wrong("the session keyring is the launcher's own"),
        (Some(inside), _) => finding.fact("session", inside),
        (None, Some(why)) => finding.fact("none", why),
        (None, None) => finding.wrong("the room did not report its session keyring"),
    }
    finding
}
