//! A whole call: everything that some wanted outputs need, built in order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::graph::{Graph, GraphError, Wanted};
use super::policy::Policy;
use super::realise::{Realiser, Slot, known_outputs};
use super::result::{BuildResult, Status};
use super::stored::Stored;
use super::telling::Telling;
use super::{scheduler, scratch};
use crate::derivation::paths::Calculator;
use crate::progress::Reporter;
use crate::store::Store;
use crate::store_path::StorePath;

/// What a call asks for, beside policy.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The outputs.
    pub wanted: Vec<Wanted>,
    /// How many builds run at once.
    pub jobs: usize,
    /// Whether builds are begun after one has failed.
    pub keep_going: bool,
    /// Whether outputs that are there are built again and compared.
    pub check: bool,
}

/// Builds everything that is wanted. The results: one for each derivation that was built or not built because of another,
/// and one for each wanted one whose outputs were there.
///
/// # Errors
/// When it cannot be known what to build; nothing was built then.
pub fn build(
    store: &Store,
    policy: &Policy,
    request: &Request,
    reporter: &dyn Reporter,
) -> Result<Vec<BuildResult>, GraphError> {
    let mut stored = Stored::new(store);
    let graph = Graph::resolve(&mut stored, &request.wanted, request.check)?;
    // That outputs have the paths that follow from their derivations is what makes a path worth trusting.
    let mut calculator = Calculator::new(store.dir(), stored);
    let mut wrong: BTreeMap<StorePath, String> = BTreeMap::new();
    for (path, derivation) in &graph.derivations {
        if let Err(error) = calculator.check(path, derivation) {
            wrong.insert(path.clone(), error.to_string());
        }
    }
    let outputs = |path: &StorePath| {
        graph.derivations.get(path).map_or_else(Vec::new, |derivation| derivation.outputs.keys().cloned().collect())
    };
    let telling = Telling::of(&graph.order, outputs, store.dir(), reporter);
    // Also when nothing is to be built: a call that was killed after it had registered is not called again otherwise. Whoever only
    // asks is not bothered with a directory that they may not write.
    if let Err(error) = scratch::sweep(&policy.builds)
        && !graph.order.is_empty()
    {
        telling.warn(&format!("what killed builds left could not be removed: {error}"));
    }
    let realiser = Realiser { store, policy, telling: &telling, check: request.check };
    let mut results = scheduler::run(&graph.order, request.jobs, request.keep_going, Slot::default, |slot, path| {
        let begun = Instant::now();
        let result = match (wrong.get(path), graph.derivations.get(path)) {
            (Some(why), _) => BuildResult::new(path.clone(), Status::InputRejected, format!("was not started: {why}")),
            (None, Some(derivation)) => realiser.build(slot, path, derivation),
            (None, None) => BuildResult::new(path.clone(), Status::MiscFailure, "it is not part of the plan"),
        };
        telling.finished(&result, begun.elapsed());
        result
    });
    for result in results.iter().filter(|result| result.status == Status::DependencyFailed) {
        telling.finished(result, Duration::ZERO);
    }
    for (path, derivation) in &graph.valid {
        let mut result = BuildResult::new(path.clone(), Status::AlreadyValid, "");
        result.outputs = known_outputs(derivation);
        results.push(result);
    }
    Ok(results)
}
