//! Who the client is, and what follows.

use std::fs;
use std::os::unix::process::CommandExt;

use anchorhold_tests::host::is_root;
use anchorhold_tests::skip;

use crate::world::{World, text};

const NOBODY: u32 = 65534;

#[test]
fn who_the_client_is_says_the_kernel() {
    if !is_root() {
        return skip("only root can be two users");
    }
    let Some(world) = World::new() else { return };
    fs::create_dir(world.path("theirs")).unwrap();
    std::os::unix::fs::chown(world.path("theirs"), Some(NOBODY), Some(NOBODY)).unwrap();
    let theirs = world.path("theirs/root").to_str().unwrap().to_owned();
    let home = world.path("theirs");
    let as_nobody = |program: &str, arguments: &[&str]| {
        let mut command = world.command(program, arguments);
        command.env("HOME", &home).uid(NOBODY).gid(NOBODY).output().unwrap()
    };
    let socket = format!("unix://{}", world.path("socket").display());
    // A path that says by its name what it holds is taken from anybody.
    world.write("leaf", "leaf");
    let leaf = as_nobody("nix-store", &["--store", &theirs, "--add", "leaf"]);
    let leaf = text(&leaf.stdout).trim().to_owned();
    let copied = as_nobody("nix", &["copy", "--from", &theirs, "--to", &socket, &leaf]);
    assert!(copied.status.success(), "{}", text(&copied.stderr));
    // Derivations come with all that they need, and so can be built.
    let built = as_nobody("nix-build", &world.build(&socket, "theirs", "echo $out > $out"));
    assert!(built.status.success(), "{}", text(&built.stderr));
    // What somebody says was built is not taken without a signature, whatever they ask for.
    let out = world.said(
        "nix-build",
        &world
            .build(&world.local(), "claimed", "echo $out > $out")
            .iter()
            .copied()
            .chain(["--option", "sandbox", "false"])
            .collect::<Vec<_>>(),
    );
    let stream = world.path("stream");
    let export = world.said(
        "sh",
        &[
            "-c",
            &format!(
                "nix-store --store {} --export $(nix-store --store {} -qR {out}) > {}",
                world.local(),
                world.local(),
                stream.display()
            ),
        ],
    );
    assert!(export.is_empty());
    as_nobody("sh", &["-c", &format!("nix-store --store {theirs} --import < {}", stream.display())]);
    let claimed = as_nobody("nix", &["copy", "--no-check-sigs", "--from", &theirs, "--to", &socket, &out]);
    assert!(text(&claimed.stderr).contains("lacks a signature by a trusted key"), "{}", text(&claimed.stderr));
    assert!(!world.real(&out).exists());
    world.is_whole();

    let Some(closed) = World::with(&["--option", "allowed-users", "root @root"]) else { return };
    let socket = format!("unix://{}", closed.path("socket").display());
    let refused = as_nobody("nix", &["store", "ping", "--store", &socket]);
    assert!(text(&refused.stderr).contains("is not allowed to connect"), "{}", text(&refused.stderr));
}
