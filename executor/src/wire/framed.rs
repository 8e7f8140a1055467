//! Streams within a stream.

use std::io::{self, BufRead, Read};

use super::{Source, WireError};
use crate::hash::{Algorithm, Hash, Hasher};

/// A stream in frames: lengths with so many bytes each, without padding, up to a length of zero.
#[derive(Debug)]
pub struct Framed<'a, R> {
    source: &'a mut Source<R>,
    left: u64,
    ended: bool,
}

impl<'a, R: BufRead> Framed<'a, R> {
    /// The frames that come next in `source`.
    pub fn new(source: &'a mut Source<R>) -> Self {
        Self { source, left: 0, ended: false }
    }

    /// Reads up to the end, so that what follows is in step; gives how many bytes there were still.
    ///
    /// # Errors
    /// The stream ends, or the system says no.
    pub fn drain(&mut self) -> Result<u64, WireError> {
        io::copy(self, &mut io::sink()).map_err(WireError::read("the end of a framed stream"))
    }
}

impl<R: BufRead> BufRead for Framed<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 && !self.ended {
            let mut length = [0; 8];
            self.source.stream().read_exact(&mut length)?;
            self.left = u64::from_le_bytes(length);
            self.ended = self.left == 0;
        }
        if self.ended {
            return Ok(&[]);
        }
        let bytes = self.source.stream().fill_buf()?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        Ok(&bytes[..count])
    }

    fn consume(&mut self, count: usize) {
        self.source.stream().consume(count);
        self.left -= count as u64;
    }
}

impl<R: BufRead> Read for Framed<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// A stream that is hashed and counted as it is read.
pub struct Hashed<R> {
    inner: R,
    hasher: Hasher,
    count: u64,
}

impl<R: BufRead> Hashed<R> {
    /// Reads from `inner`.
    pub fn new(inner: R, algorithm: Algorithm) -> Self {
        Self { inner, hasher: Hasher::new(algorithm), count: 0 }
    }

    /// The hash and the length of what was read.
    pub fn finish(self) -> (Hash, u64) {
        (self.hasher.finish(), self.count)
    }
}

impl<R: BufRead> BufRead for Hashed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        if count > 0 {
            // What was shown is still there, so that this asks nobody.
            if let Ok(bytes) = self.inner.fill_buf() {
                self.hasher.update(&bytes[..count]);
            }
            self.count += count as u64;
        }
        self.inner.consume(count);
    }
}

impl<R: BufRead> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        self.hasher.update(&into[..count]);
        self.count += count as u64;
        Ok(count)
    }
}
