//! The directories of a build while it runs, seen by a local user; and their removal while somebody moves them about.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use anchorhold_tests::host::is_root;
use anchorhold_tests::{PATIENCE, skip};

use crate::recipe::Recipe;
use crate::world::{World, text};

/// What a user who has nothing to do with the build says when told to do something with a path.
fn stranger(command: &str, path: &Path) -> String {
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", command])
        .arg(path)
        .output()
        .unwrap();
    text(&output.stdout) + &text(&output.stderr)
}

/// The inner directories of the only build that runs.
fn running_build(world: &World) -> PathBuf {
    let name = world.leftovers().pop().expect("a running build has a directory");
    world.root().join("nix/var/nix/anchorhold/builds").join(name)
}

/// A builder makes a program for the world in its build directory, and a local user runs it: with the builder's rights, had
/// the mode that bit. Nix before 2.23.1.
#[test]
fn cve_2024_38531_what_a_builder_leaves_for_others_is_out_of_their_reach() {
    if !is_root() {
        return skip("only root can look as somebody else");
    }
    let world = World::new();
    fs::set_permissions(world.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let gate = world.gate();
    let script = "chmod 777 /build; printf '#!/bin/sh\\necho helped\\n' > helper; chmod 777 helper; chmod 4777 helper; mkdir $out
        chmod 777 $out; cp helper $out; chmod 777 $out/helper; echo here; while ! test -e /gate/open; do :; done; chmod 755 $out";
    let derivation = world.derivation(&Recipe::new(&world, "helper", script));
    let mut running = world.start(&["build", "--option", "extra-sandbox-paths", &gate.option, &derivation]);
    running.line_with("> here");
    let build = running_build(&world);
    let output = Path::new(&world.output(&derivation, "out")).file_name().unwrap().to_owned();
    let helpers = [build.join("room/build/helper"), build.join("room/store").join(output).join("helper")];
    for helper in &helpers {
        assert!(helper.is_file(), "{} is there", helper.display());
        assert!(stranger("env", helper).contains("Permission denied"));
        assert!(stranger("cat", helper).contains("Permission denied"));
        let mode = fs::metadata(helper).unwrap().permissions().mode();
        assert_eq!(mode & 0o6000, 0, "the bit itself was refused");
    }
    // It fires when the one directory that is shut is opened.
    fs::set_permissions(build.join("room"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::set_permissions(build.join("room/build"), fs::Permissions::from_mode(0o711)).unwrap();
    assert_eq!(stranger("env", &helpers[0]), "helped\n");
    gate.open();
    let ended = running.ended();
    assert_eq!(ended.status, 0, "{}", ended.stdout);
}

/// Build directories below a directory that others may change. Nix and Lix before July 2025.
#[test]
fn cve_2025_52991_build_directories_are_not_made_where_others_may_put_them() {
    let world = World::new();
    let recipe = Recipe::new(&world, "somewhere", "echo > $out");
    let derivation = world.derivation(&recipe);
    let good = world.path("good");
    fs::create_dir(&good).unwrap();
    let build_in =
        |directory: &Path| world.build(&[&derivation], &["--option", "build-dir", directory.to_str().unwrap()]);
    let open = world.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let below = open.join("builds");
    fs::create_dir(&below).unwrap();
    symlink(&good, world.path("link")).unwrap();
    for (directory, words) in
        [(open.clone(), "writable by nobody else"), (below, "may be exchanged"), (world.path("link"), "link")]
    {
        let ended = build_in(&directory);
        assert_ne!(ended.code, 0, "{} was used", directory.display());
        ended.says(&[words, directory.to_str().unwrap()]);
    }
    if is_root() {
        let others = world.path("others");
        fs::create_dir(&others).unwrap();
        nix::unistd::chown(&others, Some(nix::unistd::Uid::from_raw(12345)), None).unwrap();
        let below = others.join("builds");
        fs::create_dir(&below).unwrap();
        for directory in [others, below] {
            let ended = build_in(&directory);
            assert_ne!(ended.code, 0, "{} was used", directory.display());
        }
    }
    // The same build where nobody else may put anything.
    let ended = build_in(&good);
    assert_eq!((ended.code, ended.status(&derivation)), (0, "Built"), "{}", ended.err);
}

/// Exchanges a directory with a link out, over and over, while a build's directories are removed. Nix before 2.28.4.
#[test]
fn cve_2025_46415_removal_does_not_leave_what_it_removes() {
    let world = World::new();
    let canary = world.path("canary");
    fs::create_dir_all(canary.join("inner")).unwrap();
    fs::write(canary.join("inner/file"), "canary").unwrap();

    // It fires on a remover that goes by paths, when the exchange comes between its look and its step.
    let bait = world.path("bait");
    fs::create_dir_all(bait.join("inner")).unwrap();
    let sacrifice = world.path("sacrifice");
    fs::create_dir_all(sacrifice.join("inner")).unwrap();
    fs::write(sacrifice.join("inner/file"), "sacrifice").unwrap();
    assert!(fs::symlink_metadata(&bait).unwrap().is_dir());
    fs::rename(&bait, world.path("aside")).unwrap();
    symlink(&sacrifice, &bait).unwrap();
    for entry in fs::read_dir(bait.join("inner")).unwrap().flatten() {
        fs::remove_file(entry.path()).unwrap();
    }
    assert!(!sacrifice.join("inner/file").exists(), "a remover by paths has left what it removes");

    let gate = world.gate();
    let script =
        "i=0; while [ $i -lt 100 ]; do mkdir -p victim/inner more/$i/a/b; echo x > more/$i/a/b/c; i=$((i + 1)); done
        mkdir -p victim/inner; echo here; while ! test -e /gate/open; do :; done; exit 1";
    for round in 0..3 {
        let _ = fs::remove_file(world.path("gate/open"));
        let recipe = Recipe::new(&world, &format!("moved-{round}"), script);
        let derivation = world.derivation(&recipe);
        let mut running = world.start(&["build", "--option", "extra-sandbox-paths", &gate.option, &derivation]);
        running.line_with("> here");
        // Held, as by a descriptor that was smuggled out: shutting a directory above takes nothing from it.
        let held = fs::File::open(running_build(&world).join("room/build")).unwrap();
        nix::unistd::symlinkat(&canary, &held, "victim-link").unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (first, exchanging) = mpsc::sync_channel(1);
        let mover = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                    if nix::fcntl::renameat2(&held, "victim", &held, "victim-link", flags).is_ok() {
                        let _ = first.try_send(());
                    }
                }
            }
        });
        // The thread may come to run after all is removed, when both processors are busy: it is at work before the end.
        exchanging.recv_timeout(PATIENCE).expect("nothing was exchanged");
        gate.open();
        let ended = running.ended();
        stop.store(true, Ordering::Relaxed);
        mover.join().unwrap();
        assert_ne!(ended.status, 0);
        assert_eq!(fs::read_to_string(canary.join("inner/file")).unwrap(), "canary");
    }
}
