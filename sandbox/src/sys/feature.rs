//! Questions to the kernel that change nothing.

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
