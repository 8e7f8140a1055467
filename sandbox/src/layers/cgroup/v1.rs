//! The older interface: one tree per controller, limits under other names, killing by hand.

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill as signal};
use nix::unistd::{Pid, getpid};

use super::setting::Setting;
use super::{Asked, Controller, Error, files};

/// What the kernel allows in `cpu.shares` (kernel/sched/sched.h, `MIN_SHARES` and `MAX_SHARES`).
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// The limits of `asked` as files of a v1 group whose tree has `controllers`.
pub(super) fn settings(asked: &Asked, controllers: &[Controller]) -> Vec<Setting> {
    let has = |c| controllers.contains(&c);
    let mut out = Vec::new();
    if has(Controller::Memory)
        && let Some(memory) = asked.memory_max
    {
        out.push(Setting::bytes(Controller::Memory, "memory.limit_in_bytes", memory));
        if let Some(swap) = asked.swap_max {
            // The kernel refuses a sum below the memory limit, so it comes second.
            let sum = memory.saturating_add(swap);
            out.push(Setting::bytes(Controller::Memory, "memory.memsw.limit_in_bytes", sum));
        }
    }
    if has(Controller::Pids)
        && let Some(count) = asked.pids_max
    {
        out.push(Setting::new(Controller::Pids, "pids.max", count.to_string()));
    }
    if has(Controller::Cpu) {
        if let Some(weight) = asked.cpu_weight {
            out.push(Setting::new(Controller::Cpu, "cpu.shares", shares(weight).to_string()));
        }
        if let Some(max) = asked.cpu_max {
            // Period first: a quota is judged against the period that is set.
            out.push(Setting::new(Controller::Cpu, "cpu.cfs_period_us", max.period_us.to_string()));
            out.push(Setting::new(Controller::Cpu, "cpu.cfs_quota_us", max.quota_us.to_string()));
        }
    }
    if has(Controller::Io)
        && let Some(weight) = asked.io_weight
    {
        // Before Linux 5.0 the weight belonged to the CFQ scheduler, with the same scale but from 10.
        let older = Setting::weight(Controller::Io, "blkio.weight", bfq_weight(weight).max(10));
        out.push(Setting::weight(Controller::Io, "blkio.bfq.weight", bfq_weight(weight)).or(older));
    }
    out
}

/// `cpu.shares` for a v2 weight. Both are proportions, so the conversion keeps them: the defaults 100 and 1024 are each
/// other's image, and twice the weight is twice the shares. Bounds are the kernel's.
pub(super) fn shares(weight: u32) -> u64 {
    (u64::from(weight) * 1024 / 100).clamp(*SHARES.start(), *SHARES.end())
}

/// bfq's weight (1 to 1000, default 100) for a v2 weight (1 to 10000, default 100): equal up to the default, compressed
/// above it so that the two ends meet.
pub(super) fn bfq_weight(weight: u32) -> u32 {
    let weight = weight.clamp(1, 10_000);
    if weight <= 100 { weight } else { 100 + (weight - 100) * 900 / 9_900 }
}

/// Ends all processes of a group by signals, round after round until none is left, for at most `limit`.
///
/// With a freezer the group is frozen while it is read, so that a fork bomb cannot outrun the loop; without one the rounds
/// alone must win, which `pids.max` helps. A process that is killed while frozen dies when it is thawed.
pub(super) fn kill(group: &Path, freezer: Option<&Path>, limit: Duration) -> Result<(), Error> {
    files::await_state(group, "empty", limit, || {
        if let Some(freezer) = freezer {
            // Not waited for: a task that is slow to freeze is caught by the next round.
            files::write(&freezer.join("freezer.state"), "FROZEN")?;
        }
        let killed = kill_once(group);
        if let Some(freezer) = freezer {
            files::write(&freezer.join("freezer.state"), "THAWED")?;
        }
        killed.map(|count| count == 0)
    })
}

/// Signals every process of the group once; returns how many were there.
fn kill_once(group: &Path) -> Result<usize, Error> {
    let all = files::processes(group)?;
    for &pid in &all {
        // 0 stands for a process that our pid namespace cannot name, and to kill(2) it would mean our own process group.
        if pid <= 1 || pid == getpid().as_raw() {
            continue;
        }
        match signal(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => {
                return Err(Error::Kernel {
                    doing: format!("killing process {pid} of"),
                    path: group.to_owned(),
                    errno,
                });
            }
        }
    }
    Ok(all.len())
}

pub(super) fn await_empty(group: &Path, limit: Duration) -> Result<(), Error> {
    files::await_state(group, "empty", limit, || Ok(files::processes(group)?.is_empty()))
}

pub(super) fn freeze(group: &Path, frozen: bool, limit: Duration) -> Result<(), Error> {
    let (value, state) = if frozen { ("FROZEN", "frozen") } else { ("THAWED", "thawed") };
    let path = group.join("freezer.state");
    files::write(&path, value)?;
    // FREEZING is reported until the last task stopped; nobody is told when (cgroup-v1/freezer-subsystem.rst).
    files::await_state(group, state, limit, || Ok(files::read(&path)?.trim() == value))
}

#[cfg(test)]
mod tests {
    use super::super::CpuMax;
    use super::*;

    #[test]
    fn weights_keep_their_proportions_as_shares() {
        assert_eq!(shares(100), 1024);
        assert_eq!(shares(200), 2048);
        assert_eq!(shares(50), 512);
        assert_eq!(shares(1), 10);
        assert_eq!(shares(0), 2);
        assert_eq!(shares(10_000), 102_400);
        assert_eq!(shares(u32::MAX), 262_144);
    }

    #[test]
    fn bfq_weights_meet_at_default_and_ends() {
        assert_eq!([1, 50, 100, 10_000].map(bfq_weight), [1, 50, 100, 1000]);
        assert_eq!(bfq_weight(0), 1);
        assert_eq!(bfq_weight(u32::MAX), 1000);
        assert!((101..10_000).all(|w| bfq_weight(w) <= bfq_weight(w + 1)));
    }

    #[test]
    fn swap_is_a_sum_and_comes_after_memory() {
        let asked = Asked { memory_max: Some(4096), swap_max: Some(8192), ..Asked::default() };
        let files: Vec<_> = settings(&asked, &[Controller::Memory]).into_iter().map(|s| (s.file, s.value)).collect();
        assert_eq!(
            files,
            [("memory.limit_in_bytes", "4096".to_owned()), ("memory.memsw.limit_in_bytes", "12288".to_owned())]
        );
    }

    #[test]
    fn a_period_is_set_before_its_quota() {
        let asked = Asked { cpu_max: Some(CpuMax { quota_us: 1000, period_us: 2000 }), ..Asked::default() };
        let files: Vec<_> = settings(&asked, &[Controller::Cpu]).into_iter().map(|s| s.file).collect();
        assert_eq!(files, ["cpu.cfs_period_us", "cpu.cfs_quota_us"]);
    }
}
