//! Hash parts replaced by others of the same length, in a stream and in a whole tree.
//!
//! Source: `RewritingSink` in `src/libutil/references.cc` of Nix. The stream of the archive is what is rewritten, so that
//! contents, targets of symlinks and names are all treated alike.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::references::{HashPart, Wanted, hash_part};
use super::{NarError, Reader, dump, restore};
use crate::hash::{Algorithm, Hash, Hasher};
use crate::store_path::{HASH_PART_LEN, StorePath};

/// Passes a stream on with hash parts replaced.
pub struct Rewriter<W> {
    sink: W,
    wanted: Wanted<HashPart>,
    /// What was not passed on yet: it may be the beginning of a hash part.
    pending: Vec<u8>,
    passed: u64,
    places: Vec<u64>,
}

impl<W: Write> Rewriter<W> {
    /// A rewriter that puts for each first path the hash part of the second.
    pub fn new(sink: W, rewrites: impl IntoIterator<Item = (StorePath, StorePath)>) -> Self {
        Self::of_parts(sink, rewrites.into_iter().map(|(from, to)| (hash_part(&from), hash_part(&to))).collect())
    }

    fn of_parts(sink: W, rewrites: HashMap<HashPart, HashPart>) -> Self {
        Self { sink, wanted: Wanted::new(rewrites), pending: Vec::new(), passed: 0, places: Vec::new() }
    }

    /// Passes the rest on; gives the sink and where something was replaced, in bytes from the stream's start.
    ///
    /// # Errors
    /// What the sink says.
    pub fn finish(mut self) -> io::Result<(W, Vec<u64>)> {
        self.sink.write_all(&self.pending)?;
        self.sink.flush()?;
        Ok((self.sink, self.places))
    }
}

impl<W: Write> Write for Rewriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        let mut settled = 0;
        while let Some(position) = self.wanted.find(&self.pending, settled) {
            settled = position + HASH_PART_LEN;
            if let Some(replacement) = self.wanted.get(&self.pending[position..]) {
                self.pending[position..settled].copy_from_slice(replacement);
                self.places.push(self.passed + position as u64);
            }
        }
        // Only what can still become a whole hash part is kept.
        settled = settled.max(self.pending.len().saturating_sub(HASH_PART_LEN - 1));
        self.sink.write_all(&self.pending[..settled])?;
        self.pending.drain(..settled);
        self.passed += settled as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Makes `to_name` in `to`, a copy of the tree `from_name` in `from` with hash parts replaced: for each first path of
/// `rewrites` that of the second.
///
/// # Errors
/// As [`dump`] and [`restore`]; that a replaced name is no longer in its place in the order is an error as well.
pub fn rewrite(
    from: BorrowedFd<'_>,
    from_name: &OsStr,
    to: BorrowedFd<'_>,
    to_name: &OsStr,
    rewrites: impl IntoIterator<Item = (StorePath, StorePath)>,
) -> Result<(), NarError> {
    let (full, chunks) = sync_channel(4);
    let mut rewriter = Rewriter::new(ToReader(full), rewrites);
    std::thread::scope(|scope| {
        let dumping = scope.spawn(move || {
            dump(from, from_name, &mut rewriter)?;
            rewriter.finish().map(drop).map_err(NarError::Sink)
        });
        let mut reader = Reader::new(FromWriter { chunks, chunk: Vec::new(), position: 0 });
        let restored = restore(&mut reader, to, to_name);
        // Wakes the other side if it still has something to say.
        drop(reader);
        let dumped = dumping.join().unwrap_or_else(|_| {
            Err(NarError::Sink(io::Error::other("the thread that writes the archive ended too early")))
        });
        match (restored, dumped) {
            // The stream ended because its writer failed: the cause is over there.
            (Err(NarError::Truncated { .. }), Err(error)) => Err(error),
            (Err(error), _) => Err(error),
            (Ok(()), dumped) => dumped,
        }
    })
}

/// The hash of a tree as if all mentions of `own` in it were 32 zero bytes: what a content-addressed path that mentions
/// itself is named by. With `with_places`, where they were is hashed as well, as Nix does but for 2.17 to 2.34.
///
/// # Errors
/// As [`dump`].
pub fn hash_modulo(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    algorithm: Algorithm,
    own: &StorePath,
    with_places: bool,
) -> Result<(Hash, u64), NarError> {
    let zeros = HashMap::from([(hash_part(own), [0; HASH_PART_LEN])]);
    let mut rewriter = Rewriter::of_parts(Hasher::new(algorithm), zeros);
    let size = dump(parent, name, &mut rewriter)?;
    let (mut hasher, places) = rewriter.finish().map_err(NarError::Sink)?;
    if with_places {
        for place in places {
            hasher.update(format!("|{place}").as_bytes());
        }
    }
    Ok((hasher.finish(), size))
}

/// The writing end of a stream between two threads.
struct ToReader(SyncSender<Vec<u8>>);

impl Write for ToReader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Its reading end.
struct FromWriter {
    chunks: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    position: usize,
}

impl Read for FromWriter {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for FromWriter {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.chunk.len() {
            self.position = 0;
            self.chunk = self.chunks.recv().unwrap_or_default();
        }
        Ok(&self.chunk[self.position..])
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}
