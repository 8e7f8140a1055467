//! What /proc shows and takes: settings of the kernel, its tables and memory, and other processes.

use std::path::Path;

use anchorhold_probe::verdict::{Finding, Verdict, name_of};
use anchorhold_probe::world::World;

use crate::calls;
use crate::files::{self, Descend};
use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "proc.sys.write",
        title: "Settings of the whole kernel can be changed",
        severity: Severity::Critical,
        reference: "proc(5); bubblewrap as root, Nix without build users",
        tries: "Writes back the values of settings that no namespace has of its own.",
        safe: "EROFS or EACCES",
        meaning: "Settings of the kernel are those of the host. kernel.core_pattern alone names a program that the kernel starts as root \
                  outside all sandboxes.",
        controls: &[Control::HostRoot, Control::KernelRoot],
        order: Order::Any,
        root: false,
        run: |_| {
            const GLOBAL: [&str; 3] = ["vm/swappiness", "fs/file-max", "kernel/panic"];
            Finding::worst(GLOBAL.map(|name| (name.to_owned(), written_back(&format!("/proc/sys/{name}")))))
        },
    },
    Probe {
        id: "proc.sys.write.network",
        title: "Settings of the network can be changed",
        severity: Severity::Medium,
        reference: "namespaces(7)",
        tries: "Writes back the time to live of packets, which each network namespace has of its own.",
        safe: "EROFS or EACCES",
        meaning: "In a network namespace of the sandbox's own this weakens only the sandbox; in the host's it changes the host's network.",
        controls: &[Control::HostRoot, Control::KernelRoot],
        order: Order::Any,
        root: false,
        run: |_| written_back("/proc/sys/net/ipv4/ip_default_ttl"),
    },
    Probe {
        id: "proc.sys.count",
        title: "Settings of the kernel may be written",
        severity: Severity::Critical,
        reference: "proc(5)",
        tries: "Asks of every file below /proc/sys, without those that namespaces have of their own, whether it may be written.",
        safe: "none",
        meaning: "Every one is a part of the host that the sandbox can change.",
        controls: &[Control::HostRoot, Control::KernelRoot],
        order: Order::Any,
        root: false,
        run: |_| settings(|path| !of_own_namespaces(path)),
    },
    Probe {
        id: "proc.sys.count.own",
        title: "Settings of its own namespaces may be written",
        severity: Severity::Low,
        reference: "namespaces(7)",
        tries: "The same for those of the network, user, IPC, pid and UTS namespaces, which are the sandbox's own if it has any.",
        safe: "none, but where user namespaces are granted",
        meaning: "Limits on namespaces can be raised again, and a network namespace be weakened.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: false,
        run: |_| settings(of_own_namespaces),
    },
    Probe {
        id: "proc.core_pattern",
        title: "The handler of core dumps can be replaced",
        severity: Severity::Critical,
        reference: "core(5)",
        tries: "Opens /proc/sys/kernel/core_pattern for writing, and writes nothing.",
        safe: "EROFS or EACCES",
        meaning: "The kernel starts a handler after a pipe sign as root, in the host's namespaces: one write and one crash are the host.",
        controls: &[Control::HostRoot, Control::KernelRoot],
        order: Order::Any,
        root: false,
        run: |_| Finding::of(files::opens("/proc/sys/kernel/core_pattern", libc::O_WRONLY)),
    },
    Probe::fact(
        "proc.core_pattern.pipe",
        "Whether crashes go to a handler of the host",
        "Reads /proc/sys/kernel/core_pattern.",
        "A pipe handler reads memory of crashing builds, and runs outside of all namespaces.",
        |_| match calls::contents("/proc/sys/kernel/core_pattern", 256) {
            Ok(text) => Finding::info(String::from_utf8_lossy(&text).trim_end().to_owned()),
            Err(errno) => Finding::info(name_of(errno)),
        },
    ),
    Probe {
        id: "proc.sysrq",
        title: "The kernel's emergency keys can be pressed",
        severity: Severity::Critical,
        reference: "Documentation/admin-guide/sysrq.rst",
        tries: "Opens /proc/sysrq-trigger for writing, and writes nothing.",
        safe: "ENOENT or EROFS",
        meaning: "One letter written there restarts the host, or kills all its processes.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |_| of_proc("/proc/sysrq-trigger", libc::O_WRONLY),
    },
    Probe {
        id: "proc.write.count",
        title: "Files at the top of /proc may be written",
        severity: Severity::High,
        reference: "proc(5)",
        tries: "Asks of every file of /proc outside of processes and /proc/sys whether it may be written.",
        safe: "none",
        meaning: "Interrupt routing, memory types and drivers of the host are set there.",
        controls: &[Control::HostRoot, Control::KernelRoot],
        order: Order::Any,
        root: true,
        run: top_of_proc,
    },
    Probe {
        id: "proc.memory",
        title: "Memory of the kernel or of all processes can be read",
        severity: Severity::High,
        reference: "proc(5): kcore, kpagecount, kpageflags",
        tries: "Opens kcore and the tables of pages, if they are the kernel's and not covers.",
        safe: "EACCES, ENOENT or a cover",
        meaning: "The kernel's memory holds every secret of the host.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |_| {
            Finding::worst(
                ["kcore", "kpagecount", "kpageflags", "kpagecgroup"]
                    .map(|name| (name.to_owned(), of_proc(&format!("/proc/{name}"), libc::O_RDONLY))),
            )
        },
    },
    Probe {
        id: "proc.kmsg",
        title: "The kernel's messages can be taken",
        severity: Severity::High,
        reference: "proc(5); NixOS/nix issue 8802",
        tries: "Opens /proc/kmsg, and reads nothing.",
        safe: "EPERM, EACCES, ENOENT or a cover",
        meaning: "Messages name addresses, devices and programs of the host; and who reads them takes them from the host's log.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |_| of_proc("/proc/kmsg", libc::O_RDONLY),
    },
    Probe {
        id: "proc.keys",
        title: "Keys are listed",
        severity: Severity::Medium,
        reference: "keyrings(7); nix-sandbox H28",
        tries: "Reads /proc/keys, if it is the kernel's and not a cover.",
        safe: "empty, covered or EACCES",
        meaning: "Descriptions of keys name users, servers and mounts of the host.",
        controls: &[Control::Host, Control::ProcMasks],
        order: Order::Any,
        root: false,
        run: |_| tables(&["keys"]),
    },
    Probe {
        id: "proc.key-users",
        title: "Users with keys are listed",
        severity: Severity::Medium,
        reference: "keyrings(7); nix-sandbox H27",
        tries: "Reads /proc/key-users, if it is the kernel's and not a cover.",
        safe: "empty, covered or EACCES",
        meaning: "It tells which users the host has, and how many keys.",
        controls: &[Control::Host, Control::ProcMasks],
        order: Order::Any,
        root: false,
        run: |_| tables(&["key-users"]),
    },
    Probe {
        id: "proc.tables",
        title: "Tables of the kernel can be read",
        severity: Severity::Low,
        reference: "proc(5); nix-sandbox H27",
        tries: "Reads tables of memory, devices, interrupts and timers, if they are the kernel's and not covers.",
        safe: "empty, covered or EACCES",
        meaning: "They tell what the host has and does, so that builds depend on it and attackers know their kernel.",
        controls: &[Control::Host, Control::ProcMasks],
        order: Order::Any,
        root: false,
        run: |_| tables(TABLES),
    },
    Probe {
        id: "proc.kallsyms",
        title: "Addresses of the kernel can be read",
        severity: Severity::Medium,
        reference: "sysctl kernel.kptr_restrict",
        tries: "Looks in /proc/kallsyms for an address that is not zero.",
        safe: "zeros, empty or absent",
        meaning: "With the addresses at hand an error in the kernel becomes an exploit that works at once.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: false,
        run: |_| match calls::contents("/proc/kallsyms", 1 << 16) {
            Err(errno) => Finding::refused(errno),
            Ok(text) if text.is_empty() => Finding::absent("empty"),
            Ok(text) if shows_addresses(&String::from_utf8_lossy(&text)) => Finding::reached("addresses"),
            Ok(_) => Finding::held("zeros"),
        },
    },
    Probe {
        id: "proc.pids",
        title: "Processes of the host can be seen",
        severity: Severity::High,
        reference: "pid_namespaces(7)",
        tries: "Looks in /proc for the victim, for the kernel's threads, and whether its own number is another one outside.",
        safe: "only processes of the sandbox",
        meaning: "Command lines hold secrets, and whoever sees a process of the same user can often signal or trace it.",
        controls: &[Control::Host, Control::Pid],
        order: Order::Any,
        root: false,
        run: foreign_processes,
    },
    Probe {
        id: "proc.init.environ",
        title: "The environment of the first process can be read",
        severity: Severity::Medium,
        reference: "proc_pid_environ(5)",
        tries: "Reads /proc/1/environ, if the first process is not the payload itself.",
        safe: "EACCES, or the payload's own",
        meaning: "A launcher that stays as the first process carries the environment of whoever started it: tokens, paths, sessions.",
        controls: &[Control::Pid],
        order: Order::Any,
        root: false,
        run: |world| {
            of_first_process(|| match calls::contents("/proc/1/environ", 1 << 16) {
                Ok(text) if text.is_empty() => Finding::absent("empty"),
                Ok(text) if !world.nonce.is_empty() && holds(&text, world.nonce.as_bytes()) => {
                    Finding::reached("with the starter's variable")
                }
                Ok(text) => Finding::reached(format!("{} bytes", text.len())),
                Err(errno) => Finding::refused(errno),
            })
        },
    },
    Probe {
        id: "proc.init.cmdline",
        title: "The command line of the first process can be read",
        severity: Severity::Medium,
        reference: "proc_pid_cmdline(5)",
        tries: "Reads /proc/1/cmdline, if the first process is not the payload itself.",
        safe: "empty, or nothing but a name",
        meaning: "A launcher's command line tells the host's paths and what else was granted.",
        controls: &[Control::Pid],
        order: Order::Any,
        root: false,
        run: |_| {
            of_first_process(|| match calls::contents("/proc/1/cmdline", 4096) {
                Ok(text) => match text.iter().filter(|&&byte| byte == 0).count() {
                    0 | 1 => Finding::held(shown(&text)),
                    _ => Finding::reached(shown(&text)),
                },
                Err(errno) => Finding::refused(errno),
            })
        },
    },
    Probe {
        id: "proc.init.mem",
        title: "The memory of the first process can be written",
        severity: Severity::Medium,
        reference: "proc_pid_mem(5)",
        tries: "Opens /proc/1/mem for writing, if the first process is not the payload itself.",
        safe: "EACCES or EPERM",
        meaning: "Who rewrites the process that reaps and watches decides what it reports, and has what it still holds.",
        controls: &[Control::Pid],
        order: Order::Any,
        root: false,
        run: |_| of_first_process(|| Finding::of(files::opens("/proc/1/mem", libc::O_RDWR))),
    },
    Probe {
        id: "proc.self.exe.write",
        title: "Its own program may be written",
        severity: Severity::Critical,
        reference: "CVE-2019-5736",
        tries: "Asks by /proc/self/exe whether its program, which came from outside, may be written.",
        safe: "EROFS or EACCES",
        meaning: "A program that came from outside is started again outside: whoever rewrites it in the sandbox runs there.",
        controls: &[Control::HostRoot, Control::Writable],
        order: Order::Any,
        root: false,
        run: |_| Finding::of(files::writable("/proc/self/exe")),
    },
    Probe {
        id: "proc.init.exe.write",
        title: "The program of the first process may be written",
        severity: Severity::Critical,
        reference: "CVE-2019-5736",
        tries: "Asks by /proc/1/exe whether the launcher's program may be written, if it is not the payload itself.",
        safe: "EROFS, EACCES or EPERM",
        meaning: "The launcher's program is the host's: it is started for the next sandbox, often by root.",
        controls: &[Control::Pid],
        order: Order::Any,
        root: false,
        run: |_| of_first_process(|| Finding::of(files::writable("/proc/1/exe"))),
    },
    Probe {
        id: "proc.binfmt",
        title: "Interpreters of program formats can be registered",
        severity: Severity::Critical,
        reference: "Documentation/admin-guide/binfmt-misc.rst",
        tries: "Opens the file that registers formats for writing, and writes nothing.",
        safe: "ENOENT or EACCES",
        meaning: "A format of the host's instance has programs of the host started by an interpreter of the attacker's choice, as root for set-id \
                  programs.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |_| Finding::of(files::opens("/proc/sys/fs/binfmt_misc/register", libc::O_WRONLY)),
    },
    Probe::fact(
        "proc.mountinfo.src",
        "What the table of mounts tells of the host",
        "Reads sources and roots of all mounts.",
        "Host paths and disks in the table make builds differ from host to host.",
        |_| match files::mounts() {
            Ok(mounts) => {
                let words: Vec<String> = mounts
                    .iter()
                    .filter(|mount| mount.root != "/" || mount.source.starts_with('/'))
                    .take(40)
                    .map(|mount| format!("{}: {} of {}", mount.point, mount.root, mount.source))
                    .collect();
                Finding::info(format!("{} mounts; {}", mounts.len(), words.join(", ")))
            }
            Err(errno) => Finding::info(name_of(errno)),
        },
    ),
];

/// Files at the top of /proc that are read by nobody but administrators. proc(5).
const TABLES: &[&str] = &[
    "slabinfo",
    "vmallocinfo",
    "timer_list",
    "pagetypeinfo",
    "iomem",
    "ioports",
    "interrupts",
    "diskstats",
    "partitions",
    "swaps",
    "sched_debug",
    "modules",
    "locks",
    "latency_stats",
    "allocinfo",
    "mtrr",
    "dma",
];

fn tables(names: &[&str]) -> Finding {
    Finding::worst(names.iter().map(|name| {
        let path = format!("/proc/{name}");
        let finding = match calls::contents(&path, 4096) {
            Ok(text) if text.is_empty() => Finding::absent("empty"),
            Ok(text) => match of_proc(&path, libc::O_RDONLY) {
                finding if finding.verdict == Verdict::Reached => {
                    Finding::reached(format!("{} lines", text.iter().filter(|&&byte| byte == b'\n').count()))
                }
                finding => finding,
            },
            Err(errno) => Finding::refused(errno),
        };
        ((*name).to_owned(), finding)
    }))
}

/// Opens a file of /proc. What was put over it to cover it does not count.
fn of_proc(path: &str, flags: i32) -> Finding {
    match files::opens(path, flags) {
        Err(errno) => Finding::refused(errno),
        Ok(_) => match files::file_system(path) {
            Ok(system) if system.kind != files::PROC => Finding::held("covered"),
            _ => Finding::reached(""),
        },
    }
}

/// Reads a setting and writes the same back.
fn written_back(path: &str) -> Finding {
    let value = match calls::contents(path, 256) {
        Ok(value) => value,
        Err(errno) => return Finding::refused(errno),
    };
    let result = calls::open(path, libc::O_WRONLY, 0).and_then(|file| calls::write(file, &value));
    Finding::of(result.map(|length| length as i64))
}

/// Counts the files below /proc/sys that may be written, of those of interest.
fn settings(of_interest: impl Fn(&Path) -> bool) -> Finding {
    counted("/proc/sys", |path| if path.is_dir() || of_interest(path) { Descend::Yes } else { Descend::No })
}

/// Whether a setting belongs to network, user, IPC, pid or UTS namespaces, of which the sandbox may have its own. namespaces(7).
fn of_own_namespaces(path: &Path) -> bool {
    const FOLDERS: [&str; 3] = ["/proc/sys/net", "/proc/sys/user", "/proc/sys/fs/mqueue"];
    const FILES: [&str; 15] = [
        "auto_msgmni",
        "domainname",
        "hostname",
        "msg_next_id",
        "msgmax",
        "msgmnb",
        "msgmni",
        "ns_last_pid",
        "sem",
        "sem_next_id",
        "shm_next_id",
        "shm_rmid_forced",
        "shmall",
        "shmmax",
        "shmmni",
    ];
    FOLDERS.iter().any(|folder| path.starts_with(folder))
        || path.strip_prefix("/proc/sys/kernel").is_ok_and(|name| FILES.iter().any(|other| Path::new(other) == name))
}

fn top_of_proc(_: &World) -> Finding {
    counted("/proc", |path| {
        let process = path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        // Everybody may ask to be told of pressure.
        if path.starts_with("/proc/sys")
            || path.starts_with("/proc/pressure")
            || (process && path.parent() == Some(Path::new("/proc")))
        {
            Descend::No
        } else {
            Descend::Yes
        }
    })
}

/// Counts the files below a folder that may be written, of those that `enter` says yes to.
pub fn counted(folder: &str, enter: impl Fn(&Path) -> Descend) -> Finding {
    if let Err(errno) = files::names(folder) {
        return Finding::refused(errno);
    }
    let (mut count, mut total, mut first) = (0, 0, Vec::new());
    let complete = files::walk(&[folder], |path, status| {
        let entered = enter(path);
        if entered == Descend::Yes && status.is_file() {
            total += 1;
            if files::writable(path).is_ok() {
                count += 1;
                if first.len() < 4 {
                    first.push(path.display().to_string());
                }
            }
        }
        entered
    });
    let part = if complete { "" } else { ", and not all were looked at" };
    if count > 0 {
        Finding::reached(format!("{count} of {total}{part}: {} …", first.join(", ")))
    } else if complete {
        Finding::held(format!("none of {total}"))
    } else {
        Finding::inconclusive(format!("none of {total}{part}"))
    }
}

fn shows_addresses(symbols: &str) -> bool {
    symbols.lines().any(|line| {
        let address = line.split(' ').next().unwrap_or_default();
        address.len() >= 8
            && address.bytes().all(|byte| byte.is_ascii_hexdigit())
            && address.bytes().any(|byte| byte != b'0')
    })
}

fn holds(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// A command line for people.
fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text).replace('\0', " ");
    text.trim_end().chars().take(300).collect()
}

/// Looks at the first process, if it is not the program that these probes are, nor what started it.
fn of_first_process(attempt: impl FnOnce() -> Finding) -> Finding {
    let first = calls::contents("/proc/1/cmdline", 1 << 16);
    if first == calls::contents("/proc/self/cmdline", 1 << 16) {
        return Finding::held("the first process is the payload itself");
    }
    if let Err(errno) = first {
        return Finding::refused(errno);
    }
    attempt()
}

fn foreign_processes(world: &World) -> Finding {
    let status = calls::contents("/proc/self/status", 8192).unwrap_or_default();
    let status = String::from_utf8_lossy(&status).into_owned();
    let numbers = field(&status, "NSpid:").map_or(0, |numbers| numbers.split_whitespace().count());
    let Ok(names) = files::names("/proc") else { return Finding::absent("no /proc") };
    let processes = names.iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).count();
    if processes == 0 {
        return Finding::absent("no processes in /proc");
    }
    if numbers > 1 {
        return Finding::reached(format!("/proc is that of an outer namespace: {processes} processes"));
    }
    let threads = calls::contents("/proc/2/status", 4096).unwrap_or_default();
    if field(&String::from_utf8_lossy(&threads), "Name:") == Some("kthreadd") {
        return Finding::reached(format!("the kernel's threads; {processes} processes"));
    }
    if let Some(victim) = world.victim
        && calls::contents(format!("/proc/{victim}/environ"), 1 << 16)
            .is_ok_and(|text| !world.nonce.is_empty() && holds(&text, world.nonce.as_bytes()))
    {
        return Finding::reached(format!("the victim; {processes} processes"));
    }
    if world.victim.is_none() {
        return Finding::inconclusive(format!("{processes} processes, but no victim was started to look for"));
    }
    Finding::held(format!("{processes} processes, all of the sandbox"))
}

/// The value behind a name in a file such as /proc/self/status.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_no_addresses() {
        assert!(!shows_addresses("0000000000000000 T _stext\n0000000000000000 t startup\n"));
        assert!(shows_addresses("0000000000000000 A fixed\nffffffff81000000 T _stext\n"));
        assert!(!shows_addresses(""));
    }

    #[test]
    fn settings_of_namespaces_are_told_from_those_of_the_kernel() {
        for own in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/shmmax", "/proc/sys/kernel/hostname"] {
            assert!(of_own_namespaces(Path::new(own)), "{own}");
        }
        for global in ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/random/boot_id", "/proc/sys/vm/swappiness"] {
            assert!(!of_own_namespaces(Path::new(global)), "{global}");
        }
    }

    #[test]
    fn a_command_line_is_shown_in_words() {
        assert_eq!(shown(b"bwrap\0--bind\0/\0"), "bwrap --bind /");
    }

    #[test]
    fn the_value_behind_a_name_is_found() {
        assert_eq!(field("Name:\tsh\nNSpid:\t12\t3\n", "NSpid:"), Some("12\t3"));
        assert_eq!(field("Name:\tsh\n", "NSpid:"), None);
    }
}
