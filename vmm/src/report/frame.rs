//! Where a message begins and ends: four bytes that never change, the length in four, then the message.

use crate::encoding::FieldError;

/// The longest message, in bytes. A longer command goes through a file in `xchg`.
pub const MAX_MESSAGE: usize = 4 << 20;

/// What every frame begins with; the last byte is the version of the protocol.
const MAGIC: [u8; 4] = *b"AHR\x01";
const HEAD: usize = 8;

/// What is wrong with bytes that should be frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No frame begins here. The stream cannot be followed any further.
    #[error(
        "no message of this protocol begins here, but {found:02x?}: the other side speaks something else, or another version"
    )]
    Foreign {
        /// The four bytes.
        found: [u8; 4],
    },
    /// A message that is longer than any can be.
    #[error("a message of {length} bytes was announced, the limit is {MAX_MESSAGE}")]
    TooLong {
        /// As announced, or as it would be sent.
        length: usize,
    },
    /// The frame was whole, and its message cannot be understood.
    #[error("a broken message: {0}")]
    Message(#[from] FieldError),
}

/// One message as a frame.
///
/// # Errors
/// If it is too long.
pub fn frame(message: &[u8]) -> Result<Vec<u8>, FrameError> {
    let length = message.len();
    if length > MAX_MESSAGE {
        return Err(FrameError::TooLong { length });
    }
    let mut bytes = Vec::with_capacity(HEAD + length);
    bytes.extend(MAGIC);
    // It fits, the limit is far below.
    bytes.extend((length as u32).to_le_bytes());
    bytes.extend(message);
    Ok(bytes)
}

/// Takes messages out of a stream as its bytes come in, however they are cut.
///
/// It never holds more than one frame and what came behind it in the same piece.
#[derive(Debug, Default)]
pub struct Frames {
    pending: Vec<u8>,
}

impl Frames {
    /// At the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
    }

    /// The next message, if all of it is here.
    ///
    /// # Errors
    /// If no frame begins here, or one that is too long: then there is no way on.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        // Foreign bytes are named as soon as the first of them is here, not when four are.
        let begin = &self.pending[..self.pending.len().min(MAGIC.len())];
        if !MAGIC.starts_with(begin) {
            let mut found = [0; 4];
            found[..begin.len()].copy_from_slice(begin);
            return Err(FrameError::Foreign { found });
        }
        let Some(head) = self.pending.first_chunk::<HEAD>() else { return Ok(None) };
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if length > MAX_MESSAGE {
            return Err(FrameError::TooLong { length });
        }
        if self.pending.len() < HEAD + length {
            return Ok(None);
        }
        let message = self.pending[HEAD..HEAD + length].to_vec();
        self.pending.drain(..HEAD + length);
        Ok(Some(message))
    }

    /// Whether the stream stands between two messages.
    pub fn is_between(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_arrive_however_the_stream_is_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..8),
            piece in 1..20usize,
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| frame(message).unwrap()).collect();
            let mut frames = Frames::new();
            let mut arrived = Vec::new();
            for piece in stream.chunks(piece) {
                frames.feed(piece);
                while let Some(message) = frames.next_message().unwrap() {
                    arrived.push(message);
                }
            }
            prop_assert_eq!(arrived, messages);
            prop_assert!(frames.is_between());
        }

        #[test]
        fn foreign_bytes_are_an_error_and_nothing_worse(bytes: Vec<u8>) {
            let mut frames = Frames::new();
            frames.feed(&bytes);
            while let Ok(Some(_)) = frames.next_message() {}
        }
    }

    #[test]
    fn the_first_foreign_byte_is_noticed() {
        let mut frames = Frames::new();
        frames.feed(b"login: ");
        assert_eq!(frames.next_message(), Err(FrameError::Foreign { found: *b"logi" }));
    }

    #[test]
    fn an_announced_length_is_bounded() {
        let mut frames = Frames::new();
        frames.feed(b"AHR\x01\xff\xff\xff\xff");
        assert_eq!(frames.next_message(), Err(FrameError::TooLong { length: 0xffff_ffff }));
        assert!(frame(&vec![0; MAX_MESSAGE + 1]).is_err());
    }
}
