//! `seccomp(2)` and the notification descriptor's requests (`seccomp_unotify(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Loads a filter into the calling thread, and into all that it will start; no way leads back.
///
/// With `listener` the answer is the descriptor on which `SECCOMP_RET_USER_NOTIF` calls appear (close-on-exec). The
/// notified thread then waits so that only a fatal signal interrupts it once its call was received (Linux 5.19): a
/// runtime that sends itself timer signals (Go) would otherwise repeat the call for ever.
///
/// Errors: `EACCES` without no_new_privs or CAP_SYS_ADMIN; `EINVAL` for a program that the kernel does not take;
/// `EBUSY` if `listener` and a filter of this thread has one already.
pub fn install(program: &[libc::sock_filter], listener: bool) -> io::Result<Option<OwnedFd>> {
    if !listener {
        set_filter(program, 0)?;
        return Ok(None);
    }
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let descriptor = match set_filter(program, flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        // An older kernel does not know the flag. A bad program fails again, with the same errno.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => set_filter(program, flags)?,
        other => other?,
    };
    // SAFETY: with NEW_LISTENER the successful call returns a new descriptor, which nobody else knows.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// `seccomp(SECCOMP_SET_MODE_FILTER)`: the listener's number, or 0.
fn set_filter(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<RawFd> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // The kernel only reads through the pointer, whatever its type says.
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` and the slice that it points to live across the call, and `len` is the slice's length.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match answer {
        -1 => Err(io::Error::last_os_error()),
        descriptor => RawFd::try_from(descriptor).map_err(io::Error::other),
    }
}

/// Takes one notification. `None` if its sender is gone meanwhile.
///
/// Waits until there is one: ask `poll(2)` for `POLLIN` first.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Option<libc::seccomp_notif>> {
    // SAFETY: the structure is plain integers, for which zeros are valid; the kernel demands them (EINVAL otherwise).
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the request's number holds the size of the structure that it fills, and ours is of that size.
    let answer =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut notification) };
    present(answer).map(|present| present.then_some(notification))
}

/// Whether the sender of a notification still waits for its answer. If it does, what was read about its pid in between
/// was read about the right process.
pub fn still_waiting(listener: BorrowedFd<'_>, id: u64) -> io::Result<bool> {
    // SAFETY: the request reads one 64-bit number, which lives across the call.
    let answer = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID as _, &raw const id) };
    present(answer)
}

/// Answers a notification with an errno; the call is not executed. `false` if the sender is gone meanwhile.
pub fn refuse(listener: BorrowedFd<'_>, id: u64, errno: u16) -> io::Result<bool> {
    send(listener, libc::seccomp_notif_resp { id, val: 0, error: -i32::from(errno), flags: 0 })
}

/// Answers a notification with the value that the call is to return; it is not executed. `false` if the sender is gone
/// meanwhile.
pub fn answer(listener: BorrowedFd<'_>, id: u64, value: i64) -> io::Result<bool> {
    send(listener, libc::seccomp_notif_resp { id, val: value, error: 0, flags: 0 })
}

/// Gives the sender of a notification a copy of a descriptor, under the lowest number that it has free: that number, or
/// `None` if the sender is gone. Linux 5.9.
///
/// Errors: `EMFILE` when the sender has as many as it may.
pub fn add_descriptor(
    listener: BorrowedFd<'_>,
    id: u64,
    descriptor: BorrowedFd<'_>,
    close_on_exec: bool,
) -> io::Result<Option<RawFd>> {
    let request = libc::seccomp_notif_addfd {
        id,
        flags: 0,
        srcfd: descriptor.as_raw_fd() as u32,
        newfd: 0,
        newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
    };
    // SAFETY: the request's number holds the size of the structure that it reads, and ours is of that size.
    let number = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD as _, &raw const request) };
    // EINPROGRESS and the like cannot be: nobody else answers.
    present(number).map(|present| present.then_some(number))
}

fn send(listener: BorrowedFd<'_>, mut response: libc::seccomp_notif_resp) -> io::Result<bool> {
    // SAFETY: the request's number holds the size of the structure that it reads, and ours is of that size.
    let answer = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw mut response) };
    present(answer)
}

/// Tells the kernel that sender and supervisor take turns, so that each wakes the other on its own processor
/// (Linux 6.6). Only speed depends on it.
pub fn take_turns(listener: BorrowedFd<'_>) -> io::Result<()> {
    const SYNC_WAKE_UP: libc::c_ulong = 1; // SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP, not in the libc crate
    // SAFETY: the request takes its flags by value and touches no memory of ours.
    let answer = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS as _, SYNC_WAKE_UP) };
    match answer {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A request's answer: `ENOENT` means that the notification is no more.
fn present(answer: libc::c_int) -> io::Result<bool> {
    if answer != -1 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests;
