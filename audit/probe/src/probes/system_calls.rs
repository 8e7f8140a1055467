//! The surface of system calls: what a filter takes away, by the native and by the foreign entry.

use anchorhold_probe::verdict::{Finding, name_of};

use crate::calls;
use crate::filter::{self, Entry, Passage};
use crate::probe::{Control, Order, Probe, Severity};
use crate::probes::processes::told;

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "sc.io_uring",
        title: "io_uring can be set up",
        severity: Severity::High,
        reference: "io_uring(7); CVE-2022-29582, CVE-2023-2598",
        tries: "Asks for a ring of one entry.",
        safe: "ENOSYS, as on a kernel without it, so that programs fall back",
        meaning: "Operations of a ring pass no system call filter: files are created with set-id bits, attributes are set \
                  and sockets made past every rule. It has also been the richest source of privilege escalations for years.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| {
            let mut parameters = [0_u8; 120];
            Finding::of(calls::raw(libc::SYS_io_uring_setup, &[1, parameters.as_mut_ptr() as usize]))
        },
    },
    surface(
        "sc.userfaultfd",
        "Page faults of the kernel can be handled in user space",
        "userfaultfd(2); CVE-2021-22555 and others were made reliable by it",
        "Opens a descriptor for page faults, those of the kernel's own accesses included.",
        "An attacker stops the kernel in the middle of a copy for as long as they like: races become certain.",
        |_| Finding::of(calls::raw(libc::SYS_userfaultfd, &[libc::O_CLOEXEC as usize])),
    ),
    surface(
        "sc.userfaultfd.user",
        "Page faults can be handled in user space",
        "userfaultfd(2), UFFD_USER_MODE_ONLY",
        "Opens a descriptor for page faults of user mode only.",
        "Weaker than the above, and still a tool for races that no build needs.",
        |_| Finding::of(calls::raw(libc::SYS_userfaultfd, &[libc::O_CLOEXEC as usize | 1])),
    ),
    surface(
        "sc.bpf",
        "Programs and maps can be loaded into the kernel",
        "bpf(2); CVE-2021-3490, CVE-2023-2163",
        "Makes an array of one element, and failing that a socket filter of two instructions.",
        "The verifier's mistakes have been ways to write kernel memory.",
        |_| {
            let attributes = [2_u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let words = [0, attributes.as_ptr() as usize, size_of_val(&attributes)];
            Finding::of(calls::raw(libc::SYS_bpf, &words))
        },
    ),
    surface(
        "sc.perf",
        "Performance counters can be opened",
        "perf_event_open(2); CVE-2023-5717",
        "Opens a software clock that counts its own process in user mode.",
        "Counters leak what neighbours do on the same processor, and their code is large.",
        |_| {
            // struct perf_event_attr: type software (1), size, config task clock (1); kernel and hypervisor excluded.
            let mut attributes = [0_u64; 16];
            attributes[0] = 1 | (128 << 32);
            attributes[1] = 1;
            attributes[5] = (1 << 5) | (1 << 6);
            let words = [attributes.as_ptr() as usize, 0, usize::MAX, usize::MAX, 8];
            Finding::of(calls::raw(libc::SYS_perf_event_open, &words))
        },
    ),
    surface(
        "sc.personality.rie",
        "Everything that is readable can be made executable",
        "personality(2), READ_IMPLIES_EXEC",
        "Sets the personality READ_IMPLIES_EXEC for itself.",
        "Programs started from here have no protection of data against execution.",
        |_| Finding::of(calls::raw(libc::SYS_personality, &[0x040_0000])),
    ),
    Probe::fact(
        "sc.personality.noaslr",
        "Address randomisation can be switched off",
        "Sets the personality ADDR_NO_RANDOMIZE for itself.",
        "Wanted: debuggers and reproducible builds use it.",
        |_| told(calls::raw(libc::SYS_personality, &[0x004_0000])),
    ),
    low(
        "sc.memfd_secret",
        "Memory that nobody else can look at can be made",
        "memfd_secret(2)",
        "Opens a secret memory file.",
        |_| Finding::of(calls::raw(libc::SYS_memfd_secret, &[0])),
    ),
    low(
        "sc.fanotify",
        "File systems can be watched as a whole",
        "fanotify(7)",
        "Makes a group of notifications.",
        |_| {
            // FAN_CLASS_NOTIF with FAN_REPORT_FID, which is for everybody.
            Finding::of(calls::raw(libc::SYS_fanotify_init, &[0x200, 0]))
        },
    ),
    low("sc.move_pages", "Placement of memory can be asked", "move_pages(2)", "Moves no pages of itself.", |_| {
        Finding::of(calls::raw(libc::SYS_move_pages, &[0, 0, 0, 0, 0, 0]))
    }),
    low(
        "sc.lsm",
        "The host's security modules can be listed",
        "lsm_list_modules(2), Linux 6.8",
        "Lists the modules.",
        |_| {
            let (mut ids, size) = ([0_u64; 32], [256_u32]);
            let words = [ids.as_mut_ptr() as usize, size.as_ptr() as usize, 0];
            Finding::of(calls::raw(461, &words))
        },
    ),
    Probe {
        id: "sc.int80",
        title: "The 32-bit entry has no filter",
        severity: Severity::High,
        reference: "nix-sandbox.md H1; seccomp(2), on architectures",
        tries: "Calls io_uring_setup, userfaultfd, bpf, perf_event_open and memfd_secret by the i386 entry.",
        safe: "the same answers as by the native entry, or no such entry",
        meaning: "Every 64-bit program can make 32-bit calls: a filter that does not check the entry is no filter.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| match foreign() {
            Err(finding) => finding,
            Ok(()) => Finding::worst(same_by_i386()),
        },
    },
    Probe {
        id: "sc.x32",
        title: "The x32 entry works",
        severity: Severity::High,
        reference: "syscall(2); seccomp(2), the x32 bit",
        tries: "Asks for its process id with bit 30 of the number set.",
        safe: "ENOSYS",
        meaning: "A filter that compares numbers and forgets the bit refuses nothing on this entry.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| Finding::of(calls::raw(0x4000_0000 | libc::SYS_getpid, &[])),
    },
    Probe {
        id: "sc.ceiling",
        title: "System calls newer than any reviewed one reach the kernel",
        severity: Severity::High,
        reference: "NixOS/nix issue 10424 (a deny-list without a ceiling)",
        tries: "Asks of numbers that no kernel has yet, by the native and the i386 entry, whether a filter answers before \
                the kernel does.",
        safe: "ENOSYS from a filter",
        meaning: "A filter that only names what is bad lets through every call that a future kernel adds.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| {
            Finding::worst([
                ("native".to_owned(), ceiling(Entry::Native)),
                ("i386".to_owned(), if foreign().is_ok() { ceiling(Entry::I386) } else { Finding::absent("no entry") }),
            ])
        },
    },
    Probe::fact(
        "sc.errno",
        "What a missing call answers",
        "Calls a number that no kernel has.",
        "Anything but ENOSYS breaks programs that would fall back to an older call.",
        |_| told(calls::raw(1000, &[])),
    ),
    Probe::fact(
        "sc.nested.seccomp",
        "Own filters can be added",
        "Adds a filter that allows everything.",
        "Browsers, service managers and sandboxes within builds need it.",
        |_| {
            let program = [[0x06_u8, 0, 0, 0, 0, 0, 0xff, 0x7f]];
            let description = [program.len(), program.as_ptr() as usize];
            let _ = calls::prctl(libc::PR_SET_NO_NEW_PRIVS, &[1]);
            told(calls::raw(libc::SYS_seccomp, &[1, 0, description.as_ptr() as usize]))
        },
    ),
    Probe::fact(
        "sc.nested.landlock",
        "Own Landlock rules can be added",
        "Asks for the version of Landlock, and makes a rule set.",
        "Programs of builds confine themselves with it.",
        |_| {
            let version = calls::raw(libc::SYS_landlock_create_ruleset, &[0, 0, 1]);
            let attributes = [1_u64];
            let made = calls::raw(libc::SYS_landlock_create_ruleset, &[attributes.as_ptr() as usize, 8, 0]);
            match (version, made) {
                (Ok(version), Ok(_)) => Finding::info(format!("version {version}")),
                (Err(errno), _) | (_, Err(errno)) => Finding::info(name_of(errno)),
            }
        },
    ),
    Probe::fact(
        "sc.memfd.exec",
        "Anonymous files can be executed",
        "Writes a script into an anonymous file and executes it.",
        "Builds do it; it means that read-only mounts alone do not keep foreign code from running.",
        |_| executed_from_memory(),
    ),
    Probe {
        id: "sc.obsolete",
        title: "Calls of the last century reach the kernel",
        severity: Severity::Low,
        reference: "nix-sandbox.md P3",
        tries: "Asks of uselib, ustat, sysfs, lookup_dcookie and modify_ldt, by both entries, whether a filter answers \
                before the kernel does.",
        safe: "refused by a filter",
        meaning: "No program needs them, and their code is the least read of all.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| {
            let native = let_through(Entry::Native, OBSOLETE);
            let foreign = match foreign() {
                Ok(()) => let_through(Entry::I386, OBSOLETE_I386),
                Err(_) => Finding::absent("no entry"),
            };
            Finding::worst([("native".to_owned(), native), ("i386".to_owned(), foreign)])
        },
    },
];

/// Numbers of the native entry.
#[cfg(target_arch = "x86_64")]
const OBSOLETE: &[(&str, u32)] =
    &[("uselib", 134), ("ustat", 136), ("sysfs", 139), ("lookup_dcookie", 212), ("modify_ldt", 154)];
#[cfg(not(target_arch = "x86_64"))]
const OBSOLETE: &[(&str, u32)] = &[("lookup_dcookie", 18)];

/// Numbers of the i386 entry.
const OBSOLETE_I386: &[(&str, u32)] =
    &[("uselib", 86), ("ustat", 62), ("sysfs", 135), ("lookup_dcookie", 253), ("modify_ldt", 123)];

/// Numbers that no kernel has: the next few, and some far away.
const NOBODYS: &[u32] = &[480, 500, 600, 1000];

/// The probe of one call that exploits like and builds do not need.
const fn surface(
    id: &'static str,
    title: &'static str,
    reference: &'static str,
    tries: &'static str,
    meaning: &'static str,
    run: fn(&anchorhold_probe::world::World) -> Finding,
) -> Probe {
    Probe {
        id,
        title,
        severity: Severity::Medium,
        reference,
        tries,
        safe: "EPERM or ENOSYS",
        meaning,
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: false,
        run,
    }
}

/// The probe of one call that is only more surface than needed.
const fn low(
    id: &'static str,
    title: &'static str,
    reference: &'static str,
    tries: &'static str,
    run: fn(&anchorhold_probe::world::World) -> Finding,
) -> Probe {
    Probe {
        id,
        title,
        severity: Severity::Low,
        reference,
        tries,
        safe: "ENOSYS or EPERM",
        meaning: "More kernel than a build needs.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run,
    }
}

/// Whether the i386 entry works at all. A kernel without it ends the caller, so a child asks.
fn foreign() -> Result<(), Finding> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(Finding::absent("the processor has no such entry"));
    }
    const GETPID: u32 = 20;
    let status = calls::spawn(|| i32::from(calls::int80(GETPID, [0; 5]).is_err())).and_then(calls::wait);
    match status {
        Ok(status) if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS => {
            Err(Finding::refused(libc::EPERM).with("killed by the filter (SIGSYS)"))
        }
        Ok(status) if libc::WIFSIGNALED(status) => Err(Finding::absent("the kernel has no such entry")),
        Ok(0) => Ok(()),
        Ok(_) => Err(Finding::refused(libc::ENOSYS)),
        Err(errno) => Err(Finding::inconclusive(name_of(errno))),
    }
}

/// Refused calls by the i386 entry, with arguments that need no pointers where that is possible.
fn same_by_i386() -> Vec<(String, Finding)> {
    // Where the memory cannot be had, EFAULT is an answer of the kernel as well.
    let zeros = calls::LowMemory::holding(&[0; 128]).map_or(0, |memory| memory.pointer());
    [
        ("io_uring_setup", 425, [1, zeros, 0, 0, 0]),
        ("userfaultfd", 374, [1, 0, 0, 0, 0]),
        ("bpf", 357, [0, zeros, 72, 0, 0]),
        ("perf_event_open", 336, [zeros, 0, u32::MAX, u32::MAX, 0]),
        ("memfd_secret", 447, [0, 0, 0, 0, 0]),
    ]
    .map(|(name, number, arguments)| {
        // A wrong argument is what the kernel complains of, not a filter.
        let after = [libc::EINVAL, libc::EFAULT, libc::E2BIG, libc::ENOENT];
        (name.to_owned(), Finding::past(calls::int80(number, arguments), &after))
    })
    .into()
}

fn ceiling(entry: Entry) -> Finding {
    match filter::passages(entry, NOBODYS) {
        Err(reason) => Finding::inconclusive(reason),
        Ok(passages) => {
            let open = filter::open(NOBODYS, &passages);
            match (open.is_empty(), passages.first()) {
                (false, _) => Finding::reached(format!("numbers {}", filter::ranges(&open))),
                (true, Some(Passage::Refused(errno))) => Finding::refused(*errno),
                (true, _) => Finding::refused(libc::EPERM).with("killed by the filter"),
            }
        }
    }
}

/// Which of some calls come through.
fn let_through(entry: Entry, named: &[(&str, u32)]) -> Finding {
    let numbers: Vec<u32> = named.iter().map(|(_, number)| *number).collect();
    match filter::passages(entry, &numbers) {
        Err(reason) => Finding::inconclusive(reason),
        Ok(passages) => Finding::worst(named.iter().zip(passages).map(|((name, _), passage)| {
            let finding = match passage {
                Passage::Through => Finding::reached(""),
                Passage::Refused(errno) => Finding::refused(errno),
                Passage::Killed => Finding::refused(libc::EPERM),
            };
            ((*name).to_owned(), finding)
        })),
    }
}

fn executed_from_memory() -> Finding {
    let name = calls::c_path("anchorhold-probe");
    let file = match calls::raw(libc::SYS_memfd_create, &[name.as_ptr() as usize, 0]) {
        Ok(file) => file as i32,
        Err(errno) => return Finding::info(name_of(errno)),
    };
    // Too short for any program: ENOEXEC means that executing as such is allowed.
    let _ = calls::write(file, b"no program");
    let _ = calls::raw(libc::SYS_fchmod, &[file as usize, 0o755]);
    let (empty, nothing) = (calls::c_path(""), [0_usize]);
    let words = [file as usize, empty.as_ptr() as usize, nothing.as_ptr() as usize, nothing.as_ptr() as usize, 0x1000];
    match calls::raw(libc::SYS_execveat, &words) {
        Err(libc::ENOEXEC) => Finding::info("works"),
        Err(errno) => Finding::info(name_of(errno)),
        Ok(_) => Finding::info("works"),
    }
}
