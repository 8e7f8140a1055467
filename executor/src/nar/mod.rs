//! The Nix archive: a canonical stream of a tree, written, read and restored.
//!
//! Source: `doc/manual/source/protocols/nix-archive/` and `src/libutil/archive.cc` of Nix. A tree has exactly one archive:
//! names sorted by bytes, of a file's mode only the owner's x bit, no times, no owners.

mod encoder;
pub mod pass;
mod read;
pub mod references;
mod restore;
pub mod rewrite;
#[cfg(test)]
pub(crate) mod tests;
mod write;

use std::io;

pub use read::{Event, Reader, copy};
pub use restore::restore;
pub(crate) use restore::{CANONICAL_TIME, EXECUTABLE, FILE};
pub(crate) use write::kind_in_words;
pub use write::{dump, dump_with};

pub(crate) const MAGIC: &[u8] = b"nix-archive-1";

/// Directories inside each other that an archive may have.
///
/// A program that uses whole paths cannot get below 2048 of them (`PATH_MAX` is 4096, and each takes at least two bytes),
/// so no real tree is deeper; Nix since 2.34.7 itself reads no more than 64. Nothing here recurses: a level costs a name of
/// at most 255 bytes and a record on the heap, so that the deepest archive costs less than a mebibyte.
pub const MAX_DEPTH: usize = 2048;

/// Longest name in an archive: no file system of Linux has longer ones (`NAME_MAX`).
pub const MAX_NAME: usize = 255;

/// Longest target of a symlink: the kernel makes none longer (`PATH_MAX` without the NUL).
pub const MAX_TARGET: usize = 4095;

/// What is written between a name and a number by Nix on file systems that take letters of both cases for the same.
/// Source: `caseHackSuffix` in `src/libutil/archive.cc`.
pub const CASE_HACK_SUFFIX: &[u8] = b"~nix~case~hack~";

/// How a tree is turned into an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether names lose their [`CASE_HACK_SUFFIX`] and what follows: for trees that Nix unpacked on such a file system.
    pub case_hack: bool,
}

/// Why an archive was not written, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// A system call on the tree.
    #[error("cannot {doing} ‘{path}’: {source}")]
    Tree {
        /// What was being done.
        doing: &'static str,
        /// To what: the way from the tree's top, its name included.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Something that no archive can hold.
    #[error("‘{path}’ is {kind}: an archive holds only regular files, directories and symlinks; remove it")]
    Kind {
        /// The way from the tree's top.
        path: String,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// More than [`MAX_DEPTH`].
    #[error("‘{path}’ lies deeper than {MAX_DEPTH} directories, more than an archive may have")]
    Depth {
        /// The way from the tree's top.
        path: String,
    },
    /// A file became another one, longer or shorter while it was read.
    #[error("‘{path}’ changed while it was being archived: let nothing write to the tree, and try again")]
    Changed {
        /// The way from the tree's top.
        path: String,
    },
    /// Two names that differ only in their case hack suffixes.
    #[error("‘{path}’ and another file beside it have the same name without the suffix of the case hack: rename one")]
    CaseHack {
        /// The way from the tree's top.
        path: String,
    },
    /// The stream that an archive comes from.
    #[error("cannot read the archive after byte {offset}: {source}")]
    Source {
        /// How many bytes had been read.
        offset: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// The stream that an archive, or a file's contents, goes to.
    #[error("cannot write the archive: {0}")]
    Sink(#[source] io::Error),
    /// The stream ended in the middle.
    #[error("the archive was cut off: it ends after {offset} bytes, where {wanted} should follow")]
    Truncated {
        /// How many bytes there are.
        offset: u64,
        /// What should follow.
        wanted: &'static str,
    },
    /// The stream is no canonical archive.
    #[error("this is no valid archive: {what} (byte {offset}{place})")]
    Malformed {
        /// Where, in bytes from the start.
        offset: u64,
        /// In which file, with words around it, or nothing.
        place: String,
        /// What is wrong.
        what: String,
    },
}

impl NarError {
    pub(crate) fn tree(doing: &'static str, path: String, source: impl Into<io::Error>) -> Self {
        Self::Tree { doing, path, source: source.into() }
    }
}
