//! What can go wrong with a store.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use crate::nar::NarError;
use crate::store_path::{StorePath, StorePathError};
use crate::tree::TreeError;

/// An operation on a store that was not done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {doing} ‘{path}’: {source}", path = path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No room is left on the store's file system.
    #[error(
        "the file system of ‘{path}’ is full: free some space, for example with `anchorhold store gc`, and try again",
        path = path.display()
    )]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// There is no store.
    #[error("there is no store at ‘{root}’: ‘{missing}’ does not exist", root = root.display(), missing = missing.display())]
    NoStore {
        /// The store's root.
        root: PathBuf,
        /// What was looked for.
        missing: PathBuf,
    },
    /// The database was written by a later version.
    #[error(
        "the store's database has schema {found}, and this program knows {known}: it was not touched; use a newer \
         program, or another store",
        known = super::database::SCHEMA
    )]
    NewerSchema {
        /// The number in the file `schema`.
        found: u64,
    },
    /// The database is of a version that nobody has used for ten years.
    #[error(
        "the store's database has schema {found}, which is too old: open it once with Nix 2, which brings it to {known}",
        known = super::database::SCHEMA
    )]
    OlderSchema {
        /// The number in the file `schema`.
        found: u64,
    },
    /// The file `schema` holds no number.
    #[error("‘{path}’ should hold the number of the database's schema, and holds ‘{text}’", path = path.display())]
    BadSchema {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// The database is damaged.
    #[error(
        "the store's database ‘{path}’ is damaged ({why}): copy the directory ‘{directory}’ elsewhere first; then \
         `sqlite3 db.sqlite .recover | sqlite3 new.sqlite` in it, put the new file in the place of the old, remove \
         db.sqlite-wal and db.sqlite-shm, and check with `anchorhold store verify --check-contents`",
        path = path.display(),
        directory = path.parent().unwrap_or(path).display()
    )]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The store cannot be written.
    #[error("cannot {doing}: the store at ‘{root}’ can only be read here", root = root.display())]
    ReadOnly {
        /// The store's root.
        root: PathBuf,
        /// What was asked.
        doing: &'static str,
    },
    /// Another process holds the database for longer than anybody should.
    #[error("the store's database ‘{path}’ has been busy for {seconds} s: see which process holds it with `fuser`", path = path.display())]
    Busy {
        /// The database.
        path: PathBuf,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// SQLite refused for another reason.
    #[error("cannot {doing} in the store's database ‘{path}’: {source}", path = path.display())]
    Database {
        /// What was being done.
        doing: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A row of the database cannot be understood.
    #[error("the store's database has a bad {column} for ‘{path}’: {why}")]
    BadEntry {
        /// The path whose row it is.
        path: String,
        /// The column.
        column: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A path is not registered.
    #[error("the path ‘{0}’ is not valid in this store")]
    NotValid(String),
    /// A path is to be registered that refers to something that is not there.
    #[error("cannot register ‘{path}’: it refers to ‘{reference}’, which is not valid in this store")]
    MissingReference {
        /// The path.
        path: StorePath,
        /// What it refers to.
        reference: StorePath,
    },
    /// Paths refer to each other in a circle.
    #[error("cannot register a cycle of references: {}", chain.join(" → "))]
    Cycle {
        /// The circle; its first and last are the same.
        chain: Vec<String>,
    },
    /// A path that others refer to is to be made invalid.
    #[error("cannot invalidate ‘{path}’: {} in use by {}", if referrers.len() == 1 { "it is" } else { "it is still" }, referrers.join(", "))]
    InUse {
        /// The path.
        path: StorePath,
        /// Some of those that refer to it.
        referrers: Vec<String>,
    },
    /// A path that is to be removed is kept by a root.
    #[error(
        "cannot delete ‘{path}’: it is kept by {}; `anchorhold store roots` shows all roots",
        if by.is_empty() { "what else lives".to_owned() } else { by.join(", ") }
    )]
    Alive {
        /// The path.
        path: StorePath,
        /// Some of what keeps it.
        by: Vec<String>,
    },
    /// A path does not hold what was registered.
    #[error(
        "‘{path}’ has changed since it was registered: its hash was {wanted} and is {found}; delete it and build or copy it again"
    )]
    Changed {
        /// The path.
        path: StorePath,
        /// The registered hash of its NAR, in SRI form.
        wanted: String,
        /// What it is now.
        found: String,
    },
    /// A path is named like a derivation and is none.
    #[error("cannot register ‘{path}’, which is named as a derivation: {why}")]
    Derivation {
        /// The path.
        path: StorePath,
        /// What is wrong with it.
        why: String,
    },
    /// A stream is no export.
    #[error("cannot import the stream: {why}")]
    Import {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A tree could not be walked, moved or removed.
    #[error(transparent)]
    Tree(TreeError),
    /// An archive could not be written, read or restored.
    #[error(transparent)]
    Nar(NarError),
    /// A text is no store path.
    #[error(transparent)]
    Path(#[from] StorePathError),
}

impl From<TreeError> for StoreError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::System { path, source, .. } if is_full(&source) => Self::DiskFull { path: path.into() },
            other => Self::Tree(other),
        }
    }
}

impl From<NarError> for StoreError {
    fn from(error: NarError) -> Self {
        match error {
            NarError::Tree { path, source, .. } if is_full(&source) => Self::DiskFull { path: path.into() },
            other => Self::Nar(other),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl StoreError {
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let path = path.as_ref().to_owned();
        if is_full(&source) { Self::DiskFull { path } } else { Self::Io { doing, path, source } }
    }

    /// For `map_err`: the failure of `doing` to `path`.
    pub(crate) fn on<E: Into<io::Error>>(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(E) -> Self {
        move |source| Self::io(doing, path, source)
    }

    pub(crate) fn sql(doing: &'static str, database: &Path, root: &Path, source: rusqlite::Error) -> Self {
        let path = database.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull { path },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Corrupt { path, why: source.to_string() }
            }
            Some(ErrorCode::ReadOnly) => Self::ReadOnly { root: root.to_owned(), doing },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::Busy { path, seconds: super::database::PATIENCE.as_secs() }
            }
            _ => Self::Database { doing, path, source },
        }
    }
}
