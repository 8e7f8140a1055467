//! Raw calls of the network layer: interface flags by ioctl, and what happens between fork and exec of a helper.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Sets `IFF_UP` on the loopback interface of the calling thread's network namespace (netdevice(7), `SIOCGIFFLAGS` and
/// `SIOCSIFFLAGS`). Needs `CAP_NET_ADMIN` over that namespace. Costs three system calls and no netlink round trip.
pub fn loopback_flags_up() -> Result<(), Errno> {
    // Any socket carries these ioctls; AF_UNIX exists even on kernels without IPv4.
    let carrier = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    name[0] = b'l' as libc::c_char;
    name[1] = b'o' as libc::c_char;
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } };
    // SAFETY: the descriptor is open and `request` is a valid ifreq for the whole call, which reads the name and writes
    // the flags member only.
    let read = unsafe { libc::ioctl(carrier.as_raw_fd(), libc::SIOCGIFFLAGS as libc::Ioctl, &raw mut request) };
    Errno::result(read)?;
    // SAFETY: SIOCGIFFLAGS has just initialised this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: as for the first call; SIOCSIFFLAGS only reads the request.
    let written = unsafe { libc::ioctl(carrier.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &raw const request) };
    Errno::result(written).map(drop)
}

/// Runs `prepare` in the child between fork and exec.
///
/// The caller must be single-threaded (house rule for everything that forks): then the child's memory is consistent and
/// `prepare` may do what it likes, allocation included.
pub fn before_exec<F>(command: &mut Command, prepare: F)
where
    F: FnMut() -> io::Result<()> + Send + Sync + 'static,
{
    // SAFETY: the closure runs in a forked child of a single-threaded process, so no lock can be held by a thread that
    // does not exist there; it owns everything that it uses.
    unsafe { command.pre_exec(prepare) };
}

/// Asks the kernel to kill this process when the thread that forked it ends (prctl(2), `PR_SET_PDEATHSIG`).
///
/// Set it after the last change of identity, because the kernel clears it on every such change.
pub fn die_with_parent() -> Result<(), Errno> {
    // SAFETY: this option takes one integer and touches no memory.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    Errno::result(result).map(drop)
}

/// Sets `no_new_privs` (prctl(2)), so that file capabilities and setuid bits of the program to come mean nothing.
pub fn no_new_privileges() -> Result<(), Errno> {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: this option takes integers and touches no memory.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, unused, unused, unused) };
    Errno::result(result).map(drop)
}

/// Index of the interface `name` in the network namespace of the calling thread.
pub fn interface_index(name: &std::ffi::CStr) -> Result<u32, Errno> {
    // SAFETY: `name` is a valid C string for the whole call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 { Err(Errno::last()) } else { Ok(index) }
}

/// Receives one netlink message batch into `buffer`; returns how many bytes the kernel had, which is more than the buffer
/// holds when the batch did not fit (recv(2), `MSG_TRUNC`).
pub fn receive_whole(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: pointer and length come from one exclusive slice.
    let received = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_TRUNC) };
    Errno::result(received).map(|length| length as usize)
}

/// Marks every descriptor from `first` up as closed on exec (close_range(2) with `CLOSE_RANGE_CLOEXEC`, Linux 5.11).
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: the call takes integers, touches no memory and closes nothing now.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}
