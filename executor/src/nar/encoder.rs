//! The bytes of an archive, gathered in large chunks.

use std::io::{self, Write};

/// Bytes gathered before they are passed on. Large enough that a system call per chunk does not count, small enough to
/// stay in a core's second cache between reading, scanning and hashing.
pub(crate) const CHUNK: usize = 256 * 1024;

/// What takes the chunks. It swaps them: contents are read from files straight into a chunk, and the chunk itself may
/// go to another thread.
pub(crate) trait Sink {
    /// Takes the first `len` bytes of `chunk`, gives back a chunk of the same size to fill.
    fn accept(&mut self, chunk: Box<[u8]>, len: usize) -> io::Result<Box<[u8]>>;

    /// Takes the last bytes, fewer than a chunk.
    fn last(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// Anything that can be written to.
pub(crate) struct ToWriter<W>(pub(crate) W);

impl<W: Write> Sink for ToWriter<W> {
    fn accept(&mut self, chunk: Box<[u8]>, len: usize) -> io::Result<Box<[u8]>> {
        self.0.write_all(&chunk[..len])?;
        Ok(chunk)
    }

    fn last(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }
}

pub(crate) struct Encoder<S> {
    sink: S,
    chunk: Box<[u8]>,
    len: usize,
    total: u64,
}

impl<S: Sink> Encoder<S> {
    pub(crate) fn new(sink: S) -> Self {
        Self { sink, chunk: vec![0; CHUNK].into_boxed_slice(), len: 0, total: 0 }
    }

    /// A length and nothing else: what follows is written by [`bytes`](Self::bytes) or filled into
    /// [`spare`](Self::spare), and ended by [`pad`](Self::pad).
    pub(crate) fn length(&mut self, length: u64) -> io::Result<()> {
        self.bytes(&length.to_le_bytes())
    }

    /// A whole string: length, bytes, padding.
    pub(crate) fn string(&mut self, string: &[u8]) -> io::Result<()> {
        self.length(string.len() as u64)?;
        self.bytes(string)?;
        self.pad(string.len() as u64)
    }

    /// Several strings.
    pub(crate) fn strings(&mut self, strings: &[&[u8]]) -> io::Result<()> {
        strings.iter().try_for_each(|string| self.string(string))
    }

    pub(crate) fn bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let spare = self.spare()?;
            let (now, later) = bytes.split_at(bytes.len().min(spare.len()));
            spare[..now.len()].copy_from_slice(now);
            self.filled(now.len());
            bytes = later;
        }
        Ok(())
    }

    /// Zeros up to the next multiple of 8 after `length` bytes.
    pub(crate) fn pad(&mut self, length: u64) -> io::Result<()> {
        self.bytes(&[0; 7][..padding(length)])
    }

    /// Room for at least one byte.
    pub(crate) fn spare(&mut self) -> io::Result<&mut [u8]> {
        if self.len == self.chunk.len() {
            let full = std::mem::take(&mut self.chunk);
            self.chunk = self.sink.accept(full, self.len)?;
            self.len = 0;
        }
        Ok(&mut self.chunk[self.len..])
    }

    /// Says that the first `count` bytes of the spare room hold something now.
    pub(crate) fn filled(&mut self, count: usize) {
        self.len += count;
        self.total += count as u64;
    }

    /// Passes the rest on; gives the sink and the number of bytes that it took.
    pub(crate) fn finish(mut self) -> io::Result<(S, u64)> {
        self.sink.last(&self.chunk[..self.len])?;
        Ok((self.sink, self.total))
    }
}

/// Zeros that follow a string of `length` bytes.
pub(crate) fn padding(length: u64) -> usize {
    (length.wrapping_neg() % 8) as usize
}
