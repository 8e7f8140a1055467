//! A pair, described: plain data, and what both machines start from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::agent::{AgentError, image};
use crate::controller::{self, ADDRESS, CONTROLLER_MAC, Controller, GUEST_MAC, root_and_network};
use crate::exchange::Command;
use crate::initramfs::Initramfs;
use crate::kernel::{Feature, Modules};
use crate::linux::PrepareError;
use crate::profile::Profile;
use crate::report::{PORT_NAME, RunRequest, Streams, What};
use crate::shares;
use crate::spec::{
    Accelerator, Boot, Card, Clock, Drive, DriveBus, DriveFormat, KERNEL_COMMAND_LINE, MachineSpec, ServerNetwork,
    Share, ShareKind,
};

/// The wire's name in both machines.
pub const WIRE: &str = "wire";
/// What the guest is called in messages.
pub const GUEST: &str = "guest";
/// What the controller is called in messages.
pub const CONTROLLER: &str = "controller";
/// The port of the loopback device by which the SSH server of a guest without a controller is reached. The room's network has
/// nobody else in it.
pub(super) const REACHED_BY: u16 = 2222;
/// The controller's memory in MiB: Samba and ssh want less than 200, its root is a disk.
pub const CONTROLLER_MEMORY: u64 = 256;

/// For guests with Wine, which goes back into programs by iretq. Under emulation QEMU 7.2 reads the stack of that with the rights of a
/// kernel, which this protection of the processor's forbids: the guest's kernel then kills the program.
const WITHOUT_SMAP: &str = ",smap=off";

/// Two machines, described. Paths are those that QEMU sees: of the room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PairSpec {
    /// What executes both.
    pub accelerator: Accelerator,
    /// QEMU's CPU model, of both.
    pub cpu: String,
    /// The kernel of those that start one.
    pub kernel: PathBuf,
    /// The guest.
    pub guest: Side,
    /// The controller.
    pub controller: Side,
    /// What kind of guest it is.
    pub profile: Profile,
    /// The directory behind the share `nixstore`.
    pub store: PathBuf,
    /// The directory behind the share `xchg`.
    pub exchange: PathBuf,
    /// The names in the store of what nobody changes, which a controller may keep once it has read it. No part of the machines.
    #[serde(default)]
    pub inputs: Vec<OsString>,
}

/// One of the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Side {
    /// Memory, in MiB.
    pub memory: u64,
    /// Processors.
    pub cores: u32,
    /// What it starts beside the kernel; a machine without one starts from its disks.
    pub initramfs: Option<PathBuf>,
    /// Its disks.
    pub drives: Vec<Drive>,
}

/// How the controller comes into the guest. Both go over its port after it has started, so that no saved machine has them
/// but in its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The private key, as a file of OpenSSH.
    pub key: Vec<u8>,
    /// The guest's host key, as a line of known_hosts(5).
    pub known_hosts: Vec<u8>,
}

/// A root image, as `scripts/guest-images` makes them.
pub fn root(image: impl Into<PathBuf>) -> Drive {
    Drive {
        serial: controller::ROOT_SERIAL.to_owned(),
        image: image.into(),
        base: None,
        format: DriveFormat::Raw,
        read_only: true,
        bus: DriveBus::Virtio,
    }
}

impl PairSpec {
    /// The guest as a machine.
    pub fn guest_machine(&self) -> MachineSpec {
        let mut spec = self.machine(GUEST, &self.guest, GUEST_MAC);
        // A picture helps where there is no console, and people want to look.
        spec.display = true;
        if spec.accelerator == Accelerator::Tcg && self.profile.command.launcher.is_some() {
            spec.cpu.push_str(WITHOUT_SMAP);
        }
        spec
    }

    /// The guest as a machine without a controller beside it. `connect` is what QEMU starts for each connection to the server.
    pub fn lone_machine(&self, connect: Vec<String>) -> MachineSpec {
        let mut spec = self.guest_machine();
        spec.cards.clear();
        spec.network = Some(ServerNetwork {
            card: GUEST_MAC.to_owned(),
            guest: self.profile.reach.address,
            server: ADDRESS,
            server_port: controller::SMB_PORT,
            connect,
            guest_port: self.profile.reach.port,
            reached_by: REACHED_BY,
        });
        spec
    }

    /// The controller as a machine.
    pub fn controller_machine(&self) -> MachineSpec {
        let mut spec = self.machine(CONTROLLER, &self.controller, CONTROLLER_MAC);
        // The store once more, as a mount keeps all of what it shows or nothing. Always there: which inputs a build has is no
        // matter of the machine's.
        spec.shares = [
            (shares::STORE_TAG, &self.store, false),
            (shares::EXCHANGE, &self.exchange, false),
            (shares::INPUTS_TAG, &self.store, true),
        ]
        .map(|(tag, path, read_only)| Share {
            tag: tag.to_owned(),
            path: path.clone(),
            read_only,
            kind: ShareKind::NineP,
        })
        .to_vec();
        spec
    }

    /// The inputs that can be shown over themselves. A link cannot be, and is nothing to read.
    pub(super) fn shown_over(&self) -> Vec<OsString> {
        self.inputs.iter().filter(|name| !self.store.join(name).is_symlink()).cloned().collect()
    }

    fn machine(&self, name: &str, side: &Side, address: &str) -> MachineSpec {
        let boot = match &side.initramfs {
            Some(initramfs) => Boot::Kernel {
                kernel: self.kernel.clone(),
                initramfs: initramfs.clone(),
                command_line: KERNEL_COMMAND_LINE.to_owned(),
            },
            None => Boot::Drives,
        };
        MachineSpec {
            accelerator: self.accelerator,
            cpu: self.cpu.clone(),
            cores: side.cores,
            boot,
            clock: Clock::Virtual,
            drives: side.drives.clone(),
            ports: side.initramfs.iter().map(|_| PORT_NAME.to_owned()).collect(),
            cards: vec![Card { wire: WIRE.to_owned(), address: address.to_owned() }],
            ..MachineSpec::linux(name, "", "", side.memory)
        }
    }
}

/// What the controller starts from: the same for all guests and all runs.
///
/// # Errors
/// A kernel without a module, an agent that is none.
pub fn initramfs_of_controller(modules: &Modules, agent: &Path) -> Result<Initramfs, PrepareError> {
    of(modules, agent, &Controller::FEATURES, &root_and_network(ADDRESS))
}

/// What a Linux guest of this profile starts from. Its SSH server starts with it: like any other guest it is reached over the
/// wire alone.
///
/// # Errors
/// A kernel without a module, an agent that is none.
pub fn initramfs_of_guest(modules: &Modules, agent: &Path, profile: &Profile) -> Result<Initramfs, PrepareError> {
    let server = Command::new("/usr/sbin/dropbear")
        .arguments(["-F", "-E", "-s", "-p", "22", "-P", ""])
        .variable("PATH", "/bin:/usr/bin:/sbin:/usr/sbin")
        .variable("HOME", "/root");
    let mut start = root_and_network(profile.reach.address);
    start.push(What::HostName(GUEST.into()));
    start.push(What::Run(RunRequest { command: Ok(server), user: None, streams: Streams::Together, alone: false }));
    of(modules, agent, &features_of_guest(profile, Feature::Erofs), &start)
}

/// What the kernel of a Linux guest of this profile must be able to do besides what every guest's must, with a root of this kind.
pub fn features_of_guest(profile: &Profile, root: Feature) -> Vec<Feature> {
    let foreign = profile.command.launcher.as_ref().map(|_| Feature::ForeignPrograms);
    [Feature::Network, Feature::Disk, root, Feature::Cifs].into_iter().chain(foreign).collect()
}

fn of(modules: &Modules, agent: &Path, features: &[Feature], start: &[What]) -> Result<Initramfs, PrepareError> {
    let features = [Feature::Virtio, Feature::Port].into_iter().chain(features.iter().copied());
    let modules = modules.closure(features)?;
    image(agent, &modules, start).map_err(|error: AgentError| error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> PairSpec {
        let side = |memory| Side {
            memory,
            cores: 1,
            initramfs: Some("/machine/initramfs".into()),
            drives: vec![root("/machine/root.erofs")],
        };
        PairSpec {
            accelerator: Accelerator::Tcg,
            cpu: "max".into(),
            kernel: "/machine/kernel".into(),
            guest: side(512),
            controller: side(256),
            profile: Profile::built_in("standin").unwrap(),
            store: "/nix/store".into(),
            exchange: "/xchg".into(),
            inputs: Vec::new(),
        }
    }

    #[test]
    fn both_are_on_the_wire_and_only_the_controller_sees_directories_of_the_room() {
        let spec = pair();
        let (guest, controller) = (spec.guest_machine(), spec.controller_machine());
        assert_eq!(guest.shares, []);
        assert_eq!(controller.shares.iter().map(|share| &*share.tag).collect::<Vec<_>>(), ["store", "xchg", "inputs"]);
        assert_eq!(controller.shares.iter().map(|share| share.read_only).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!((&guest.cards[0].wire, &controller.cards[0].wire), (&WIRE.into(), &WIRE.into()));
        assert_ne!(guest.cards[0].address, controller.cards[0].address);
        assert!(guest.display && !controller.display);
    }

    #[test]
    fn an_emulated_processor_lets_wine_start_programs() {
        let mut spec = pair();
        assert_eq!(spec.guest_machine().cpu, "max");
        spec.profile = Profile::built_in("wine").unwrap();
        assert_eq!((&*spec.guest_machine().cpu, &*spec.controller_machine().cpu), ("max,smap=off", "max"));
        (spec.accelerator, spec.cpu) = (Accelerator::Kvm, "host".into());
        assert_eq!(spec.guest_machine().cpu, "host");
    }

    #[test]
    fn a_guest_without_an_agent_of_ours_starts_from_its_disks_and_has_a_display() {
        let mut spec = pair();
        spec.guest.initramfs = None;
        let guest = spec.guest_machine();
        assert_eq!((guest.boot, guest.display), (Boot::Drives, true));
        assert!(guest.ports.is_empty());
        let told: PairSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(told, spec);
    }
}
