//! Processes: birth, identity, limits, death.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use caps::CapSet;
use nix::errno::Errno;
use nix::unistd::Pid;

use super::{Result, c_path};

/// Which side of a fork the caller is on.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old one, with the new one's id and a descriptor for it.
    Parent {
        /// In the caller's pid namespace.
        pid: Pid,
        /// A pidfd, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// How many threads this process has: the kernel counts a link of `/proc/self/task` for each, beside the usual two.
pub fn thread_count() -> std::io::Result<u64> {
    Ok(std::fs::metadata("/proc/self/task")?.nlink().saturating_sub(2))
}

/// fork(2) through the C library, with a pidfd for the child.
///
/// # Errors
/// What fork(2) or pidfd_open(2) answer.
pub fn fork() -> Result<Forked> {
    // SAFETY: the launcher is single-threaded (checked by its only caller), so the child may go on as the parent would.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => Ok(Forked::Child),
        // The child is ours and not waited for, so its id cannot have been given to another process.
        nix::unistd::ForkResult::Parent { child } => Ok(Forked::Parent { pid: child, pidfd: pidfd_open(child)? }),
    }
}

/// A fork whose child is a *sibling*: the caller's parent becomes its parent, so that it can be waited for there.
/// The first process of a pid namespace is born this way.
///
/// # Errors
/// What clone(2) answers.
pub fn fork_sibling() -> Result<Forked> {
    let flags = libc::CLONE_PARENT | libc::CLONE_PIDFD;
    let mut pidfd: libc::c_int = -1;
    // SAFETY: without CLONE_VM this is a fork: the child gets a copy of everything, a null stack means "go on with the copy of
    // ours", and the process is single-threaded. `pidfd` is valid for the write that CLONE_PIDFD makes to it in the parent.
    let pid = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags),
            std::ptr::null_mut::<u8>(),
            &raw mut pidfd,
            std::ptr::null_mut::<libc::c_int>(),
            0,
        )
    })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel has just stored this new descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent { pid: Pid::from_raw(pid as i32), pidfd })
}

/// pidfd_open(2).
///
/// # Errors
/// ESRCH when there is no such process.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the kernel has just returned this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// pidfd_send_signal(2).
///
/// # Errors
/// ESRCH when the process has ended and was waited for.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: a null siginfo means the one that kill(2) would send; no other pointer is passed.
    let answer = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    Errno::result(answer).map(drop)
}

/// How a process ended, and what it and all that it waited for used.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// The raw wait status.
    pub status: libc::c_int,
    /// The kernel's account of the process and its reaped descendants.
    pub usage: libc::rusage,
}

/// wait4(2); blocks until the process has ended.
///
/// # Errors
/// ECHILD when it is not ours.
pub fn wait(pid: Pid) -> Result<Ended> {
    let mut status = 0;
    // SAFETY: rusage is plain integers; all zeroes is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are valid for writing for the length of the call.
        match Errno::result(unsafe { libc::wait4(pid.as_raw(), &raw mut status, 0, &raw mut usage) }) {
            Ok(_) => return Ok(Ended { status, usage }),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Ends the calling process at once, without running destructors or flushing what a forked copy of buffers may hold.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and touches nothing of ours.
    unsafe { libc::_exit(code) }
}

/// The number of the call in which a process waits for signals that it does not handle, as `/proc/PID/syscall` shows it.
pub const SIGNAL_WAIT: libc::c_long = libc::SYS_rt_sigtimedwait;

/// Every signal back to its default action, none blocked: a payload begins as a login shell's child would.
///
/// By the raw call: the C library refuses the two signals that it keeps for itself (32 and 33 in glibc), which its own posix_spawn(3)
/// leaves ignored in whoever it starts.
pub fn reset_signals() {
    // struct sigaction of the kernel: handler (0 is SIG_DFL), flags, restorer, mask.
    let default = [0u64; 4];
    for number in 1..=64 {
        let nothing: *const u64 = std::ptr::null();
        // SAFETY: the kernel reads one structure, which is as large as its own on every architecture, and writes none; the signals that
        // cannot be changed (SIGKILL, SIGSTOP) answer EINVAL.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), nothing, size_of::<u64>()) };
    }
    let _ = nix::sys::signal::SigSet::all().thread_unblock();
}

/// Overwrites the argument and environment strings that this process was started with: they are the launcher's, and `/proc/PID/cmdline`
/// shows the former to everybody in its pid namespace. And makes the process unreadable for others of its user.
///
/// # Errors
/// When `/proc/self/stat` does not tell where the strings are.
pub fn hide_launcher() -> Result<()> {
    let stat = crate::sys::file::read_proc("/proc/self/stat").map_err(|_| Errno::EIO)?;
    let (_, fields) = stat.rsplit_once(')').ok_or(Errno::EIO)?;
    // Fields 48 to 51 of proc(5), counted from field 3: where arguments and environment begin and end.
    let places: Vec<usize> =
        fields.split_ascii_whitespace().skip(45).take(4).filter_map(|field| field.parse().ok()).collect();
    let [arguments, arguments_end, environment, environment_end] = places[..] else { return Err(Errno::EIO) };
    for (begin, end) in [(arguments, arguments_end), (environment, environment_end)] {
        // The kernel shows zeroes to those whom it does not trust with addresses.
        if begin == 0 || end < begin {
            return Err(Errno::EIO);
        }
        // SAFETY: the kernel put these strings on the initial stack for this process, writable, and says itself where they lie.
        // Nothing reads arguments or environment of the launcher in this process any more: it only forks, reaps and ends.
        unsafe { std::ptr::write_bytes(std::ptr::with_exposed_provenance_mut::<u8>(begin), 0, end - begin) };
    }
    nix::sys::prctl::set_name(c"init")?;
    nix::sys::prctl::set_dumpable(false)
}

/// Makes the process readable for its supervisor below /proc again, see `PR_SET_DUMPABLE` in prctl(2).
///
/// # Errors
/// None that the kernel documents for this value.
pub fn stay_readable() -> Result<()> {
    nix::sys::prctl::set_dumpable(true)
}

/// The numbers of the descriptors that are open, in order.
///
/// # Errors
/// When `/proc/self/fd` cannot be read.
pub fn open_descriptors() -> Result<Vec<u32>> {
    let answer = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").map_err(answer)? {
        numbers.extend(entry.map_err(answer)?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    // The last one made is that of the listing itself.
    numbers.sort_unstable();
    numbers.pop();
    Ok(numbers)
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) {
    close_range(first, libc::c_uint::MAX);
}

/// Closes every descriptor but these.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) {
    close_but(0, kept);
}

/// Closes every descriptor above 2 but these.
pub fn close_above_streams_but(kept: &[BorrowedFd<'_>]) {
    close_but(3, kept);
}

fn close_but(mut first: u32, kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    kept.sort_unstable();
    for keep in kept {
        if keep > first {
            close_range(first, keep - 1);
        }
        first = keep + 1;
    }
    close_range(first, libc::c_uint::MAX);
}

fn close_range(first: libc::c_uint, last: libc::c_uint) {
    // SAFETY: only called where the process is about to exec, or to do nothing but wait and _exit: no owner of these descriptors
    // uses or drops them again.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if answer != 0 {
        // Linux before 5.9.
        for number in first..=last.min(1 << 16) {
            // SAFETY: as above.
            unsafe { libc::close(number as i32) };
        }
    }
}

/// execve(2), with the arguments and the environment given whole; returns only when it fails.
pub fn exec(program: &OsStr, arguments: &[CString], environment: &[CString]) -> Errno {
    let Ok(program) = c_path(program) else { return Errno::EINVAL };
    match nix::unistd::execve(&program, arguments, environment) {
        Err(errno) => errno,
        Ok(never) => match never {},
    }
}

/// sethostname(2).
pub(super) fn set_hostname(name: &str) -> Result<()> {
    nix::unistd::sethostname(name)
}

/// setdomainname(2).
pub(super) fn set_domainname(name: &str) -> Result<()> {
    // SAFETY: pointer and length describe `name`, which is only read.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// personality(2).
pub(super) fn set_personality(persona: u64) -> Result<()> {
    // SAFETY: takes no pointer.
    Errno::result(unsafe { libc::personality(persona) }).map(drop)
}

/// prlimit(2) of the calling process; `None` is `RLIM_INFINITY`.
pub(super) fn set_rlimit(resource: u32, soft: Option<u64>, hard: Option<u64>) -> Result<()> {
    let limit =
        libc::rlimit { rlim_cur: soft.unwrap_or(libc::RLIM_INFINITY), rlim_max: hard.unwrap_or(libc::RLIM_INFINITY) };
    // SAFETY: `limit` is valid for reading for the length of the call.
    Errno::result(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// getrlimit(2): the soft and the hard limit, `None` for `RLIM_INFINITY`.
///
/// # Errors
/// EINVAL for a resource that the kernel does not know.
pub fn get_rlimit(resource: u32) -> Result<(Option<u64>, Option<u64>)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writing for the length of the call.
    Errno::result(unsafe { libc::getrlimit(resource, &raw mut limit) })?;
    let finite = |value| (value != libc::RLIM_INFINITY).then_some(value);
    Ok((finite(limit.rlim_cur), finite(limit.rlim_max)))
}

/// See [`super::Sys::become_ids`].
pub(super) fn become_ids(uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (nix::unistd::Uid::from_raw(uid), nix::unistd::Gid::from_raw(gid));
    nix::sys::prctl::set_keepcaps(true)?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    // Leaving uid 0 clears the effective set; the permitted one was kept. They are needed once more: hardened kernels let
    // only a privileged process make a user namespace. Entering that namespace gives them up for good.
    let permitted = caps::read(None, CapSet::Permitted).map_err(caps_errno)?;
    caps::set(None, CapSet::Effective, &permitted).map_err(caps_errno)?;
    // A change of ids makes the process undumpable, and then /proc/self/uid_map belongs to root.
    nix::sys::prctl::set_dumpable(true)
}

/// keyctl(2) with `KEYCTL_JOIN_SESSION_KEYRING` and no name.
pub(super) fn new_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring; nothing is read or written.
    let answer = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>(), 0, 0, 0)
    };
    Errno::result(answer).map(drop)
}

/// The serial number of the calling process's session keyring.
///
/// # Errors
/// ENOKEY when it has none, ENOSYS when the kernel has no keyrings.
pub fn session_keyring() -> Result<i64> {
    const KEYCTL_GET_KEYRING_ID: libc::c_long = 0;
    const KEY_SPEC_SESSION_KEYRING: libc::c_long = -3;
    // SAFETY: takes no pointer; the last argument says not to make one.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0, 0, 0) })
}

/// dup2(2) onto a standard stream.
pub(super) fn set_standard_stream(fd: BorrowedFd<'_>, number: i32) -> Result<()> {
    debug_assert!((0..=2).contains(&number));
    // SAFETY: 0, 1 and 2 are owned by the process as a whole, not by any OwnedFd of ours.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// The secure bits that a room has, all locked: ids mean nothing for capabilities, and none can be made ambient.
pub const LOCKED_SECURE_BITS: libc::c_int = {
    const NOROOT: libc::c_int = 1 << 0;
    const NO_SETUID_FIXUP: libc::c_int = 1 << 2;
    const KEEP_CAPS_LOCKED: libc::c_int = 1 << 5;
    const NO_CAP_AMBIENT_RAISE: libc::c_int = 1 << 6;
    NOROOT
        | NOROOT << 1
        | NO_SETUID_FIXUP
        | NO_SETUID_FIXUP << 1
        | KEEP_CAPS_LOCKED
        | NO_CAP_AMBIENT_RAISE
        | NO_CAP_AMBIENT_RAISE << 1
};

/// See [`super::Sys::drop_capabilities`].
pub(super) fn drop_capabilities() -> Result<()> {
    // Secure bits first: setting them takes CAP_SETPCAP, which is about to go.
    // SAFETY: PR_SET_SECUREBITS takes no pointer.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, LOCKED_SECURE_BITS, 0, 0, 0) })?;
    caps::clear(None, CapSet::Ambient).map_err(caps_errno)?;
    // The bounding set by the kernel's own numbers and not by a crate's list: a newer kernel may have more capabilities.
    for capability in 0..=63 {
        // SAFETY: PR_CAPBSET_DROP takes no pointer.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(_) => {}
            Err(Errno::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(caps_errno)?;
    }
    Ok(())
}

/// Crate `caps` hands the kernel's answer on only as text of its own; errno still holds it.
fn caps_errno(_: caps::errors::CapsError) -> Errno {
    match Errno::last() {
        Errno::UnknownErrno => Errno::EPERM,
        errno => errno,
    }
}
