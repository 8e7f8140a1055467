//! One pass over a tree for all that a store must know of it: hash, size and references.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::encoder::{CHUNK, Encoder, Sink};
use super::references::ReferenceScanner;
use super::write::dump_to;
use super::{NarError, Options};
use crate::hash::{Algorithm, Hash, Hasher};
use crate::store_path::StorePath;

/// What a store must know of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The SHA-256 of its archive.
    pub hash: Hash,
    /// The archive's size in bytes.
    pub size: u64,
    /// Which of the candidates it refers to.
    pub references: BTreeSet<StorePath>,
}

/// Reads the tree `name` in `parent` once, and gives its hash, its size, and which of `candidates` it refers to.
///
/// A tree of more than a chunk is hashed on a thread of its own while this one reads and scans. Memory is a few chunks of
/// 256 KiB, whatever the tree's size, and the names of the directories on the way.
///
/// # Errors
/// As [`super::dump`].
pub fn survey(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    candidates: impl IntoIterator<Item = StorePath>,
) -> Result<Survey, NarError> {
    let mut encoder = Encoder::new(Surveyor::new(ReferenceScanner::new(candidates)));
    dump_to(parent, name, &mut encoder, Options::default())?;
    let (surveyor, size) = encoder.finish().map_err(NarError::Sink)?;
    let (hash, references) = surveyor.finish().map_err(NarError::Sink)?;
    Ok(Survey { hash, size, references })
}

/// Chunks on the way to the hashing thread.
const UNDER_WAY: usize = 4;

type Chunk = (Box<[u8]>, usize);

struct Surveyor {
    scanner: ReferenceScanner,
    hashing: Hashing,
}

enum Hashing {
    /// Little has come so far.
    Here(Hasher),
    /// On another thread, which takes full chunks and gives empty ones.
    There { full: SyncSender<Chunk>, empty: Receiver<Box<[u8]>>, thread: JoinHandle<Hasher> },
    /// Between the two.
    Moving,
}

impl Surveyor {
    fn new(scanner: ReferenceScanner) -> Self {
        Self { scanner, hashing: Hashing::Here(Hasher::new(Algorithm::Sha256)) }
    }

    fn start(mut hasher: Hasher) -> io::Result<Hashing> {
        let (full, incoming) = sync_channel::<Chunk>(UNDER_WAY);
        let (outgoing, empty) = sync_channel(UNDER_WAY + 2);
        for _ in 0..UNDER_WAY {
            let _ = outgoing.send(vec![0; CHUNK].into_boxed_slice());
        }
        let thread = std::thread::Builder::new().name("nar-hash".to_owned()).spawn(move || {
            for (chunk, len) in incoming {
                hasher.update(&chunk[..len]);
                // Nobody wants it back at the very end.
                let _ = outgoing.send(chunk);
            }
            hasher
        })?;
        Ok(Hashing::There { full, empty, thread })
    }

    fn finish(self) -> io::Result<(Hash, BTreeSet<StorePath>)> {
        let hasher = match self.hashing {
            Hashing::Here(hasher) => hasher,
            Hashing::There { full, thread, .. } => {
                drop(full);
                thread.join().map_err(|_| ended())?
            }
            Hashing::Moving => return Err(ended()),
        };
        Ok((hasher.finish(), self.scanner.into_found()))
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread that hashes ended too early")
}

impl Sink for Surveyor {
    fn accept(&mut self, chunk: Box<[u8]>, len: usize) -> io::Result<Box<[u8]>> {
        self.scanner.write_all(&chunk[..len])?;
        if let Hashing::Here(_) = self.hashing
            && let Hashing::Here(hasher) = std::mem::replace(&mut self.hashing, Hashing::Moving)
        {
            self.hashing = Self::start(hasher)?;
        }
        let Hashing::There { full, empty, .. } = &self.hashing else { return Err(ended()) };
        full.send((chunk, len)).map_err(|_| ended())?;
        empty.recv().map_err(|_| ended())
    }

    fn last(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.scanner.write_all(bytes)?;
        match &mut self.hashing {
            Hashing::Here(hasher) => {
                hasher.update(bytes);
                Ok(())
            }
            Hashing::There { full, .. } => full.send((bytes.into(), bytes.len())).map_err(|_| ended()),
            Hashing::Moving => Err(ended()),
        }
    }
}
