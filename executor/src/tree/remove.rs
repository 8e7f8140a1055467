//! Removal of trees whose writer may still be at work.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, chmod, fchmod, fstat, openat, unlinkat};
use rustix::io::Errno;

use super::descent::{DIRECTORY, Descent, Entry, entries, open_directory, open_handle, procfs_name};
use super::{TreeError, single_name};

/// How often a directory that is not empty after all is listed again, should somebody fill it at the same time.
const ROUNDS: u32 = 16;

/// Removes `name` in `parent` and all below it. That there is nothing is no error.
///
/// No link is followed and no other file system is entered. Directories without permissions are opened up first, which
/// their owner may do. The depth is not limited, and descriptors are held for a few directories only.
///
/// # Errors
/// What the kernel says; part of the tree may be gone then.
pub fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), TreeError> {
    let name = single_name(name)?;
    let mut walk: Descent<Level> = Descent::new();
    let mut next = unlink(&walk, parent, &name)?.then_some(name);
    loop {
        if let Some(name) = next.take() {
            let (directory, listed) = open(&walk, walk.current().unwrap_or(parent), &name)?;
            let level = Level { listed: listed.into_iter(), rounds: ROUNDS };
            walk.enter(directory, name, level).map_err(TreeError::lost)?;
        }
        let Some(level) = walk.state() else { return Ok(()) };
        if let Some(entry) = level.listed.next() {
            let current = walk.current().unwrap_or(parent);
            if entry.kind == FileType::Directory || unlink(&walk, current, &entry.name)? {
                next = Some(entry.name);
            }
            continue;
        }
        let rounds = level.rounds;
        let Some((_, name, _)) = walk.leave().map_err(TreeError::lost)? else { return Ok(()) };
        let above = walk.current().unwrap_or(parent);
        match unlinkat(above, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY) if rounds > 0 => {
                let (directory, listed) = open(&walk, above, &name)?;
                let level = Level { listed: listed.into_iter(), rounds: rounds - 1 };
                walk.enter(directory, name, level).map_err(TreeError::lost)?;
            }
            Err(errno) => return Err(refused(&walk, &name, errno)),
        }
    }
}

struct Level {
    listed: std::vec::IntoIter<Entry>,
    rounds: u32,
}

/// Removes `name` unless it is a directory; says whether it is one.
fn unlink(walk: &Descent<Level>, parent: BorrowedFd<'_>, name: &CStr) -> Result<bool, TreeError> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(false),
        Err(Errno::ISDIR) => Ok(true),
        Err(errno) => Err(refused(walk, name, errno)),
    }
}

fn refused(walk: &Descent<Level>, name: &CStr, errno: Errno) -> TreeError {
    let hint = match errno {
        Errno::PERM => "; it, or the directory that holds it, may be immutable (lsattr shows it, chattr -ia ends it)",
        Errno::BUSY => "; something is mounted there",
        _ => "",
    };
    TreeError::System { doing: "remove", path: walk.shown(name), source: errno.into(), hint }
}

/// Opens and lists the directory `name`, and sees to it that its entries can be removed.
fn open(walk: &Descent<Level>, parent: BorrowedFd<'_>, name: &CString) -> Result<(OwnedFd, Vec<Entry>), TreeError> {
    let failed = |errno: Errno| {
        let hint = if errno == Errno::XDEV { "; another file system is mounted there" } else { "" };
        TreeError::System { doing: "open the directory", path: walk.shown(name), source: errno.into(), hint }
    };
    let directory = match open_directory(parent, name) {
        Err(Errno::ACCESS) => {
            let handle = open_handle(parent, name).map_err(failed)?;
            // The handle may be of a link by now, but what procfs leads to is the file of the handle itself; the kernel
            // changes no mode of a link.
            chmod(procfs_name(handle.as_fd()), Mode::RWXU).map_err(failed)?;
            openat(&handle, c".", DIRECTORY, Mode::empty()).map_err(failed)?
        }
        answer => answer.map_err(failed)?,
    };
    let stat = fstat(&directory).map_err(failed)?;
    if stat.st_mode & 0o700 != 0o700 {
        fchmod(&directory, Mode::RWXU).map_err(failed)?;
    }
    let listed = entries(directory.as_fd())
        .map_err(|source| TreeError::system("list the directory", walk.shown(name), source))?;
    Ok((directory, listed))
}
