//! What outlives the sandbox. From inside processes can only be left behind; whether they survive the observer sees.
//!
//! Everything left behind ends by itself after some seconds, and is found by its name and by the nonce in its command
//! line, which is that of this program.

use anchorhold_probe::verdict::Finding;
use anchorhold_probe::world::World;

use crate::calls;
use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "life.daemon",
        title: "A daemon outlives the sandbox",
        severity: Severity::Critical,
        reference: "NixOS/nix PR 15193 and issue 15394; nix-sandbox.md H23",
        tries: "Leaves behind a process of a session of its own, without standard descriptors, that ignores every signal \
                it can, for 20 seconds. The observer looks for `anchor-daemon` after the sandbox has ended.",
        safe: "gone when the sandbox has ended",
        meaning: "It changes outputs after they were checked, and waits for the next build.",
        controls: &[Control::Host],
        order: Order::Last,
        root: false,
        run: |world| left_behind(world, "anchor-daemon", 20, true),
    },
    Probe {
        id: "life.pipe.hold",
        title: "A child that keeps the output open delays the end",
        severity: Severity::Medium,
        reference: "NixOS/nix issue 2176; nix-sandbox.md H24",
        tries: "Leaves behind a child that keeps standard output and error open for 6 seconds. The observer measures when \
                the sandbox ends, and looks for `anchor-holder`.",
        safe: "the sandbox ends with its command",
        meaning: "A build slot is kept by a build that is over.",
        controls: &[Control::Host],
        order: Order::Last,
        root: false,
        run: |world| left_behind(world, "anchor-holder", 6, false),
    },
    Probe {
        id: "life.parent.dead",
        title: "The sandbox outlives a supervisor that was killed",
        severity: Severity::High,
        reference: "NixOS/nix PR 15193 and issue 15394; nix-sandbox.md H23",
        tries: "In a run of its own, stays with a second process of another session, both ignoring all signals and without a \
                parent-death signal. The observer kills the process that it started, and looks for both.",
        safe: "all are gone within the grace period",
        meaning: "A daemon that crashes or is restarted leaves builds behind that nobody counts, limits or ends.",
        controls: &[Control::Supervisor],
        order: Order::Any,
        root: false,
        run: |_| Finding::inconclusive("judged from outside, in a run of its own"),
    },
    Probe {
        id: "life.zombies",
        title: "Orphans that have ended are never collected",
        severity: Severity::Low,
        reference: "pid_namespaces(7), on the init process",
        tries: "Leaves 300 children of ended children to process 1, lets them end, and counts zombies.",
        safe: "none stays",
        meaning: "Each keeps a place in the process table until the sandbox ends, and counts against its limit.",
        controls: &[Control::FirstProcess],
        order: Order::Last,
        root: false,
        run: |_| zombies(300),
    },
];

/// Leaves a process behind and says how it is found.
fn left_behind(world: &World, name: &str, seconds: u64, daemon: bool) -> Finding {
    if !world.survivors {
        return Finding::inconclusive("nobody looks for survivors");
    }
    let between = calls::in_child(|| {
        if daemon {
            let _ = calls::raw(libc::SYS_setsid, &[]);
        }
        let left = calls::spawn(|| {
            let text = calls::c_path(name);
            let _ = calls::prctl(libc::PR_SET_NAME, &[text.as_ptr() as usize]);
            calls::alarm(0);
            // The end of the starter's session is told by a signal, too.
            calls::ignore_signals();
            // Everything but the output that the holder is to hold; the pipe of the finding above all.
            for descriptor in (0..1024).filter(|number| daemon || ![1, 2].contains(number)) {
                calls::close(descriptor);
            }
            calls::pause(seconds * 1000);
            0
        });
        i32::from(left.is_err())
    });
    match between {
        Ok(Some(0)) => Finding::inconclusive(format!("{name} was left behind; whether it survives the observer sees")),
        _ => Finding::inconclusive("no process could be left behind"),
    }
}

fn zombies(count: usize) -> Finding {
    let Ok([reader, writer]) = calls::pipe() else { return Finding::inconclusive("no pipe") };
    let parent = calls::in_child(|| {
        for _ in 0..count {
            if calls::spawn(|| 0).is_err() {
                return 1;
            }
        }
        0
    });
    calls::close(writer);
    if parent != Ok(Some(0)) {
        return Finding::inconclusive("not so many processes can be made");
    }
    // The pipe ends with the last of them.
    calls::readable(reader, 2000);
    // Whoever collects them may be a moment late.
    let remaining = (0..20).map(|_| {
        calls::pause(25);
        orphaned_zombies()
    });
    match remaining.take_while(|found| *found != Some(0)).last() {
        None => Finding::refused(libc::ECHILD).with("all were collected"),
        Some(None) => Finding::inconclusive("processes cannot be listed"),
        Some(Some(left)) if left < count => Finding::refused(libc::ECHILD).with(format!("{left} are still there")),
        Some(Some(left)) => {
            // This is a child of the battery.
            let whose = match calls::raw(libc::SYS_getppid, &[]) {
                Ok(1) => "process 1 is the payload itself",
                _ => "process 1 does not collect them",
            };
            Finding::reached(format!("{left} zombies; {whose}"))
        }
    }
}

/// Zombies whose parent is not in this program.
fn orphaned_zombies() -> Option<usize> {
    let names = std::fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.file_name());
    let stats = names
        .filter(|name| name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())))
        .filter_map(|name| calls::contents(std::path::Path::new("/proc").join(name).join("stat"), 512).ok());
    Some(stats.filter(|stat| is_orphaned_zombie(&String::from_utf8_lossy(stat))).count())
}

/// Whether a line of proc_pid_stat(5) is of a zombie that was left to process 1.
fn is_orphaned_zombie(stat: &str) -> bool {
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut words = rest.split_whitespace();
    words.next() == Some("Z") && words.next() == Some("1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zombies_are_told_whatever_they_are_called() {
        assert!(is_orphaned_zombie("12 (a) b) Z 1 12 12 0"));
        assert!(!is_orphaned_zombie("12 (Z 1) S 1 12 12 0"));
        assert!(!is_orphaned_zombie("12 (a) Z 7 12 12 0"));
        assert!(!is_orphaned_zombie(""));
    }
}
