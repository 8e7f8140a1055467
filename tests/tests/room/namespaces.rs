//! Own pid, IPC, UTS, cgroup and time namespaces; how many more can be made.

use std::fs;

use crate::{room, room_of};

fn own_namespace(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace").to_string_lossy().into_owned()
}

#[test]
fn a_room_shares_no_namespace_with_its_caller() {
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        assert_ne!(room().probe(["namespace", kind]).line(), own_namespace(kind), "{kind}");
    }
}

#[test]
fn without_the_layer_processes_ipc_and_names_are_the_callers() {
    for kind in ["pid", "ipc", "uts", "cgroup"] {
        assert_eq!(room().without("namespaces").probe(["namespace", kind]).line(), own_namespace(kind), "{kind}");
    }
}

#[test]
fn the_payload_is_process_1_and_sees_no_other() {
    assert_eq!(room().probe(["processes"]).line(), "1");
}

#[test]
fn without_the_layer_the_hosts_processes_are_seen() {
    let seen = room().without("namespaces").probe(["processes"]).line();
    let own = std::process::id().to_string();
    assert!(seen.split(' ').any(|pid| pid == own), "{own} is not among {seen}");
}

#[test]
fn the_machine_is_called_localhost_in_no_domain() {
    let names = room().probe(["names"]).line();
    assert!(names.starts_with("localhost (none) "), "{names}");
}

#[test]
fn without_the_layer_the_machine_has_the_hosts_name() {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    let names = room().without("namespaces").probe(["names"]).line();
    assert!(names.starts_with(&format!("{} ", host.trim())), "{names} is not {host}");
}

#[test]
fn a_build_cannot_make_a_user_namespace_in_any_way() {
    assert_eq!(room().probe(["unshare", "user"]).line(), "ENOSPC");
    let clone3 = room().probe(["clone-user-namespace"]).line();
    assert!(["ENOSPC", "ENOSYS"].contains(&clone3.as_str()), "{clone3}");
}

#[test]
fn without_the_layer_a_build_can_make_a_user_namespace() {
    assert_eq!(room().without("namespaces").probe(["unshare", "user"]).line(), "done");
}

#[test]
fn a_build_cannot_make_any_other_namespace_either() {
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        assert_eq!(room().probe(["unshare", kind]).line(), "EPERM", "{kind}");
    }
}

#[test]
fn a_nested_room_can_make_user_mount_and_pid_namespaces() {
    for kinds in [&["user"][..], &["user", "mnt"], &["user", "mnt", "pid", "ipc", "uts"]] {
        assert_eq!(room_of("nested").probe([&["unshare"], kinds].concat()).line(), "done", "{kinds:?}");
    }
}

#[test]
fn a_nested_room_cannot_make_a_network_namespace() {
    assert_eq!(room_of("nested").probe(["unshare", "user", "net"]).line(), "ENOSPC");
}

#[test]
fn a_sandbox_in_a_nested_room_can_mount_a_tmpfs_and_a_fresh_procfs() {
    for words in [["mount", "tmpfs", "/tmp"], ["mount", "proc", "/proc"]] {
        let nested = ["in-user-namespace", "with-pids"].into_iter().chain(words);
        assert_eq!(room_of("nested").probe(nested).line(), "done", "{words:?}");
    }
}

#[test]
fn a_sandbox_in_a_nested_room_cannot_undo_what_the_room_set_up() {
    for point in ["/usr", "/proc/sys", "/proc/kcore", "/dev/null", "/tmp", "/"] {
        if !std::path::Path::new(point).exists() {
            continue;
        }
        let answer = room_of("nested").probe(["in-user-namespace", "unmount", point]).line();
        assert!(["EINVAL", "EPERM"].contains(&answer.as_str()), "unmount {point}: {answer}");
    }
    for point in ["/usr", "/proc/sys", "/"] {
        let answer = room_of("nested").probe(["in-user-namespace", "remount-writable", point]).line();
        assert!(["EINVAL", "EPERM"].contains(&answer.as_str()), "remount {point}: {answer}");
    }
}

#[test]
fn a_payload_cannot_rename_the_machine() {
    assert_eq!(room().probe(["set-host-name", "mine"]).line(), "EPERM");
}

#[test]
fn a_time_namespace_begins_at_zero_and_only_when_asked_for() {
    let seconds = |room: anchorhold_tests::room::Room| room.probe(["clock"]).line().parse::<u64>().expect("seconds");
    let uptime = fs::read_to_string("/proc/uptime").expect("an uptime");
    let uptime: f64 = uptime.split(' ').next().and_then(|text| text.parse().ok()).expect("an uptime");
    if uptime < 120.0 {
        return anchorhold_tests::skip(
            "the host was started less than two minutes ago: its clock is that of a new one",
        );
    }
    assert!(seconds(room().with(["--time-namespace"])) < 60);
    assert!(seconds(room()) as f64 >= uptime - 1.0);
}
