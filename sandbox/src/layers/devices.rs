//! The fixed `/dev`: the same list on every host. A directory of the read-only root; each node in it is the host's, checked by its number,
//! bound alone and read-only, so that its mode and times cannot be changed.

use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use serde::Serialize;

use super::Layer;
use crate::error::Refusal;
use crate::host::Host;
use crate::plan::{Draft, Stage};
use crate::room::Room;
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site, Trouble};
use crate::sys::{MountFlags, Propagation};

/// The nodes of every room with their numbers (Linux, Documentation/admin-guide/devices.txt).
pub const NODES: [(&str, u32, u32); 6] =
    [("full", 1, 7), ("null", 1, 3), ("random", 1, 8), ("tty", 5, 0), ("urandom", 1, 9), ("zero", 1, 5)];

/// The links of every room.
pub const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];

/// `/dev/kvm`.
pub const KVM: (&str, u32, u32) = ("kvm", 10, 232);

/// The steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// One node.
    Node {
        /// Its name.
        name: &'static str,
        /// Its number.
        major: u32,
        /// Its number.
        minor: u32,
    },
    /// One link.
    Link {
        /// Its name.
        name: &'static str,
        /// What it says.
        target: &'static str,
    },
    /// A devpts of its own.
    Terminals,
    /// `/dev/shm`.
    SharedMemory {
        /// Its bound in bytes.
        size: u64,
    },
    /// The host's `/dev`, for a room without this layer.
    HostDev,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { name, major, minor } => write!(f, "bind the device {major}:{minor} at /dev/{name}"),
            Self::Link { name, target } => write!(f, "link /dev/{name} -> {target}"),
            Self::Terminals => f.write_str("mount a new devpts at /dev/pts (ptmx 0666)"),
            Self::SharedMemory { size } => write!(f, "mount a tmpfs of {size} bytes at /dev/shm"),
            Self::HostDev => f.write_str("bind the host's /dev"),
        }
    }
}

pub(super) fn plan(room: &Room, host: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    if room.devices.kvm
        && let Err((why, fix)) = &host.kvm
    {
        return Err(Refusal::new(Layer::Devices, "/dev/kvm", why, fix));
    }
    if !room.has(Layer::Devices) {
        draft.add(Stage::Devices, Action::HostDev);
        return Ok(());
    }
    let kvm = room.devices.kvm.then_some(KVM);
    for (name, major, minor) in NODES.into_iter().chain(kvm) {
        draft.add(Stage::Devices, Action::Node { name, major, minor });
    }
    for (name, target) in LINKS {
        draft.add(Stage::Devices, Action::Link { name, target });
    }
    draft.add(Stage::Devices, Action::Terminals);
    let size = room.devices.shm_size.bytes(host.memory);
    if size == 0 {
        return Err(Refusal::new(Layer::Devices, "shm-size = 0", super::root::NO_BOUND, "give a size such as 64M"));
    }
    draft.add(Stage::Devices, Action::SharedMemory { size });
    Ok(())
}

pub(super) fn apply(action: &Action, site: &mut Site<'_>) -> Outcome {
    let dev = Path::new("/dev");
    match action {
        Action::Node { name, major, minor } => {
            let node = dev.join(name);
            let tree = site
                .sys
                .open_tree(AT_FDCWD, &node, false)
                .map_err(|errno| Trouble::new(errno, format!("the host's {}", node.display())))?;
            if site.sys.device_number(tree.as_fd())? != Some((*major, *minor)) {
                return Err(Trouble::new(
                    Errno::ENODEV,
                    format!("the host's {} is not the character device {major}:{minor}", node.display()),
                ));
            }
            site.sys.mount_setattr(tree.as_fd(), MountFlags::DEVICE, Some(Propagation::Private), false)?;
            site.attach(tree.as_fd(), &node, false)
        }
        Action::Link { name, target } => site.make_symlink(&dev.join(name), Path::new(target)),
        Action::Terminals => {
            let flags = MountFlags { read_only: false, nosuid: true, nodev: false, noexec: true };
            let mount = site.sys.new_filesystem("devpts", &[("ptmxmode", "0666"), ("mode", "0620")], flags)?;
            site.attach(mount.as_fd(), &dev.join("pts"), true)
        }
        Action::SharedMemory { size } => {
            // Executable: libraries that make code at run time map it from here.
            let most = super::root::inodes(*size).to_string();
            let options = [("size", size.to_string()), ("mode", "1777".into()), ("nr_inodes", most)];
            let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
            let mount = site.sys.new_filesystem("tmpfs", &options, MountFlags::PLAIN)?;
            site.attach(mount.as_fd(), &dev.join("shm"), true)
        }
        Action::HostDev => site.bind_host_path(dev, MountFlags { nodev: false, ..MountFlags::PLAIN }),
    }
}

pub(super) fn verify(room: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    let mut wanted: Vec<PathBuf> = NODES.iter().map(|(name, ..)| Path::new("/dev").join(name)).collect();
    if room.devices.kvm {
        wanted.push("/dev/kvm".into());
        finding.fact("kvm", "granted");
    }
    for mount in view.mounts.iter().filter(|mount| Path::new(mount.point).starts_with("/dev")) {
        let point = Path::new(mount.point);
        let needs: &[&str] = match mount.point {
            "/dev/pts" => &["nosuid", "noexec"],
            "/dev/shm" => &["nosuid", "nodev"],
            _ if wanted.iter().any(|node| node == point) => {
                wanted.retain(|node| node != point);
                &["ro", "nosuid", "noexec"]
            }
            other => {
                finding.wrong(format!("{other} is not part of a room's /dev"));
                continue;
            }
        };
        for need in needs.iter().filter(|need| !mount.has(need)) {
            finding.wrong(format!("{} is without {need}", mount.point));
        }
    }
    for missing in wanted {
        finding.wrong(format!("{} is not bound", missing.display()));
    }
    finding
}
