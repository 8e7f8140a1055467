//! What `exportReferencesGraph` tells a builder of paths in its input closure: who refers to whom.
//!
//! Source: `exportReferences`, `pathInfoToJSON` and `makeValidityRegistration` in `src/libstore/store-api.cc` of Nix.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::hash::Hash;
use crate::store_path::{StoreDir, StorePath};

/// What a store knows of one valid path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathFacts {
    /// The SHA-256 of its NAR.
    pub nar_hash: Hash,
    /// The size of its NAR in bytes.
    pub nar_size: u64,
    /// The paths that it refers to, itself included if it does.
    pub references: BTreeSet<StorePath>,
    /// What its path was computed of, if that was its contents, as the database has it: `fixed:r:sha256:…`.
    pub content_address: Option<String>,
}

/// The store that a builder's inputs are in.
pub trait Inputs {
    /// Whether `path` is in the closure of the derivation's inputs.
    fn is_input(&self, path: &StorePath) -> bool;

    /// What is known of a valid path. Nothing means that it is not valid.
    fn facts(&self, path: &StorePath) -> Result<Option<PathFacts>, Box<dyn std::error::Error + Send + Sync>>;

    /// The output paths of the derivation at `path`.
    fn outputs(&self, path: &StorePath) -> Result<Vec<StorePath>, Box<dyn std::error::Error + Send + Sync>>;
}

/// Why a graph cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// The builder could not see it.
    #[error(
        "cannot export the references of ‘{0}’: it is not in the input closure of the derivation; add it to the inputs"
    )]
    NotAnInput(StorePath),
    /// It should be there, but is not.
    #[error("cannot export the references of ‘{path}’: ‘{missing}’ is not valid{}", if *.is_output { "; it is an output of a derivation in the closure, which must be built first" } else { "" })]
    NotValid {
        /// The path whose references were asked for.
        path: StorePath,
        /// The path that is not there.
        missing: StorePath,
        /// Whether it was looked for because it is an output of a derivation in the closure.
        is_output: bool,
    },
    /// The store does not answer.
    #[error("cannot export the references of ‘{path}’: {source}")]
    Store {
        /// The path that was being asked for.
        path: StorePath,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The closure of some inputs, with what is known of each path in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph(BTreeMap<StorePath, PathFacts>);

impl Graph {
    /// The closure of `roots`; where it holds derivations, also that of their outputs, so that a builder can be given all
    /// that a thing was built of.
    pub fn of<'a>(roots: impl IntoIterator<Item = &'a StorePath>, inputs: &dyn Inputs) -> Result<Self, GraphError> {
        let mut graph = Self(BTreeMap::new());
        for root in roots {
            if !inputs.is_input(root) {
                return Err(GraphError::NotAnInput(root.clone()));
            }
            graph.add(root, root, false, inputs)?;
        }
        let derivations: Vec<_> = graph.0.keys().filter(|path| path.is_derivation()).cloned().collect();
        for derivation in derivations {
            let outputs =
                inputs.outputs(&derivation).map_err(|source| GraphError::Store { path: derivation.clone(), source })?;
            for output in outputs {
                graph.add(&derivation, &output, true, inputs)?;
            }
        }
        Ok(graph)
    }

    fn add(
        &mut self,
        asked: &StorePath,
        path: &StorePath,
        is_output: bool,
        inputs: &dyn Inputs,
    ) -> Result<(), GraphError> {
        let mut pending = vec![path.clone()];
        while let Some(path) = pending.pop() {
            if self.0.contains_key(&path) {
                continue;
            }
            let facts = inputs
                .facts(&path)
                .map_err(|source| GraphError::Store { path: path.clone(), source })?
                .ok_or_else(|| GraphError::NotValid { path: asked.clone(), missing: path.clone(), is_output })?;
            pending.extend(facts.references.iter().cloned());
            self.0.insert(path, facts);
        }
        Ok(())
    }

    /// The form of `nix-store --load-db` without hashes and derivers: per path itself, an empty line, how many references
    /// it has, and these.
    pub fn registration(&self, store_dir: &StoreDir) -> String {
        let mut text = String::new();
        for (path, facts) in &self.0 {
            let _ = write!(text, "{}\n\n{}\n", store_dir.display(path), facts.references.len());
            for reference in &facts.references {
                let _ = writeln!(text, "{}", store_dir.display(reference));
            }
        }
        text
    }

    /// The form that structured attributes get: a list of objects.
    pub fn json(&self, store_dir: &StoreDir) -> Value {
        self.0
            .iter()
            .map(|(path, facts)| {
                let references: Vec<_> = facts.references.iter().map(|path| store_dir.display(path)).collect();
                let mut value = json!({
                    "path": store_dir.display(path),
                    "narHash": facts.nar_hash.to_string(),
                    "narSize": facts.nar_size,
                    "references": references,
                    "closureSize": self.closure_size(path),
                });
                if let Some(content_address) = &facts.content_address {
                    value["ca"] = content_address.as_str().into();
                }
                value
            })
            .collect()
    }

    fn closure_size(&self, path: &StorePath) -> u64 {
        let mut seen = BTreeSet::new();
        let mut pending = vec![path];
        let mut size = 0u64;
        while let Some(path) = pending.pop() {
            if let Some(facts) = self.0.get(path)
                && seen.insert(path)
            {
                size = size.saturating_add(facts.nar_size);
                pending.extend(&facts.references);
            }
        }
        size
    }
}
