//! Questions to the kernel whose answers change nothing, and one that changes only the process that asks.

use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;

use super::Result;

/// The version of Landlock's interface as the kernel gives it, however new it is.
///
/// # Errors
/// ENOSYS when the kernel was built without it, EOPNOTSUPP when it was not in the list of security modules at boot.
pub fn landlock_interface() -> Result<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag and no attributes the kernel reads nothing and returns a number.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    Errno::result(answer).map(|version| version as u32)
}

/// Whether filters of system calls can be used at all: `SECCOMP_GET_ACTION_AVAIL` of the plainest action, Linux 4.14.
///
/// # Errors
/// ENOSYS or EINVAL when the kernel has no seccomp(2) or no filters.
pub fn seccomp_filters() -> Result<()> {
    let action: u32 = libc::SECCOMP_RET_ALLOW;
    // SAFETY: the kernel reads four bytes at `action`, which outlives the call.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    Errno::result(answer).map(drop)
}

/// Puts the calling process, for ever, under a filter that allows everything and has a listener (Linux 5.0). For a child that
/// is about to end: only the attempt shows whether a filter further out already has the one listener that there can be.
///
/// # Errors
/// EINVAL when the kernel has no listeners, EBUSY when there is one already, EACCES without `no_new_privs`.
pub fn listen_to_filter() -> Result<OwnedFd> {
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut allow = libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let program = libc::sock_fprog { len: 1, filter: &raw mut allow };
    // SAFETY: `program` names one instruction; both outlive the call and are only read.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    let listener = Errno::result(answer)?;
    // SAFETY: the kernel has just returned this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as i32) })
}
