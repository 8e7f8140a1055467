//! Makers that are killed: nothing runs on, and nothing of them is ever taken for a stage.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::Duration;

use std::io::{BufRead, BufReader};

use anchorhold_tests::host::poll_until;

use crate::world::{World, text};

const PATIENCE: Duration = Duration::from_secs(300);

/// Starts it, and kills it when it says this.
fn kill_at(world: &World, words: &[&str], said: &str) {
    let (said_by_it, says) = std::io::pipe().unwrap();
    let mut command = world.vm(words);
    command.stdout(says.try_clone().unwrap()).stderr(says);
    let mut child: Child = command.spawn().unwrap();
    // It holds the other end.
    drop(command);
    let lines = BufReader::new(said_by_it).lines();
    let mut heard = Vec::new();
    for line in lines {
        let line = line.unwrap();
        let is_it = line.contains(said);
        heard.push(line);
        if is_it {
            child.kill().unwrap();
            assert_eq!(child.wait().unwrap().signal(), Some(9));
            assert!(poll_until(PATIENCE, || world.machines() == 0), "machines run on after {said:?}");
            return;
        }
    }
    panic!("it never said {said:?}: {heard:#?} {:?}", child.wait());
}

#[test]
fn a_killed_stage_leaves_nothing_that_runs_and_nothing_that_counts() {
    let Some(world) = World::empty() else { return };
    let stages = |world: &World| world.list()["stages"].as_array().unwrap().len();
    for said in ["the installer starts", "formatting", "the machine powers off"] {
        kill_at(&world, &["install"], said);
        assert_eq!(stages(&world), 0, "{said}");
    }
    world.must(&["install"]);
    for said in ["both machines start", "both memories are saved"] {
        kill_at(&world, &["suspend"], said);
        assert_eq!(stages(&world), 1, "{said}");
    }
    // What is there is used, what is not is made, and the makers' leavings are gone with it.
    let output = world.run(&["suspend"]);
    let told = text(&output.stderr);
    assert!(output.status.success() && !told.contains("install:"), "{told}");
    let left = fs::read_dir(&world.cache).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name.as_encoded_bytes()[0] == b'.').collect();
    assert!(left.iter().all(|name| name.to_string_lossy().contains("install")), "{left:?}");
    world.must(&["prune"]);
    let hidden = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes()[0] == b'.';
    assert_eq!(fs::read_dir(&world.cache).unwrap().flatten().filter(hidden).count(), 0);
    if let Some(direct) = World::of(&world.cache).and_then(|world| world.with("direct")) {
        for said in ["the guest starts", "its memory is saved"] {
            kill_at(&direct, &["suspend"], said);
            assert_eq!(stages(&direct), 2, "{said}");
        }
        direct.must(&["revive", "--", "/bin/true"]);
        kill_at(&direct, &["revive", "--", "/bin/sh", "-c", "echo here; sleep 1000"], "here");
    }
    // A pair that was revived goes with whoever wanted it, too.
    kill_at(&world, &["revive", "--", "/bin/sh", "-c", "echo here; sleep 1000"], "here");
    world.must(&["revive", "--", "/bin/true"]);
}
