//! Mounts: made, taken away, changed, listed.

use anchorhold_probe::verdict::{Finding, Verdict};
use anchorhold_probe::world::World;

use crate::calls;
use crate::probe::{Control, Order, Probe, Severity};
use crate::probes::namespaces::{folder, nested};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    direct("mnt.mount", "mount(2)", "Mounts a tmpfs and takes it away again.", |world| {
        private();
        let folder = folder(world);
        let result = calls::mount("tmpfs", &folder, "tmpfs", 0, "size=64k");
        if result.is_ok() {
            let _ = calls::umount(&folder, libc::MNT_DETACH);
        }
        Finding::of(result)
    }),
    direct("mnt.umount", "umount2(2)", "Takes away what is no mount: EINVAL comes after the permission check.", |_| {
        private();
        Finding::past(calls::umount("/proc/self/status", 0), &[libc::EINVAL])
    }),
    direct("mnt.fsopen", "fsopen(2)", "Opens the file system tmpfs for configuring.", |_| {
        let name = calls::c_path("tmpfs");
        Finding::of(calls::raw(libc::SYS_fsopen, &[name.as_ptr() as usize, 1]))
    }),
    direct("mnt.open_tree", "open_tree(2)", "Clones the mount at `/`, attached to nothing.", |_| {
        let path = calls::c_path("/");
        Finding::of(calls::raw(libc::SYS_open_tree, &[libc::AT_FDCWD as usize, path.as_ptr() as usize, CLONE]))
    }),
    direct(
        "mnt.move_mount",
        "move_mount(2)",
        "Moves a mount from a descriptor that is not open: EBADF comes after the permission check.",
        |_| {
            let empty = calls::c_path("");
            let (nowhere, empty) = (-1_isize as usize, empty.as_ptr() as usize);
            let result = calls::raw(libc::SYS_move_mount, &[nowhere, empty, nowhere, empty, 0x44]);
            Finding::past(result, &[libc::EBADF, libc::ENOENT])
        },
    ),
    direct("mnt.mount_setattr", "mount_setattr(2)", "Changes nothing of the mount at `/`.", |_| {
        let (path, nothing) = (calls::c_path("/"), [0_u64; 4]);
        let words = [libc::AT_FDCWD as usize, path.as_ptr() as usize, 0, nothing.as_ptr() as usize, 32];
        Finding::of(calls::raw(libc::SYS_mount_setattr, &words))
    }),
    direct(
        "mnt.open_tree_attr",
        "open_tree_attr(2)",
        "Clones the mount at `/` and changes nothing of the clone.",
        |_| {
            let (path, nothing) = (calls::c_path("/"), [0_u64; 4]);
            let words = [libc::AT_FDCWD as usize, path.as_ptr() as usize, CLONE, nothing.as_ptr() as usize, 32];
            Finding::of(calls::raw(OPEN_TREE_ATTR, &words))
        },
    ),
    Probe {
        id: "mnt.listmount",
        title: "Mounts can be listed by system call",
        severity: Severity::Low,
        reference: "listmount(2), Linux 6.8",
        tries: "Lists the mounts of its namespace by number.",
        safe: "ENOSYS, or no more than mountinfo shows",
        meaning: "Mounts are shown that covers in /proc hide.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| {
            // struct mnt_id_req: size, (descriptor), number, parameter, (namespace); the root's number stands for all.
            let request = [24_u64, u64::MAX, 0, 0];
            let mut numbers = [0_u64; 64];
            Finding::of(calls::raw(LISTMOUNT, &[request.as_ptr() as usize, numbers.as_mut_ptr() as usize, 64]))
        },
    },
    Probe {
        id: "mnt.statmount",
        title: "Mounts can be described by system call",
        severity: Severity::Low,
        reference: "statmount(2), Linux 6.8",
        tries: "Asks for the description of a mount that does not exist; ENOENT is the kernel's own answer.",
        safe: "ENOSYS, or no more than mountinfo shows",
        meaning: "Sources and options of mounts are shown, host paths among them.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| {
            let request = [24_u64, 1 << 62, 1, 0];
            let mut answer = [0_u64; 128];
            let words = [request.as_ptr() as usize, answer.as_mut_ptr() as usize, size_of_val(&answer)];
            Finding::past(calls::raw(STATMOUNT, &words), &[libc::ENOENT])
        },
    },
    Probe {
        id: "mnt.propagation",
        title: "Mounts are passed on between the sandbox and the host",
        severity: Severity::Medium,
        reference: "mount_namespaces(7); nix-sandbox.md P13",
        tries: "Looks for mounts that are shared or slaves in mountinfo.",
        safe: "none",
        meaning: "What is mounted on one side appears on the other: a disk that the host mounts shows up in the build.",
        controls: &[Control::SharedMounts],
        order: Order::Any,
        root: false,
        run: |_| {
            let text = match calls::contents("/proc/self/mountinfo", 1 << 20) {
                Ok(text) => text,
                Err(errno) => return Finding::refused(errno),
            };
            let text = String::from_utf8_lossy(&text);
            let passed: Vec<&str> = mounts(&text).filter(|mount| mount.propagates).map(|mount| mount.target).collect();
            match passed.len() {
                0 => Finding::absent("none"),
                count => Finding::reached(format!("{count}, among them {}", passed[0])),
            }
        },
    },
    Probe {
        id: "mnt.unmask",
        title: "Covers and read-only mounts can be taken away",
        severity: Severity::Critical,
        reference: "mount_namespaces(7), locked mounts; CVE-2022-0492",
        tries: "In a mount namespace of its own, where it can make one with or without a user namespace: takes away every \
                mount below the root, innermost first, and makes every read-only one writable.",
        safe: "EPERM or EINVAL for each",
        meaning: "What the covers hide comes back (/proc/sys for writing, kernel secrets), and inputs become writable.",
        controls: &[Control::HostRoot],
        order: Order::Last,
        root: false,
        run: |_| unmasked(),
    },
    Probe {
        id: "mnt.proc.fresh",
        title: "A new /proc without covers can be mounted",
        severity: Severity::Medium,
        reference: "user_namespaces(7), mount_too_revealing in the kernel",
        tries: "In new user, mount and pid namespaces, mounts a new procfs.",
        safe: "EPERM while the visible one has covers, or no namespaces",
        meaning: "The new one shows what the covers of the old one hide.",
        controls: &[Control::Host],
        order: Order::Last,
        root: false,
        run: |world| fresh_proc(world).granted(world.namespaces_granted),
    },
    direct(
        "mnt.pivot",
        "pivot_root(2)",
        "In a mount namespace of its own, makes a tmpfs its root; without one, asks with what is no mount.",
        |world| {
            if calls::unshare(libc::CLONE_NEWNS).is_err() {
                let path = calls::c_path("/proc/self");
                let words = [path.as_ptr() as usize, path.as_ptr() as usize];
                return Finding::past(calls::raw(libc::SYS_pivot_root, &words), &[libc::EINVAL, libc::EBUSY]);
            }
            let _ = calls::mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE, "");
            let folder = folder(world);
            let here = calls::c_path(".");
            let result = calls::mount("tmpfs", &folder, "tmpfs", 0, "size=64k").and_then(|_| {
                let folder = calls::c_path(&folder);
                calls::raw(libc::SYS_chdir, &[folder.as_ptr() as usize])?;
                calls::raw(libc::SYS_pivot_root, &[here.as_ptr() as usize, here.as_ptr() as usize])
            });
            Finding::of(result)
        },
    ),
];

/// `OPEN_TREE_CLONE`, linux/mount.h.
const CLONE: usize = 1;

/// Numbers that the C library's crate does not have for every architecture; the same on all of them.
const STATMOUNT: libc::c_long = 457;
const LISTMOUNT: libc::c_long = 458;
const OPEN_TREE_ATTR: libc::c_long = 467;

/// The probe of one call that needs CAP_SYS_ADMIN over the mounts.
const fn direct(id: &'static str, title: &'static str, tries: &'static str, run: fn(&World) -> Finding) -> Probe {
    Probe {
        id,
        title,
        severity: Severity::High,
        reference: "capabilities(7), CAP_SYS_ADMIN",
        tries,
        safe: "EPERM or ENOSYS",
        meaning: "Who may mount may cover, uncover and move what the sandbox is made of.",
        controls: &[Control::HostRoot],
        order: Order::Last,
        root: true,
        run,
    }
}

/// A mount namespace of its own from which nothing is passed on, where that is possible.
fn private() {
    if calls::unshare(libc::CLONE_NEWNS).is_ok() {
        let _ = calls::mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE, "");
    }
}

/// One line of mountinfo.
struct Mount<'a> {
    target: &'a str,
    read_only: bool,
    propagates: bool,
}

/// The lines of proc_pid_mountinfo(5).
fn mounts(text: &str) -> impl Iterator<Item = Mount<'_>> {
    text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let optional = words.iter().skip(6).take_while(|word| **word != "-");
        Some(Mount {
            target: words.get(4)?,
            read_only: words.get(5)?.split(',').any(|option| option == "ro"),
            propagates: optional.into_iter().any(|word| word.starts_with("shared:") || word.starts_with("master:")),
        })
    })
}

fn unmasked() -> Finding {
    match calls::unshare(libc::CLONE_NEWNS) {
        Ok(_) => {
            if let Err(errno) = calls::mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE, "") {
                // Without this, taking away would be passed on.
                return Finding::refused(errno).with("a mount namespace, but no private mounts");
            }
            take_away()
        }
        // In a less privileged namespace nothing is passed on anyway, and mounts from outside are locked.
        Err(refused) => match nested(libc::CLONE_NEWNS) {
            Ok(_) => take_away(),
            Err(_) => Finding::refused(refused).with("no mount namespace of its own, with or without a user namespace"),
        },
    }
}

/// Takes away every mount and makes every read-only one writable, in a namespace that is its own.
fn take_away() -> Finding {
    let text = match calls::contents("/proc/self/mountinfo", 1 << 20) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(errno) => return Finding::inconclusive(anchorhold_probe::verdict::name_of(errno)),
    };
    let (mut open, mut last, mut tried) = (Vec::new(), Finding::inconclusive("no mounts"), 0);
    let all: Vec<Mount<'_>> = mounts(&text).filter(|mount| mount.target != "/").collect();
    for mount in all.iter().rev() {
        if mount.read_only {
            tried += 1;
            let writable = calls::mount("", mount.target, "", libc::MS_REMOUNT | libc::MS_BIND, "");
            match Finding::of(writable) {
                Finding { verdict: Verdict::Reached, .. } => open.push(format!("{} writable", mount.target)),
                finding => last = finding,
            }
        }
        tried += 1;
        match Finding::of(calls::umount(mount.target, libc::MNT_DETACH)) {
            Finding { verdict: Verdict::Reached, .. } => open.push(format!("{} taken away", mount.target)),
            finding => last = finding,
        }
    }
    match open.first() {
        Some(first) => Finding::reached(format!("{first}; {} of {tried} attempts", open.len())),
        None => last.with(format!("{tried} attempts")),
    }
}

fn fresh_proc(world: &World) -> Finding {
    let folder = folder(world);
    if let Err(errno) = nested(libc::CLONE_NEWNS | libc::CLONE_NEWPID) {
        return Finding::refused(errno);
    }
    // The pid namespace is the child's, and a procfs shows that of who mounts it.
    let status = calls::in_child(|| match calls::mount("proc", &folder, "proc", 0, "") {
        Ok(_) => 0,
        Err(errno) => errno,
    });
    match status {
        Ok(Some(0)) => Finding::reached(""),
        Ok(Some(errno)) => Finding::refused(errno),
        Ok(None) => Finding::inconclusive("the child was killed"),
        Err(errno) => Finding::refused(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read() {
        let text = "22 1 0:20 / /proc rw,nosuid shared:12 - proc proc rw\n\
                    23 1 0:21 /a /usr ro,nodev master:3 - ext4 /dev/vda rw\n\
                    24 1 0:22 / /x\\040y ro - tmpfs shared:9 rw\n";
        let read: Vec<_> = mounts(text).map(|mount| (mount.target, mount.read_only, mount.propagates)).collect();
        assert_eq!(read, [("/proc", false, true), ("/usr", true, true), ("/x\\040y", true, false)]);
    }
}
