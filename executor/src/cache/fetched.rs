//! An archive on its way out of a cache, checked as it flows.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::BorrowedFd;

use super::compression::Decoder;
use super::{CacheError, NarInfo};
use crate::hash::{Algorithm, Hash, Hasher};
use crate::nar;

const BUFFER: usize = 256 * 1024;

/// The archive of a path, decompressed. Nothing that was made of it may be used before [`finish`](Self::finish) was asked.
pub struct FetchedNar<R: Read> {
    info: NarInfo,
    decoder: Decoder<BufReader<Measured<R>>>,
    hasher: Hasher,
    size: u64,
}

/// A stream with its hash and its size so far.
struct Measured<R> {
    source: R,
    hasher: Hasher,
    size: u64,
    limit: u64,
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        if self.size > self.limit {
            return Err(io::Error::other(format!("the compressed file has more than {} bytes", self.limit)));
        }
        Ok(count)
    }
}

impl<R: Read> FetchedNar<R> {
    /// The archive that `info` describes, from the compressed stream `source`.
    ///
    /// # Errors
    /// The decompressor cannot be made.
    pub fn new(info: NarInfo, source: R) -> Result<Self, CacheError> {
        let algorithm = info.file_hash.map_or(Algorithm::Sha256, |hash| hash.algorithm());
        let limit = info.file_size.unwrap_or(u64::MAX);
        let measured = Measured { source, hasher: Hasher::new(algorithm), size: 0, limit };
        let decoder = Decoder::new(info.compression, BufReader::with_capacity(BUFFER, measured))
            .map_err(|source| CacheError::system("begin to decompress", info.url.clone(), source))?;
        Ok(Self { info, decoder, hasher: Hasher::new(Algorithm::Sha256), size: 0 })
    }

    /// What the cache says of it.
    pub fn info(&self) -> &NarInfo {
        &self.info
    }

    /// Restores it as `name` in `parent`, which must not exist. What was made is removed again if it is not what its narinfo
    /// says.
    ///
    /// # Errors
    /// As [`nar::restore`] and [`finish`](Self::finish).
    pub fn restore(self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), CacheError> {
        let (path, wanted) = (self.info.path.to_string(), self.info.nar_size);
        let mut reader = nar::Reader::new(BufReader::with_capacity(BUFFER, self));
        nar::restore(&mut reader, parent, name)?;
        let (end, as_nix_writes) = (reader.offset(), reader.is_canonical());
        let checked = reader.into_source().into_inner().finish().and_then(|()| {
            let what = if end != wanted {
                format!("it ends after {end} bytes of {wanted}")
            } else if !as_nix_writes {
                // The tree's own hash would be another one than its archive's.
                "it says nothing of the contents of an empty file, where Nix says that there are none".to_owned()
            } else {
                return Ok(());
            };
            Err(CacheError::Mismatch { path, what })
        });
        if checked.is_err() {
            // The first error is the one to report.
            let _ = crate::tree::remove(parent, name);
        }
        checked
    }

    /// Reads what is left, and says whether all was as the narinfo says: hash and size of the archive, and of the file.
    ///
    /// # Errors
    /// They are not, or the stream fails.
    pub fn finish(mut self) -> Result<(), CacheError> {
        let path = self.info.path.to_string();
        let failed = |source| CacheError::system("read the archive of", path.clone(), source);
        io::copy(&mut self, &mut io::sink()).map_err(failed)?;
        let Self { info, decoder, hasher, size } = self;
        let mut file = decoder.into_source();
        // What a decompressor does not look at any more still counts for the file's hash.
        loop {
            let count = file.fill_buf().map_err(failed)?.len();
            if count == 0 {
                break;
            }
            file.consume(count);
        }
        let file = file.into_inner();
        let hash = |what: &str, wanted: Hash, got: Hash| {
            (wanted != got).then(|| format!("{what} should be {}, and is {}", wanted.sri(), got.sri()))
        };
        let bytes = |what: &str, wanted: u64, got: u64| {
            (wanted != got).then(|| format!("{what} should have {wanted} bytes, and has {got}"))
        };
        let differs = bytes("it", info.nar_size, size)
            .or_else(|| hash("its hash", info.nar_hash, hasher.finish()))
            .or_else(|| bytes("its compressed file", info.file_size?, file.size))
            .or_else(|| hash("the hash of its compressed file", info.file_hash?, file.hasher.finish()));
        match differs {
            Some(what) => Err(CacheError::Mismatch { path, what }),
            None => Ok(()),
        }
    }
}

impl<R: Read> Read for FetchedNar<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // One byte more than there should be is enough to see that there are too many.
        let left = usize::try_from(self.info.nar_size - self.size).unwrap_or(usize::MAX);
        let room = buffer.len().min(left.saturating_add(1));
        let count = self.decoder.read(&mut buffer[..room])?;
        if count > left {
            return Err(io::Error::other(format!("the archive has more than {} bytes", self.info.nar_size)));
        }
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }
}
