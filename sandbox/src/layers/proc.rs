//! `/proc`: a procfs of the room's own processes, with what names or times the host covered, `/proc/sys` read-only.
//!
//! The files that cover others are made in the root tmpfs, in the directory on which procfs is then mounted: no path reaches
//! them but the covers. Where a kernel does not have a file there is nothing to cover; and what only the kernel's uid 0 may open
//! needs no cover, as no id of a room is ever that one. The covers come after pivot_root: each is then one plain mount(2), which for
//! twenty of them is a third of what descriptors cost.

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
use crate::room::{ProcSource, Profile, Room};
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site, Trouble};
use crate::sys::MountFlags;

/// Files that name the host's hardware and state, or leak addresses and keys, and that everybody may open. They read as empty. proc(5);
/// security-probes 3.2 and nix-sandbox H27 say who reads what there. What only repeats the load that `/proc/stat` shows
/// anyway is not among them: each cover costs a mount.
pub const EMPTY_FILES: [&str; 11] = [
    "diskstats",
    "dma",
    "interrupts",
    "iomem",
    "ioports",
    "kallsyms",
    "key-users",
    "keys",
    "locks",
    "modules",
    "partitions",
];

/// Files that today's kernels show to their own uid 0 only, which no id of a room ever is. Covered where that is not so.
pub const ROOT_FILES: [&str; 13] = [
    "allocinfo",
    "kcore",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "pagetypeinfo",
    "sched_debug",
    "slabinfo",
    "sysrq-trigger",
    "timer_list",
    "vmallocinfo",
];

/// Directories that name the host's hardware and disks. They read as empty.
pub const EMPTY_DIRECTORIES: [&str; 7] = ["acpi", "asound", "bus", "driver", "fs", "irq", "scsi"];

/// Files that builds may read and that differ between two boots of one host.
fn stand_ins(host: &Host) -> [(&'static str, String); 6] {
    [
        // A valid version 4 UUID, as its readers expect one.
        ("sys/kernel/random/boot_id", "00000000-0000-4000-8000-000000000000\n".into()),
        ("cmdline", "\n".into()),
        ("swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".into()),
        ("uptime", "1.00 1.00\n".into()),
        ("loadavg", "0.00 0.00 0.00 1/1 1\n".into()),
        // uname(2) tells the release anyway; who built the kernel, when and with what is left out.
        ("version", format!("Linux version {} (room@localhost) #1 SMP\n", host.release)),
    ]
}

/// A pristine procfs for what runs in a nested room, see [`Action::Pristine`].
pub(super) const PRISTINE: &str = "/.nested-proc";

/// The steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The files that will cover others.
    Covers {
        /// Name in `/proc`, content.
        stand_ins: Vec<(String, String)>,
    },
    /// A new procfs on `/proc`.
    Mount,
    /// The procfs that we see ourselves, masks and all.
    MountOuter,
    /// A second, uncovered procfs: the kernel lets a nested user namespace mount a fresh procfs only where an uncovered one
    /// is in sight. It shows what that fresh one would.
    Pristine,
    /// Covers with an empty file.
    HideFiles {
        /// Where present.
        always: Vec<&'static str>,
        /// Where others than the kernel's uid 0 could open it.
        if_open: Vec<&'static str>,
    },
    /// Covers with an empty directory.
    HideDirectories(Vec<&'static str>),
    /// `/proc/sys` read-only.
    ReadOnlySys,
    /// Covers with the stand-ins, by their order.
    StandIns(Vec<&'static str>),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Covers { .. } => f.write_str("make the files that cover others in /proc"),
            Self::Mount => f.write_str("mount a new procfs at /proc"),
            Self::MountOuter => f.write_str("bind the /proc around us, with what is mounted over it"),
            Self::Pristine => write!(f, "mount an uncovered procfs at {PRISTINE}, so that nested rooms may mount one"),
            Self::HideFiles { always, if_open } => write!(
                f,
                "cover with an empty file, where present: /proc/{{{}}}; where others than root could open it: /proc/{{{}}}",
                always.join(","),
                if_open.join(",")
            ),
            Self::HideDirectories(names) => {
                write!(f, "cover with an empty directory, where present: /proc/{{{}}}", names.join(","))
            }
            Self::ReadOnlySys => f.write_str("make /proc/sys read-only"),
            Self::StandIns(names) => write!(f, "put the same text on every host over /proc/{{{}}}", names.join(",")),
        }
    }
}

pub(super) fn plan(room: &Room, host: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    let outer = room.proc.source == ProcSource::Outer;
    if let (Some((why, fix)), false) = (&host.masked_proc, outer) {
        return Err(Refusal::new(Layer::Proc, "a new procfs", why, fix));
    }
    let whole = room.has(Layer::Namespaces);
    let covered = room.has(Layer::Proc) && whole;
    let stand_ins = stand_ins(host);
    if covered {
        let texts = stand_ins.iter().map(|(name, text)| ((*name).to_owned(), text.clone())).collect();
        draft.add(Stage::Proc, Action::Covers { stand_ins: texts });
    }
    if outer || !whole {
        // A procfs belongs to a pid namespace; this one belongs to that around us.
        draft.add(Stage::Proc, Action::MountOuter);
        draft.weaken(
            Layer::Proc,
            match whole {
                true => "that of the container around us: its processes are in sight",
                false => "the host's: without a pid namespace there is no other",
            },
        );
    } else {
        draft.add(Stage::Proc, Action::Mount);
    }
    if covered {
        if room.profile == Profile::Nested && !outer {
            draft.add(Stage::Proc, Action::Pristine);
        }
        draft.add(Stage::ProcCovers, Action::HideFiles { always: EMPTY_FILES.to_vec(), if_open: ROOT_FILES.to_vec() });
        draft.add(Stage::ProcCovers, Action::HideDirectories(EMPTY_DIRECTORIES.to_vec()));
        // After the room's own sysctls are written, before anything of it runs.
        draft.add(Stage::ProcCovers, Action::ReadOnlySys);
        draft.add(Stage::ProcCovers, Action::StandIns(stand_ins.iter().map(|(name, _)| *name).collect()));
    }
    Ok(())
}

/// The name of a cover in the directory below `/proc`.
fn cover_name(number: usize) -> PathBuf {
    format!("/proc/stand-in-{number}").into()
}

pub(super) fn apply(action: &Action, site: &mut Site<'_>) -> Outcome {
    let proc = Path::new("/proc");
    match action {
        Action::Covers { stand_ins } => {
            site.create_file(&proc.join("empty-file"), b"", 0o444)?;
            site.make_directory(&proc.join("empty-directory"))?;
            for (number, (_, text)) in stand_ins.iter().enumerate() {
                site.create_file(&cover_name(number), text.as_bytes(), 0o444)?;
            }
            // Procfs is about to be mounted over these names; this directory is what is left of them.
            site.keep_covers(proc)?;
        }
        Action::MountOuter => site.bind_host_path(proc, MountFlags::NO_EXEC)?,
        Action::Mount => {
            let mount = site.sys.new_filesystem("proc", &[], MountFlags::NO_EXEC).map_err(|errno| match errno {
                Errno::EPERM => Trouble::new(
                    errno,
                    "the kernel refuses a new procfs where the visible one is masked, as in most containers",
                ),
                errno => errno.into(),
            })?;
            site.attach(mount.as_fd(), proc, true)?;
        }
        Action::Pristine => {
            let mount = site.sys.new_filesystem("proc", &[], MountFlags::NO_EXEC)?;
            site.attach(mount.as_fd(), Path::new(PRISTINE), true)?;
        }
        Action::HideFiles { always, if_open } => {
            site.enter_covers()?;
            for name in always {
                site.cover(&proc.join(name), "empty-file")?;
            }
            for path in if_open.iter().map(|name| proc.join(name)) {
                if site.sys.mode(&path).is_some_and(|mode| mode & 0o077 != 0) {
                    site.cover(&path, "empty-file")?;
                }
            }
        }
        Action::HideDirectories(names) => {
            site.enter_covers()?;
            for name in names {
                site.cover(&proc.join(name), "empty-directory")?;
            }
        }
        Action::ReadOnlySys => {
            let path = proc.join("sys");
            let tree = site.sys.open_tree(AT_FDCWD, &path, false)?;
            site.sys.mount_setattr(tree.as_fd(), MountFlags::SEALED, None, false)?;
            site.sys.move_mount(tree.as_fd(), AT_FDCWD, &path)?;
        }
        Action::StandIns(names) => {
            site.enter_covers()?;
            for (number, name) in names.iter().enumerate() {
                site.cover(&proc.join(name), &format!("stand-in-{number}"))?;
            }
            site.sys.chdir(Path::new("/"))?;
        }
    }
    Ok(())
}

pub(super) fn verify(room: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    if !room.has(Layer::Namespaces) {
        finding.fact("tier", "the host's");
        return finding;
    }
    let outer = room.proc.source == ProcSource::Outer;
    let mut covers = 0;
    let mut sys = false;
    let mut procfs = false;
    for mount in view.mounts.iter().filter(|mount| mount.point.starts_with("/proc")) {
        for need in ["nosuid", "nodev", "noexec"] {
            if !mount.has(need) {
                finding.wrong(format!("{} is without {need}", mount.point));
            }
        }
        match (mount.point, mount.kind) {
            ("/proc", "proc") => procfs = true,
            // What lies below it: the files that cover others, sealed like them.
            (point, kind) => {
                // The masks of a container are its own affair.
                if !mount.has("ro") && !outer {
                    finding.wrong(format!("{point} is writable"));
                }
                sys |= point == "/proc/sys" && kind == "proc";
                covers += u32::from(point != "/proc");
            }
        }
    }
    if !procfs {
        finding.wrong("no procfs is mounted on /proc");
    }
    if outer {
        finding.fact("tier", "that of the container around us");
    }
    if !sys {
        finding.wrong("/proc/sys is not read-only");
    }
    finding.fact("covers", covers.to_string());
    finding
}
