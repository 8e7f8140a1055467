//! The directory that a guest writes, and how much room was left in it.
//!
//! Over SMB the end of the room is lost on the way: with a client's cache on, `echo x > file` succeeds, and so do sync(1)
//! and umount(8), while the file stays empty (measured). So the host looks itself, all the time, at a file system of
//! limited size that holds nothing else.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the room is looked at. A guest can write and delete in between; what it deleted was not what it wanted to keep.
const INTERVAL: Duration = Duration::from_millis(20);

/// With less than this left, in bytes, a write may have failed: file systems keep some for themselves.
const FULL: u64 = 64 << 10;

/// What is wrong with an exchange.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// It ran full.
    #[error(
        "the exchange {directory} ran full (of {total} bytes, {free} were left at the least{}): the guest's tools may have reported lost writes as done; give it more room", if *.inodes { ", and no place for another file" } else { "" }
    )]
    Full {
        /// Where.
        directory: PathBuf,
        /// All of it, in bytes.
        total: u64,
        /// The least that was left, in bytes.
        free: u64,
        /// What ran out was places for files.
        inodes: bool,
    },
    /// It is not limited: a guest could fill the host's disk.
    #[error(
        "the exchange {directory} has {total} bytes, the limit is {limit}: put it on a file system of its own (a tmpfs of that size)"
    )]
    NotLimited {
        /// Where.
        directory: PathBuf,
        /// All of it, in bytes.
        total: u64,
        /// As it should be, in bytes.
        limit: u64,
    },
    /// It cannot be looked at.
    #[error("looking at the room in the exchange {directory}: {source}")]
    Io {
        /// Where.
        directory: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

#[derive(Clone, Copy, Debug)]
struct Room {
    total: u64,
    free: u64,
    inodes: bool,
}

fn look(directory: &Path) -> Result<Room, ExchangeError> {
    let found = rustix::fs::statvfs(directory)
        .map_err(|source| ExchangeError::Io { directory: directory.to_owned(), source: source.into() })?;
    // A file system without a count of files says 0 of 0.
    let inodes = found.f_files > 0 && found.f_favail == 0;
    let total = found.f_blocks.saturating_mul(found.f_frsize);
    Ok(Room { total, free: found.f_bavail.saturating_mul(found.f_frsize), inodes })
}

/// That the directory is on a file system of at most `limit` bytes.
///
/// # Errors
/// If it is larger, or cannot be looked at.
pub fn check_limited(directory: &Path, limit: u64) -> Result<(), ExchangeError> {
    let Room { total, .. } = look(directory)?;
    if total > limit {
        Err(ExchangeError::NotLimited { directory: directory.to_owned(), total, limit })
    } else {
        Ok(())
    }
}

/// Watches the room in an exchange until it is asked.
#[derive(Debug)]
pub struct Watch {
    directory: PathBuf,
    watcher: Option<Watcher>,
}

/// Ends when its sender is dropped, and tells the least that it saw.
type Watcher = (Sender<()>, JoinHandle<Result<Room, ExchangeError>>);

impl Watch {
    /// From now on.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub fn begin(directory: &Path) -> Result<Self, ExchangeError> {
        let mut least = look(directory)?;
        let (stop, stopped) = mpsc::channel::<()>();
        let watched = directory.to_owned();
        let thread = std::thread::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(INTERVAL) {
                let now = look(&watched)?;
                least.free = least.free.min(now.free);
                least.inodes |= now.inodes;
            }
            Ok(least)
        });
        Ok(Self { directory: directory.to_owned(), watcher: Some((stop, thread)) })
    }

    /// Looks for the last time; the least room that there was, in bytes.
    ///
    /// # Errors
    /// If it ran full.
    pub fn end(mut self) -> Result<u64, ExchangeError> {
        let now = look(&self.directory)?;
        let mut least = now;
        if let Some((stop, thread)) = self.watcher.take() {
            drop(stop);
            if let Ok(seen) = thread.join() {
                let seen = seen?;
                least = Room { free: seen.free.min(now.free), inodes: seen.inodes || now.inodes, ..now };
            }
        }
        let Room { total, free, inodes } = least;
        if free < FULL || inodes {
            return Err(ExchangeError::Full { directory: self.directory.clone(), total, free, inodes });
        }
        Ok(free)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.watcher.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_room_is_well_and_one_of_the_host_is_not_limited() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::begin(folder.path()).unwrap();
        assert!(watch.end().unwrap() > FULL);
        let error = check_limited(folder.path(), 4096).unwrap_err().to_string();
        assert!(error.contains("the limit is 4096"), "{error}");
        assert!(matches!(Watch::begin(Path::new("/missing")), Err(ExchangeError::Io { .. })));
    }

    /// /sys is a file system without any room, which is what a full one looks like.
    #[test]
    fn one_without_room_ran_full() {
        let watch = Watch::begin(Path::new("/sys")).unwrap();
        let error = watch.end().unwrap_err().to_string();
        assert!(error.contains("ran full") && error.contains("lost writes"), "{error}");
    }
}
