//! What this kernel and this user may do, asked once.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::ids::{Pool, Subordinate};
use crate::layers::cgroup::Layout;
use crate::layers::network::WayOut;
use crate::layers::network::pasta::{Missing, RunAs};
use crate::sys;

/// The facts that a plan depends on. Plain data: a test can make one up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Effective uid, in the user namespace that we live in.
    pub uid: u32,
    /// Effective gid.
    pub gid: u32,
    /// Whether we have CAP_SETUID, CAP_SETGID and CAP_SYS_ADMIN, and ids to take on with them.
    pub privileged: bool,
    /// What the kernel's own uid 0 and gid 0 are called in the user namespace that we live in.
    pub kernel_root: KernelRoot,
    /// `uname -r`.
    pub release: String,
    /// Memory in bytes.
    pub memory: u64,
    /// Version of Landlock's interface, 0 for none.
    pub landlock: u32,
    /// Whether there are open_tree(2), move_mount(2) and fsopen(2) (Linux 5.2).
    pub open_tree: bool,
    /// Whether there is mount_setattr(2) (Linux 5.12).
    pub mount_setattr: bool,
    /// Why no user namespace can be made, and what to do about it.
    pub no_user_namespaces: Option<(String, String)>,
    /// Why no new procfs can be mounted, and what to do about it.
    pub masked_proc: Option<(String, String)>,
    /// Whether RLIMIT_NPROC is counted per user namespace (Linux 5.14).
    pub counts_processes_per_namespace: bool,
    /// Where control groups are, or why that is not known. Asked only when a limit may need one.
    pub cgroups: Result<Layout, String>,
    /// What there is for a network with a way out, or what is missing. Asked only when such a network is wanted.
    pub way_out: Result<WayOut, Missing>,
    /// Hard limit of open files, `None` for unlimited.
    pub open_files_hard: Option<u64>,
    /// `/dev/kvm`, or why it is unusable and what to do about it.
    pub kvm: Result<Kvm, (String, String)>,
    /// The caller's subordinate ids, or why there are none. Asked only when a range is wanted.
    pub subordinate: Result<Subordinate, String>,
    /// Where root's rooms get ids from, or why there are none.
    pub ids: Result<Pool, String>,
}

/// The names of the kernel's uid 0 and gid 0 in some user namespace: 0 and 0 in the initial one; in others the overflow ids,
/// or whatever they are mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KernelRoot {
    /// The name of uid 0.
    pub uid: u32,
    /// The name of gid 0.
    pub gid: u32,
}

impl KernelRoot {
    /// The initial user namespace's.
    pub const INITIAL: Self = Self { uid: 0, gid: 0 };

    /// Asked of a file that belongs to the kernel's root on every system, and cannot be given away.
    fn probe() -> Self {
        use std::os::unix::fs::MetadataExt;
        fs::metadata("/proc/sys/kernel/core_pattern")
            .map_or(Self::INITIAL, |found| Self { uid: found.uid(), gid: found.gid() })
    }
}

/// A usable `/dev/kvm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kvm {
    /// The group that an unprivileged process needs to open it; `None` when everybody may.
    pub group_needed: Option<u32>,
}

/// What is asked beyond the cheap facts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Whether `/dev/kvm` is of interest.
    pub kvm: bool,
    /// Whether a range of ids is of interest.
    pub range: bool,
    /// Whether control groups are of interest.
    pub cgroups: bool,
    /// Whether a network with a way out is of interest.
    pub way_out: bool,
}

impl Host {
    /// Asks the running system.
    pub fn probe(wanted: Wanted) -> Self {
        let uid = nix::unistd::geteuid().as_raw();
        let gid = nix::unistd::getegid().as_raw();
        let uname = nix::sys::utsname::uname();
        let ids = if uid == 0 && has_capabilities() {
            crate::sys::file::read_proc("/proc/self/uid_map")
                .map_err(|error| format!("/proc/self/uid_map: {error}"))
                .and_then(|map| Pool::from_uid_map(&map, &run_directory().join("ids")))
        } else {
            Err("not asked".to_owned())
        };
        let privileged = ids.is_ok();
        let release = uname.map(|uname| uname.release().to_string_lossy().into_owned()).unwrap_or_default();
        Self {
            counts_processes_per_namespace: at_least(&release, (5, 14)),
            cgroups: if wanted.cgroups {
                Layout::detect().map_err(|error| error.to_string())
            } else {
                Err("not asked".to_owned())
            },
            way_out: if wanted.way_out {
                // Which id that is, is known when one is reserved; any unprivileged one has the same to say.
                let nobody = RunAs::User { uid: 65534, gid: 65534 };
                WayOut::probe(if privileged { nobody } else { RunAs::Myself })
            } else {
                Err(Missing { what: "a way out".into(), why: "not asked".into(), fix: String::new() })
            },
            uid,
            gid,
            privileged,
            kernel_root: KernelRoot::probe(),
            release,
            memory: memory(),
            landlock: sys::landlock::version(),
            open_tree: sys::mount::has_open_tree(),
            mount_setattr: sys::mount::has_mount_setattr(),
            no_user_namespaces: no_user_namespaces(privileged),
            masked_proc: masked_proc(),
            open_files_hard: sys::process::get_rlimit(libc::RLIMIT_NOFILE).ok().and_then(|(_, hard)| hard),
            kvm: if wanted.kvm { crate::kvm::probe(privileged) } else { Err(("not asked".into(), String::new())) },
            subordinate: if wanted.range && !privileged {
                let number = uid.to_string();
                let name = crate::ids::entry(&number).ok().flatten().map_or(number, |entry| entry.name);
                Subordinate::find(&name, uid)
            } else {
                Err("not asked".to_owned())
            },
            ids,
        }
    }

    /// A host that has all that a room can ask for but control groups, made up: what is planned for it is the same on every machine,
    /// so that tests can pin plans and documents can show them.
    pub fn made_up(privileged: bool) -> Self {
        let (uid, gid) = if privileged { (0, 0) } else { (1000, 1000) };
        let not_asked = "not asked".to_owned();
        Self {
            uid,
            gid,
            privileged,
            kernel_root: KernelRoot::INITIAL,
            release: "6.12.0".into(),
            memory: 8 << 30,
            landlock: 6,
            open_tree: true,
            mount_setattr: true,
            no_user_namespaces: None,
            masked_proc: None,
            counts_processes_per_namespace: true,
            cgroups: Err(not_asked.clone()),
            way_out: Ok(WayOut::made_up(privileged)),
            open_files_hard: Some(1 << 20),
            kvm: Ok(Kvm { group_needed: privileged.then_some(104) }),
            subordinate: if privileged {
                Err(not_asked.clone())
            } else {
                Ok(Subordinate { uid: 100_000, gid: 200_000, length: crate::ids::RANGE_LENGTH })
            },
            ids: if privileged {
                let (first, stride) = (crate::ids::FIRST_ID, crate::ids::RANGE_LENGTH);
                Ok(Pool { first, stride, slots: 4096, locks: run_directory().join("ids") })
            } else {
                Err(not_asked)
            },
        }
    }
}

/// Where locks and other things that end with a boot are kept by root.
pub fn run_directory() -> &'static Path {
    Path::new("/run/anchorhold")
}

/// Whether a kernel release is this version or newer; an unreadable one is old.
pub(crate) fn at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) >= wanted)
}

fn has_capabilities() -> bool {
    use caps::{CapSet, Capability};
    caps::read(None, CapSet::Effective).is_ok_and(|held| {
        [Capability::CAP_SETUID, Capability::CAP_SETGID, Capability::CAP_SYS_ADMIN].iter().all(|one| held.contains(one))
    })
}

fn memory() -> u64 {
    // sysconf answers from sysinfo(2); no file is opened.
    let value = |name| nix::unistd::sysconf(name).ok().flatten().unwrap_or(0) as u64;
    value(nix::unistd::SysconfVar::_PHYS_PAGES) * value(nix::unistd::SysconfVar::PAGE_SIZE)
}

fn no_user_namespaces(privileged: bool) -> Option<(String, String)> {
    let read = |path: &str| crate::sys::file::read_proc(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if read("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Some((
            "user.max_user_namespaces is 0".into(),
            "set it to a few thousand: sysctl -w user.max_user_namespaces=15000".into(),
        ));
    }
    // The two knobs of distributions speak of unprivileged processes only.
    if !privileged && read("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Some((
            "kernel.unprivileged_userns_clone is 0".into(),
            "sysctl -w kernel.unprivileged_userns_clone=1, or start anchorhold as root".into(),
        ));
    }
    None
}

/// What container engines mount something over: masks, read-only binds, and lxcfs.
const LIKELY_MASKS: [&str; 21] = [
    "acpi",
    "asound",
    "bus",
    "cpuinfo",
    "diskstats",
    "fs",
    "interrupts",
    "irq",
    "kcore",
    "kmsg",
    "keys",
    "latency_stats",
    "loadavg",
    "meminfo",
    "scsi",
    "stat",
    "swaps",
    "sys",
    "sysrq-trigger",
    "timer_list",
    "uptime",
];

/// A new procfs may be mounted only where the visible one is whole: anything mounted over a part of it spoils it. Asked of the places
/// where that is done, and not of the mount table, which may be long; a mask elsewhere is found by the step that fails of it.
fn masked_proc() -> Option<(String, String)> {
    let Some(own) = sys::file::mount_id(Path::new("/proc")) else {
        return Some(("no /proc is mounted here".into(), "mount one".into()));
    };
    let mask = first_mask(|name| sys::file::mount_id(&Path::new("/proc").join(name)), own)?;
    let fix = "run anchorhold outside the container, give the container an unmasked /proc (podman: --security-opt unmask=ALL; docker: \
               --security-opt systempaths=unconfined), or ask for the weaker tier: --proc outer";
    Some((format!("the visible /proc is masked: something is mounted on /proc/{mask}"), fix.into()))
}

fn first_mask(mount_of: impl Fn(&str) -> Option<u64>, own: u64) -> Option<&'static str> {
    LIKELY_MASKS.into_iter().find(|name| mount_of(name).is_some_and(|mount| mount != own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_masks_proc_is_noticed() {
        assert_eq!(first_mask(|_| Some(7), 7), None);
        assert_eq!(first_mask(|name| (name != "asound").then_some(7), 7), None, "what is missing masks nothing");
        assert_eq!(first_mask(|name| Some(if name == "kcore" { 9 } else { 7 }), 7), Some("kcore"));
    }
}
