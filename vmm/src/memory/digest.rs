//! Digests of images: of what is in them, not of how their holes lie; and known again without reading when nothing touched them.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The piece that is digested by itself. One that is all zero has the digest zero, so that a hole costs nothing.
const PIECE: usize = 1 << 20;

/// More threads than this only wait for the same memory.
const MOST_THREADS: usize = 8;

/// The piece of zeroes that is worth a hole.
const HOLE: usize = 64 << 10;

/// The digest of an image, as hexadecimal text.
///
/// # Errors
/// What the file system says.
pub fn digest(file: &File) -> io::Result<String> {
    walk(file, &|_, _| Ok(()))
}

/// The same, and gives the file's zeroes back to the file system: memory that a guest never used, or cleaned.
///
/// # Errors
/// What the file system says. One that has no holes is no error.
pub fn digest_and_dig(file: &File) -> io::Result<String> {
    walk(file, &|at, piece| {
        for (number, part) in piece.chunks(HOLE).enumerate() {
            if part.len() == HOLE && is_zero(part) {
                let start = at + (number * HOLE) as u64;
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                match rustix::fs::fallocate(file, flags, start, HOLE as u64) {
                    Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(())
    })
}

/// What is done with each piece that is no hole, besides.
type Look<'a> = &'a (dyn Fn(u64, &[u8]) -> io::Result<()> + Sync);

/// The digest of the digests of all pieces. Those that are no holes are looked at by as many threads as there are processors.
fn walk(file: &File, look: Look<'_>) -> io::Result<String> {
    let length = file.metadata()?.len();
    let pieces = pieces_with_data(file, length)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS).min(pieces.len());
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<Vec<(u64, [u8; 32])>> {
        let mut buffer = vec![0; PIECE];
        let mut made = Vec::new();
        while let Some(number) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            made.push((*number, piece(file, *number, length, &mut buffer, look)?));
        }
        Ok(made)
    };
    let mut digests = std::thread::scope(|scope| -> io::Result<Vec<_>> {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut digests = work()?;
        for other in others {
            digests.extend(other.join().unwrap_or_else(|_| Err(io::Error::other("digesting it panicked")))?);
        }
        Ok(digests)
    })?;
    digests.sort_unstable_by_key(|(number, _)| *number);
    let mut all = Sha256::new();
    all.update(b"anchorhold image 1\n");
    all.update(length.to_le_bytes());
    let mut digests = digests.into_iter().peekable();
    for number in 0..length.div_ceil(PIECE as u64) {
        all.update(digests.next_if(|(of, _)| *of == number).map_or([0; 32], |(_, digest)| digest));
    }
    Ok(all.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The digest of one piece; zero, if it is nothing else.
fn piece(file: &File, number: u64, length: u64, buffer: &mut [u8], look: Look<'_>) -> io::Result<[u8; 32]> {
    let at = number * PIECE as u64;
    let size = usize::try_from(length - at).unwrap_or(PIECE).min(PIECE);
    let piece = &mut buffer[..size];
    file.read_exact_at(piece, at)?;
    look(at, piece)?;
    Ok(if is_zero(piece) { [0; 32] } else { Sha256::digest(&*piece).into() })
}

/// The numbers of the pieces that are no holes, in their order.
fn pieces_with_data(file: &File, length: u64) -> io::Result<Vec<u64>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < length {
        let data = next_data(file, at, length)?;
        let first = (data.start / PIECE as u64).max(pieces.last().map_or(0, |last| last + 1));
        pieces.extend(first..data.end.min(length).div_ceil(PIECE as u64));
        at = data.end;
    }
    Ok(pieces)
}

/// Where there is data next, from `at` on.
fn next_data(file: &File, at: u64, length: u64) -> io::Result<std::ops::Range<u64>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        // No data from here on.
        Err(Errno::NXIO) => return Ok(length..length),
        Err(Errno::INVAL) => return Ok(at..length),
        Err(errno) => return Err(errno.into()),
    };
    Ok(start..rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(length).max(start + 1))
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    rest.iter().all(|byte| *byte == 0) && words.iter().all(|word| u128::from_ne_bytes(*word) == 0)
}

/// What tells, without reading, that a file is the one that was looked at and was not touched since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    /// Of an open file.
    ///
    /// # Errors
    /// fstat(2)'s.
    pub fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// When it was last changed in any way, since 1970.
    pub fn changed(&self) -> Duration {
        let (seconds, nanoseconds) = self.changed;
        Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0))
    }

    /// Of the file at `path`.
    ///
    /// # Errors
    /// open(2)'s and fstat(2)'s.
    pub fn at(path: &Path) -> io::Result<Self> {
        Self::of(&File::open(path)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn file_with(length: u64, writes: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (at, bytes) in writes {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[test]
    fn holes_and_zeroes_are_the_same_and_everything_else_is_not() {
        let length = (5 << 20) + 17;
        let sparse = file_with(length, &[(3 << 20, b"x")]);
        let full = file_with(length, &[(0, &vec![0; length as usize]), (3 << 20, b"x")]);
        let expected = digest(&sparse).unwrap();
        assert_eq!(digest(&full).unwrap(), expected);
        for other in [
            file_with(length, &[(3 << 20, b"y")]),
            file_with(length, &[((3 << 20) + 1, b"x")]),
            file_with(length, &[(2 << 20, b"x")]),
            file_with(length + 1, &[(3 << 20, b"x")]),
            file_with(length, &[(3 << 20, b"x"), (length - 1, b"x")]),
        ] {
            assert_ne!(digest(&other).unwrap(), expected);
        }
    }

    #[test]
    fn zeroes_are_given_back_and_the_content_stays() {
        let length = 8 << 20;
        let file = file_with(length, &[(0, &vec![0; length as usize]), (100_000, b"here")]);
        let before = file.metadata().unwrap().blocks();
        let expected = digest(&file).unwrap();
        assert_eq!(digest_and_dig(&file).unwrap(), expected);
        assert_eq!(digest(&file).unwrap(), expected);
        let mut found = [0; 4];
        file.read_exact_at(&mut found, 100_000).unwrap();
        assert_eq!(&found, b"here");
        let after = file.metadata().unwrap().blocks();
        if after == before {
            println!("SKIP: this file system has no holes");
            return;
        }
        assert!(after * 512 <= 2 * HOLE as u64, "{after} blocks of {before} are left");
    }
}
