//! Processes outside: seen, signalled, read, traced, entered.

use anchorhold_probe::verdict::{Finding, Verdict};
use anchorhold_probe::world::World;

use crate::calls;
use crate::filter::ptrace;
use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "pid.kill",
        title: "A host process can be signalled",
        severity: Severity::High,
        reference: "pid_namespaces(7); NixOS/nix issue 9142",
        tries: "Sends signal 0, which only asks, to the observer's victim.",
        safe: "ESRCH",
        meaning: "Whoever may signal may stop and kill: other builds, the executor, the user's own programs.",
        controls: &[Control::Pid, Control::Host],
        order: Order::Any,
        root: false,
        run: |world| with_victim(world, |victim| Finding::of(calls::kill(victim, 0))),
    },
    Probe {
        id: "pid.kill.group",
        title: "Signals to the own group, or to everybody, leave the sandbox",
        severity: Severity::High,
        reference: "kill(2); NixOS/nix issue 9142",
        tries: "Asks whether its process group or session began outside (then `kill(0)` reaches the group's members there), \
                and whether `kill(-1)` would include the victim. Sends nothing.",
        safe: "group and session are its own, the victim is unknown",
        meaning: "A build that ends by killing its group, as many test suites do, kills its starter and others with it.",
        controls: &[Control::Descriptors, Control::Host],
        order: Order::Any,
        root: false,
        run: group,
    },
    Probe {
        id: "pid.ptrace",
        title: "A host process can be traced",
        severity: Severity::Critical,
        reference: "ptrace(2)",
        tries: "Attaches to the victim without stopping it (PTRACE_SEIZE) and lets go.",
        safe: "ESRCH",
        meaning: "A tracer runs whatever it likes in the traced process: this is the host user, or root.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |world| {
            with_victim(world, |victim| {
                let result = ptrace(libc::PTRACE_SEIZE, victim, 0, 0);
                let _ = ptrace(libc::PTRACE_DETACH, victim, 0, 0);
                Finding::of(result)
            })
        },
    },
    Probe {
        id: "pid.vm_readv",
        title: "A host process's memory can be read by system call",
        severity: Severity::Critical,
        reference: "process_vm_readv(2)",
        tries: "Reads eight bytes at an address that the victim does not have: EFAULT comes after the permission check.",
        safe: "ESRCH",
        meaning: "Keys and secrets of other processes can be read, and by the sister call overwritten.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |world| with_victim(world, |victim| Finding::past(memory_read(victim), &[libc::EFAULT])),
    },
    Probe {
        id: "pid.mem",
        title: "A host process's memory file opens",
        severity: Severity::Critical,
        reference: "proc_pid_mem(5)",
        tries: "Opens /proc/PID/mem of the victim for writing, and writes nothing.",
        safe: "ENOENT",
        meaning: "Its memory can be read and overwritten, also where it is not writable for itself.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |world| with_victim(world, |victim| opened(&format!("/proc/{victim}/mem"), libc::O_RDWR)),
    },
    Probe {
        id: "pid.environ",
        title: "A host process's environment can be read",
        severity: Severity::Critical,
        reference: "proc_pid_environ(5)",
        tries: "Reads /proc/PID/environ of the victim and looks for the nonce.",
        safe: "ENOENT",
        meaning: "Tokens and credentials live in environments.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |world| {
            with_victim(world, |victim| match calls::contents(format!("/proc/{victim}/environ"), 1 << 20) {
                Ok(text) if String::from_utf8_lossy(&text).contains(&world.nonce) => {
                    Finding::reached("the nonce is in it")
                }
                Ok(_) => Finding::absent("another process has the number here"),
                Err(errno) => Finding::refused(errno),
            })
        },
    },
    Probe {
        id: "pid.cwd",
        title: "A host process's folders can be entered through /proc",
        severity: Severity::Critical,
        reference: "proc_pid_root(5)",
        tries: "Opens /proc/PID/root and /proc/PID/cwd of the victim.",
        safe: "ENOENT",
        meaning: "They lead into the mounts of that process: the host's whole tree.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |world| {
            with_victim(world, |victim| {
                Finding::worst(["root", "cwd"].map(|name| {
                    (name.to_owned(), opened(&format!("/proc/{victim}/{name}"), libc::O_RDONLY | libc::O_DIRECTORY))
                }))
            })
        },
    },
    Probe {
        id: "pid.pidfd_getfd",
        title: "A host process's descriptors can be taken",
        severity: Severity::Critical,
        reference: "pidfd_getfd(2)",
        tries: "Opens the victim by pidfd_open(2) and asks for a copy of its descriptor 0.",
        safe: "ESRCH",
        meaning: "Open files, sockets and devices of other processes become the build's own.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |world| {
            with_victim(world, |victim| {
                let taken = calls::raw(libc::SYS_pidfd_open, &[victim as usize, 0])
                    .and_then(|process| calls::raw(libc::SYS_pidfd_getfd, &[process as usize, 0, 0]));
                Finding::past(taken, &[libc::EBADF])
            })
        },
    },
    Probe {
        id: "pid.setns",
        title: "The namespaces of a host process can be joined",
        severity: Severity::Critical,
        reference: "setns(2)",
        tries: "Joins each of the victim's namespaces, by /proc/PID/ns and by a pidfd.",
        safe: "ENOENT, ESRCH or EPERM",
        meaning: "Joining the host's mount namespace undoes the sandbox.",
        controls: &[Control::HostRoot],
        order: Order::Last,
        root: false,
        run: |world| with_victim(world, joined),
    },
    Probe::fact(
        "pid.kcmp",
        "Own processes can be compared",
        "Compares a kernel resource of itself with itself (kcmp).",
        "Debuggers and checkpointing use it; it is bound by the same rules as tracing.",
        |_| {
            let own = calls::raw(libc::SYS_getpid, &[]).unwrap_or(0) as usize;
            told(calls::raw(libc::SYS_kcmp, &[own, own, 1]))
        },
    ),
    Probe::fact(
        "pid.ptrace.own",
        "An own child can be traced",
        "Traces a child that asks for it.",
        "gdb, strace and leak sanitizers need it. A sandbox without it breaks test suites.",
        |_| {
            let traced = calls::in_child(|| i32::from(ptrace(libc::PTRACE_TRACEME, 0, 0, 0).is_err()));
            Finding::info(if traced == Ok(Some(0)) { "works" } else { "does not work" })
        },
    ),
    Probe {
        id: "pid.sched",
        title: "Real-time scheduling and negative nice values",
        severity: Severity::Medium,
        reference: "sched(7), CAP_SYS_NICE",
        tries: "Asks for the class SCHED_FIFO, for nice -1 and for the real-time class of input and output, for itself alone.",
        safe: "EPERM",
        meaning: "One build can take the processors away from everything else on the host.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |_| {
            let priority = [1_i32];
            let fifo = [0, libc::SCHED_FIFO as usize, priority.as_ptr() as usize];
            Finding::worst([
                ("SCHED_FIFO".to_owned(), Finding::of(calls::raw(libc::SYS_sched_setscheduler, &fifo))),
                ("nice -1".to_owned(), Finding::of(calls::raw(libc::SYS_setpriority, &[0, 0, -1_isize as usize]))),
                (
                    "real-time input and output".to_owned(),
                    Finding::of(calls::raw(libc::SYS_ioprio_set, &[1, 0, 1 << 13])),
                ),
            ])
        },
    },
    Probe {
        id: "pid.oom",
        title: "A process can save itself from the end of memory",
        severity: Severity::Medium,
        reference: "proc_pid_oom_score_adj(5), CAP_SYS_RESOURCE",
        tries: "Lowers its own oom_score_adj by one.",
        safe: "EACCES or EROFS",
        meaning: "When memory ends, the kernel then kills something else of the host instead of the build.",
        controls: &[Control::OomScore],
        order: Order::Any,
        root: false,
        run: |_| {
            let path = "/proc/self/oom_score_adj";
            let current =
                calls::contents(path, 64).map(|text| String::from_utf8_lossy(&text).trim().parse::<i32>().unwrap_or(0));
            match current {
                Ok(-1000) => Finding::reached("it is as low as it gets already"),
                Ok(value) => Finding::of(calls::overwrite(path, &(value - 1).to_string())),
                Err(errno) => Finding::refused(errno),
            }
        },
    },
];

/// Tries something with the victim. Its number may be another process's here, which the nonce in its environment tells.
fn with_victim(world: &World, attempt: impl FnOnce(i32) -> Finding) -> Finding {
    let Some(victim) = world.victim else {
        return Finding::inconclusive("no victim was started");
    };
    match calls::contents(format!("/proc/{victim}/environ"), 1 << 20) {
        Ok(text) if !text.is_empty() && !String::from_utf8_lossy(&text).contains(&world.nonce) => {
            Finding::refused(libc::ESRCH).with("another process has the number here")
        }
        _ => attempt(victim),
    }
}

fn group(world: &World) -> Finding {
    let own = [("process group", calls::raw(libc::SYS_getpgid, &[0])), ("session", calls::raw(libc::SYS_getsid, &[0]))];
    // What lies outside the pid namespace is called 0 in it.
    if let Some((name, _)) = own.iter().find(|(_, id)| *id == Ok(0)) {
        return Finding::reached(format!("its {name} began outside"));
    }
    match with_victim(world, |victim| Finding::of(calls::kill(victim, 0))) {
        Finding { verdict: Verdict::Reached, .. } => Finding::reached("kill(-1) includes the victim"),
        finding => finding,
    }
}

/// Opens and closes.
fn opened(path: &str, flags: i32) -> Finding {
    Finding::of(calls::open(path, flags, 0).map(|descriptor| {
        calls::close(descriptor);
        0
    }))
}

/// `process_vm_readv` of eight bytes in the first page but one, which is never mapped.
fn memory_read(process: i32) -> Result<i64, i32> {
    let mut buffer = [0_u8; 8];
    let local = [buffer.as_mut_ptr() as usize, buffer.len()];
    let remote = [4096_usize, buffer.len()];
    calls::raw(
        libc::SYS_process_vm_readv,
        &[process as usize, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1, 0],
    )
}

/// Namespaces by their names in /proc and their flags.
const NAMESPACES: &[(&str, i32)] = &[
    ("user", libc::CLONE_NEWUSER),
    ("mnt", libc::CLONE_NEWNS),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
];

fn joined(victim: i32) -> Finding {
    let by_path = |name: &str, flag: i32| {
        let namespace = calls::open(format!("/proc/{victim}/ns/{name}"), libc::O_RDONLY, 0)?;
        calls::raw(libc::SYS_setns, &[namespace as usize, flag as usize])
    };
    let by_process = |flag: i32| {
        let process = calls::raw(libc::SYS_pidfd_open, &[victim as usize, 0])?;
        calls::raw(libc::SYS_setns, &[process as usize, flag as usize])
    };
    Finding::worst(NAMESPACES.iter().flat_map(|&(name, flag)| {
        [
            (name.to_owned(), Finding::of(by_path(name, flag))),
            (format!("{name} by pidfd"), Finding::of(by_process(flag))),
        ]
    }))
}

/// A fact about a call.
pub fn told(result: Result<i64, i32>) -> Finding {
    match result {
        Ok(_) => Finding::info("works"),
        Err(errno) => Finding::info(anchorhold_probe::verdict::name_of(errno)),
    }
}
