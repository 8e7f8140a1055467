//! The layer's three parts, over the mechanics of its neighbours.

use std::fmt;

use nix::errno::Errno;
use serde::Serialize;

use super::{Asked, Cgroup, CpuMax, Error, GroupName, Placement, place, sweep_stale};
use crate::error::Refusal;
use crate::host::Host;
use crate::layers::Layer;
use crate::plan::{Draft, Stage};
use crate::room::{Limits, Outside, Room};
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site, Trouble};

/// The steps. All are the supervisor's.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Makes the group and writes its limits.
    Create(Placement),
    /// Moves the room's first process into it.
    Join,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(placement) => {
                let limits: Vec<_> = placement
                    .sites
                    .iter()
                    .flat_map(super::Site::limits)
                    .map(|(file, value)| format!("{file}={value}"))
                    .collect();
                let parents: Vec<_> = placement.sites.iter().map(|site| site.parent.display().to_string()).collect();
                write!(f, "make a control group in {}", parents.join(", "))?;
                if limits.is_empty() { Ok(()) } else { write!(f, " with {}", limits.join(", ")) }
            }
            Self::Join => f.write_str("move the room's first process into its control group"),
        }
    }
}

/// What the room's limits ask of control groups.
pub fn asked(room: &Room, host: &Host) -> Asked {
    let limits = &room.limits;
    let range = room.identity.outside == Outside::Range;
    let mut asked = Asked {
        memory_max: limits.memory.map(|size| size.bytes(host.memory)),
        // Swap beside the limit would be a second helping of memory.
        swap_max: limits.memory.map(|_| 0),
        pids_max: None,
        cpu_weight: limits.cpu_weight,
        cpu_max: limits.cpu.map(|processors| {
            let period_us = 100_000;
            CpuMax { quota_us: (processors * period_us as f64).max(1000.0) as u64, period_us }
        }),
        io_weight: limits.io_weight,
        freezer: false,
        account: limits.account,
    };
    // RLIMIT_NPROC is exact where the kernel counts it per user namespace, and the room's processes all have one id. Where there
    // is a group anyway, it counts too.
    if limits.pids.is_some() && (range || !host.counts_processes_per_namespace || !asked.is_nothing()) {
        asked.pids_max = limits.pids;
    }
    asked
}

/// Whether these limits may need a control group, so that it is worth asking the host about them.
pub fn may_be_asked(limits: &Limits) -> bool {
    *limits != Limits { time: limits.time, silence: limits.silence, output: limits.output, ..Limits::default() }
}

pub(in crate::layers) fn plan(room: &Room, host: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    let limits = &room.limits;
    let refuse = |what: String, why: &str, fix: &str| Err(Refusal::new(Layer::Cgroup, what, why, fix));
    if let Some(processors) = limits.cpu
        && !(processors.is_finite() && (0.01..=100_000.0).contains(&processors))
    {
        return refuse(
            format!("cpu = {processors}"),
            "it is a number of processors, at least 0.01",
            "write for example 1.5",
        );
    }
    let asked = asked(room, host);
    if asked.is_nothing() {
        return Ok(());
    }
    if !room.has(Layer::Cgroup) {
        return refuse(
            "limits in a room without the layer cgroup".into(),
            "these exclude each other",
            "leave out one of them",
        );
    }
    let unusable = |controller: String, why: &str, fix: &str| refuse(controller, why, fix);
    match &host.cgroups {
        Err(why) => unusable("control groups".into(), why, "mount them, or ask for no such limit"),
        Ok(layout) => match place(layout, &asked).or_else(|missing| {
            // Swap is our addition to what was asked, and some kernels do not count it.
            let without_swap = Asked { swap_max: None, ..asked.clone() };
            let placement = place(layout, &without_swap).map_err(|_| missing.clone())?;
            draft.weaken(Layer::Cgroup, format!("swap is not limited: {}", missing.why));
            Ok::<_, super::Unusable>(placement)
        }) {
            Ok(placement) => {
                for absent in &placement.absent {
                    draft.weaken(Layer::Cgroup, format!("{} is not measured: {}", absent.controller, absent.why));
                }
                draft.add(Stage::Reserve, Action::Create(placement));
                draft.add(Stage::Join, Action::Join);
                Ok(())
            }
            Err(missing) => unusable(format!("the controller {}", missing.controller), &missing.why, &missing.fix),
        },
    }
}

pub(in crate::layers) fn apply(action: &Action, site: &mut Site<'_>) -> Outcome {
    match action {
        Action::Create(placement) => {
            // What killed supervisors left behind goes first; what is left then is somebody's.
            if let Ok(layout) = super::Layout::detect() {
                let swept = sweep_stale(&layout);
                if swept > 0 {
                    site.note(Layer::Cgroup, "swept", swept.to_string());
                }
            }
            site.cgroup = Some(GroupName::unique().and_then(|name| Cgroup::create(placement, &name)).map_err(trouble)?);
        }
        Action::Join => {
            let first = site.child.ok_or(Errno::ESRCH)?;
            site.cgroup.as_ref().ok_or(Errno::ENOENT)?.attach(first).map_err(trouble)?;
        }
    }
    Ok(())
}

fn trouble(error: Error) -> Trouble {
    Trouble::new(error.errno().unwrap_or(Errno::EIO), error.to_string())
}

pub(in crate::layers) fn verify(_: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    let Some(group) = view.cgroup else {
        finding.fact("group", "none was asked for");
        return finding;
    };
    match group.read_back() {
        Ok(limits) => {
            for limit in limits {
                finding.fact(limit.file.file_name().unwrap_or_default().to_string_lossy(), limit.holds);
            }
        }
        Err(error) => finding.wrong(error.to_string()),
    }
    for directory in group.directories() {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        match view.read("cgroup") {
            Ok(text) if text.contains(&*name) => {}
            Ok(_) => finding.wrong(format!("the room's first process is not in {}", directory.display())),
            Err(error) => finding.wrong(format!("/proc/PID/cgroup: {error}")),
        }
    }
    finding
}
