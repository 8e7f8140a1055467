//! Limits: each probe tries to use a bounded amount more than it should, and gives everything back.

use anchorhold_probe::verdict::{Finding, name_of};

use crate::calls;
use crate::files;
use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "res.pids",
        title: "Processes are not limited",
        severity: Severity::Medium,
        reference: "security-probes.md 3.11; cgroups(7), pids controller",
        tries: "Makes sleeping children: one more than the limit that the sandbox was given, else 1,200, and ends them. \
                Where 1,200 stand, asks whether a limit lower than the kernel's own default is in force further on.",
        safe: "EAGAIN at the limit, or such a limit in force",
        meaning: "A build that forks without end takes the host's process table with it.",
        controls: &[Control::Limits],
        order: Order::Last,
        root: false,
        run: |world| processes(world.process_limit),
    },
    Probe {
        id: "res.mem",
        title: "Memory is not limited",
        severity: Severity::Medium,
        reference: "cgroups(7), memory controller",
        tries: "Touches 64 MiB more than the limit that the sandbox was given (at most 2 GiB), in a child. Where none was given, the \
                observer reads the limits of the sandbox's own control groups.",
        safe: "the child is killed, or gets no memory, and the sandbox says so; or there is a limit",
        meaning: "One build takes the memory of all, and the kernel kills something else.",
        controls: &[Control::Limits],
        order: Order::Last,
        root: false,
        run: |world| match world.memory_limit {
            None => Finding::inconclusive(NO_LIMIT),
            Some(limit) if limit > (2 << 30) - (64 << 20) => Finding::inconclusive("the limit is too far away to try"),
            Some(limit) => touched(limit + (64 << 20)),
        },
    },
    Probe {
        id: "res.disk",
        title: "What is written is not limited",
        severity: Severity::Medium,
        reference: "security-probes.md 3.11",
        tries: "Writes 1 MiB more than should fit into the scratch folder (at most 1 GiB), and deletes it.",
        safe: "ENOSPC, EDQUOT or EFBIG at the limit",
        meaning: "One build fills the disk, or the memory behind a tmpfs, for all.",
        controls: &[Control::Limits],
        order: Order::Last,
        root: false,
        run: |world| match (world.disk_limit, &world.scratch) {
            (_, None) => Finding::inconclusive(NO_LIMIT),
            (None, Some(scratch)) => {
                bounded(scratch, |system| (system.size > 0).then(|| format!("{} MiB", system.size >> 20)))
            }
            (Some(limit), _) if limit > 1 << 30 => Finding::inconclusive("the limit is too far away to try"),
            (Some(limit), Some(scratch)) => filled(&scratch.join("anchorhold-probe-fills"), limit + (1 << 20)),
        },
    },
    Probe {
        id: "res.inodes",
        title: "The number of files is not limited",
        severity: Severity::Medium,
        reference: "security-probes.md 3.11",
        tries: "Makes 100 empty files more than should fit into the scratch folder (at most 40,000), and deletes them.",
        safe: "ENOSPC or EDQUOT at the limit",
        meaning: "A disk without inodes is full for everybody, and inodes of a tmpfs are kernel memory.",
        controls: &[Control::Limits],
        order: Order::Last,
        root: false,
        run: |world| match (world.inode_limit, &world.scratch) {
            (_, None) => Finding::inconclusive(NO_LIMIT),
            (None, Some(scratch)) => {
                bounded(scratch, |system| (system.files > 0).then(|| format!("{} files", system.files)))
            }
            (Some(limit), _) if limit > 40_000 => Finding::inconclusive("the limit is too far away to try"),
            (Some(limit), Some(scratch)) => sown(&scratch.join("anchorhold-probe-sows"), limit + 100),
        },
    },
    Probe {
        id: "res.fds",
        title: "Open files of one process are not limited",
        severity: Severity::Low,
        reference: "getrlimit(2), RLIMIT_NOFILE",
        tries: "Raises its own limit as far as it goes and opens 70,000 descriptors.",
        safe: "EMFILE before that",
        meaning: "Descriptors are kernel memory that no memory limit without a control group counts.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |_| descriptors(70_000),
    },
    Probe {
        id: "res.core",
        title: "Core files can be written",
        severity: Severity::Low,
        reference: "core(5), RLIMIT_CORE",
        tries: "Asks how far its limit on core files can be raised.",
        safe: "0",
        meaning: "A crash writes the memory of the program, secrets included, where the host's core_pattern says: often to \
                  a program of the host that runs as root.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |_| match calls::limit(libc::RLIMIT_CORE) {
            Ok((_, 0)) => Finding::refused(libc::EPERM).with("the hard limit is 0"),
            Ok((_, hard)) => Finding::reached(size(hard)),
            Err(errno) => Finding::refused(errno),
        },
    },
    Probe {
        id: "res.cpu",
        title: "Time is not limited",
        severity: Severity::Medium,
        reference: "security-probes.md 3.11",
        tries: "Spins for a second longer than the sandbox may take (at most eight).",
        safe: "the sandbox is ended before, so that the report is cut off here",
        meaning: "A build that never ends keeps its share of the machine for ever.",
        controls: &[Control::Limits],
        order: Order::Last,
        root: false,
        run: |world| match world.time_limit {
            None => Finding::inconclusive(NO_LIMIT),
            Some(limit) if limit > 7 => Finding::inconclusive("the limit is too far away to try"),
            Some(limit) => {
                let started = std::time::Instant::now();
                while started.elapsed().as_secs() <= limit {
                    std::hint::spin_loop();
                }
                Finding::reached(format!("{limit} s are over"))
            }
        },
    },
    Probe {
        id: "res.log",
        title: "What is printed is not limited",
        severity: Severity::Low,
        reference: "security-probes.md 3.11; nix-sandbox.md P8",
        tries: "Prints 1 MiB more than the sandbox may (at most 64 MiB), in one line.",
        safe: "the sandbox is ended before, and nothing hangs",
        meaning: "A log fills the disk of whoever keeps it.",
        controls: &[Control::Limits],
        order: Order::Last,
        root: false,
        run: |world| match world.log_limit {
            None => Finding::inconclusive(NO_LIMIT),
            Some(limit) if limit > 63 << 20 => Finding::inconclusive("the limit is too far away to try"),
            Some(limit) => printed(limit + (1 << 20)),
        },
    },
    Probe {
        id: "res.mlock",
        title: "Memory can be locked",
        severity: Severity::Low,
        reference: "mlock(2), RLIMIT_MEMLOCK, CAP_IPC_LOCK; nix-sandbox.md P8",
        tries: "Locks 128 MiB that it never touches, so that nothing is used.",
        safe: "ENOMEM or EPERM",
        meaning: "What is locked cannot be swapped out: the memory of the host is lost for everybody else.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: false,
        run: |_| locked(128 << 20),
    },
];

/// What a probe says that was told of no limit.
const NO_LIMIT: &str = "the sandbox was not said to have a limit";

/// A file system in memory with a bound is one, without trying it.
fn bounded(scratch: &std::path::Path, bound: impl Fn(&files::FileSystem) -> Option<String>) -> Finding {
    const TMPFS: u64 = 0x0102_1994;
    match files::file_system(scratch) {
        Ok(system) if system.kind == TMPFS => match bound(&system) {
            Some(bound) => Finding::held(format!("a tmpfs of {bound}; not tried")),
            None => Finding::reached("a tmpfs without a bound"),
        },
        _ => Finding::inconclusive(NO_LIMIT),
    }
}

fn printed(bytes: u64) -> Finding {
    let piece = vec![b'.'; 64 << 10];
    let mut written = 0;
    while written < bytes {
        match calls::write(1, &piece) {
            Ok(length) => written += length as u64,
            Err(libc::EINTR) => {}
            Err(errno) => return Finding::refused(errno).with(format!("after {} MiB", written >> 20)),
        }
    }
    let _ = calls::write(1, b"\n");
    Finding::reached(format!("{} MiB", written >> 20))
}

fn locked(bytes: usize) -> Finding {
    const ON_FAULT: usize = 1;
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as usize;
    match calls::raw(libc::SYS_mmap, &[0, bytes, protection, flags, usize::MAX, 0]) {
        Ok(address) => Finding::of(calls::raw(libc::SYS_mlock2, &[address as usize, bytes, ON_FAULT])),
        Err(errno) => Finding::inconclusive(name_of(errno)),
    }
}

/// What `RLIM_INFINITY` is called.
pub fn size(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}

/// The most processes that are made: below what any machine stumbles over.
const MOST: u32 = 1200;

fn processes(limit: Option<u32>) -> Finding {
    if limit.is_some_and(|limit| limit >= 4 * MOST) {
        return Finding::inconclusive("the limit is too far away to try");
    }
    let goal = limit.map_or(MOST, |limit| limit + 1);
    let mut children = Vec::new();
    let mut refused = None;
    // Children end with this pipe, however this process ends.
    let Ok([reader, writer]) = calls::pipe() else { return Finding::inconclusive("no pipe") };
    while children.len() < goal as usize {
        let child = calls::spawn(|| {
            calls::close(writer);
            let _ = calls::read(reader, &mut [0]);
            0
        });
        match child {
            Ok(child) => children.push(child),
            Err(errno) => {
                refused = Some(errno);
                break;
            }
        }
    }
    calls::close(writer);
    let count = children.len();
    for child in children {
        let _ = calls::wait(child);
    }
    let own = match calls::limit(libc::RLIMIT_NPROC) {
        Ok((soft, hard)) => format!("RLIMIT_NPROC {} of {}", size(soft), size(hard)),
        Err(errno) => name_of(errno),
    };
    match refused {
        Some(errno) => Finding::refused(errno).with(format!("after {count} processes")),
        None if limit.is_none() && in_force() => {
            Finding::refused(libc::EAGAIN).with(format!("a limit is in force: {own}"))
        }
        None => Finding::reached(format!("{count} processes; {own}")),
    }
}

/// Whether somebody limited processes more than the kernel does by itself, and the kernel heeds it for this user. What
/// the kernel does by itself is half of the threads that it thinks the memory is enough for.
fn in_force() -> bool {
    let threads = calls::contents("/proc/sys/kernel/threads-max", 64).unwrap_or_default();
    let threads: Option<u64> = String::from_utf8_lossy(&threads).trim().parse().ok();
    let (Some(threads), Ok((_, hard))) = (threads, calls::limit(libc::RLIMIT_NPROC)) else { return false };
    // This process and the battery are two already.
    let one = [1_u64, hard];
    let lowered = calls::raw(libc::SYS_prlimit64, &[0, libc::RLIMIT_NPROC as usize, one.as_ptr() as usize, 0]);
    hard < threads / 2 && lowered.is_ok() && calls::in_child(|| 0) == Err(libc::EAGAIN)
}

fn touched(bytes: u64) -> Finding {
    const PIECE: usize = 1 << 20;
    let child = calls::in_child(|| {
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        for _ in 0..bytes.div_ceil(PIECE as u64) {
            let mut piece = Vec::new();
            if piece.try_reserve_exact(PIECE).is_err() {
                return 1;
            }
            piece.resize(PIECE, 1);
            pieces.push(std::hint::black_box(piece));
        }
        0
    });
    match child {
        Ok(Some(0)) => Finding::reached(format!("{} MiB", bytes >> 20)),
        Ok(Some(_)) => Finding::refused(libc::ENOMEM),
        Ok(None) => Finding::refused(libc::ENOMEM).with("the child was killed"),
        Err(errno) => Finding::inconclusive(name_of(errno)),
    }
}

fn filled(path: &std::path::Path, bytes: u64) -> Finding {
    let file = match calls::open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o600) {
        Ok(file) => file,
        Err(errno) => return Finding::inconclusive(format!("making a file: {}", name_of(errno))),
    };
    let piece = vec![1_u8; 1 << 20];
    let mut written = 0;
    let end = loop {
        match calls::write(file, &piece) {
            Ok(length) => written += length as u64,
            Err(errno) => break Some(errno),
        }
        if written >= bytes {
            break None;
        }
    };
    calls::close(file);
    let _ = std::fs::remove_file(path);
    match end {
        None => Finding::reached(format!("{} MiB", written >> 20)),
        Some(errno) => Finding::refused(errno).with(format!("after {} MiB", written >> 20)),
    }
}

fn sown(folder: &std::path::Path, files: u64) -> Finding {
    if let Err(error) = std::fs::create_dir(folder) {
        return Finding::inconclusive(format!("making a folder: {error}"));
    }
    let end = (0..files).find_map(|number| {
        let made = calls::open(folder.join(number.to_string()), libc::O_WRONLY | libc::O_CREAT, 0o600);
        made.map(calls::close).err().map(|errno| (number, errno))
    });
    let _ = std::fs::remove_dir_all(folder);
    match end {
        None => Finding::reached(format!("{files} files")),
        Some((number, errno)) => Finding::refused(errno).with(format!("after {number} files")),
    }
}

fn descriptors(goal: u64) -> Finding {
    let Ok((_, hard)) = calls::limit(libc::RLIMIT_NOFILE) else { return Finding::inconclusive("no limit is told") };
    let raised = [hard, hard];
    let _ = calls::raw(libc::SYS_prlimit64, &[0, libc::RLIMIT_NOFILE as usize, raised.as_ptr() as usize, 0]);
    let Ok(file) = calls::open("/", libc::O_PATH, 0) else { return Finding::inconclusive("nothing opens") };
    for count in 0..goal {
        if let Err(errno) = calls::raw(libc::SYS_dup, &[file as usize]) {
            return Finding::refused(errno).with(format!("after {count}; the hard limit is {}", size(hard)));
        }
    }
    Finding::reached(format!("{goal}; the hard limit is {}", size(hard)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anchorhold_probe::verdict::Verdict;

    /// A probe changes its own process, so it runs in a child, as in the battery.
    fn told(attempt: impl FnOnce() -> Finding, expected: Verdict) {
        assert_eq!(calls::in_child(|| i32::from(attempt().verdict != expected)), Ok(Some(0)));
    }

    #[test]
    fn a_limit_on_files_is_met_and_its_absence_seen() {
        let lower = || {
            let limits = [64_u64, 64];
            calls::raw(libc::SYS_prlimit64, &[0, libc::RLIMIT_NOFILE as usize, limits.as_ptr() as usize, 0])
                .expect("lowering is for everybody");
        };
        told(
            || {
                lower();
                descriptors(100)
            },
            Verdict::Refused,
        );
        told(|| descriptors(100), Verdict::Reached);
    }

    #[test]
    fn files_and_bytes_are_given_back() {
        let folder = std::env::temp_dir().join(format!("anchorhold-probe-test-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("a folder of our own");
        assert_eq!(filled(&folder.join("fills"), 1 << 20).verdict, Verdict::Reached);
        assert_eq!(sown(&folder.join("sows"), 10).verdict, Verdict::Reached);
        // Removing fails if anything was left.
        std::fs::remove_dir(&folder).expect("nothing is left behind");
    }
}
