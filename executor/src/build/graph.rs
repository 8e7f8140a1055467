//! Everything that must be built so that certain outputs are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::scheduler::Order;
use crate::derivation::Derivation;
use crate::store_path::StorePath;

/// Outputs of one derivation that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The derivation.
    pub derivation: StorePath,
    /// Names of outputs; none means all.
    pub outputs: BTreeSet<String>,
}

/// What is known of the store that is built in.
pub trait Known {
    /// Why something cannot be known.
    type Error: fmt::Display;

    /// Whether a path is registered.
    fn is_valid(&mut self, path: &StorePath) -> Result<bool, Self::Error>;

    /// Reads a derivation that is registered.
    fn derivation(&mut self, path: &StorePath) -> Result<Derivation, Self::Error>;
}

/// Why a graph cannot be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// Something that a build needs is not in the store, and nothing builds it.
    #[error("‘{missing}’ is not in the store and no derivation makes it; it is needed by {}", arrows(.chain))]
    Missing {
        /// The path.
        missing: StorePath,
        /// From what was wanted down to what needs it.
        chain: Vec<StorePath>,
    },
    /// A derivation cannot be read, or is none that can be built.
    #[error("cannot use the derivation ‘{derivation}’: {why}{}", because(.chain))]
    Derivation {
        /// Its path.
        derivation: StorePath,
        /// Why.
        why: String,
        /// From what was wanted down to what needs it.
        chain: Vec<StorePath>,
    },
    /// An output that the derivation does not have.
    #[error("the derivation ‘{derivation}’ has no output ‘{output}’: it has {known}{}", because(.chain))]
    NoSuchOutput {
        /// Its path.
        derivation: StorePath,
        /// What was asked for.
        output: String,
        /// What there is.
        known: String,
        /// From what was wanted down to what needs it.
        chain: Vec<StorePath>,
    },
    /// A derivation needs itself.
    #[error("a derivation needs itself: {}", arrows(.0))]
    Cycle(
        /// Once around.
        Vec<StorePath>,
    ),
}

fn arrows(chain: &[StorePath]) -> String {
    chain.iter().map(|path| format!("‘{path}’")).collect::<Vec<_>>().join(" → ")
}

fn because(needed_by: &[StorePath]) -> String {
    if needed_by.is_empty() { String::new() } else { format!(" (it is needed by {})", arrows(needed_by)) }
}

/// The builds, and the derivations behind them.
#[derive(Debug, Default)]
pub struct Graph {
    /// What comes before what.
    pub order: Order,
    /// The derivations that are built.
    pub derivations: BTreeMap<StorePath, Derivation>,
    /// Wanted derivations all of whose wanted outputs are there.
    pub valid: BTreeMap<StorePath, Derivation>,
}

impl Graph {
    /// Everything that must be built for `wanted`. `rebuild` takes the wanted derivations in even though their outputs are
    /// there, as `--check` does.
    ///
    /// # Errors
    /// See [`GraphError`].
    pub fn resolve<K: Known>(known: &mut K, wanted: &[Wanted], rebuild: bool) -> Result<Self, GraphError> {
        let mut graph = Self::default();
        for one in wanted {
            graph.need(known, one, rebuild)?;
        }
        Ok(graph)
    }

    /// Adds what `wanted` needs, depth first, without recursion: how deep a graph goes is for others to say.
    fn need<K: Known>(&mut self, known: &mut K, wanted: &Wanted, rebuild: bool) -> Result<(), GraphError> {
        let mut stack: Vec<Visit> = Vec::new();
        let first = self.open(known, wanted, &stack)?;
        if !rebuild && self.is_there(known, wanted, &first, &stack)? {
            self.valid.insert(wanted.derivation.clone(), first);
            return Ok(());
        }
        if self.derivations.contains_key(&wanted.derivation) {
            return Ok(());
        }
        stack.push(Visit::new(wanted.derivation.clone(), first));
        while let Some(top) = stack.last_mut() {
            let Some(next) = top.left.pop() else {
                self.close(known, &mut stack)?;
                continue;
            };
            if self.derivations.contains_key(&next.derivation) {
                top.needs.insert(next.derivation);
                continue;
            }
            if let Some(at) = stack.iter().position(|visit| visit.path == next.derivation) {
                let mut round: Vec<_> = stack[at..].iter().map(|visit| visit.path.clone()).collect();
                round.push(next.derivation);
                return Err(GraphError::Cycle(round));
            }
            let derivation = self.open(known, &next, &stack)?;
            if self.is_there(known, &next, &derivation, &stack)? {
                continue;
            }
            if let Some(top) = stack.last_mut() {
                top.needs.insert(next.derivation.clone());
            }
            stack.push(Visit::new(next.derivation, derivation));
        }
        Ok(())
    }

    /// The top of the stack has all its inputs resolved.
    fn close<K: Known>(&mut self, known: &mut K, stack: &mut Vec<Visit>) -> Result<(), GraphError> {
        let paths: Vec<_> = stack.iter().map(|visit| visit.path.clone()).collect();
        let Some(done) = stack.pop() else { return Ok(()) };
        for source in &done.derivation.input_sources {
            let there = known.is_valid(source).map_err(|error| GraphError::Derivation {
                derivation: done.path.clone(),
                why: error.to_string(),
                chain: paths.clone(),
            })?;
            if !there {
                return Err(GraphError::Missing { missing: source.clone(), chain: paths });
            }
        }
        self.order.add(done.path.clone(), done.needs);
        self.derivations.insert(done.path, done.derivation);
        Ok(())
    }

    fn open<K: Known>(&self, known: &mut K, wanted: &Wanted, stack: &[Visit]) -> Result<Derivation, GraphError> {
        let chain = || stack.iter().map(|visit| visit.path.clone()).collect::<Vec<_>>();
        let failed =
            |why: String| GraphError::Derivation { derivation: wanted.derivation.clone(), why, chain: chain() };
        if !known.is_valid(&wanted.derivation).map_err(|error| failed(error.to_string()))? {
            return match stack.is_empty() {
                true => Err(failed("it is not in the store".to_owned())),
                false => Err(GraphError::Missing { missing: wanted.derivation.clone(), chain: chain() }),
            };
        }
        let derivation = known.derivation(&wanted.derivation).map_err(|error| failed(error.to_string()))?;
        if let Some(output) = wanted.outputs.iter().find(|output| !derivation.outputs.contains_key(*output)) {
            return Err(GraphError::NoSuchOutput {
                derivation: wanted.derivation.clone(),
                output: output.clone(),
                known: derivation.outputs.keys().cloned().collect::<Vec<_>>().join(", "),
                chain: chain(),
            });
        }
        Ok(derivation)
    }

    fn is_there<K: Known>(
        &self,
        known: &mut K,
        wanted: &Wanted,
        derivation: &Derivation,
        stack: &[Visit],
    ) -> Result<bool, GraphError> {
        for (name, output) in &derivation.outputs {
            if !wanted.outputs.is_empty() && !wanted.outputs.contains(name) {
                continue;
            }
            // An output without a path is for the build to refuse.
            let Some(path) = output.path() else { return Ok(false) };
            let valid = known.is_valid(path).map_err(|error| GraphError::Derivation {
                derivation: wanted.derivation.clone(),
                why: error.to_string(),
                chain: stack.iter().map(|visit| visit.path.clone()).collect(),
            })?;
            if !valid {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A derivation whose inputs are being looked at.
struct Visit {
    path: StorePath,
    derivation: Derivation,
    left: Vec<Wanted>,
    needs: BTreeSet<StorePath>,
}

impl Visit {
    fn new(path: StorePath, derivation: Derivation) -> Self {
        let left = derivation
            .input_derivations
            .iter()
            .map(|(path, outputs)| Wanted { derivation: path.clone(), outputs: outputs.clone() })
            .collect();
        Self { path, derivation, left, needs: BTreeSet::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derivation::Output;

    fn path(name: &str) -> StorePath {
        StorePath::from_parts("00bgd045z0d4icpbc2yyz4gx48ak44la", name).unwrap()
    }

    /// A store with these derivations, each with the derivations and the sources that it needs; and these other valid paths.
    struct Made(BTreeMap<StorePath, Derivation>, BTreeSet<StorePath>);

    fn made(derivations: &[(&str, &[&str], &[&str])], valid: &[&str]) -> Made {
        let all = derivations.iter().map(|(name, needs, sources)| {
            let output = Output::InputAddressed(path(&format!("{name}-out")));
            let derivation = Derivation {
                name: (*name).to_owned(),
                outputs: [("out".to_owned(), output)].into(),
                input_derivations: needs
                    .iter()
                    .map(|need| (path(&format!("{need}.drv")), ["out".to_owned()].into()))
                    .collect(),
                input_sources: sources.iter().map(|source| path(source)).collect(),
                system: "x86_64-linux".to_owned(),
                builder: b"/bin/sh".to_vec(),
                arguments: Vec::new(),
                environment: BTreeMap::new(),
            };
            (path(&format!("{name}.drv")), derivation)
        });
        Made(all.collect(), valid.iter().map(|name| path(name)).collect())
    }

    impl Known for Made {
        type Error = String;

        fn is_valid(&mut self, path: &StorePath) -> Result<bool, String> {
            Ok(self.0.contains_key(path) || self.1.contains(path))
        }

        fn derivation(&mut self, path: &StorePath) -> Result<Derivation, String> {
            self.0.get(path).cloned().ok_or_else(|| "gone".to_owned())
        }
    }

    fn wanted(name: &str, outputs: &[&str]) -> Vec<Wanted> {
        let outputs = outputs.iter().map(|output| (*output).to_owned()).collect();
        vec![Wanted { derivation: path(&format!("{name}.drv")), outputs }]
    }

    fn built(graph: &Graph) -> Vec<String> {
        graph.order.iter().map(|(path, needs)| format!("{}<-{}", path.name(), needs.len())).collect()
    }

    #[test]
    fn what_is_there_is_not_built_and_neither_is_what_it_needs() {
        let derivations: &[(&str, &[&str], &[&str])] =
            &[("a", &["b", "c"], &[]), ("b", &["d"], &["src"]), ("c", &["d"], &[]), ("d", &[], &[])];
        let resolve = |valid: &[&str], rebuild| {
            built(&Graph::resolve(&mut made(derivations, valid), &wanted("a", &[]), rebuild).unwrap())
        };
        assert_eq!(resolve(&["src"], false), ["a.drv<-2", "b.drv<-1", "c.drv<-1", "d.drv<-0"]);
        assert_eq!(resolve(&["b-out"], false), ["a.drv<-1", "c.drv<-1", "d.drv<-0"], "not even its source is wanted");
        assert_eq!(resolve(&["src", "d-out"], false), ["a.drv<-2", "b.drv<-0", "c.drv<-0"]);
        assert!(resolve(&["a-out"], false).is_empty());
        assert_eq!(resolve(&["a-out", "b-out", "c-out"], true), ["a.drv<-0"], "to be checked");
    }

    #[test]
    fn a_missing_input_is_named_with_the_chain_that_needs_it() {
        let mut store = made(&[("a", &["b"], &[]), ("b", &[], &["src"])], &[]);
        let error = Graph::resolve(&mut store, &wanted("a", &[]), false).unwrap_err();
        assert_eq!(error, GraphError::Missing { missing: path("src"), chain: vec![path("a.drv"), path("b.drv")] });
        assert!(error.to_string().contains("a.drv’ → ‘"), "{error}");
        let mut store = made(&[("a", &["b"], &[])], &[]);
        let error = Graph::resolve(&mut store, &wanted("a", &[]), false).unwrap_err();
        assert_eq!(error, GraphError::Missing { missing: path("b.drv"), chain: vec![path("a.drv")] });
        let error = Graph::resolve(&mut store, &wanted("z", &[]), false).unwrap_err();
        assert!(error.to_string().ends_with("it is not in the store"), "{error}");
    }

    #[test]
    fn a_circle_and_an_unknown_output_are_errors() {
        let mut store = made(&[("a", &["b"], &[]), ("b", &["c"], &[]), ("c", &["b"], &[])], &[]);
        let error = Graph::resolve(&mut store, &wanted("a", &[]), false).unwrap_err();
        assert_eq!(error, GraphError::Cycle(vec![path("b.drv"), path("c.drv"), path("b.drv")]));
        let error = Graph::resolve(&mut store, &wanted("a", &["dev"]), false).unwrap_err();
        assert!(error.to_string().contains("has no output ‘dev’: it has out"), "{error}");
    }

    #[test]
    fn a_very_deep_graph_is_no_danger() {
        let names: Vec<String> = (0..20_000).map(|number| format!("n{number}")).collect();
        let derivations: Vec<(&str, Vec<&str>)> = names
            .iter()
            .enumerate()
            .map(|(number, name)| (name.as_str(), names.get(number + 1).map(String::as_str).into_iter().collect()))
            .collect();
        let derivations: Vec<(&str, &[&str], &[&str])> =
            derivations.iter().map(|(name, needs)| (*name, &needs[..], &[][..])).collect();
        let graph = Graph::resolve(&mut made(&derivations, &[]), &wanted("n0", &[]), false).unwrap();
        assert_eq!(graph.order.len(), 20_000);
    }
}
