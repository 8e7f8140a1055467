//! A machine as QEMU's command line: a pure function, so that a golden file pins it.
//!
//! Everything is said, nothing is left to QEMU's defaults or to files of the host (`-nodefaults -no-user-config`). The machine
//! is always started stopped: whoever controls it first listens to its events and then lets it run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use serde_json::json;

use crate::spec::{
    Boot, Card, Clock, Drive, DriveBus, DriveFormat, MachineSpec, MemoryBacking, ServerNetwork, Share, ShareKind,
};
use crate::wire::End;

/// The name of the memory in saved states: another name is another machine.
const MEMORY: &str = "ram";

/// The numbers of the descriptors that QEMU inherits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wiring {
    /// A stream socket for QMP.
    pub control: RawFd,
    /// A stream socket for the serial line.
    pub console: RawFd,
    /// A stream socket for each port.
    pub ports: BTreeMap<String, RawFd>,
    /// The end of each wire.
    pub wires: BTreeMap<String, End<RawFd>>,
}

/// The command line after the program's name. With `incoming` the machine waits for a saved state instead of starting.
///
/// # Panics
/// When `wiring` lacks a port or a wire of the machine: both come from the same place.
pub fn arguments(spec: &MachineSpec, wiring: &Wiring, memory: &MemoryBacking, incoming: bool) -> Vec<OsString> {
    let mut line = Line(Vec::new());
    line.words(["-name", &plain(&spec.name), "-nodefaults", "-no-user-config", "-no-reboot", "-S"]);
    // What escapes from the emulator starts nothing and becomes nobody else. With a server in its network it must start what
    // hands over a connection, in a session of its own (setsid(2), one of the privileges): then only the room's own rules
    // are left, under which no program becomes more than QEMU is.
    let word = if spec.network.is_some() { "allow" } else { "deny" };
    let rules = format!("on,obsolete=deny,elevateprivileges={word},spawn={word},resourcecontrol=deny");
    line.words(["-sandbox", &rules]);
    line.words(["-machine", &format!("{},usb=off,vmport=off,memory-backend={MEMORY}", spec.machine_type)]);
    line.words(["-accel", &spec.accelerator.to_string(), "-cpu", &spec.cpu, "-smp", &spec.cores.to_string()]);
    line.words(["-m", &format!("{}M", spec.memory)]);
    line.memory(spec, memory);
    line.words(["-rtc", clock(spec.clock)]);
    line.words(["-chardev", &format!("socket,id=control,fd={}", wiring.control)]);
    line.words(["-mon", "chardev=control,mode=control"]);
    line.words(["-chardev", &format!("socket,id=console,fd={}", wiring.console), "-serial", "chardev:console"]);
    line.words(["-display", "none"]);
    if spec.display {
        line.words(["-device", "VGA,id=display"]);
    }
    // Tells us of a guest's panic, where its kernel has the driver.
    line.words(["-device", "pvpanic"]);
    line.boot(&spec.boot);
    line.ports(&spec.ports, wiring);
    spec.drives.iter().enumerate().for_each(|(number, drive)| line.drive(number, drive, spec));
    spec.shares.iter().enumerate().for_each(|(number, share)| line.share(number, share));
    spec.cards.iter().enumerate().for_each(|(number, card)| line.card(number, card, wiring));
    if let Some(network) = &spec.network {
        line.network(network);
    }
    if incoming {
        line.words(["-incoming", "defer"]);
    }
    line.0
}

fn clock(clock: Clock) -> &'static str {
    match clock {
        Clock::Virtual => "base=2010-01-01T00:00:00,clock=vm",
        Clock::Host => "base=utc,clock=host",
    }
}

/// Letters, digits and `-` of a name, which is for people who look at a process list.
fn plain(name: &str) -> String {
    let allowed = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    let name: String = name.chars().take(40).map(allowed).collect();
    if name.is_empty() { "machine".to_owned() } else { name }
}

struct Line(Vec<OsString>);

impl Line {
    fn words<'a>(&mut self, words: impl IntoIterator<Item = &'a str>) {
        self.0.extend(words.into_iter().map(OsString::from));
    }

    /// An option whose value ends with a path, in which a comma is written twice.
    fn with_path(&mut self, option: &str, before: &str, path: &Path, after: &str) {
        let mut value = before.as_bytes().to_vec();
        for byte in path.as_os_str().as_bytes() {
            value.push(*byte);
            if *byte == b',' {
                value.push(b',');
            }
        }
        value.extend_from_slice(after.as_bytes());
        self.0.push(option.into());
        self.0.push(OsString::from_vec(value));
    }

    fn memory(&mut self, spec: &MachineSpec, memory: &MemoryBacking) {
        let size = format!("id={MEMORY},size={}M", spec.memory);
        // A server of virtiofs reads and writes the guest's memory.
        let shared = spec.shares.iter().any(|share| share.kind == ShareKind::Virtiofs);
        match memory {
            MemoryBacking::Anonymous if shared => {
                self.words(["-object", &format!("memory-backend-memfd,{size},share=on")]);
            }
            MemoryBacking::Anonymous => self.words(["-object", &format!("memory-backend-ram,{size}")]),
            MemoryBacking::File(file) => {
                self.with_path("-object", &format!("memory-backend-file,{size},share=on,mem-path="), file, "");
            }
            MemoryBacking::Template { file, read_only } => {
                let mode = if *read_only { ",readonly=on,rom=off" } else { "" };
                self.with_path("-object", &format!("memory-backend-file,{size},share=off{mode},mem-path="), file, "");
            }
        }
    }

    fn boot(&mut self, boot: &Boot) {
        match boot {
            Boot::Kernel { kernel, initramfs, command_line } => {
                self.0.extend([OsString::from("-kernel"), kernel.into()]);
                self.0.extend([OsString::from("-initrd"), initramfs.into()]);
                self.words(["-append", command_line]);
            }
            Boot::Drives => self.words(["-boot", "strict=on"]),
        }
    }

    fn ports(&mut self, ports: &[String], wiring: &Wiring) {
        if ports.is_empty() {
            return;
        }
        self.words(["-device", "virtio-serial-pci,id=ports"]);
        for (number, name) in ports.iter().enumerate() {
            let descriptor = wiring.ports[name];
            self.words(["-chardev", &format!("socket,id=port{number},fd={descriptor}")]);
            let device = json!({
                "driver": "virtserialport", "bus": "ports.0", "chardev": format!("port{number}"), "name": name,
            });
            self.words(["-device", &device.to_string()]);
        }
    }

    fn drive(&mut self, number: usize, drive: &Drive, spec: &MachineSpec) {
        let node = format!("drive{number}");
        let format = match drive.format {
            DriveFormat::Raw => "driver=raw",
            DriveFormat::Qcow2 => "driver=qcow2,discard=unmap",
        };
        let read_only = if drive.read_only { "on" } else { "off" };
        // Nothing outlives a crash of the host that would not be made again: no flush is passed on.
        self.with_path(
            "-blockdev",
            &format!(
                "{format},node-name={node},read-only={read_only},cache.no-flush=on,file.driver=file,file.filename="
            ),
            &drive.image,
            "",
        );
        let index = match spec.boot {
            Boot::Drives => json!(number + 1),
            Boot::Kernel { .. } => serde_json::Value::Null,
        };
        let mut device = match drive.bus {
            DriveBus::Virtio => json!({ "driver": "virtio-blk-pci" }),
            DriveBus::Ide => json!({ "driver": "ide-hd" }),
            DriveBus::Cdrom => json!({ "driver": "ide-cd" }),
        };
        device["drive"] = json!(node);
        device["serial"] = json!(drive.serial);
        if !index.is_null() {
            device["bootindex"] = index;
        }
        self.words(["-device", &device.to_string()]);
    }

    fn share(&mut self, number: usize, share: &Share) {
        let id = format!("share{number}");
        match share.kind {
            ShareKind::NineP => {
                let read_only = if share.read_only { ",readonly=on" } else { "" };
                self.with_path(
                    "-fsdev",
                    &format!("local,id=share{number},security_model=none,multidevs=remap{read_only},path="),
                    &share.path,
                    "",
                );
                let device = json!({ "driver": "virtio-9p-pci", "fsdev": id, "mount_tag": share.tag.as_str() });
                self.words(["-device", &device.to_string()]);
            }
            ShareKind::Virtiofs => {
                self.with_path("-chardev", &format!("socket,id=share{number},path="), &share.path, "");
                let device = json!({ "driver": "vhost-user-fs-pci", "chardev": id, "tag": share.tag.as_str() });
                self.words(["-device", &device.to_string()]);
            }
        }
    }

    fn network(&mut self, network: &ServerNetwork) {
        let ServerNetwork { guest, server, server_port, guest_port, reached_by, .. } = network;
        // QEMU wants addresses for itself and its DNS, at which nobody answers (`restrict`).
        let [a, b, c, _] = server.octets();
        let netdev = format!(
            "user,id=network,restrict=on,ipv6=off,net={a}.{b}.{c}.0/24,host={a}.{b}.{c}.254,dns={a}.{b}.{c}.253,\
             hostfwd=tcp:127.0.0.1:{reached_by}-{guest}:{guest_port},guestfwd=tcp:{server}:{server_port}-cmd:{}",
            network.connect.join(" ").replace(',', ",,")
        );
        let device = json!({
            "driver": "virtio-net-pci", "netdev": "network", "mac": network.card.as_str(), "romfile": "",
        });
        self.words(["-netdev", &netdev, "-device", &device.to_string()]);
    }

    fn card(&mut self, number: usize, card: &Card, wiring: &Wiring) {
        self.words(["-netdev", &wiring.wires[&card.wire].netdev(&format!("wire{number}"))]);
        // Without the ROM that would start the machine from the network.
        let device = json!({
            "driver": "virtio-net-pci", "netdev": format!("wire{number}"), "mac": card.address.as_str(), "romfile": "",
        });
        self.words(["-device", &device.to_string()]);
    }
}

/// What of the devices a saved state depends on, as text: the command line without the host's paths and descriptors.
pub fn devices(spec: &MachineSpec) -> Vec<String> {
    let wiring = Wiring {
        control: 0,
        console: 0,
        ports: spec.ports.iter().map(|name| (name.clone(), 0)).collect(),
        wires: spec.cards.iter().map(|card| (card.wire.clone(), End::Datagrams(0))).collect(),
    };
    let mut spec = spec.clone();
    spec.name.clear();
    spec.drives.iter_mut().for_each(|drive| drive.image = "image".into());
    spec.shares.iter_mut().for_each(|share| share.path = "share".into());
    if let Some(network) = &mut spec.network {
        network.connect = vec!["connect".into()];
    }
    // What it was started from is in its memory by now; QEMU still wants the files, for what a restarted machine would read.
    spec.boot = Boot::Drives;
    arguments(&spec, &wiring, &MemoryBacking::Anonymous, false)
        .into_iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

#[cfg(test)]
mod tests;
