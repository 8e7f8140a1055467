//! Derivations as they lie in a store.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

use super::graph::Known;
use crate::derivation::paths::Derivations;
use crate::derivation::{Derivation, EXTENSION, aterm};
use crate::store::{Store, StoreError};
use crate::store_path::StorePath;

/// Why a derivation in a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its file cannot be read.
    #[error("reading {path}: {source}")]
    File {
        /// Where it lies.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It is no derivation.
    #[error(transparent)]
    Syntax(#[from] aterm::AtermError),
    /// Its name does not end in `.drv`.
    #[error("it is no derivation: its name does not end in ‘{EXTENSION}’")]
    Name,
}

/// Reads the derivation at `path`, which must be valid.
///
/// # Errors
/// See [`StoredError`].
pub fn read(store: &Store, path: &StorePath) -> Result<Derivation, StoredError> {
    let name = path.name().strip_suffix(EXTENSION).ok_or(StoredError::Name)?;
    let real = store.real_path(path);
    let say = |source| StoredError::File { path: real.display().to_string(), source };
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = std::fs::File::options().read(true).custom_flags(flags).open(&real).map_err(say)?;
    let mut bytes = Vec::new();
    // One more than is allowed, so that the reader says that it is too long.
    file.take(aterm::MAX_LEN as u64 + 1).read_to_end(&mut bytes).map_err(say)?;
    Ok(aterm::read(&bytes, name, store.dir())?)
}

/// The derivations of a store, read once each.
#[derive(Debug)]
pub struct Stored<'a> {
    store: &'a Store,
    read: BTreeMap<StorePath, Derivation>,
}

impl<'a> Stored<'a> {
    /// Those of `store`.
    pub fn new(store: &'a Store) -> Self {
        Self { store, read: BTreeMap::new() }
    }

    fn get(&mut self, path: &StorePath) -> Result<Derivation, StoredError> {
        if let Some(known) = self.read.get(path) {
            return Ok(known.clone());
        }
        let derivation = read(self.store, path)?;
        self.read.insert(path.clone(), derivation.clone());
        Ok(derivation)
    }
}

impl Known for Stored<'_> {
    type Error = StoredError;

    fn is_valid(&mut self, path: &StorePath) -> Result<bool, StoredError> {
        Ok(self.store.is_valid(path)?)
    }

    fn derivation(&mut self, path: &StorePath) -> Result<Derivation, StoredError> {
        self.get(path)
    }
}

impl Derivations for Stored<'_> {
    type Error = StoredError;

    fn derivation(&mut self, path: &StorePath) -> Result<Option<Derivation>, StoredError> {
        if !self.store.is_valid(path)? {
            return Ok(None);
        }
        self.get(path).map(Some)
    }
}
