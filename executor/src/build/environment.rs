//! What a builder gets: its arguments, its environment, and the files that lie in its build directory.
//!
//! Pure functions: nothing here touches a file. Source: `src/libstore/unix/build/derivation-builder.cc` and
//! `src/libstore/build/derivation-env-desugar.cc` of Nix.

use std::collections::{BTreeMap, BTreeSet};

use super::reference_graph::{Graph, GraphError, Inputs};
use super::rewriting::Rewrites;
use super::structured_attributes;
use crate::derivation::Derivation;
use crate::derivation::json_text;
use crate::derivation::options::Options;
use crate::hash::Hash;
use crate::store_path::{StoreDir, StorePathError};

/// What the executor decides for all its builds.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many processors the builder may use; 0 lets it decide (`NIX_BUILD_CORES`).
    pub cores: u32,
    /// The build directory as the builder sees it.
    pub build_directory: String,
    /// The variables that a fixed output may ask for (`impureEnvVars`). What is not here is empty for the builder.
    pub impure_environment: BTreeMap<String, Vec<u8>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { cores: 1, build_directory: "/build".to_owned(), impure_environment: BTreeMap::new() }
    }
}

/// A file in the build directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its name: one component, no slash, never `.` or `..`.
    pub name: String,
    /// What it holds.
    pub contents: Vec<u8>,
}

/// All that a builder starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuilderInput {
    /// The path of the program.
    pub program: Vec<u8>,
    /// All arguments, with the program's base name as the first.
    pub arguments: Vec<Vec<u8>>,
    /// The environment.
    pub environment: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The files to make in the build directory before the builder starts.
    pub files: Vec<File>,
}

/// Why a builder cannot be given what its derivation says.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// An output of which nobody said where it is made.
    #[error("no path was given for the output ‘{output}’ of the derivation ‘{derivation}’")]
    NoOutputPath {
        /// The derivation's name.
        derivation: String,
        /// The output.
        output: String,
    },
    /// A path of an output that is not in the store.
    #[error("the output ‘{output}’ cannot be made there: {source}")]
    OutputPath {
        /// The output.
        output: String,
        /// Why.
        source: StorePathError,
    },
    /// A string that the kernel cannot hand to a program.
    #[error("{what} of the derivation ‘{derivation}’ has a zero byte, which no program can be given")]
    ZeroByte {
        /// The derivation's name.
        derivation: String,
        /// Which.
        what: String,
    },
    /// A variable that must be a file, but whose file has the name of another.
    #[error("the derivation ‘{derivation}’ asks for two files called ‘{name}’ in its build directory")]
    SameFile {
        /// The derivation's name.
        derivation: String,
        /// The file.
        name: String,
    },
    /// A graph that cannot be told.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// What the builder of `derivation` gets.
///
/// `outputs` says for each output where it is to be made, as the builder sees it: the path that the derivation names, or
/// another one in the same store of the same length.
///
/// # Errors
/// Zero bytes in strings, graphs of paths that are no inputs, an output without a path.
pub fn prepare(
    derivation: &Derivation,
    options: &Options,
    store_dir: &StoreDir,
    settings: &Settings,
    outputs: &BTreeMap<String, String>,
    inputs: &dyn Inputs,
) -> Result<BuilderInput, PrepareError> {
    let rewrites = rewrites(derivation, store_dir, outputs)?;
    let directory = settings.build_directory.as_str();
    let mut environment = Environment(BTreeMap::new());
    let mut files = Files { derivation: &derivation.name, names: BTreeSet::new(), all: Vec::new() };

    // Values that lead nowhere, so that a program that relies on the host's fails; a derivation may set better ones.
    environment.set("PATH", "/path-not-set");
    environment.set("HOME", "/homeless-shelter");
    environment.set("NIX_STORE", store_dir.as_str());
    environment.set("NIX_BUILD_CORES", settings.cores.to_string());

    if options.structured_attributes.is_none() {
        for (name, value) in &derivation.environment {
            let value = rewrites.apply(value);
            match std::str::from_utf8(name) {
                Ok(text) if options.pass_as_file.contains(text) => {
                    let file = format!(".attr-{}", Hash::sha256(name).base32());
                    environment.set(format!("{text}Path"), format!("{directory}/{file}"));
                    files.add(file, value)?;
                }
                _ => environment.set(rewrites.apply(name), value),
            }
        }
        for (file, paths) in &options.export_references_graph {
            files.add(file.clone(), Graph::of(paths, inputs)?.registration(store_dir).into_bytes())?;
        }
    }

    for name in ["NIX_BUILD_TOP", "TMPDIR", "TEMPDIR", "TMP", "TEMP", "PWD"] {
        environment.set(name, directory);
    }
    if derivation.fixed_output().is_some() {
        // Programs that fetch may skip checks of their own: what they fetch is compared with the hash.
        environment.set("NIX_OUTPUT_CHECKED", "1");
        for name in &options.impure_env_vars {
            environment.set(name.as_str(), settings.impure_environment.get(name).cloned().unwrap_or_default());
        }
    }
    environment.set("NIX_LOG_FD", "2");
    environment.set("TERM", "xterm-256color");

    if let Some(attributes) = &options.structured_attributes {
        let attributes = structured_attributes::complete(attributes, derivation, options, store_dir, inputs)?;
        let shell = structured_attributes::shell(&attributes);
        let json = json_text::write(&attributes.into());
        for (variable, file, text) in
            [("NIX_ATTRS_SH_FILE", ".attrs.sh", shell), ("NIX_ATTRS_JSON_FILE", ".attrs.json", json)]
        {
            environment.set(variable, format!("{directory}/{file}"));
            files.add(file.to_owned(), rewrites.apply(text.as_bytes()))?;
        }
    }

    let base_name = derivation.builder.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
    let arguments = derivation.arguments.iter().map(|argument| rewrites.apply(argument));
    let input = BuilderInput {
        program: derivation.builder.clone(),
        arguments: std::iter::once(base_name).chain(arguments).collect(),
        environment: environment.0,
        files: files.all,
    };
    refuse_zero_bytes(&derivation.name, &input)?;
    Ok(input)
}

/// Placeholders become the paths where the outputs are made. Where such a path is not the one that the derivation names, its
/// hash part replaces that of the final path, so that the builder only learns of the one that it can write.
fn rewrites(
    derivation: &Derivation,
    store_dir: &StoreDir,
    outputs: &BTreeMap<String, String>,
) -> Result<Rewrites, PrepareError> {
    let mut rewrites = Rewrites::default();
    for (name, output) in &derivation.outputs {
        let made_at = outputs
            .get(name)
            .ok_or_else(|| PrepareError::NoOutputPath { derivation: derivation.name.clone(), output: name.clone() })?;
        let made =
            store_dir.parse(made_at).map_err(|source| PrepareError::OutputPath { output: name.clone(), source })?;
        rewrites.add_placeholder(name, made_at);
        if let Some(path) = output.path()
            && *path != made
        {
            rewrites.add_path(path, &made);
        }
    }
    Ok(rewrites)
}

struct Environment(BTreeMap<Vec<u8>, Vec<u8>>);

impl Environment {
    fn set(&mut self, name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.0.insert(name.into(), value.into());
    }
}

struct Files<'a> {
    derivation: &'a str,
    names: BTreeSet<String>,
    all: Vec<File>,
}

impl Files<'_> {
    fn add(&mut self, name: String, contents: Vec<u8>) -> Result<(), PrepareError> {
        if !self.names.insert(name.clone()) {
            return Err(PrepareError::SameFile { derivation: self.derivation.to_owned(), name });
        }
        self.all.push(File { name, contents });
        Ok(())
    }
}

fn refuse_zero_bytes(derivation: &str, input: &BuilderInput) -> Result<(), PrepareError> {
    let check = |bytes: &[u8], what: &dyn Fn() -> String| {
        if bytes.contains(&0) {
            return Err(PrepareError::ZeroByte { derivation: derivation.to_owned(), what: what() });
        }
        Ok(())
    };
    check(&input.program, &|| "the builder".to_owned())?;
    for (position, argument) in input.arguments.iter().enumerate() {
        check(argument, &|| format!("argument {position}"))?;
    }
    for (name, value) in &input.environment {
        let what = || format!("the variable ‘{}’", String::from_utf8_lossy(name).escape_debug());
        check(name, &what)?;
        check(value, &what)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
