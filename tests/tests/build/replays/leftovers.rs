//! What a failed build leaves behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::recipe::Recipe;
use crate::world::World;

/// The outputs of a failed build stay in the store under the modes that its builder chose. Nix and Lix before July 2025.
#[test]
fn cve_2025_52992_outputs_of_a_failed_build_are_nobodys_to_use() {
    let world = World::new();
    let script = "mkdir -m 777 $out; echo '#!/bin/sh' > $out/helper; chmod 777 $out/helper; echo made; exit 1";
    let recipe = Recipe::new(&world, "failed", script);
    // `fails` looks for the output where it would be, and among the valid paths.
    world.fails(&recipe, "PermanentFailure").says(&["made"]);
    let store = world.root().join("nix/store");
    let names = || -> Vec<String> {
        fs::read_dir(&store).unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    assert!(!names().iter().any(|name| name.ends_with("-failed")), "{:?}", names());

    // Kept because it was asked for: shut to everybody else.
    let ended = world.fails_with(&recipe, "PermanentFailure", &["--keep-failed"]);
    ended.says(&["made"]);
    assert!(!names().iter().any(|name| name.ends_with("-failed")), "{:?}", names());
    let kept: Vec<_> = fs::read_dir(world.path("tmp")).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(
        fs::metadata(&kept[0]).unwrap().permissions().mode() & 0o077,
        0,
        "others walk into {}",
        kept[0].display()
    );
}
