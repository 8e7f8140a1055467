//! The log of a build: the builder's bytes as they came, compressed, in Nix's place and under Nix's name.
//!
//! A log of `/nix/store/abcd…-x.drv` is `<log directory>/drvs/ab/cd…-x.drv.bz2`, where `nix log` finds it (source:
//! `LocalFSStore::getBuildLog` in `src/libstore/local-fs-store.cc`). What is stored is never filtered: that is done where it is shown
//! ([`crate::progress::escapes`]).
//!
//! A log is written beside its place, under the name with `.partial` behind it, and renamed at its end. Whoever writes holds a
//! lock on that file, so what a killed process left is known as such and taken over by the next build of that derivation.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bzip2::Compression;
use bzip2::read::MultiBzDecoder;
use bzip2::write::BzEncoder;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::store_path::StorePath;

/// What is kept in memory before compressing begins: most logs are smaller, and a compressor for large blocks costs 8 MB.
const SMALL_LOG: usize = 64 * 1024;

/// A log that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file or directory refused.
    #[error("cannot {doing} the build log ‘{}’: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process is writing it.
    #[error("the build log ‘{}’ is being written by another process: the same derivation is being built", path.display())]
    Busy {
        /// The unfinished log.
        path: PathBuf,
    },
    /// Something that is no file has its name.
    #[error("the build log ‘{}’ is no regular file: remove it", path.display())]
    NoFile {
        /// What it is.
        path: PathBuf,
    },
}

impl LogError {
    fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { doing, path: path.to_owned(), source: source.into() }
    }
}

/// The directory of a derivation's log, and the log's name in it without a suffix.
fn place(log_dir: &Path, drv: &StorePath) -> (PathBuf, String) {
    let (head, rest) = drv.as_str().split_at(2);
    (log_dir.join("drvs").join(head), rest.to_owned())
}

/// Where the log of `drv` is, or will be.
pub fn log_path(log_dir: &Path, drv: &StorePath) -> PathBuf {
    let (directory, name) = place(log_dir, drv);
    directory.join(format!("{name}.bz2"))
}

/// What became of bytes that were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// All of them are in the log.
    All,
    /// The log has reached its limit: it holds exactly that many bytes, and takes no more. The build is to be ended.
    LimitReached,
}

/// A log being written. Dropped without [`finish`](Self::finish), it is taken away.
#[derive(Debug)]
pub struct LogWriter {
    sink: Option<Sink>,
    directory: OwnedFd,
    partial_name: String,
    name: String,
    path: PathBuf,
    limit: Option<u64>,
    len: u64,
    over: bool,
}

enum Sink {
    Small(Vec<u8>, File),
    Large(Box<BzEncoder<File>>),
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Sink::Small(..) => "Small",
            Sink::Large(_) => "Large",
        })
    }
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Small(buffer, _) if buffer.len() + bytes.len() <= SMALL_LOG => {
                buffer.extend_from_slice(bytes);
                Ok(())
            }
            Sink::Small(buffer, file) => {
                let mut encoder = BzEncoder::new(file.try_clone()?, Compression::best());
                encoder.write_all(buffer)?;
                encoder.write_all(bytes)?;
                *self = Sink::Large(Box::new(encoder));
                Ok(())
            }
            Sink::Large(encoder) => encoder.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Sink::Small(buffer, file) => {
                // The smallest blocks are larger than all of it: nothing is lost by them.
                let mut encoder = BzEncoder::new(file, Compression::fast());
                encoder.write_all(&buffer)?;
                encoder.finish().map(drop)
            }
            Sink::Large(encoder) => encoder.finish().map(drop),
        }
    }
}

impl LogWriter {
    /// Begins the log of `drv` below `log_dir`, whose directories are made if they are missing. `limit` is the most bytes that
    /// it takes, before compression; none is no limit. An older log stays until this one is finished.
    pub fn create(log_dir: &Path, drv: &StorePath, limit: Option<u64>) -> Result<Self, LogError> {
        let (directory_path, name) = place(log_dir, drv);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&directory_path)
            .map_err(|error| LogError::io("make the directory of", &directory_path, error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&directory_path, flags, Mode::empty())
            .map_err(|error| LogError::io("open the directory of", &directory_path, error))?;
        let partial_name = format!("{name}.bz2.partial");
        let path = directory_path.join(&partial_name);
        let file = claim(&directory, &partial_name, &path)?;
        Ok(Self {
            sink: Some(Sink::Small(Vec::new(), file)),
            directory,
            partial_name,
            name: format!("{name}.bz2"),
            path,
            limit,
            len: 0,
            over: false,
        })
    }

    /// Adds what the builder wrote. The limit holds to the byte: what is over it is not stored.
    pub fn write(&mut self, bytes: &[u8]) -> Result<Written, LogError> {
        let room = self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.len));
        let taken = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if taken < bytes.len() {
            self.over = true;
        }
        if let Some(sink) = &mut self.sink {
            sink.write(&bytes[..taken]).map_err(|error| LogError::io("write", &self.path, error))?;
        }
        self.len += taken as u64;
        Ok(if self.over { Written::LimitReached } else { Written::All })
    }

    /// The bytes that were stored, before compression.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was stored yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Ends the log, of a failed build like that of a good one, and gives its path.
    pub fn finish(mut self) -> Result<PathBuf, LogError> {
        // The lock is held until the new name is there: it is on the open file, which the directory's entry follows.
        let lock = match &self.sink {
            Some(Sink::Small(_, file)) => file.try_clone(),
            Some(Sink::Large(encoder)) => encoder.get_ref().try_clone(),
            None => return Ok(self.path.with_file_name(&self.name)),
        }
        .map_err(|error| LogError::io("write", &self.path, error))?;
        let finished = self.sink.take().map_or(Ok(()), Sink::finish);
        let renamed = finished
            .and_then(|()| Ok(rustix::fs::renameat(&self.directory, &self.partial_name, &self.directory, &self.name)?));
        if let Err(error) = renamed {
            self.discard();
            return Err(LogError::io("finish", &self.path, error));
        }
        drop(lock);
        Ok(self.path.with_file_name(&self.name))
    }

    fn discard(&self) {
        // It may be gone already, and there is nobody to tell.
        let _ = rustix::fs::unlinkat(&self.directory, &self.partial_name, AtFlags::empty());
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        if self.sink.is_some() {
            self.discard();
        }
    }
}

/// Opens the unfinished log, empty and locked.
fn claim(directory: &OwnedFd, name: &str, path: &Path) -> Result<File, LogError> {
    let refused = |error: Errno| LogError::io("create", path, error);
    loop {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644)) {
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Err(LogError::NoFile { path: path.to_owned() }),
            other => other.map_err(refused)?,
        };
        let opened = rustix::fs::fstat(&file).map_err(refused)?;
        if !FileType::from_raw_mode(opened.st_mode).is_file() {
            return Err(LogError::NoFile { path: path.to_owned() });
        }
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(LogError::Busy { path: path.to_owned() }),
            other => other.map_err(refused)?,
        }
        // Between the opening and the lock another may have finished it: then this is a finished log, which is not to be touched.
        match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) if (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino) => {
                rustix::fs::ftruncate(&file, 0).map_err(refused)?;
                return Ok(File::from(file));
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(refused(error)),
        }
    }
}

/// The bytes of the log of `drv`, compressed or plain in the file, or nothing if there is none. Read in pieces: a
/// small file can hold a large log.
pub fn read_log(log_dir: &Path, drv: &StorePath) -> Result<Option<Box<dyn Read>>, LogError> {
    let compressed = log_path(log_dir, drv);
    if let Some(file) = open_log(&compressed)? {
        return Ok(Some(Box::new(MultiBzDecoder::new(file))));
    }
    let plain = compressed.with_extension("");
    Ok(open_log(&plain)?.map(|file| Box::new(file) as Box<dyn Read>))
}

fn open_log(path: &Path) -> Result<Option<File>, LogError> {
    // Not waiting for the writer of a fifo.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => File::from(other.map_err(|error| LogError::io("open", path, error))?),
    };
    let kind = file.metadata().map_err(|error| LogError::io("open", path, error))?;
    if kind.is_file() { Ok(Some(file)) } else { Err(LogError::NoFile { path: path.to_owned() }) }
}

#[cfg(test)]
mod tests;
