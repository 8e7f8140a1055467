//! Which paths are alive, and the removal of the others. Source: `src/libstore/gc.cc` of Nix.
//!
//! While the collector works it holds `gc.lock` and listens to processes that want to keep another path ([`super::collector`]).
//! A path is made invalid first and removed then: a collector that dies leaves files that no one can refer to.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::collector::Listener;
use super::database::{lock, open_lock};
use super::graph::Graph;
use super::roots::RootSink;
use super::{Direction, Roots, Store, StoreError};
use crate::store_path::StorePath;

/// What counts as alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcPolicy {
    /// The derivation that made a living path lives too (`keep-derivations` of Nix).
    pub keep_derivations: bool,
    /// The valid outputs of a living derivation live too (`keep-outputs` of Nix).
    pub keep_outputs: bool,
    /// What running processes use lives too.
    pub runtime_roots: bool,
}

impl Default for GcPolicy {
    /// Nix's defaults.
    fn default() -> Self {
        Self { keep_derivations: true, keep_outputs: false, runtime_roots: true }
    }
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Paths that were valid.
    pub deleted: Vec<StorePath>,
    /// Names in the store's directory that no path had: broken-off builds, temporary directories, locks.
    pub leftovers: Vec<String>,
    /// Files in `.links` that no path used any more.
    pub links: u64,
    /// Space that was given back, in bytes, as far as the file system says.
    pub bytes_freed: u64,
    /// What could not be looked at or removed, for a person.
    pub warnings: Vec<String>,
}

/// What lives, found out while the roots are: no root is remembered, there may be more of them than paths.
struct Marking<'a> {
    graph: &'a Graph,
    alive: Vec<bool>,
}

impl RootSink for Marking<'_> {
    fn is_valid(&self, name: &str) -> bool {
        self.graph.number_of_name(name).is_some()
    }

    fn found(&mut self, name: &str, _: &dyn Fn() -> String) {
        if let Some(number) = self.graph.number_of_name(name) {
            self.graph.mark(number, &mut self.alive);
        }
    }
}

/// How many paths are made invalid in one transaction.
const BATCH: usize = 128;

impl Store {
    /// The valid paths that are alive, and those that are dead. A look at one moment: it locks nothing and removes nothing.
    pub fn live_and_dead(&self, policy: GcPolicy) -> Result<(BTreeSet<StorePath>, BTreeSet<StorePath>), StoreError> {
        let graph = Graph::read(self, policy)?;
        let (alive, _) = self.mark(&graph, policy, false)?;
        let those = |living: bool| {
            let numbers = alive.iter().enumerate().filter(move |(_, alive)| **alive == living);
            numbers.map(|(number, _)| graph.path(number).clone()).collect()
        };
        Ok((those(true), those(false)))
    }

    /// Removes dead paths until `max_freed` bytes are free, or all of them, and what was left behind. `notice` is called with
    /// a line for a person for each wait and each path.
    ///
    /// # Errors
    /// A read-only store, roots that cannot be read, or the database fails. What cannot be removed is a warning.
    pub fn collect_garbage(
        &self,
        policy: GcPolicy,
        max_freed: Option<u64>,
        notice: &mut dyn FnMut(&str),
    ) -> Result<GcReport, StoreError> {
        self.collect(policy, None, max_freed, notice)
    }

    /// Removes just these paths, which must be dead and needed by no other path.
    ///
    /// # Errors
    /// One of them is alive or needed; nothing is removed then.
    pub fn delete_paths(
        &self,
        paths: &BTreeSet<StorePath>,
        policy: GcPolicy,
        notice: &mut dyn FnMut(&str),
    ) -> Result<GcReport, StoreError> {
        self.collect(policy, Some(paths), None, notice)
    }

    fn collect(
        &self,
        policy: GcPolicy,
        only: Option<&BTreeSet<StorePath>>,
        max_freed: Option<u64>,
        notice: &mut dyn FnMut(&str),
    ) -> Result<GcReport, StoreError> {
        self.check_writable("remove paths")?;
        let _gc_lock = self.take_gc_lock(notice)?;
        // Space for the database to write in, should the disk be full.
        let _ = std::fs::remove_file(self.state_dir().join("db/reserved"));
        let listener = Listener::start(self)?;
        // The roots come second: what becomes valid from here on is not in the graph, and whoever makes it tells the listener
        // what it needs.
        let graph = Graph::read(self, policy)?;
        let (alive, roots) = self.mark(&graph, policy, true)?;
        if let Some(only) = only {
            self.check_deletable(only, &graph, &alive, policy)?;
        }
        let mut report = GcReport { warnings: roots.warnings.clone(), ..GcReport::default() };
        let shared = listener.begin(graph, alive, &roots);
        let mut queue = shared.dead_in_order(only);
        let store = super::removal::Removal::new(self, &shared)?;
        let size = if max_freed.is_some() { 1 } else { BATCH };
        let mut expected = 0;
        while !queue.is_empty() && max_freed.is_none_or(|most| expected < most) {
            let batch: Vec<_> = queue.drain(..size.min(queue.len())).collect();
            expected += store.delete_batch(batch, notice, &mut report)?;
        }
        if only.is_none() && max_freed.is_none_or(|most| expected < most) {
            store.leftovers(notice, &mut report)?;
        }
        store.unused_links(&mut report)?;
        listener.end();
        let database = self.database();
        database.checkpoint();
        database.reserve();
        Ok(report)
    }

    /// Which paths live, and what else was found on the way: no paths.
    fn mark(&self, graph: &Graph, policy: GcPolicy, clean: bool) -> Result<(Vec<bool>, Roots), StoreError> {
        let mut marking = Marking { graph, alive: vec![false; graph.len()] };
        let roots = self.search_roots(policy.runtime_roots, clean, &mut marking)?;
        Ok((marking.alive, roots))
    }

    fn take_gc_lock(&self, notice: &mut dyn FnMut(&str)) -> Result<std::fs::File, StoreError> {
        let path: PathBuf = self.state_dir().join("gc.lock");
        let file = open_lock(&path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                notice("waiting for another collector, or for a process that is just keeping a path");
                lock(&file, FlockOperation::LockExclusive, &path)?;
                Ok(file)
            }
            Err(error) => Err(StoreError::io("lock", path, error)),
        }
    }

    fn check_deletable(
        &self,
        only: &BTreeSet<StorePath>,
        graph: &Graph,
        alive: &[bool],
        policy: GcPolicy,
    ) -> Result<(), StoreError> {
        for path in only {
            let number = graph.number(path).ok_or_else(|| StoreError::NotValid(self.dir.display(path)))?;
            if alive[number] {
                let roots = self.find_roots(policy.runtime_roots)?;
                let needing = self.closure([path], Direction::Backward)?;
                let by = roots.paths.iter().filter(|(root, _)| needing.contains(*root)).flat_map(|(_, by)| by);
                let by: Vec<_> = by.take(5).cloned().collect();
                return Err(StoreError::Alive { path: path.clone(), by });
            }
            let needing: Vec<_> = self.query_referrers(path)?.difference(only).map(StorePath::to_string).collect();
            if !needing.is_empty() {
                return Err(StoreError::InUse { path: path.clone(), referrers: needing });
            }
        }
        Ok(())
    }
}

/// The dead paths, each after all that refer to it.
pub(super) fn referrers_first(graph: &Graph, dead: impl Fn(usize) -> bool) -> VecDeque<usize> {
    let mut waiting = vec![0_usize; graph.len()];
    let all = || (0..graph.len()).filter(|number| dead(*number));
    for number in all() {
        for reference in graph.references(number) {
            waiting[reference] += 1;
        }
    }
    let mut order: VecDeque<usize> = all().filter(|number| waiting[*number] == 0).collect();
    let mut next = 0;
    while next < order.len() {
        for reference in graph.references(order[next]) {
            waiting[reference] -= 1;
            if waiting[reference] == 0 && dead(reference) {
                order.push_back(reference);
            }
        }
        next += 1;
    }
    order
}
