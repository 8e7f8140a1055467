//! What is asked of the system before anything is judged. Plain data: a test can make one up.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::cgroup::Groups;
use super::probe::{Answer, Answers, OTHER_KINDS};
use crate::host::{Host, Wanted};
use crate::layers::namespaces::Kind;
use crate::sys;

/// Everything that is judged, beside the rooms that are made.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What plans depend on.
    pub host: Host,
    /// Where our own program is, for the fixes that name it.
    pub program: PathBuf,
    /// What the kernel said to harmless attempts.
    pub answers: Answers,
    /// `user.max_*_namespaces` of our own user namespace.
    pub most: Vec<(Kind, Option<u64>)>,
    /// `kernel.unprivileged_userns_clone`, a setting of Debian's kernels.
    pub debian_clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns`, a setting of Ubuntu's kernels.
    pub apparmor_restricts: Option<u64>,
    /// What is mounted over a part of the visible `/proc`, so that the kernel refuses a new procfs.
    pub proc_masks: Vec<String>,
    /// What is around us.
    pub around: Around,
    /// The version of Landlock's interface.
    pub landlock: Result<u32, Errno>,
    /// The security modules that are active, where securityfs can be seen.
    pub security_modules: Option<String>,
    /// Asking for the session keyring.
    pub keyring: Answer,
    /// Asking for filters of system calls.
    pub filters: Answer,
    /// newuidmap(1), when there is one: its path, and whether it has the privilege that it needs.
    pub map_helper: Option<(PathBuf, bool)>,
    /// Control groups.
    pub cgroup: Groups,
    /// Settings that are only shown.
    pub settings: Vec<(&'static str, Option<String>)>,
}

/// What is around us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// The kind of container, where it can be told.
    pub container: Option<String>,
    /// How many filters of system calls we are under already; unknown before Linux 5.9, then 1 stands for any.
    pub filters: u64,
    /// Whether we are kept from gaining privileges, so that set-id programs do not help.
    pub no_new_privileges: bool,
    /// How many uids exist in our user namespace.
    pub mapped_uids: u64,
    /// Whether we have CAP_SETFCAP, without which root cannot map itself.
    pub file_capabilities: bool,
}

impl Facts {
    /// Asks.
    pub fn gather() -> Self {
        let host = Host::probe(Wanted { kvm: true, range: true, cgroups: true, way_out: true });
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let uid_map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let keyring = match sys::process::session_keyring() {
            // It is there and empty, or it may be made.
            Ok(_) | Err(Errno::ENOKEY) => Ok(()),
            Err(errno) => Err(errno),
        };
        Self {
            program: std::env::current_exe().unwrap_or_else(|_| "anchorhold".into()),
            answers: Answers::gather(),
            most: [Kind::User].into_iter().chain(OTHER_KINDS).map(|kind| (kind, most(kind))).collect(),
            debian_clone: number("kernel/unprivileged_userns_clone"),
            apparmor_restricts: number("kernel/apparmor_restrict_unprivileged_userns"),
            proc_masks: proc_masks(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()),
            around: Around::read(&status, &uid_map, container()),
            landlock: sys::feature::landlock_interface(),
            security_modules: fs::read_to_string("/sys/kernel/security/lsm").ok().map(|list| list.trim().to_owned()),
            keyring,
            filters: sys::feature::seccomp_filters(),
            map_helper: map_helper(),
            cgroup: Groups::gather(&host.cgroups),
            settings: super::settings::SHOWN.iter().map(|(name, _)| (*name, setting(name))).collect(),
            host,
        }
    }
}

/// CAP_SETFCAP in a set of capabilities.
const SETFCAP: u64 = 1 << 31;

impl Around {
    fn read(status: &str, uid_map: &str, container: Option<String>) -> Self {
        let field = |key: &str| {
            status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse::<u64>().ok())
        };
        let filtered = field("Seccomp") == Some(2);
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
        let lengths = uid_map.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok());
        Self {
            container,
            filters: field("Seccomp_filters").unwrap_or(u64::from(filtered)),
            no_new_privileges: field("NoNewPrivs") == Some(1),
            mapped_uids: lengths.sum(),
            file_capabilities: capabilities & SETFCAP != 0,
        }
    }
}

/// What stands on the visible procfs. The launcher looks at likely places only, for speed; here all are of interest. What is mounted on
/// the automount point that is always there covers nothing.
fn proc_masks(mountinfo: &str) -> Vec<String> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let masks = points.filter(|point| point.starts_with("/proc/") && *point != "/proc/sys/fs/binfmt_misc");
    masks.map(str::to_owned).collect()
}

fn setting(name: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok().map(|text| text.trim().to_owned())
}

fn number(name: &str) -> Option<u64> {
    setting(name)?.parse().ok()
}

fn most(kind: Kind) -> Option<u64> {
    number(&format!("user/max_{}_namespaces", kind.name()))
}

/// The kind of container that we are in, by the marks that container engines leave (systemd's CONTAINER_INTERFACE).
fn container() -> Option<String> {
    let mark = |path: &str, name: &str| Path::new(path).exists().then(|| name.to_owned());
    mark("/run/.containerenv", "podman")
        .or_else(|| mark("/.dockerenv", "docker"))
        .or_else(|| fs::read_to_string("/run/systemd/container").ok().map(|name| name.trim().to_owned()))
        .or_else(|| std::env::var("container").ok())
        .or_else(|| std::env::var_os("KUBERNETES_SERVICE_HOST").map(|_| "kubernetes".to_owned()))
        .filter(|name| !name.is_empty())
}

fn map_helper() -> Option<(PathBuf, bool)> {
    use std::os::unix::fs::MetadataExt;
    let path = crate::ids::helper_path("newuidmap")?;
    let found = fs::metadata(&path).ok()?;
    // Debian sets the bit, other distributions give the file capabilities instead.
    let set_uid = found.mode() & 0o4000 != 0 && found.uid() == 0;
    let privileged = set_uid || sys::file::has_attribute(&path, c"security.capability");
    Some((path, privileged))
}

#[cfg(test)]
impl Facts {
    /// A machine on which everything works.
    pub fn healthy() -> Self {
        let works = |kind| (kind, Ok(()));
        Self {
            host: Host {
                release: "7.2.0".into(),
                landlock: 9,
                cgroups: Ok(crate::layers::cgroup::Layout::default()),
                ..Host::made_up(false)
            },
            program: "/usr/bin/anchorhold".into(),
            answers: Answers {
                user: Ok(()),
                maps: Ok(()),
                others: OTHER_KINDS.map(works).to_vec(),
                loopback: Ok(()),
                rules: Ok(()),
                listener: Ok(()),
            },
            most: [Kind::User].into_iter().chain(OTHER_KINDS).map(|kind| (kind, Some(60_000))).collect(),
            debian_clone: None,
            apparmor_restricts: None,
            proc_masks: Vec::new(),
            around: Around { mapped_uids: 4_294_967_295, ..Around::default() },
            landlock: Ok(10),
            security_modules: Some("capability,landlock".into()),
            keyring: Ok(()),
            filters: Ok(()),
            map_helper: Some(("/usr/bin/newuidmap".into(), true)),
            cgroup: Groups::healthy(),
            settings: super::settings::SHOWN.iter().map(|(name, _)| (*name, Some("1".into()))).collect(),
        }
    }

    /// Makes everything missing that can be.
    pub fn break_everything(&mut self) {
        let no = Errno::ENOSYS;
        let why = || ("why".to_owned(), "fix".to_owned());
        self.host.mount_setattr = false;
        self.proc_masks = vec!["/proc/kcore".into()];
        self.host.counts_processes_per_namespace = false;
        self.host.kvm = Err(why());
        self.host.subordinate = Err("why".into());
        self.host.uid = 0;
        self.answers = Answers::none(no);
        self.landlock = Err(no);
        self.keyring = Err(Errno::EPERM);
        self.filters = Err(no);
        self.map_helper = None;
        self.cgroup = Groups::none();
        let (what, why) = why();
        let fix = "fix".into();
        self.host.way_out = Err(crate::layers::network::pasta::Missing { what, why, fix });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mount_on_proc_is_a_mask_but_the_automount_point() {
        let table = "22 27 0:21 / /proc rw - proc proc rw\n23 22 0:30 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw\n\
                     24 22 0:31 / /proc/kcore rw,nosuid - tmpfs tmpfs rw\n25 27 0:32 / /process rw - tmpfs tmpfs rw\n";
        assert_eq!(proc_masks(table), ["/proc/kcore"]);
    }

    #[test]
    fn what_is_around_us_is_read_from_our_own_status() {
        let status = "Name:\tx\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n";
        let around = Around::read(status, "0 100000 1000\n1000 200000 500\n", None);
        assert_eq!((around.filters, around.no_new_privileges, around.mapped_uids), (3, true, 1500));
        // Before Linux 5.9 there is no count.
        assert_eq!(Around::read("Seccomp:\t2\n", "", None).filters, 1);
        assert_eq!(Around::read("Seccomp:\t0\n", "", None).filters, 0);
    }
}
