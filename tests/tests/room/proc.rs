//! `/proc`: the room's own processes, what names or times the host covered, `/proc/sys` read-only. And no `/sys`.

use std::fs;

use anchorhold_tests::room::Room;
use anchorhold_tests::skip;

use crate::{room, room_of};

fn reading(room: Room, path: &str) -> String {
    room.probe(["read", path]).expect_success().stdout
}

#[test]
fn what_differs_between_boots_of_one_host_reads_the_same_everywhere() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let version = format!("Linux version {} (room@localhost) #1 SMP", release.trim());
    let expected = [
        ("sys/kernel/random/boot_id", "00000000-0000-4000-8000-000000000000"),
        ("cmdline", ""),
        ("swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"),
        ("uptime", "1.00 1.00"),
        ("loadavg", "0.00 0.00 0.00 1/1 1"),
        ("version", &version),
    ];
    for (name, text) in expected {
        for profile in ["build", "nested"] {
            assert_eq!(reading(room_of(profile), &format!("/proc/{name}")).trim_end(), text, "{profile}: {name}");
        }
    }
}

#[test]
fn without_the_layer_the_hosts_boot_and_command_line_are_read() {
    for name in ["sys/kernel/random/boot_id", "cmdline", "version"] {
        let path = format!("/proc/{name}");
        let host = fs::read_to_string(&path).expect("the host's");
        assert_eq!(reading(room().without("proc"), &path).trim_end(), host.trim_end(), "{name}");
    }
}

#[test]
fn what_tells_of_the_host_reads_as_empty() {
    for name in ["kallsyms", "keys", "key-users", "interrupts", "modules", "locks", "diskstats", "partitions"] {
        let path = format!("/proc/{name}");
        if fs::metadata(&path).is_ok() {
            assert_eq!(reading(room(), &path).trim_end(), "", "{name}");
        }
    }
    for name in ["acpi", "bus", "driver", "fs", "irq", "scsi"] {
        let path = format!("/proc/{name}");
        if fs::metadata(&path).is_ok() {
            assert_eq!(room().probe(["list", &path]).line(), "", "{name}");
        }
    }
}

#[test]
fn without_the_layer_the_hosts_hardware_is_listed() {
    let listed = |room: Room, name| room.probe(["list", &format!("/proc/{name}")]).stdout;
    // Which of them hold anything depends on the kernel.
    let full = ["bus", "driver", "fs", "irq"]
        .into_iter()
        .find(|name| fs::read_dir(format!("/proc/{name}")).is_ok_and(|mut entries| entries.next().is_some()));
    let Some(name) = full else { return skip("this kernel lists no hardware in /proc") };
    assert_ne!(listed(room().without("proc"), name).trim(), "");
    assert_eq!(listed(room(), name).trim(), "");
}

#[test]
fn nothing_below_proc_sys_can_be_written_whoever_the_payload_is() {
    let mut kinds =
        vec![vec![], vec!["--uid", "0", "--gid", "0"], vec!["--profile", "nested"], vec!["--without", "landlock"]];
    let range = vec!["--id-range", "--uid", "0", "--gid", "0"];
    if room().with(&range).run(["/bin/true"]).status == 0 {
        kinds.push(range);
    }
    for kind in kinds {
        assert_eq!(room().with(&kind).probe(["writable-below", "/proc/sys"]).line(), "none", "{kind:?}");
    }
}

#[test]
fn without_the_layer_some_of_proc_sys_can_be_written_by_root_inside() {
    let weak = room().without("proc").without("landlock").with(["--uid", "0", "--gid", "0"]);
    let writable = weak.probe(["writable-below", "/proc/sys"]).expect_success().stdout;
    assert!(writable.contains("/proc/sys/kernel/msgmax"), "{writable}");
}

#[test]
fn the_files_by_which_the_kernel_is_made_to_act_cannot_be_opened_for_writing() {
    let paths = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
    ];
    for path in paths {
        if fs::metadata(path).is_err() {
            continue;
        }
        let kinds: [&[&str]; 3] = [&[], &["--uid", "0", "--gid", "0"], &["--id-range", "--uid", "0", "--gid", "0"]];
        for kind in kinds {
            let tried = room().with(kind).probe(["open-to-write", path]);
            if tried.status == 125 && kind.contains(&"--id-range") {
                skip("this user has no subordinate ids");
                continue;
            }
            // Their owner is the kernel's root, who has no id in any room: that answers first.
            let answer = tried.line();
            assert!(["EROFS", "EACCES"].contains(&answer.as_str()), "{path} {kind:?}: {answer}");
        }
    }
}

#[test]
fn nothing_in_proc_can_be_made_or_removed() {
    for path in ["/proc/more", "/proc/sys/more"] {
        let answer = room().probe(["create", path]).line();
        assert!(["EROFS", "ENOENT", "EACCES"].contains(&answer.as_str()), "{path}: {answer}");
    }
}

#[test]
fn there_is_no_sys() {
    assert_eq!(room().probe(["stat", "/sys"]).line(), "ENOENT");
}

#[test]
fn the_weaker_tier_shows_the_processes_around_and_says_that_it_is_weaker() {
    let ended = room().with(["--proc", "outer"]).probe(["stat", "/proc/cpuinfo"]);
    assert!(ended.stderr.contains("anchorhold: warning: proc is weaker: that of the container around us"), "{ended:?}");
    let own = std::process::id().to_string();
    let seen = room().with(["--proc", "outer"]).probe(["stat", &format!("/proc/{own}/status")]).line();
    assert_ne!(seen, "ENOENT");
    // Seen, but not looked into.
    let environment = room().with(["--proc", "outer"]).probe(["read", &format!("/proc/{own}/environ")]).line();
    assert_eq!(environment, "EACCES");
    assert_eq!(room().probe(["stat", &format!("/proc/{own}/status")]).line(), "ENOENT");
}
