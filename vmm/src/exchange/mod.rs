//! What is to be run in a guest, as data.
//!
//! A command's arguments, environment and working directory lie in a file of the share `xchg`, or travel in a message: each
//! behind its length, so that there is nothing to quote and nothing to escape. Our own agent reads that file ([`Command`]).
//! A guest without it gets a second file that its own shell reads ([`sh`], [`windows`]).

pub mod lines;
pub mod sh;
pub mod windows;

use std::ffi::OsString;
use std::path::PathBuf;

use crate::encoding::{FieldError, Reader, Writer};

/// The file of a [`Command`] in the share `xchg`.
pub const COMMAND_FILE: &str = "command";

/// What the file begins with; the last byte is its version.
const MAGIC: &[u8; 4] = b"AHC\x01";

/// The longest command that is read, in bytes: arguments, environment and all. Linux itself takes 6 MiB at most (execve(2):
/// three quarters of its stack limit of 8 MiB), but a shell's variables may be longer.
pub const MAX_COMMAND: usize = 64 << 20;

/// A program to be run, with everything that it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The path of the program, as the guest sees it.
    pub program: OsString,
    /// Its arguments, without its own name.
    pub arguments: Vec<OsString>,
    /// Its whole environment, in this order.
    pub environment: Vec<(OsString, OsString)>,
    /// Where it starts.
    pub directory: PathBuf,
}

/// Why a command cannot be written, or the bytes of one are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The bytes begin differently.
    #[error("not a command of this version: it begins with {found:02x?}, not with {MAGIC:02x?}")]
    Magic {
        /// With what, four bytes at most.
        found: Vec<u8>,
    },
    /// Too long.
    #[error("a command of {length} bytes is longer than {MAX_COMMAND}; pass large values as files")]
    TooLong {
        /// In bytes.
        length: usize,
    },
    /// A name that no environment can hold.
    #[error("the variable {name:?} cannot be in an environment: its name is empty or has an equals sign")]
    VariableName {
        /// The name.
        name: OsString,
    },
    /// A NUL, which ends every string that a kernel takes.
    #[error("{what} has a NUL byte in it, which no program could be given")]
    Nul {
        /// What has it.
        what: String,
    },
    /// The fields are not in order.
    #[error("a broken command: {0}")]
    Field(#[from] FieldError),
}

impl Command {
    /// `program` without arguments, with an empty environment, in the root directory.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), environment: Vec::new(), directory: PathBuf::from("/") }
    }

    /// With these arguments behind those that it has.
    #[must_use]
    pub fn arguments<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// With this variable behind those that it has.
    #[must_use]
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starting in `directory`.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// That every string of it can be given to a program.
    ///
    /// # Errors
    /// Naming the string that cannot.
    pub fn check(&self) -> Result<(), CommandError> {
        let free = |what: String, value: &std::ffi::OsStr| {
            if value.as_encoded_bytes().contains(&0) { Err(CommandError::Nul { what }) } else { Ok(()) }
        };
        free("the program".into(), &self.program)?;
        free("the working directory".into(), self.directory.as_os_str())?;
        for (number, argument) in self.arguments.iter().enumerate() {
            free(format!("argument {}", number + 1), argument)?;
        }
        for (name, value) in &self.environment {
            if name.is_empty() || name.as_encoded_bytes().contains(&b'=') {
                return Err(CommandError::VariableName { name: name.clone() });
            }
            free(format!("the name of variable {name:?}"), name)?;
            free(format!("variable {name:?}"), value)?;
        }
        Ok(())
    }

    /// As the bytes of a file.
    ///
    /// # Errors
    /// If a string cannot be given to a program, and if all is too long.
    pub fn encode(&self) -> Result<Vec<u8>, CommandError> {
        self.check()?;
        let mut fields = Writer::new();
        self.write(&mut fields);
        let fields = fields.finish();
        let length = fields.len() + MAGIC.len();
        if length > MAX_COMMAND {
            return Err(CommandError::TooLong { length });
        }
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(MAGIC);
        bytes.extend(fields);
        Ok(bytes)
    }

    /// From the bytes of a file.
    ///
    /// # Errors
    /// If they are not a command of this version, whole and with nothing behind it.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        if bytes.len() > MAX_COMMAND {
            return Err(CommandError::TooLong { length: bytes.len() });
        }
        let Some(fields) = bytes.strip_prefix(MAGIC) else {
            return Err(CommandError::Magic { found: bytes[..bytes.len().min(4)].to_vec() });
        };
        let mut fields = Reader::new(fields);
        let command = Self::read(&mut fields)?;
        fields.end()?;
        command.check()?;
        Ok(command)
    }

    pub(crate) fn write(&self, fields: &mut Writer) {
        fields.name(&self.program).name(&self.directory);
        fields.list(&self.arguments, |one, argument| {
            one.name(argument);
        });
        fields.list(&self.environment, |one, (name, value)| {
            one.name(name).name(value);
        });
    }

    pub(crate) fn read(fields: &mut Reader<'_>) -> Result<Self, FieldError> {
        let program = fields.name("program")?.to_owned();
        let directory = PathBuf::from(fields.name("directory")?);
        let arguments = fields.list("arguments", |one| Ok(one.name("argument")?.to_owned()))?;
        let environment = fields.list("environment", |one| {
            Ok((one.name("variable's name")?.to_owned(), one.name("variable's value")?.to_owned()))
        })?;
        Ok(Self { program, arguments, environment, directory })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;

    /// Any bytes that a program can be given, the odd ones often.
    pub(crate) fn value() -> impl Strategy<Value = OsString> {
        let odd = prop::sample::select(b"\n\r\t '\"\\%!$`^&|<>*?;()[]{}=#~\xff\xc3\x28\x01\x7f".to_vec());
        prop::collection::vec(prop_oneof![odd, 1..=255u8], 0..40).prop_map(OsString::from_vec)
    }

    prop_compose! {
        pub(crate) fn command()(
            program in value(),
            directory in value(),
            arguments in prop::collection::vec(value(), 0..5),
            environment in prop::collection::vec(("[a-zA-Z_.][a-zA-Z0-9_.-]{0,9}", value()), 0..5),
        ) -> Command {
            let environment = environment.into_iter().map(|(name, value)| (name.into(), value)).collect();
            Command { program, arguments, environment, directory: directory.into() }
        }
    }

    proptest! {
        #[test]
        fn a_command_arrives_equal(command in command()) {
            prop_assert_eq!(Command::decode(&command.encode().unwrap()), Ok(command));
        }

        #[test]
        fn foreign_bytes_are_an_error_and_nothing_worse(mut bytes: Vec<u8>, begin: bool) {
            if begin {
                bytes.splice(0..0, *MAGIC);
            }
            let _ = Command::decode(&bytes);
        }

        #[test]
        fn every_cut_is_noticed(command in command(), at: prop::sample::Index) {
            let bytes = command.encode().unwrap();
            prop_assert!(Command::decode(&bytes[..at.index(bytes.len())]).is_err());
        }
    }

    #[test]
    fn what_no_program_could_be_given_is_refused_by_name() {
        let told = |command: Command| command.encode().unwrap_err().to_string();
        assert!(told(Command::new("a").arguments(["b", "c\0"])).starts_with("argument 2 has a NUL"));
        assert!(told(Command::new("a").variable("A=B", "c")).starts_with("the variable \"A=B\""));
        assert!(told(Command::new("a").variable("", "c")).contains("empty"));
        let long = OsString::from_vec(vec![b'x'; MAX_COMMAND]);
        assert!(told(Command::new("a").variable("LONG", long)).contains("longer than 67108864"));
    }

    #[test]
    fn a_value_of_a_mebibyte_arrives() {
        let long = OsString::from_vec((0..1 << 20).map(|at| 1 + (at % 255) as u8).collect());
        let command = Command::new("/bin/sh").variable("LONG", long);
        assert_eq!(Command::decode(&command.encode().unwrap()), Ok(command));
    }
}
