//! Derivations: read, checked, written, and what they ask of a build.
//!
//! [`aterm`] is the form of `.drv` files, [`json`] that of `nix derivation show`; [`paths`] computes and checks output
//! paths; [`options`] reads the attributes that concern the executor and not the builder.

pub mod aterm;
pub mod attributes;
pub mod json;
pub mod json_text;
pub mod options;
pub mod paths;

#[cfg(test)]
pub(crate) mod real_nix;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::hash::{Algorithm, Hash, base32};
use crate::store_path::{self, StoreDir, StorePath, StorePathError};

/// The end of the name of a derivation's own store path.
pub const EXTENSION: &str = ".drv";

/// How the contents of an output become the bytes that are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// The bytes of the one regular file that the output is.
    Flat,
    /// The NAR of the output.
    Recursive,
    /// The bytes of a file, with its references in the path; how `.drv` files themselves are named.
    Text,
}

impl Method {
    /// What stands before the algorithm in a `.drv` file.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Flat => "",
            Self::Recursive => "r:",
            Self::Text => "text:",
        }
    }

    /// The name in JSON since version 2 of that form.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Recursive => "nar",
            Self::Text => "text",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// What is known of an output before the build.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Output {
    /// Its path follows from the derivation.
    InputAddressed(StorePath),
    /// Its contents are given by their hash, and so is its path.
    Fixed {
        /// The path, which follows from the other two and the name.
        path: StorePath,
        /// What is hashed.
        method: Method,
        /// The hash.
        hash: Hash,
    },
    /// Its path will follow from its contents.
    Floating {
        /// What will be hashed.
        method: Method,
        /// With what.
        algorithm: Algorithm,
    },
    /// Its path is not computed yet: an input's path is not known, or the derivation was written without its paths.
    Deferred,
    /// As floating, but different each time.
    Impure {
        /// What will be hashed.
        method: Method,
        /// With what.
        algorithm: Algorithm,
    },
}

impl Output {
    /// The path, where it is known.
    pub fn path(&self) -> Option<&StorePath> {
        match self {
            Self::InputAddressed(path) | Self::Fixed { path, .. } => Some(path),
            Self::Floating { .. } | Self::Deferred | Self::Impure { .. } => None,
        }
    }
}

/// One build as it was described. Strings that only the builder reads are bytes, since `.drv` files are not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation {
    /// The name of its store path without `.drv`. A `.drv` file does not hold it.
    pub name: String,
    /// What it makes, by name.
    pub outputs: BTreeMap<String, Output>,
    /// Other derivations, and which of their outputs it needs.
    pub input_derivations: BTreeMap<StorePath, BTreeSet<String>>,
    /// Store paths that it needs as they are.
    pub input_sources: BTreeSet<StorePath>,
    /// The kind of machine that can run the builder, such as `x86_64-linux`.
    pub system: String,
    /// The program, or `builtin:` and a name.
    pub builder: Vec<u8>,
    /// The arguments after the program's own name.
    pub arguments: Vec<Vec<u8>>,
    /// The environment variables.
    pub environment: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What kind of outputs a derivation has; all of one derivation have the same kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Paths follow from the derivation.
    InputAddressed,
    /// One output whose hash is known. Its build may use the network.
    Fixed,
    /// Paths follow from the contents.
    Floating,
    /// Paths are not computed yet.
    Deferred,
    /// Floating, and not the same each time.
    Impure,
}

/// A derivation that says something that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDerivation {
    /// Nothing would be built.
    #[error("the derivation ‘{0}’ has no outputs")]
    NoOutputs(String),
    /// The name is no part of a store path.
    #[error("the derivation's name ‘{name}’ is not valid: {source}")]
    Name {
        /// The name.
        name: String,
        /// Why.
        source: StorePathError,
    },
    /// An output's name is no part of a store path.
    #[error("the derivation ‘{derivation}’ has an output with the invalid name ‘{output}’: {why}")]
    OutputName {
        /// The derivation's name.
        derivation: String,
        /// The output's name.
        output: String,
        /// What is wrong.
        why: String,
    },
    /// Outputs of several kinds.
    #[error("the derivation ‘{derivation}’ mixes kinds of outputs: ‘{first}’ and ‘{second}’ must be of one kind")]
    MixedOutputs {
        /// The derivation's name.
        derivation: String,
        /// One output.
        first: String,
        /// One of another kind.
        second: String,
    },
    /// A fixed output that is not alone, or not called `out`.
    #[error("the derivation ‘{derivation}’ has a fixed output: it must have exactly one, called ‘out’, not {outputs}")]
    FixedOutputs {
        /// The derivation's name.
        derivation: String,
        /// The names of the outputs.
        outputs: String,
    },
    /// An input that is named as a derivation but is none.
    #[error("the derivation ‘{derivation}’ has the input derivation ‘{input}’, whose name does not end in .drv")]
    InputName {
        /// The derivation's name.
        derivation: String,
        /// The input.
        input: StorePath,
    },
}

impl Derivation {
    /// Which kind of outputs it has, after a look at all that the types alone do not guarantee.
    pub fn kind(&self) -> Result<Kind, InvalidDerivation> {
        check_derivation_name(&self.name)?;
        let mut kind = None;
        for (name, output) in &self.outputs {
            check_output_name(&self.name, name)?;
            let this = match output {
                Output::InputAddressed(_) => Kind::InputAddressed,
                Output::Fixed { .. } => Kind::Fixed,
                Output::Floating { .. } => Kind::Floating,
                Output::Deferred => Kind::Deferred,
                Output::Impure { .. } => Kind::Impure,
            };
            match kind {
                None => kind = Some((this, name)),
                Some((kind, _)) if kind == this => {}
                Some((_, first)) => {
                    return Err(InvalidDerivation::MixedOutputs {
                        derivation: self.name.clone(),
                        first: first.clone(),
                        second: name.clone(),
                    });
                }
            }
        }
        let Some((kind, _)) = kind else { return Err(InvalidDerivation::NoOutputs(self.name.clone())) };
        if kind == Kind::Fixed && (self.outputs.len() != 1 || !self.outputs.contains_key("out")) {
            let names: Vec<_> = self.outputs.keys().map(|name| format!("‘{name}’")).collect();
            return Err(InvalidDerivation::FixedOutputs { derivation: self.name.clone(), outputs: names.join(", ") });
        }
        if let Some(input) = self.input_derivations.keys().find(|input| !input.is_derivation()) {
            return Err(InvalidDerivation::InputName { derivation: self.name.clone(), input: input.clone() });
        }
        Ok(kind)
    }

    /// The one fixed output: its path, what is hashed, and the hash.
    pub fn fixed_output(&self) -> Option<(&StorePath, Method, &Hash)> {
        match self.outputs.get("out") {
            Some(Output::Fixed { path, method, hash }) if self.outputs.len() == 1 => Some((path, *method, hash)),
            _ => None,
        }
    }

    /// Whether the executor itself is to do it, without any program.
    pub fn is_builtin(&self) -> bool {
        self.builder.starts_with(b"builtin:")
    }

    /// The value of an environment variable.
    pub fn variable(&self, name: &str) -> Option<&[u8]> {
        self.environment.get(name.as_bytes()).map(Vec::as_slice)
    }

    /// What the derivation's own store path refers to.
    pub fn references(&self) -> BTreeSet<&StorePath> {
        self.input_sources.iter().chain(self.input_derivations.keys()).collect()
    }

    /// Its own store path, as a text with references.
    pub fn store_path(&self, store_dir: &StoreDir) -> Result<StorePath, StorePathError> {
        let contents = Hash::sha256(&aterm::write(self, store_dir));
        store_dir.text_path(&format!("{}{EXTENSION}", self.name), &contents, self.references())
    }
}

/// The name of an output's path: the derivation's own for `out`, otherwise with the output's name after a dash.
pub fn output_path_name(derivation: &str, output: &str) -> String {
    if output == "out" { derivation.to_owned() } else { format!("{derivation}-{output}") }
}

/// What stands for the path of the derivation's own output in its environment and arguments until the path is known.
pub fn placeholder(output: &str) -> String {
    format!("/{}", base32::encode(Hash::sha256(format!("nix-output:{output}").as_bytes()).bytes()))
}

/// The path of a fixed output, or nothing if its text method is not used with SHA-256.
pub fn fixed_output_path(
    store_dir: &StoreDir,
    derivation: &str,
    output: &str,
    method: Method,
    hash: &Hash,
) -> Option<Result<StorePath, StorePathError>> {
    let name = output_path_name(derivation, output);
    match method {
        Method::Flat => Some(store_dir.fixed_path(&name, false, hash)),
        Method::Recursive => Some(store_dir.fixed_path(&name, true, hash)),
        Method::Text if hash.algorithm() == Algorithm::Sha256 => Some(store_dir.text_path(&name, hash, [])),
        Method::Text => None,
    }
}

fn check_derivation_name(name: &str) -> Result<(), InvalidDerivation> {
    store_path::check_name(name).map_err(|source| InvalidDerivation::Name { name: name.to_owned(), source })
}

fn check_output_name(derivation: &str, output: &str) -> Result<(), InvalidDerivation> {
    let error = |why: String| {
        Err(InvalidDerivation::OutputName { derivation: derivation.to_owned(), output: output.to_owned(), why })
    };
    match store_path::check_name(output) {
        Err(source) => error(source.to_string()),
        // The attribute `drvPath` is made of output names; Nix's own `derivation` refuses it.
        Ok(()) if output == "drv" => error("it means the derivation itself".to_owned()),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_those_of_nix() {
        // nix-instantiate --eval -E 'builtins.placeholder "out"'
        assert_eq!(placeholder("out"), "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9");
    }

    #[test]
    fn impossible_derivations_say_what_is_wrong() {
        let hash = Hash::sha256(b"");
        let path: StorePath = "00bgd045z0d4icpbc2yyz4gx48ak44la-a".parse().unwrap();
        let fixed = || Output::Fixed { path: path.clone(), method: Method::Flat, hash };
        let addressed = || Output::InputAddressed(path.clone());
        for (name, outputs, part) in [
            ("a", vec![], "has no outputs"),
            ("a b", vec![("out", addressed())], "name ‘a b’ is not valid"),
            ("a", vec![("o/ut", addressed())], "the invalid name ‘o/ut’"),
            ("a", vec![("drv", addressed())], "the invalid name ‘drv’"),
            ("a", vec![("out", fixed()), ("dev", addressed())], "‘dev’ and ‘out’"),
            ("a", vec![("dev", fixed())], "called ‘out’, not ‘dev’"),
            ("a", vec![("dev", fixed()), ("out", fixed())], "not ‘dev’, ‘out’"),
        ] {
            let derivation = Derivation {
                name: name.to_owned(),
                outputs: outputs.into_iter().map(|(name, output)| (name.to_owned(), output)).collect(),
                input_derivations: BTreeMap::new(),
                input_sources: BTreeSet::new(),
                system: "x".to_owned(),
                builder: b"/bin/sh".to_vec(),
                arguments: vec![],
                environment: BTreeMap::new(),
            };
            let error = derivation.kind().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
