//! Control groups: what a room may use of memory, processes, CPU and I/O, and what it did use.
//!
//! The kernel has two generations of this interface, and machines in the field have either or both:
//!
//! * **v2** (`Documentation/admin-guide/cgroup-v2.rst`): one tree for all controllers. Groups may be made below a group
//!   that was *delegated* to us; controllers reach them through `cgroup.subtree_control`, which the kernel refuses to
//!   change while the group itself holds processes (the "no internal processes" rule).
//! * **v1** (`Documentation/admin-guide/cgroup-v1/`): one tree per controller or per set of controllers. No delegation
//!   worth the name: in practice root only.
//! * **hybrid**: controllers in v1 trees, and beside them a v2 tree without controllers, which still has
//!   `cgroup.kill`, `cgroup.freeze` and CPU accounting.
//!
//! The way through this module is a line: [`Layout`] (where each tree is and where we are in it) → [`place`] (where each
//! asked controller will be, or a refusal with its fix) → [`Cgroup::create`] (directories made, limits written and read
//! back) → the room's first process joins → [`Cgroup::kill`], [`Cgroup::account`], [`Cgroup::remove`].
//!
//! # Joining, and what it costs
//!
//! Moving a process between groups takes a lock that all forks of the machine hold for reading; on an idle machine the
//! first writer waits for an RCU grace period (5 to 20 ms measured on Linux 6.18), writers just after it pay 20 µs. Three ways
//! to join, cheapest first:
//!
//! 1. [`Cgroup::v2_directory`] with `clone3(CLONE_INTO_CGROUP)`: born in the group, no migration, no wait (0.2 ms
//!    with the fork). v2 only.
//! 2. [`Cgroup::attach`] by the outer half while the room's first process builds its tree: the wait overlaps with work.
//!    The room must not start the builder before it returned.
//! 3. [`Cgroup::join_files`]: the room's first process writes `0` itself, even after it gave up its ids, because
//!    the kernel checks the credentials of whoever *opened* the file (v1 and v2 alike; proved in `tests/cgroup.rs`).
//!
//! Join **before** `unshare(CLONE_NEWCGROUP)`: the namespace's root is the group one is in at that moment, and a room
//! that sees a group above its own could see its limits.
//!
//! # When the supervisor is killed
//!
//! Every group directory is held open and locked (`flock`) by whoever created it. The kernel drops the lock when the last copy of
//! that descriptor closes, so a group whose lock can be taken has no supervisor, whatever pid namespace it lived in.
//! [`sweep_stale`] ends what is left in such groups and removes them. One leaf stays in a delegated group on purpose,
//! `anchorhold-supervisor`: a process cannot remove the group it is in, and the next start uses it again.

#![forbid(unsafe_code)]

mod account;
mod error;
mod files;
mod freezer;
mod group;
mod layer;
mod layout;
mod placement;
mod setting;
mod stale;
mod v1;
mod v2;

pub use account::Account;
pub use error::{Error, Unusable};
pub use freezer::Freezer;
pub use group::{Cgroup, ReadBack};
pub use layer::{Action, asked, may_be_asked};
pub(super) use layer::{apply, plan, verify};
pub use layout::{Hidden, Hierarchy, Kind, Layout, Version};
pub use placement::{Placement, Site, place};
pub use stale::{GroupName, sweep_below, sweep_stale};

use serde::{Deserialize, Serialize};

/// What is asked of the kernel's resource control. `None` and `false` mean: not asked, so not set up and not required.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Asked {
    /// Most memory of all processes together, page cache and tmpfs pages included, in bytes. The kernel rounds it down
    /// to whole pages.
    pub memory_max: Option<u64>,
    /// Most swap beside that memory, in bytes. In v1 it can be said only together with `memory_max`, because there the
    /// kernel limits the sum.
    pub swap_max: Option<u64>,
    /// Most processes and threads at one time.
    pub pids_max: Option<u64>,
    /// Share of the CPU against sibling groups when it is contended: 1 to 10000, the kernel's default is 100 (v2's scale;
    /// for v1 it is converted to shares).
    pub cpu_weight: Option<u32>,
    /// Ceiling on CPU time.
    pub cpu_max: Option<CpuMax>,
    /// Share of disk time against sibling groups: 1 to 10000, the kernel's default is 100. Acts only on devices whose
    /// scheduler or cost model knows weights (bfq, iocost).
    pub io_weight: Option<u32>,
    /// Whether [`Cgroup::freeze`] must work.
    pub freezer: bool,
    /// Whether to measure what the room used. Best effort: what cannot be measured is listed by
    /// [`Placement::absent`], it is never a refusal.
    pub account: bool,
}

/// A ceiling on CPU time: `quota_us` microseconds of CPU in every `period_us` microseconds of wall time, over all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuMax {
    /// CPU time granted per period, in microseconds, at least 1000.
    pub quota_us: u64,
    /// Length of the period, in microseconds, 1000 to 1000000. 100000 is the kernel's default.
    pub period_us: u64,
}

/// A kernel resource controller, or a capability of the group interface that stands beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Controller {
    /// Memory and swap.
    Memory,
    /// Number of processes and threads.
    Pids,
    /// CPU shares and ceiling; in v2 also CPU accounting.
    Cpu,
    /// CPU accounting, a controller of its own in v1.
    Cpuacct,
    /// Block device I/O; `blkio` in v1.
    Io,
    /// Stopping a whole group; in v2 not a controller but part of every group.
    Freezer,
    /// Killing a whole group at once (`cgroup.kill`, v2 since Linux 5.14); in v1 done by a loop of signals.
    Kill,
}

impl Controller {
    /// The name in v2's `cgroup.controllers`; for [`Controller::Freezer`] and [`Controller::Kill`] the name a person
    /// would use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Cpu => "cpu",
            Controller::Cpuacct => "cpuacct",
            Controller::Io => "io",
            Controller::Freezer => "freezer",
            Controller::Kill => "kill",
        }
    }

    /// The name in `/proc/self/cgroup` and in mount options of a v1 hierarchy.
    #[must_use]
    pub fn v1_name(self) -> &'static str {
        match self {
            Controller::Io => "blkio",
            other => other.name(),
        }
    }
}

impl std::fmt::Display for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Asked {
    /// Whether nothing at all is asked, so that no group needs to exist.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Asked::default()
    }

    /// The controllers without which a limit could not be kept, in a fixed order.
    pub(crate) fn required(&self) -> Vec<Controller> {
        let mut out = Vec::new();
        if self.memory_max.is_some() || self.swap_max.is_some() {
            out.push(Controller::Memory);
        }
        if self.pids_max.is_some() {
            out.push(Controller::Pids);
        }
        if self.cpu_weight.is_some() || self.cpu_max.is_some() {
            out.push(Controller::Cpu);
        }
        if self.io_weight.is_some() {
            out.push(Controller::Io);
        }
        out
    }
}
