//! Many rooms: in a row, and at once. A suite of its own, so that nothing else is measured.
//!
//! Some hundred by default; ANCHORHOLD_SOAK=1 in the environment asks for the full numbers.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anchorhold_tests::host::{self, Footprint};
use anchorhold_tests::skip;

/// What one of these tests leaves for a moment, the other would see.
static ALONE: Mutex<()> = Mutex::new(());

/// No run of many rooms takes longer than this; slow machines do fewer, and say so.
const TIME: Duration = Duration::from_secs(600);

fn many(few: usize, all: usize) -> usize {
    if std::env::var_os("ANCHORHOLD_SOAK").is_some_and(|value| value == "1") { all } else { few }
}

/// What of the host a room could leak into.
#[derive(Debug, PartialEq, Eq)]
struct Host {
    mounts: BTreeSet<String>,
    id_locks: usize,
    groups: BTreeSet<std::path::PathBuf>,
}

impl Host {
    fn look() -> Self {
        let ours = |line: &&str| line.contains("anchorhold");
        let table = fs::read_to_string("/proc/self/mountinfo").expect("a mount table");
        let run = "/run/anchorhold/ids";
        let held = fs::read_dir(run).into_iter().flatten().flatten().filter(|entry| {
            // A lock that is held cannot be taken.
            fs::File::open(entry.path()).is_ok_and(|file| file.try_lock().is_err())
        });
        Self {
            mounts: table.lines().filter(ours).map(str::to_owned).collect(),
            id_locks: held.count(),
            groups: host::control_groups_named("anchorhold").into_iter().collect(),
        }
    }
}

/// Kernel memory that grows with each namespace, mount and group that is not freed, in kB.
fn kernel_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
    let unreclaimable = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"));
    unreclaimable.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).expect("SUnreclaim")
}

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run_one(footprint: &Footprint) {
    let ended = footprint.room().run(["/bin/true"]);
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""), "{ended:?}");
}

#[test]
fn rooms_in_a_row_leave_nothing() {
    let _alone = alone();
    let footprint = Footprint::new();
    let rooms = many(300, 10_000);
    // The first ones make what stays: the lock directory, caches of the kernel.
    (0..20).for_each(|_| run_one(&footprint));
    let (before, memory_before) = (Host::look(), kernel_memory());
    let begun = Instant::now();
    for number in 0..rooms {
        run_one(&footprint);
        if begun.elapsed() > TIME {
            skip(&format!("only {number} of {rooms} rooms within {TIME:?}"));
            break;
        }
    }
    footprint.assert_nothing_left(-1);
    // The kernel frees namespaces in its own time.
    let same = || Host::look() == before;
    assert!(host::poll_until(anchorhold_tests::PATIENCE, same), "{before:?} became {:?}", Host::look());
    // A room that stayed would hold some hundred kB: namespaces, sixty mounts, a filter.
    let allowed = memory_before + 20 * 1024 + 10 * rooms as u64;
    let settled = || kernel_memory() <= allowed;
    assert!(host::poll_until(anchorhold_tests::PATIENCE, settled), "{memory_before} kB became {} kB", kernel_memory());
}

#[test]
fn rooms_at_once_all_stand_apart_and_all_end() {
    let _alone = alone();
    let footprint = Footprint::new();
    let rooms = many(50, 200);
    let mut running: Vec<_> = (0..rooms).map(|_| footprint.room().start_probe(["hold", &footprint.marker])).collect();
    let mut uids = BTreeSet::new();
    for one in &mut running {
        assert_eq!(one.line(), "ready");
        uids.insert(one.payload().uids[0]);
    }
    if host::is_root() {
        assert_eq!(uids.len(), rooms, "each has a kernel id of its own");
    }
    let supervisors: Vec<_> = running.iter().map(|one| one.pid()).collect();
    for one in &running {
        one.signal(nix::sys::signal::Signal::SIGTERM);
    }
    for one in running {
        assert_eq!(one.to_the_end().status, 128 + 15);
    }
    for supervisor in supervisors {
        assert_eq!(host::locks_of(supervisor), Vec::<String>::new());
    }
    footprint.assert_nothing_left(-1);
}
