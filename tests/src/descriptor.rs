//! Descriptors that come over a socket.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The descriptor that the next message on this socket brings, if it brings one.
pub fn received(stream: &UnixStream) -> Option<OwnedFd> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut into = [std::io::IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).ok()?;
    message.cmsgs().ok()?.find_map(|control| match control {
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows of it.
        ControlMessageOwned::ScmRights(descriptors) => Some(unsafe { OwnedFd::from_raw_fd(*descriptors.first()?) }),
        _ => None,
    })
}
