//! Output paths: computed from a derivation and all below it, and checked against what it says.
//!
//! The path of an input-addressed output is a hash of the derivation "modulo" its fixed outputs: two derivations that fetch
//! the same contents in two ways give the same paths to all that depends on them.
//!
//! Source: `doc/manual/source/store/derivation/outputs/input-address.md` and `hashDerivationModulo` in
//! `src/libstore/derivations.cc` of Nix.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    Derivation, EXTENSION, InvalidDerivation, Kind, Method, Output, aterm, fixed_output_path, output_path_name,
};
use crate::hash::Hash;
use crate::store_path::{StoreDir, StorePath, StorePathError};

/// Where derivations come from: a store, or a set of them in memory. Nothing means that there is none at that path.
pub trait Derivations {
    /// Why a derivation that is there could not be read.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The derivation at `path`.
    fn derivation(&mut self, path: &StorePath) -> Result<Option<Derivation>, Self::Error>;
}

impl Derivations for BTreeMap<StorePath, Derivation> {
    type Error = std::convert::Infallible;

    fn derivation(&mut self, path: &StorePath) -> Result<Option<Derivation>, Self::Error> {
        Ok(self.get(path).cloned())
    }
}

impl<F, E> Derivations for F
where
    F: FnMut(&StorePath) -> Result<Option<Derivation>, E>,
    E: std::error::Error + Send + Sync + 'static,
{
    type Error = E;

    fn derivation(&mut self, path: &StorePath) -> Result<Option<Derivation>, Self::Error> {
        self(path)
    }
}

/// Why output paths cannot be computed, or are not what the derivation says.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// An input derivation is not there.
    #[error("the derivation ‘{missing}’ is missing{}", needed_by(chain))]
    MissingInput {
        /// The one that is not there.
        missing: StorePath,
        /// Who needs it, from the derivation that was asked for down to the one that names it.
        chain: Vec<StorePath>,
    },
    /// An input derivation has no such output.
    #[error("the derivation ‘{input}’ has no output ‘{output}’{}", needed_by(chain))]
    MissingOutput {
        /// The input.
        input: StorePath,
        /// The output that it lacks.
        output: String,
        /// Who needs it, from the derivation that was asked for down to the one that names it.
        chain: Vec<StorePath>,
    },
    /// Derivations that need one another.
    #[error("derivations need one another: {}", arrows(.0))]
    Cycle(Vec<StorePath>),
    /// A derivation could not be read.
    #[error("cannot read the derivation ‘{path}’{}: {source}", needed_by(chain))]
    Read {
        /// Which.
        path: StorePath,
        /// Who needs it.
        chain: Vec<StorePath>,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A derivation says what cannot be.
    #[error(transparent)]
    Invalid(#[from] InvalidDerivation),
    /// Outputs of a kind that is not built.
    #[error("the derivation ‘{derivation}’ {what}; anchorhold does not build these yet{}: {fix}", needed_by(chain))]
    Unsupported {
        /// The derivation's name.
        derivation: String,
        /// What it has.
        what: &'static str,
        /// What to do.
        fix: &'static str,
        /// Who needs it.
        chain: Vec<StorePath>,
    },
    /// An input whose paths were never computed.
    #[error(
        "the paths of the derivation ‘{derivation}’ are not known{}: add it before what needs it",
        needed_by(chain)
    )]
    DeferredInput {
        /// The derivation's name.
        derivation: String,
        /// Who needs it.
        chain: Vec<StorePath>,
    },
    /// An output whose path was never computed.
    #[error(
        "the derivation ‘{derivation}’ has no path for its output ‘{output}’: it was written without and never added"
    )]
    NoPath {
        /// The derivation's name.
        derivation: String,
        /// The output.
        output: String,
    },
    /// The derivation's own path has another name than the derivation.
    #[error("the derivation at ‘{path}’ is called ‘{name}’: its path must be called ‘{name}.drv’")]
    WrongName {
        /// Its path.
        path: StorePath,
        /// Its name.
        name: String,
    },
    /// The derivation's own path is not that of its contents.
    #[error("the derivation at ‘{path}’ has contents that belong at ‘{should}’")]
    WrongOwnPath {
        /// Where it is.
        path: StorePath,
        /// Where it belongs.
        should: StorePath,
    },
    /// An output's path is not the computed one.
    #[error(
        "the derivation ‘{derivation}’ has the path ‘{path}’ for its output ‘{output}’, which should be ‘{should}’"
    )]
    WrongOutputPath {
        /// The derivation's name.
        derivation: String,
        /// The output.
        output: String,
        /// What it says.
        path: StorePath,
        /// What was computed.
        should: StorePath,
    },
    /// The variable called like an output does not hold the output's path.
    #[error("the derivation ‘{derivation}’ has {} in its variable ‘{output}’, which should be the output's path ‘{should}’",
        value.as_ref().map_or("nothing".to_owned(), |value| format!("‘{value}’")))]
    WrongVariable {
        /// The derivation's name.
        derivation: String,
        /// The output.
        output: String,
        /// What it holds, if it is there.
        value: Option<String>,
        /// What was computed.
        should: String,
    },
    /// Text outputs have SHA-256 hashes only.
    #[error("the output of the derivation ‘{0}’ is hashed as a text: this is possible with SHA-256 only")]
    TextHash(String),
    /// A name that is no name in a store.
    #[error(transparent)]
    StorePath(#[from] StorePathError),
}

impl PathsError {
    /// With the derivations above those that the error names already.
    fn below(mut self, above: impl FnOnce() -> Vec<StorePath>) -> Self {
        if let Self::MissingInput { chain, .. }
        | Self::MissingOutput { chain, .. }
        | Self::Read { chain, .. }
        | Self::Unsupported { chain, .. }
        | Self::DeferredInput { chain, .. } = &mut self
        {
            chain.splice(0..0, above());
        }
        self
    }
}

/// The chain for a person: of a very long one, both ends.
fn arrows(chain: &[StorePath]) -> String {
    const ENDS: usize = 6;
    let mut shown: Vec<_> = chain.iter().map(|path| format!("‘{path}’")).collect();
    if shown.len() > 2 * ENDS + 1 {
        let left_out = format!("({} more)", shown.len() - 2 * ENDS);
        shown.splice(ENDS..shown.len() - ENDS, [left_out]);
    }
    shown.join(" → ")
}

fn needed_by(chain: &[StorePath]) -> String {
    if chain.is_empty() { String::new() } else { format!(", needed by {}", arrows(chain)) }
}

/// The hash of a derivation as those that depend on it see it.
#[derive(Debug, Clone)]
struct Modulo {
    hash: Hash,
    outputs: BTreeSet<String>,
}

/// Computes output paths and remembers what it knows of each derivation on the way.
#[derive(Debug)]
pub struct Calculator<'a, D> {
    store_dir: &'a StoreDir,
    derivations: D,
    known: HashMap<StorePath, Modulo>,
}

/// A derivation whose inputs are being looked at.
struct Open {
    path: StorePath,
    derivation: Derivation,
    pending: Vec<StorePath>,
}

impl<'a, D: Derivations> Calculator<'a, D> {
    /// A calculator that knows nothing yet.
    pub fn new(store_dir: &'a StoreDir, derivations: D) -> Self {
        Self { store_dir, derivations, known: HashMap::new() }
    }

    /// The source of derivations: for adding one that was just completed.
    pub fn derivations(&mut self) -> &mut D {
        &mut self.derivations
    }

    /// The paths that the outputs of `derivation` must have.
    ///
    /// # Errors
    /// Invalid derivations here or below, missing inputs, cycles, kinds that are not built.
    pub fn output_paths(&mut self, derivation: &Derivation) -> Result<BTreeMap<String, StorePath>, PathsError> {
        let kind = supported_kind(derivation)?;
        let mut paths = BTreeMap::new();
        if kind == Kind::Fixed {
            if let Some((_, method, hash)) = derivation.fixed_output() {
                paths.insert("out".to_owned(), self.fixed_path(derivation, method, hash)?);
            }
            return Ok(paths);
        }
        let hash = self.hash_of(derivation, true)?;
        for output in derivation.outputs.keys() {
            let name = output_path_name(&derivation.name, output);
            paths.insert(output.clone(), self.store_dir.make_path(&format!("output:{output}"), &hash, &name)?);
        }
        Ok(paths)
    }

    /// Checks that `derivation`, found at `path`, is at home there, and that its output paths and the variables called
    /// like its outputs are those that follow from it.
    ///
    /// Its inputs are not checked in the same way: do that for each of them.
    pub fn check(&mut self, path: &StorePath, derivation: &Derivation) -> Result<(), PathsError> {
        if path.name().strip_suffix(EXTENSION) != Some(&derivation.name) {
            return Err(PathsError::WrongName { path: path.clone(), name: derivation.name.clone() });
        }
        let should = derivation.store_path(self.store_dir)?;
        if should != *path {
            return Err(PathsError::WrongOwnPath { path: path.clone(), should });
        }
        supported_kind(derivation)?;
        self.check_outputs(derivation).map_err(|error| error.below(|| vec![path.clone()]))
    }

    /// The part of [`Calculator::check`] that does not need the derivation's own path.
    pub fn check_outputs(&mut self, derivation: &Derivation) -> Result<(), PathsError> {
        for (output, should) in self.output_paths(derivation)? {
            match derivation.outputs.get(&output).and_then(Output::path) {
                Some(path) if *path == should => {}
                Some(path) => {
                    return Err(PathsError::WrongOutputPath {
                        derivation: derivation.name.clone(),
                        output,
                        path: path.clone(),
                        should,
                    });
                }
                None => {
                    return Err(PathsError::NoPath { derivation: derivation.name.clone(), output });
                }
            }
            let should = self.store_dir.display(&should);
            let value = derivation.variable(&output);
            if value != Some(should.as_bytes()) {
                return Err(PathsError::WrongVariable {
                    derivation: derivation.name.clone(),
                    output,
                    value: value.map(|value| String::from_utf8_lossy(value).into_owned()),
                    should,
                });
            }
        }
        Ok(())
    }

    /// Gives a derivation that was written without its output paths the ones that follow from it, in its outputs and in
    /// the variables called like them, as `nix derivation add` does. What it says already must be right.
    ///
    /// A variable that is missing or empty is filled in; one with another value is an error.
    pub fn complete(&mut self, derivation: &mut Derivation) -> Result<(), PathsError> {
        if derivation.kind()? == Kind::Deferred {
            // The completed derivation has the variable, so it is hashed with it, as Nix's evaluator does. (Newer versions of
            // `nix derivation add` hash without a variable that is absent.)
            for output in derivation.outputs.keys() {
                derivation.environment.entry(output.clone().into_bytes()).or_default();
            }
        }
        for (name, path) in self.output_paths(derivation)? {
            let variable = derivation.environment.entry(name.clone().into_bytes()).or_default();
            if variable.is_empty() {
                *variable = self.store_dir.display(&path).into_bytes();
            }
            if let Some(output) = derivation.outputs.get_mut(&name)
                && *output == Output::Deferred
            {
                *output = Output::InputAddressed(path);
            }
        }
        self.check_outputs(derivation)
    }

    fn fixed_path(&self, derivation: &Derivation, method: Method, hash: &Hash) -> Result<StorePath, PathsError> {
        fixed_output_path(self.store_dir, &derivation.name, "out", method, hash)
            .ok_or_else(|| PathsError::TextHash(derivation.name.clone()))?
            .map_err(PathsError::from)
    }

    /// The hash of what is left of a derivation when its inputs are named by their own hashes, and its outputs not at all
    /// if `masked`.
    fn hash_of(&mut self, derivation: &Derivation, masked: bool) -> Result<Hash, PathsError> {
        let mut inputs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (path, wanted) in &derivation.input_derivations {
            let modulo = self.modulo(path)?;
            for output in wanted {
                if !modulo.outputs.contains(output) {
                    return Err(PathsError::MissingOutput {
                        input: path.clone(),
                        output: output.clone(),
                        chain: Vec::new(),
                    });
                }
            }
            // Two inputs that differ only in how they fetch are one here, with the outputs wanted of either.
            inputs.entry(modulo.hash.base16()).or_default().extend(wanted.iter().cloned());
        }
        let inputs = inputs.iter().map(|(hash, outputs)| (hash.clone(), outputs));
        Ok(Hash::sha256(&aterm::write_with(derivation, self.store_dir, masked, inputs)))
    }

    /// What those that depend on the derivation at `path` see of it. Walks with a list of its own, not by recursion: the
    /// graph's depth is chosen by whoever wrote it.
    fn modulo(&mut self, path: &StorePath) -> Result<Modulo, PathsError> {
        if let Some(modulo) = self.known.get(path) {
            return Ok(modulo.clone());
        }
        let mut open = vec![self.open(path)?];
        let mut on_the_way = BTreeSet::from([path.clone()]);
        loop {
            let chain = |open: &[Open]| open.iter().map(|open| open.path.clone()).collect::<Vec<_>>();
            let Some(last) = open.last_mut() else { break };
            if let Some(next) = last.pending.pop() {
                if self.known.contains_key(&next) {
                    continue;
                }
                if !on_the_way.insert(next.clone()) {
                    let cycle = chain(&open).into_iter().skip_while(|path| *path != next);
                    return Err(PathsError::Cycle(cycle.chain([next.clone()]).collect()));
                }
                let next = self.open(&next).map_err(|error| error.below(|| chain(&open)))?;
                open.push(next);
                continue;
            }
            let derivation = &last.derivation;
            let hash = match derivation.fixed_output() {
                Some((path, method, hash)) => Hash::sha256(
                    format!(
                        "fixed:out:{}:{}:{}",
                        aterm::written_method(method, hash.algorithm()),
                        hash.base16(),
                        self.store_dir.display(path)
                    )
                    .as_bytes(),
                ),
                // All inputs are known by now, so that this does not walk again.
                None => match self.hash_of(derivation, false) {
                    Ok(hash) => hash,
                    Err(error) => return Err(error.below(|| chain(&open))),
                },
            };
            if let Some(Open { path, derivation, .. }) = open.pop() {
                on_the_way.remove(&path);
                self.known.insert(path, Modulo { hash, outputs: derivation.outputs.into_keys().collect() });
            }
        }
        match self.known.get(path) {
            Some(modulo) => Ok(modulo.clone()),
            None => Err(PathsError::MissingInput { missing: path.clone(), chain: Vec::new() }),
        }
    }

    fn open(&mut self, path: &StorePath) -> Result<Open, PathsError> {
        let derivation = match self.derivations.derivation(path) {
            Ok(Some(derivation)) => derivation,
            Ok(None) => return Err(PathsError::MissingInput { missing: path.clone(), chain: Vec::new() }),
            Err(error) => {
                return Err(PathsError::Read { path: path.clone(), chain: Vec::new(), source: Box::new(error) });
            }
        };
        let pending = match supported_kind(&derivation)? {
            // Nothing below a fixed output matters to what depends on it.
            Kind::Fixed => Vec::new(),
            Kind::Deferred => {
                return Err(PathsError::DeferredInput { derivation: derivation.name, chain: Vec::new() });
            }
            _ => derivation.input_derivations.keys().cloned().collect(),
        };
        Ok(Open { path: path.clone(), derivation, pending })
    }
}

/// Says why a derivation cannot be built, if it is of a kind whose outputs have no paths before they are built.
///
/// # Errors
/// See [`PathsError::Unsupported`] and [`PathsError::Invalid`].
pub fn check_buildable(derivation: &Derivation) -> Result<(), PathsError> {
    match supported_kind(derivation)? {
        Kind::Deferred => Err(unsupported(
            derivation,
            "depends on a content-addressed derivation (its paths are known when that one is built)",
            FLOATING_FIX,
        )),
        _ => Ok(()),
    }
}

const FLOATING_FIX: &str =
    "take ‘__contentAddressed’ out, or let a Nix with ‘anchorhold attach’ as its external builder do it";

fn supported_kind(derivation: &Derivation) -> Result<Kind, PathsError> {
    match derivation.kind()? {
        kind @ (Kind::InputAddressed | Kind::Fixed | Kind::Deferred) => Ok(kind),
        Kind::Floating => Err(unsupported(
            derivation,
            "is floating content-addressed (its paths follow from what is built)",
            FLOATING_FIX,
        )),
        Kind::Impure => Err(unsupported(
            derivation,
            "is impure (it gives something else each time)",
            "take ‘__impure’ out, or declare the hash of what it makes (outputHash)",
        )),
    }
}

fn unsupported(derivation: &Derivation, what: &'static str, fix: &'static str) -> PathsError {
    PathsError::Unsupported { derivation: derivation.name.clone(), what, fix, chain: Vec::new() }
}

#[cfg(test)]
mod tests;
