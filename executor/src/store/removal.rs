//! The hands of the collector: what they remove, and how much space that gives.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::collector::Shared;
use super::gc::GcReport;
use super::graph::Graph;
use super::roots::{is_lockable, list};
use super::{Store, StoreError};
use crate::store_path::{HASH_PART_LEN, StorePath};
use crate::tree;

pub(super) struct Removal<'a> {
    store: &'a Store,
    shared: &'a Shared,
    graph: Arc<Graph>,
    directory: File,
}

/// Space below something. In bytes.
#[derive(Default)]
struct Usage {
    /// Of files with no other name: given back at once.
    alone: u64,
    /// Of files whose one other name may be in `.links`: given back when that goes too.
    linked: u64,
}

impl<'a> Removal<'a> {
    pub fn new(store: &'a Store, shared: &'a Shared) -> Result<Self, StoreError> {
        let path = store.real_dir();
        let directory = File::open(&path).map_err(StoreError::on("open", path))?;
        let graph = shared.state().graph.clone().ok_or_else(|| StoreError::NotValid("no graph".to_owned()))?;
        Ok(Self { store, shared, graph, directory })
    }

    /// Removes valid paths, as far as nobody keeps them by now; gives the space that this should free in the end.
    pub fn delete_batch(
        &self,
        numbers: Vec<usize>,
        notice: &mut dyn FnMut(&str),
        report: &mut GcReport,
    ) -> Result<u64, StoreError> {
        let dead = self.shared.begin_removal(&numbers);
        let result = self.delete(&dead, notice, report);
        self.shared.end_removal();
        match result {
            // Somebody registered a path that needs one of these, without asking to keep it. Those with company go alone.
            Err(StoreError::InUse { .. }) if dead.len() > 1 => {
                let mut freed = 0;
                for number in dead {
                    freed += self.delete_batch(vec![number], notice, report)?;
                }
                Ok(freed)
            }
            Err(StoreError::InUse { path, .. }) => {
                self.shared.keep(path);
                Ok(0)
            }
            other => other,
        }
    }

    fn delete(
        &self,
        numbers: &[usize],
        notice: &mut dyn FnMut(&str),
        report: &mut GcReport,
    ) -> Result<u64, StoreError> {
        let paths: Vec<&StorePath> = numbers.iter().map(|number| self.graph.path(*number)).collect();
        self.store.invalidate(paths.iter().copied())?;
        let mut expected = 0;
        for path in paths {
            notice(&format!("deleting ‘{}’", self.store.dir().display(path)));
            let usage = self.remove(path.as_str(), report);
            expected += usage.alone + usage.linked;
            report.deleted.push(path.clone());
        }
        Ok(expected)
    }

    /// Removes everything in the store's directory that is neither a valid path nor somebody's work in progress.
    pub fn leftovers(&self, notice: &mut dyn FnMut(&str), report: &mut GcReport) -> Result<(), StoreError> {
        let valid: HashSet<StorePath> = self.store.all_valid_paths()?.into_iter().collect();
        let names = list(&self.store.real_dir())?;
        let mut locked = HashSet::new();
        for (name, path) in &names {
            if let Some(base) = name.to_str().and_then(|name| name.strip_suffix(".lock"))
                && !is_lockable(path)?
            {
                locked.insert(hash_part(base).to_owned());
            }
        }
        for (name, path) in names {
            // A name that is no text is no path, and nobody's: but what we cannot name to a person stays.
            let Some(name) = name.to_str().filter(|name| *name != ".links") else { continue };
            let part = hash_part(name);
            if name.parse().is_ok_and(|path: StorePath| valid.contains(&path)) || locked.contains(part) {
                continue;
            }
            if !self.shared.begin_removal_of_part(part) {
                continue;
            }
            // Temporary directories are locked by who fills them; so are lock files.
            let free = if name.ends_with(".lock") {
                super::path_lock::remove_stale(&path)?
            } else {
                let free = is_lockable(&path).unwrap_or(true) && !self.store.is_name_valid(name)?;
                if free {
                    notice(&format!("deleting ‘{}’, which nobody registered", path.display()));
                    self.remove(name, report);
                }
                free
            };
            self.shared.end_removal();
            if free {
                report.leftovers.push(name.to_owned());
            }
        }
        Ok(())
    }

    /// Removes files from `.links` that have no other name any more.
    pub fn unused_links(&self, report: &mut GcReport) -> Result<(), StoreError> {
        for (_, path) in list(&self.store.real_dir().join(".links"))? {
            let Ok(file) = fs::symlink_metadata(&path) else { continue };
            if file.nlink() == 1 && fs::remove_file(&path).is_ok() {
                report.links += 1;
                report.bytes_freed += file.blocks() * 512;
            }
        }
        Ok(())
    }

    fn remove(&self, name: &str, report: &mut GcReport) -> Usage {
        let usage = usage(&self.store.real_dir().join(name));
        match tree::remove(self.directory.as_fd(), OsStr::new(name)) {
            Ok(()) => {
                report.bytes_freed += usage.alone;
                usage
            }
            Err(error) => {
                report.warnings.push(error.to_string());
                Usage::default()
            }
        }
    }
}

/// The hash part of a name, or the whole of a name without one.
fn hash_part(name: &str) -> &str {
    match name.as_bytes().get(HASH_PART_LEN) {
        Some(b'-') if name.is_char_boundary(HASH_PART_LEN) => &name[..HASH_PART_LEN],
        _ => name,
    }
}

/// Only a sum: nothing is opened but directories, and a tree that changes under it makes the sum wrong and no harm.
fn usage(top: &Path) -> Usage {
    let mut usage = Usage::default();
    let mut left = vec![top.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(file) = fs::symlink_metadata(&path) else { continue };
        if file.is_dir() {
            left.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            usage.alone += file.blocks() * 512;
        } else if file.nlink() == 1 {
            usage.alone += file.blocks() * 512;
        } else if file.nlink() == 2 {
            usage.linked += file.blocks() * 512;
        }
    }
    usage
}
