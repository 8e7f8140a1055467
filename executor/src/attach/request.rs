//! What Nix writes for an external builder: `build.json`, version 1.
//!
//! Nix writes it, but its contents are a derivation's, and everybody may write derivations. All that the rest relies on is
//! made sure of here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use serde::Deserialize;

use crate::store_path::{StoreDir, StorePath, StorePathError};

/// The version of the format that is understood.
pub const VERSION: u64 = 1;

/// The longest file that is read, in bytes: a hundred thousand inputs are a tenth of it.
pub const MAX_LEN: u64 = 64 << 20;

/// A request that is not one.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The file.
    #[error("cannot read the request ‘{}’: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is longer than any that can be meant.
    #[error("the request has more than {MAX_LEN} bytes")]
    TooLong,
    /// It is no JSON, or not the JSON that it has to be.
    #[error("the request is not what Nix writes for an external builder: {0}")]
    Syntax(#[from] serde_json::Error),
    /// A later form.
    #[error(
        "the request has version {0}, and this anchorhold understands version {VERSION}: use an anchorhold that is as new as Nix"
    )]
    Version(u64),
    /// A field that cannot be what it says.
    #[error("the request's ‘{field}’ is {why}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A path of the store that is none.
    #[error("the request's ‘{field}’: {source}")]
    StorePath {
        /// The field's name.
        field: &'static str,
        /// Why.
        source: StorePathError,
    },
}

/// One build as Nix asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The kind of machine that it is for.
    pub system: String,
    /// The program, as the builder's room names it.
    pub builder: String,
    /// The arguments after the program's name.
    pub arguments: Vec<String>,
    /// The whole environment. Its paths are those that the builder sees.
    pub environment: BTreeMap<String, String>,
    /// The closure of the inputs.
    pub inputs: Vec<StorePath>,
    /// By name, where outputs are to be made: their own paths, or others that Nix has made up for this time.
    pub outputs: BTreeMap<String, StorePath>,
    /// The store as the builder names it.
    pub store_dir: StoreDir,
    /// Where its files lie.
    pub real_store: PathBuf,
    /// The directory that Nix made for this build.
    pub top_dir: PathBuf,
    /// The builder's own directory, below it.
    pub build_dir: PathBuf,
    /// The builder's own directory as it names it.
    pub build_dir_inside: PathBuf,
}

/// The fields as they are called. Others may come with later Nixes, and mean nothing to us.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(default)]
    system: String,
    builder: String,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    input_paths: Vec<String>,
    outputs: BTreeMap<String, String>,
    store_dir: String,
    real_store_dir: PathBuf,
    top_tmp_dir: PathBuf,
    tmp_dir: PathBuf,
    tmp_dir_in_sandbox: PathBuf,
}

/// Read first: what is said of another version's fields would lead astray.
#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

impl Request {
    /// Reads the file that Nix names on the command line.
    ///
    /// # Errors
    /// It is no regular file, cannot be read, is too long, or is refused by [`Request::parse`].
    pub fn read(path: &Path) -> Result<Self, RequestError> {
        let failed = |source: io::Error| RequestError::Read { path: path.to_owned(), source };
        // Not to wait for a writer, should it be a FIFO.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let found = rustix::fs::fstat(&file).map_err(|errno| failed(errno.into()))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(failed(io::Error::other("it is no regular file")));
        }
        let mut text = Vec::new();
        File::from(file).take(MAX_LEN + 1).read_to_end(&mut text).map_err(failed)?;
        Self::parse(&text)
    }

    /// Reads the text.
    ///
    /// # Errors
    /// No JSON, another version, a field that is missing or of another type, names that are no names in a store, paths that
    /// are not absolute, strings that no program can be given.
    pub fn parse(text: &[u8]) -> Result<Self, RequestError> {
        if text.len() as u64 > MAX_LEN {
            return Err(RequestError::TooLong);
        }
        let Versioned { version } = serde_json::from_slice(text)?;
        if version != VERSION {
            return Err(RequestError::Version(version));
        }
        let fields: Fields = serde_json::from_slice(text)?;
        let store_dir =
            StoreDir::new(&fields.store_dir).map_err(|source| RequestError::StorePath { field: "storeDir", source })?;
        let store_path =
            |field, text: &str| store_dir.parse(text).map_err(|source| RequestError::StorePath { field, source });
        let inputs: BTreeSet<StorePath> =
            fields.input_paths.iter().map(|text| store_path("inputPaths", text)).collect::<Result<_, _>>()?;
        let mut outputs = BTreeMap::new();
        for (name, text) in &fields.outputs {
            if crate::store_path::check_name(name).is_err() {
                return Err(field("outputs", format!("wrong: ‘{}’ is no name of an output", name.escape_debug())));
            }
            let path = store_path("outputs", text)?;
            if inputs.contains(&path) {
                return Err(field("outputs", format!("wrong: ‘{path}’ is an input as well")));
            }
            if outputs.values().any(|other| *other == path) {
                return Err(field("outputs", format!("wrong: two outputs are ‘{path}’")));
            }
            outputs.insert(name.clone(), path);
        }
        if outputs.is_empty() {
            return Err(field("outputs", "empty: there is nothing to build"));
        }
        for (name, path) in [
            ("realStoreDir", &fields.real_store_dir),
            ("topTmpDir", &fields.top_tmp_dir),
            ("tmpDir", &fields.tmp_dir),
            ("tmpDirInSandbox", &fields.tmp_dir_in_sandbox),
        ] {
            check_directory(name, path)?;
        }
        if fields.tmp_dir.parent() != Some(&fields.top_tmp_dir) {
            return Err(field("tmpDir", "not in ‘topTmpDir’"));
        }
        check_strings(&fields)?;
        Ok(Self {
            system: fields.system,
            builder: fields.builder,
            arguments: fields.args,
            environment: fields.env,
            inputs: inputs.into_iter().collect(),
            outputs,
            store_dir,
            real_store: fields.real_store_dir,
            top_dir: fields.top_tmp_dir,
            build_dir: fields.tmp_dir,
            build_dir_inside: fields.tmp_dir_in_sandbox,
        })
    }
}

fn field(field: &'static str, why: impl Into<String>) -> RequestError {
    RequestError::Field { field, why: why.into() }
}

/// An absolute path that says where it leads.
fn check_directory(name: &'static str, path: &Path) -> Result<(), RequestError> {
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let zero = path.as_os_str().as_encoded_bytes().contains(&0);
    if !path.is_absolute() || !plain || zero || path == Path::new("/") {
        let shown = path.display().to_string();
        return Err(field(name, format!("‘{}’, which is no absolute path of a directory", shown.escape_debug())));
    }
    Ok(())
}

/// What the kernel can hand to a program.
fn check_strings(fields: &Fields) -> Result<(), RequestError> {
    let zero = |text: &str| text.contains('\0');
    if fields.builder.is_empty() || zero(&fields.builder) {
        return Err(field("builder", "no program"));
    }
    if fields.args.iter().any(|argument| zero(argument)) {
        return Err(field("args", "wrong: an argument has a zero byte, which no program can be given"));
    }
    for (name, value) in &fields.env {
        if name.is_empty() || name.contains('=') || zero(name) || zero(value) {
            let shown = name.escape_debug();
            return Err(field("env", format!("wrong: no program can be given the variable ‘{shown}’")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
