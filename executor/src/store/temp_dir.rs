//! Directories in which a tree is made before it becomes a path, and the step by which it does.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;

use super::{Registration, Store, StoreError};
use crate::store_path::StorePath;
use crate::tree;

/// A private directory beside the paths, on their file system. Its lock tells collectors, Nix's newer ones too, that somebody
/// is at work in it. Removed when dropped.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    name: String,
    store: File,
    directory: File,
}

impl TempDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory itself, held.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What cannot be removed now, the next collector takes: the lock ends with us.
        let _ = tree::remove(self.store.as_fd(), OsStr::new(&self.name));
    }
}

impl Store {
    /// Makes a temporary directory in the store.
    pub fn temp_dir(&self) -> Result<TempDir, StoreError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.check_writable("make a temporary directory")?;
        let real = self.real_dir();
        let store = File::open(&real).map_err(StoreError::on("open", &real))?;
        loop {
            let name = format!("tmp-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = real.join(&name);
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(StoreError::io("make the directory", path, error)),
            }
            let directory = match File::open(&path) {
                Ok(directory) => directory,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(StoreError::io("open", path, error)),
            };
            super::database::lock(&directory, FlockOperation::LockExclusive, &path)?;
            // A collector may have come between the first step and the last.
            if directory.metadata().map_err(StoreError::on("look at", &path))?.nlink() > 0 && path.exists() {
                return Ok(TempDir { path, name, store, directory });
            }
        }
    }

    /// Makes the tree `name` in `from`, which must be on the store's file system and in its final form, the valid path of
    /// `registration`. Waits if somebody makes the same path, and takes theirs then; says whether it was ours.
    ///
    /// # Errors
    /// As [`Store::register`], and what the kernel says. The path is not valid then.
    pub fn move_in(
        &self,
        from: BorrowedFd<'_>,
        name: &OsStr,
        registration: Registration,
        notice: &mut dyn FnMut(&str),
    ) -> Result<bool, StoreError> {
        let path = registration.info.path.clone();
        self.add_temp_root(&path)?;
        let locks = self.lock_paths([&path], notice)?;
        if self.is_valid(&path)? {
            return Ok(false);
        }
        self.move_files(from, name, &path)?;
        let registered = self.register(&[registration]);
        if registered.is_err() {
            // Nobody can use what is not valid. What cannot be removed either, the next collector takes.
            let _ = tree::place(&self.real_path(&path)).and_then(|(store, name)| tree::remove(store.as_fd(), &name));
        }
        locks.release();
        registered?;
        Ok(true)
    }

    /// Gives the tree `name` in `from` the place of `path`, whose lock must be held, and removes what was left there by
    /// somebody who was stopped. By a rename, which is one step; from another file system by a copy. The path is not valid
    /// before it is registered.
    pub fn move_files(&self, from: BorrowedFd<'_>, name: &OsStr, path: &StorePath) -> Result<(), StoreError> {
        let real = self.real_dir();
        let store = File::open(&real).map_err(StoreError::on("open", &real))?;
        let into = OsStr::new(path.as_str());
        tree::remove(store.as_fd(), into)?;
        match tree::rename(from, name, store.as_fd(), into) {
            Err(tree::TreeError::System { source, .. }) if source.kind() == io::ErrorKind::CrossesDevices => {
                Ok(tree::copy(from, name, store.as_fd(), into)?)
            }
            moved => Ok(moved?),
        }
    }
}
