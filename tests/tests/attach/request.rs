//! Requests that the tests write themselves: no Nix is needed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use anchorhold_tests::host::{is_root, wait_for_end};
use anchorhold_tests::running::Running;
use anchorhold_tests::{PATIENCE, skip};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::world::World;

/// A world, or the line that says why there is none.
macro_rules! world {
    ($script:expr, $outputs:expr) => {
        match World::new($script, $outputs) {
            Some(world) => world,
            None => return skip("no static busybox to build with"),
        }
    };
}

#[test]
fn a_build_runs_at_build_with_its_own_environment_and_nothing_else() {
    let mut world = world!("pwd; id -u; env; ls -1 /proc/self/fd; cat in > $out", &["out"]);
    fs::write(world.top().join("build/in"), "from Nix").unwrap();
    world.request["env"]["greeting"] = "hello".into();
    let attached = world.attach(&[]);
    assert_eq!(attached.status, Some(0), "{attached:?}");
    assert_eq!(attached.before, "");
    let log = attached.log();
    assert!(log.starts_with("/build\n1000\n"), "{log}");
    assert!(log.contains("greeting=hello\n") && log.contains("HOME=/homeless-shelter\n"), "{log}");
    assert!(!log.contains("OF_THE_DAEMON"), "{log}");
    // The fourth is ls's own.
    assert!(log.ends_with("\n0\n1\n2\n3\n"), "{log}");
    assert_eq!(fs::read_to_string(world.output("out")).unwrap(), "from Nix");
    let found = fs::metadata(world.output("out")).unwrap();
    assert_eq!(found.uid(), nix::unistd::geteuid().as_raw());
    assert_eq!((found.mode() & 0o7777, found.mtime()), (0o444, 1));
    let mut left: Vec<_> = fs::read_dir(world.top()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["build", "build.json"], "nothing of ours stays");
}

#[test]
fn every_output_gets_to_its_scratch_path() {
    let world =
        world!("echo 1 > $out; mkdir -p $dev/lib; echo 2 > $dev/lib/a; ln -s /etc/passwd $doc", &["out", "dev", "doc"]);
    let attached = world.attach(&[]);
    assert_eq!(attached.status, Some(0), "{attached:?}");
    assert_eq!(fs::read_to_string(world.output("out")).unwrap(), "1\n");
    assert_eq!(fs::read_to_string(world.output("dev").join("lib/a")).unwrap(), "2\n");
    assert_eq!(fs::read_link(world.output("doc")).unwrap().to_str(), Some("/etc/passwd"));
}

#[test]
fn the_status_is_the_builders_and_its_outputs_stay_behind() {
    let world = world!("echo half > $out; echo so far; exit 3", &["out"]);
    let attached = world.attach(&[]);
    assert_eq!((attached.status, attached.log()), (Some(3), "so far\n"));
    assert_eq!(world.made(), Vec::<String>::new());
}

#[test]
fn an_output_that_is_not_made_is_for_nix_to_miss() {
    let world = world!("echo 1 > $out", &["out", "dev"]);
    assert_eq!(world.attach(&[]).status, Some(0));
    assert!(world.output("out").exists() && !world.output("dev").exists());
}

#[test]
fn a_refused_output_fails_the_build_in_its_log() {
    let world = world!("echo 1 > $dev; mkdir $out; mkfifo $out/pipe", &["out", "dev"]);
    let attached = world.attach(&[]);
    assert_eq!(attached.status, Some(1));
    assert!(attached.log().contains("anchorhold: ‘thing’ made an output that is refused"), "{attached:?}");
    assert_eq!(world.made(), Vec::<String>::new(), "all or none");
}

#[test]
fn what_lies_at_the_scratch_path_is_never_replaced() {
    let world = world!("echo new > $out; echo new > $dev", &["dev", "out"]);
    fs::write(world.output("out"), "old").unwrap();
    let attached = world.attach(&[]);
    assert_eq!(attached.status, Some(1));
    assert!(attached.log().contains("could not be moved"), "{attached:?}");
    assert_eq!(fs::read_to_string(world.output("out")).unwrap(), "old");
    assert!(!world.output("dev").exists(), "all or none");
}

#[test]
fn a_builder_that_is_no_program_fails_in_words() {
    let mut world = world!("", &["out"]);
    world.request["builder"] = "/nix/store/nothing".into();
    let attached = world.attach(&[]);
    assert_eq!(attached.status, Some(1));
    assert!(attached.log().contains("cannot execute /nix/store/nothing"), "{attached:?}");
}

#[test]
fn a_request_that_is_none_is_an_error_of_nix() {
    let mut world = world!("", &["out"]);
    world.request["version"] = 7.into();
    assert!(world.attach(&[]).error().contains("the request has version 7"));
    world.request["version"] = 1.into();
    world.request["realStoreDir"] = "/nowhere/at/all".into();
    let error = world.attach(&[]).error().to_owned();
    assert!(error.contains("/nowhere/at/all"), "{error}");
    let error = world.attach(&["--option", "sandbox-paths", "/nowhere/either"]).error().to_owned();
    assert!(error.contains("/nowhere/"), "{error}");
    assert!(world.attach(&["--option", "memorie", "1G"]).error().contains("is ‘memory’ meant"));
}

#[test]
fn what_policy_refuses_is_not_started() {
    let mut world = world!("echo 1 > $out", &["out"]);
    world.request["env"]["requiredSystemFeatures"] = "a-machine-of-gold".into();
    let error = world.attach(&[]).error().to_owned();
    assert!(error.contains("cannot build ‘thing’ here") && error.contains("‘a-machine-of-gold’"), "{error}");
    assert_eq!(world.attach(&["--option", "system-features", "a-machine-of-gold"]).status, Some(0));

    // With structured attributes the features are in Nix's file.
    let mut world = world!("echo 1 > $out", &["out"]);
    world.request["env"]["NIX_ATTRS_JSON_FILE"] = "/build/.attrs.json".into();
    let attributes = json!({"requiredSystemFeatures": ["a-machine-of-gold"]}).to_string();
    fs::write(world.top().join("build/.attrs.json"), attributes).unwrap();
    assert!(world.attach(&[]).error().contains("‘a-machine-of-gold’"));

    let mut world = world!("echo 1 > $out", &["out"]);
    world.request["env"]["__noChroot"] = "1".into();
    assert!(world.attach(&[]).error().contains("sets ‘__noChroot’"));
    let attached = world.attach(&["--option", "sandbox", "relaxed"]);
    assert_eq!(attached.status, Some(0), "{attached:?}");
}

#[test]
fn words_alone_open_no_network() {
    let mut world = world!("cat /proc/net/dev; echo 1 > $out", &["out"]);
    world.request["env"]["NIX_OUTPUT_CHECKED"] = "1".into();
    world.request["env"]["outputHash"] = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=".into();
    let attached = world.attach(&[]);
    assert_eq!(attached.status, Some(0), "{attached:?}");
    let devices: Vec<_> =
        attached.log().lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    assert_eq!(devices, ["lo"]);
}

#[test]
fn a_path_that_follows_from_its_hash_opens_the_network() {
    // What `nix-instantiate` computes for this hash, the name `thing` and the mode `flat`.
    const PATH: &str = "/nix/store/cqnpgac0bbgrd5dqrs0xh6crv3n250c8-thing";
    let mut world = world!("cat /proc/net/dev; echo 1 > $out", &["out"]);
    world.request["env"]["outputHash"] = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=".into();
    world.request["env"]["out"] = PATH.into();
    world.request["outputs"]["out"] = PATH.into();
    let attached = world.attach(&[]);
    if let Some(error) = &attached.error
        && error.contains("‘thing’: network: ")
    {
        return skip("no way out to the network here: anchorhold doctor says why");
    }
    assert_eq!(attached.status, Some(0), "{attached:?}");
    let devices = attached.log().lines().filter(|line| line.contains(':')).count();
    assert_eq!(devices, 2, "{attached:?}");
    assert_eq!(world.attach(&["--option", "network", "none"]).status, Some(1), "the output is there by now");
}

#[test]
fn tribuchets_conventions_are_followed_when_asked_for() {
    let mut world = world!("echo 1 > $out", &["out"]);
    assert_eq!(world.attach(&["--tribuchet"]).status, Some(0));
    let result = fs::read_to_string(world.top().join("result.json")).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&result).unwrap(), json!({"addedPaths": []}));

    world.request["env"]["requiredSystemFeatures"] = "a-machine-of-gold".into();
    let attached = world.attach(&["--tribuchet"]);
    assert_eq!(attached.status, Some(222), "{attached:?}");
    assert!(attached.log().contains("a-machine-of-gold"), "{attached:?}");

    // A builder is not let out of its room by its own word.
    let world = world!("exit 222", &["out"]);
    assert_eq!(world.attach(&[]).status, Some(222));
    assert_eq!(world.attach(&["--tribuchet"]).status, Some(1));
}

#[test]
fn a_room_has_no_root_and_ends_with_whoever_asked_for_it() {
    let world = world!("echo ready; sleep 1000", &["out"]);
    let mut running = Running::start(world.command(&[]));
    assert_eq!(running.line(), "\u{2}");
    assert_eq!(running.line(), "ready");
    let all = running.processes();
    let sleeping: Vec<_> = all.iter().filter(|process| process.command_line().contains("sleep")).collect();
    assert!(!sleeping.is_empty(), "{all:?}");
    for process in &sleeping {
        assert!(!process.uids.contains(&0) && !process.gids.contains(&0), "{process:?}");
        assert!(is_root() || process.uids == [nix::unistd::geteuid().as_raw(); 4], "{process:?}");
    }
    // As Nix does it: without a warning.
    running.signal(Signal::SIGKILL);
    for process in &all {
        assert!(wait_for_end(process.pid, PATIENCE), "{process:?} outlives the call");
    }
    let _ = running.to_the_end();
    assert_eq!(world.made(), Vec::<String>::new());
}

#[test]
fn what_the_daemon_had_open_is_nobodys() {
    let world = world!("echo ready; sleep 1000", &["out"]);
    let secret = world.top().join("secret");
    fs::write(&secret, "").unwrap();
    let called = world.command(&[]);
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", "exec 9<\"$1\"; shift; exec \"$@\"", "sh"]).arg(&secret);
    command.arg(called.get_program()).args(called.get_args());
    command.current_dir(world.top()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start(command);
    assert_eq!((running.line().as_str(), running.line().as_str()), ("\u{2}", "ready"));
    let ours = fs::read_dir(format!("/proc/{}/fd", running.pid())).unwrap();
    let theirs =
        running.processes().into_iter().filter_map(|process| fs::read_dir(format!("/proc/{}/fd", process.pid)).ok());
    for descriptor in std::iter::once(ours).chain(theirs).flatten() {
        let Ok(open) = descriptor.and_then(|descriptor| fs::read_link(descriptor.path())) else { continue };
        assert_ne!(open, secret);
    }
}

#[test]
fn without_a_listener_nothing_is_built() {
    let world = world!("echo > ran; echo > $out", &["out"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = world.command(&[]).stdout(writer).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(!world.top().join("build/ran").exists());
    assert_eq!(world.made(), Vec::<String>::new());
}
