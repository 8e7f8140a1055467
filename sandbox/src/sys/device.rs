//! ioctl(2) on terminals and on `/dev/kvm`.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::pty::Winsize;

use super::Result;

/// Makes standard input the calling session's controlling terminal.
pub(super) fn set_controlling() -> Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }).map(drop)
}

/// Opens a new pseudo-terminal of the devpts at `multiplexer`'s directory: its master and its other side. `raw` takes all
/// processing of what is written away (cfmakeraw(3)).
///
/// The other side is asked of the master itself (`TIOCGPTPEER`, Linux 4.13), so no name is looked up.
pub(super) fn open_terminal(multiplexer: &Path, raw: bool) -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = nix::fcntl::open(multiplexer, flags, nix::sys::stat::Mode::empty())?;
    let locked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int, which lives for the length of the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) })?;
    // SAFETY: TIOCGPTPEER takes flags as an integer and answers with a new descriptor.
    let peer = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits()) })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    let peer = unsafe { OwnedFd::from_raw_fd(peer) };
    if raw {
        let mut settings = nix::sys::termios::tcgetattr(&peer)?;
        nix::sys::termios::cfmakeraw(&mut settings);
        nix::sys::termios::tcsetattr(&peer, nix::sys::termios::SetArg::TCSANOW, &settings)?;
    }
    Ok((master, peer))
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
