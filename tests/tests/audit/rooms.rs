//! Our own rooms: nothing is open that is not known to be, and what is called closed was seen to be open elsewhere.

use serde_json::Value;

use crate::{in_state, report, run, severity};
use anchorhold_tests::host::is_root;

/// What is open at high or worse although nobody wants it, with the place that says so.
const KNOWN: [(&str, &str); 1] = [("sock.socketcall", "SECURITY.md, known gaps: i386 socketcall")];

/// What cannot be shown to reach on every kernel, and why.
const UNPROVABLE: [(&str, &str); 14] = [
    ("attr.subvolume", "takes a host with btrfs"),
    ("attr.subvolume.int80", "takes a host with btrfs"),
    ("fs.mount.propagation", "takes a host with shared mounts, which a container's is not"),
    ("mnt.propagation", "takes a host with shared mounts"),
    ("net.metadata", "takes a host with a route to link-local addresses"),
    ("net.path.known", "takes a host with one of the usual daemons"),
    ("net.dns", "takes a host with a resolver of its own"),
    ("pid.oom", "takes CAP_SYS_RESOURCE, which root of a container has not"),
    ("dev.kvm.ungranted", "takes a host with /dev/kvm"),
    ("res.fds", "takes a host without a hard limit on descriptors"),
    ("res.mem", "takes a sandbox with a limit on memory"),
    ("res.disk", "takes a sandbox with a limit on what is written"),
    ("res.inodes", "takes a sandbox with a limit on files"),
    ("res.cpu", "takes a sandbox with a limit on time"),
];

#[track_caller]
fn nothing_bad_is_open(report: &Value, run: &Value) {
    let title = format!("{} as {}", run["sandbox"], run["user"]);
    assert_eq!(run["problem"], Value::Null, "{title}");
    assert_eq!(run["battery"]["complete"], true, "{title}: {run}");
    let bad: Vec<String> = in_state(report, run, "open")
        .into_iter()
        .filter(|id| matches!(severity(report, id), "critical" | "high"))
        .filter(|id| KNOWN.iter().all(|(known, _)| known != id))
        .map(|id| {
            let rows = run["battery"]["rows"].as_array().expect("rows");
            rows.iter().find(|row| row["id"] == id).map_or(id.to_owned(), ToString::to_string)
        })
        .collect();
    assert!(bad.is_empty(), "{title}: {bad:#?}");
    assert!(in_state(report, run, "lost").is_empty(), "{title}");
}

#[test]
fn nothing_bad_is_open_in_a_room_and_the_host_shows_that_it_could_be() {
    let report = report(&["--in", "room"]);
    let room = run(&report, "room");
    nothing_bad_is_open(&report, room);
    let host = run(&report, "host");
    let open = |run: &Value| run["open"].as_u64().expect("a count");
    assert!(open(host) > 50, "the bare host is open: {}", open(host));
    if !is_root() {
        // Much of what root may do cannot be shown then.
        return;
    }
    for state in ["unproven", "inconclusive"] {
        let silent: Vec<&str> = in_state(&report, room, state)
            .into_iter()
            .filter(|id| UNPROVABLE.iter().all(|(known, _)| known != id))
            .collect();
        assert!(silent.is_empty(), "{state}: nothing made these reach, and no reason is known: {silent:?}");
    }
}

#[test]
fn nothing_bad_is_open_in_the_other_profiles_and_in_a_build() {
    let report = report(&["--no-baseline", "--controls", "none", "--in", "room:nested", "--in", "build"]);
    for sandbox in ["room:nested", "build"] {
        nothing_bad_is_open(&report, run(&report, sandbox));
    }
}

#[test]
fn nothing_bad_is_open_in_a_room_of_an_ordinary_user() {
    if !is_root() {
        // Then the other tests are that already.
        return;
    }
    let report = report(&["--no-baseline", "--controls", "none", "--in", "user:room"]);
    let room = run(&report, "room");
    assert_ne!(room["user"], "root");
    nothing_bad_is_open(&report, room);
}
