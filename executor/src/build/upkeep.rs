//! What is done to the store around builds: space made for outputs, outputs signed, their equal files made one.

use std::sync::{Arc, Mutex};

use super::scratch;
use crate::cache::SecretKey;
use crate::store::{GcPolicy, PathInfo, Store, StoreError};
use crate::store_path::StorePath;

/// What an operator wants done.
#[derive(Debug, Clone, Default)]
pub struct Upkeep {
    /// The keys that sign what is built here.
    pub keys: Vec<SecretKey>,
    /// Whether equal files of new outputs are made one at once.
    pub optimise: bool,
    /// Garbage is collected when less than this many bytes are free.
    pub min_free: Option<u64>,
    /// It is collected until this many are free; all of it without.
    pub max_free: Option<u64>,
    /// What counts as garbage.
    pub collect: GcPolicy,
    /// What the last collection left free.
    pub space: Space,
}

/// What a collection left free, shared by all that build under one policy.
#[derive(Debug, Clone, Default)]
pub struct Space(Arc<Mutex<Option<u64>>>);

impl Upkeep {
    /// Signs a path that was built here with every key.
    pub fn sign(&self, store: &Store, info: &mut PathInfo) {
        let fingerprint = info.fingerprint(store.dir());
        info.signatures.extend(self.keys.iter().map(|key| key.sign(fingerprint.as_bytes()).to_string()));
    }

    /// Collects garbage when too little is free. `notice` is given lines for a person.
    ///
    /// # Errors
    /// The collector's.
    pub fn make_space(&self, store: &Store, notice: &mut dyn FnMut(&str)) -> Result<(), StoreError> {
        let Some(wanted) = self.min_free else { return Ok(()) };
        // Who finds it locked finds somebody collecting, which helps both.
        let Ok(mut left) = self.space.0.try_lock() else { return Ok(()) };
        let Some(free) = scratch::free_bytes(&store.real_dir()) else { return Ok(()) };
        // What could not be freed a moment ago cannot be now: not until a good part of it has been used.
        let tried = left.is_some_and(|left| free >= left / 10 * 9);
        if free >= wanted || tried {
            return Ok(());
        }
        notice(&format!("{} MiB are free, less than `min-free`: collecting garbage", free >> 20));
        let most = self.max_free.map(|most| most.saturating_sub(free));
        let report = store.collect_garbage(self.collect, most, &mut |_| {})?;
        report.warnings.iter().for_each(|warning| notice(warning));
        notice(&format!("removed {} paths, {} MiB", report.deleted.len(), report.bytes_freed >> 20));
        *left = scratch::free_bytes(&store.real_dir());
        Ok(())
    }

    /// Makes equal files of new outputs one.
    ///
    /// # Errors
    /// The store's. What is wrong with a file is a line to `notice`.
    pub fn optimise<'a>(
        &self,
        store: &Store,
        outputs: impl IntoIterator<Item = &'a StorePath>,
        notice: &mut dyn FnMut(&str),
    ) -> Result<(), StoreError> {
        if !self.optimise {
            return Ok(());
        }
        let mut optimiser = store.optimiser()?;
        for path in outputs {
            optimiser.path(path)?;
        }
        optimiser.finish().warnings.iter().for_each(|warning| notice(warning));
        Ok(())
    }
}
