//! Builds on the server: as a store, and as a remote builder.

use std::fs;
use std::process::Stdio;

use anchorhold_tests::PATIENCE;
use anchorhold_tests::host::{poll_until, processes_that_name};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::{World, system, text};

#[test]
fn the_server_builds_and_says_what_went_wrong() {
    let Some(world) = World::new() else { return };
    let served = world.served();
    let built = world.ask("nix-build", &world.build(&served, "good", "echo hello from $name; echo $out > $out"));
    assert!(built.status.success(), "{}", text(&built.stderr));
    assert!(text(&built.stderr).contains("hello from good"), "{}", text(&built.stderr));
    let out = text(&built.stdout).trim().to_owned();
    assert_eq!(fs::read_to_string(world.real(&out)).unwrap().trim(), out);
    world.said("nix-build", &world.build(&served, "good", "echo hello from $name; echo $out > $out"));

    let failing = world.build(&served, "bad", "echo the last words; exit 3");
    let story = world.refused("nix-build", &failing);
    assert!(story.contains("failed with exit code 3") && story.contains("> the last words"), "{story}");
    let mut nix_build = world.build(&served, "bad", "echo the last words; exit 3");
    nix_build.splice(0..0, ["build"]);
    let at = nix_build.iter().position(|word| *word == "thing.nix").unwrap();
    nix_build.splice(at..at + 2, ["-f", "thing.nix", "--no-link"]);
    let story = world.refused("nix", &nix_build);
    assert!(story.contains("failed with exit code 3") && story.contains("> the last words"), "{story}");

    let more = r#"{ outputHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="; }"#;
    let mut mismatch = world.build(&served, "fixed", "echo other > $out");
    mismatch.extend(["--arg", "more", more]);
    let story = world.refused("nix-build", &mismatch);
    assert!(story.contains("sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), "{story}");

    let mut two = world.build(&served, "two", "echo 1 > $out; echo 2 > $dev");
    two.extend(["--arg", "more", r#"{ outputs = [ "out" "dev" ]; }"#, "-A", "dev"]);
    assert!(world.said("nix-build", &two).ends_with("-two-dev"));

    let drv = world
        .ask("nix-instantiate", &failing.iter().copied().filter(|word| *word != "--no-out-link").collect::<Vec<_>>());
    let drv = text(&drv.stdout).trim().to_owned();
    assert_eq!(world.said("nix", &["log", "--store", &served, &drv]), "the last words");
    let mut timed = world.build(&served, "timed", "sleep 1000");
    timed.extend(["--timeout", "1"]);
    let story = world.refused("nix-build", &timed);
    assert!(story.contains("timed out"), "{story}");
    world.is_whole();
}

#[test]
fn it_is_a_remote_builder_by_both_protocols() {
    let Some(world) = World::new() else { return };
    let local = world.local();
    for protocol in ["ssh", "ssh-ng"] {
        let machine = format!("{protocol}://machine {} - 1 1", system());
        let name = format!("by-{protocol}");
        let mut good = world.build(&local, &name, "echo hello from $name; echo $out > $out");
        good.extend(["-j0", "--builders", &machine]);
        let built = world.ask("nix-build", &good);
        assert!(built.status.success(), "{}", text(&built.stderr));
        assert!(text(&built.stderr).contains(&format!("hello from {name}")), "{}", text(&built.stderr));
        let out = text(&built.stdout).trim().to_owned();
        assert_eq!(fs::read_to_string(world.path("local").join(&out[1..])).unwrap().trim(), out);
        let mut bad = world.build(&local, &name, "echo the last words; exit 4");
        bad.extend(["-j0", "--builders", &machine]);
        let story = world.refused("nix-build", &bad);
        assert!(story.contains("failed with exit code 4") && story.contains("> the last words"), "{story}");
    }
    world.is_whole();
}

#[test]
fn a_client_that_goes_away_takes_its_build_with_it() {
    let Some(world) = World::new() else { return };
    let served = world.served();
    // In the command line of the builder, and of nothing else on this machine.
    let marker = format!("31{}", std::process::id());
    let script = format!("echo started; sleep {marker}; echo $out > $out");
    let log = fs::File::create(world.path("client.log")).unwrap();
    let mut client = world.command("nix-build", &world.build(&served, "slow", &script));
    let mut client = client.stderr(log).stdout(Stdio::null()).spawn().unwrap();
    let word = format!("sleep\0{marker}");
    let started = poll_until(PATIENCE, || !processes_that_name(&word).is_empty());
    assert!(started, "{}", fs::read_to_string(world.path("client.log")).unwrap());
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(poll_until(PATIENCE, || processes_that_name(&word).is_empty()), "the builder is still there");
    let builds = world.path("served/nix/var/nix/anchorhold/builds");
    let empty = || fs::read_dir(&builds).map_or(0, Iterator::count) == 0;
    assert!(poll_until(PATIENCE, empty), "its directory is still there");
    assert!(poll_until(PATIENCE, || world.left_over().is_empty()), "{:?}", world.left_over());
    // Nobody holds its lock.
    let quick = "echo started; echo $out > $out";
    world.said("nix-build", &world.build(&served, "slow", quick));
    world.is_whole();
}

#[test]
fn limits_checks_and_kept_builds() {
    let Some(world) = World::new() else { return };
    let served = world.served();
    let with = |name, script, more: &[&str]| {
        let mut words: Vec<String> = world.build(&served, name, script).into_iter().map(str::to_owned).collect();
        words.extend(more.iter().map(|word| (*word).to_owned()));
        world.ask("nix-build", &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let failed = |name, script, more: &[&str], status, words: &str| {
        let output = with(name, script, more);
        let story = text(&output.stderr);
        assert!(output.status.code() == Some(status) && story.contains(words), "{}: {story}", output.status);
    };
    // A daemon's client of this age is not told the class of a failure.
    failed("chatty", "yes", &["--option", "max-build-log-size", "10000"], 1, "more than its limit of 10000");
    failed("silent", "sleep 1357", &["--max-silent-time", "1"], 1, "it wrote nothing for 1s");
    failed("kept", "echo work > half-done; exit 1", &["--keep-failed"], 1, "failed with exit code 1");
    let kept = world.path("tmp/nix-build-kept.drv-0/build/half-done");
    assert_eq!(fs::read_to_string(kept).unwrap(), "work\n");
    let random = "cat /proc/sys/kernel/random/uuid > $out";
    assert!(with("random", random, &[]).status.success());
    failed("random", random, &["--check"], 1, "may not be deterministic");
    assert!(with("same", "echo > $out", &[]).status.success());
    assert!(with("same", "echo > $out", &["--check"]).status.success());
    let more = r#"{ __structuredAttrs = true; list = [ "a" 1 true ]; }"#;
    let bin = format!("{}/bin", world.busybox);
    let script = format!(
        r#"out=$({bin}/sed -n 's/.*"outputs":{{"out":"\([^"]*\)".*/\1/p' /build/.attrs.json); {bin}/cat /build/.attrs.json > $out"#
    );
    let structured = with("structured", &script, &["--arg", "more", more]);
    assert!(structured.status.success(), "{}", text(&structured.stderr));
    let written = fs::read_to_string(world.real(text(&structured.stdout).trim())).unwrap();
    assert!(written.contains(r#""list":["a",1,true]"#), "{written}");
    world.is_whole();
}

#[test]
fn an_interrupt_ends_the_build() {
    let Some(world) = World::new() else { return };
    let (served, local) = (world.served(), world.local());
    let machines = ["ssh", "ssh-ng"].map(|protocol| format!("{protocol}://machine {} - 1 1", system()));
    for (number, machine) in [None, Some(&machines[0]), Some(&machines[1])].into_iter().enumerate() {
        // In the command line of the builder, and of nothing else on this machine.
        let marker = format!("4{number}{}", std::process::id());
        let script = format!("sleep {marker}; echo $out > $out");
        let mut words = world.build(if machine.is_some() { &local } else { &served }, "interrupted", &script);
        words.extend(machine.iter().flat_map(|machine| ["-j0", "--builders", machine]));
        let mut client =
            world.command("nix-build", &words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let word = format!("sleep\0{marker}");
        assert!(poll_until(PATIENCE, || !processes_that_name(&word).is_empty()), "the build never began");
        kill(Pid::from_raw(client.id().cast_signed()), Signal::SIGINT).unwrap();
        assert!(!client.wait().unwrap().success());
        assert!(poll_until(PATIENCE, || processes_that_name(&word).is_empty()), "a process of the build lives on");
        // The client kills what it has started as its ssh, so this is the work of somebody else.
        assert!(poll_until(PATIENCE, || world.left_over().is_empty()), "{:?}", world.left_over());
    }
    world.is_whole();
}
