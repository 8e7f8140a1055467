//! One saved pair, revived many times; and what it is not revived for.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anchorhold_vmm::memory::digest;

use crate::world::{World, text};

/// Digests of all files of a stage but what is remembered of them.
fn digests(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(digests(&path));
        } else if entry.file_name() != "checked.json" {
            let digest = digest(&File::open(&path).unwrap()).unwrap();
            found.insert(path, digest);
        }
    }
    found
}

/// A guest with two processors, revived twice at once. The world has a cache of its own: whose machines run is told by it.
fn is_many_guests_and_stays_what_it_is(world: &World) {
    let directory = world.must(&["suspend", "--cores", "2"]);
    let directory = Path::new(&directory);
    let before = digests(directory);
    let machines = if world.topology == "pair" { 2 } else { 1 };
    assert_eq!(before.len(), 2 + 3 * machines + usize::from(world.topology == "pair"), "{before:?}");
    let store = world.place.path().join("store");
    fs::create_dir_all(store.join("tool")).unwrap();
    fs::write(store.join("tool/word"), "from the store\n").unwrap();
    let script = "cat /nix/store/tool/word; echo $0 >/xchg/out; echo $0 >/root/written; cat /root/written
        grep -c ^processor /proc/cpuinfo; date +%Y; exit 37";
    let revived: Vec<_> = ["one", "two"]
        .into_iter()
        .map(|name| {
            let exchange = world.place.path().join(name);
            fs::create_dir(&exchange).unwrap();
            fs::set_permissions(&exchange, fs::Permissions::from_mode(0o777)).unwrap();
            let mut command = world.vm(&["revive", "--only-saved", "--cores", "2", "--store"]);
            command.arg(&store).arg("--exchange").arg(&exchange).args(["--", "/bin/sh", "-c", script, name]);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            (name, exchange, command.spawn().unwrap())
        })
        .collect();
    for (name, exchange, child) in revived {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(37), "{}", text(&output.stderr));
        // Each has a disk of its own, and the clock of the day on which it was saved.
        assert_eq!(text(&output.stdout), format!("from the store\n{name}\n2\n2010\n"));
        assert_eq!(fs::read_to_string(exchange.join("out")).unwrap(), format!("{name}\n"));
    }
    assert_eq!(digests(directory), before);
    let now = world.must(&["revive", "--only-saved", "--cores", "2", "--now", "--", "/bin/date", "+%Y"]);
    assert!(now.parse::<u32>().unwrap() > 2020, "{now}");
    assert_eq!(world.machines(), 0);
}

#[test]
fn one_saved_pair_is_many_guests_and_stays_what_it_is() {
    let Some(world) = World::empty() else { return };
    is_many_guests_and_stays_what_it_is(&world);
}

#[test]
fn one_saved_guest_without_a_controller_is_many_guests_and_stays_what_it_is() {
    let Some(world) = World::empty().and_then(|world| world.with("direct")) else { return };
    is_many_guests_and_stays_what_it_is(&world);
}

#[test]
fn an_ordinary_user_has_stages_of_his_own() {
    let Some(mut world) = World::of_nobody() else { return };
    for topology in ["direct", "pair"] {
        let Some(served) = world.with(topology) else { return };
        world = served;
        let directory = world.must(&["suspend", "--memory", "256M"]);
        assert_ne!(fs::metadata(&directory).unwrap().uid(), 0);
        let said = world.must(&["revive", "--only-saved", "--memory", "256M", "--", "/bin/sh", "-c", "echo here $$"]);
        assert!(said.starts_with("here "), "{said}");
        assert_eq!(world.machines(), 0);
    }
}

#[test]
fn a_flipped_byte_anywhere_is_refused() {
    // In a cache of its own: what is flipped here would be refused to others.
    let Some(world) = World::empty() else { return };
    are_all_refused(&world, &["guest/ram", "controller/ram", "guest/device", "controller/device", "resting.json"]);
    let Some(world) = world.with("direct") else { return };
    are_all_refused(&world, &["guest/ram", "guest/device"]);
}

fn are_all_refused(world: &World, own: &[&str]) {
    let directory = world.must(&["suspend"]);
    let install = world.list()["stages"].as_array().unwrap().iter().find(|stage| stage["stage"] == "install").unwrap()
        ["directory"]
        .as_str()
        .unwrap()
        .to_owned();
    let own = own.iter().map(|name| (&directory, *name));
    for (directory, name) in own.chain([(&directory, "disk.qcow2"), (&install, "disk.qcow2")]) {
        let at = match name {
            name if name.ends_with("ram") => 1 << 20,
            "disk.qcow2" => 65536,
            _ => 3,
        };
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
    // Another topology is told as that, whatever else follows from it.
    let output = world.run(&["revive", "--only-saved", "--option", "vm-topology", "direct", "--", "/bin/true"]);
    let told = text(&output.stderr);
    assert!(told.contains("topology was ‘pair’ and is ‘direct’ now (state-mismatch)"), "{told}");
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
