//! The unified interface: delegation, limits, and what a v2 group can do that a v1 group cannot.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use super::setting::Setting;
use super::{Asked, Controller, Error, files, v1};

/// The leaf that the supervisor moves itself into, because a group that hands controllers to children may not hold
/// processes itself.
pub(super) const SUPERVISOR: &str = "anchorhold-supervisor";

/// The group below the limited one in which the processes are. A room whose ids own the directories could lift limits in
/// the group that is its cgroup namespace's root; the group with the limits is one above it and out of its sight.
pub(super) const INNER: &str = "room";

/// Most groups that may be made below the limited one, so that removing them is bounded: [`INNER`] and what a build makes
/// that uses control groups itself.
const DESCENDANTS: u32 = 64;

/// The limits of `asked` as files of a v2 group that has `controllers`.
pub(super) fn settings(asked: &Asked, controllers: &[Controller]) -> Vec<Setting> {
    let has = |c| controllers.contains(&c);
    let mut out = vec![Setting::new(Controller::Kill, "cgroup.max.descendants", DESCENDANTS.to_string())];
    if has(Controller::Memory) {
        if let Some(bytes) = asked.memory_max {
            out.push(Setting::bytes(Controller::Memory, "memory.max", bytes));
        }
        if let Some(bytes) = asked.swap_max {
            out.push(Setting::bytes(Controller::Memory, "memory.swap.max", bytes));
        }
        // A build of which one process was shot is not a build; all or nothing (cgroup-v2.rst, "memory.oom.group").
        out.push(Setting::new(Controller::Memory, "memory.oom.group", "1"));
    }
    if has(Controller::Pids)
        && let Some(count) = asked.pids_max
    {
        out.push(Setting::new(Controller::Pids, "pids.max", count.to_string()));
    }
    if has(Controller::Cpu) {
        if let Some(weight) = asked.cpu_weight {
            out.push(Setting::new(Controller::Cpu, "cpu.weight", weight.to_string()));
        }
        if let Some(max) = asked.cpu_max {
            out.push(Setting::new(Controller::Cpu, "cpu.max", format!("{} {}", max.quota_us, max.period_us)));
        }
    }
    if has(Controller::Io)
        && let Some(weight) = asked.io_weight
    {
        // Without the cost model (CONFIG_BLK_CGROUP_IOCOST) only the scheduler's own weight may be there.
        let scheduler = Setting::weight(Controller::Io, "io.bfq.weight", v1::bfq_weight(weight));
        out.push(Setting::weight(Controller::Io, "io.weight", weight).or(scheduler));
    }
    out
}

/// The controllers named in `cgroup.controllers` or `cgroup.subtree_control` of a group.
pub(super) fn controllers(group: &Path, file: &str) -> Result<BTreeSet<String>, Error> {
    Ok(files::read(&group.join(file))?.split_whitespace().map(str::to_owned).collect())
}

/// Whether a group is the machine's root group, which alone may hold processes and hand out controllers: it has no type.
pub(super) fn is_root(group: &Path) -> bool {
    !group.join("cgroup.type").exists()
}

/// Moves this process from `group` into a leaf below it, so that `group` may hand out controllers.
pub(super) fn vacate(group: &Path) -> Result<(), Error> {
    let leaf = group.join(SUPERVISOR);
    match fs::create_dir(&leaf) {
        Ok(()) => {}
        // Left by a supervisor before us in the same service.
        Err(e) if e.raw_os_error() == Some(Errno::EEXIST as i32) => {}
        Err(e) => return Err(Error::kernel("making", &leaf, &e)),
    }
    files::write(&leaf.join("cgroup.procs"), "0")
}

/// Hands controllers to the children of `group`.
pub(super) fn enable(group: &Path, controllers: &[Controller]) -> Result<(), Error> {
    let words: Vec<String> = controllers.iter().map(|c| format!("+{c}")).collect();
    files::write(&group.join("cgroup.subtree_control"), &words.join(" "))
}

/// Ends every process in and below a group and waits until none is left.
pub(super) fn kill(group: &Path, limit: Duration) -> Result<(), Error> {
    let file = group.join("cgroup.kill");
    if !file.exists() {
        // Before Linux 5.14. A frozen process dies of the signal all the same in v2.
        let inner = group.join(INNER);
        return v1::kill(if inner.exists() { &inner } else { group }, None, limit);
    }
    files::write(&file, "1")?;
    await_empty(group, limit)
}

pub(super) fn await_empty(group: &Path, limit: Duration) -> Result<(), Error> {
    files::await_event(group, "populated", 0, "empty", limit)
}

pub(super) fn freeze(group: &Path, frozen: bool, limit: Duration) -> Result<(), Error> {
    let (value, state) = if frozen { (1, "frozen") } else { (0, "thawed") };
    files::write(&group.join("cgroup.freeze"), &value.to_string())?;
    files::await_event(group, "frozen", value, state, limit)
}

#[cfg(test)]
mod tests {
    use super::super::CpuMax;
    use super::*;

    #[test]
    fn limits_are_written_only_where_their_controller_is() {
        let asked = Asked {
            memory_max: Some(1 << 20),
            swap_max: Some(0),
            pids_max: Some(7),
            cpu_weight: Some(20),
            cpu_max: Some(CpuMax { quota_us: 5000, period_us: 10000 }),
            io_weight: Some(300),
            ..Asked::default()
        };
        let text = |controllers: &[Controller]| {
            settings(&asked, controllers).iter().map(|s| format!("{}={}", s.file, s.value)).collect::<Vec<_>>()
        };
        assert_eq!(text(&[]), ["cgroup.max.descendants=64"]);
        assert_eq!(text(&[Controller::Pids]), ["cgroup.max.descendants=64", "pids.max=7"]);
        assert_eq!(
            text(&[Controller::Memory, Controller::Pids, Controller::Cpu, Controller::Io]),
            [
                "cgroup.max.descendants=64",
                "memory.max=1048576",
                "memory.swap.max=0",
                "memory.oom.group=1",
                "pids.max=7",
                "cpu.weight=20",
                "cpu.max=5000 10000",
                "io.weight=300"
            ]
        );
    }
}
