//! Closures from one place to another: store roots and binary caches.
//!
//! The paths that are missing at the destination are put in order, what is needed before what needs it, and go over in
//! batches: the archives of a batch at the same time, each checked as it flows, and then all of the batch is made valid in
//! one step. Whoever stops it at any instant leaves files that nothing speaks of.
//!
//! What comes into a store must be vouched for, as in Nix: by the signature of a trusted key, or by a name that follows
//! from the contents. Source: `src/libstore/local-store.cc` (`addToStore`) and `src/libstore/path-info.cc` of Nix.

mod contents;
mod destination;
mod parallel;
mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::cache::{CacheError, Compression, Directory, NarInfo, PublicKey, SecretKey};
use crate::nar::NarError;
use crate::store::{Store, StoreError};
use crate::store_path::{StoreDir, StorePath};

/// How many paths become valid in one step, at most. Each costs an open lock file until then.
const BATCH: usize = 128;

/// How many bytes of archives make a step by themselves: what is lost by an interruption is less than that, or one path.
const BATCH_BYTES: u64 = 64 << 20;

/// Where paths are.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a copy has two of them")]
pub enum Place {
    /// An embedded store, or a Nix's.
    Store(Store),
    /// A binary cache in a directory.
    Cache(Directory),
}

impl Place {
    /// The directory that its paths are named by.
    pub fn store_dir(&self) -> &StoreDir {
        match self {
            Self::Store(store) => store.dir(),
            Self::Cache(cache) => cache.store_dir(),
        }
    }

    /// What it is and where, for a person.
    pub fn shown(&self) -> String {
        match self {
            Self::Store(store) => format!("the store ‘{}’", store.root().display()),
            Self::Cache(cache) => format!("the cache ‘{}’", cache.path().display()),
        }
    }
}

/// Whose paths a store takes.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Everybody's; hashes and names that follow from contents are checked all the same.
    Everybody,
    /// Those that one of these keys has signed, and those that are named by their contents.
    Keys(Vec<PublicKey>),
}

/// What is to be copied, and how.
#[derive(Debug)]
pub struct Request {
    /// These, and all that they need.
    pub paths: BTreeSet<StorePath>,
    /// Whose paths are taken, if they go into a store. A cache takes them from anybody: who reads it checks.
    pub trust: Trust,
    /// How archives are compressed that go into a cache.
    pub compression: Compression,
    /// Keys that sign each copied path, where it arrives.
    pub keys: Vec<SecretKey>,
    /// How many paths are under way at the same time.
    pub jobs: usize,
}

/// A path that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// The path.
    pub path: StorePath,
    /// The size of its archive in bytes.
    pub nar_size: u64,
    /// The name of the trusted key that vouched for it, if one was asked for.
    pub vouched_by: Option<String>,
}

/// What a copy did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What went over, in the order in which it was made valid.
    pub copied: Vec<Copied>,
    /// What the destination had already. Of a closure that a store has, only its tops are counted.
    pub present: BTreeSet<StorePath>,
}

/// Why a closure was not copied, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// A path that is to be copied is not at the source.
    #[error("{place} has no ‘{path}’{}", needed_by(chain))]
    Missing {
        /// The source.
        place: String,
        /// The path.
        path: StorePath,
        /// Who needs it, from a path that was asked for down to the one that refers to it.
        chain: Vec<StorePath>,
    },
    /// Nobody who is trusted vouches for a path.
    #[error(
        "‘{path}’ {}: trust its key with --trusted-key NAME:BASE64 or the setting ‘trusted-public-keys’, or take it \
         unchecked with --no-check-sigs",
        if names.is_empty() { "has no signature".to_owned() } else {
            format!("is signed by {} only, which is not trusted here", names.join(", "))
        }
    )]
    Untrusted {
        /// The path.
        path: StorePath,
        /// The keys that its signatures say they are of.
        names: Vec<String>,
    },
    /// A signature of a trusted key does not fit.
    #[error(
        "‘{path}’ has a wrong signature of the trusted key ‘{key}’: its name, hash, size or references are not those that \
         were signed, or another key has the same name"
    )]
    WrongSignature {
        /// The path.
        path: StorePath,
        /// The key's name.
        key: String,
    },
    /// A path says that it is named by its contents, and is not.
    #[error("‘{path}’ is not what its content address ‘{address}’ says: {what}")]
    ContentAddress {
        /// The path.
        path: StorePath,
        /// What it says.
        address: String,
        /// What differs.
        what: String,
    },
    /// Paths refer to each other in a circle.
    #[error("cannot copy a cycle of references: {}", .0.iter().map(StorePath::as_str).collect::<Vec<_>>().join(" → "))]
    Cycle(Vec<StorePath>),
    /// One path did not go over.
    #[error("cannot copy ‘{path}’: {source}")]
    Path {
        /// Which.
        path: StorePath,
        /// Why.
        source: Box<TransferError>,
    },
    /// The store did not do its part.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache did not do its part.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An archive was not good.
    #[error(transparent)]
    Archive(#[from] NarError),
}

fn needed_by(chain: &[StorePath]) -> String {
    if chain.is_empty() {
        return String::new();
    }
    let chain: Vec<_> = chain.iter().map(|path| format!("‘{path}’")).collect();
    format!(", which is needed by {}", chain.join(" → "))
}

/// Copies what `request` asks for. `told` is called for each path as soon as it has arrived, from any thread; `notice` with a
/// line for a person before each wait.
///
/// # Errors
/// See [`TransferError`]. Batches before the error have arrived, and nothing of its own.
pub fn copy(
    from: &Place,
    to: &Place,
    request: &Request,
    told: &(dyn Fn(&NarInfo) + Sync),
    notice: &mut dyn FnMut(&str),
) -> Result<Report, TransferError> {
    let mut present = BTreeSet::new();
    let infos = source::closure(from, &request.paths, to, &mut present)?;
    let mut vouched = BTreeMap::new();
    if let (Place::Store(_), Trust::Keys(keys)) = (to, &request.trust) {
        // All of them before the first byte is written: half a closure is of no use to anybody.
        for info in infos.values() {
            vouched.insert(info.path.clone(), contents::voucher(info, keys, from.store_dir())?);
        }
    }
    let mut report = Report { copied: Vec::new(), present };
    let order = order(&infos)?;
    for batch in batches(&order) {
        let arrived = match to {
            Place::Store(store) => destination::into_store(from, store, batch, request, told, notice)?,
            Place::Cache(cache) => destination::into_cache(from, cache, batch, request, told)?,
        };
        for info in batch {
            if arrived.contains(&info.path) {
                let vouched_by = vouched.remove(&info.path).flatten();
                report.copied.push(Copied { path: info.path.clone(), nar_size: info.nar_size, vouched_by });
            } else {
                report.present.insert(info.path.clone());
            }
        }
    }
    Ok(report)
}

/// The steps in which `order` goes over.
fn batches<'a, 'b>(mut order: &'a [&'b NarInfo]) -> impl Iterator<Item = &'a [&'b NarInfo]> {
    std::iter::from_fn(move || {
        let mut bytes = 0u64;
        let full = order.iter().position(|info| {
            bytes = bytes.saturating_add(info.nar_size);
            bytes >= BATCH_BYTES
        });
        let count = full.map_or(order.len(), |at| at + 1).min(BATCH);
        let (batch, rest) = order.split_at(count);
        order = rest;
        (!batch.is_empty()).then_some(batch)
    })
}

/// Each after those of them that it refers to. With a list of its own and not by recursion: who wrote the narinfos chose how
/// deep it goes.
fn order(infos: &BTreeMap<StorePath, NarInfo>) -> Result<Vec<&NarInfo>, TransferError> {
    let mut order = Vec::with_capacity(infos.len());
    let mut done = BTreeSet::new();
    for start in infos.values() {
        if done.contains(&start.path) {
            continue;
        }
        let mut stack = vec![(start, start.references.iter())];
        let mut on_stack = BTreeSet::from([&start.path]);
        while let Some((info, references)) = stack.last_mut() {
            let info = *info;
            match references.next() {
                None => {
                    on_stack.remove(&info.path);
                    done.insert(&info.path);
                    order.push(info);
                    stack.pop();
                }
                Some(next) if *next == info.path || done.contains(next) => {}
                Some(next) if on_stack.contains(next) => {
                    let circle = stack.iter().map(|(info, _)| &info.path).skip_while(|path| *path != next);
                    return Err(TransferError::Cycle(circle.chain([next]).cloned().collect()));
                }
                Some(next) => {
                    // What is not among them is at the destination.
                    if let Some(next) = infos.get(next) {
                        on_stack.insert(&next.path);
                        stack.push((next, next.references.iter()));
                    }
                }
            }
        }
    }
    Ok(order)
}
