//! Paths that are copied both ways and looked at.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::world::{World, text};

#[test]
fn paths_are_copied_both_ways_and_looked_at() {
    let Some(world) = World::new() else { return };
    let (local, served) = (world.local(), world.served());
    world.write("tree/file", "hello\n");
    world.write("tree/empty", "");
    symlink("file", world.path("tree/link")).unwrap();
    let path = world.said("nix-store", &["--store", &local, "--add", "tree"]);
    let ping = world.ask("nix", &["store", "ping", "--store", &served]);
    assert!(text(&ping.stderr).contains("Version: anchorhold"), "{}", text(&ping.stderr));
    world.said("nix", &["copy", "--from", &local, "--to", &served, &path]);
    assert_eq!(fs::read(world.real(&path).join("file")).unwrap(), b"hello\n");
    assert_eq!(world.said("nix", &["store", "cat", "--store", &served, &format!("{path}/file")]), "hello");
    assert!(world.said("nix", &["store", "ls", "-lR", "--store", &served, &path]).contains("./link -> file"));
    assert_eq!(
        world.said("nix", &["path-info", "--json", "--store", &served, &path]).replace(char::is_numeric, ""),
        world.said("nix", &["path-info", "--json", "--store", &local, &path]).replace(char::is_numeric, ""),
    );
    world.said("nix", &["store", "verify", "--no-trust", "--all", "--store", &served]);
    world.said("nix-store", &["--store", &served, "--verify", "--check-contents"]);
    let direct = world.said("nix", &["store", "add-path", "--store", &served, "tree", "--name", "direct"]);
    world.said("nix", &["store", "optimise", "--store", &served]);
    let back = world.path("back");
    world.said("nix", &["copy", "--no-check-sigs", "--from", &served, "--to", back.to_str().unwrap(), &direct]);
    assert_eq!(fs::read_link(back.join(direct.trim_start_matches('/')).join("link")).unwrap(), Path::new("file"));
    world.is_whole();

    let kept = world.path("kept");
    world.said("nix-store", &["--store", &served, "--realise", &path, "--add-root", kept.to_str().unwrap()]);
    let roots = world.said("nix-store", &["--store", &served, "--gc", "--print-roots"]);
    assert!(roots.contains(kept.to_str().unwrap()), "{roots}");
    world.said("nix", &["store", "gc", "--store", &served]);
    assert!(world.real(&path).exists() && !world.real(&direct).exists());
    world.is_whole();
}

#[test]
fn closures_are_copied_over_ssh() {
    let Some(world) = World::new() else { return };
    let local = world.local();
    world.write("leaf", "leaf");
    let leaf = world.said("nix-store", &["--store", &local, "--add", "leaf"]);
    world.said("nix-copy-closure", &["--store", &local, "--to", "machine", &leaf]);
    assert!(world.real(&leaf).exists());
    let back = world.path("back").to_str().unwrap().to_owned();
    world.said("nix-copy-closure", &["--store", &back, "--from", "machine", &leaf]);
    world.said("nix", &["copy", "--no-check-sigs", "--from", "ssh-ng://machine", "--to", &back, &world.busybox]);
    world.said("nix-store", &["--store", &back, "--verify", "--check-contents"]);
    world.write("direct", "direct");
    let direct = world.said("nix-store", &["--store", &local, "--add", "direct"]);
    world.said("nix", &["copy", "--from", &local, "--to", "ssh-ng://machine", &direct]);
    assert!(world.real(&direct).exists());
    // Input-addressed and unsigned: taken because the client is believed and asks for no check.
    let out = world.said("nix-build", &world.build(&world.served(), "served", "echo $out > $out"));
    world.said("nix", &["copy", "--no-check-sigs", "--from", "ssh-ng://machine", "--to", &local, &out]);
    world.is_whole();
}
