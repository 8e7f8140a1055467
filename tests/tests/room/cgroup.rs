//! Resource control of the whole room.

use anchorhold_tests::room::{Ended, Room};
use anchorhold_tests::{host, skip};

use crate::{footprint, room};

/// What came of it where this user has the controllers. Where not, the room was refused by name, never run without its limit.
fn controlled(room: Room, words: &[&str]) -> Option<Ended> {
    let ended = room.probe(words);
    if ended.status != 125 {
        return Some(ended);
    }
    let refusal = ended.refusal();
    assert!(refusal.starts_with("cgroup: "), "{refusal}");
    skip("this user has no control group to make groups in");
    None
}

#[test]
fn a_room_that_uses_too_much_memory_is_ended_with_123() {
    let Some(ended) = controlled(room().with(["--memory", "64M"]), &["allocate", "500000000"]) else { return };
    assert_eq!(ended.status, 123, "{ended:?}");
    assert_eq!(ended.stderr, "anchorhold: the command was ended: the room used more memory than 64M\n");
}

#[test]
fn a_room_that_stays_within_its_memory_is_not_ended() {
    let Some(ended) = controlled(room().with(["--memory", "64M"]), &["allocate", "10000000"]) else { return };
    assert_eq!(ended.status, 0, "{ended:?}");
}

#[test]
fn files_in_memory_count_as_memory() {
    let Some(ended) = controlled(room().with(["--memory", "64M"]), &["fill", "/tmp/file", "500000000"]) else { return };
    assert_eq!(ended.status, 123, "{ended:?}");
}

#[test]
fn memory_without_a_limit_is_not_bounded() {
    assert_eq!(room().probe(["allocate", "100000000"]).status, 0);
}

#[test]
fn a_limit_that_cannot_be_kept_is_refused_and_not_forgotten() {
    let refusal = room().with(["--memory", "64M"]).without("cgroup").run(["/bin/true"]).refusal();
    assert!(refusal.starts_with("cgroup: "), "{refusal}");
}

#[test]
fn the_account_tells_what_a_room_used() {
    let footprint = footprint();
    let file = footprint.path("result.json");
    let room = footprint.room().with(["--memory", "256M", "--result", file.to_str().expect("a plain path")]);
    let Some(ended) = controlled(room, &["allocate", "50000000"]) else { return };
    assert_eq!(ended.status, 0, "{ended:?}");
    let result: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).expect("a result")).expect("JSON");
    let peak = result["account"]["peak_memory_bytes"].as_u64().expect("a peak");
    assert!((50_000_000..=256 << 20).contains(&peak), "{peak}");
}

#[test]
fn no_group_is_left_behind() {
    let footprint = footprint();
    let running =
        footprint.room().with(["--memory", "256M", "--pids", "100"]).start_probe(["daemon", &footprint.marker]);
    let supervisor = running.pid();
    let ended = running.to_the_end();
    if ended.status == 125 {
        return skip("this user has no control group to make groups in");
    }
    assert_eq!(ended.status, 0, "{ended:?}");
    footprint.assert_nothing_left(supervisor);
    let named = host::control_groups_named(&supervisor.to_string());
    assert!(named.iter().all(|group| !group.to_string_lossy().contains("anchorhold")), "{named:?}");
}

#[test]
fn a_payload_does_not_see_the_groups_of_the_host() {
    let groups = room().probe(["read", "/proc/self/cgroup"]).expect_success().stdout;
    for line in groups.lines().filter(|line| !line.is_empty()) {
        assert!(line.ends_with(":/"), "{groups}");
    }
    assert_eq!(room().probe(["stat", "/sys/fs/cgroup"]).line(), "ENOENT");
}
