//! The fixed `/dev`.

use anchorhold_tests::skip;

use crate::room;

#[test]
fn dev_holds_exactly_this() {
    let lines = room().probe(["list", "/dev"]).lines();
    // Kind, mode, owner, number or target. The nodes are the host's, and their owner has no id in the room.
    let expected = [
        "fd link 0777 1000:100 /proc/self/fd",
        "full character-device 0666 65534:65534 1:7",
        "null character-device 0666 65534:65534 1:3",
        "ptmx link 0777 1000:100 pts/ptmx",
        "pts directory 0755 65534:65534",
        "random character-device 0666 65534:65534 1:8",
        "shm directory 1777 1000:100",
        "stderr link 0777 1000:100 /proc/self/fd/2",
        "stdin link 0777 1000:100 /proc/self/fd/0",
        "stdout link 0777 1000:100 /proc/self/fd/1",
        "tty character-device 0666 65534:65534 5:0",
        "urandom character-device 0666 65534:65534 1:9",
        "zero character-device 0666 65534:65534 1:5",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn without_the_layer_the_hosts_dev_is_there() {
    let names = |room: anchorhold_tests::room::Room| room.probe(["list", "/dev"]).expect_success().stdout;
    let mut host: Vec<_> = std::fs::read_dir("/dev")
        .expect("/dev")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            !["fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty"]
                .contains(&name.as_str())
        })
        .filter(|name| !["urandom", "zero"].contains(&name.as_str()))
        .collect();
    let Some(more) = host.pop() else { return skip("this host's /dev holds no more than a room's") };
    let prefix = format!("{more} ");
    assert!(names(room().without("devices")).lines().any(|line| line.starts_with(&prefix)), "{more} is not seen");
    assert!(!names(room()).lines().any(|line| line.starts_with(&prefix)), "{more} is seen");
}

#[test]
fn the_nodes_work() {
    assert_eq!(
        room().shell("head -c3 /dev/zero | tr '\\0' z; echo -n x >/dev/null && head -c1 /dev/urandom | wc -c").line(),
        "zzz1"
    );
    assert_eq!(room().probe(["fill", "/dev/full", "100"]).line(), "ENOSPC after 0");
}

#[test]
fn nothing_in_dev_can_be_made_changed_or_removed() {
    assert_eq!(room().probe(["create", "/dev/more"]).line(), "EROFS");
    assert_eq!(room().probe(["chmod", "/dev/null", "0600"]).line(), "EROFS");
    assert_eq!(room().probe(["set-times", "/dev/null"]).line(), "EROFS");
    let removed = room().probe(["unlink", "/dev/null"]).line();
    assert!(["EROFS", "EBUSY"].contains(&removed.as_str()), "{removed}");
}

#[test]
fn terminals_are_the_rooms_own_and_anybody_in_it_may_make_one() {
    assert_eq!(room().probe(["list", "/dev/pts"]).line(), "ptmx character-device 0666 1000:100 5:2");
    assert_eq!(room().probe(["new-terminal"]).line(), "/dev/pts/0");
}

#[test]
fn shared_memory_is_there_empty_and_bounded() {
    assert_eq!(room().probe(["list", "/dev/shm"]).line(), "");
    assert_eq!(room().probe(["create", "/dev/shm/segment"]).line(), "done");
    let size: u64 = room().probe(["size-of-file-system", "/dev/shm"]).line().parse().expect("a size");
    assert!(size > 0, "not bounded");
}

#[test]
fn a_device_node_cannot_be_made() {
    for path in ["/tmp/null", "/dev/shm/null"] {
        assert_eq!(room().probe(["mknod", path, "1", "3"]).line(), "EPERM", "{path}");
    }
}

#[test]
fn kvm_is_not_there_unless_it_is_asked_for() {
    assert_eq!(room().probe(["stat", "/dev/kvm"]).line(), "ENOENT");
}

#[test]
fn kvm_that_was_asked_for_works_or_is_refused_with_the_reason() {
    let asked = room().with(["--kvm"]).probe(["open-to-write", "/dev/kvm"]);
    if asked.status == 125 {
        let refusal = asked.refusal();
        assert!(refusal.starts_with("devices: /dev/kvm ("), "{refusal}");
        return;
    }
    assert_eq!(asked.line(), "done");
}
