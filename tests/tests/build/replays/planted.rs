//! What a builder plants beside its outputs for the one who takes them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::recipe::Recipe;
use crate::world::World;

/// The hash of a file that holds `hello`.
const HELLO: &str = "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";

/// Names that executors have used, or could use, for what they make beside an output.
const SUFFIXES: [&str; 12] =
    [".tmp", ".check", ".lock", ".chroot", ".drv", ".new", ".old", ".partial", "~", ".nar", ".link", ".copy"];

/// Links at every name beside the output that the executor might copy to, all of them out of the room. Nix 2.21 to 2.34.4.
#[test]
fn cve_2026_39860_links_beside_an_output_are_not_written_through() {
    let world = World::new();
    let canary = world.file("canary", "canary");
    let yard = world.path("yard");
    fs::create_dir(&yard).unwrap();
    fs::set_permissions(&canary, fs::Permissions::from_mode(0o666)).unwrap();
    let before = fs::metadata(&canary).unwrap();
    let plant: String = SUFFIXES
        .iter()
        .map(|suffix| format!("ln -s {} $out{suffix} && echo planted; ", canary.display()))
        .chain([".tmp-dir", ".d"].map(|suffix| format!("ln -s {} $out{suffix} && echo planted; ", yard.display())))
        .collect();
    let script = format!("{plant} rm -f $out.probe; printf hello > $out; ls -l $(dirname $out) | grep -c -- '->'");
    for (name, fixed) in [("fixed", true), ("ordinary", false)] {
        let recipe = Recipe::new(&world, name, &script);
        let recipe = if fixed { recipe.fixed("flat", "sha256", HELLO) } else { recipe };
        for options in [&[][..], &["--check"]] {
            let derivation = world.derivation(&recipe);
            let ended = world.build(&[&derivation], options);
            assert_eq!(ended.code, 0, "{}", ended.err);
            // It fires: the builder did put them there.
            assert_eq!(ended.err.matches("planted").count(), SUFFIXES.len() + 2, "{}", ended.err);
            assert_eq!(world.read(&world.output(&derivation, "out")), "hello");
        }
    }
    let after = fs::metadata(&canary).unwrap();
    assert_eq!(fs::read_to_string(&canary).unwrap(), "canary");
    assert_eq!(
        (after.ino(), after.mode(), after.uid(), after.mtime()),
        (before.ino(), before.mode(), before.uid(), before.mtime())
    );
    assert_eq!(fs::read_dir(&yard).unwrap().count(), 0, "something was made behind a link");
    world.is_whole();
    let names = fs::read_dir(world.root().join("nix/store")).unwrap().flatten();
    let left: Vec<_> =
        names.filter(|entry| entry.file_type().unwrap().is_symlink()).map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "what a builder planted is in the store: {left:?}");
}
