//! Paths that this process needs for now. Source: `src/libstore/gc.cc` of Nix.
//!
//! Each process has a file in `temproots`, named by its number and locked for as long as it lives; a collector reads the
//! files that are locked and removes the others. To add a root, the collector must not be at work (`gc.lock`, held shared); if
//! it is, it is told over its socket and answers when it knows.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::database::open_lock;
use super::{Store, StoreError};
use crate::store_path::StorePath;

/// What this process holds. The file goes with it.
#[derive(Debug, Default)]
pub(super) struct TempRoots {
    file: Option<(std::path::PathBuf, File)>,
    gc_lock: Option<File>,
    collector: Option<UnixStream>,
}

impl Store {
    /// Keeps `path` from every collector until this store is closed or its process ends. It need not be valid yet.
    pub fn add_temp_root(&self, path: &StorePath) -> Result<(), StoreError> {
        self.check_writable("keep a path from the collector")?;
        let mut temp_roots = self.temp_roots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        temp_roots.add(&self.state_dir(), self.dir.display(path))
    }
}

impl TempRoots {
    fn add(&mut self, state: &Path, path: String) -> Result<(), StoreError> {
        if self.file.is_none() {
            self.file = Some(make_file(&state.join("temproots"))?);
        }
        let gc_lock_path = state.join("gc.lock");
        if self.gc_lock.is_none() {
            self.gc_lock = Some(open_lock(&gc_lock_path)?);
        }
        let (Some((file_path, file)), Some(gc_lock)) = (&mut self.file, &self.gc_lock) else { unreachable!() };
        loop {
            match rustix::fs::flock(gc_lock, FlockOperation::NonBlockingLockShared) {
                Ok(()) => break,
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(StoreError::io("lock", gc_lock_path, error)),
            }
            match tell(&mut self.collector, state, &path) {
                Ok(()) => break,
                Err(error) if is_gone(&error) => {
                    // It has ended, or has the lock and not yet its socket. Nobody tells when, so look again shortly.
                    self.collector = None;
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                Err(error) => {
                    return Err(StoreError::io("tell the collector at", state.join("gc-socket/socket"), error));
                }
            }
        }
        let mut line = path.into_bytes();
        line.push(0);
        let written = file.write_all(&line).map_err(StoreError::on("write", &*file_path));
        let _ = rustix::fs::flock(gc_lock, FlockOperation::Unlock);
        written
    }
}

impl Drop for TempRoots {
    fn drop(&mut self) {
        if let Some((path, file)) = self.file.take() {
            let _ = fs::remove_file(path);
            let _ = rustix::fs::flock(&file, FlockOperation::Unlock);
        }
    }
}

/// A locked, empty file of this process. Nix takes its number alone and supposes that no other process has it; in another
/// PID namespace one may, and so may another store in this process, so a file that is held gives way to the next name.
/// A collector reads the number at the start and stops at the dash.
fn make_file(directory: &Path) -> Result<(std::path::PathBuf, File), StoreError> {
    let process = std::process::id();
    let mut attempt = 0u32;
    loop {
        let path = directory.join(match attempt {
            0 => process.to_string(),
            n => format!("{process}-{n}"),
        });
        let file = open_lock(&path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::INTR) => continue,
            Err(Errno::WOULDBLOCK) => {
                attempt += 1;
                continue;
            }
            Err(error) => return Err(StoreError::io("lock", path, error)),
        }
        // A collector that came first wrote a byte into it and removed it; a process that died left its roots in it.
        if file.metadata().map_err(StoreError::on("look at", &path))?.len() == 0 {
            return Ok((path, file));
        }
        let _ = fs::remove_file(&path);
    }
}

fn tell(collector: &mut Option<UnixStream>, state: &Path, path: &str) -> io::Result<()> {
    if collector.is_none() {
        // The name of a socket may have 107 bytes; through a held directory it is short whatever the root is.
        let directory = File::open(state.join("gc-socket"))?;
        *collector = Some(UnixStream::connect(format!("/proc/self/fd/{}/socket", directory.as_raw_fd()))?);
    }
    let Some(stream) = collector else { return Ok(()) };
    stream.write_all(format!("{path}\n").as_bytes())?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if answer == *b"1" { Ok(()) } else { Err(io::Error::other("it answered something unknown")) }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotFound | UnexpectedEof)
}
