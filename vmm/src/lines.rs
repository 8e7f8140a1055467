//! Foreign bytes as lines that can be shown: bounded in length, without control characters.

/// The longest line that is told apart; what is longer is cut there and goes on in the next.
const MAX_LINE: usize = 4096;

/// Cuts a stream into lines.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// The lines that `bytes` complete, each without its end.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in bytes {
            if *byte == b'\n' || self.begun.len() == MAX_LINE {
                lines.push(shown(&std::mem::take(&mut self.begun)));
            }
            if *byte != b'\n' {
                self.begun.push(*byte);
            }
        }
        lines
    }

    /// What was begun and not completed, if anything.
    pub fn begun(&self) -> Option<String> {
        let line = shown(&self.begun);
        if line.is_empty() { None } else { Some(line) }
    }
}

/// A line as it can be shown: escape sequences and other control characters are left out.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut line = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            // ECMA-48: a control sequence ends with a letter from @ to ~.
            '\u{1b}' => {
                if letters.next_if_eq(&'[').is_some() {
                    while letters.next().is_some_and(|letter| !('@'..='~').contains(&letter)) {}
                }
            }
            '\t' => line.push(' '),
            letter if letter.is_control() => {}
            letter => line.push(letter),
        }
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_what_a_person_would_see() {
        let mut lines = Lines::default();
        assert!(lines.feed(b"SeaBIOS\x1b[2J\x1b[1;1H one").is_empty());
        assert_eq!(lines.begun().as_deref(), Some("SeaBIOS one"));
        assert_eq!(lines.feed(b"\r\n\xff\x07two\n\n"), ["SeaBIOS one", "\u{fffd}two", ""]);
        assert_eq!(lines.begun(), None);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut lines = Lines::default();
        let cut = lines.feed(&vec![b'a'; 10 * MAX_LINE]);
        assert_eq!(cut.len(), 9);
        assert!(lines.begun.len() <= MAX_LINE);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_a_stream_is_cut(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..200) {
            let (mut whole, mut cut) = (Lines::default(), Lines::default());
            let at = at.min(bytes.len());
            let mut found = cut.feed(&bytes[..at]);
            found.extend(cut.feed(&bytes[at..]));
            let expected = whole.feed(&bytes);
            prop_assert_eq!(&found, &expected);
            prop_assert!(expected.iter().all(|line| !line.contains(char::is_control)));
        }
    }
}
