//! Reading, with bounds.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read};

use super::WireError;
use crate::store_path::{StoreDir, StorePath};

/// The longest path, name, key or other short text, in bytes.
pub const LONGEST_PATH: usize = 64 << 10;

/// The longest string of any kind, in bytes: as much as a whole derivation may have.
pub const LONGEST_STRING: usize = crate::derivation::aterm::MAX_LEN;

/// The most that one request may have in all, in bytes of memory: about a million paths. NARs and logs pass through and do not count.
pub const REQUEST_BUDGET: u64 = 128 << 20;

/// What one element of a list costs besides its bytes: a set of strings of no bytes must not be free.
const ELEMENT: u64 = 64;

/// A stream that numbers, strings and lists are read from.
#[derive(Debug)]
pub struct Source<R> {
    inner: R,
    budget: u64,
}

impl<R: BufRead> Source<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, budget: REQUEST_BUDGET }
    }

    /// A new request begins, with a budget of its own.
    pub fn renew(&mut self) {
        self.budget = REQUEST_BUDGET;
    }

    /// The stream, for what has no length of its own.
    pub fn stream(&mut self) -> &mut R {
        &mut self.inner
    }

    /// A number. `what` it is, here and below, is for the message of an error.
    ///
    /// # Errors
    /// The stream ends, or the system says no.
    pub fn number(&mut self, what: &'static str) -> Result<u64, WireError> {
        let mut bytes = [0; 8];
        self.inner.read_exact(&mut bytes).map_err(WireError::read(what))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A number, or nothing if the stream ends right before it.
    ///
    /// # Errors
    /// The stream ends within the number, or the system says no.
    pub fn number_or_end(&mut self, what: &'static str) -> Result<Option<u64>, WireError> {
        loop {
            match self.inner.fill_buf() {
                Ok([]) => return Ok(None),
                Ok(_) => return self.number(what).map(Some),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(source) => return Err(WireError::Read { what, source }),
            }
        }
    }

    /// A number that stands for yes or no.
    ///
    /// # Errors
    /// As [`number`](Self::number).
    pub fn truth(&mut self, what: &'static str) -> Result<bool, WireError> {
        Ok(self.number(what)? != 0)
    }

    /// A string of at most `most` bytes.
    ///
    /// # Errors
    /// It is longer, its padding is not zero, the budget is used up, or the stream ends.
    pub fn bytes(&mut self, what: &'static str, most: usize) -> Result<Vec<u8>, WireError> {
        let length = self.number(what)?;
        if length > most as u64 {
            return Err(WireError::TooLong { what, length, most: most as u64 });
        }
        self.spend(length)?;
        let mut bytes = Vec::new();
        // Grows with what really comes.
        let read = (&mut self.inner).take(length).read_to_end(&mut bytes).map_err(WireError::read(what))?;
        if (read as u64) < length {
            return Err(WireError::Ended(what));
        }
        let mut padding = [0; 8];
        let padding = &mut padding[..(length.wrapping_neg() % 8) as usize];
        self.inner.read_exact(padding).map_err(WireError::read(what))?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(WireError::invalid(what, "its padding is not zero"));
        }
        Ok(bytes)
    }

    /// A string that is UTF-8.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), and what is no UTF-8.
    pub fn text(&mut self, what: &'static str, most: usize) -> Result<String, WireError> {
        String::from_utf8(self.bytes(what, most)?).map_err(|_| WireError::invalid(what, "it is not UTF-8"))
    }

    /// A list, each element read by `element`.
    ///
    /// # Errors
    /// The budget is used up, and what `element` says.
    pub fn list<T>(
        &mut self,
        what: &'static str,
        mut element: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let count = self.number(what)?;
        let mut all = Vec::new();
        for _ in 0..count {
            self.spend(ELEMENT)?;
            all.push(element(self)?);
        }
        Ok(all)
    }

    /// A list of short texts.
    ///
    /// # Errors
    /// As [`list`](Self::list) and [`text`](Self::text).
    pub fn texts(&mut self, what: &'static str) -> Result<Vec<String>, WireError> {
        self.list(what, |source| source.text(what, LONGEST_PATH))
    }

    /// A store path.
    ///
    /// # Errors
    /// As [`text`](Self::text), and what is no path of this store.
    pub fn path(&mut self, what: &'static str, dir: &StoreDir) -> Result<StorePath, WireError> {
        let text = self.text(what, LONGEST_PATH)?;
        dir.parse(&text).map_err(|error| WireError::invalid(what, error))
    }

    /// A store path, or nothing for an empty string.
    ///
    /// # Errors
    /// As [`path`](Self::path).
    pub fn maybe_path(&mut self, what: &'static str, dir: &StoreDir) -> Result<Option<StorePath>, WireError> {
        let text = self.text(what, LONGEST_PATH)?;
        if text.is_empty() {
            return Ok(None);
        }
        dir.parse(&text).map(Some).map_err(|error| WireError::invalid(what, error))
    }

    /// A set of store paths.
    ///
    /// # Errors
    /// As [`path`](Self::path).
    pub fn paths(&mut self, what: &'static str, dir: &StoreDir) -> Result<BTreeSet<StorePath>, WireError> {
        Ok(self.list(what, |source| source.path(what, dir))?.into_iter().collect())
    }

    fn spend(&mut self, bytes: u64) -> Result<(), WireError> {
        self.budget = self.budget.checked_sub(bytes).ok_or(WireError::Budget)?;
        Ok(())
    }
}
