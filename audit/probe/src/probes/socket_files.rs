//! Socket files of the host: whoever can open one talks to its daemon, whatever network namespace they are in.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anchorhold_probe::verdict::{Finding, Verdict};
use anchorhold_probe::world::World;

use super::network::{connected, path_address};
use crate::calls;
use crate::files::{self, Descend};
use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "net.path",
        title: "A host's socket file can be reached",
        severity: Severity::High,
        reference: "security-probes.md 3.6; nix-sandbox.md H9",
        tries: "Connects to the socket file that the observer listens on.",
        safe: "ENOENT",
        meaning: "Daemons of the host (docker, D-Bus, name service, the store's own) answer whoever can open their socket \
                  file, and many of them act as root.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |world| match &world.path_socket {
            Some(path) => Finding::of(connected(&path_address(path.as_os_str().as_bytes())).map(i64::from)),
            None => Finding::inconclusive("no socket file was set up"),
        },
    },
    Probe {
        id: "net.path.known",
        title: "A daemon of the host answers on its usual socket file",
        severity: Severity::High,
        reference: "nix-sandbox.md H9",
        tries: "Connects to the socket files of docker, containerd, podman, D-Bus, systemd, udev, the name service, \
                libvirt, X11 and the Nix daemon, and sends nothing.",
        safe: "ENOENT for each",
        meaning: "Most of these daemons do what they are asked as root; a build that can talk to docker owns the host.",
        controls: &[Control::Daemon],
        order: Order::Any,
        root: false,
        run: |_| {
            let paths = KNOWN_SOCKETS.iter().map(|path| {
                (
                    (*path).to_owned(),
                    match connected(&path_address(path.as_bytes())) {
                        // Somebody must listen: a stale file, or one of another type, is no daemon.
                        Err(libc::ECONNREFUSED | libc::EPROTOTYPE) => Finding::absent("nobody listens"),
                        result => Finding::of(result.map(i64::from)),
                    },
                )
            });
            let finding = Finding::worst(paths);
            match finding.verdict {
                Verdict::Reached => finding,
                _ => finding.with("none of the usual ones"),
            }
        },
    },
    Probe {
        id: "net.path.mounts",
        title: "A socket file on some mount answers",
        severity: Severity::High,
        reference: "nix-sandbox.md H9",
        tries: "Looks through every mount for socket files, for four seconds at most, connects to each, and sends nothing.",
        safe: "none, or none that somebody listens on",
        meaning: "A folder of the host that is shown inside brings the sockets in it along, and whoever listens there may act as root.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: sockets_on_mounts,
    },
];

/// Where daemons listen that do things for others.
const KNOWN_SOCKETS: &[&str] = &[
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/dbus/system_bus_socket",
    "/run/systemd/private",
    "/run/systemd/journal/stdout",
    "/run/udev/control",
    "/run/nscd/socket",
    "/var/run/nscd/socket",
    "/run/libvirt/libvirt-sock",
    "/run/snapd.socket",
    "/tmp/.X11-unix/X0",
    "/nix/var/nix/daemon-socket/socket",
];

/// How many folders of a path are looked at first, with the root.
const SHALLOW: usize = 5;

/// Connects to every socket file on every mount. Where most of them are is looked at first.
fn sockets_on_mounts(world: &World) -> Finding {
    const VIRTUAL: [&str; 8] = ["proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "debugfs", "securityfs"];
    let mounts = files::mounts().unwrap_or_default();
    // Another audit's observers would take a visit for one from their own sandbox.
    let own = world.path_socket.as_deref().and_then(Path::parent).and_then(Path::parent);
    let is_others = |path: &Path| {
        let name = path.file_name().unwrap_or_default().as_bytes();
        name.starts_with(b"anchorhold-audit-") && Some(path) != own
    };
    let is_left_out = |path: &Path| {
        mounts.iter().any(|mount| VIRTUAL.contains(&mount.kind.as_str()) && Path::new(&mount.point) == path)
    };
    // The last is the first to be walked; the first leads to all of them.
    let tops = ["/", "/dev", "/var", "/tmp", "/run", "/var/tmp"];
    let mut seen = BTreeMap::new();
    let mut whole = false;
    let mut look = |deepest: usize| {
        whole = files::walk(&tops, |path, found| {
            if found.file_type().is_socket() && !seen.contains_key(path) {
                let answer = match connected(&path_address(path.as_os_str().as_bytes())) {
                    Err(libc::EPROTOTYPE) => Ok(0),
                    result => result.map(|socket| {
                        calls::close(socket);
                        0
                    }),
                };
                seen.insert(path.to_owned(), answer);
            }
            let is_deep = path.components().count() > deepest;
            if is_deep || is_left_out(path) || is_others(path) { Descend::No } else { Descend::Yes }
        });
        seen.values().any(Result::is_ok)
    };
    // Sockets are rarely deep, and the time for all of a large tree is short.
    let _ = look(SHALLOW) || look(usize::MAX);
    let open: Vec<String> =
        seen.iter().filter(|(_, answer)| answer.is_ok()).map(|(path, _)| path.display().to_string()).collect();
    let told = format!("{} socket files{}", seen.len(), if whole { "" } else { ", as far as was looked" });
    match (open.is_empty(), seen.values().find_map(|answer| answer.err())) {
        (false, _) => Finding::reached(open.join(", ")),
        (true, Some(errno)) => Finding::refused(errno).with(told),
        (true, None) => Finding::absent(told),
    }
}
