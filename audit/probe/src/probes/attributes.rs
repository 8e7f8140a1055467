//! Extended attributes and inode flags: what no archive of a store can hold, and what makes files differ or stay.

use anchorhold_probe::verdict::{Finding, name_of};
use anchorhold_probe::world::World;

use crate::calls::{self, LowMemory};
use crate::files::Scratch;
use crate::probe::{Control, Order, Probe, Severity};
use crate::ring;

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    attribute("xattr.user", "User attributes can be set", |world| {
        on_file(world, &|path, file| Finding::worst(classic(path, file, c"user.anchorhold", b"probe")))
    }),
    attribute("xattr.acl", "Access control lists can be set", |world| {
        on_file(world, &|path, file| Finding::worst(classic(path, file, c"system.posix_acl_access", &ACL)))
    }),
    Probe {
        root: true,
        severity: Severity::Medium,
        tries: "Sets a file capability (security.capability) on a file of its own, by three calls.",
        safe: "EPERM or EOPNOTSUPP",
        meaning: "A program with file capabilities is a set-id program under another name.",
        controls: &[Control::HostRoot],
        ..attribute("xattr.fscaps", "File capabilities can be set", |world| {
            on_file(world, &|path, file| Finding::worst(classic(path, file, c"security.capability", &CAPABILITY)))
        })
    },
    attribute("xattr.remove", "Attributes can be removed", |world| {
        on_file(world, &|path, file| {
            let name = c"user.anchorhold".as_ptr() as usize;
            Finding::worst(
                [
                    ("removexattr", calls::raw(libc::SYS_removexattr, &[path, name])),
                    ("lremovexattr", calls::raw(libc::SYS_lremovexattr, &[path, name])),
                    ("fremovexattr", calls::raw(libc::SYS_fremovexattr, &[file, name])),
                ]
                .map(|(call, result)| (call.to_owned(), Finding::past(result, &[libc::ENODATA]))),
            )
        })
    }),
    attribute("xattr.at", "Attributes can be set by setxattrat", |world| {
        on_file(world, &|path, _| {
            let value = b"probe";
            // struct xattr_args: value, size, flags.
            let arguments = [value.as_ptr() as u64, value.len() as u64];
            let pointer = arguments.as_ptr() as usize;
            let name = c"user.anchorhold".as_ptr() as usize;
            Finding::of(calls::raw(SETXATTRAT, &[HERE, path, 0, name, pointer, size_of_val(&arguments)]))
        })
    }),
    attribute("xattr.at.remove", "Attributes can be removed by removexattrat", |world| {
        on_file(world, &|path, _| {
            let name = c"user.anchorhold".as_ptr() as usize;
            Finding::past(calls::raw(REMOVEXATTRAT, &[HERE, path, 0, name]), &[libc::ENODATA])
        })
    }),
    attribute("xattr.uring", "Attributes can be set by io_uring", |world| {
        on_file(world, &|_, file| {
            const FSETXATTR: u8 = 41;
            let value = b"probe";
            let operation = ring::Operation {
                opcode: FSETXATTR,
                descriptor: file as i32,
                offset: value.as_ptr() as u64,
                address: c"user.anchorhold".as_ptr() as u64,
                length: value.len() as u32,
                ..ring::Operation::default()
            };
            Finding::of(operation.perform())
        })
    }),
    attribute("xattr.int80", "Attributes can be set by the i386 entry", |world| {
        on_file(world, &|_, file| {
            let (Ok(name), Ok(value)) = (LowMemory::holding(b"user.anchorhold\0"), LowMemory::holding(b"probe")) else {
                return Finding::absent("no i386 entry");
            };
            // fsetxattr(2) of asm/unistd_32.h.
            Finding::of(calls::int80(228, [file as u32, name.pointer(), value.pointer(), 5, 0]))
        })
    }),
    Probe::fact(
        "xattr.read",
        "Attributes of files that the host made",
        "Lists attributes of /, of an input and of its own program, by the classic calls and by listxattrat.",
        "Labels of the host (SELinux, NFS access lists) make builds differ from host to host.",
        read,
    ),
    Probe {
        id: "attr.flags",
        title: "Inode flags can be set",
        severity: Severity::Medium,
        reference: "ioctl_iflags(2)",
        tries: "Reads the flags of a file of its own and writes the same back (FS_IOC_SETFLAGS).",
        safe: "ENOTTY, as on a file system without them",
        meaning: "Immutable and append-only files cannot be cleaned away by whoever comes after, and flags such as no-copy-on-write \
                  or compression are carried into outputs that no archive can describe.",
        controls: &[Control::Seccomp, Control::Host],
        order: Order::Any,
        root: false,
        run: |world| on_file(world, &|_, file| flags(file, SETFLAGS)),
    },
    Probe {
        id: "attr.flags.high",
        title: "Inode flags can be set with the upper half of the command filled",
        reference: "CVE-2019-10063 (the same of TIOCSTI)",
        tries: "The same with a bit set in the upper half of the command, which the kernel does not look at.",
        run: |world| on_file(world, &|_, file| flags(file, SETFLAGS | 1 << 40)),
        ..FLAGS_BY_OTHER_WAYS
    },
    Probe {
        id: "attr.int80",
        title: "Inode flags can be set by the i386 entry",
        tries: "The same by int 0x80, where the commands have other numbers.",
        run: |world| {
            on_file(world, &|_, file| {
                let Ok(word) = LowMemory::holding(&[0; 4]) else { return Finding::absent("no i386 entry") };
                // ioctl(2) of asm/unistd_32.h; FS_IOC32_GETFLAGS and FS_IOC32_SETFLAGS.
                if let Err(errno) = calls::int80(54, [file as u32, 0x8004_6601, word.pointer(), 0, 0]) {
                    return unreadable(errno);
                }
                Finding::of(calls::int80(54, [file as u32, 0x4004_6602, word.pointer(), 0, 0]))
            })
        },
        ..FLAGS_BY_OTHER_WAYS
    },
    Probe {
        id: "attr.xflags",
        title: "Extended inode flags and project ids can be set",
        reference: "ioctl_xfs_fsgetxattr(2)",
        tries: "Reads the extended flags of a file of its own and writes the same back (FS_IOC_FSSETXATTR).",
        meaning: "As with inode flags; and a file whose project id is another's counts against another's quota.",
        run: |world| {
            on_file(world, &|_, file| {
                // struct fsxattr is 28 bytes.
                let mut words = [0_u32; 7];
                match ioctl(file, 0x801c_581f, words.as_mut_ptr() as usize) {
                    Err(errno) => unreadable(errno),
                    Ok(_) => Finding::of(ioctl(file, 0x401c_5820, words.as_ptr() as usize)),
                }
            })
        },
        ..FLAGS_BY_OTHER_WAYS
    },
    Probe {
        id: "attr.file_setattr",
        title: "Inode flags can be set by file_setattr",
        reference: "file_setattr(2), Linux 6.17",
        tries: "Reads the attributes of a file of its own and writes the same back, by the calls of Linux 6.17.",
        safe: "ENOSYS",
        run: |world| {
            on_file(world, &|path, _| {
                // struct file_attr is 24 bytes.
                let mut words = [0_u64; 3];
                let size = size_of_val(&words);
                let _ = calls::raw(FILE_GETATTR, &[HERE, path, words.as_mut_ptr() as usize, size, 0]);
                Finding::of(calls::raw(FILE_SETATTR, &[HERE, path, words.as_ptr() as usize, size, 0]))
            })
        },
        ..FLAGS_BY_OTHER_WAYS
    },
    Probe {
        id: "attr.subvolume",
        title: "Subvolumes that nobody can remove can be made",
        reference: "btrfs-subvolume(8)",
        tries: "Makes a subvolume in a folder of its own, on btrfs, sets it read-only, and takes both back.",
        meaning: "What is in a read-only subvolume cannot be removed, not even by root, until somebody thinks of making it writable: \
                  build folders and failed outputs stay for ever. It also counts for itself against quotas.",
        run: |world| subvolume(world, &|file, command, argument| ioctl(file, command, argument.as_ptr() as usize)),
        controls: &[Control::Btrfs],
        ..FLAGS_BY_OTHER_WAYS
    },
    Probe {
        id: "attr.subvolume.int80",
        title: "Such subvolumes can be made by the i386 entry",
        reference: "btrfs-subvolume(8)",
        tries: "The same by int 0x80.",
        meaning: "What is in a read-only subvolume cannot be removed, not even by root, until somebody thinks of making it writable.",
        run: |world| {
            subvolume(world, &|file, command, argument| {
                let argument = LowMemory::holding(argument)?;
                calls::int80(54, [file as u32, command as u32, argument.pointer(), 0, 0])
            })
        },
        controls: &[Control::Btrfs],
        ..FLAGS_BY_OTHER_WAYS
    },
];

/// What the other ways to set inode flags share.
const FLAGS_BY_OTHER_WAYS: Probe = Probe {
    id: "",
    title: "",
    severity: Severity::Medium,
    reference: "ioctl_iflags(2)",
    tries: "",
    safe: "ENOTTY, as on a file system without them",
    meaning: "A filter that knows one way to set inode flags and not the others is none: immutable files cannot be cleaned away, and \
              no archive can describe the flags.",
    controls: &[Control::Seccomp, Control::Host],
    order: Order::Any,
    root: false,
    run: |_| Finding::inconclusive("nothing to try"),
};

const fn attribute(id: &'static str, title: &'static str, run: fn(&World) -> Finding) -> Probe {
    Probe {
        id,
        title,
        severity: Severity::Medium,
        reference: "xattr(7); NixOS/nix pull request 15743",
        tries: "Sets a harmless attribute on a file of its own, and removes it with the file.",
        safe: "EOPNOTSUPP, as on a file system without attributes (ENOSYS for calls that a program can do without)",
        meaning: "No archive of a store can hold attributes: outputs behave differently where they were built and where they are copied \
                  to, and access lists give rights that the mode does not show.",
        controls: &[Control::Seccomp, Control::Host],
        order: Order::Any,
        root: false,
        run,
    }
}

const HERE: usize = libc::AT_FDCWD as usize;
/// Of every architecture; Linux 6.13 and 6.17.
const SETXATTRAT: libc::c_long = 463;
const LISTXATTRAT: libc::c_long = 465;
const REMOVEXATTRAT: libc::c_long = 466;
const FILE_GETATTR: libc::c_long = 468;
const FILE_SETATTR: libc::c_long = 469;
/// `FS_IOC_GETFLAGS` and `FS_IOC_SETFLAGS` of 64-bit architectures, linux/fs.h.
const GETFLAGS: u64 = 0x8008_6601;
const SETFLAGS: u64 = 0x4008_6602;

/// The list that says the same as mode 0644, linux/posix_acl_xattr.h: version 2; then tag, permissions and no id for owner,
/// group and others.
const ACL: [u8; 28] = [
    2, 0, 0, 0, 0x01, 0, 6, 0, 255, 255, 255, 255, 0x04, 0, 4, 0, 255, 255, 255, 255, 0x20, 0, 4, 0, 255, 255, 255, 255,
];

/// `struct vfs_cap_data`, second version: CAP_CHOWN permitted. On a file that is not executable.
const CAPABILITY: [u8; 20] = [0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Runs the attempt on a new file: its path as a pointer, and a descriptor.
fn on_file(world: &World, attempt: &dyn Fn(usize, usize) -> Finding) -> Finding {
    let scratch = match Scratch::new(world) {
        Ok(scratch) => scratch,
        Err(finding) => return finding,
    };
    let path = match scratch.file("file") {
        Ok(path) => path,
        Err(finding) => return finding,
    };
    match calls::open(&path, libc::O_RDWR, 0) {
        Ok(file) => {
            let path = calls::c_path(path);
            attempt(path.as_ptr() as usize, file as usize)
        }
        Err(errno) => Finding::inconclusive(format!("no file: {}", name_of(errno))),
    }
}

/// The three classic calls that set an attribute.
fn classic(path: usize, file: usize, name: &std::ffi::CStr, value: &[u8]) -> [(String, Finding); 3] {
    let set =
        |number, target| calls::raw(number, &[target, name.as_ptr() as usize, value.as_ptr() as usize, value.len(), 0]);
    [
        ("setxattr", set(libc::SYS_setxattr, path)),
        ("lsetxattr", set(libc::SYS_lsetxattr, path)),
        ("fsetxattr", set(libc::SYS_fsetxattr, file)),
    ]
    .map(|(call, result)| (call.to_owned(), Finding::of(result)))
}

fn ioctl(file: usize, command: u64, argument: usize) -> Result<i64, i32> {
    calls::raw(libc::SYS_ioctl, &[file, command as usize, argument])
}

/// Writes back the flags that were read.
fn flags(file: usize, command: u64) -> Finding {
    let mut word = 0_u64;
    match ioctl(file, GETFLAGS, &raw mut word as usize) {
        Err(errno) => unreadable(errno),
        Ok(_) => Finding::of(ioctl(file, command, &raw const word as usize)),
    }
}

/// ioctl(2) by one entry of the kernel: descriptor, command, and the argument's bytes.
type Entry = dyn Fn(usize, u64, &[u8]) -> Result<i64, i32>;

/// Makes a subvolume of btrfs and sets it read-only, by one entry of the kernel or another.
fn subvolume(world: &World, ioctl: &Entry) -> Finding {
    // BTRFS_IOC_SUBVOL_CREATE, whose structure holds the name from its eighth byte on, and BTRFS_IOC_SUBVOL_SETFLAGS.
    const CREATE: u64 = 0x5000_940e;
    const SET_FLAGS: u64 = 0x4008_941a;
    const READ_ONLY: u64 = 2;
    let scratch = match Scratch::new(world) {
        Ok(scratch) => scratch,
        Err(finding) => return finding,
    };
    let Ok(folder) = calls::open(scratch.folder(), libc::O_RDONLY, 0) else {
        return Finding::inconclusive("no folder");
    };
    let mut create = [0; 4096];
    create[8..11].copy_from_slice(b"sub");
    if let Err(errno) = ioctl(folder as usize, CREATE, &create) {
        return Finding::refused(errno);
    }
    let flags = |flags: u64| {
        let file = calls::open(scratch.path("sub"), libc::O_RDONLY, 0)?;
        let result = ioctl(file as usize, SET_FLAGS, &flags.to_ne_bytes());
        calls::close(file);
        result
    };
    let locked = flags(READ_ONLY);
    let _ = flags(0);
    Finding::reached(if locked.is_ok() { "made and set read-only" } else { "made" })
}

/// What cannot be read cannot be written back: the file system has none, or reading is refused as well.
fn unreadable(errno: i32) -> Finding {
    Finding::refused(errno).with("they cannot be read either")
}

fn read(world: &World) -> Finding {
    let paths = ["/".into(), "/proc/self/exe".into()].into_iter().chain(world.input.clone());
    let words = paths.map(|path| {
        let name = calls::c_path(&path);
        let mut bytes = [0_u8; 4096];
        let buffer = bytes.as_mut_ptr() as usize;
        let classic = calls::raw(libc::SYS_listxattr, &[name.as_ptr() as usize, buffer, bytes.len()]);
        let names = |result: Result<i64, i32>| match result {
            Ok(length) => bytes
                .split(|&byte| byte == 0)
                .take_while(|name| !name.is_empty())
                .take(length as usize)
                .map(|name| String::from_utf8_lossy(name).into_owned())
                .collect::<Vec<_>>()
                .join(" "),
            Err(errno) => name_of(errno),
        };
        let listed = names(classic);
        let at = calls::raw(LISTXATTRAT, &[HERE, name.as_ptr() as usize, 0, buffer, bytes.len()]);
        let at = at.map_or_else(name_of, |length| format!("{length} bytes"));
        format!("{}: listxattr [{listed}], listxattrat [{at}]", path.display())
    });
    Finding::info(words.collect::<Vec<_>>().join("; "))
}
