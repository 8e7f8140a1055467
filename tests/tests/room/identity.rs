//! Who the payload is, inside and outside: never the kernel's uid 0.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anchorhold_tests::host::{self, is_root};
use anchorhold_tests::room::Room;
use anchorhold_tests::skip;

use crate::{footprint, room, room_of};

fn caller() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

/// Whether this user may have a range of ids; rooms refuse where not, and `refusals` looks at that.
fn has_range() -> bool {
    let refused = room().with(["--id-range"]).run(["/bin/true"]).status == 125;
    if refused {
        skip("this user has no subordinate ids, or newuidmap is not installed");
    }
    !refused
}

#[test]
fn the_payload_is_uid_1000_gid_100_and_in_no_other_group() {
    let ids = room().probe(["ids"]).line();
    assert!(ids.starts_with("uid 1000 1000 gid 100 100 groups"), "{ids}");
    if is_root() {
        assert!(ids.ends_with("groups "), "{ids}");
    }
}

#[test]
fn other_ids_can_be_chosen_for_the_inside() {
    let ids = room().with(["--uid", "0", "--gid", "0"]).probe(["ids"]).line();
    assert!(ids.starts_with("uid 0 0 gid 0 0 "), "{ids}");
}

#[test]
fn no_process_of_any_room_is_the_kernels_uid_0_or_gid_0() {
    let mut kinds: Vec<Vec<&str>> = vec![vec![]];
    let choices: [&[&str]; 10] = [
        &["--uid", "0", "--gid", "0"],
        &["--profile", "nested"],
        &["--without", "identity"],
        &["--without", "namespaces"],
        &["--without", "capabilities"],
        &["--without", "root"],
        &["--without", "proc"],
        &["--without", "landlock"],
        &["--without", "seccomp"],
        &["--network", "host"],
    ];
    kinds.extend(choices.iter().map(|choice| choice.to_vec()));
    kinds.push(vec!["--init"]);
    // All at once, and each with root's number inside.
    kinds.push(choices.concat());
    kinds.extend(choices[1..].iter().map(|choice| [choices[0], choice].concat()));
    if has_range() {
        kinds.extend([vec!["--id-range"], vec!["--id-range", "--uid", "0", "--gid", "0"]]);
        kinds.push([&["--id-range"], choices.concat().as_slice()].concat());
    }
    if is_root() {
        kinds.push(vec!["--build-user", "65534"]);
    }
    for kind in kinds {
        let mut running = room().with(&kind).start_probe(["hold"]);
        assert_eq!(running.line(), "ready", "{kind:?}");
        let payload = running.payload();
        for id in payload.uids.iter().chain(&payload.gids) {
            assert_ne!(*id, 0, "{kind:?}: {payload:?}");
        }
        assert!(!payload.field("Groups").split(' ').any(|group| group == "0"), "{kind:?}: {payload:?}");
    }
}

#[test]
fn a_users_room_runs_as_that_user() {
    if is_root() {
        return skip("these are the tests as root");
    }
    let mut running = room().start_probe(["hold"]);
    running.line();
    let payload = running.payload();
    let (uid, gid) = caller();
    assert_eq!((payload.uids, payload.gids), (vec![uid; 4], vec![gid; 4]));
}

#[test]
fn each_of_roots_rooms_has_kernel_ids_that_no_other_living_room_has() {
    if !is_root() {
        return skip("only root's rooms take ids");
    }
    let mut rooms: Vec<_> = (0..5).map(|_| room().start_probe(["hold"])).collect();
    let mut uids = Vec::new();
    for running in &mut rooms {
        running.line();
        uids.push(running.payload().uids[0]);
    }
    uids.sort_unstable();
    uids.dedup();
    assert_eq!(uids.len(), 5);
}

#[test]
fn root_can_name_an_unprivileged_user_to_run_as() {
    if !is_root() {
        return skip("only root may become somebody else");
    }
    let mut running = room().with(["--build-user", "65534"]).start_probe(["hold"]);
    running.line();
    assert_eq!(running.payload().uids, [65_534; 4]);
}

#[test]
fn a_range_gives_the_payload_65536_ids_that_are_its_own() {
    if !has_range() {
        return;
    }
    let map = room().with(["--id-range"]).probe(["read", "/proc/self/uid_map"]).line();
    assert_eq!(map.split_ascii_whitespace().collect::<Vec<_>>(), ["0", "0", "65536"]);
}

#[test]
fn what_a_payload_writes_belongs_to_its_kernel_ids() {
    let footprint = footprint();
    assert_eq!(footprint.room().probe(["create", "/lent/made"]).line(), "done");
    let made = fs::metadata(footprint.path("lent/made")).expect("the payload made it");
    if is_root() {
        assert!(made.uid() != 0 && made.gid() != 0, "{}:{}", made.uid(), made.gid());
    } else {
        assert_eq!((made.uid(), made.gid()), caller());
    }
}

/// Capabilities are kept here, and a program that is executed keeps them as uid 0: what they can be used on is the question. The two
/// layers that refuse mounts altogether are left out, too.
fn unmounting(room: Room) -> String {
    let mighty = room.without("capabilities").without("landlock").without("seccomp").with(["--uid", "0", "--gid", "0"]);
    mighty.probe(["unmount", "/tmp"]).line()
}

#[test]
fn a_capability_over_the_second_user_namespace_moves_no_mount_of_the_room() {
    assert_eq!(unmounting(room()), "EPERM");
}

#[test]
fn without_the_layer_a_capability_can_take_the_rooms_mounts_away() {
    assert_eq!(unmounting(room().without("identity")), "done");
}

#[test]
fn the_second_user_namespace_is_not_the_one_that_the_warden_is_in() {
    if !is_root() {
        return skip("the namespaces of a process with other ids are shown to root only");
    }
    let mut running = room_of("nested").start_probe(["hold"]);
    running.line();
    let payload = running.payload().pid;
    let user = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/user")).expect("a namespace");
    let warden = running.processes().into_iter().find(|process| process.pid != payload).expect("a warden");
    assert_ne!(user(payload), user(warden.pid));
    assert!(host::Process::read(warden.pid).is_some_and(|warden| warden.uids.iter().all(|uid| *uid != 0)));
}
