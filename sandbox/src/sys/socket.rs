//! `socket(2)` and `socketpair(2)` with arguments that come from elsewhere.

use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;

use super::Result;

/// A socket, or both of a pair; close-on-exec here, whatever `kind` says.
///
/// # Errors
/// The kernel's.
pub fn make(family: i32, kind: i32, protocol: i32, pair: bool) -> Result<Vec<OwnedFd>> {
    let kind = kind | libc::SOCK_CLOEXEC;
    let mut numbers = [-1; 2];
    if pair {
        // SAFETY: the kernel writes two numbers to the array, which has two.
        Errno::result(unsafe { libc::socketpair(family, kind, protocol, numbers.as_mut_ptr()) })?;
    } else {
        // SAFETY: takes no pointer.
        numbers[0] = Errno::result(unsafe { libc::socket(family, kind, protocol) })?;
    }
    let new = numbers.into_iter().filter(|number| *number >= 0);
    // SAFETY: the kernel has just made these descriptors for us.
    Ok(new.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}
