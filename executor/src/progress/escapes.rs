//! What of a builder's output may reach a terminal.
//!
//! A log holds whatever a builder wrote, and a terminal obeys what it is shown: it renames its window, fills the clipboard,
//! answers questions into the shell's input, and paints over what stood there. So what is shown is rebuilt here character
//! by character, and nothing passes that is not on a list: printable characters, tabs, newlines and, if wanted, colours.
//!
//! The grammar is that of ECMA-48 as terminals read it, with two differences that show more than a terminal would, never
//! less: a newline ends every sequence, so that an opened one cannot hide the rest of a log, and a lone carriage
//! return is a newline, so that nothing is painted over.

/// Most bytes of parameters that a colour sequence may have; longer ones are dropped.
const MAX_PARAMETERS: usize = 48;

/// Where in a sequence the filter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ground,
    /// After an escape.
    Escape,
    /// After an escape and at least one intermediate byte, such as `ESC (`.
    EscapeIntermediate,
    /// In a control sequence; `plain` says that it can still be one for colours.
    Csi {
        plain: bool,
    },
    /// In a string: OSC, DCS, APC, PM, SOS or a title of screen; `bell` says that a bell ends it.
    String {
        bell: bool,
    },
    /// After an escape inside a string.
    StringEscape {
        bell: bool,
    },
}

/// A filter that can be fed in pieces of any size: it remembers where in a sequence or a character a piece ended.
#[derive(Debug, Clone)]
pub struct EscapeFilter {
    colours: bool,
    state: State,
    /// The beginning of a UTF-8 character.
    partial: [u8; 4],
    partial_len: usize,
    parameters: String,
    carriage_return: bool,
}

impl EscapeFilter {
    /// A filter; `colours` lets sequences for colours and weight (SGR) pass.
    pub fn new(colours: bool) -> Self {
        Self {
            colours,
            state: State::Ground,
            partial: [0; 4],
            partial_len: 0,
            parameters: String::new(),
            carriage_return: false,
        }
    }

    /// Filters one more piece; what may be shown is added to `shown`.
    pub fn feed(&mut self, bytes: &[u8], shown: &mut String) {
        for &byte in bytes {
            self.byte(byte, shown);
        }
    }

    /// The end of the output: a character that was cut off is shown as such. The filter can be used anew.
    pub fn finish(&mut self, shown: &mut String) {
        if self.partial_len > 0 {
            self.partial_len = 0;
            self.character(char::REPLACEMENT_CHARACTER, shown);
        }
        *self = Self::new(self.colours);
    }

    fn byte(&mut self, byte: u8, shown: &mut String) {
        if self.partial_len == 0 && byte.is_ascii() {
            return self.character(char::from(byte), shown);
        }
        self.partial[self.partial_len] = byte;
        self.partial_len += 1;
        let partial = self.partial;
        match std::str::from_utf8(&partial[..self.partial_len]) {
            Ok(text) => {
                self.partial_len = 0;
                for character in text.chars() {
                    self.character(character, shown);
                }
            }
            Err(error) if error.error_len().is_none() => {}
            Err(_) => {
                // Only the last byte can be the wrong one: what was before it was the beginning of a character.
                let alone = self.partial_len == 1;
                self.partial_len = 0;
                // A control of the upper half as one byte: terminals that are not set to UTF-8 obey it.
                let control = alone && (0x80..=0x9f).contains(&byte);
                self.character(if control { char::from(byte) } else { char::REPLACEMENT_CHARACTER }, shown);
                if !alone {
                    self.byte(byte, shown);
                }
            }
        }
    }

    fn character(&mut self, character: char, shown: &mut String) {
        // These act the same wherever they stand.
        match character {
            '\n' => {
                self.state = State::Ground;
                return self.show('\n', shown);
            }
            '\x18' | '\x1a' => return self.state = State::Ground,
            _ => {}
        }
        match self.state {
            State::Ground => self.in_ground(character, shown),
            State::Escape => match character {
                '\x1b' => {}
                '[' => self.start_csi(),
                ']' | 'k' => self.state = State::String { bell: true },
                'P' | 'X' | '^' | '_' => self.state = State::String { bell: false },
                ' '..='/' => self.state = State::EscapeIntermediate,
                '0'..='~' => self.state = State::Ground,
                '\0'..='\x1f' | '\x7f' => {}
                _ => self.again(character, shown),
            },
            State::EscapeIntermediate => match character {
                '\x1b' => self.state = State::Escape,
                '0'..='~' => self.state = State::Ground,
                '\0'..='/' | '\x7f' => {}
                _ => self.again(character, shown),
            },
            State::Csi { plain } => match character {
                '\x1b' => self.state = State::Escape,
                '0'..='9' | ';' | ':' if self.parameters.len() < MAX_PARAMETERS => self.parameters.push(character),
                ' '..='?' => self.state = State::Csi { plain: false },
                '@'..='~' => {
                    self.state = State::Ground;
                    if plain && character == 'm' && self.colours && is_harmless(&self.parameters) {
                        shown.push_str("\x1b[");
                        shown.push_str(&self.parameters);
                        shown.push('m');
                    }
                }
                '\0'..='\x1f' | '\x7f' => {}
                _ => self.again(character, shown),
            },
            State::String { bell } => match character {
                '\x07' if bell => self.state = State::Ground,
                '\u{9c}' => self.state = State::Ground,
                '\x1b' => self.state = State::StringEscape { bell },
                _ => {}
            },
            State::StringEscape { .. } => match character {
                '\\' => self.state = State::Ground,
                // The string is broken off, and a new sequence has begun.
                _ => {
                    self.state = State::Escape;
                    self.character(character, shown);
                }
            },
        }
    }

    fn in_ground(&mut self, character: char, shown: &mut String) {
        match character {
            '\x1b' => self.state = State::Escape,
            '\u{9b}' => self.start_csi(),
            '\u{9d}' => self.state = State::String { bell: true },
            '\u{90}' | '\u{98}' | '\u{9e}' | '\u{9f}' => self.state = State::String { bell: false },
            '\r' => self.carriage_return = true,
            '\t' => self.show('\t', shown),
            // Marks that turn the direction of writing make a line read as another one.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' => {
                self.show(char::REPLACEMENT_CHARACTER, shown);
            }
            _ if character.is_control() => {}
            _ => self.show(character, shown),
        }
    }

    /// Leaves a sequence that `character` cannot be a part of.
    fn again(&mut self, character: char, shown: &mut String) {
        self.state = State::Ground;
        self.in_ground(character, shown);
    }

    fn start_csi(&mut self) {
        self.parameters.clear();
        self.state = State::Csi { plain: true };
    }

    fn show(&mut self, character: char, shown: &mut String) {
        if std::mem::take(&mut self.carriage_return) && character != '\n' {
            shown.push('\n');
        }
        shown.push(character);
    }
}

/// Whether the parameters of a sequence for colours ask for nothing but what can be seen: concealed text is text that a
/// person copies without having read it.
fn is_harmless(parameters: &str) -> bool {
    let mut numbers = parameters.split(';');
    while let Some(number) = numbers.next() {
        match number.split(':').next().unwrap_or_default().trim_start_matches('0') {
            "8" => return false,
            "38" | "48" | "58" if !number.contains(':') => {
                // The colour's own numbers follow.
                let skipped = match numbers.next() {
                    Some("5") => 1,
                    Some("2") => 3,
                    _ => return false,
                };
                for _ in 0..skipped {
                    numbers.next();
                }
            }
            _ => {}
        }
    }
    true
}

/// All of `bytes` as it may be shown.
pub fn filter(bytes: &[u8], colours: bool) -> String {
    let mut filter = EscapeFilter::new(colours);
    let mut shown = String::with_capacity(bytes.len());
    filter.feed(bytes, &mut shown);
    filter.finish(&mut shown);
    shown
}

/// One line as it may be shown, on one line: newlines in it become spaces, and a colour that it left on is put out.
pub fn filter_line(line: &[u8], colours: bool) -> String {
    let mut shown = filter(line, colours);
    if shown.contains('\n') {
        shown = shown.replace('\n', " ");
    }
    if shown.contains('\x1b') {
        shown.push_str("\x1b[0m");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What builders might write, and what a person may see of it, without and with colours.
    const CORPUS: &[(&[u8], &str, &str)] = &[
        (b"plain\ttext\n", "plain\ttext\n", "plain\ttext\n"),
        (b"\x1b[1;31mred\x1b[0m", "red", "\x1b[1;31mred\x1b[0m"),
        (b"\x1b[38;5;8mgrey\x1b[38;2;1;8;3mx", "greyx", "\x1b[38;5;8mgrey\x1b[38;2;1;8;3mx"),
        (b"\x1b[38:2::1:2:3mx\x1b[m", "x", "\x1b[38:2::1:2:3mx\x1b[m"),
        (b"a\x1b[8mconcealed\x1b[08mb\x1b[1;8mc", "aconcealedbc", "aconcealedbc"),
        (b"\x1b]0;title\x07a", "a", "a"),
        (b"\x1b]2;title\x1b\\a", "a", "a"),
        (b"\x1b]52;c;cm0gLXJmIH4K\x07a", "a", "a"),
        (b"\x1b]52;c;cm0gLXJmIH4K\x9ca", "a", "a"),
        ("\u{9d}52;c;cm0=\u{9c}a".as_bytes(), "a", "a"),
        ("\x1b]0;\u{dc}ber\x07a".as_bytes(), "a", "a"),
        (b"\x9d52;c;cm0=\x07a", "a", "a"),
        (b"\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link", "link"),
        (b"\x1b[2J\x1b[H\x1b[1;1f\x1b[10A\x1b[Kover", "over", "over"),
        (b"\x9b2Ja\x9b31mb", "ab", "a\x1b[31mb"),
        ("\u{9b}2Ja\u{9b}31mb".as_bytes(), "ab", "a\x1b[31mb"),
        (b"\x1b[>4;2m\x1b[?25l\x1b[!p\x1b[1$m\x1b[6nx", "x", "x"),
        (b"\x1bP$q\"p\x1b\\a\x1bPbell\x07not\x1b\\b", "ab", "ab"),
        (b"\x1b_apc\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\a", "a", "a"),
        (b"\x90x\x9c\x98x\x9c\x9ex\x9c\x9fx\x9ca", "a", "a"),
        (b"\x1bktitle\x1b\\a", "a", "a"),
        (b"\x1bc\x1b(0\x1b#8\x1b7\x1b8\x1b=\x1b%Ga", "a", "a"),
        (b"a\x1b", "a", "a"),
        (b"a\x1b\x1b\x1b[31", "a", "a"),
        (b"\x1b]0;never ended\nstill seen", "\nstill seen", "\nstill seen"),
        (b"\x1bP1;2\x1b[31mred", "red", "\x1b[31mred"),
        (b"\x1b[3\n1mx", "\n1mx", "\n1mx"),
        (b"\x1b[3\x181mx", "1mx", "1mx"),
        (b"safe\rrm -rf\r\n", "safe\nrm -rf\n", "safe\nrm -rf\n"),
        (b"abc\x08\x08\x08xyz\x07\x0b\x0c\x0e\x7f", "abcxyz", "abcxyz"),
        (b"\xff\xe2\x82x\xc0\xaf\xed\xa0\x80", "\u{fffd}\u{fffd}x\u{fffd}\u{fffd}\u{fffd}\u{fffd}", "*"),
        ("a\u{202e}b\u{85}c\u{80}".as_bytes(), "a\u{fffd}bc", "a\u{fffd}bc"),
        ("\x1b[31\u{e4}m".as_bytes(), "\u{e4}m", "\u{e4}m"),
        (b"\x1b[1\x1b]0;t\x07mx", "mx", "mx"),
    ];

    #[test]
    fn the_attacks_of_the_corpus_come_to_nothing() {
        for (bytes, plain, coloured) in CORPUS {
            assert_eq!(filter(bytes, false), *plain, "{:?}", bytes.escape_ascii().to_string());
            let coloured = if *coloured == "*" { plain } else { coloured };
            assert_eq!(filter(bytes, true), *coloured, "{:?}", bytes.escape_ascii().to_string());
        }
    }

    #[test]
    fn a_line_stays_one_and_puts_its_colours_out() {
        assert_eq!(filter_line(b"10%\r20%\x1b[31m!", true), "10% 20%\x1b[31m!\x1b[0m");
        assert_eq!(filter_line(b"10%\r20%\r", false), "10% 20%");
    }

    #[test]
    fn a_colour_with_endless_parameters_is_no_colour_and_takes_no_memory() {
        let mut filter = EscapeFilter::new(true);
        let mut shown = String::new();
        filter.feed(b"\x1b[", &mut shown);
        for _ in 0..1000 {
            filter.feed(b"1;1;1;1;1;1;1;1;", &mut shown);
        }
        assert!(filter.parameters.len() <= MAX_PARAMETERS);
        filter.feed(b"mx", &mut shown);
        assert_eq!(shown, "x");
    }

    /// Bytes with many sequences among them, whole and broken.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            prop::sample::select(CORPUS).prop_map(|(bytes, ..)| bytes.to_vec()),
            prop::sample::select(&b"\x1b\x9b\x9d\x9c\x90[]m;0189\\P\x07\r\n\x08k\xc2\xe2\x80\x9f"[..])
                .prop_map(|byte| vec![byte]),
            prop::collection::vec(any::<u8>(), 0..6),
        ];
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    /// What may follow an escape in what is shown, by a second and simpler reading.
    fn only_colours(shown: &str) -> bool {
        shown.split('\x1b').skip(1).all(|rest| {
            rest.strip_prefix('[').and_then(|rest| rest.split_once('m')).is_some_and(|(parameters, _)| {
                parameters.bytes().all(|byte| byte.is_ascii_digit() || byte == b';' || byte == b':')
            })
        })
    }

    proptest! {
        #[test]
        fn pieces_are_filtered_as_the_whole(
            bytes in hostile(), cuts in prop::collection::vec(0usize..200, 0..12), colours: bool,
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let (mut filter, mut shown, mut from) = (EscapeFilter::new(colours), String::new(), 0);
            for cut in cuts {
                filter.feed(&bytes[from..cut], &mut shown);
                from = cut;
            }
            filter.finish(&mut shown);
            prop_assert_eq!(shown, super::filter(&bytes, colours));
        }

        #[test]
        fn nothing_that_a_terminal_obeys_is_left(bytes in hostile()) {
            let plain = filter(&bytes, false);
            prop_assert!(plain.chars().all(|one| !one.is_control() || one == '\n' || one == '\t'), "{plain:?}");
            let coloured = filter(&bytes, true);
            let obeyed = |one: char| one.is_control() && !matches!(one, '\n' | '\t' | '\x1b');
            prop_assert!(!coloured.contains(obeyed) && only_colours(&coloured), "{coloured:?}");
            // What is shown passes the filter once more as it is.
            prop_assert_eq!(filter(coloured.as_bytes(), true), coloured);
        }

        #[test]
        fn text_without_controls_is_shown_as_it_is(text in "[^\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}]{0,60}") {
            prop_assert_eq!(filter(text.as_bytes(), true), text);
        }
    }
}
