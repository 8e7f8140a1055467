//! Stages of a guest: what takes long is done once and kept.
//!
//! ```text
//! install: blank disk + media + answers ──► a disk, powered off
//! suspend: that disk + a controller     ──► both memories, saved together, shares not mounted
//! revive:  a saved pair                 ──► both run, in a moment; as often and as many as wanted
//! ```
//!
//! A stage is kept in a [`Cache`] under a key of everything that it depends on ([`Fields`]). One that is there is used; one with
//! another key is made anew, and what differs is told by its name. Each runs alone: what is here runs the machines of one, in the
//! room that it finds itself in, and writes into a directory that its caller made and finishes.

mod cache;
mod carried;
mod install;
mod key;
mod suspend;

pub use cache::{Cache, Entry, InUse, Making, RECORD, Record};
pub use install::{InstallSpec, install};
pub use key::{Difference, Fields};
pub use suspend::{
    Parts, guest_start, overlay, prepare, ready, revive, suspend, suspend_key, suspended_files, suspended_memories,
};

use serde::{Deserialize, Serialize};

/// The disk of a stage.
pub const DISK: &str = "disk.qcow2";

/// A stage that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// A disk with a system.
    Install,
    /// A pair, saved while it rests.
    Suspend,
}

impl Stage {
    /// All of them, in their order.
    pub const ALL: [Self; 2] = [Self::Install, Self::Suspend];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Suspend => "suspend",
        }
    }
}

/// What is told while a stage is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// What is done now.
    Step(&'a str),
    /// A line that a machine said.
    Line(&'a str),
}
