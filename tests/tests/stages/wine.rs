//! A saved guest with Wine, whose server runs before it is saved.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anchorhold_tests::machines::{Shown, windows_program, wine_images};

use crate::world::{World, text};

#[test]
fn a_program_of_windows_runs_in_a_revived_guest() {
    let Some(world) = World::new() else { return };
    if wine_images().is_none() {
        return;
    }
    let store = world.place.path().join("store");
    fs::create_dir_all(store.join("tool")).unwrap();
    if !windows_program(&store.join("tool/show.exe")) {
        return;
    }
    world.must(&["suspend", "--guest", "wine"]);
    for (status, name) in [("37", "one"), ("0", "other")] {
        let exchange = world.place.path().join(name);
        fs::create_dir(&exchange).unwrap();
        fs::set_permissions(&exchange, fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = world.vm(&["revive", "--guest", "wine", "--only-saved", "--store"]);
        command.arg(&store).arg("--exchange").arg(&exchange);
        let output = command.args(["--", "S:\\tool\\show.exe", "X:\\shown", status, name]).output().unwrap();
        assert_eq!(output.status.code(), Some(status.parse().unwrap()), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        assert!(said.contains("said\n") && !said.contains(['\r', '\x1b']), "{said:?}");
        assert_eq!(Shown::of(&exchange.join("shown")).arguments, [name]);
    }
    // Wine ran before it was saved: here nothing has started it.
    let script = "pidof wineserver64 && pidof services.exe";
    let output = world.run(&["revive", "--guest", "wine", "--only-saved", "--", "/bin/sh", "-c", script]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}
