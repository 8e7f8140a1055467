//! One saved pair, revived many times; and what it is not revived for.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use anchorhold_vmm::memory::digest;

use crate::world::{World, text};

const STATE: [&str; 6] =
    ["disk.qcow2", "record.json", "guest/ram", "guest/device", "controller/ram", "controller/device"];

fn digests(directory: &Path) -> BTreeMap<&'static str, String> {
    STATE.into_iter().map(|name| (name, digest(&File::open(directory.join(name)).unwrap()).unwrap())).collect()
}

#[test]
fn one_saved_pair_is_many_guests_and_stays_what_it_is() {
    let Some(world) = World::new() else { return };
    let directory = world.must(&["suspend"]);
    let directory = Path::new(&directory);
    let before = digests(directory);
    let store = world.place.path().join("store");
    fs::create_dir_all(store.join("tool")).unwrap();
    fs::write(store.join("tool/word"), "from the store\n").unwrap();
    let script =
        "cat /nix/store/tool/word; echo $0 >/xchg/out; echo $0 >/root/written; cat /root/written; date +%Y; exit 37";
    let revived: Vec<_> = ["one", "two"]
        .into_iter()
        .map(|name| {
            let exchange = world.place.path().join(name);
            fs::create_dir(&exchange).unwrap();
            fs::set_permissions(&exchange, fs::Permissions::from_mode(0o777)).unwrap();
            let mut command = world.vm(&["revive", "--store"]);
            command.arg(&store).arg("--exchange").arg(&exchange).args(["--", "/bin/sh", "-c", script, name]);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            (name, exchange, command.spawn().unwrap())
        })
        .collect();
    for (name, exchange, child) in revived {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(37), "{}", text(&output.stderr));
        // Each has a disk of its own, and the clock of the day on which it was saved.
        assert_eq!(text(&output.stdout), format!("from the store\n{name}\n2010\n"));
        assert_eq!(fs::read_to_string(exchange.join("out")).unwrap(), format!("{name}\n"));
    }
    assert_eq!(digests(directory), before);
    let now = world.must(&["revive", "--now", "--", "/bin/date", "+%Y"]);
    assert!(now.parse::<u32>().unwrap() > 2020, "{now}");
    assert_eq!(world.machines(), 0);
}

#[test]
fn a_flipped_byte_anywhere_is_refused() {
    // In a cache of its own: what is flipped here would be refused to others.
    let Some(world) = World::empty() else { return };
    let directory = world.must(&["suspend"]);
    let install = world.list()["stages"].as_array().unwrap().iter().find(|stage| stage["stage"] == "install").unwrap()
        ["directory"]
        .as_str()
        .unwrap()
        .to_owned();
    for (directory, name, at) in [
        (&directory, "guest/ram", 1 << 20),
        (&directory, "controller/ram", 1 << 20),
        (&directory, "guest/device", 1000),
        (&directory, "disk.qcow2", 65536),
        (&directory, "server", 0),
        (&install, "disk.qcow2", 70000),
    ] {
        let file = File::options().read(true).write(true).open(Path::new(directory).join(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        let output = world.run(&["revive", "--only-saved", "--", "/bin/true"]);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(120), "{name}: {told}");
        assert!(told.contains("corrupt-state") && told.contains(name), "{name}: {told}");
        file.write_all_at(&byte, at).unwrap();
    }
    world.must(&["revive", "--only-saved", "--", "/bin/true"]);
}

#[test]
fn what_has_changed_is_named_and_a_share_table_redoes_the_suspension_alone() {
    let Some(world) = World::empty() else { return };
    let output = world.run(&["revive", "--only-saved", "--", "/bin/true"]);
    assert!(text(&output.stderr).contains("there is no stage install"), "{}", text(&output.stderr));
    world.must(&["suspend"]);
    let output = world.run(&["revive", "--only-saved", "--memory", "256M", "--", "/bin/true"]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(120), "{told}");
    assert!(told.contains("guest.memory was ‘1024 MiB’ and is ‘256 MiB’ now (state-mismatch)"), "{told}");

    let output = world.run(&["suspend", "--drive", "Y:=xchg"]);
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("suspend: is made anew: shares was ‘") && told.contains("Y: xchg /xchg rw’ now"), "{told}");
    assert!(!told.contains("install:"), "{told}");
    let stages = world.list()["stages"].as_array().unwrap().clone();
    let names = |kind: &str| stages.iter().filter(|stage| stage["stage"] == kind).count();
    assert_eq!((names("install"), names("suspend")), (1, 2));
    // Nothing is made when all is there.
    let output = world.run(&["suspend"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));

    // The older of both goes, and what the other stands on stays.
    world.must(&["prune"]);
    let stages = world.list()["stages"].as_array().unwrap().clone();
    assert_eq!(stages.len(), 2, "{stages:?}");
    let told = text(&world.run(&["suspend", "--drive", "Y:=xchg"]).stderr);
    assert_eq!(told, "");
    world.must(&["prune", "--all"]);
    assert!(world.list()["stages"].as_array().unwrap().is_empty());
    let files = fs::read_dir(world.cache.join("files")).unwrap().count();
    assert_eq!(files, 0);
}
