//! A machine's serial console: every byte to the log, the last lines at hand, and a bound on all of it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};

use crate::lines::Lines;

/// How many lines are kept for whoever asks what was said last: a kernel's panic has some forty.
pub const KEPT_LINES: usize = 80;

/// What has come from a console.
#[derive(Debug)]
pub struct Console {
    log: Option<File>,
    limit: u64,
    written: u64,
    lines: Lines,
    last: VecDeque<String>,
}

impl Console {
    /// A console that writes to `log` and may say `limit` bytes.
    pub fn new(log: Option<File>, limit: u64) -> Self {
        Self { log, limit, written: 0, lines: Lines::default(), last: VecDeque::new() }
    }

    /// Takes bytes, and gives the lines that they complete. What is above the limit is counted and dropped.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn take(&mut self, bytes: &[u8]) -> io::Result<Vec<String>> {
        let room = self.limit.saturating_sub(self.written);
        self.written += bytes.len() as u64;
        let bytes = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        if let Some(log) = &mut self.log {
            log.write_all(bytes)?;
        }
        let lines = self.lines.feed(bytes);
        for line in lines.iter().filter(|line| !line.is_empty()) {
            if self.last.len() == KEPT_LINES {
                self.last.pop_front();
            }
            self.last.push_back(line.clone());
        }
        Ok(lines)
    }

    /// How many bytes have come.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether more has come than may.
    pub fn is_flooded(&self) -> bool {
        self.written > self.limit
    }

    /// How many bytes may come.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The last lines, oldest first, with one that was only begun.
    pub fn last_lines(&self) -> Vec<String> {
        self.last.iter().cloned().chain(self.lines.begun()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_in_the_log_and_known() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut console = Console::new(Some(file.reopen().unwrap()), 10);
        assert_eq!(console.take(b"12345\n").unwrap(), ["12345"]);
        assert!(!console.is_flooded());
        console.take(b"7890abcdef\n").unwrap();
        assert!(console.is_flooded());
        assert_eq!(std::fs::read(file.path()).unwrap(), b"12345\n7890");
        assert_eq!(console.last_lines(), ["12345", "7890"]);
    }
}
