//! The tree that a sandbox shows: the old root, the host's files by their usual names, and ways out of a root.

use std::path::{Path, PathBuf};

use anchorhold_probe::verdict::{Finding, Verdict, name_of};
use anchorhold_probe::world::World;

use crate::calls;
use crate::files::{self, Scratch};
use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "fs.canary.read",
        title: "A file of the host can be read by its path",
        severity: Severity::Critical,
        reference: "",
        tries: "Opens a world-readable file outside by its path.",
        safe: "ENOENT; EACCES is weaker, as the path can still be seen",
        meaning: "The sandbox shows the host's files: whatever the user who started it may read is read, and builds depend on it.",
        controls: &[Control::Host, Control::Mounts],
        order: Order::Any,
        root: false,
        run: |world| with_canary(world, |path| Ok(holds(&calls::contents(path, 4096)?, &world.nonce))),
    },
    Probe {
        id: "fs.canary.write",
        title: "A file of the host can be written by its path",
        severity: Severity::Critical,
        reference: "",
        tries: "Opens a world-writable file outside by its path and writes back what is in it.",
        safe: "ENOENT; EACCES or EROFS are weaker, as the path can still be seen",
        meaning: "The sandbox writes the host's files: start-up scripts and keys of the user who started it are its own.",
        controls: &[Control::Host, Control::Mounts],
        order: Order::Any,
        root: false,
        run: |world| {
            with_canary(world, |path| {
                let file = calls::open(path, libc::O_RDWR, 0)?;
                let mut bytes = [0; 4096];
                let length = calls::read(file, &mut bytes)?;
                if !holds(&bytes[..length], &world.nonce) {
                    return Ok(false);
                }
                calls::raw(libc::SYS_pwrite64, &[file as usize, bytes.as_ptr() as usize, length, 0])?;
                Ok(true)
            })
        },
    },
    Probe {
        id: "fs.oldroot.mounts",
        title: "The old root is still mounted",
        severity: Severity::Critical,
        reference: "pivot_root(2)",
        tries: "Looks below every mount for the host's canary, and for folders that look like another root.",
        safe: "none",
        meaning: "After pivot_root the host's whole tree hangs below some folder until it is unmounted. If it is forgotten, so is the sandbox.",
        controls: &[Control::Host, Control::Mounts],
        order: Order::Any,
        root: false,
        run: old_root,
    },
    Probe {
        id: "fs.oldroot.cwd",
        title: "The working directory or a descriptor lies outside the root",
        severity: Severity::Critical,
        reference: "CVE-2024-21626",
        tries: "Asks for the working directory, and goes up by `..` from there and from every open descriptor of a folder.",
        safe: "all of them end at the root of the sandbox",
        meaning: "A folder kept open from before the change of roots is a way out: from it `..` leads up to the host's root.",
        controls: &[Control::Descriptors, Control::Mounts],
        order: Order::Any,
        root: false,
        run: above,
    },
    Probe {
        id: "fs.chroot.breakout",
        title: "A nested chroot gets out of the root",
        severity: Severity::Critical,
        reference: "chroot(2)",
        tries: "Keeps its root open, changes the root to a folder below, and goes up from what it kept.",
        safe: "EPERM, or it ends at the same root",
        meaning: "A root made by chroot(2) alone holds nobody who may call chroot(2) again.",
        controls: &[Control::Mounts],
        order: Order::Any,
        root: true,
        run: break_out,
    },
    Probe {
        id: "fs.proc1.root",
        title: "Another process shows another root",
        severity: Severity::Critical,
        reference: "proc_pid_root(5)",
        tries: "Looks through root and cwd of the first process and all others in /proc for the host's canary, and compares the roots with \
                its own.",
        safe: "ENOENT, EACCES, or the sandbox's own root",
        meaning: "If the first process or a helper was left in the host's tree, its links in /proc are doors to it.",
        controls: &[Control::Host, Control::HostRoot],
        order: Order::Any,
        root: false,
        run: other_roots,
    },
    Probe {
        id: "fs.handle.open",
        title: "Files can be opened by handle, past every path",
        severity: Severity::Critical,
        reference: "open_by_handle_at(2); the \"shocker\" exploit of 2014",
        tries: "Takes handles of its program, an input and the root, or makes one up, and opens files by them.",
        safe: "EPERM",
        meaning: "A handle names any file of a file system: that of the host's disk, below the part that was bound into the sandbox.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: open_by_handle,
    },
    Probe {
        id: "fs.handle.name",
        title: "Handles of files can be asked for",
        severity: Severity::Low,
        reference: "name_to_handle_at(2)",
        tries: "Asks for the handle of its root.",
        safe: "EPERM; harmless where handles cannot be opened",
        meaning: "A handle shows inode numbers and generations of the host's file system. Builds that watch files use it.",
        controls: &[Control::Seccomp, Control::Host],
        order: Order::Any,
        root: false,
        run: |_| {
            Finding::worst(
                ["/", "/proc/self/exe", "/dev/null"].map(|path| {
                    (path.to_owned(), handle(path).map_or_else(Finding::refused, |_| Finding::reached("")))
                }),
            )
        },
    },
    Probe {
        id: "fs.etc.shadow",
        title: "The host's password hashes and keys can be read",
        severity: Severity::High,
        reference: "shadow(5)",
        tries: "Opens files with secrets by their usual names.",
        safe: "ENOENT",
        meaning: "Password hashes, host keys and tokens of the machine end in a build, and in whatever the build can send. False if the \
                  root file system was made with such files of its own.",
        controls: &[Control::HostRoot, Control::Mounts],
        order: Order::Any,
        root: false,
        run: |_| {
            Finding::worst(SECRETS.map(|path| {
                let finding = match calls::contents(path, 16) {
                    Ok(bytes) if bytes.is_empty() => Finding::absent("empty"),
                    Ok(_) => Finding::reached(""),
                    Err(errno) => Finding::refused(errno),
                };
                (path.to_owned(), finding)
            }))
        },
    },
    Probe {
        id: "fs.home",
        title: "Homes of the host can be listed",
        severity: Severity::High,
        reference: "",
        tries: "Lists /root and everything in /home.",
        safe: "ENOENT, or empty",
        meaning: "Homes hold keys, tokens and sources that are none of the build's business. False if the root file system has homes of its own.",
        controls: &[Control::HostRoot, Control::Mounts],
        order: Order::Any,
        root: false,
        run: |_| {
            let users = files::names("/home").unwrap_or_default();
            let homes = users.iter().take(20).map(|user| format!("/home/{user}")).chain(["/root".to_owned()]);
            Finding::worst(homes.map(|home| {
                let finding = match files::names(&home) {
                    Ok(names) if names.is_empty() => Finding::absent("empty"),
                    Ok(names) => Finding::reached(format!("{} names", names.len())),
                    Err(errno) => Finding::refused(errno),
                };
                (home, finding)
            }))
        },
    },
    Probe {
        id: "fs.builddir.outside",
        title: "Somebody else on the host comes to the folder of a running build",
        severity: Severity::High,
        reference: "CVE-2024-38531, CVE-2025-52991, CVE-2025-52992; nix-sandbox.md H4",
        tries: "In a run of its own, opens its folders and its output to everybody and leaves a file there. A process of another, \
                ordinary uid looks for it on the host: below the folders for temporary files and of the sandbox, and through \
                /proc/PID/root and cwd.",
        safe: "EACCES above the folder",
        meaning: "A builder and a friend on the host hand each other set-id programs and descriptors, and become the build's user.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |_| Finding::inconclusive("judged from outside, in a run of its own"),
    },
    Probe {
        id: "fs.tmp.shared",
        title: "Temporary folders are shared with the host",
        severity: Severity::Medium,
        reference: "CVE-2025-52991",
        tries: "Looks in /tmp, /var/tmp and /dev/shm for names with this run's nonce, which the observer made outside.",
        safe: "none",
        meaning: "Builds that share a temporary folder can wait for each other's files there, and prepare traps for programs of the host.",
        controls: &[Control::Host, Control::Mounts],
        order: Order::Any,
        root: false,
        run: shared_folders,
    },
    Probe::fact(
        "fs.overlay.leak",
        "What mounts of overlays tell of the host",
        "Looks for upper, lower and work folders in the options of mounts.",
        "They are paths of the host, which tell where layers of images lie.",
        |_| match files::mounts() {
            Ok(mounts) => Finding::info(
                mounts
                    .iter()
                    .flat_map(|mount| &mount.super_options)
                    .filter(|option| {
                        ["upperdir=", "lowerdir=", "workdir="].iter().any(|start| option.starts_with(start))
                    })
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(" "),
            ),
            Err(errno) => Finding::info(name_of(errno)),
        },
    ),
];

/// Files of a host that hold secrets.
const SECRETS: [&str; 8] = [
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/sudoers",
    "/etc/krb5.keytab",
    "/etc/ssh/ssh_host_ed25519_key",
    "/etc/ssh/ssh_host_rsa_key",
    "/etc/nix/netrc",
    "/var/run/secrets/kubernetes.io/serviceaccount/token",
];

const HERE: usize = libc::AT_FDCWD as usize;

fn holds(bytes: &[u8], nonce: &str) -> bool {
    !nonce.is_empty() && bytes.windows(nonce.len()).any(|window| window == nonce.as_bytes())
}

/// Tries something on the canary's path, which tells whether the canary itself was found there.
fn with_canary(world: &World, attempt: impl FnOnce(PathBuf) -> Result<bool, i32>) -> Finding {
    let Some(folder) = &world.canary else { return Finding::inconclusive("no canary was set up") };
    match attempt(folder.join("canary")) {
        Ok(true) => Finding::reached(folder.display().to_string()),
        Ok(false) => Finding::absent("another file has this path"),
        Err(errno @ (libc::EACCES | libc::EPERM | libc::EROFS)) => Finding::refused(errno).with("the path can be seen"),
        Err(errno) => Finding::refused(errno),
    }
}

/// Whether the host's canary lies below this folder, as it does below the host's root.
fn shows_canary(root: &Path, world: &World) -> bool {
    let Some(canary) = world.canary.as_deref().and_then(|folder| folder.strip_prefix("/").ok()) else { return false };
    calls::contents(root.join(canary).join("canary"), 4096).is_ok_and(|bytes| holds(&bytes, &world.nonce))
}

fn old_root(world: &World) -> Finding {
    let mounts = match files::mounts() {
        Ok(mounts) => mounts,
        Err(errno) => return Finding::inconclusive(format!("no table of mounts: {}", name_of(errno))),
    };
    const USUAL: [&str; 10] = [
        "/oldroot",
        "/.oldroot",
        "/old_root",
        "/.old_root",
        "/put_old",
        "/.put_old",
        "/.pivot_root",
        "/host",
        "/rootfs",
        "/.host",
    ];
    let mut places: Vec<&str> = mounts.iter().map(|mount| mount.point.as_str()).chain(USUAL).collect();
    places.sort_unstable();
    places.dedup();
    let found: Vec<String> = places
        .into_iter()
        .filter(|place| shows_canary(Path::new(place), world) || (*place != "/" && looks_like_a_root(Path::new(place))))
        .map(str::to_owned)
        .collect();
    match (found.is_empty(), &world.canary) {
        (false, _) => Finding::reached(found.join(" ")),
        (true, Some(_)) => Finding::absent(format!("none among {} mounts", mounts.len())),
        (true, None) => Finding::inconclusive("no mount looks like a root, but no canary was set up to be sure"),
    }
}

/// A folder with most of what the top of a system has.
fn looks_like_a_root(folder: &Path) -> bool {
    ["bin", "dev", "etc", "proc", "root", "usr", "var"].iter().filter(|name| folder.join(name).exists()).count() >= 5
}

/// Goes up until it goes no further: what identifies the folder where it ends.
fn top_above(folder: i32) -> Result<(u64, u64), i32> {
    let mut current = folder;
    let mut before = None;
    for _ in 0..128 {
        let found = identity_of(current)?;
        let ends = before == Some(found);
        before = Some(found);
        let up = calls::raw(libc::SYS_openat, &[current as usize, c"..".as_ptr() as usize, libc::O_PATH as usize]);
        if current != folder {
            calls::close(current);
        }
        current = up? as i32;
        if ends {
            calls::close(current);
            return Ok(found);
        }
    }
    calls::close(current);
    Err(libc::ELOOP)
}

fn identity_of(descriptor: i32) -> Result<(u64, u64), i32> {
    let mut words = [0_u8; 256];
    calls::raw(
        libc::SYS_statx,
        &[
            descriptor as usize,
            c"".as_ptr() as usize,
            libc::AT_EMPTY_PATH as usize,
            libc::STATX_INO as usize,
            words.as_mut_ptr() as usize,
        ],
    )?;
    // struct statx: the inode number at 32, major and minor of the device at 136 and 140.
    let word = |at: usize| u32::from_ne_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
    Ok((u64::from(word(136)) << 32 | u64::from(word(140)), u64::from(word(32)) | u64::from(word(36)) << 32))
}

fn above(_: &World) -> Finding {
    let mut bytes = [0_u8; 4096];
    let here = match calls::raw(libc::SYS_getcwd, &[bytes.as_mut_ptr() as usize, bytes.len()]) {
        Ok(length) => String::from_utf8_lossy(&bytes[..(length as usize).saturating_sub(1)]).into_owned(),
        Err(errno) => name_of(errno),
    };
    let Ok(root) = calls::open("/", libc::O_PATH, 0).and_then(identity_of) else {
        return Finding::inconclusive("the root cannot be looked at");
    };
    let mut open = Vec::new();
    if here.starts_with("(unreachable)") {
        open.push(format!("the working directory is {here}"));
    }
    let is_open =
        |descriptor: &i32| calls::raw(libc::SYS_fcntl, &[*descriptor as usize, libc::F_GETFD as usize]).is_ok();
    let mut folders: Vec<(String, i32)> =
        (0..4096).filter(is_open).map(|descriptor| (format!("descriptor {descriptor}"), descriptor)).collect();
    folders
        .extend(calls::open(".", libc::O_PATH, 0).map(|descriptor| ("the working directory".to_owned(), descriptor)));
    let mut tried = 0;
    for (name, descriptor) in folders {
        // Those that are no folders have nothing above.
        if let Ok(top) = top_above(descriptor) {
            tried += 1;
            if top != root {
                open.push(format!("{name} leads to another root"));
            }
        }
    }
    if open.is_empty() {
        Finding::held(format!("{tried} folders, all below the root; in {here}"))
    } else {
        Finding::reached(open.join(", "))
    }
}

fn break_out(world: &World) -> Finding {
    let scratch = match Scratch::new(world) {
        Ok(scratch) => scratch,
        Err(finding) => return finding,
    };
    let (Ok(kept), Ok(before)) = (calls::open("/", libc::O_PATH, 0), files::identity("/")) else {
        return Finding::inconclusive("the root cannot be looked at");
    };
    let below = calls::c_path(scratch.folder());
    // In a process of its own, so that the scratch folder can be removed by its path afterwards.
    let outcome = calls::in_child(|| {
        if let Err(errno) = calls::raw(libc::SYS_chroot, &[below.as_ptr() as usize]) {
            return errno;
        }
        match top_above(kept) {
            Ok(top) if Ok(top) != identity_of(kept) => 0,
            Ok(_) => 255,
            Err(errno) => errno,
        }
    });
    match outcome {
        Ok(Some(0)) => Finding::reached(format!("above the root, which is inode {}", before.1)),
        Ok(Some(255)) => Finding::held("it ends at the same root"),
        Ok(Some(errno)) => Finding::refused(errno),
        Ok(None) => Finding::refused(libc::EPERM).with("killed"),
        Err(errno) => Finding::inconclusive(format!("no process: {}", name_of(errno))),
    }
}

fn other_roots(world: &World) -> Finding {
    let own = files::identity("/");
    let myself = std::process::id().to_string();
    let others = files::names("/proc").unwrap_or_default();
    let others = others.iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && **name != myself);
    let links: Vec<String> =
        others.take(500).flat_map(|process| ["root", "cwd"].map(|link| format!("/proc/{process}/{link}"))).collect();
    let found = |link: &str| {
        // With the slash the link is followed, and what stops it is told.
        let there = PathBuf::from(format!("{link}/"));
        if shows_canary(&there, world) {
            return Finding::reached("the host's canary");
        }
        match files::identity(&there) {
            Err(errno) => Finding::refused(errno),
            Ok(other) if link.ends_with("root") && Ok(other) != own => Finding::reached("a root that is not ours"),
            Ok(_) => Finding::held("our own"),
        }
    };
    let findings: Vec<(String, Finding)> = links.iter().map(|link| (link.clone(), found(link))).collect();
    let reached: Vec<String> = findings
        .iter()
        .filter(|(_, finding)| finding.verdict == Verdict::Reached)
        .map(|(link, finding)| format!("{link} ({})", finding.detail))
        .collect();
    match reached.first() {
        Some(first) => Finding::reached(format!("{first}, {} in all", reached.len())),
        None => Finding::worst(findings.into_iter().take(6)),
    }
}

/// A handle as the kernel gives it: `struct file_handle`, with room for 128 bytes.
fn handle(path: impl AsRef<Path>) -> Result<[u8; 136], i32> {
    let path = calls::c_path(path);
    let mut handle = [0_u8; 136];
    handle[..4].copy_from_slice(&128_u32.to_ne_bytes());
    let mut mount = 0_i32;
    calls::raw(
        libc::SYS_name_to_handle_at,
        &[
            HERE,
            path.as_ptr() as usize,
            handle.as_mut_ptr() as usize,
            &raw mut mount as usize,
            libc::AT_SYMLINK_FOLLOW as usize,
        ],
    )?;
    Ok(handle)
}

fn open_by_handle(world: &World) -> Finding {
    // Handle of the root of an ext4 disk (inode 2): for where the real ones cannot be asked for.
    let mut made_up = [0_u8; 136];
    made_up[..4].copy_from_slice(&8_u32.to_ne_bytes());
    made_up[4..8].copy_from_slice(&1_u32.to_ne_bytes());
    made_up[8..12].copy_from_slice(&2_u32.to_ne_bytes());
    let paths = ["/proc/self/exe".into(), PathBuf::from("/")].into_iter().chain(world.input.clone());
    Finding::worst(paths.flat_map(|path| {
        let Ok(anchor) = calls::open(&path, libc::O_RDONLY, 0) else {
            return vec![(path.display().to_string(), Finding::inconclusive("it cannot be opened"))];
        };
        let open = |handle: &[u8; 136]| {
            calls::raw(
                libc::SYS_open_by_handle_at,
                &[anchor as usize, handle.as_ptr() as usize, libc::O_RDONLY as usize | libc::O_CLOEXEC as usize],
            )
        };
        let mut attempts = Vec::new();
        if let Ok(handle) = handle(&path) {
            attempts.push((path.display().to_string(), Finding::of(open(&handle))));
        }
        // ESTALE: no such file, which is looked up only after the permission is checked.
        attempts.push((format!("{} (made up)", path.display()), Finding::past(open(&made_up), &[libc::ESTALE])));
        attempts
    }))
}

fn shared_folders(world: &World) -> Finding {
    if world.nonce.is_empty() || (world.canary.is_none() && world.shared_memory_file.is_none()) {
        return Finding::inconclusive("nothing was left in them outside");
    }
    let (mut found, mut seen) = (Vec::new(), 0);
    for folder in ["/tmp", "/var/tmp", "/dev/shm"] {
        let names = files::names(folder).unwrap_or_default();
        seen += names.len();
        found.extend(
            names.into_iter().filter(|name| name.contains(&world.nonce)).map(|name| format!("{folder}/{name}")),
        );
    }
    if found.is_empty() {
        Finding::absent(format!("{seen} names, none of them this run's"))
    } else {
        Finding::reached(found.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(folder: &Path) -> World {
        World {
            nonce: "n0nce".into(),
            canary: Some(folder.into()),
            scratch: Some(std::env::temp_dir()),
            ..World::default()
        }
    }

    #[test]
    fn the_canary_is_known_by_its_nonce() {
        let scratch = Scratch::new(&world(Path::new("/"))).expect("a folder");
        let world = world(scratch.folder());
        let read = PROBES.iter().find(|probe| probe.id == "fs.canary.read").expect("there");
        assert_eq!((read.run)(&world).verdict, Verdict::Absent);
        std::fs::write(scratch.path("canary"), "somebody else's").expect("writable");
        assert_eq!((read.run)(&world).verdict, Verdict::Absent);
        std::fs::write(scratch.path("canary"), "the n0nce of this run").expect("writable");
        assert_eq!((read.run)(&world).verdict, Verdict::Reached);
        assert_eq!((read.run)(&World::default()).verdict, Verdict::Inconclusive);
    }

    #[test]
    fn writing_the_canary_leaves_it_as_it_was() {
        let scratch = Scratch::new(&world(Path::new("/"))).expect("a folder");
        std::fs::write(scratch.path("canary"), "the n0nce of this run").expect("writable");
        let write = PROBES.iter().find(|probe| probe.id == "fs.canary.write").expect("there");
        assert_eq!((write.run)(&world(scratch.folder())).verdict, Verdict::Reached);
        assert_eq!(std::fs::read(scratch.path("canary")).expect("readable"), b"the n0nce of this run");
    }

    #[test]
    fn going_up_ends_at_the_root() {
        let folder = calls::open(std::env::temp_dir(), libc::O_PATH, 0).expect("a folder");
        let root = calls::open("/", libc::O_PATH, 0).and_then(identity_of).expect("a root");
        assert_eq!(top_above(folder), Ok(root));
    }
}
