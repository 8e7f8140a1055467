//! `anchorhold hook` as the build hook of real Nixes: this machine's, without and with a daemon, and a newer one.

mod daemon;
mod machine;
mod newer;
mod shim;
mod world;

use std::fs;
use std::io::{BufRead, BufReader, Read};

use anchorhold_tests::PATIENCE;
use anchorhold_tests::host::{poll_until, processes_that_name};
use anchorhold_tests::skip;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use world::{World, write_program};

/// Returns from the test where there is no world for it.
macro_rules! world {
    ($made:expr) => {
        match $made {
            Ok(world) => world,
            Err(reason) => return skip(&reason),
        }
    };
}

#[test]
fn a_build_is_registered_by_nix_itself() {
    let world = world!(World::new());
    // Without a word more: so it is where the setting is a path and nothing else.
    let link = world.path("anchorhold-hook");
    let options = ["--option", "build-hook", link.to_str().unwrap()];
    let built = world.build(r#"thing { script = "id -u; echo some words; echo hello $out > $out"; }"#, &options);
    let path = built.path();
    assert_eq!(world.contents(path), format!("hello {path}\n"));
    assert!(built.said.contains("1000\nsome words\n"), "the log is shown as it comes: {}", built.said);
    let drv = world.ask("nix-store", &["--query", "--deriver", path]);
    assert_eq!(world.ask("nix-store", &["--query", "--references", path]), path, "a reference to itself");
    assert_eq!(world.ask("nix", &["log", &drv]), "1000\nsome words");
    world.ask("nix-store", &["--verify", "--check-contents"]);
    world.assert_swept();
}

#[test]
fn no_input_is_copied() {
    let world = world!(World::new());
    let chain = r#"
        let
          far = thing { name = "far"; script = "echo far > $out"; };
          near = thing { name = "near"; script = "echo ${far} > $out"; };
        in"#;
    let near = world.build(&format!("{chain} near"), &[]);
    assert_eq!(near.status, Some(0), "{}", near.said);
    // With derivations as inputs Nix sends the closure; with sources alone it is for us to know what they need.
    let as_source = format!(
        r#"thing {{ name = "reader"; script = "cat $(cat ${{builtins.storePath {}}}) > $out"; }}"#,
        near.paths[0]
    );
    let as_derivation = format!(r#"{chain} thing {{ name = "other"; script = "cat $(cat ${{near}}) > $out"; }}"#);
    for expression in [as_source, as_derivation] {
        let built = world.build(&expression, &[]);
        assert_eq!(world.contents(built.path()), "far\n");
        assert!(built.said.contains("copying 0 paths"), "{}", built.said);
        assert!(!built.said.contains("' to 'ssh-ng:"), "{}", built.said);
    }
}

#[test]
fn a_build_sees_its_inputs_and_nothing_else_of_the_store() {
    let world = world!(World::new());
    let other = world.build(r#"thing { name = "other"; }"#, &[]);
    let script = format!(
        r#"thing {{ name = "looker"; script = "echo /nix/store/*-other > $out; [ ! -e {} ]"; }}"#,
        other.path()
    );
    assert_eq!(world.contents(world.build(&script, &[]).path()), "/nix/store/*-other\n");
}

#[test]
fn failures_have_their_classes_and_their_words() {
    let world = world!(World::new());
    let fails = |script: &str, options: &[&str]| world.build(&format!("thing {{ script = ''{script}''; }}"), options);
    fails("echo the last words; exit 7", &[]).assert_failed(100, &["failed with exit code 7", "> the last words"]);
    fails("true", &[]).assert_failed(1, &["did not make its output ‘out’"]);
    fails("sleep 1357", &["--timeout", "1"]).assert_failed(101, &["timed out: it ran longer than 1s"]);
    fails("sleep 1358", &["--max-silent-time", "1"]).assert_failed(101, &["timed out: it wrote nothing for 1s"]);
    fails("yes", &["--option", "max-build-log-size", "5000"]).assert_failed(1, &["wrote more than its limit"]);
    world.assert_swept();
}

#[test]
fn a_fixed_output_is_what_was_declared_or_nothing() {
    let world = world!(World::new());
    let fixed = |hash: &str| {
        let more = format!(r#"{{ outputHash = "{hash}"; outputHashAlgo = "sha256"; outputHashMode = "flat"; }}"#);
        world.build(&format!(r#"thing {{ script = "echo hello > $out"; more = {more}; }}"#), &[])
    };
    let wrong = fixed("sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    // Nix takes each failure of a fixed output for one that may pass, and has no class for that.
    wrong.assert_failed(1, &["hash mismatch in fixed-output derivation"]);
    let got =
        wrong.said.lines().find_map(|line| line.trim().strip_prefix("got:")).expect("the hash that it has").trim();
    let right = fixed(got);
    let known = world.ask("nix", &["path-info", "--json", right.path()]);
    assert!(known.contains(r#""ca":"fixed:sha256:"#), "{known}");
}

#[test]
fn several_outputs_and_structured_attributes() {
    let world = world!(World::new());
    let many = r#"(thing { name = "many"; script = "echo a > $out; mkdir $dev; echo $out > $dev/refers"; more.outputs = [ "out" "dev" ]; }).dev"#;
    let dev = world.build(many, &[]);
    let out = world.contents(&format!("{}/refers", dev.path()));
    assert_eq!(world.ask("nix-store", &["--query", "--references", dev.path()]), out.trim());
    let structured = r##"
        let tools = builtins.storePath (builtins.getEnv "TOOLS"); in
        thing {
          name = "structured";
          script = ''
            export PATH=${tools}/bin
            out=$(sed -n 's/.*"outputs":{"out":"\([^"]*\)".*/\1/p' /build/.attrs.json)
            cat /build/.attrs.json > $out
          '';
          more = { __structuredAttrs = true; list = [ "a" 1 true ]; };
        }"##;
    let built = world.build(structured, &[]);
    assert!(world.contents(built.path()).contains(r#""list":["a",1,true]"#), "{}", built.said);
}

#[test]
fn settings_of_nix_reach_the_build() {
    let directory = tempfile::tempdir().unwrap();
    anchorhold_tests::host::open_to_all(directory.path());
    fs::write(directory.path().join("file"), "shown\n").unwrap();
    let hook = directory.path().join("pre-build");
    let said = format!("#!/bin/sh\necho extra-sandbox-paths\necho /by-hook={}\necho\n", directory.path().display());
    write_program(&hook, &said);
    let settings = format!(
        "sandbox-paths = /shown={}\npre-build-hook = {}\nsystem-features = gold\n",
        directory.path().display(),
        hook.display()
    );
    let world = world!(World::with(&settings));
    let script = r#"thing { script = "cat /shown/file /by-hook/file > $out; echo $NIX_BUILD_CORES >> $out"; more.requiredSystemFeatures = [ "gold" ]; }"#;
    assert_eq!(world.contents(world.build(script, &["--cores", "3"]).path()), "shown\nshown\n3\n");
}

#[test]
fn a_feature_that_nobody_has_is_refused_by_nix() {
    let world = world!(World::with("system-features = kvm"));
    let built = world.build(r#"thing { more.requiredSystemFeatures = [ "uid-range" ]; }"#, &[]);
    assert_eq!(built.status, Some(1), "{}", built.said);
    assert!(!built.was_ours() && built.said.contains("uid-range"), "{}", built.said);
}

#[test]
fn a_build_that_requires_a_machine_gets_one() {
    let Some(kernel) = anchorhold_tests::machines::guest_kernel() else { return };
    let world = world!(World::new());
    let hook = world.write_hook("hook-with-machines", "--option network none --option accel tcg");
    let script =
        r#"thing { script = "cat /proc/sys/kernel/osrelease > $out"; more.requiredSystemFeatures = [ "linux-vm" ]; }"#;
    let built = world.build(script, &["--option", "build-hook", &hook]);
    assert_eq!(world.contents(built.path()), format!("{}\n", kernel.version), "{}", built.said);
    assert!(built.was_ours(), "{}", built.said);
}

#[test]
fn a_failed_build_is_kept() {
    let world = world!(World::new());
    let built = world.build(r#"thing { script = "echo half > half-done; exit 1"; }"#, &["--keep-failed"]);
    built.assert_failed(100, &["keeping build directory"]);
    let kept = world.path("tmp/nix-build-thing.drv-0/build/half-done");
    assert_eq!(fs::read_to_string(kept).unwrap(), "half\n");
}

#[test]
fn a_hook_without_a_helper_builds_nothing() {
    let world = world!(World::new());
    let hook = world.write_hook("without-helper", "--build-remote /nothing");
    let built = world.build("thing { }", &["--option", "build-hook", &hook]);
    built.assert_failed(1, &["cannot run /nothing"]);
    assert!(built.paths.is_empty());
}

#[test]
fn an_interrupt_ends_the_build_and_leaves_nothing() {
    let world = world!(World::new());
    let mark = format!("86{}", std::process::id());
    let mut command = world.build_command(&format!(r#"thing {{ script = "echo begun; sleep {mark}"; }}"#), &[]);
    let mut child = command.spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while line != "begun\n" {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "the build never began");
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    said.read_to_string(&mut line).unwrap();
    assert!(!child.wait().unwrap().success());
    // Its command line holds the expression no more.
    let sleeper = format!("sleep\0{mark}");
    assert!(poll_until(PATIENCE, || processes_that_name(&sleeper).is_empty()), "a process of the build lives on");
    world.assert_swept();
}
