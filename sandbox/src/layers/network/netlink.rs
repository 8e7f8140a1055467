//! The framing that rtnetlink and nf_tables share (netlink(7)): a header, a fixed part, attributes padded to four bytes.
//!
//! Small on purpose. The crates that speak nf_tables need a C library or the `nft` program, and neither is wanted inside a
//! room that is being made. What is written here is one direction of about a dozen messages; what is read back is walked
//! with every length checked, although it is the kernel's.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::sys;

/// Length of `struct nlmsghdr` in bytes.
const HEADER: usize = 16;
/// Every message and attribute starts at a multiple of this.
const ALIGNMENT: usize = 4;
/// `NLA_F_NESTED`: the attribute holds attributes. Old kernels ignore it, new ones want it.
const NESTED: u16 = 1 << 15;
/// Both flag bits of an attribute's type.
const TYPE_FLAGS: u16 = NESTED | 1 << 14;

/// Flags of requests (linux/netlink.h).
pub const REQUEST: u16 = 0x01;
/// The kernel shall confirm.
pub const ACK: u16 = 0x04;
/// Answer with everything there is.
pub const DUMP: u16 = 0x300;
/// Fail when it exists.
pub const EXCLUSIVE: u16 = 0x200;
/// Make it when it does not exist.
pub const CREATE: u16 = 0x400;
/// Put it at the end.
pub const APPEND: u16 = 0x800;

/// Message types that every netlink family uses.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Most bytes that the kernel puts in one answer (its dumps use 32 KiB at most).
const ANSWER: usize = 64 * 1024;

/// Most messages that one dump may have.
const MAX_DUMP: usize = 64 * 1024;

/// One or more messages under construction.
#[derive(Default)]
pub struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    /// Adds a message. `fixed` is the family's own header, `attributes` adds what follows it.
    pub fn message(&mut self, kind: u16, flags: u16, sequence: u32, fixed: &[u8], attributes: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        // Port 0: the kernel fills in the sender.
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        self.pad();
        attributes(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Adds an attribute with these bytes.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.wrap(kind, |builder| builder.bytes.extend_from_slice(value));
    }

    /// Adds a number as the network orders its bytes, which is how nf_tables writes every number.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Adds a name with its closing NUL.
    pub fn name(&mut self, kind: u16, value: &str) {
        self.wrap(kind, |builder| {
            builder.bytes.extend_from_slice(value.as_bytes());
            builder.bytes.push(0);
        });
    }

    /// Adds an attribute that holds attributes.
    pub fn nested(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        self.wrap(kind | NESTED, inside);
    }

    fn wrap(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        inside(self);
        // Our largest attribute is a rule's list of expressions, a few hundred bytes.
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// The finished bytes.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// How many bytes there are so far.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }
}

/// A message as it was read: its type, its sequence number, and what follows the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Message type.
    pub kind: u16,
    /// Number of the request that it answers.
    pub sequence: u32,
    /// Fixed part and attributes.
    pub body: &'a [u8],
}

/// Walks messages; `None` in the item marks bytes that are no message, after which the walk ends.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Option<Message<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let read = (|| {
            let length = usize::try_from(u32::from_ne_bytes(bytes.get(0..4)?.try_into().ok()?)).ok()?;
            let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
            let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
            let body = bytes.get(HEADER..length)?;
            bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or(&[]);
            Some(Message { kind, sequence, body })
        })();
        if read.is_none() {
            bytes = &[];
        }
        Some(read)
    })
}

/// Walks attributes, types without their flag bits; `None` in the item marks bytes that are no attribute.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Option<(u16, &[u8])>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let read = (|| {
            let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
            let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & !TYPE_FLAGS;
            let value = bytes.get(4..length)?;
            bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or(&[]);
            Some((kind, value))
        })();
        if read.is_none() {
            bytes = &[];
        }
        Some(read)
    })
}

/// The last attribute of this type, when all of them are well formed.
pub fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut found = None;
    for attribute in attributes(bytes) {
        let (kind, value) = attribute?;
        if kind == wanted {
            found = Some(value);
        }
    }
    found
}

/// A socket to one netlink family of the calling thread's network namespace.
pub struct Connection {
    socket: OwnedFd,
    sequence: u32,
}

impl Connection {
    /// Opens and binds the socket. Answers are awaited for at most five seconds; the kernel gives them at once.
    pub fn open(family: SockProtocol) -> Result<Self, Errno> {
        Self::listen(family, 0)
    }

    /// The same, and hears what the kernel tells these groups (one bit each, the first 32 only).
    pub fn listen(family: SockProtocol, groups: u32) -> Result<Self, Errno> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, family)?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &NetlinkAddr::new(0, groups))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// A number for the next message.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends messages and waits until the one numbered `last` (which must ask for an acknowledgement) is confirmed, or
    /// any of them fails; then that message's number and error are the answer.
    pub fn confirm(&mut self, bytes: &[u8], last: u32) -> Result<(), (u32, Errno)> {
        let lost = |error| (0, error);
        self.send(bytes).map_err(lost)?;
        loop {
            let buffer = self.receive().map_err(lost)?;
            for message in messages(&buffer) {
                let message = message.ok_or((0, Errno::EBADMSG))?;
                if message.kind != NLMSG_ERROR {
                    continue;
                }
                let code = message.body.get(0..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
                match code.ok_or((0, Errno::EBADMSG))? {
                    0 if message.sequence == last => return Ok(()),
                    0 => {}
                    code => return Err((message.sequence, Errno::from_raw(code.saturating_neg()))),
                }
            }
        }
    }

    /// Sends one request for a dump and collects the bodies of the answers.
    pub fn dump(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
        self.send(bytes)?;
        let mut bodies = Vec::new();
        loop {
            let buffer = self.receive()?;
            for message in messages(&buffer) {
                let message = message.ok_or(Errno::EBADMSG)?;
                match message.kind {
                    NLMSG_DONE => return Ok(bodies),
                    NLMSG_ERROR => {
                        let code = message.body.get(0..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
                        return Err(code.map_or(Errno::EBADMSG, |code| Errno::from_raw(code.saturating_neg())));
                    }
                    _ if bodies.len() == MAX_DUMP => return Err(Errno::E2BIG),
                    _ => bodies.push(message.body.to_vec()),
                }
            }
        }
    }

    /// Waits until the kernel tells something of which this holds; `EAGAIN` when it does not within five seconds of silence.
    pub fn await_event(&self, wanted: impl Fn(Message<'_>) -> bool) -> Result<(), Errno> {
        loop {
            let buffer = self.receive()?;
            for message in messages(&buffer) {
                if wanted(message.ok_or(Errno::EBADMSG)?) {
                    return Ok(());
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.socket);
        let sent = sendto(fd, bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        if sent == bytes.len() { Ok(()) } else { Err(Errno::EMSGSIZE) }
    }

    fn receive(&self) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0; ANSWER];
        let length = sys::network::receive_whole(self.socket.as_fd(), &mut buffer)?;
        if length > buffer.len() {
            return Err(Errno::EMSGSIZE);
        }
        buffer.truncate(length);
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_message_byte_for_byte() {
        let mut builder = Builder::default();
        builder.message(0x10, ACK, 7, &[1, 2, 3, 4], |builder| {
            builder.attribute(1, &[0xaa]);
            builder.nested(2, |builder| builder.name(3, "ab"));
        });
        let expected: &[u8] = &[
            40, 0, 0, 0, 0x10, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0, // header: length, type, flags, sequence, port
            1, 2, 3, 4, // fixed part
            5, 0, 1, 0, 0xaa, 0, 0, 0, // attribute 1 and its padding
            12, 0, 2, 0x80, 7, 0, 3, 0, b'a', b'b', 0, 0, // attribute 2 holds attribute 3
        ];
        assert_eq!(builder.finish(), expected);
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut builder = Builder::default();
        builder.message(1, 0, 5, &[0; 4], |builder| builder.number(9, 0x0102_0304));
        builder.message(2, 0, 6, &[0; 4], |_| {});
        let bytes = builder.finish();
        let read: Vec<_> = messages(&bytes).map(Option::unwrap).collect();
        assert_eq!((read[0].kind, read[0].sequence, read[1].kind, read[1].sequence, read.len()), (1, 5, 2, 6, 2));
        assert_eq!(find(&read[0].body[4..], 9), Some([1, 2, 3, 4].as_slice()));
        assert_eq!(find(&read[0].body[4..], 8), None);
    }

    proptest! {
        /// Foreign bytes end the walk; they never panic and never make it endless.
        #[test]
        fn any_bytes_can_be_walked(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(messages(&bytes).count() <= bytes.len());
            prop_assert!(attributes(&bytes).count() <= bytes.len());
            let _ = find(&bytes, 1);
        }
    }
}
