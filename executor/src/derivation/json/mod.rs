//! The JSON forms of derivations, as `nix derivation show` writes them and `nix derivation add` reads them.
//!
//! | version | Nix | differences |
//! |---|---|---|
//! | 1 (not written down) | to 2.15 | no name; `hashAlgo` such as `r:sha256`; `inputDrvs` as lists of outputs |
//! | 2 (not written down) | to 2.31 | `name`; `method` apart from `hashAlgo`; `inputDrvs` as objects with `dynamicOutputs` |
//! | 3 | 2.32 | `version`; store paths without their directory; `structuredAttrs` apart from `env` |
//! | 4 | since 2.33 | `inputs` with `srcs` and `drvs`; `hash` in SRI form; all below `derivations` |
//!
//! Source: `doc/manual/source/protocols/json/` and `src/libstore/derivations.cc` of Nix.

mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::read;
pub use write::{write, write_old, write_one};

use super::{Derivation, InvalidDerivation, aterm};
use crate::hash::HashError;
use crate::store_path::{StorePath, StorePathError};

/// The longest JSON text that is read, in bytes: a whole graph may be in one. Some 20,000 derivations fit.
pub const MAX_LEN: usize = 128 << 20;

/// A derivation as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The path that the text gives for it, where it gives one. Nothing has compared it with the derivation.
    pub path: Option<StorePath>,
    /// The derivation. Its outputs are [`super::Output::Deferred`] where the text has no paths.
    pub derivation: Derivation,
}

/// JSON that is no derivation, and where.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct JsonError {
    /// The key, with those it lies in, or the derivation.
    pub place: String,
    /// What.
    pub problem: Problem,
}

/// What is wrong at one place of a JSON text.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// No JSON at all, or a key twice.
    #[error(transparent)]
    Syntax(#[from] serde_json::Error),
    /// Longer than [`MAX_LEN`].
    #[error("it is longer than {} MiB", MAX_LEN >> 20)]
    TooLong,
    /// A key that no version has here.
    #[error("the key ‘{0}’ is not known here")]
    UnknownKey(String),
    /// A key that must be there.
    #[error("the key ‘{0}’ is missing")]
    MissingKey(&'static str),
    /// Two keys that say the same in two ways.
    #[error("the keys ‘{0}’ and ‘{1}’ cannot be together")]
    BothKeys(&'static str, &'static str),
    /// A value of another type.
    #[error("expected {expected}, found {found}")]
    Type {
        /// What type.
        expected: &'static str,
        /// What was there, or its type.
        found: String,
    },
    /// A version that is not read.
    #[error("version {0} of the JSON form is not known: 3, 4 and the older ones without a version are read")]
    Version(String),
    /// A path of a derivation that does not end in `.drv`.
    #[error("‘{0}’ is not the path of a derivation: it does not end in .drv")]
    NotADerivation(StorePath),
    /// The derivation's path has another name than the derivation.
    #[error("the derivation is called ‘{name}’, but its path is ‘{path}’")]
    Name {
        /// The name.
        name: String,
        /// The path.
        path: StorePath,
    },
    /// Outputs of derivations that builds make.
    #[error(
        "this depends on a derivation that is made by a build (dynamicOutputs); anchorhold does not build these yet"
    )]
    Dynamic,
    /// A path of a fixed output that is not the computed one.
    #[error("the path ‘{path}’ is not that of the fixed output, which is ‘{should}’")]
    FixedPath {
        /// The one that was read.
        path: StorePath,
        /// The one that follows from the hash.
        should: StorePath,
    },
    /// Text outputs have SHA-256 hashes only.
    #[error("a text is hashed with sha256 only")]
    TextHash,
    /// A path for an output whose path depends on what is built.
    #[error("a path cannot be given for an output whose hash is not known")]
    UnknowablePath,
    /// A way of hashing that is not built.
    #[error("unknown method ‘{0}’: flat, nar and text are known")]
    Method(String),
    /// The same thing twice in a list.
    #[error("‘{0}’ is listed twice")]
    Duplicate(String),
    /// No path in the store.
    #[error(transparent)]
    Path(#[from] StorePathError),
    /// No hash.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// In the spelling of older versions.
    #[error(transparent)]
    Written(#[from] aterm::Problem),
    /// Something in the derivation as a whole.
    #[error(transparent)]
    Invalid(#[from] InvalidDerivation),
    /// JSON holds text only.
    #[error("this is not UTF-8, so that JSON cannot hold it; the .drv file can")]
    NotUtf8,
}
