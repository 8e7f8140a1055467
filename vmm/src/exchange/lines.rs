//! Line ends of programs that write them as DOS did.

/// Makes plain ends of lines as pieces of a stream come: a carriage return right before a line's end is left out, every other stays.
#[derive(Debug, Default)]
pub struct PlainLines {
    /// The last piece ended with a carriage return.
    held: bool,
}

impl PlainLines {
    /// The next piece.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::with_capacity(bytes.len() + 1);
        for byte in bytes {
            if std::mem::take(&mut self.held) && *byte != b'\n' {
                plain.push(b'\r');
            }
            match byte {
                b'\r' => self.held = true,
                other => plain.push(*other),
            }
        }
        plain
    }

    /// What was still held at the end of the stream.
    pub fn end(&mut self) -> &'static [u8] {
        if std::mem::take(&mut self.held) { b"\r" } else { b"" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(text: &[u8], pieces: usize) -> Vec<u8> {
        let mut lines = PlainLines::default();
        let mut all: Vec<u8> = text.chunks(pieces.max(1)).flat_map(|piece| lines.feed(piece)).collect();
        all.extend(lines.end());
        all
    }

    #[test]
    fn only_what_stands_before_a_lines_end_goes() {
        for pieces in 1..9 {
            assert_eq!(plain(b"a\r\nb\rc\r\r\n\r", pieces), b"a\nb\rc\r\n\r", "in pieces of {pieces}");
        }
    }

    proptest! {
        #[test]
        fn it_is_the_same_in_all_pieces(text in "[a\r\n]{0,20}", pieces in 1_usize..5) {
            prop_assert_eq!(plain(text.as_bytes(), pieces), text.replace("\r\n", "\n").into_bytes());
        }
    }
}
