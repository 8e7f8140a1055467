//! Handing a connection from a program that QEMU starts to the one who serves it.
//!
//! QEMU starts a program for each connection of the guest, and what it starts is under its own rules for system calls, by which
//! no Samba could live. So that program does nothing but give the connection away.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// Gives this process's standard input to whoever listens at `socket`.
///
/// # Errors
/// If nobody does, or does not take it.
pub fn give(socket: &Path) -> io::Result<()> {
    let stream = UnixStream::connect(socket)?;
    let input = io::stdin();
    let descriptors = [input.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("a descriptor does not fit into a message"));
    }
    rustix::net::sendmsg(&stream, &[io::IoSlice::new(b"c")], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes what was given over this connection.
///
/// # Errors
/// If nothing was.
pub fn take(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(stream, &mut [io::IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let taken = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    taken.ok_or_else(|| io::Error::other("no descriptor came"))
}
