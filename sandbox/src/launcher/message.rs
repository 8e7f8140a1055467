//! What the supervisor and the processes it forked say to each other: whole messages over a `SOCK_SEQPACKET` pair.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::site::Note;

/// To the supervisor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// From the warden: the room's first process has this id.
    Born(i32),
    /// Mounts and namespaces are what they will be: the supervisor may read them while the rest is done.
    Locked,
    /// Session, limits, descriptors and capabilities are what they will be, and may be read.
    Bare,
    /// The room has opened its terminal; comes with the master.
    Terminal,
    /// A process that was to join a room that is at work could not; the sender ends.
    NotEntered { doing: String, errno: i32 },
    /// It is this step's turn, which is the supervisor's.
    Turn(usize),
    /// A step failed; the sender ends.
    Failed { step: usize, errno: i32, detail: Option<String> },
    /// The plan is done up to the exec. Comes with the filter's listener where there is one.
    Ready {
        notes: Vec<Note>,
        /// Number of the step, nanoseconds.
        timings: Vec<(usize, u64)>,
    },
    /// The exec failed; the sender ends.
    NoExec { errno: i32 },
}

/// From the supervisor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The supervisor's step is done.
    Done,
    /// The room is sealed: become the payload.
    Go,
}

/// One end of the pair.
#[derive(Debug)]
pub struct Hatch(OwnedFd);

impl Hatch {
    /// Both ends.
    pub fn pair() -> nix::Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(one), Self(other)))
    }

    /// Says something, with a descriptor where there is one.
    pub fn send(&self, message: &impl Serialize, descriptor: Option<BorrowedFd<'_>>) -> nix::Result<()> {
        let bytes = serde_json::to_vec(message).map_err(|_| Errno::EINVAL)?;
        let numbers: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control: &[_] = if numbers.is_empty() { &[] } else { &rights };
        loop {
            match sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Waits for the next message; `None` when the other side is gone.
    pub fn receive<T: for<'de> Deserialize<'de>>(&self) -> nix::Result<Option<(T, Option<OwnedFd>)>> {
        // Asked first: a buffer for the longest message would cost more to make than most messages do to read.
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        let length = loop {
            match nix::sys::socket::recv(self.0.as_raw_fd(), &mut [0], peek) {
                Err(Errno::EINTR) => {}
                // The other side ended without reading what we had said.
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(errno) => return Err(errno),
                Ok(length) => break length,
            }
        };
        let mut bytes = vec![0; length];
        let mut control = nix::cmsg_space!([i32; 1]);
        let (length, descriptor) = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(Errno::EINTR) => {}
                // The other side ended without reading what we had said.
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(errno) => return Err(errno),
                Ok(received) => {
                    let mut descriptor = None;
                    for message in received.cmsgs()? {
                        if let ControlMessageOwned::ScmRights(numbers) = message {
                            descriptor = numbers.first().map(|number| crate::sys::file::adopt_received(*number));
                        }
                    }
                    break (received.bytes, descriptor);
                }
            }
        };
        if length == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&bytes[..length]).map_err(|_| Errno::EBADMSG)?;
        Ok(Some((message, descriptor)))
    }
}

impl AsFd for Hatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
