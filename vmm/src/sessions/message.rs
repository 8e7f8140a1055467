//! What a person's program and the room's supervisor say to each other over the socket, in the frames of [`crate::report::frame`].

use std::ffi::OsString;

use crate::encoding::{FieldError, Reader, Writer};
use crate::linux::End;
use crate::report::frame::{FrameError, frame};

/// The longest command, in bytes over all of its words.
pub const MAX_COMMAND: usize = 64 << 10;
/// The most words of a command.
const MAX_WORDS: usize = 4096;
/// The longest name of a terminal.
const MAX_TERMINAL: usize = 64;

/// How large a terminal is, in letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Its lines.
    pub rows: u16,
    /// The letters in one.
    pub columns: u16,
}

/// What is wanted in a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// A program and its arguments; a shell if there are none.
    pub words: Vec<OsString>,
    /// A terminal of this kind (the variable `TERM`) and size.
    pub terminal: Option<(String, Size)>,
}

/// What a person says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The first: what is wanted.
    Open(Wanted),
    /// Standard input; nothing is its end.
    Input(Vec<u8>),
    /// The terminal has this size now.
    Resize(Size),
}

/// What a person is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What the program said.
    Output {
        /// Standard error; a terminal has only the other.
        error: bool,
        /// As it came.
        bytes: Vec<u8>,
    },
    /// The program has ended; the last that is told.
    Ended(End),
    /// There will be no session, or no more of it, and why; the last that is told.
    Over(String),
}

impl Wanted {
    /// That the guest can be told it.
    ///
    /// # Errors
    /// In words, what it cannot be told.
    pub fn check(&self) -> Result<(), &'static str> {
        let length: usize = self.words.iter().map(|word| word.len() + 1).sum();
        if length > MAX_COMMAND || self.words.len() > MAX_WORDS {
            return Err("the command is longer than 64 KiB or 4096 words");
        }
        if self.words.iter().any(|word| word.as_encoded_bytes().contains(&0)) {
            return Err("a word of the command has a NUL in it");
        }
        if self.words.first().is_some_and(|program| program.is_empty()) {
            return Err("the program has no name");
        }
        let is_plain = |name: &str| {
            let plain = |letter: u8| letter.is_ascii_alphanumeric() || b"-_.+".contains(&letter);
            !name.is_empty() && name.len() <= MAX_TERMINAL && name.bytes().all(plain)
        };
        if self.terminal.as_ref().is_some_and(|(name, _)| !is_plain(name)) {
            return Err("the terminal's kind (TERM) is none: letters, digits, -, _, . and +");
        }
        Ok(())
    }
}

impl Size {
    pub(crate) fn write(self, f: &mut Writer) -> &mut Writer {
        f.u32(self.rows.into()).u32(self.columns.into())
    }

    pub(crate) fn read(f: &mut Reader<'_>) -> Result<Self, FieldError> {
        let mut one = |field: &'static str| {
            let number = f.u32(field)?;
            u16::try_from(number).map_err(|_| FieldError::Unknown { field, value: number.into() })
        };
        Ok(Self { rows: one("rows")?, columns: one("columns")? })
    }
}

impl Said {
    /// As a frame.
    ///
    /// # Errors
    /// If it is too long.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut f = Writer::new();
        match self {
            Self::Open(Wanted { words, terminal }) => {
                f.u8(0).list(words, |f, word| _ = f.name(word)).flag(terminal.is_some());
                if let Some((name, size)) = terminal {
                    size.write(f.bytes(name));
                }
            }
            Self::Input(bytes) => drop(f.u8(1).bytes(bytes)),
            Self::Resize(size) => drop(size.write(f.u8(2))),
        }
        frame(&f.finish())
    }

    /// From the message of a frame.
    ///
    /// # Errors
    /// If it is none.
    pub fn decode(message: &[u8]) -> Result<Self, FrameError> {
        let mut f = Reader::new(message);
        let said = match f.u8("wish")? {
            0 => {
                let words = f.list("words", |f| Ok(f.name("word")?.to_owned()))?;
                let terminal = match f.flag("terminal wanted")? {
                    true => Some((f.text("terminal")?.to_owned(), Size::read(&mut f)?)),
                    false => None,
                };
                Self::Open(Wanted { words, terminal })
            }
            1 => Self::Input(f.bytes("input")?.to_vec()),
            2 => Self::Resize(Size::read(&mut f)?),
            other => return Err(FieldError::Unknown { field: "wish", value: other.into() }.into()),
        };
        f.end()?;
        Ok(said)
    }
}

impl Answer {
    /// As a frame.
    ///
    /// # Errors
    /// If it is too long.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut f = Writer::new();
        match self {
            Self::Output { error, bytes } => f.u8(0).flag(*error).bytes(bytes),
            Self::Ended(End::Status(status)) => f.u8(1).u8(*status),
            Self::Ended(End::Signal(signal)) => f.u8(2).u32(*signal),
            Self::Ended(End::NotStarted(why)) => f.u8(3).bytes(why),
            Self::Over(why) => f.u8(4).bytes(why),
        };
        frame(&f.finish())
    }

    /// From the message of a frame. It comes out of a room: what is said for people is made text without controls.
    ///
    /// # Errors
    /// If it is none.
    pub fn decode(message: &[u8]) -> Result<Self, FrameError> {
        let mut f = Reader::new(message);
        let words = |f: &mut Reader<'_>| {
            let text = String::from_utf8_lossy(f.bytes("words")?);
            Ok::<_, FieldError>(text.chars().filter(|letter| !letter.is_control()).collect())
        };
        let answer = match f.u8("answer")? {
            0 => Self::Output { error: f.flag("standard error")?, bytes: f.bytes("output")?.to_vec() },
            1 => Self::Ended(End::Status(f.u8("exit status")?)),
            2 => Self::Ended(End::Signal(f.u32("signal")?)),
            3 => Self::Ended(End::NotStarted(words(&mut f)?)),
            4 => Self::Over(words(&mut f)?),
            other => return Err(FieldError::Unknown { field: "answer", value: other.into() }.into()),
        };
        f.end()?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::exchange::tests::value;
    use crate::report::Frames;

    fn terminal_size() -> impl Strategy<Value = Size> {
        any::<(u16, u16)>().prop_map(|(rows, columns)| Size { rows, columns })
    }

    fn said() -> impl Strategy<Value = Said> {
        let terminal = prop::option::of((any::<String>(), terminal_size()));
        prop_oneof![
            (prop::collection::vec(value(), 0..5), terminal)
                .prop_map(|(words, terminal)| Said::Open(Wanted { words, terminal })),
            any::<Vec<u8>>().prop_map(Said::Input),
            terminal_size().prop_map(Said::Resize),
        ]
    }

    fn answer() -> impl Strategy<Value = Answer> {
        prop_oneof![
            any::<(bool, Vec<u8>)>().prop_map(|(error, bytes)| Answer::Output { error, bytes }),
            any::<u8>().prop_map(|status| Answer::Ended(End::Status(status))),
            any::<u32>().prop_map(|signal| Answer::Ended(End::Signal(signal))),
            "[a-zäß ]*".prop_map(|why| Answer::Ended(End::NotStarted(why))),
            "[a-zäß ]*".prop_map(Answer::Over),
        ]
    }

    fn message(bytes: &[u8]) -> Vec<u8> {
        let mut frames = Frames::new();
        frames.feed(bytes);
        frames.next_message().unwrap().unwrap()
    }

    proptest! {
        #[test]
        fn what_is_said_arrives_equal(said in said(), answer in answer()) {
            prop_assert_eq!(Said::decode(&message(&said.encode().unwrap())), Ok(said));
            prop_assert_eq!(Answer::decode(&message(&answer.encode().unwrap())), Ok(answer));
        }

        #[test]
        fn foreign_bytes_are_an_error_and_nothing_worse(bytes: Vec<u8>) {
            let _ = Said::decode(&bytes);
            let _ = Answer::decode(&bytes);
        }
    }

    #[test]
    fn what_a_room_says_for_people_cannot_move_their_cursor() {
        let over = Answer::Over("the \x1b[2Jbuild\r\nhas ended\u{9b}1m".into());
        assert_eq!(
            Answer::decode(&message(&over.encode().unwrap())),
            Ok(Answer::Over("the [2Jbuildhas ended1m".into()))
        );
    }

    #[test]
    fn what_no_guest_could_be_told_is_refused() {
        let wanted = |words: &[&str], terminal: &str| {
            let size = Size { rows: 24, columns: 80 };
            let terminal = (!terminal.is_empty()).then(|| (terminal.to_owned(), size));
            Wanted { words: words.iter().map(OsString::from).collect(), terminal }.check().is_ok()
        };
        assert!(wanted(&[], "xterm-256color") && wanted(&["echo", "", "'"], ""));
        assert!(!wanted(&[""], "") && !wanted(&["a\0b"], "") && !wanted(&["a", &"x".repeat(MAX_COMMAND)], ""));
        assert!(!wanted(&[], "x\"; reboot") && !wanted(&[], &"x".repeat(65)));
        assert!(Wanted { words: vec!["x".into(); MAX_WORDS + 1], terminal: None }.check().is_err());
    }
}
