//! What a room used, as the kernel counted it for the whole group: also for processes that nobody waited for.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::files::{keyed, read_keyed, read_number};
use super::{Controller, Version};

/// The account of a room. `None` means that nothing measured it, never that it was zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// CPU time in user mode, in microseconds.
    pub cpu_user_us: Option<u64>,
    /// CPU time in the kernel, in microseconds.
    pub cpu_system_us: Option<u64>,
    /// Time that the room was ready to run and held back by its CPU ceiling, in microseconds.
    pub cpu_throttled_us: Option<u64>,
    /// Most memory at one time, page cache included, in bytes (v2: since Linux 5.19).
    pub memory_peak: Option<u64>,
    /// Most swap at one time, in bytes (v2 only, since Linux 6.5).
    pub swap_peak: Option<u64>,
    /// Most processes and threads at one time (since Linux 6.1).
    pub pids_peak: Option<u64>,
    /// Bytes read from block devices; what the page cache answered is not among them.
    pub io_read: Option<u64>,
    /// Bytes written to block devices. Written back later than the build's end: it belongs to nobody's account.
    pub io_written: Option<u64>,
}

impl Account {
    /// Adds what one group knows. Earlier groups win, so that v2's finer figures come before v1's.
    pub(super) fn add(&mut self, version: Version, controllers: &[Controller], group: &Path) {
        match version {
            Version::V2 => self.add_v2(group),
            Version::V1 => controllers.iter().for_each(|c| self.add_v1(*c, group)),
        }
    }

    fn add_v2(&mut self, group: &Path) {
        let cpu = fs::read_to_string(group.join("cpu.stat")).unwrap_or_default();
        set(&mut self.cpu_user_us, || keyed(&cpu, "user_usec"));
        set(&mut self.cpu_system_us, || keyed(&cpu, "system_usec"));
        set(&mut self.cpu_throttled_us, || keyed(&cpu, "throttled_usec"));
        set(&mut self.memory_peak, || read_number(&group.join("memory.peak")));
        set(&mut self.swap_peak, || read_number(&group.join("memory.swap.peak")));
        set(&mut self.pids_peak, || read_number(&group.join("pids.peak")));
        if let Ok(io) = fs::read_to_string(group.join("io.stat")) {
            let (read, written) = io_stat(&io);
            set(&mut self.io_read, || Some(read));
            set(&mut self.io_written, || Some(written));
        }
    }

    fn add_v1(&mut self, controller: Controller, group: &Path) {
        match controller {
            Controller::Memory => {
                set(&mut self.memory_peak, || read_number(&group.join("memory.max_usage_in_bytes")));
            }
            Controller::Pids => set(&mut self.pids_peak, || read_number(&group.join("pids.peak"))),
            Controller::Cpu => {
                set(&mut self.cpu_throttled_us, || {
                    // v1 counts in nanoseconds.
                    read_keyed(&group.join("cpu.stat"), "throttled_time").map(|ns| ns / 1000)
                });
            }
            Controller::Cpuacct => {
                let us = |file: &str| read_number(&group.join(file)).map(|ns| ns / 1000);
                set(&mut self.cpu_user_us, || us("cpuacct.usage_user"));
                set(&mut self.cpu_system_us, || us("cpuacct.usage_sys"));
            }
            Controller::Io => {
                if let Ok(text) = fs::read_to_string(group.join("blkio.throttle.io_service_bytes_recursive")) {
                    let (read, written) = blkio(&text);
                    set(&mut self.io_read, || Some(read));
                    set(&mut self.io_written, || Some(written));
                }
            }
            Controller::Freezer | Controller::Kill => {}
        }
    }
}

fn set(slot: &mut Option<u64>, value: impl FnOnce() -> Option<u64>) {
    if slot.is_none() {
        *slot = value();
    }
}

/// Sums over the devices of v2's `io.stat`: lines of `8:0 rbytes=1 wbytes=2 …`.
fn io_stat(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        text.split_whitespace().filter_map(|w| w.strip_prefix(key)?.parse::<u64>().ok()).fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

/// Sums over the devices of a v1 blkio table: lines of `8:0 Read 1`.
fn blkio(text: &str) -> (u64, u64) {
    let sum = |operation: &str| {
        text.lines()
            .filter_map(|l| {
                let mut words = l.split_whitespace();
                let (_, op, bytes) = (words.next()?, words.next()?, words.next()?);
                (op == operation).then(|| bytes.parse::<u64>().ok())?
            })
            .fold(0, u64::saturating_add)
    };
    (sum("Read"), sum("Write"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_tables_are_summed_over_devices() {
        let v2 = "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=3 dios=0\n254:1 rbytes=1 wbytes=2 rios=1 wios=1 dbytes=0 dios=0\n";
        assert_eq!(io_stat(v2), (11, 22));
        let v1 = "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:0 Total 30\n254:1 Read 1\n254:1 Write 2\nTotal 33\n";
        assert_eq!(blkio(v1), (11, 22));
        assert_eq!(io_stat(""), (0, 0));
    }

    #[test]
    fn figures_of_v2_are_read_from_its_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cpu.stat"), "usage_usec 30\nuser_usec 10\nsystem_usec 20\nthrottled_usec 5\n")
            .unwrap();
        fs::write(dir.path().join("memory.peak"), "4096\n").unwrap();
        let mut account = Account::default();
        account.add(Version::V2, &[], dir.path());
        let expected = Account {
            cpu_user_us: Some(10),
            cpu_system_us: Some(20),
            cpu_throttled_us: Some(5),
            memory_peak: Some(4096),
            ..Account::default()
        };
        assert_eq!(account, expected);
    }
}
