//! Read-only inputs: every way to change a file that must not change, and the mounts that keep it so.

use std::ffi::CStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anchorhold_probe::verdict::{Finding, name_of};
use anchorhold_probe::world::World;

use crate::calls;
use crate::files::{self, Descend, Mount, Scratch};
use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    input(
        "fs.input.write",
        "An input can be opened for writing",
        "Opens the input for writing, and writes nothing.",
        |world| on_input(world, |path| files::opens(path, libc::O_WRONLY)),
    ),
    input(
        "fs.input.reopen",
        "An input can be opened for writing through a descriptor",
        "Opens the input for reading, and that descriptor in /proc for writing.",
        |world| {
            on_input(world, |path| {
                let file = calls::open(path, libc::O_RDONLY, 0)?;
                files::opens(format!("/proc/self/fd/{file}"), libc::O_WRONLY)
            })
        },
    ),
    input("fs.input.chmod", "The mode of an input can be changed", "Gives the input the mode that it has.", |world| {
        on_input(world, |path| {
            let mode = files::status(path)?.mode() & 0o1777;
            let path = calls::c_path(path);
            calls::raw(libc::SYS_fchmodat, &[HERE, path.as_ptr() as usize, mode as usize])
        })
    }),
    input(
        "fs.input.chown",
        "The owner of an input can be changed",
        "Gives the input the owner that it has.",
        |world| {
            on_input(world, |path| {
                // Not -1, for which everybody has permission.
                let found = files::status(path)?;
                let (path, uid, gid) = (calls::c_path(path), found.uid() as usize, found.gid() as usize);
                calls::raw(libc::SYS_fchownat, &[HERE, path.as_ptr() as usize, uid, gid, 0])
            })
        },
    ),
    input(
        "fs.input.utime",
        "The times of an input can be changed",
        "Gives the input the times that it has.",
        |world| {
            on_input(world, |path| {
                let found = files::status(path)?;
                let times = [found.atime(), found.atime_nsec(), found.mtime(), found.mtime_nsec()];
                let path = calls::c_path(path);
                calls::raw(libc::SYS_utimensat, &[HERE, path.as_ptr() as usize, times.as_ptr() as usize, 0])
            })
        },
    ),
    input(
        "fs.input.truncate",
        "An input can be truncated",
        "Truncates the input to the length that it has.",
        |world| {
            on_input(world, |path| {
                let found = files::status(path)?;
                let times = [found.atime(), found.atime_nsec(), found.mtime(), found.mtime_nsec()];
                let path = calls::c_path(path);
                let result = calls::raw(libc::SYS_truncate, &[path.as_ptr() as usize, found.len() as usize]);
                if result.is_ok() {
                    let _ =
                        calls::raw(libc::SYS_utimensat, &[HERE, path.as_ptr() as usize, times.as_ptr() as usize, 0]);
                }
                result
            })
        },
    ),
    input(
        "fs.input.unlink",
        "An input can be removed",
        "Asks to remove the input as if it were a folder: that it is none is said only after permission was given.",
        |world| {
            with_input(world, |path| {
                let path = calls::c_path(path);
                let result =
                    calls::raw(libc::SYS_unlinkat, &[HERE, path.as_ptr() as usize, libc::AT_REMOVEDIR as usize]);
                Finding::past(result, &[libc::ENOTDIR])
            })
        },
    ),
    input("fs.input.rename", "An input can be renamed", "Gives the input another name, and its own back.", |world| {
        on_input(world, |path| {
            let mut other = path.as_os_str().to_owned();
            other.push(".anchorhold-probe");
            let (own, other) = (calls::c_path(path), calls::c_path(other));
            let rename = |from: &CStr, to: &CStr| {
                calls::raw(libc::SYS_renameat2, &[HERE, from.as_ptr() as usize, HERE, to.as_ptr() as usize, NOT_OVER])
            };
            let result = rename(&own, &other);
            if result.is_ok() {
                let _ = rename(&other, &own);
            }
            result
        })
    }),
    input(
        "fs.input.create",
        "Files can be made beside an input",
        "Makes a file beside the input, and removes it.",
        |world| on_input(world, |path| creates(path.parent().unwrap_or(path))),
    ),
    Probe {
        severity: Severity::Low,
        reference: "flock(2); nix-sandbox H5",
        safe: "EACCES, or known to be open",
        meaning: "Two builds that share an input can signal each other by locking it, and keep out programs of the host that lock it. Work \
                  needs locks, and the kernel has no way to refuse them on read-only mounts alone.",
        controls: &[Control::Host],
        ..input(
            "fs.input.lock",
            "An input can be locked",
            "Locks the input against all others, and unlocks it.",
            |world| {
                with_input(world, |path| {
                    let locked = calls::open(path, libc::O_RDONLY, 0).and_then(|file| {
                        calls::raw(libc::SYS_flock, &[file as usize, (libc::LOCK_EX | libc::LOCK_NB) as usize])
                    });
                    Finding::of(locked)
                })
            },
        )
    },
    Probe {
        severity: Severity::Low,
        reference: "inotify(7)",
        safe: "EACCES, or known to be open",
        meaning: "A build that watches a shared input sees when other builds and programs of the host use it. Work needs inotify, and the \
                  kernel has no way to refuse it on inputs alone.",
        controls: &[Control::Host],
        ..input("fs.input.watch", "An input can be watched", "Asks to be told who opens the input.", |world| {
            with_input(world, |path| {
                let path = calls::c_path(path);
                let watched = calls::raw(libc::SYS_inotify_init1, &[libc::IN_CLOEXEC as usize]).and_then(|queue| {
                    let arguments = [queue as usize, path.as_ptr() as usize, libc::IN_OPEN as usize];
                    calls::raw(libc::SYS_inotify_add_watch, &arguments)
                });
                Finding::of(watched)
            })
        })
    },
    Probe {
        id: "fs.input.pagecache",
        title: "The page cache of inputs is in reach of AF_ALG",
        severity: Severity::High,
        reference: "CVE-2026-31431, CVE-2022-0847",
        tries: "Sees whether pages of a read-only file can be spliced into a pipe while sockets of AF_ALG can be made.",
        safe: "EAFNOSUPPORT for the socket",
        meaning: "Read-only mounts do not protect the page cache. An error in code that takes pages without copying them writes to files \
                  that all builds share.",
        controls: &[Control::Seccomp, Control::Host],
        order: Order::Any,
        root: false,
        run: page_cache,
    },
    Probe {
        id: "fs.hardlink.input",
        title: "An input can be linked into a writable folder",
        severity: Severity::High,
        reference: "linkat(2); CVE-2021-27851",
        tries: "Makes a hard link to the input in its own folder, by path and by descriptor.",
        safe: "EXDEV or EPERM",
        meaning: "A link in the output makes the input's own inode part of it, and whoever then cleans modes and times of the output \
                  changes the input.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: false,
        run: |world| with_input(world, |path| linked(world, path)),
    },
    Probe {
        id: "fs.hardlink.canary",
        title: "A file of the host can be linked into a writable folder",
        severity: Severity::High,
        reference: "CVE-2021-27851",
        tries: "Makes a hard link to the host's canary in its own folder.",
        safe: "ENOENT, EXDEV or EPERM",
        meaning: "A link to a file of the host in an output or a kept build folder has it given away with the rest of the folder.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |world| match &world.canary {
            Some(folder) => linked(world, &folder.join("canary")),
            None => Finding::inconclusive("no canary was set up"),
        },
    },
    Probe {
        id: "fs.root.write",
        title: "Folders of the system can be written to",
        severity: Severity::Medium,
        reference: "",
        tries: "Makes and removes a file in /, /etc, /usr and their like.",
        safe: "EROFS or EACCES; only the store's top folder may be writable",
        meaning: "A build that can write there changes what its own later steps use without a trace in its recipe. If the folders are the \
                  host's, it changes the host.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: false,
        run: |_| {
            let places = ["/", "/bin", "/etc", "/lib", "/run", "/sbin", "/usr", "/usr/bin", "/usr/lib", "/var"];
            Finding::worst(places.map(|folder| (folder.to_owned(), Finding::of(creates(Path::new(folder))))))
        },
    },
    Probe {
        id: "fs.mount.flags",
        title: "Writable mounts honour set-id bits or device nodes",
        severity: Severity::Medium,
        reference: "mount(8), nosuid and nodev",
        tries: "Reads the flags of every mount that it may write to.",
        safe: "nosuid and nodev on all of them",
        meaning: "What a filter lets slip (a set-id file, a device node) takes effect only on mounts without these flags: they are the \
                  second layer.",
        controls: &[Control::SetId, Control::Host],
        order: Order::Any,
        root: false,
        run: mount_flags,
    },
    Probe {
        id: "fs.suid.binaries",
        title: "Set-id programs are in reach on a mount that honours them",
        severity: Severity::Medium,
        reference: "execve(2)",
        tries: "Looks for set-id programs in the folders of programs and libraries, on mounts without nosuid.",
        safe: "none",
        meaning: "Without no_new_privs a set-id program of the host is a way to another user; with it, it is one layer less.",
        controls: &[Control::SetId, Control::Host],
        order: Order::Any,
        root: false,
        run: set_id_programs,
    },
    Probe {
        id: "fs.remount.rw",
        title: "A read-only mount can be remounted writable by mount(2)",
        severity: Severity::Critical,
        reference: "mount_namespaces(7), locked mounts",
        tries: "In mounts of its own, takes the read-only flag off the input's mount, or off the first read-only one.",
        safe: "EPERM",
        meaning: "The inputs are those of all builds. Whoever can make them writable changes what every later build uses.",
        controls: &[Control::HostRoot],
        order: Order::Last,
        root: true,
        run: |world| remounted(world, &remount_classic),
    },
    Probe {
        id: "fs.remount.setattr",
        title: "A read-only mount can be made writable by mount_setattr(2)",
        severity: Severity::Critical,
        reference: "mount_setattr(2)",
        tries: "The same by the new call.",
        safe: "EPERM or ENOSYS",
        meaning: "The inputs are those of all builds. Whoever can make them writable changes what every later build uses.",
        controls: &[Control::HostRoot],
        order: Order::Last,
        root: true,
        run: |world| remounted(world, &remount_new),
    },
];

const HERE: usize = libc::AT_FDCWD as usize;
/// `RENAME_NOREPLACE`, linux/fs.h.
const NOT_OVER: usize = 1;

const fn input(id: &'static str, title: &'static str, tries: &'static str, run: fn(&World) -> Finding) -> Probe {
    Probe {
        id,
        title,
        severity: Severity::Critical,
        reference: "nix-sandbox P1",
        tries,
        safe: "EROFS; EACCES and EPERM are weaker, as then only ownership protects it",
        meaning: "Inputs are shared by all builds. A build that changes one changes everything that is made from it from then on.",
        controls: &[Control::HostRoot, Control::Writable],
        order: Order::Any,
        root: false,
        run,
    }
}

/// Runs the attempt on the input that the world names.
fn with_input(world: &World, attempt: impl FnOnce(&Path) -> Finding) -> Finding {
    match &world.input {
        Some(path) => match files::status(path) {
            Ok(_) => attempt(path),
            Err(errno) => Finding::inconclusive(format!("the input is not there: {}", name_of(errno))),
        },
        None => Finding::inconclusive("no input was set up"),
    }
}

fn on_input(world: &World, attempt: impl FnOnce(&Path) -> Result<i64, i32>) -> Finding {
    with_input(world, |path| match attempt(path) {
        Err(errno @ (libc::EACCES | libc::EPERM)) => {
            Finding::refused(errno).with("by ownership or a filter, not by the mount")
        }
        result => Finding::of(result),
    })
}

/// Makes a file in a folder, and removes it again.
fn creates(folder: &Path) -> Result<i64, i32> {
    let path = folder.join(format!(".anchorhold-probe-{}", std::process::id()));
    let file = calls::open(&path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o600)?;
    calls::close(file);
    let path = calls::c_path(path);
    let _ = calls::raw(libc::SYS_unlinkat, &[HERE, path.as_ptr() as usize, 0]);
    Ok(0)
}

fn linked(world: &World, target: &Path) -> Finding {
    let scratch = match Scratch::new(world) {
        Ok(scratch) => scratch,
        Err(finding) => return finding,
    };
    let link = |source: &Path, name: &str, flags: i32| {
        let (source, new) = (calls::c_path(source), calls::c_path(scratch.path(name)));
        calls::raw(libc::SYS_linkat, &[HERE, source.as_ptr() as usize, HERE, new.as_ptr() as usize, flags as usize])
    };
    let by_descriptor = calls::open(target, libc::O_PATH, 0)
        .and_then(|file| link(&PathBuf::from(format!("/proc/self/fd/{file}")), "two", libc::AT_SYMLINK_FOLLOW));
    Finding::worst([
        ("by path".to_owned(), Finding::of(link(target, "one", 0))),
        ("by descriptor".to_owned(), Finding::of(by_descriptor)),
    ])
}

fn page_cache(world: &World) -> Finding {
    let file = world.input.clone().unwrap_or_else(|| "/proc/self/exe".into());
    let spliced = calls::open(&file, libc::O_RDONLY, 0).and_then(|file| {
        let [_, writer] = calls::pipe()?;
        calls::raw(libc::SYS_splice, &[file as usize, 0, writer as usize, 0, 1, 0])
    });
    match (calls::socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0), spliced) {
        (Ok(_), Ok(_)) => Finding::reached("AF_ALG and splice"),
        (Err(errno), Ok(_)) => Finding::refused(errno).with("splice works, AF_ALG does not"),
        (_, Err(errno)) => Finding::refused(errno).with("splice is refused"),
    }
}

/// Reached if any mount is found fault with.
fn judge_mounts(fault: impl Fn(&Mount) -> Option<String>) -> Finding {
    let mounts = match files::mounts() {
        Ok(mounts) => mounts,
        Err(errno) => return Finding::inconclusive(format!("no table of mounts: {}", name_of(errno))),
    };
    let faults: Vec<String> =
        mounts.iter().filter_map(|mount| fault(mount).map(|words| format!("{} ({words})", mount.point))).collect();
    match faults.len() {
        0 => Finding::held(format!("none of {} mounts", mounts.len())),
        _ => Finding::reached(faults.join(", ")),
    }
}

/// Which of `nosuid` and `nodev` a mount lacks that files could be made in. Mounts of the kernel's own file systems, in which nobody makes
/// files, do not count.
fn lacking(mount: &Mount) -> Option<String> {
    const OF_THE_KERNEL: [&str; 8] =
        ["proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "securityfs", "binfmt_misc"];
    if OF_THE_KERNEL.contains(&mount.kind.as_str()) || !mount.writable() {
        return None;
    }
    let missing: Vec<&str> = ["nosuid", "nodev"].into_iter().filter(|option| !mount.has(option)).collect();
    (!missing.is_empty()).then(|| format!("no {}", missing.join(", no ")))
}

fn mount_flags(_: &World) -> Finding {
    judge_mounts(|mount| {
        let missing = lacking(mount)?;
        (Path::new(&mount.point).is_dir() && files::writable(&mount.point).is_ok()).then_some(missing)
    })
}

fn set_id_programs(_: &World) -> Finding {
    const FOLDERS: [&str; 8] =
        ["/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/libexec", "/usr/local", "/opt"];
    let mut found = Vec::new();
    let mut covered = 0;
    let complete = files::walk(&FOLDERS, |path, status| {
        if status.is_file() && status.mode() & 0o6000 != 0 && status.mode() & 0o111 != 0 {
            match files::file_system(path) {
                Ok(system) if system.flags & files::NO_SET_ID == 0 => found.push(path.display().to_string()),
                _ => covered += 1,
            }
        }
        if found.len() < 10 { Descend::Yes } else { Descend::Stop }
    });
    let part = if complete { "" } else { " in the part that was looked at" };
    match (found.is_empty(), covered) {
        (false, _) => Finding::reached(found.join(" ")),
        (true, 0) => Finding::absent(format!("none{part}")),
        (true, count) => Finding::held(format!("{count}{part}, all on mounts with nosuid")),
    }
}

/// Takes the read-only flag off a mount, in a mount namespace of its own where that can be had. Where it cannot, the flags are given as
/// they are: that the call is let through is then what counts.
fn remounted(world: &World, remount: &dyn Fn(&Mount, bool) -> Result<i64, i32>) -> Finding {
    let own = calls::unshare(libc::CLONE_NEWNS).is_ok()
        && calls::mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "").is_ok();
    let Ok(mounts) = files::mounts() else { return Finding::inconclusive("no table of mounts") };
    let holds = |mount: &&Mount| world.input.as_ref().is_some_and(|input| input.starts_with(&mount.point));
    let of_input = mounts.iter().filter(holds).max_by_key(|mount| mount.point.len()).filter(|mount| mount.has("ro"));
    let read_only =
        || mounts.iter().find(|mount| mount.has("ro") && mount.kind != "sysfs" && Path::new(&mount.point).exists());
    if let Some(mount) = of_input.or_else(read_only) {
        let words = if own { "made writable" } else { "remounted as it was" };
        return match remount(mount, own) {
            Ok(_) => Finding::reached(format!("{} {words}", mount.point)),
            Err(errno) => Finding::refused(errno).with(mount.point.clone()),
        };
    }
    if !own {
        return Finding::inconclusive("no mount is read-only, and none can be made");
    }
    // Nothing here is read-only: whether it would help is shown on a mount made for it.
    let scratch = match Scratch::new(world) {
        Ok(scratch) => scratch,
        Err(finding) => return finding,
    };
    let place = scratch.folder();
    let made = calls::mount(&place.display().to_string(), place, "", libc::MS_BIND, "")
        .and_then(|_| calls::mount("none", place, "", libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY, ""));
    if let Err(errno) = made {
        return Finding::refused(errno).with("no mount is read-only, and none can be made");
    }
    let mount = Mount { point: place.display().to_string(), ..Mount::default() };
    let result = remount(&mount, true);
    let _ = calls::umount(place, libc::MNT_DETACH);
    Finding::of(result).with("no mount is read-only here; one was made for this")
}

fn remount_classic(mount: &Mount, writable: bool) -> Result<i64, i32> {
    const FLAGS: [(&str, libc::c_ulong); 6] = [
        ("nosuid", libc::MS_NOSUID),
        ("nodev", libc::MS_NODEV),
        ("noexec", libc::MS_NOEXEC),
        ("noatime", libc::MS_NOATIME),
        ("nodiratime", libc::MS_NODIRATIME),
        ("relatime", libc::MS_RELATIME),
    ];
    let kept = FLAGS.iter().filter(|(name, _)| mount.has(name)).fold(0, |flags, (_, flag)| flags | flag);
    let read_only = if writable { 0 } else { libc::MS_RDONLY };
    calls::mount("none", &mount.point, "", libc::MS_BIND | libc::MS_REMOUNT | kept | read_only, "")
}

fn remount_new(mount: &Mount, writable: bool) -> Result<i64, i32> {
    const READ_ONLY: u64 = 1;
    // struct mount_attr: set, clear, propagation, user namespace.
    let attributes: [u64; 4] = if writable { [0, READ_ONLY, 0, 0] } else { [READ_ONLY, 0, 0, 0] };
    let path = calls::c_path(&mount.point);
    calls::raw(
        libc::SYS_mount_setattr,
        &[HERE, path.as_ptr() as usize, 0, attributes.as_ptr() as usize, size_of_val(&attributes)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use anchorhold_probe::verdict::Verdict;

    fn mount(line: &str) -> Mount {
        files::mount(line).expect("a whole line")
    }

    #[test]
    fn writable_mounts_need_both_flags() {
        assert_eq!(lacking(&mount("1 0 0:9 / /tmp rw,nosuid,nodev - tmpfs tmpfs rw")), None);
        assert_eq!(lacking(&mount("1 0 0:9 / /tmp rw,nodev - tmpfs tmpfs rw")).as_deref(), Some("no nosuid"));
        assert_eq!(lacking(&mount("1 0 0:9 / /tmp rw - tmpfs tmpfs rw")).as_deref(), Some("no nosuid, no nodev"));
        assert_eq!(lacking(&mount("1 0 0:9 / /usr ro - ext4 /dev/vda rw")), None);
        assert_eq!(lacking(&mount("1 0 0:9 / /proc rw - proc proc rw")), None);
    }

    #[test]
    fn attempts_leave_an_input_as_it_is() {
        let world = World { scratch: Some(std::env::temp_dir()), ..World::default() };
        let scratch = Scratch::new(&world).expect("a folder");
        let path = scratch.file("input").expect("a file");
        let before = std::fs::metadata(&path).expect("there");
        let world = World { input: Some(path.clone()), ..world };
        for probe in PROBES.iter().filter(|probe| probe.id.starts_with("fs.input.") && probe.id != "fs.input.pagecache")
        {
            let finding = (probe.run)(&world);
            assert_eq!(finding.verdict, Verdict::Reached, "{}: {finding:?}", probe.id);
        }
        let after = std::fs::metadata(&path).expect("still there");
        assert_eq!(
            (before.mode(), before.mtime(), before.mtime_nsec(), before.len(), before.nlink()),
            (after.mode(), after.mtime(), after.mtime_nsec(), after.len(), after.nlink())
        );
        assert_eq!(std::fs::read(&path).expect("readable"), b"probe\n");
        assert_eq!(files::names(scratch.folder()).expect("a folder"), ["input"]);
    }
}
