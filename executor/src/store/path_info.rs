//! What a store knows of a path.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::hash::Hash;
use crate::store_path::{StoreDir, StorePath};

/// What a store knows of a valid path. Source: `ValidPathInfo` in `src/libstore/path-info.hh` of Nix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The path.
    pub path: StorePath,
    /// The SHA-256 of its NAR.
    pub nar_hash: Hash,
    /// The length of its NAR in bytes.
    pub nar_size: u64,
    /// The paths that it needs, itself too if it refers to itself.
    pub references: BTreeSet<StorePath>,
    /// The derivation that made it, which need not be in the store.
    pub deriver: Option<StorePath>,
    /// When it was registered, in seconds since 1970. Zero stands for now when a path is registered.
    pub registration_time: i64,
    /// Whether it was built here, so that its contents are trusted without a signature.
    pub ultimate: bool,
    /// Signatures, each `key name:base 64`.
    pub signatures: BTreeSet<String>,
    /// What its name was computed from, such as `fixed:r:sha256:…` or `text:sha256:…`, if from its contents.
    pub content_address: Option<String>,
}

impl PathInfo {
    /// A path with this NAR; everything else empty.
    pub fn new(path: StorePath, nar_hash: Hash, nar_size: u64) -> Self {
        Self {
            path,
            nar_hash,
            nar_size,
            references: BTreeSet::new(),
            deriver: None,
            registration_time: 0,
            ultimate: false,
            signatures: BTreeSet::new(),
            content_address: None,
        }
    }

    /// The text that signatures vouch for: the path, its archive's hash and size, its references.
    pub fn fingerprint(&self, dir: &StoreDir) -> String {
        let references: Vec<_> = self.references.iter().map(|path| dir.display(path)).collect();
        format!("1;{};{};{};{}", dir.display(&self.path), self.nar_hash, self.nar_size, references.join(","))
    }
}

/// A path to be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// What is to be known of it.
    pub info: PathInfo,
    /// For a derivation: its outputs' names and paths, as far as they are known before it is built.
    pub outputs: BTreeMap<String, StorePath>,
}

impl From<PathInfo> for Registration {
    fn from(info: PathInfo) -> Self {
        Self { info, outputs: BTreeMap::new() }
    }
}

/// Which way a closure goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To what the paths refer to: what they need.
    Forward,
    /// To what refers to the paths: what needs them.
    Backward,
}
