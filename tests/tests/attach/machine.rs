//! Builds that Nix hands over and that require a Linux machine.

use std::fs;

use anchorhold_tests::machines::{guest_images, guest_kernel};

use crate::world::World;

/// A world whose build requires a machine, or the line that says why there is none.
fn world(script: &str) -> Option<World> {
    guest_kernel()?;
    let Some(mut world) = World::new(script, &["out"]) else {
        anchorhold_tests::skip("no static busybox to build with");
        return None;
    };
    world.request["env"]["requiredSystemFeatures"] = "linux-vm".into();
    Some(world)
}

const EMULATED: [&str; 3] = ["--option", "accel", "tcg"];

#[test]
fn the_builder_runs_in_a_machine_and_its_output_gets_to_the_scratch_path() {
    let Some(world) = world("echo in the log; cat /proc/sys/kernel/osrelease in > $out; id -u >> $out; pwd >> $out")
    else {
        return;
    };
    fs::write(world.top().join("build/in"), "from Nix\n").unwrap();
    let attached = world.attach(&EMULATED);
    assert_eq!((attached.status, attached.log()), (Some(0), "in the log\n"), "{attached:?}");
    let release = guest_kernel().unwrap().version;
    assert_eq!(fs::read_to_string(world.output("out")).unwrap(), format!("{release}\nfrom Nix\n0\n/build\n"));
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(host.trim(), release, "the host's own kernel says nothing");
    let mut left: Vec<_> = fs::read_dir(world.top()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["build", "build.json"], "nothing of ours stays");
}

#[test]
fn the_status_is_the_builders_in_the_guest() {
    let Some(world) = world("echo half > $out; echo so far; exit 3") else { return };
    let attached = world.attach(&EMULATED);
    assert_eq!((attached.status, attached.log()), (Some(3), "so far\n"), "{attached:?}");
    assert_eq!(world.made(), Vec::<String>::new());
}

#[test]
fn a_machine_that_goes_away_is_no_status() {
    let Some(world) = world("echo half > $out; echo o > /proc/sysrq-trigger; sleep 600") else { return };
    let attached = world.attach(&EMULATED);
    assert_eq!(attached.status, Some(1), "{attached:?}");
    assert!(
        attached.log().contains("anchorhold: ‘thing’ failed: ") && attached.log().contains("powered off"),
        "{attached:?}"
    );
    assert_eq!(world.made(), Vec::<String>::new());
}

#[test]
fn a_guest_beside_a_controller_has_what_nix_has_made_where_its_drives_are() {
    let Some(mut world) = world("cat in > $out; pwd >> $out; echo $TMPDIR >> $out; hostname >> $out") else { return };
    let Some(images) = guest_images() else { return };
    world.request["env"]["requiredSystemFeatures"] = "windows-vm".into();
    fs::write(world.top().join("build/in"), "from Nix\n").unwrap();
    let settings = ["--option", "vm-guest", "standin", "--option", "vm-images", images.to_str().unwrap()];
    let attached = world.attach(&[&EMULATED[..], &settings].concat());
    assert_eq!(attached.status, Some(0), "{attached:?}");
    let made = fs::read_to_string(world.output("out")).unwrap();
    assert_eq!(made, "from Nix\n/xchg/build\n/xchg/build\nguest\n");
}
