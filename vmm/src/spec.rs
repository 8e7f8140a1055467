//! What a machine is: plain data that a person can read and compare, and that a saved state can be checked against.
//!
//! A [`MachineSpec`] says what is wanted; [`crate::qemu::arguments`] says how QEMU is told.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::accelerator::Accelerator;

/// The machine type of all our machines: versioned, so that a newer QEMU makes the same board. In QEMU 7.2 and later.
pub const MACHINE_TYPE: &str = "pc-i440fx-7.2";

/// The kernel's words on our machines. What makes a kernel slow under emulation is off: the only enemy of this guest is outside
/// of it, where it cannot reach anybody. A busy host lets an emulated kernel measure the processor's own clock wrongly, by a factor
/// of fifteen and more, so it is told to take another.
pub const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off nokaslr no_timer_check tsc=unstable \
     clocksource=acpi_pm";

/// One machine, described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MachineSpec {
    /// What it is called in messages. No part of the machine.
    pub name: String,
    /// QEMU's versioned machine type.
    #[serde(default = "default_machine_type")]
    pub machine_type: String,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// QEMU's CPU model. `max` is exact under tcg, where it depends on nothing but the version of QEMU; never `host` in what is saved.
    pub cpu: String,
    /// Memory, in MiB.
    pub memory: u64,
    /// Processors.
    pub cores: u32,
    /// What it starts.
    pub boot: Boot,
    /// Its clock.
    #[serde(default)]
    pub clock: Clock,
    /// Whether it has a display, of which pictures can be taken.
    #[serde(default)]
    pub display: bool,
    /// Disks, in the order in which the guest finds them.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// Directories of the host.
    #[serde(default)]
    pub shares: Vec<Share>,
    /// Ports between programs in the guest and the host, beside the console.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Network cards.
    #[serde(default)]
    pub cards: Vec<Card>,
    /// A network of QEMU's own, with one server in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<ServerNetwork>,
}

/// A network inside QEMU on which nobody is but the guest and one server, which is a program beside QEMU. Nothing else can be
/// reached over it, whatever the room that QEMU runs in could reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerNetwork {
    /// The address of the guest's card, as `52:54:00:00:00:01`.
    pub card: String,
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// The server's address.
    pub server: Ipv4Addr,
    /// The server's port.
    pub server_port: u16,
    /// What is started for each connection to that port, with the connection as its standard input and output. Words without
    /// spaces. QEMU may start programs then, which it may not otherwise.
    pub connect: Vec<String>,
    /// The port of the guest that can be reached from beside QEMU.
    pub guest_port: u16,
    /// The port of the loopback device by which it is reached.
    pub reached_by: u16,
}

fn default_machine_type() -> String {
    MACHINE_TYPE.to_owned()
}

impl MachineSpec {
    /// A machine that starts a Linux kernel, with nothing else in it. Memory is in MiB.
    pub fn linux(name: &str, kernel: impl Into<PathBuf>, initramfs: impl Into<PathBuf>, memory: u64) -> Self {
        Self {
            name: name.to_owned(),
            machine_type: default_machine_type(),
            accelerator: Accelerator::Tcg,
            cpu: "max".to_owned(),
            memory,
            cores: 1,
            boot: Boot::Kernel {
                kernel: kernel.into(),
                initramfs: initramfs.into(),
                command_line: KERNEL_COMMAND_LINE.to_owned(),
            },
            clock: Clock::default(),
            display: false,
            drives: Vec::new(),
            shares: Vec::new(),
            ports: Vec::new(),
            cards: Vec::new(),
            network: None,
        }
    }
}

/// What a machine starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum Boot {
    /// A Linux kernel, without a boot loader. An ELF file is entered by PVH, which saves its decompression.
    #[serde(rename_all = "kebab-case")]
    Kernel {
        /// The image.
        kernel: PathBuf,
        /// The initial file system.
        initramfs: PathBuf,
        /// The kernel's words.
        command_line: String,
    },
    /// The first disk that can be started from, in the order of the drives.
    Drives,
}

/// A machine's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// Starts on 2010-01-01 and stands still with the machine.
    #[default]
    Virtual,
    /// The host's.
    Host,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Drive {
    /// The serial number by which the guest finds it (`/dev/disk/by-id/virtio-…`): letters, digits, `-`; at most 20.
    pub serial: String,
    /// The image.
    pub image: PathBuf,
    /// The image beneath, when this one is a fresh overlay of it: what a saved state is compared by.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// How the image is written.
    pub format: DriveFormat,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// The board's side.
    #[serde(default)]
    pub bus: DriveBus,
}

impl Drive {
    /// A virtio disk that a guest may only read, byte for byte what is in the file.
    pub fn read_only(serial: &str, image: impl Into<PathBuf>) -> Self {
        Self {
            serial: serial.to_owned(),
            image: image.into(),
            base: None,
            format: DriveFormat::Raw,
            read_only: true,
            bus: DriveBus::Virtio,
        }
    }

    /// A virtio disk that a guest writes; `base` is what it is a fresh overlay of.
    pub fn written(serial: &str, image: impl Into<PathBuf>, base: Option<PathBuf>) -> Self {
        Self { format: DriveFormat::Qcow2, read_only: false, base, ..Self::read_only(serial, image) }
    }
}

/// How an image is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriveFormat {
    /// Byte for byte: also ISO images, squashfs and erofs.
    Raw,
    /// QEMU's own, with what stands behind it.
    Qcow2,
}

/// What a disk is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriveBus {
    /// virtio-blk.
    #[default]
    Virtio,
    /// IDE: for guests without drivers of ours.
    Ide,
    /// An IDE CD-ROM drive.
    Cdrom,
}

/// A directory of the host that the guest can mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Share {
    /// The name by which it is mounted.
    pub tag: String,
    /// Which directory, or for virtiofs the socket of its server.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Who serves it.
    #[serde(default)]
    pub kind: ShareKind,
}

/// Who serves a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShareKind {
    /// QEMU itself, by 9p.
    #[default]
    NineP,
    /// A virtiofsd that listens.
    Virtiofs,
}

/// A network card on a wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Card {
    /// The wire's name: an inherited datagram socket is handed over under it.
    pub wire: String,
    /// The address of the card, as `52:54:00:00:00:01`.
    pub address: String,
}

/// Where a machine's memory lies, which is no part of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MemoryBacking {
    /// Nowhere: it is gone with the machine.
    #[default]
    Anonymous,
    /// In this file, which the machine writes.
    File(PathBuf),
    /// In this file, which is read; what the machine writes stays its own.
    Template {
        /// The file.
        file: PathBuf,
        /// Whether this QEMU can open it read-only (8.2 and later).
        read_only: bool,
    },
}
