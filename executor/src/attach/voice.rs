//! What Nix hears of an external builder: it reads one terminal, on which standard output and standard error both are.
//!
//! Until a line comes that begins with byte 2, lines are talk of the set-up, which Nix shows only when asked to. A line that
//! begins with byte 1 is followed by an error in the form of the daemon protocol, and ends the build with it. After byte 2
//! comes the log. Source: `processSandboxSetupMessages` of Nix's `src/libstore/unix/build/derivation-builder.cc`.

use std::io::{self, Write};

/// The most of a message that is sent.
const MAX_MESSAGE: usize = 64 << 10;

/// Where in the conversation we are.
#[derive(Debug)]
pub struct Voice<W> {
    to: W,
    standing: bool,
}

impl<W: Write> Voice<W> {
    /// Speaks to `to`, from the beginning.
    pub fn new(to: W) -> Self {
        Self { to, standing: false }
    }

    /// Whether Nix takes what comes for the build's log.
    pub fn is_standing(&self) -> bool {
        self.standing
    }

    /// The room stands: from here on it is the log.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn stand(&mut self) -> io::Result<()> {
        if !self.standing {
            self.to.write_all(b"\x02\n")?;
            self.to.flush()?;
            self.standing = true;
        }
        Ok(())
    }

    /// Bytes of the builder.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn log(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.to.flush()
    }

    /// Words of our own: lines in the log, or talk of the set-up.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn say(&mut self, words: &str) -> io::Result<()> {
        let mut text = String::new();
        for line in words.lines() {
            // Byte 1 or 2 at the beginning of a line would mean something.
            text.push_str("anchorhold: ");
            text.push_str(line);
            text.push('\n');
        }
        self.to.write_all(text.as_bytes())?;
        self.to.flush()
    }

    /// What ends the build: before the room stands as an error of Nix's own, later as the log's last lines.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn fail(&mut self, words: &str) -> io::Result<()> {
        self.say(words)?;
        if self.standing {
            return Ok(());
        }
        let mut text = format!("anchorhold: {words}");
        while text.len() > MAX_MESSAGE {
            text.pop();
        }
        self.to.write_all(b"\x01\n")?;
        self.to.write_all(&error(&text))?;
        self.to.flush()
    }
}

/// An error without position and traces, as the daemon protocol has it since version 1.26.
fn error(message: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let number = |bytes: &mut Vec<u8>, number: u64| bytes.extend_from_slice(&number.to_le_bytes());
    let text = |bytes: &mut Vec<u8>, text: &str| {
        number(bytes, text.len() as u64);
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    };
    text(&mut bytes, "Error");
    number(&mut bytes, 0);
    text(&mut bytes, "Error");
    text(&mut bytes, message);
    number(&mut bytes, 0);
    number(&mut bytes, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_before_the_room_stands_is_one_of_nix() {
        let mut heard = Vec::new();
        Voice::new(&mut heard).fail("no").unwrap();
        let wanted: Vec<u8> = [
            b"anchorhold: no\n\x01\n".as_slice(),
            b"\x05\0\0\0\0\0\0\0Error\0\0\0",
            b"\0\0\0\0\0\0\0\0",
            b"\x05\0\0\0\0\0\0\0Error\0\0\0",
            b"\x0e\0\0\0\0\0\0\0anchorhold: no\0\0",
            &[0; 16],
        ]
        .concat();
        assert_eq!(heard, wanted);
    }

    #[test]
    fn what_fails_later_is_in_the_log() {
        let mut heard = Vec::new();
        let mut voice = Voice::new(&mut heard);
        voice.stand().unwrap();
        voice.stand().unwrap();
        voice.log(b"\x02 of the builder\n").unwrap();
        voice.fail("one\n\x01two").unwrap();
        assert_eq!(heard, b"\x02\n\x02 of the builder\nanchorhold: one\nanchorhold: \x01two\n");
    }
}
