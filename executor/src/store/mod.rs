//! The embedded store: Nix's layout and database under a root of our own.
//!
//! A path is valid when the database says so, and then its files are whole: they are moved in before it is registered, and
//! invalidated before they are removed. Whatever else lies in the directory is somebody's work in progress, or left behind.

mod add;
#[cfg(test)]
mod add_tests;
mod collector;
mod database;
mod derivation_outputs;
mod error;
mod exchange;
mod gc;
#[cfg(test)]
mod gc_tests;
mod generations;
mod graph;
mod leftovers;
mod optimise;
mod path_info;
mod path_lock;
mod query;
mod register;
mod removal;
mod roots;
mod runtime_roots;
mod temp_dir;
mod temp_roots;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod upkeep_tests;
mod verify;

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use add::Naming;
pub use database::SCHEMA;
pub use error::StoreError;
pub use gc::{GcPolicy, GcReport};
pub use optimise::{OptimiseReport, Optimiser};
pub use path_info::{Direction, PathInfo, Registration};
pub use path_lock::PathLocks;
pub use roots::Roots;
pub use temp_dir::TempDir;
pub use verify::VerifyReport;

use crate::store_path::{StoreDir, StorePath};
use database::Database;
use temp_roots::TempRoots;

/// What a store is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading and writing; a store that is not there is made.
    ReadWrite,
    /// Reading only: nothing is written, so that it works on a read-only file system and in another user's store.
    ReadOnly,
}

/// An open store. It can be used by several threads at once.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    access: Access,
    dir: StoreDir,
    database: Mutex<Database>,
    temp_roots: Mutex<TempRoots>,
}

impl Store {
    /// Opens the store whose files are below `root`, in `nix/store` and `nix/var/nix`. `/` is a real Nix's store.
    ///
    /// # Errors
    /// No store (when only reading), a newer schema (the files are then untouched), a damaged database, a full disk, or what
    /// the kernel refuses.
    pub fn open(root: &Path, access: Access) -> Result<Self, StoreError> {
        let root = std::path::absolute(root).map_err(StoreError::on("find", root))?;
        let state = root.join("nix/var/nix");
        let database = match access {
            Access::ReadWrite => make_layout(&root).and_then(|()| Database::open(&root, &state.join("db"))).map_err(
                |error| match error {
                    StoreError::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                        StoreError::ReadOnly { root: root.clone(), doing: "open the store for writing" }
                    }
                    other => other,
                },
            )?,
            Access::ReadOnly => Database::open_read_only(&root, &state.join("db"))?,
        };
        Ok(Self {
            root,
            access,
            dir: StoreDir::default(),
            database: Mutex::new(database),
            temp_roots: Mutex::new(TempRoots::default()),
        })
    }

    /// Where the store's files are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory that paths are named by, wherever their files are.
    pub fn dir(&self) -> &StoreDir {
        &self.dir
    }

    /// What the store was opened for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The directory in which the paths' files really are.
    pub fn real_dir(&self) -> PathBuf {
        self.root.join("nix/store")
    }

    /// Where the files of `path` really are.
    pub fn real_path(&self, path: &StorePath) -> PathBuf {
        self.real_dir().join(path.as_str())
    }

    /// The directory of the database, roots and locks.
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("nix/var/nix")
    }

    /// The directory of logs.
    pub fn log_dir(&self) -> PathBuf {
        self.root.join("nix/var/log/nix")
    }

    /// Fails if the store was opened for reading only.
    pub fn check_writable(&self, doing: &'static str) -> Result<(), StoreError> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(StoreError::ReadOnly { root: self.root.clone(), doing }),
        }
    }

    fn database(&self) -> MutexGuard<'_, Database> {
        // A thread that panicked left no transaction open: it is rolled back as it is dropped.
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make_layout(root: &Path) -> Result<(), StoreError> {
    for directory in [
        "nix/store/.links",
        "nix/var/log/nix/drvs",
        "nix/var/nix/db",
        "nix/var/nix/gcroots/auto",
        "nix/var/nix/gc-socket",
        "nix/var/nix/profiles",
        "nix/var/nix/temproots",
    ] {
        let path = root.join(directory);
        fs::create_dir_all(&path).map_err(StoreError::on("make the directory", &path))?;
    }
    // Profiles are roots by this link, in Nix too.
    let link = root.join("nix/var/nix/gcroots/profiles");
    match symlink(root.join("nix/var/nix/profiles"), &link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(StoreError::on("make the link", &link)),
    }
}
