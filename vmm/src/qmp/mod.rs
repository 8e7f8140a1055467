//! The QEMU Machine Protocol: JSON messages, one on a line. Source: `docs/interop/qmp-spec.txt` of QEMU.
//!
//! What comes from QEMU is foreign: a guest that has taken it over speaks here. Every message is bounded in length and depth, and
//! what is not understood ends the connection instead of being guessed at.

mod message;

pub use message::{Event, Greeting, Message, ParseError, Splitter};

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use serde_json::{Value, json};

use crate::channel::Channel;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU says no.
    #[error("QEMU refuses {command}: {description} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class of errors.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// QEMU says what cannot be understood.
    #[error("QEMU's answer is no QMP: {0}")]
    NotQmp(#[from] ParseError),
    /// The socket.
    #[error("talking to QEMU: {0}")]
    Socket(#[from] io::Error),
}

/// The client's end.
#[derive(Debug)]
pub struct Qmp {
    channel: Channel,
    splitter: Splitter,
    last_id: u64,
}

impl Qmp {
    /// A client on this channel, which QEMU has not been greeted on.
    pub fn new(channel: Channel) -> Self {
        Self { channel, splitter: Splitter::default(), last_id: 0 }
    }

    /// Whether QEMU is still there.
    pub fn is_open(&self) -> bool {
        self.channel.is_open()
    }

    /// Whether commands wait to be sent.
    pub fn has_outgoing(&self) -> bool {
        self.channel.has_outgoing()
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// The socket's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.channel.flush()
    }

    /// Sends a command; its answer comes with the returned id. With a descriptor it must be one that takes it (`getfd`, `add-fd`).
    ///
    /// # Errors
    /// The socket's.
    pub fn send(&mut self, command: &str, arguments: &Value, descriptor: Option<BorrowedFd<'_>>) -> io::Result<u64> {
        self.last_id += 1;
        let mut message = json!({ "execute": command, "id": self.last_id });
        if !arguments.is_null() {
            message["arguments"] = arguments.clone();
        }
        let mut line = serde_json::to_vec(&message)?;
        line.push(b'\n');
        match descriptor {
            Some(descriptor) => self.channel.send_with(&line, descriptor)?,
            None => self.channel.send(&line)?,
        }
        Ok(self.last_id)
    }

    /// The messages that have come, without waiting.
    ///
    /// # Errors
    /// The socket's, or what is no QMP.
    pub fn receive(&mut self) -> Result<Vec<Message>, QmpError> {
        let mut messages = Vec::new();
        while let Some(bytes) = self.channel.read()? {
            self.splitter.feed(&bytes, &mut messages)?;
        }
        Ok(messages)
    }
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// What `screendump` is told to write a PNG. QEMU 7.1.
pub fn screendump(file: &Path) -> Value {
    json!({ "filename": file.to_string_lossy(), "format": "png" })
}
