//! Every step of the set-up fails once, in several ways: the command never starts, one line says so, nothing is left.

use anchorhold_tests::host::is_root;
use anchorhold_tests::{host, skip};
use nix::errno::Errno;

use crate::footprint;

/// Fails every step of these rooms with each errno.
fn every_step_fails(options: &[&str], answers: &[Errno]) {
    let shape = footprint();
    let plan = shape.room().with_probe().with(options).explain();
    if plan.status == 125 {
        return skip(&format!("a room with {options:?} is refused here: {}", plan.refusal()));
    }
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).expect("explain prints JSON");
    let steps = plan["steps"].as_array().expect("steps").len();
    assert!(steps > 40, "a room takes more than {steps} steps");
    let footprint = footprint();
    let room = || footprint.room().with_probe().with(options);
    // The same room without a fault does start.
    let started = room().start_probe(["create", "/lent/started", "0644"]).to_the_end();
    if started.status == 125 && started.stderr.contains("the room's user may not reach it") {
        return skip("the directory for temporary files is shut to a user's range of ids");
    }
    assert_eq!(started.status, 0, "{started:?}");
    std::fs::remove_file(footprint.path("lent/started")).expect("the command made it");
    for step in 0..steps {
        for errno in answers {
            let fault = format!("{step}:{}", *errno as i32);
            let running = room().with(["--inject-fault", &fault]).start_probe(["create", "/lent/started"]);
            let supervisor = running.pid();
            let line = running.to_the_end().refusal();
            let action =
                plan["steps"][step]["action"].as_object().and_then(|action| action.keys().next()).expect("a layer");
            assert!(line.starts_with(&format!("{action}: cannot ")), "step {step}: {line}");
            assert!(line.contains(&format!("({errno:?})")), "step {step}: {line}");
            assert!(!footprint.has_lent("started"), "step {step}: the command was started: {line}");
            assert_eq!(host::locks_of(supervisor), Vec::<String>::new(), "step {step}");
        }
    }
    footprint.assert_nothing_left(-1);
}

const ANSWERS: [Errno; 3] = [Errno::EPERM, Errno::ENOSPC, Errno::ENOMEM];

#[test]
fn in_a_build() {
    every_step_fails(&[], &ANSWERS);
}

#[test]
fn in_a_nested_room() {
    every_step_fails(&["--profile", "nested"], &[Errno::EINVAL]);
}

#[test]
fn in_a_room_with_a_range_of_ids() {
    every_step_fails(&["--id-range", "--uid", "0", "--gid", "0"], &[Errno::EPERM]);
}

#[test]
fn in_a_room_with_a_terminal_an_init_and_a_time_namespace() {
    every_step_fails(&["--tty", "--init", "--time-namespace", "--linux32"], &[Errno::EIO]);
}

#[test]
fn in_a_room_with_resource_control() {
    every_step_fails(&["--memory", "256M", "--pids", "100", "--cpu", "1"], &[Errno::EBUSY]);
    if is_root() {
        // What was made before the fault is taken back, too: see `host::Footprint`.
        let groups = host::control_groups_named("anchorhold");
        let of_dead: Vec<_> = groups.iter().filter(|group| group.to_string_lossy().contains("FOOTPRINT")).collect();
        assert!(of_dead.is_empty(), "{of_dead:?}");
    }
}

#[test]
fn in_a_room_with_pasta() {
    every_step_fails(&["--network", "pasta"], &[Errno::EAGAIN]);
}

#[test]
fn in_a_room_without_its_layers() {
    let mut options = Vec::new();
    for layer in ["devices", "etc", "proc", "keyring", "landlock", "seccomp", "capabilities", "identity", "namespaces"]
    {
        options.extend(["--without", layer]);
    }
    let footprint = footprint();
    let plan = footprint.room().with(&options).explain();
    let plan: serde_json::Value = serde_json::from_str(&plan.expect_success().stdout).expect("JSON");
    for step in 0..plan["steps"].as_array().expect("steps").len() {
        let fault = format!("{step}:{}", Errno::EPERM as i32);
        let refusal =
            footprint.room().with(&options).with(["--inject-fault", &fault]).probe(["create", "/lent/started"]);
        refusal.refusal();
        assert!(!footprint.has_lent("started"), "step {step}");
    }
    footprint.assert_nothing_left(-1);
}
