//! The room of a machine, as a pure function of what the machine needs.

use std::path::{Path, PathBuf};

use anchorhold_sandbox::Room;
use anchorhold_sandbox::quantity::Size;
use anchorhold_sandbox::room::{
    Devices, Entry, Identity, Limits, Network, NetworkMode, Output, Outside, Process, Profile, Seccomp, Stdin,
};
use anchorhold_vmm::spec::Accelerator;

use super::{Prepared, SUBCOMMAND};

/// What the supervisor reads.
pub const ORDER: &str = "/machine/order";
/// What it writes.
pub const RESULT: &str = "/machine/result";
/// The kernel.
pub const KERNEL: &str = "/machine/kernel";
/// This program.
pub const SUPERVISOR: &str = "/machine/anchorhold";

/// The host's programs and libraries: links to `/usr` on today's distributions, directories on older ones.
pub const HOST_PROGRAMS: [&str; 8] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/alternatives"];

/// What a machine's room is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The machine.
    pub prepared: &'a Prepared,
    /// This program's file.
    pub program: &'a Path,
    /// What stands in the room for the guest, besides: the directories of its view.
    pub shown: Vec<Entry>,
    /// The kernel's ids behind its own.
    pub outside: Outside,
    /// How much it may use.
    pub limits: Limits,
    /// Where its output goes.
    pub output: Output,
}

/// Where the programs are that the room of this QEMU has: one of a store brings its libraries along from there, the host's has
/// them in /usr.
pub fn programs(qemu: &Path) -> &'static [&'static str] {
    if qemu.starts_with("/nix/store") { &["/nix/store"] } else { &HOST_PROGRAMS }
}

/// The room.
pub fn room(parts: Parts<'_>) -> Room {
    let bind = |inside: PathBuf, outside: PathBuf, writable: bool, optional: bool| Entry::Bind {
        inside,
        outside: Some(outside),
        writable,
        optional,
        noexec: false,
    };
    let prepared = parts.prepared;
    let mut mounts = vec![
        bind(SUPERVISOR.into(), parts.program.to_owned(), false, false),
        bind(KERNEL.into(), prepared.kernel.clone(), false, false),
        bind(ORDER.into(), prepared.order.clone(), false, false),
        bind(RESULT.into(), prepared.result.clone(), true, false),
    ];
    let is_shown = |path: &Path| parts.shown.iter().any(|entry| path.starts_with(entry.inside()));
    mounts.extend(
        programs(&prepared.qemu)
            .iter()
            .map(PathBuf::from)
            .filter(|path| !is_shown(path))
            .map(|path| bind(path.clone(), path, false, true)),
    );
    mounts.extend(parts.shown);
    if !mounts.iter().any(|entry| entry.inside() == Path::new("/tmp")) {
        mounts.push(Entry::Tmpfs { inside: "/tmp".into(), size: Size::Share(50), mode: 0o1777, noexec: false });
    }
    Room {
        profile: Profile::Machines,
        identity: Identity { home: "/tmp".into(), outside: parts.outside, ..Identity::default() },
        mounts,
        devices: Devices { kvm: prepared.accelerator == Accelerator::Kvm, ..Devices::default() },
        network: Network { mode: Some(NetworkMode::None), ..Network::default() },
        limits: parts.limits,
        // QEMU gives files away in its guest's name; the room has one user to give them to.
        seccomp: Seccomp { ignore_chown: true, ..Seccomp::default() },
        process: Process {
            program: SUPERVISOR.into(),
            argv0: Some("anchorhold".into()),
            arguments: vec![SUBCOMMAND.into()],
            directory: "/tmp".into(),
            stdin: Stdin::Null,
            output: parts.output,
            ..Process::default()
        },
        ..Room::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(prepared: &Prepared) -> Parts<'_> {
        Parts {
            prepared,
            program: Path::new("/opt/anchorhold"),
            shown: vec![Entry::bind("/nix/store=/scratch/store".as_ref(), true)],
            outside: Outside::Auto,
            limits: Limits::default(),
            output: Output::Pipe,
        }
    }

    #[test]
    fn a_machines_room_shows_nothing_but_what_it_needs() {
        let prepared = Prepared {
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            kernel: "/cache/kernel.elf".into(),
            order: "/scratch/order".into(),
            result: "/scratch/result".into(),
            accelerator: Accelerator::Tcg,
        };
        let made = room(parts(&prepared));
        assert_eq!((made.profile, made.devices.kvm), (Profile::Machines, false));
        assert_eq!(made.network_mode(), NetworkMode::None);
        assert!(made.seccomp.ignore_chown);
        let writable: Vec<_> = made
            .mounts
            .iter()
            .filter(|entry| matches!(entry, Entry::Bind { writable: true, .. }))
            .map(|entry| entry.inside().to_str().unwrap())
            .collect();
        assert_eq!(writable, [RESULT, "/nix/store"]);
        assert!(made.mounts.iter().any(|entry| entry.inside() == Path::new("/usr")));
        // The store of a build is not that of the host, wherever QEMU comes from.
        let of_store = Prepared { qemu: "/nix/store/x-qemu/bin/q".into(), accelerator: Accelerator::Kvm, ..prepared };
        let made = room(parts(&of_store));
        assert!(made.devices.kvm);
        assert_eq!(made.mounts.iter().filter(|entry| entry.inside() == Path::new("/nix/store")).count(), 1);
        assert!(!made.mounts.iter().any(|entry| entry.inside() == Path::new("/usr")));
    }
}
