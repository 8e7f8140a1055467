//! Set-id bits: every way to give a file its mode, by every entry. One way that a filter forgets is enough.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anchorhold_probe::verdict::Finding;
use anchorhold_probe::world::World;

use crate::calls::{self, LowMemory};
use crate::files::{self, Scratch};
use crate::probe::{Control, Order, Probe, Severity};
use crate::ring;

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    change("mode.chmod", "chmod(2) sets set-id bits", |world| {
        by_path(world, true, &|path, mode| native(libc::SYS_chmod, &[path, mode]))
    }),
    change("mode.fchmod", "fchmod(2) sets set-id bits", |world| {
        by_descriptor(world, &|file, mode| native(libc::SYS_fchmod, &[file, mode]))
    }),
    change("mode.fchmodat", "fchmodat(2) sets set-id bits", |world| {
        by_path(world, true, &|path, mode| native(libc::SYS_fchmodat, &[HERE, path, mode]))
    }),
    change("mode.fchmodat2", "fchmodat2(2) sets set-id bits", |world| {
        by_path(world, true, &|path, mode| native(FCHMODAT2, &[HERE, path, mode, 0]))
    }),
    change("mode.fchmodat2.empty", "fchmodat2(2) of a descriptor sets set-id bits", |world| {
        by_descriptor(world, &|file, mode| {
            native(FCHMODAT2, &[file, c"".as_ptr() as usize, mode, libc::AT_EMPTY_PATH as usize])
        })
    }),
    creation("mode.open", "open(2) creates set-id files", |world| {
        by_path(world, false, &|path, mode| native(libc::SYS_open, &[path, CREATE, mode]))
    }),
    creation("mode.openat", "openat(2) creates set-id files", |world| {
        by_path(world, false, &|path, mode| native(libc::SYS_openat, &[HERE, path, CREATE, mode]))
    }),
    creation("mode.openat2", "openat2(2) creates set-id files", |world| {
        by_path(world, false, &|path, mode| {
            let how = [CREATE as u64, mode as u64, 0];
            native(libc::SYS_openat2, &[HERE, path, how.as_ptr() as usize, size_of_val(&how)])
        })
    }),
    creation("mode.creat", "creat(2) creates set-id files", |world| {
        by_path(world, false, &|path, mode| native(libc::SYS_creat, &[path, mode]))
    }),
    creation("mode.tmpfile", "openat(2) with O_TMPFILE creates set-id files", unnamed),
    creation("mode.mknod", "mknod(2) creates set-id files", |world| {
        by_path(world, false, &|path, mode| native(libc::SYS_mknod, &[path, REGULAR | mode]))
    }),
    creation("mode.mknodat", "mknodat(2) creates set-id files", |world| {
        by_path(world, false, &|path, mode| native(libc::SYS_mknodat, &[HERE, path, REGULAR | mode]))
    }),
    creation("mode.uring.openat", "io_uring creates set-id files by openat", |world| {
        by_path(world, false, &|path, mode| {
            const OPENAT: u8 = 18;
            let operation = ring::Operation {
                opcode: OPENAT,
                descriptor: libc::AT_FDCWD,
                address: path as u64,
                length: mode as u32,
                flags: CREATE as u32,
                ..ring::Operation::default()
            };
            operation.perform()
        })
    }),
    creation("mode.uring.openat2", "io_uring creates set-id files by openat2", |world| {
        by_path(world, false, &|path, mode| {
            const OPENAT2: u8 = 28;
            let how = [CREATE as u64, mode as u64, 0];
            let operation = ring::Operation {
                opcode: OPENAT2,
                descriptor: libc::AT_FDCWD,
                offset: how.as_ptr() as u64,
                address: path as u64,
                length: size_of_val(&how) as u32,
                ..ring::Operation::default()
            };
            operation.perform()
        })
    }),
    // Numbers of asm/unistd_32.h.
    foreign("mode.int80.chmod", "the i386 chmod sets set-id bits", |world| {
        by_low_path(world, true, &|path, mode| calls::int80(15, [path, mode, 0, 0, 0]))
    }),
    foreign("mode.int80.fchmod", "the i386 fchmod sets set-id bits", |world| {
        by_descriptor(world, &|file, mode| calls::int80(94, [file as u32, mode as u32, 0, 0, 0]))
    }),
    foreign("mode.int80.fchmodat", "the i386 fchmodat sets set-id bits", |world| {
        by_low_path(world, true, &|path, mode| calls::int80(306, [HERE as u32, path, mode, 0, 0]))
    }),
    foreign("mode.int80.fchmodat2", "the i386 fchmodat2 sets set-id bits", |world| {
        by_low_path(world, true, &|path, mode| calls::int80(452, [HERE as u32, path, mode, 0, 0]))
    }),
    foreign("mode.int80.open", "the i386 open creates set-id files", |world| {
        by_low_path(world, false, &|path, mode| calls::int80(5, [path, CREATE as u32, mode, 0, 0]))
    }),
    foreign("mode.int80.openat", "the i386 openat creates set-id files", |world| {
        by_low_path(world, false, &|path, mode| calls::int80(295, [HERE as u32, path, CREATE as u32, mode, 0]))
    }),
    foreign("mode.int80.openat2", "the i386 openat2 creates set-id files", |world| {
        by_low_path(world, false, &|path, mode| {
            let how: Vec<u8> = [CREATE as u64, u64::from(mode), 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
            let how = LowMemory::holding(&how)?;
            calls::int80(437, [HERE as u32, path, how.pointer(), 24, 0])
        })
    }),
    foreign("mode.int80.creat", "the i386 creat creates set-id files", |world| {
        by_low_path(world, false, &|path, mode| calls::int80(8, [path, mode, 0, 0, 0]))
    }),
    foreign("mode.int80.mknod", "the i386 mknod creates set-id files", |world| {
        by_low_path(world, false, &|path, mode| calls::int80(14, [path, REGULAR as u32 | mode, 0, 0, 0]))
    }),
    foreign("mode.int80.mknodat", "the i386 mknodat creates set-id files", |world| {
        by_low_path(world, false, &|path, mode| calls::int80(297, [HERE as u32, path, REGULAR as u32 | mode, 0, 0]))
    }),
    foreign("mode.x32.chmod", "the x32 chmod sets set-id bits", |world| {
        by_path(world, true, &|path, mode| native(libc::SYS_chmod | X32, &[path, mode]))
    }),
    foreign("mode.x32.open", "the x32 open creates set-id files", |world| {
        by_path(world, false, &|path, mode| native(libc::SYS_open | X32, &[path, CREATE, mode]))
    }),
    Probe {
        severity: Severity::Low,
        reference: "security-probes 3.4",
        tries: "Makes a directory set-group-id and looks whether files and directories made in it inherit group or bit.",
        safe: "EPERM",
        meaning: "Directories hand the bit on to directories made in them, so that it comes back after modes were cleaned.",
        ..change("mode.sgid.inherit", "Directories hand on set-group-id", inherited)
    },
];

const HERE: usize = libc::AT_FDCWD as usize;
const CREATE: usize = (libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_CLOEXEC) as usize;
const REGULAR: usize = libc::S_IFREG as usize;
/// Of every architecture; Linux 6.6.
const FCHMODAT2: libc::c_long = 452;
/// The bit of x32 calls, asm/unistd.h.
const X32: libc::c_long = 0x4000_0000;

/// Set-user-id, set-group-id, and both.
const MODES: [u32; 3] = [0o4755, 0o2755, 0o6755];

const fn change(id: &'static str, title: &'static str, run: fn(&World) -> Finding) -> Probe {
    Probe {
        id,
        title,
        severity: Severity::High,
        reference: "NixOS/nix issue 10424; Nix 1.11.10; CVE-2024-38531",
        tries: "Gives a file of its own mode 4755, 2755 and 6755, and looks what mode it then has.",
        safe: "EPERM (ENOSYS for calls that a program can do without), and no bit on the file",
        meaning: "A build that leaves a set-id file where anybody else can reach it hands its user id to whoever starts \
                  the file: the next build of that user, and everything that it makes, is theirs.",
        controls: &[Control::Seccomp, Control::Host],
        order: Order::Any,
        root: false,
        run,
    }
}

const fn creation(id: &'static str, title: &'static str, run: fn(&World) -> Finding) -> Probe {
    Probe {
        tries: "Creates a file with mode 4755, 2755 and 6755 under umask 0, and looks what mode it then has.",
        ..change(id, title, run)
    }
}

/// The same by an entry that a filter for the native one alone does not see.
const fn foreign(id: &'static str, title: &'static str, run: fn(&World) -> Finding) -> Probe {
    Probe {
        tries: "The same by a foreign entry of the kernel: int 0x80, or x32 numbers.",
        reference: "NixOS/nix issue 10424; seccomp(2), \"Caveats\"",
        ..change(id, title, run)
    }
}

fn native(number: libc::c_long, arguments: &[usize]) -> Result<i64, i32> {
    calls::raw(number, arguments)
}

/// Tries each mode on a path in a scratch folder, at which there is a file if `exists`.
fn each(world: &World, exists: bool, attempt: &dyn Fn(&Path, u32) -> Result<i64, i32>) -> Finding {
    let scratch = match Scratch::new(world) {
        Ok(scratch) => scratch,
        Err(finding) => return finding,
    };
    let _ = calls::raw(libc::SYS_umask, &[0]);
    Finding::worst(MODES.iter().map(|&mode| {
        let name = format!("{mode:o}");
        let path = scratch.path(&name);
        if exists && let Err(finding) = scratch.file(&name) {
            return (name, finding);
        }
        let result = attempt(&path, mode);
        (name, judged(result, files::status(&path).map(|found| found.mode())))
    }))
}

/// Only the mode that the file has afterwards counts: a call that succeeds and drops the bits is safe.
fn judged(result: Result<i64, i32>, mode: Result<u32, i32>) -> Finding {
    match (result, mode) {
        (_, Ok(mode)) if mode & 0o6000 != 0 => Finding::reached(format!("the file has mode {:o}", mode & 0o7777)),
        (Err(errno), _) => Finding::refused(errno),
        (Ok(_), Ok(_)) => Finding::held("the bits were dropped"),
        (Ok(_), Err(errno)) => Finding::inconclusive(format!(
            "the call succeeded, but there is no file: {}",
            anchorhold_probe::verdict::name_of(errno)
        )),
    }
}

fn by_path(world: &World, exists: bool, attempt: &dyn Fn(usize, usize) -> Result<i64, i32>) -> Finding {
    each(world, exists, &|path, mode| {
        let path = calls::c_path(path);
        attempt(path.as_ptr() as usize, mode as usize)
    })
}

fn by_low_path(world: &World, exists: bool, attempt: &dyn Fn(u32, u32) -> Result<i64, i32>) -> Finding {
    each(world, exists, &|path, mode| {
        let path = LowMemory::holding(calls::c_path(path).as_bytes_with_nul())?;
        attempt(path.pointer(), mode)
    })
}

fn by_descriptor(world: &World, attempt: &dyn Fn(usize, usize) -> Result<i64, i32>) -> Finding {
    each(world, true, &|path, mode| {
        let file = calls::open(path, libc::O_RDONLY, 0)?;
        let result = attempt(file as usize, mode as usize);
        calls::close(file);
        result
    })
}

/// A file that never had a name, and then gets one.
fn unnamed(world: &World) -> Finding {
    each(world, false, &|path, mode| {
        let folder = path.parent().unwrap_or(path);
        let file = calls::open(folder, libc::O_TMPFILE | libc::O_WRONLY, mode)?;
        let source = calls::c_path(format!("/proc/self/fd/{file}"));
        let target = calls::c_path(path);
        let follow = libc::AT_SYMLINK_FOLLOW as usize;
        let linked =
            calls::raw(libc::SYS_linkat, &[HERE, source.as_ptr() as usize, HERE, target.as_ptr() as usize, follow]);
        calls::close(file);
        linked
    })
}

fn inherited(world: &World) -> Finding {
    let scratch = match Scratch::new(world) {
        Ok(scratch) => scratch,
        Err(finding) => return finding,
    };
    let folder = calls::c_path(scratch.folder());
    if let Err(errno) = calls::raw(libc::SYS_chmod, &[folder.as_ptr() as usize, 0o2755]) {
        return Finding::refused(errno);
    }
    let inner = scratch.path("inner");
    match std::fs::create_dir(&inner).and_then(|()| std::fs::metadata(&inner)) {
        Ok(found) => judged(Ok(0), Ok(found.mode())),
        Err(error) => Finding::refused(error.raw_os_error().unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anchorhold_probe::verdict::Verdict;

    #[test]
    fn only_the_mode_of_the_file_counts() {
        assert_eq!(judged(Ok(0), Ok(0o100_755)).verdict, Verdict::Refused);
        assert_eq!(judged(Err(libc::EPERM), Ok(0o104_755)).verdict, Verdict::Reached);
        assert_eq!(judged(Err(libc::ENOSYS), Err(libc::ENOENT)).verdict, Verdict::Absent);
        assert_eq!(judged(Ok(3), Err(libc::ENOENT)).verdict, Verdict::Inconclusive);
    }
}
