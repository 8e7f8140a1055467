//! A builder's output in lines: cut as a terminal would show them, and the last ones kept for a failure's story.

use std::collections::VecDeque;

/// Longest line that is put together; longer ones come in pieces. Memory of a splitter is bounded by it.
pub const MAX_LINE_LEN: usize = 64 * 1024;

/// Cuts output that comes in pieces of any size into lines, without their ends.
///
/// A carriage return goes back to the line's beginning and what follows overwrites it, as on a terminal and as in Nix
/// (`DerivationGoal::handleChildOutput` in `src/libstore/build/derivation-goal.cc`): of a progress meter the last state is left.
#[derive(Debug, Default)]
pub struct LineSplitter {
    line: Vec<u8>,
    position: usize,
    /// Something was written since the last line's end.
    begun: bool,
}

impl LineSplitter {
    /// A splitter at the beginning of a line.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one more piece and gives each line that it ends to `each`.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            match first {
                b'\n' => {
                    self.end(&mut each);
                    rest = &rest[1..];
                }
                b'\r' => {
                    self.position = 0;
                    self.begun = true;
                    rest = &rest[1..];
                }
                _ => {
                    let run = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
                    // One byte of room at least: a full line was given away below.
                    let taken = run.min(MAX_LINE_LEN - self.position);
                    self.put(&rest[..taken]);
                    if self.position == MAX_LINE_LEN {
                        self.give_piece(&mut each);
                    }
                    rest = &rest[taken..];
                }
            }
        }
    }

    /// The line that has no end yet, if any, for the end of the output.
    pub fn finish(&mut self, mut each: impl FnMut(&[u8])) {
        if self.begun && !self.line.is_empty() {
            self.end(&mut each);
        }
        *self = Self::default();
    }

    fn put(&mut self, bytes: &[u8]) {
        self.begun = true;
        let overwritten = bytes.len().min(self.line.len() - self.position);
        self.line[self.position..self.position + overwritten].copy_from_slice(&bytes[..overwritten]);
        self.line.extend_from_slice(&bytes[overwritten..]);
        self.position += bytes.len();
    }

    fn end(&mut self, each: &mut impl FnMut(&[u8])) {
        each(&self.line);
        self.line.clear();
        self.position = 0;
        self.begun = false;
    }

    /// Gives away a line that is full; a character of UTF-8 that it ends in the middle of is kept.
    fn give_piece(&mut self, each: &mut impl FnMut(&[u8])) {
        let start = (self.line.len().saturating_sub(3)..self.line.len()).rev().find(|&at| self.line[at] >= 0xc0);
        let cut = match start {
            Some(at) if std::str::from_utf8(&self.line[at..]).is_err_and(|error| error.error_len().is_none()) => at,
            _ => self.line.len(),
        };
        let kept = self.line.split_off(cut);
        each(&self.line);
        self.position = kept.len();
        self.begun = !kept.is_empty();
        self.line = kept;
    }
}

/// The last lines of a log, with bounds on their number and on their bytes.
#[derive(Debug)]
pub struct Tail {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    max_lines: usize,
    max_bytes: usize,
    seen: u64,
}

impl Tail {
    /// Keeps at most `max_lines` lines and `max_bytes` bytes of them; a line longer than that is kept by its beginning.
    pub fn new(max_lines: usize, max_bytes: usize) -> Self {
        Self { lines: VecDeque::new(), bytes: 0, max_lines, max_bytes, seen: 0 }
    }

    /// One more line, without its end.
    pub fn push(&mut self, line: &[u8]) {
        self.seen += 1;
        if self.max_lines == 0 {
            return;
        }
        let line = &line[..line.len().min(self.max_bytes)];
        while self.lines.len() >= self.max_lines || self.bytes + line.len() > self.max_bytes {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.len();
        }
        self.bytes += line.len();
        self.lines.push_back(line.to_vec());
    }

    /// The lines that are kept, oldest first.
    pub fn lines(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.lines.iter().map(Vec::as_slice)
    }

    /// How many lines there were in all.
    pub fn seen(&self) -> u64 {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut splitter, mut lines) = (LineSplitter::new(), Vec::new());
        for piece in pieces {
            splitter.feed(piece, |line| lines.push(line.to_vec()));
            assert!(splitter.line.len() <= MAX_LINE_LEN);
        }
        splitter.finish(|line| lines.push(line.to_vec()));
        lines
    }

    #[test]
    fn lines_are_those_that_nix_shows() {
        assert_eq!(split(&[b"a\n\nb\r\nlast"]), [&b"a"[..], b"", b"b", b"last"]);
        assert_eq!(split(&[b"part\rial\tq\x08"]), [b"ial\tq\x08"]);
        assert_eq!(split(&[b"abcdef\rxy\n"]), [b"xycdef"]);
        assert_eq!(split(&[b"\r"]), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn an_endless_line_comes_in_pieces_that_break_no_character() {
        let long = "a".repeat(MAX_LINE_LEN - 1) + "\u{20ac}" + &"b".repeat(10);
        let lines = split(&[long.as_bytes(), b"\n"]);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), MAX_LINE_LEN - 1);
        assert_eq!(lines.concat(), long.as_bytes());
        assert_eq!(split(&[&vec![0x80; 3 * MAX_LINE_LEN]]).len(), 3);
    }

    #[test]
    fn a_tail_is_bounded_in_lines_and_in_bytes() {
        let mut tail = Tail::new(3, 10);
        for line in [&b"one"[..], b"two", b"three", b"4", b"a line of many bytes", b"x"] {
            tail.push(line);
            assert!(tail.bytes <= 10 && tail.lines.len() <= 3);
        }
        assert_eq!(tail.lines().collect::<Vec<_>>(), [b"x"]);
        assert_eq!(tail.seen(), 6);
        let mut none = Tail::new(0, 10);
        none.push(b"x");
        assert_eq!(none.lines().len(), 0);
    }

    proptest! {
        #[test]
        fn pieces_give_the_lines_of_the_whole(bytes in "[a-c\r\n\u{e4}]{0,60}", cut in 0usize..60) {
            let bytes = bytes.as_bytes();
            let cut = cut.min(bytes.len());
            prop_assert_eq!(split(&[&bytes[..cut], &bytes[cut..]]), split(&[bytes]));
        }
    }
}
