//! ioctl(2) on terminals and on `/dev/kvm`.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::pty::Winsize;

use super::Result;

/// Makes standard input the calling session's controlling terminal.
pub(super) fn set_controlling() -> Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }).map(drop)
}

/// The window size of a terminal.
///
/// # Errors
/// ENOTTY when it is none.
pub fn window_size(terminal: BorrowedFd<'_>) -> Result<Winsize> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is a winsize and valid for writing for the length of the call.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok(size)
}

/// Sets the window size of a terminal.
///
/// # Errors
/// ENOTTY when it is none.
pub fn set_window_size(terminal: BorrowedFd<'_>, size: &Winsize) -> Result<()> {
    // SAFETY: `size` is a winsize and valid for reading for the length of the call.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, std::ptr::from_ref(size)) }).map(drop)
}

/// `KVM_GET_API_VERSION`.
///
/// # Errors
/// ENOTTY when it is not `/dev/kvm`.
pub fn kvm_interface_version(device: std::os::fd::RawFd) -> Result<i32> {
    const KVM_GET_API_VERSION: libc::Ioctl = 0xae00;
    // SAFETY: takes no pointer; on a descriptor that is no KVM device the kernel refuses.
    Errno::result(unsafe { libc::ioctl(device, KVM_GET_API_VERSION, 0) })
}
