//! What a content address says, and whether a path lives up to it.
//!
//! Source: `src/libstore/content-address.cc` of Nix.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::str::FromStr;

use rustix::fs::{Mode, OFlags, openat};

use super::Fault;
use crate::derivation::Method;
use crate::hash::{Algorithm, Hash, Hasher};
use crate::nar::{self, rewrite};
use crate::store::PathInfo;
use crate::store_path::{StoreDir, StorePath};

/// `text:sha256:…`, `fixed:r:sha256:…` and their like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentAddress {
    pub method: Method,
    pub hash: Hash,
}

/// The part before the hash, which says how it is made: `text:sha256`, `fixed:r:sha256`.
pub(super) fn parse_method(text: &str) -> Result<(Method, Algorithm), Fault> {
    let unknown = || {
        Fault::refused(format!("‘{}’ is no way to name a path by its contents that is known here", text.escape_debug()))
    };
    let (method, algorithm) = if let Some(algorithm) = text.strip_prefix("text:") {
        (Method::Text, algorithm)
    } else if let Some(algorithm) = text.strip_prefix("fixed:r:") {
        (Method::Recursive, algorithm)
    } else if let Some(algorithm) = text.strip_prefix("fixed:") {
        (Method::Flat, algorithm)
    } else {
        return Err(unknown());
    };
    let algorithm = algorithm.parse().map_err(|_| unknown())?;
    if method == Method::Text && algorithm != Algorithm::Sha256 {
        return Err(unknown());
    }
    Ok((method, algorithm))
}

impl FromStr for ContentAddress {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let (method, digits) = text
            .rsplit_once(':')
            .ok_or_else(|| Fault::refused(format!("‘{}’ is no content address", text.escape_debug())))?;
        let (method, algorithm) = parse_method(method)?;
        let hash = Hash::from_digits(algorithm, digits).map_err(Fault::refused)?;
        Ok(Self { method, hash })
    }
}

impl std::fmt::Display for ContentAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.method {
            Method::Text => write!(formatter, "text:{}", self.hash),
            Method::Recursive => write!(formatter, "fixed:r:{}", self.hash),
            Method::Flat => write!(formatter, "fixed:{}", self.hash),
        }
    }
}

impl ContentAddress {
    /// The path that something of this address has.
    pub fn path(
        &self,
        name: &str,
        references: &BTreeSet<StorePath>,
        own: Option<&StorePath>,
        dir: &StoreDir,
    ) -> Result<StorePath, Fault> {
        let refers_to_itself = own.is_some_and(|own| references.contains(own));
        let others = || references.iter().filter(|path| Some(*path) != own);
        match self.method {
            Method::Text if !refers_to_itself => Ok(dir.text_path(name, &self.hash, references)?),
            Method::Recursive if self.hash.algorithm() == Algorithm::Sha256 => {
                Ok(dir.source_path(name, &self.hash, others(), refers_to_itself)?)
            }
            Method::Flat | Method::Recursive if references.is_empty() => {
                Ok(dir.fixed_path(name, self.method == Method::Recursive, &self.hash)?)
            }
            _ => Err(Fault::refused(format!("‘{name}’ may not have references: it is named by ‘{self}’"))),
        }
    }

    /// Whether the name of the path in `info` follows from this address.
    pub fn names(&self, info: &PathInfo, dir: &StoreDir) -> bool {
        self.path(info.path.name(), &info.references, Some(&info.path), dir).is_ok_and(|path| path == info.path)
    }

    /// Checks that the tree `name` in `parent`, which `info` is of, has what the address says.
    pub fn check(&self, parent: BorrowedFd<'_>, name: &OsStr, info: &PathInfo) -> Result<(), Fault> {
        let found = match self.method {
            Method::Flat | Method::Text => vec![hash_file(parent, name, self.hash.algorithm())?],
            Method::Recursive if info.references.contains(&info.path) => {
                // Versions of Nix disagree on whether places count; either is what one of them made.
                let hash = |with_places| {
                    rewrite::hash_modulo(parent, name, self.hash.algorithm(), &info.path, with_places)
                        .map_err(Fault::refused)
                };
                vec![hash(true)?.0, hash(false)?.0]
            }
            Method::Recursive if self.hash.algorithm() == Algorithm::Sha256 => vec![info.nar_hash],
            Method::Recursive => {
                let mut hasher = Hasher::new(self.hash.algorithm());
                nar::dump(parent, name, &mut hasher).map_err(Fault::refused)?;
                vec![hasher.finish()]
            }
        };
        if found.contains(&self.hash) {
            return Ok(());
        }
        Err(Fault::refused(format!(
            "content hash mismatch importing path '{}': it is said to have {} and has {}",
            info.path,
            self.hash.sri(),
            found[0].sri()
        )))
    }
}

/// The hash of a regular file's bytes.
pub(super) fn hash_file(parent: BorrowedFd<'_>, name: &OsStr, algorithm: Algorithm) -> Result<Hash, Fault> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(parent, name, flags, Mode::empty())
        .map_err(|_| Fault::refused("what is named by the bytes of a file must be a file"))?;
    let mut file = File::from(file);
    if !file.metadata().is_ok_and(|file| file.is_file()) {
        return Err(Fault::refused("what is named by the bytes of a file must be a regular file"));
    }
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer).map_err(Fault::refused)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}
