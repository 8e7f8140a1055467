use super::*;
use crate::spec::{Accelerator, DriveBus};

fn golden(spec: &MachineSpec, memory: &MemoryBacking, incoming: bool) -> String {
    let wiring = Wiring {
        control: 3,
        console: 4,
        ports: [("org.anchorhold.report".to_owned(), 5)].into(),
        wires: [("pair".to_owned(), End::Datagrams(6))].into(),
    };
    let words = arguments(spec, &wiring, memory, incoming);
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    // An option and its value on one line.
    let mut text = String::new();
    for word in words {
        text.push_str(if word.starts_with('-') && !text.is_empty() { "\n" } else { " " });
        text.push_str(&word);
    }
    text.trim_start().to_owned()
}

#[test]
fn the_least_machine() {
    let spec = MachineSpec::linux("guest", "/k/vmlinux", "/k/initramfs", 256);
    insta::assert_snapshot!(golden(&spec, &MemoryBacking::Anonymous, false));
}

#[test]
fn a_machine_with_everything() {
    let mut spec = MachineSpec::linux("the, guest", "/k/vmlinux", "/k/initramfs", 1024);
    spec.boot = Boot::Drives;
    spec.display = true;
    spec.clock = Clock::Host;
    spec.cores = 4;
    spec.accelerator = Accelerator::Kvm;
    let drive = |serial: &str, image: &str, format, read_only, bus| Drive {
        serial: serial.into(),
        image: image.into(),
        base: None,
        format,
        read_only,
        bus,
    };
    spec.drives = vec![
        drive("system", "/d/a,b=c.qcow2", DriveFormat::Qcow2, false, DriveBus::Virtio),
        drive("store", "/d/store.squashfs", DriveFormat::Raw, true, DriveBus::Virtio),
        drive("old", "/d/old.img", DriveFormat::Raw, false, DriveBus::Ide),
        drive("media", "/d/media.iso", DriveFormat::Raw, true, DriveBus::Cdrom),
    ];
    spec.shares = vec![
        Share { tag: "store".into(), path: "/nix/store".into(), read_only: true, kind: ShareKind::NineP },
        Share { tag: "xchg".into(), path: "/x,y".into(), read_only: false, kind: ShareKind::NineP },
    ];
    spec.ports = vec!["org.anchorhold.report".into()];
    spec.cards = vec![Card { wire: "pair".into(), address: "52:54:00:00:00:01".into() }];
    insta::assert_snapshot!(golden(&spec, &MemoryBacking::File("/s/ram,1".into()), false));
}

#[test]
fn a_network_with_one_server_leads_nowhere_else() {
    let mut spec = MachineSpec::linux("guest", "/k/vmlinux", "/k/initramfs", 256);
    spec.network = Some(ServerNetwork {
        card: "52:54:00:00:00:01".into(),
        guest: [192, 168, 0, 1].into(),
        server: [192, 168, 0, 2].into(),
        server_port: 445,
        connect: vec!["/machine/a,b".into(), "connect".into()],
        guest_port: 22,
        reached_by: 2222,
    });
    let text = golden(&spec, &MemoryBacking::Anonymous, false);
    assert!(text.contains("-netdev user,id=network,restrict=on,ipv6=off,net=192.168.0.0/24,"), "{text}");
    assert!(text.contains("guestfwd=tcp:192.168.0.2:445-cmd:/machine/a,,b connect\n"), "{text}");
    assert!(text.contains("elevateprivileges=allow,spawn=allow"), "{text}");
}

#[test]
fn a_machine_that_is_revived() {
    let mut spec = MachineSpec::linux("guest", "/k/vmlinux", "/k/initramfs", 256);
    spec.shares =
        vec![Share { tag: "store".into(), path: "/run/v.sock".into(), read_only: true, kind: ShareKind::Virtiofs }];
    let template = |read_only| MemoryBacking::Template { file: "/s/ram".into(), read_only };
    insta::assert_snapshot!(golden(&spec, &template(true), true));
    let old = golden(&spec, &template(false), true);
    assert!(old.contains("share=off,mem-path=/s/ram") && !old.contains("readonly"), "{old}");
    assert!(golden(&spec, &MemoryBacking::Anonymous, false).contains("memory-backend-memfd,id=ram,size=256M,share=on"));
}

#[test]
fn what_a_state_depends_on_is_the_machine_and_no_path_of_the_host() {
    let spec = MachineSpec::linux("one", "/k/vmlinux", "/k/initramfs", 256);
    let mut elsewhere = MachineSpec::linux("other", "/elsewhere/vmlinux", "/elsewhere/initramfs", 256);
    assert_eq!(devices(&spec), devices(&elsewhere));
    elsewhere.ports.push("p".into());
    assert_ne!(devices(&spec), devices(&elsewhere));
}

#[test]
fn nothing_in_a_name_or_a_path_becomes_an_option() {
    let mut spec = MachineSpec::linux("a,b -c\n", "/k", "/i", 64);
    spec.shares = vec![Share {
        tag: "t\",\"x\":\"y".into(),
        path: "/p,readonly=off".into(),
        read_only: true,
        kind: ShareKind::NineP,
    }];
    let words = arguments(&spec, &Wiring::default(), &MemoryBacking::Anonymous, false);
    let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
    assert_eq!(words[1], "a-b--c-");
    assert!(words.iter().any(|word| word.ends_with("readonly=on,path=/p,,readonly=off")), "{words:?}");
    let device = words.iter().find(|word| word.contains("virtio-9p-pci")).unwrap();
    let device: serde_json::Value = serde_json::from_str(device).unwrap();
    assert_eq!(device["mount_tag"], "t\",\"x\":\"y");
}
