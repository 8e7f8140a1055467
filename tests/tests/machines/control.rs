//! Machines that do what they are told to.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use anchorhold_vmm::machine::{Machine, Run};
use anchorhold_vmm::readiness::wait_for_shutdown;
use anchorhold_vmm::spec::{Card, Drive, DriveBus, DriveFormat, Share, ShareKind};
use anchorhold_vmm::wire::End;

use crate::world::{PATIENCE, World, is_alive, line};

#[test]
fn a_guest_starts_answers_and_ends() {
    let Some(world) = World::new() else { return };
    let mut guest = world.guest("echo up; read word; echo got $word; busybox poweroff -f");
    guest.spec.display = true;
    let log = guest.path("console.log");
    let run = Run { console_log: Some(log.clone()), ..Run::default() };
    let mut machine = guest.start_with(&world, run);
    assert!(machine.build().starts_with(&world.qemu.version.to_string()), "{}", machine.build());
    line(&mut machine, "up");
    let picture = guest.path("picture.png");
    machine.screenshot(&picture).unwrap();
    assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"));
    machine.type_at_console(b"hatch\n").unwrap();
    line(&mut machine, "got hatch");
    wait_for_shutdown(&mut machine, PATIENCE).unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("up\r\n") && log.contains("got hatch\r\n"), "{log}");
}

#[test]
fn the_clock_is_that_of_2010_whatever_the_hosts_is() {
    let Some(world) = World::new() else { return };
    let guest = world.guest("echo year $(busybox date -u +%Y-%m-%d); busybox poweroff -f");
    let mut machine = guest.start(&world);
    line(&mut machine, "year 2010-01-01");
}

#[test]
fn a_machine_ends_with_the_one_who_holds_it() {
    let Some(world) = World::new() else { return };
    let guest = world.guest("echo up; busybox sleep 1000000");
    let mut machine = guest.start(&world);
    line(&mut machine, "up");
    let process = machine.process_id();
    assert!(is_alive(process));
    drop(machine);
    assert!(!is_alive(process));
    // And when the thread ends that started it, though nobody drops it.
    let left = std::thread::scope(|scope| scope.spawn(|| guest.start(&world)).join().unwrap());
    let process = left.process_id();
    let begun = Instant::now();
    while is_alive(process) {
        assert!(begun.elapsed() < PATIENCE, "QEMU outlived the thread that started it");
        std::thread::yield_now();
    }
}

#[test]
fn a_port_a_disk_and_a_share_are_what_the_guest_finds() {
    let Some(world) = World::new() else { return };
    // Without modules in the guest there is no driver for any: what the bus shows is what there is.
    let mut guest = world.guest(
        "busybox mkdir /sys; busybox mount -t sysfs sysfs /sys\n\
         for d in /sys/bus/pci/devices/*; do echo found $(busybox cat $d/vendor):$(busybox cat $d/device); done\n\
         echo complete; busybox poweroff -f",
    );
    let image = guest.path("disk,with=comma.img");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    guest.spec.drives.push(Drive {
        serial: "scratch".into(),
        image,
        base: None,
        format: DriveFormat::Raw,
        read_only: false,
        bus: DriveBus::Virtio,
    });
    let shared = guest.path("shared,dir");
    std::fs::create_dir(&shared).unwrap();
    guest.spec.shares.push(Share { tag: "x".into(), path: shared, read_only: true, kind: ShareKind::NineP });
    guest.spec.ports.push("org.example.port".into());
    guest.spec.cards.push(Card { wire: "pair".into(), address: "52:54:00:00:00:01".into() });
    let (_ours, theirs) = UnixDatagram::pair().unwrap();
    let wires: BTreeMap<String, End> = [("pair".to_owned(), End::Datagrams(theirs.into()))].into();
    world.qemu.check(&guest.spec).unwrap();
    let mut machine = guest.start_with(&world, Run { wires, console_log: Some(guest.path("log")), ..Run::default() });
    line(&mut machine, "complete");
    let log = std::fs::read_to_string(guest.path("log")).unwrap();
    // virtio's own numbers: 1000 network, 1001 disk, 1003 port, 1009 9p.
    for device in ["0x1000", "0x1001", "0x1003", "0x1009"] {
        assert!(log.contains(&format!("found 0x1af4:{device}")), "{device}: {log}");
    }
}

#[test]
fn qemu_is_held_by_its_own_filter_too() {
    let Some(world) = World::new() else { return };
    let guest = world.guest("echo up; busybox sleep 1000000");
    let mut machine: Machine = guest.start(&world);
    line(&mut machine, "up");
    let status = std::fs::read_to_string(format!("/proc/{}/status", machine.process_id())).unwrap();
    assert!(status.contains("Seccomp:\t2"), "{status}");
}
