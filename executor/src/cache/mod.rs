//! Binary caches: narinfo, signatures, compressed archives.
//!
//! Source: `doc/manual/source/protocols/nix-cache-info.md`, `src/libstore/nar-info.cc`, `src/libstore/binary-cache-store.cc`
//! and `src/libstore/local-binary-cache-store.cc` of Nix.

mod compression;
mod directory;
mod fetched;
mod narinfo;
mod signature;
#[cfg(test)]
mod tests;

use std::io;

pub use compression::Compression;
pub use directory::{Directory, PathInfo};
pub use fetched::FetchedNar;
pub use narinfo::NarInfo;
pub use signature::{PublicKey, SecretKey, Signature};

use crate::nar::NarError;

/// Why something was not put into a cache, or not taken from it.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A system call.
    #[error("cannot {doing} ‘{path}’: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A text of a cache that is not in its form.
    #[error("{file} is not valid: {what}")]
    Invalid {
        /// What it is, with its name.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// A key or a signature that is not in its form. A secret key is not repeated here.
    #[error("{what} is not valid: {why}")]
    Key {
        /// What it is, with its name if that is known.
        what: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A cache of another store.
    #[error("the cache ‘{cache}’ is for the store ‘{theirs}’, not for ‘{ours}’: its paths cannot be used here")]
    OtherStore {
        /// Where it is.
        cache: String,
        /// Whose paths it has.
        theirs: String,
        /// Whose are wanted.
        ours: String,
    },
    /// The cache has not got the path.
    #[error("the cache ‘{cache}’ has nothing for {hash_part}")]
    Missing {
        /// Where it is.
        cache: String,
        /// The 32 digits that were asked for.
        hash_part: String,
    },
    /// What came is not what was said.
    #[error("the archive of {path} is not what it should be: {what}; nothing of it may be used")]
    Mismatch {
        /// The path.
        path: String,
        /// What differs, wanted and got.
        what: String,
    },
    /// A compression that is only read.
    #[error("archives are not compressed with {0} here, it is only read: choose xz, zstd or none")]
    ReadOnlyCompression(Compression),
    /// The archive itself.
    #[error(transparent)]
    Nar(#[from] NarError),
}

impl CacheError {
    pub(crate) fn system(doing: &'static str, path: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { doing, path: path.into(), source: source.into() }
    }
}
