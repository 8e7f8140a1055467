//! Locks on paths that somebody makes, understood by Nix too. Source: `src/libstore/pathlocks.cc` and `unix/pathlocks.cc`.
//!
//! The lock of a path is a `flock` of the file `<path>.lock` beside it. Who removes the file writes a byte into it, still
//! holding it: whoever waited for the same file sees by its size, and by
//! its number, that it is no longer *the* lock, and starts over.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::database::{lock, open_lock};
use super::{Store, StoreError};
use crate::store_path::StorePath;

/// Locks that are held; released when dropped.
#[derive(Debug, Default)]
pub struct PathLocks {
    pub(super) held: Vec<(PathBuf, File)>,
}

impl Store {
    /// Takes the locks of `paths` and waits for each as long as it takes. They are taken in the order of their names, as
    /// everybody does, so that nobody waits in a circle. `notice` is called with a line for a person before each wait.
    pub fn lock_paths<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
        notice: &mut dyn FnMut(&str),
    ) -> Result<PathLocks, StoreError> {
        self.check_writable("lock a path")?;
        let mut locks = PathLocks::default();
        for path in paths.into_iter().collect::<BTreeSet<_>>() {
            let file = self.lock_file(path);
            let lock = match take(&file, false)? {
                Some(lock) => lock,
                None => {
                    notice(&format!("waiting for the lock on ‘{}’", self.dir.display(path)));
                    take(&file, true)?.expect("a wait ends with the lock")
                }
            };
            locks.held.push((file, lock));
        }
        Ok(locks)
    }

    /// Takes the locks of `paths`, or none of them if somebody holds one.
    pub fn try_lock_paths<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<Option<PathLocks>, StoreError> {
        self.check_writable("lock a path")?;
        let mut locks = PathLocks::default();
        for path in paths.into_iter().collect::<BTreeSet<_>>() {
            let file = self.lock_file(path);
            match take(&file, false)? {
                Some(lock) => locks.held.push((file, lock)),
                None => return Ok(None),
            }
        }
        Ok(Some(locks))
    }

    fn lock_file(&self, path: &StorePath) -> PathBuf {
        self.real_dir().join(format!("{path}.lock"))
    }
}

impl PathLocks {
    /// Releases the locks at once, even if a process that was started meanwhile still holds copies of their descriptors.
    pub fn release(self) {}
}

impl Drop for PathLocks {
    fn drop(&mut self) {
        for (path, file) in self.held.drain(..) {
            remove_lock(&path, &file);
        }
    }
}

/// The lock at `path`; nothing if another holds it and `wait` is false.
fn take(path: &Path, wait: bool) -> Result<Option<File>, StoreError> {
    loop {
        let file = open_lock(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::INTR) => continue,
            Err(Errno::WOULDBLOCK) if wait => lock(&file, FlockOperation::LockExclusive, path)?,
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(StoreError::io("lock", path, error)),
        }
        let same = names(path, &file)?;
        if same && file.metadata().map_err(StoreError::on("look at", path))?.len() == 0 {
            return Ok(Some(file));
        }
        // It was removed while we waited. If its name is still there, who removed it died in between, and it falls to us.
        if same {
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes the lock file at `path` if nobody holds it; says whether.
pub(super) fn remove_stale(path: &Path) -> Result<bool, StoreError> {
    let lock = take(path, false)?;
    if let Some(file) = &lock {
        remove_lock(path, file);
    }
    Ok(lock.is_some())
}

/// Removes the lock file that is held as `file`, and lets go of it.
pub(super) fn remove_lock(path: &Path, mut file: &File) {
    let _ = fs::remove_file(path);
    let _ = file.write_all(b"d");
    let _ = rustix::fs::flock(file, FlockOperation::Unlock);
}

/// Whether the file that is open is the one that the name stands for.
fn names(path: &Path, file: &File) -> Result<bool, StoreError> {
    let held = file.metadata().map_err(StoreError::on("look at", path))?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::io("look at", path, error)),
    }
}
