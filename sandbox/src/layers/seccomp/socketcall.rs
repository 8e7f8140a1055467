//! i386's `socketcall(2)`: one call number for twenty, with its arguments behind a pointer that no filter can follow.
//!
//! glibc for i386 makes every socket by it, so it can be neither refused nor let through unseen. The filter hands the two of the twenty
//! that make sockets to the supervisor; here they are copied out of the caller, judged by the policy as the calls that they stand for,
//! and answered with a socket that somebody else has made. The caller's own call never goes on: what it writes behind the pointer
//! meanwhile changes nothing.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::program::{self, Recorded};
use crate::sys::seccomp as sys;

/// linux/net.h
const SYS_SOCKET: u64 = 1;

/// What a 32-bit program asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Whether it is a pair.
    pub pair: bool,
    /// The address family.
    pub family: i32,
    /// The type, with its flags.
    pub kind: i32,
    /// The protocol.
    pub protocol: i32,
}

impl Wanted {
    /// The call that it stands for, as this machine's own programs would make it.
    fn as_call(self) -> libc::seccomp_data {
        let number = if self.pair { libc::SYS_socketpair } else { libc::SYS_socket };
        let [family, kind, protocol] = [self.family, self.kind, self.protocol].map(|value| u64::from(value as u32));
        libc::seccomp_data {
            nr: number as i32,
            arch: program::NATIVE,
            instruction_pointer: 0,
            args: [family, kind, protocol, 0, 0, 0],
        }
    }
}

/// Who makes sockets that belong to the room and to nobody else.
pub trait SocketMaker {
    /// One socket, or two for a pair, as the room's payload would get them.
    ///
    /// # Errors
    /// The kernel's, which the caller is told; `ECHILD`, `ETIMEDOUT` and others of ours when nothing could be made.
    fn make(&mut self, wanted: Wanted) -> Result<Vec<OwnedFd>, Errno>;

    /// Whether a thread is in the namespaces in which [`make`](Self::make) works.
    fn stands_where_the_room_does(&self, thread: Pid) -> bool;
}

/// How a request came out.
pub(super) enum Answer {
    /// With a number that the caller gets.
    Value(i64),
    /// With an errno of the kernel's, as it would have come without us.
    Errno(Errno),
    /// Refused by a row of the policy, for this call.
    Refused(&'static Recorded, libc::seccomp_data),
    /// Nothing could be made.
    Impossible,
    /// The caller is gone.
    Gone,
}

/// Serves one request.
///
/// # Errors
/// The supervisor's own.
pub(super) fn serve(
    listener: BorrowedFd<'_>,
    notification: &libc::seccomp_notif,
    maker: &mut dyn SocketMaker,
) -> io::Result<Answer> {
    let thread = Pid::from_raw(notification.pid as i32);
    // In another pid namespace than the supervisor's.
    if notification.pid == 0 {
        return Ok(Answer::Impossible);
    }
    // Held, and then asked whether the caller waits still: the id may be another's, the memory behind this descriptor can not.
    let memory = File::options().read(true).write(true).open(format!("/proc/{thread}/mem"));
    let stands = maker.stands_where_the_room_does(thread);
    if !sys::still_waiting(listener, notification.id)? {
        return Ok(Answer::Gone);
    }
    let Ok(memory) = memory else { return Ok(Answer::Impossible) };
    if !stands {
        return Ok(Answer::Impossible);
    }
    // The kernel takes both for 32 bits wide on this door.
    let (pair, place) = (notification.data.args[0] as u32 as u64 != SYS_SOCKET, notification.data.args[1] as u32);
    let Some([family, kind, protocol, target]) = copy(&memory, place, pair) else {
        return Ok(Answer::Errno(Errno::EFAULT));
    };
    let wanted = Wanted { pair, family: family as i32, kind: kind as i32, protocol: protocol as i32 };
    let call = wanted.as_call();
    match program::judge(&call) {
        program::Judgement::Allowed => {}
        program::Judgement::Refused(row) => return Ok(Answer::Refused(row, call)),
        program::Judgement::Unknown => return Ok(Answer::Impossible),
    }
    // As the kernel does: whether there is a place for the numbers is found out before there are any.
    if pair && memory.write_all_at(&[0xff; 8], u64::from(target)).is_err() {
        return Ok(Answer::Errno(Errno::EFAULT));
    }
    let sockets = match maker.make(wanted) {
        Ok(sockets) => sockets,
        Err(Errno::ECHILD | Errno::ETIMEDOUT | Errno::EBADMSG | Errno::EPIPE | Errno::ECONNRESET) => {
            return Ok(Answer::Impossible);
        }
        Err(errno) => return Ok(Answer::Errno(errno)),
    };
    let close_on_exec = wanted.kind & libc::SOCK_CLOEXEC != 0;
    let mut numbers = Vec::new();
    for socket in &sockets {
        match sys::add_descriptor(listener, notification.id, socket.as_fd(), close_on_exec) {
            Ok(Some(number)) => numbers.push(number),
            Ok(None) => return Ok(Answer::Gone),
            // The caller's own: it has as many as it may.
            Err(error) => {
                return Ok(error
                    .raw_os_error()
                    .map_or(Answer::Impossible, |errno| Answer::Errno(Errno::from_raw(errno))));
            }
        }
    }
    match (pair, &numbers[..]) {
        (false, [number]) => Ok(Answer::Value(i64::from(*number))),
        (true, [one, other]) => {
            let bytes = [one.to_ne_bytes(), other.to_ne_bytes()].concat();
            match memory.write_all_at(&bytes, u64::from(target)) {
                Ok(()) => Ok(Answer::Value(0)),
                Err(_) => Ok(Answer::Errno(Errno::EFAULT)),
            }
        }
        _ => Ok(Answer::Impossible),
    }
}

/// The three arguments of socket(2), or the four of socketpair(2), as they are now.
fn copy(memory: &File, place: u32, pair: bool) -> Option<[u32; 4]> {
    let mut bytes = [0; 16];
    let length = if pair { 16 } else { 12 };
    memory.read_exact_at(&mut bytes[..length], u64::from(place)).ok()?;
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Some([word(0), word(4), word(8), word(12)])
}
