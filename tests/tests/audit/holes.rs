//! That a hole is found when there is one.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::{audit, in_state, report, run};
use anchorhold_tests::host::is_root;

#[test]
fn a_room_without_a_filter_shows_what_the_filter_is_for() {
    let words =
        ["--no-baseline", "--controls", "none", "--in", "room", "--only", "mode.chmod", "--only", "sc.io_uring"];
    let closed = audit(&words);
    assert_eq!(closed.status, 0, "{closed:?}");
    assert!(closed.stdout.contains("nothing"), "{closed:?}");
    let open = audit(&[&words[..], &["--without", "seccomp"]].concat());
    assert_eq!(open.status, 1, "{open:?}");
    for id in ["mode.chmod", "sc.io_uring"] {
        assert!(open.stdout.contains(id), "{open:?}");
    }
    let told = audit(&[&words[..], &["--without", "seccomp", "--fail-on", "never"]].concat());
    assert_eq!(told.status, 0, "{told:?}");
    assert!(told.stdout.contains("mode.chmod"), "told all the same: {told:?}");
}

#[test]
fn a_room_that_keeps_what_it_inherits_shows_it() {
    for (layer, id) in
        [("descriptors", "fd.dir.escape"), ("keyring", "key.session.search"), ("network", "net.loopback.host")]
    {
        let words = ["--no-baseline", "--controls", "none", "--in", "room", "--only", id];
        let closed = report(&words);
        assert_eq!(in_state(&closed, run(&closed, "room"), "open"), [""; 0], "{layer}");
        let open =
            report(&[&words[..], &["--without", layer, "--without", "seccomp", "--without", "landlock"]].concat());
        assert_eq!(in_state(&open, run(&open, "room"), "open"), [id], "{layer}: {}", open["runs"]);
    }
}

#[test]
fn observers_see_what_comes_to_them_from_outside_of_any_sandbox() {
    // The custom sandbox that is none: everything is reached.
    let ids = [
        "net.abs.out",
        "net.abs.in",
        "net.loopback.host",
        "pid.kill",
        "key.session.plant",
        "life.daemon",
        "env.canary",
    ];
    let mut words = vec!["--no-baseline", "--controls", "none", "--in", "{}"];
    words.extend(ids.iter().flat_map(|id| ["--only", *id]));
    let report = report(&words);
    let open = in_state(&report, run(&report, "{}"), "open");
    for id in ids {
        assert!(open.contains(&id), "{id}: {}", report["runs"]);
    }
}

#[test]
fn a_probe_of_ones_own_is_one_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("motd");
    let script = r#"#!/bin/sh
case $1 in
list) echo '{"id":"own.usr","title":"/usr is there","severity":"low"}' ;;
run) if [ -d /usr/bin ]; then echo '{"id":"own.usr","verdict":"reached","detail":"it is"}'; else echo '{"id":"own.usr","verdict":"absent"}'; fi
     echo '{"id":"mode.chmod","verdict":"refused","detail":"not mine to say"}' ;;
esac
"#;
    fs::write(&file, script).expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("its mode");
    let probes = folder.path().to_str().expect("UTF-8");
    let words = [
        "--no-baseline",
        "--controls",
        "none",
        "--in",
        "room",
        "--probes",
        probes,
        "--only",
        "own",
        "--only",
        "mode.chmod",
    ];
    let report = report(&words);
    let room = run(&report, "room");
    assert_eq!(room["problem"], serde_json::Value::Null, "{room}");
    assert_eq!(in_state(&report, room, "open"), ["own.usr"], "{room}");
    let rows = room["battery"]["rows"].as_array().expect("rows");
    assert_eq!(
        rows.iter().filter(|row| row["id"] == "mode.chmod").count(),
        1,
        "it speaks for its own probes only: {room}"
    );
}

#[test]
fn what_is_not_understood_is_refused_before_anything_is_tried() {
    for words in [
        &["--in", "moon"][..],
        &["--only", "moon"],
        &["--explain", "moon"],
        &["--user", "root", "--in", "room"],
        &["--probe-program", "/nonexistent"],
    ] {
        let refused = audit(words).refusal();
        assert!(!refused.is_empty(), "{words:?}");
    }
}

#[test]
fn a_sandbox_that_does_not_run_is_told_and_not_counted_as_safe() {
    let ended = audit(&["--no-baseline", "--controls", "none", "--in", "false # {}", "--only", "mode.chmod"]);
    assert_eq!(ended.status, 125, "{ended:?}");
    assert!(ended.stdout.contains("did not come to its end"), "{ended:?}");
    assert!(ended.stderr.contains("was not judged"), "{ended:?}");
}

#[test]
fn outputs_that_are_taken_as_they_are_are_seen_and_ours_are_not() {
    let report = report(&["--no-baseline", "--in", "build", "--in", "attach", "--only", "out"]);
    let ids: Vec<&str> = in_state(&report, run(&report, "build"), "closed");
    assert_eq!(ids.len(), 7, "each was seen to be open in a naive store, and is not in ours: {}", report["runs"]);
    assert_eq!(in_state(&report, run(&report, "attach"), "closed"), ids, "{}", report["runs"]);
}

#[test]
fn a_supervisor_that_leaves_its_sandbox_behind_is_seen_and_ours_does_not() {
    let report = report(&["--no-baseline", "--in", "room", "--only", "life.parent.dead"]);
    assert_eq!(in_state(&report, run(&report, "room"), "closed"), ["life.parent.dead"], "{}", report["runs"]);
    let proof = report["proofs"]["life.parent.dead"].as_str().unwrap_or_default();
    assert!(proof.contains("{} & wait"), "{proof}");
}

#[test]
fn limits_that_were_asked_for_end_whoever_goes_beyond_them() {
    let report = report(&["--no-baseline", "--in", "room:limited", "--only", "res"]);
    let room = run(&report, "room:limited");
    let mut closed = vec!["res.cpu", "res.disk", "res.inodes", "res.log", "res.pids"];
    if is_root() {
        // An ordinary user may have no control group to limit memory by; the room is then refused, which shows nothing.
        closed.push("res.mem");
    }
    let found = in_state(&report, room, "closed");
    for id in closed {
        assert!(found.contains(&id), "{id}: {room}");
    }
}

#[test]
fn a_control_that_does_not_fire_for_no_reason_is_named_and_fails() {
    // A program that never reaches stands for a control that is broken.
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("anchorhold-probe");
    // Where the ordinary user can walk to it.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    let real = folder.path().join("real");
    fs::copy(anchorhold_tests::room::anchorhold().with_file_name("anchorhold-probe"), &real).expect("a copy");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = run ] || exec {} \"$@\"\n\
         echo '{{\"battery\":\"0\",\"kernel\":\"k\",\"machine\":\"m\",\"uid\":0,\"gid\":0,\"probes\":1}}'\n\
         echo '{{\"id\":\"mode.chmod\",\"verdict\":\"refused\",\"errno\":\"EPERM\"}}'\necho '{{\"end\":1}}'\n",
        real.display()
    );
    fs::write(&file, script).expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("its mode");
    let program = file.to_str().expect("UTF-8");
    let ended = audit(&["--no-baseline", "--in", "{}", "--only", "mode.chmod", "--probe-program", program]);
    assert_eq!(ended.status, 125, "{ended:?}");
    assert!(ended.stderr.contains("did not make mode.chmod reach"), "{ended:?}");
}

#[test]
fn a_control_is_run_for_what_the_host_has_not_proven() {
    if !is_root() {
        anchorhold_tests::skip("chroot(2) takes root");
        return;
    }
    let report = report(&["--in", "room", "--only", "fs.chroot.breakout"]);
    let proof = report["proofs"]["fs.chroot.breakout"].as_str().unwrap_or_default();
    assert!(proof.contains("chroot"), "{}", report["controls"]);
    assert_eq!(in_state(&report, run(&report, "room"), "closed"), ["fs.chroot.breakout"]);
}
