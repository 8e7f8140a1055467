//! Looking at machines that run.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use anchorhold_tests::room::anchorhold;

use crate::world::World;

/// Killed when a test ends early.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_machine_that_runs_is_found_and_looked_at() {
    let Some(world) = World::new() else { return };
    world.must(&["suspend"]);
    let exchange = world.place.path().join("xchg");
    std::fs::create_dir(&exchange).unwrap();
    std::fs::set_permissions(&exchange, std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = world.vm(&["revive", "--exchange"]);
    let script = "echo up; until [ -e /xchg/speak ]; do sleep 1; done; echo from-the-guest >/dev/console
        until [ -e /xchg/end ]; do sleep 1; done";
    command.arg(&exchange).args(["--", "/bin/sh", "-c", script]).stdout(Stdio::piped());
    let mut guest = Ended(command.spawn().unwrap());
    let mut said = BufReader::new(guest.0.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");

    let name = format!("standin-{}", guest.0.id());
    let list = world.list();
    let running = list["running"].as_array().unwrap();
    assert!(running.iter().any(|machine| machine["name"] == *name), "{running:?}");

    let picture = world.place.path().join("picture.png");
    let taken = Command::new(anchorhold())
        .args(["vm", "screenshot", &name, "--output"])
        .arg(&picture)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG\r\n"));
    let refused = Command::new(anchorhold()).args(["vm", "screenshot", "nobody-1"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(125));

    let mut console = Ended(
        Command::new(anchorhold())
            .args(["vm", "console", &name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut shown = BufReader::new(console.0.stdout.take().unwrap());
    // What is typed comes back: the guest's terminal echoes.
    let mut keys = console.0.stdin.take().unwrap();
    keys.write_all(b"typed\n").unwrap();
    let mut heard = String::new();
    while !heard.contains("typed") {
        assert_ne!(shown.read_line(&mut heard).unwrap(), 0, "{heard}");
    }
    std::fs::write(exchange.join("speak"), "").unwrap();
    while !heard.contains("from-the-guest") {
        assert_ne!(shown.read_line(&mut heard).unwrap(), 0, "{heard}");
    }
    std::fs::write(exchange.join("end"), "").unwrap();
    // It ends with its machine.
    shown.read_to_string(&mut heard).unwrap();
    assert!(console.0.wait().unwrap().success());
    assert!(guest.0.wait().unwrap().success());
    assert!(!world.list()["running"].as_array().unwrap().iter().any(|machine| machine["name"] == *name));
}
