//! The mount calls of Linux 5.2 and 5.12, which crate `nix` does not have: open_tree(2), move_mount(2), mount_setattr(2), and fsopen(2)
//! with its kin.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{Result, c_path};

/// Restrictions of one mount, as bits of `MOUNT_ATTR_*` (`linux/mount.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFlags {
    /// `MOUNT_ATTR_RDONLY`: writing answers EROFS.
    pub read_only: bool,
    /// `MOUNT_ATTR_NOSUID`: set-id bits and file capabilities mean nothing.
    pub nosuid: bool,
    /// `MOUNT_ATTR_NODEV`: device nodes do not open.
    pub nodev: bool,
    /// `MOUNT_ATTR_NOEXEC`: nothing executes.
    pub noexec: bool,
}

impl MountFlags {
    /// Nothing but nosuid and nodev, the least that every mount of a room has.
    pub const PLAIN: Self = Self { read_only: false, nosuid: true, nodev: true, noexec: false };
    /// Plain and read-only.
    pub const READ_ONLY: Self = Self { read_only: true, ..Self::PLAIN };
    /// Plain and nothing executes.
    pub const NO_EXEC: Self = Self { noexec: true, ..Self::PLAIN };
    /// All four.
    pub const SEALED: Self = Self { read_only: true, ..Self::NO_EXEC };
    /// A single device node: it must open, nothing else.
    pub const DEVICE: Self = Self { read_only: true, nosuid: true, nodev: false, noexec: true };

    fn attributes(self) -> u64 {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        bit(self.read_only, libc::MOUNT_ATTR_RDONLY)
            | bit(self.nosuid, libc::MOUNT_ATTR_NOSUID)
            | bit(self.nodev, libc::MOUNT_ATTR_NODEV)
            | bit(self.noexec, libc::MOUNT_ATTR_NOEXEC)
    }

    /// The same restrictions in the words of mount(2).
    // c_ulong has 32 bits elsewhere.
    #[allow(clippy::unnecessary_cast)]
    pub fn classic(self) -> u64 {
        let bit = |on: bool, bit: libc::c_ulong| if on { bit as u64 } else { 0 };
        bit(self.read_only, libc::MS_RDONLY)
            | bit(self.nosuid, libc::MS_NOSUID)
            | bit(self.nodev, libc::MS_NODEV)
            | bit(self.noexec, libc::MS_NOEXEC)
    }

    /// The mount options as mountinfo prints them, for those that are set.
    pub fn words(self) -> Vec<&'static str> {
        let mut words = vec![if self.read_only { "ro" } else { "rw" }];
        words.extend(self.nosuid.then_some("nosuid"));
        words.extend(self.nodev.then_some("nodev"));
        words.extend(self.noexec.then_some("noexec"));
        words
    }
}

/// Propagation of mount events (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// `MS_PRIVATE`: no event comes in or goes out.
    Private,
}

/// See [`super::Sys::open_tree`].
pub fn open_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd> {
    let path = c_path(path)?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_SYMLINK_NOFOLLOW as u32;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH as u32;
    }
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    // SAFETY: `path` is NUL-terminated and outlives the call; the kernel only reads it.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) };
    owned(fd)
}

/// See [`super::Sys::mount_setattr`].
// c_ulong has 32 bits elsewhere.
#[allow(clippy::unnecessary_cast)]
pub fn mount_setattr(
    fd: BorrowedFd<'_>,
    set: MountFlags,
    propagation: Option<Propagation>,
    recursive: bool,
) -> Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set.attributes(),
        attr_clr: 0,
        propagation: match propagation {
            Some(Propagation::Private) => libc::MS_PRIVATE as u64,
            None => 0,
        },
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the empty path is a literal; `attributes` has the size that is passed and is only read.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(answer).map(drop)
}

/// Whether this kernel has open_tree(2), and with it move_mount(2) and fsopen(2), which came together; asked with a flag that there is not.
pub fn has_open_tree() -> bool {
    // SAFETY: the path is a literal, and the kernel refuses the flags before it reads it.
    let answer = unsafe { libc::syscall(libc::SYS_open_tree, -1, c"".as_ptr(), libc::c_uint::MAX) };
    Errno::result(answer) == Err(Errno::EINVAL)
}

/// Whether this kernel has mount_setattr(2); asked with a descriptor that cannot exist.
pub fn has_mount_setattr() -> bool {
    // SAFETY: no pointer is read: the kernel refuses the size of zero before anything else.
    let answer =
        unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, std::ptr::null::<libc::mount_attr>(), 0) };
    Errno::result(answer) != Err(Errno::ENOSYS)
}

/// See [`super::Sys::move_mount`].
pub fn move_mount(mount: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &Path) -> Result<()> {
    let name = c_path(name)?;
    let mut flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
    if name.is_empty() {
        flags |= libc::MOVE_MOUNT_T_EMPTY_PATH;
    }
    // SAFETY: both paths are NUL-terminated, outlive the call and are only read.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            dir.as_raw_fd(),
            name.as_ptr(),
            flags as libc::c_uint,
        )
    };
    Errno::result(answer).map(drop)
}

/// See [`super::Sys::new_filesystem`].
pub fn new_filesystem(kind: &str, options: &[(&str, &str)], flags: MountFlags) -> Result<OwnedFd> {
    let kind = c_path(kind)?;
    // SAFETY: `kind` is NUL-terminated, outlives the call and is only read.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    for (key, value) in options {
        let key = c_path(key)?;
        let value = c_path(value)?;
        // SAFETY: key and value are NUL-terminated, outlive the call and are only read.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                libc::FSCONFIG_SET_STRING,
                key.as_ptr(),
                value.as_ptr(),
                0,
            )
        };
        Errno::result(answer)?;
    }
    // SAFETY: FSCONFIG_CMD_CREATE takes neither key nor value; the kernel demands null for both.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            libc::FSCONFIG_CMD_CREATE,
            std::ptr::null::<u8>(),
            std::ptr::null::<u8>(),
            0,
        )
    };
    Errno::result(answer)?;
    // SAFETY: takes no pointer.
    let mount = unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_fd().as_raw_fd(),
            libc::FSMOUNT_CLOEXEC,
            flags.attributes() as libc::c_uint,
        )
    };
    owned(mount)
}

fn owned(answer: libc::c_long) -> Result<OwnedFd> {
    let fd = Errno::result(answer)?;
    // SAFETY: the kernel has just returned this descriptor to us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A path as mountinfo has it: blanks, tabs, newlines and backslashes as three octal digits.
pub fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        (bytes, rest) = match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                (bytes, tail)
            }
            _ => {
                bytes.push(byte);
                (bytes, tail)
            }
        };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn escapes_are_octal() {
        assert_eq!(unescape(b"/a\\040b\\134c\\9\\01"), Path::new("/a b\\c\\9\\01"));
        assert_eq!(unescape(b"/\\377").as_os_str().as_bytes(), b"/\xff");
    }
}
