//! Copies of trees: whole files shared where the file system can, holes kept.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, SeekFrom, Timestamps, copy_file_range, fchmod, fstat, ftruncate, futimens,
    ioctl_ficlone, mkdirat, openat, readlinkat, seek, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::descent::{DIRECTORY, Descent, Entry, entries, open_directory, open_handle, procfs_name};
use super::{TreeError, single_name};
use crate::nar::kind_in_words;

/// Copies the tree `name` in `from` to `new_name` in `to`, which must not exist. Modes (without set-id and sticky bits)
/// and modification times are kept; owners, extended attributes and hard links are not.
///
/// Contents are shared with the original where the file system can (`FICLONE`), and copied by the kernel otherwise; holes
/// stay holes. The original may be an enemy's work.
///
/// # Errors
/// Something that is neither file, directory nor symlink; `new_name` exists; what the kernel says. What was copied until
/// then is removed.
pub fn copy(from: BorrowedFd<'_>, name: &OsStr, to: BorrowedFd<'_>, new_name: &OsStr) -> Result<(), TreeError> {
    copy_or_remove(from, name, to, new_name, None)
}

/// As [`copy`], for a tree that is only to be looked at: what can be neither kept nor read is left out, and is the answer. The original
/// is opened up where its owner has shut it.
///
/// # Errors
/// `new_name` exists; what the kernel says. What was copied until then is removed.
pub fn salvage(
    from: BorrowedFd<'_>,
    name: &OsStr,
    to: BorrowedFd<'_>,
    new_name: &OsStr,
) -> Result<Vec<String>, TreeError> {
    let mut left_out = Vec::new();
    copy_or_remove(from, name, to, new_name, Some(&mut left_out))?;
    Ok(left_out)
}

fn copy_or_remove(
    from: BorrowedFd<'_>,
    name: &OsStr,
    to: BorrowedFd<'_>,
    new_name: &OsStr,
    left_out: Option<&mut Vec<String>>,
) -> Result<(), TreeError> {
    let mut made = false;
    let result = copy_nodes(from, name, to, new_name, &mut made, left_out);
    if result.is_err() && made {
        // The first error is the one to report.
        let _ = super::remove(to, new_name);
    }
    result
}

struct Level {
    listed: std::vec::IntoIter<Entry>,
    mode: Mode,
    times: Timestamps,
}

fn copy_nodes(
    from: BorrowedFd<'_>,
    name: &OsStr,
    to: BorrowedFd<'_>,
    new_name: &OsStr,
    made: &mut bool,
    mut left_out: Option<&mut Vec<String>>,
) -> Result<(), TreeError> {
    let (name, new_name) = (single_name(name)?, single_name(new_name)?);
    let mut source: Descent<Level> = Descent::new();
    let mut target: Descent<()> = Descent::new();
    let mut next = Some(name);
    loop {
        if let Some(name) = next.take() {
            let new_name = if source.depth() == 0 { new_name.clone() } else { name.clone() };
            let (here, there) = (source.current().unwrap_or(from), target.current().unwrap_or(to));
            let node = Node { walk: &source, here, there, name: &name, new_name: &new_name };
            let copied = match (node.copy(made, left_out.is_some()), &mut left_out) {
                (Err(TreeError::Kind { path, kind }), Some(left_out)) => {
                    left_out.push(format!("‘{path}’, {kind}"));
                    None
                }
                (copied, _) => copied?,
            };
            if let Some((original, copied, level)) = copied {
                source.enter(original, name, level).map_err(TreeError::lost)?;
                target.enter(copied, new_name, ()).map_err(TreeError::lost)?;
            }
        }
        let Some(level) = source.state() else { return Ok(()) };
        if let Some(entry) = level.listed.next() {
            next = Some(entry.name);
            continue;
        }
        let level = source.leave().map_err(TreeError::lost)?;
        let copied = target.leave().map_err(TreeError::lost)?;
        if let (Some((_, name, level)), Some((copied, ..))) = (level, copied) {
            fchmod(&copied, level.mode)
                .and_then(|()| futimens(&copied, &level.times))
                .map_err(|errno| TreeError::system("finish the copy of", source.shown(&name), errno))?;
        }
    }
}

struct Node<'a> {
    walk: &'a Descent<Level>,
    here: BorrowedFd<'a>,
    there: BorrowedFd<'a>,
    name: &'a CStr,
    new_name: &'a CStr,
}

impl Node<'_> {
    fn failed(&self, doing: &'static str) -> impl Fn(Errno) -> TreeError {
        move |errno| TreeError::system(doing, self.walk.shown(self.name), errno)
    }

    /// Copies a node: a whole one if it is a file or a symlink. A directory is only begun, and both are given back.
    fn copy(&self, made: &mut bool, open_up: bool) -> Result<Option<(OwnedFd, OwnedFd, Level)>, TreeError> {
        let handle = open_handle(self.here, self.name).map_err(self.failed("examine"))?;
        let stat = fstat(&handle).map_err(self.failed("examine"))?;
        let times = Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT as _ },
            last_modification: rustix::fs::Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
        };
        let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if open_up && matches!(kind, FileType::Directory | FileType::RegularFile) && stat.st_mode & 0o500 != 0o500 {
            // Its owner may; where it is somebody else's, opening it says what is wrong.
            let _ = rustix::fs::chmod(procfs_name(handle.as_fd()), Mode::RWXU);
        }
        match kind {
            FileType::Directory => {
                let original = open_directory(self.here, self.name).map_err(self.failed("open the directory"))?;
                let listed = entries(original.as_fd())
                    .map_err(|error| TreeError::system("list the directory", self.walk.shown(self.name), error))?;
                mkdirat(self.there, self.new_name, Mode::RWXU).map_err(self.failed("make a copy of"))?;
                *made = true;
                let copied = openat(self.there, self.new_name, DIRECTORY, Mode::empty())
                    .map_err(self.failed("open the copy of"))?;
                Ok(Some((original, copied, Level { listed: listed.into_iter(), mode, times })))
            }
            FileType::Symlink => {
                let target = readlinkat(&handle, c"", Vec::new()).map_err(self.failed("read the symlink"))?;
                symlinkat(&target, self.there, self.new_name).map_err(self.failed("make a copy of"))?;
                *made = true;
                utimensat(self.there, self.new_name, &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(self.failed("set the time of the copy of"))?;
                Ok(None)
            }
            FileType::RegularFile => {
                // The held file itself, whatever its name leads to by now.
                let original =
                    rustix::fs::open(procfs_name(handle.as_fd()), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                        .map_err(self.failed("open"))?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let copied = openat(self.there, self.new_name, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(self.failed("make a copy of"))?;
                *made = true;
                contents(&original, &copied, stat.st_size as u64).map_err(self.failed("copy"))?;
                fchmod(&copied, mode)
                    .and_then(|()| futimens(&copied, &times))
                    .map_err(self.failed("finish the copy of"))?;
                Ok(None)
            }
            kind => Err(TreeError::Kind { path: self.walk.shown(self.name), kind: kind_in_words(kind) }),
        }
    }
}

fn contents(original: &OwnedFd, copied: &OwnedFd, size: u64) -> rustix::io::Result<()> {
    if size == 0 || ioctl_ficlone(copied, original).is_ok() {
        return Ok(());
    }
    let mut position = 0;
    while position < size {
        let (from, to) = match seek(original, SeekFrom::Data(position)) {
            Ok(from) => (from, seek(original, SeekFrom::Hole(from))?.min(size)),
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            // Not every file system knows its holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => (position, size),
            Err(errno) => return Err(errno),
        };
        range(original, copied, from, to)?;
        position = to;
    }
    ftruncate(copied, size)
}

/// Copies what lies between two places, by the kernel alone if it can.
fn range(original: &OwnedFd, copied: &OwnedFd, from: u64, to: u64) -> rustix::io::Result<()> {
    let (mut read, mut written) = (from, from);
    while read < to {
        let count = usize::try_from(to - read).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(original, Some(&mut read), copied, Some(&mut written), count) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return by_buffer(original, copied, read, to);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn by_buffer(original: &OwnedFd, copied: &OwnedFd, mut at: u64, to: u64) -> rustix::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    while at < to {
        let wanted = usize::try_from(to - at).unwrap_or(usize::MAX).min(buffer.len());
        let count = match rustix::io::pread(original, &mut buffer[..wanted], at) {
            Ok(0) => return Ok(()),
            Err(Errno::INTR) => continue,
            answer => answer?,
        };
        let mut done = 0;
        while done < count {
            match rustix::io::pwrite(copied, &buffer[done..count], at + done as u64) {
                Err(Errno::INTR) => {}
                answer => done += answer?,
            }
        }
        at += count as u64;
    }
    Ok(())
}
