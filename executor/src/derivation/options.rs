//! What a derivation asks of the executor, as opposed to its builder.
//!
//! Source: `doc/manual/source/language/advanced-attributes.md` and `src/libstore/derivation-options.cc` of Nix. The
//! attributes that mean something on Darwin only (`__sandboxProfile`, `__darwinAllowLocalNetworking`) mean nothing here.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::attributes::{AttributeError, Attributes};
use super::{Derivation, placeholder};
use crate::store_path::{StoreDir, StorePath, StorePathError};

/// What to check of outputs, whose top-level attributes do nothing under structured attributes.
const CLASSIC_CHECKS: [&str; 6] = [
    "allowedReferences",
    "allowedRequisites",
    "disallowedReferences",
    "disallowedRequisites",
    "maxSize",
    "maxClosureSize",
];

/// An option that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// An attribute of another type.
    #[error(transparent)]
    Attribute(#[from] AttributeError),
    /// A list of allowed or forbidden references with something that is neither a path nor an output.
    #[error(
        "the attribute ‘{attribute}’ of the derivation ‘{derivation}’ has ‘{value}’, which is neither a store path nor one of its outputs ({outputs})"
    )]
    Reference {
        /// The derivation's name.
        derivation: String,
        /// Which list.
        attribute: String,
        /// What is in it.
        value: String,
        /// The names of its outputs.
        outputs: String,
    },
    /// `exportReferencesGraph` with names and paths that do not come in pairs.
    #[error("the attribute ‘exportReferencesGraph’ of the derivation ‘{0}’ must be file names and store paths in turn")]
    ExportPairs(String),
    /// A file of `exportReferencesGraph` that might not be made where it belongs.
    #[error(
        "the attribute ‘exportReferencesGraph’ of the derivation ‘{derivation}’ has the file name ‘{name}’: a letter or underscore, then letters, digits, ‘_’, ‘.’ and ‘-’ are allowed"
    )]
    ExportName {
        /// The derivation's name.
        derivation: String,
        /// The file name.
        name: String,
    },
    /// A path of `exportReferencesGraph` outside the store.
    #[error("the attribute ‘exportReferencesGraph’ of the derivation ‘{derivation}’: {source}")]
    ExportPath {
        /// The derivation's name.
        derivation: String,
        /// Why.
        source: StorePathError,
    },
}

/// What an output may or may not refer to: a path, or another output of the same build.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// A store path.
    Path(StorePath),
    /// The output of this name.
    Output(String),
}

/// What to check of one output once it is built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputChecks {
    /// Whether the output itself does not count among its requisites.
    pub ignore_self_references: bool,
    /// The greatest size of its NAR, in bytes.
    pub max_size: Option<u64>,
    /// The greatest sum of the NARs of its closure, in bytes.
    pub max_closure_size: Option<u64>,
    /// The only direct references that it may have.
    pub allowed_references: Option<BTreeSet<Reference>>,
    /// The only paths that its closure may have.
    pub allowed_requisites: Option<BTreeSet<Reference>>,
    /// Direct references that it may not have.
    pub disallowed_references: BTreeSet<Reference>,
    /// Paths that its closure may not have.
    pub disallowed_requisites: BTreeSet<Reference>,
}

/// The checks of all outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checks {
    /// The same for all; without structured attributes.
    ForAll(OutputChecks),
    /// By output (`outputChecks`); with structured attributes.
    PerOutput(BTreeMap<String, OutputChecks>),
}

/// What a derivation asks of the executor.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Features that the machine must have, such as `kvm` (`requiredSystemFeatures`).
    pub required_system_features: BTreeSet<String>,
    /// Whether it asks for no sandbox at all (`__noChroot`).
    pub no_chroot: bool,
    /// Paths of the host that it asks for (`__impureHostDeps`).
    pub impure_host_deps: BTreeSet<String>,
    /// Variables whose values are to be files (`passAsFile`). Always empty with structured attributes.
    pub pass_as_file: BTreeSet<String>,
    /// Graphs that it wants to know: file names, or attributes with structured attributes (`exportReferencesGraph`).
    pub export_references_graph: BTreeMap<String, BTreeSet<StorePath>>,
    /// What to check of its outputs.
    pub checks: Checks,
    /// Outputs that are registered without references, whatever they hold (`unsafeDiscardReferences`).
    pub unsafe_discard_references: BTreeSet<String>,
    /// Variables to take from the executor's environment; only for fixed outputs (`impureEnvVars`).
    pub impure_env_vars: BTreeSet<String>,
    /// Whether it is not worth sending elsewhere (`preferLocalBuild`).
    pub prefer_local_build: bool,
    /// Whether its outputs may come from a cache (`allowSubstitutes`).
    pub allow_substitutes: bool,
    /// The structured attributes, if it has them.
    pub structured_attributes: Option<Map<String, Value>>,
    /// Attributes that are there and do nothing, where that may surprise; for a warning.
    pub without_effect: BTreeSet<String>,
}

impl Options {
    /// Reads the options of `derivation`.
    ///
    /// # Errors
    /// Attributes of a wrong type; lists of references with something that is no reference; graphs of no store path.
    pub fn read(derivation: &Derivation, store_dir: &StoreDir) -> Result<Self, OptionsError> {
        Reader { derivation, store_dir, attributes: Attributes::new(derivation)?, without_effect: BTreeSet::new() }
            .options()
    }

    /// What to check of one output.
    pub fn checks_of(&self, output: &str) -> OutputChecks {
        match &self.checks {
            Checks::ForAll(checks) => checks.clone(),
            Checks::PerOutput(checks) => checks.get(output).cloned().unwrap_or_default(),
        }
    }
}

struct Reader<'a> {
    derivation: &'a Derivation,
    store_dir: &'a StoreDir,
    attributes: Attributes<'a>,
    without_effect: BTreeSet<String>,
}

impl Reader<'_> {
    fn options(mut self) -> Result<Options, OptionsError> {
        let is_structured = self.attributes.structured().is_some();
        let export_references_graph = if is_structured { self.structured_graphs() } else { self.classic_graphs() }?;
        let checks = if is_structured { self.structured_checks() } else { self.classic_checks() }?;
        let mut pass_as_file = self.set("passAsFile")?;
        if is_structured && !pass_as_file.is_empty() {
            pass_as_file.clear();
            self.without_effect.insert("passAsFile".to_owned());
        }
        let unsafe_discard_references = self.discarded()?;
        Ok(Options {
            required_system_features: self.set("requiredSystemFeatures")?,
            no_chroot: self.attributes.boolean("__noChroot", false)?,
            impure_host_deps: self.set("__impureHostDeps")?,
            pass_as_file,
            export_references_graph,
            checks,
            unsafe_discard_references,
            impure_env_vars: self.set("impureEnvVars")?,
            prefer_local_build: self.attributes.boolean("preferLocalBuild", false)?,
            allow_substitutes: self.attributes.boolean("allowSubstitutes", true)?,
            without_effect: self.without_effect,
            structured_attributes: self.attributes.into_structured(),
        })
    }

    fn set(&self, name: &str) -> Result<BTreeSet<String>, OptionsError> {
        Ok(self.attributes.strings(name)?.unwrap_or_default().into_iter().collect())
    }

    fn classic_checks(&mut self) -> Result<Checks, OptionsError> {
        for name in ["maxSize", "maxClosureSize", "outputChecks"] {
            if self.attributes.contains(name) {
                self.without_effect.insert(name.to_owned());
            }
        }
        let list = |name| self.attributes.strings(name)?.map(|all| self.references(name, all)).transpose();
        Ok(Checks::ForAll(OutputChecks {
            // Without structured attributes an output has always been free to refer to itself.
            ignore_self_references: true,
            max_size: None,
            max_closure_size: None,
            allowed_references: list("allowedReferences")?,
            allowed_requisites: list("allowedRequisites")?,
            disallowed_references: list("disallowedReferences")?.unwrap_or_default(),
            disallowed_requisites: list("disallowedRequisites")?.unwrap_or_default(),
        }))
    }

    fn structured_checks(&mut self) -> Result<Checks, OptionsError> {
        let mut without_effect: BTreeSet<_> =
            CLASSIC_CHECKS.into_iter().filter(|name| self.attributes.contains(name)).map(str::to_owned).collect();
        let mut checks = BTreeMap::new();
        for (output, value) in self.attributes.object("outputChecks")?.into_iter().flatten() {
            let place = format!("outputChecks.{output}");
            let Value::Object(map) = value else {
                return Err(self.attributes.wrong(&place, "an attribute set").into());
            };
            if !self.derivation.outputs.contains_key(output) {
                without_effect.insert(place);
                continue;
            }
            let mut these = OutputChecks::default();
            for (name, value) in map {
                let place = format!("{place}.{name}");
                let size = || {
                    let wrong = || self.attributes.wrong(&place, "a whole number of bytes");
                    value.as_u64().map(Some).ok_or_else(wrong)
                };
                let list = || self.references(&place, self.attributes.list(&place, value)?);
                match name.as_str() {
                    "ignoreSelfRefs" => {
                        let wrong = || self.attributes.wrong(&place, "true or false");
                        these.ignore_self_references = value.as_bool().ok_or_else(wrong)?;
                    }
                    "maxSize" => these.max_size = size()?,
                    "maxClosureSize" => these.max_closure_size = size()?,
                    "allowedReferences" => these.allowed_references = Some(list()?),
                    "allowedRequisites" => these.allowed_requisites = Some(list()?),
                    "disallowedReferences" => these.disallowed_references = list()?,
                    "disallowedRequisites" => these.disallowed_requisites = list()?,
                    _ => {
                        without_effect.insert(place);
                    }
                }
            }
            checks.insert(output.clone(), these);
        }
        self.without_effect.append(&mut without_effect);
        Ok(Checks::PerOutput(checks))
    }

    fn references(&self, attribute: &str, all: Vec<String>) -> Result<BTreeSet<Reference>, OptionsError> {
        all.into_iter()
            .map(|value| {
                let outputs = &self.derivation.outputs;
                if outputs.contains_key(&value) {
                    return Ok(Reference::Output(value));
                }
                if let Some(output) = outputs.keys().find(|output| value == placeholder(output)) {
                    return Ok(Reference::Output(output.clone()));
                }
                self.store_dir.parse(&value).map(Reference::Path).map_err(|_| OptionsError::Reference {
                    derivation: self.derivation.name.clone(),
                    attribute: attribute.to_owned(),
                    value,
                    outputs: outputs.keys().cloned().collect::<Vec<_>>().join(", "),
                })
            })
            .collect()
    }

    fn discarded(&mut self) -> Result<BTreeSet<String>, OptionsError> {
        const NAME: &str = "unsafeDiscardReferences";
        if self.attributes.structured().is_none() {
            if self.attributes.contains(NAME) {
                self.without_effect.insert(NAME.to_owned());
            }
            return Ok(BTreeSet::new());
        }
        let mut discarded = BTreeSet::new();
        for (output, value) in self.attributes.object(NAME)?.into_iter().flatten() {
            match value {
                Value::Bool(true) => discarded.insert(output.clone()),
                Value::Bool(false) => false,
                _ => return Err(self.attributes.wrong(&format!("{NAME}.{output}"), "true or false").into()),
            };
        }
        Ok(discarded)
    }

    fn classic_graphs(&self) -> Result<BTreeMap<String, BTreeSet<StorePath>>, OptionsError> {
        let words = self.attributes.strings("exportReferencesGraph")?.unwrap_or_default();
        let mut graphs = BTreeMap::new();
        for pair in words.chunks(2) {
            let [name, path] = pair else { return Err(OptionsError::ExportPairs(self.derivation.name.clone())) };
            let is_letter = |character: char| character.is_ascii_alphabetic() || character == '_';
            let is_other =
                |character: char| is_letter(character) || character.is_ascii_digit() || ".-".contains(character);
            if !name.starts_with(is_letter) || !name.chars().all(is_other) {
                let derivation = self.derivation.name.clone();
                return Err(OptionsError::ExportName { derivation, name: name.clone() });
            }
            graphs.insert(name.clone(), BTreeSet::from([self.graph_path(path)?]));
        }
        Ok(graphs)
    }

    fn structured_graphs(&self) -> Result<BTreeMap<String, BTreeSet<StorePath>>, OptionsError> {
        const NAME: &str = "exportReferencesGraph";
        let mut graphs = BTreeMap::new();
        for (name, value) in self.attributes.object(NAME)?.into_iter().flatten() {
            let mut paths = BTreeSet::new();
            let mut pending = vec![value];
            while let Some(value) = pending.pop() {
                match value {
                    Value::String(path) => {
                        paths.insert(self.graph_path(path)?);
                    }
                    Value::Array(all) => pending.extend(all),
                    _ => {
                        return Err(self
                            .attributes
                            .wrong(&format!("{NAME}.{name}"), "store paths, or lists of them")
                            .into());
                    }
                }
            }
            graphs.insert(name.clone(), paths);
        }
        Ok(graphs)
    }

    /// A file within a store path stands for the whole.
    fn graph_path(&self, text: &str) -> Result<StorePath, OptionsError> {
        let parsed = self.store_dir.parse_below(text);
        parsed
            .map(|(path, _)| path)
            .map_err(|source| OptionsError::ExportPath { derivation: self.derivation.name.clone(), source })
    }
}

#[cfg(test)]
mod tests;
