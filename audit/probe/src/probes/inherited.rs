//! What is handed on by whoever starts: descriptors, environment, signals.

use std::env;
use std::path::Path;

use anchorhold_probe::verdict::{Finding, name_of};
use anchorhold_probe::world::World;

use crate::calls;
use crate::probe::{Control, Order, Probe, Severity};
use crate::probes::namespaces::is_starters;

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "fd.count",
        title: "Descriptors beyond 0, 1 and 2 are inherited",
        severity: Severity::High,
        reference: "NixOS/nix commit a694d89f03; CVE-2024-21626",
        tries: "Asks of every number up to 4,096 whether it is open without close-on-exec, which only what came through \
                execve(2) can be.",
        safe: "none",
        meaning: "A descriptor is access that no mount or permission takes away again: a log of another build, a lock, a \
                  socket of the supervisor, a directory of the host.",
        controls: &[Control::Descriptors],
        order: Order::Any,
        root: false,
        run: |_| match inherited() {
            open if open.is_empty() => Finding::absent("none of 3 to 4095"),
            open => Finding::reached(open.iter().map(|&number| described(number)).collect::<Vec<_>>().join(", ")),
        },
    },
    Probe {
        id: "fd.dir.escape",
        title: "An inherited directory descriptor opens files outside",
        severity: Severity::Critical,
        reference: "CVE-2024-21626 (runc)",
        tries: "Opens the observer's canary relative to the descriptor that it left open without close-on-exec.",
        safe: "EBADF",
        meaning: "openat(2) from a directory outside goes past the whole mount namespace: everything below it, and with \
                  `..` everything above it, is within reach.",
        controls: &[Control::Descriptors],
        order: Order::Any,
        root: false,
        run: directory_escape,
    },
    Probe {
        id: "fd.stdio.type",
        title: "Standard input, output or error is something of the starter's own",
        severity: Severity::Medium,
        reference: "nix-sandbox.md H22",
        tries: "Asks what 0, 1 and 2 are: a terminal of another devpts, a directory, a disk, a socket or a seekable file.",
        safe: "null or an empty pipe to read, pipes (or a terminal of the sandbox's own) to write",
        meaning: "Standard descriptors can be opened again through /proc/self/fd, for reading too: a log file shows what \
                  others wrote, a terminal takes input as if typed.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |world| Finding::worst((0..3).map(|number| (number.to_string(), standard(number, world)))),
    },
    Probe {
        id: "fd.init",
        title: "The descriptors of a foreign process 1 can be listed",
        severity: Severity::Low,
        reference: "proc_pid_fd(5)",
        tries: "Lists /proc/1/fd, unless process 1 is this program or its starter inside.",
        safe: "EACCES, or process 1 is the payload itself",
        meaning: "It shows what the supervisor inside holds open, and is the first step to opening it again.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: false,
        run: |_| {
            if foreign_init().is_none() {
                return Finding::absent("process 1 is the payload itself");
            }
            match std::fs::read_dir("/proc/1/fd") {
                Ok(entries) => Finding::reached(format!("{} descriptors", entries.count())),
                Err(error) => Finding::refused(error.raw_os_error().unwrap_or(0)),
            }
        },
    },
    Probe {
        id: "env.canary",
        title: "A variable of the starter's environment is handed on",
        severity: Severity::High,
        reference: "security-probes.md 3.5",
        tries: "Looks for the variable that the observer set for the starter alone.",
        safe: "absent",
        meaning: "Tokens of build services, ssh agents and cloud credentials live in environments; a payload reads them \
                  all and results depend on them.",
        controls: &[Control::Environment],
        order: Order::Any,
        root: false,
        run: |world| {
            let Some(name) = &world.environment_variable else {
                return Finding::inconclusive("no variable was set outside");
            };
            match env::var_os(name) {
                Some(value) if value.to_string_lossy() == world.nonce => Finding::reached(format!("{name} is set")),
                Some(_) => Finding::absent(format!("{name} has another value")),
                None => Finding::absent(format!("{name} is not set")),
            }
        },
    },
    Probe::fact(
        "env.exact",
        "The environment",
        "Compares all variables with those that the sandbox was told to set, or lists their names.",
        "A variable more than declared makes results depend on the machine.",
        |world| {
            let mut present: Vec<String> =
                env::vars_os().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect();
            present.sort();
            let Some(declared) = &world.environment else {
                let names: Vec<_> = present.iter().filter_map(|pair| pair.split('=').next()).collect();
                return Finding::info(names.join(" "));
            };
            Finding::info(difference(declared, &present))
        },
    ),
    Probe::fact(
        "sig.state",
        "Signals, mask, priority and timers at the start",
        "Reads ignored and blocked signals of the battery's first process, umask, nice value, input-output class, timer \
         slack and parent-death signal.",
        "What differs here makes programs behave differently: an ignored SIGPIPE, a umask, a lower priority.",
        |_| Finding::info(signal_state()),
    ),
];

/// Descriptors above 2 that came through execve(2).
fn inherited() -> Vec<i32> {
    (3..4096)
        .filter(|&number| {
            calls::raw(libc::SYS_fcntl, &[number as usize, libc::F_GETFD as usize])
                .is_ok_and(|flags| flags & i64::from(libc::FD_CLOEXEC) == 0)
        })
        .collect()
}

/// A descriptor's number and what it is.
fn described(number: i32) -> String {
    match std::fs::read_link(format!("/proc/self/fd/{number}")) {
        Ok(target) => format!("{number} {}", target.display()),
        Err(_) => format!("{number} {}", kind(number).map_or("", |(kind, _)| kind)),
    }
}

/// What a descriptor is, and the device that it lies on.
fn kind(number: i32) -> Result<(&'static str, u64), i32> {
    let (mode, device) = calls::status(number)?;
    let kind = match mode & libc::S_IFMT {
        libc::S_IFREG => "file",
        libc::S_IFDIR => "directory",
        libc::S_IFCHR => "character device",
        libc::S_IFBLK => "disk",
        libc::S_IFIFO => "pipe",
        libc::S_IFSOCK => "socket",
        _ => "something else",
    };
    Ok((kind, device))
}

fn directory_escape(world: &World) -> Finding {
    let Some(number) = world.inherited_descriptor else {
        return Finding::inconclusive("no descriptor was left open");
    };
    let name = calls::c_path("canary");
    let opened = calls::raw(
        libc::SYS_openat,
        &[number as usize, name.as_ptr() as usize, (libc::O_RDONLY | libc::O_CLOEXEC) as usize],
    );
    match opened {
        Ok(file) => {
            let mut bytes = [0; 4096];
            let length = calls::read(file as i32, &mut bytes).unwrap_or(0);
            match String::from_utf8_lossy(&bytes[..length]).contains(&world.nonce) {
                true => Finding::reached(format!("the canary opens relative to {number}")),
                false => Finding::absent("a file of the same name without the nonce"),
            }
        }
        Err(errno) => Finding::refused(errno),
    }
}

/// Whether a standard descriptor is what a payload may have.
fn standard(number: i32, world: &World) -> Finding {
    let (kind, device) = match kind(number) {
        Ok(found) => found,
        Err(errno) => return Finding::refused(errno),
    };
    match kind {
        "pipe" => Finding::absent("a pipe"),
        "character device"
            if calls::raw(
                libc::SYS_ioctl,
                &[number as usize, libc::TCGETS as usize, terminal_state().as_mut_ptr() as usize],
            )
            .is_ok() =>
        {
            match calls::device_of("/dev/pts") {
                // In the starter's own mounts the devpts is the starter's as well.
                Ok(own) if own == device && !is_starters(world, "mnt") => {
                    Finding::absent("a terminal of the devpts here")
                }
                _ => Finding::reached("a terminal from outside"),
            }
        }
        "character device" => Finding::absent("a character device"),
        other => Finding::reached(format!("a {other}")),
    }
}

/// Room for what TCGETS writes.
fn terminal_state() -> [u8; 64] {
    [0; 64]
}

/// The id of process 1, unless that is this program, or a process that started it inside.
pub fn foreign_init() -> Option<i32> {
    let own = calls::raw(libc::SYS_getpid, &[]).unwrap_or(0);
    let starter = calls::raw(libc::SYS_getppid, &[]).unwrap_or(0);
    let same = |path: &str| std::fs::read_link(path).ok();
    let program = same("/proc/self/exe");
    (own != 1 && starter != 1 && Path::new("/proc/1").exists() && (program.is_none() || same("/proc/1/exe") != program))
        .then_some(1)
}

/// What is missing (-) and what is there without being declared (+).
fn difference(declared: &[String], present: &[String]) -> String {
    let missing = declared.iter().filter(|pair| !present.contains(pair)).map(|pair| format!("-{pair}"));
    let undeclared = present.iter().filter(|pair| !declared.contains(pair)).map(|pair| format!("+{pair}"));
    let all: Vec<_> = missing.chain(undeclared).collect();
    if all.is_empty() { "as declared".to_owned() } else { all.join(" ") }
}

fn signal_state() -> String {
    let starter = calls::raw(libc::SYS_getppid, &[]).unwrap_or(0);
    let status = calls::contents(format!("/proc/{starter}/status"), 16384).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    // The runtime of this program's language ignores SIGPIPE by itself.
    let mut facts = Vec::new();
    for field in ["SigBlk", "SigIgn", "Umask"] {
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap_or("?").trim();
        facts.push(format!("{field} {}", if field == "SigIgn" { without_pipe(value) } else { value.to_owned() }));
    }
    let number = |result: Result<i64, i32>| result.map_or_else(name_of, |value| value.to_string());
    // The system call's own answer is 20 minus the nice value.
    facts.push(format!("nice {}", number(calls::raw(libc::SYS_getpriority, &[0, 0]).map(|value| 20 - value))));
    facts.push(format!("ioprio {}", number(calls::raw(libc::SYS_ioprio_get, &[1, 0]))));
    facts.push(format!("timerslack {}", number(calls::prctl(libc::PR_GET_TIMERSLACK, &[]))));
    let mut death = [0_i32];
    let asked = calls::prctl(libc::PR_GET_PDEATHSIG, &[death.as_mut_ptr() as usize]);
    facts.push(format!("pdeathsig {}", number(asked.map(|_| i64::from(death[0])))));
    facts.join(", ")
}

/// A mask of signals in hexadecimal, without SIGPIPE.
fn without_pipe(mask: &str) -> String {
    u64::from_str_radix(mask, 16)
        .map_or_else(|_| mask.to_owned(), |bits| format!("{:016x}", bits & !(1 << (libc::SIGPIPE - 1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_of_environments_names_both_sides() {
        let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(difference(&text(&["A=1", "B=2"]), &text(&["A=1", "B=2"])), "as declared");
        assert_eq!(difference(&text(&["A=1", "B=2"]), &text(&["A=1", "C=3"])), "-B=2 +C=3");
    }

    #[test]
    fn the_mask_of_ignored_signals_is_told_without_this_programs_own() {
        assert_eq!(without_pipe("0000000000001001"), "0000000000000001");
        assert_eq!(without_pipe("?"), "?");
    }

    #[test]
    fn a_descriptor_without_close_on_exec_is_seen() {
        let file = calls::open("/dev/null", libc::O_RDONLY, 0).expect("everywhere");
        assert!(!inherited().contains(&file));
        calls::raw(libc::SYS_fcntl, &[file as usize, libc::F_SETFD as usize, 0]).expect("it is open");
        assert!(inherited().contains(&file));
        calls::close(file);
    }
}
