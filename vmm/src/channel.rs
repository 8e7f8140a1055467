//! Our end of one of QEMU's sockets: read as far as there is something, written as far as there is room.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// The most that is taken by one read: more is left for the next, so that no channel starves another.
const PIECE: usize = 64 << 10;

/// One end of a stream.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    outgoing: VecDeque<u8>,
    is_open: bool,
}

impl Channel {
    /// A new stream: our end, and the descriptor for QEMU.
    ///
    /// # Errors
    /// socketpair(2)'s.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self { socket: ours, outgoing: VecDeque::new(), is_open: true }, theirs.into()))
    }

    /// Our end of a stream that somebody else made.
    pub fn of(socket: UnixStream) -> Self {
        Self { socket, outgoing: VecDeque::new(), is_open: true }
    }

    /// How many bytes wait for room.
    pub fn waiting(&self) -> usize {
        self.outgoing.len()
    }

    /// Whether the other side may still say something.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether bytes wait for room.
    pub fn has_outgoing(&self) -> bool {
        self.is_open && !self.outgoing.is_empty()
    }

    /// Takes what there is; nothing if there is nothing now. After the end of the stream, [`Channel::is_open`] is false.
    ///
    /// # Errors
    /// recv(2)'s, but for a peer that is gone, which is the end of the stream.
    pub fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        if !self.is_open {
            return Ok(None);
        }
        let mut piece = vec![0; PIECE];
        loop {
            match rustix::net::recv(&self.socket, &mut piece, RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(Errno::CONNRESET | Errno::PIPE) => {
                    self.is_open = false;
                    return Ok(None);
                }
                Ok((_, length)) => {
                    piece.truncate(length);
                    return Ok(Some(piece));
                }
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends what it can at once and keeps the rest for [`Channel::flush`].
    ///
    /// # Errors
    /// send(2)'s, but for a peer that is gone: what is said to it is dropped.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.outgoing.extend(bytes);
        self.flush()
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn flush(&mut self) -> io::Result<()> {
        while self.has_outgoing() {
            let (piece, _) = self.outgoing.as_slices();
            match rustix::net::send(&self.socket, piece, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(length) => drop(self.outgoing.drain(..length)),
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET | Errno::PIPE) => self.outgoing.clear(),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Sends `bytes` with a descriptor in front of them. Nothing else may be waiting.
    ///
    /// # Errors
    /// sendmsg(2)'s.
    pub fn send_with(&mut self, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("a descriptor does not fit into a message"));
        }
        let sent = rustix::net::sendmsg(&self.socket, &[io::IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        self.send(&bytes[sent..])
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn what_does_not_fit_waits_and_arrives_in_order() {
        let (mut channel, theirs) = Channel::pair().unwrap();
        let mut theirs = UnixStream::from(theirs);
        let sent: Vec<u8> = (0..4_000_000u32).map(|number| number as u8).collect();
        channel.send(&sent).unwrap();
        assert!(channel.has_outgoing(), "4 MB fit into a socket at once");
        let reader = std::thread::spawn(move || {
            let mut received = vec![0; 4_000_000];
            theirs.read_exact(&mut received).unwrap();
            theirs.write_all(b"done").unwrap();
            received
        });
        while channel.has_outgoing() {
            let mut fds = [rustix::event::PollFd::new(&channel, rustix::event::PollFlags::OUT)];
            rustix::event::poll(&mut fds, None).unwrap();
            channel.flush().unwrap();
        }
        assert!(reader.join().unwrap() == sent);
        assert_eq!(channel.read().unwrap().as_deref(), Some(&b"done"[..]));
        assert!(channel.is_open());
        assert_eq!(channel.read().unwrap(), None);
        assert!(!channel.is_open());
        channel.send(b"nobody").unwrap();
        assert!(!channel.has_outgoing());
    }
}
