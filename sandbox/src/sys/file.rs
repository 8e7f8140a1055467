//! Files and directories by descriptor, never through a symbolic link.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, mkdirat};

use super::Result;

/// See [`super::Sys::open_dir`].
pub fn open_dir(dir: BorrowedFd<'_>, name: &Path) -> Result<OwnedFd> {
    openat(dir, name, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// See [`super::Sys::mkdir`].
pub fn mkdir(dir: BorrowedFd<'_>, name: &Path, mode: u32) -> Result<()> {
    // The launcher's umask is its caller's: make the directory closed, then open it to exactly what was asked.
    mkdirat(dir, name, Mode::from_bits_truncate(mode & 0o777))?;
    // The room is made under umask 022, so modes without group and other write bits are right already.
    if mode & !0o755 != 0 {
        fchmodat(dir, name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?;
    }
    Ok(())
}

/// See [`super::Sys::create_file`].
pub fn create(dir: BorrowedFd<'_>, name: &Path, content: &[u8], mode: u32) -> Result<()> {
    let file = openat(
        dir,
        name,
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::from_bits_truncate(mode),
    )?;
    if mode & !0o755 != 0 {
        fchmod(&file, Mode::from_bits_truncate(mode))?;
    }
    write_whole(file.as_fd(), content)
}

/// The id of the mount that a path is on, not following a final link; `None` when there is nothing, or the kernel does not tell
/// (before 5.8).
pub fn mount_id(path: &Path) -> Option<u64> {
    let path = super::c_path(path).ok()?;
    // SAFETY: statx is plain integers; all zeroes is a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: the path is NUL-terminated and only read, `found` is valid for writing for the length of the call.
    let answer = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_MNT_ID, &raw mut found) };
    (answer == 0 && found.stx_mask & libc::STATX_MNT_ID != 0).then_some(found.stx_mnt_id)
}

/// A file of procfs, whole. These files say that they are empty, so the standard library reads them by a few bytes at a time, and each
/// read(2) may walk a table from its beginning.
///
/// # Errors
/// The kernel's.
pub fn read_proc(path: impl AsRef<Path>) -> std::io::Result<String> {
    use std::io::Read;
    let mut file = std::fs::File::open(path)?;
    let mut bytes = vec![0; 4096];
    let mut length = 0;
    loop {
        if length == bytes.len() {
            bytes.resize(4 * length, 0);
        }
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(std::io::Error::other)
}

/// See [`super::Sys::device_number`].
pub fn device_number(fd: BorrowedFd<'_>) -> Result<Option<(u32, u32)>> {
    let found = nix::sys::stat::fstat(fd)?;
    if found.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFCHR.bits() {
        return Ok(None);
    }
    Ok(Some((nix::sys::stat::major(found.st_rdev) as u32, nix::sys::stat::minor(found.st_rdev) as u32)))
}

/// Writes an existing file in one write(2), as kernel files need it; never creates one.
pub fn write_existing(path: &Path, content: &[u8]) -> Result<()> {
    let file = nix::fcntl::open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    write_whole(file.as_fd(), content)
}

/// Writes all of `content`.
pub fn write_whole(fd: BorrowedFd<'_>, content: &[u8]) -> Result<()> {
    let mut rest = content;
    while !rest.is_empty() {
        match nix::unistd::write(fd, rest) {
            Ok(0) => return Err(Errno::EIO),
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Writes `content` to a new file at `path` (replacing an old one by rename would lose its owner; reports are plain files).
pub fn write_report(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(content)
}

/// Takes ownership of a descriptor that has just come with a message (`SCM_RIGHTS`).
pub fn adopt_received(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel has installed this descriptor for this message alone, and the caller takes each number once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Whether a file has an extended attribute of this name, whatever its value (getxattr(2)).
pub fn has_attribute(path: &Path, name: &std::ffi::CStr) -> bool {
    let Ok(path) = super::c_path(path) else { return false };
    // SAFETY: both names are NUL-terminated and outlive the call; with a size of zero nothing is written.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    length > 0
}
