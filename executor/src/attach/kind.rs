//! What kind of build a request is: Nix does not say, and what the request says of itself anybody can write.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};

use rustix::fs::{FileType, Mode, OFlags};
use serde_json::{Map, Value};

use super::request::Request;
use crate::derivation::options::{Options, OptionsError};
use crate::derivation::{Derivation, EXTENSION, Method, Output, fixed_output_path, output_path_name};
use crate::hash::{Algorithm, Hash};
use crate::store_path::StorePath;

/// The file of structured attributes in the build directory.
const ATTRIBUTES: &str = ".attrs.json";

/// The longest file of structured attributes that is read, in bytes.
const MAX_ATTRIBUTES: u64 = 64 << 20;

/// The variable by which a derivation has structured attributes.
const STRUCTURED: &[u8] = b"__json";

/// Where a request says that it has structured attributes.
const ATTRIBUTES_VARIABLE: &str = "NIX_ATTRS_JSON_FILE";

/// A request of which it cannot be said what it is.
#[derive(Debug, thiserror::Error)]
pub enum KindError {
    /// Its attributes cannot be read.
    #[error("cannot read the structured attributes ‘{path}’: {source}")]
    Attributes {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// They are no attributes.
    #[error("the structured attributes ‘{path}’ are no JSON object: {why}")]
    Syntax {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// What it asks for makes no sense.
    #[error(transparent)]
    Options(#[from] OptionsError),
}

/// A request with what was found out about it.
#[derive(Debug)]
pub struct Known {
    /// The build as a derivation, as far as Nix tells of it: its inputs are not named.
    pub derivation: Derivation,
    /// What it asks for.
    pub options: Options,
}

/// Finds out what kind of build `request` is. Reads its structured attributes, where it has them.
///
/// # Errors
/// Attributes that cannot be read or make no sense.
pub fn find_out(request: &Request) -> Result<Known, KindError> {
    let attributes = match request.environment.contains_key(ATTRIBUTES_VARIABLE) {
        true => read_attributes(request)?,
        false => None,
    };
    let derivation = derivation(request, attributes.as_ref());
    let options = Options::read(&derivation, &request.store_dir)?;
    Ok(Known { derivation, options })
}

/// Nix has written them, and nobody else could: the directory is this build's own. Nothing, if it has written none: a derivation
/// may call a variable as it likes.
fn read_attributes(request: &Request) -> Result<Option<Map<String, Value>>, KindError> {
    let shown = || request.build_dir.join(ATTRIBUTES).display().to_string();
    let failed = |source: io::Error| KindError::Attributes { path: shown(), source };
    let open = || {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&request.build_dir, flags | OFlags::DIRECTORY, Mode::empty())?;
        let file = rustix::fs::openat(&directory, ATTRIBUTES, flags | OFlags::NONBLOCK, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        Ok::<_, rustix::io::Errno>((file, kind))
    };
    let (file, kind) = match open() {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        other => other.map_err(|errno| failed(errno.into()))?,
    };
    if kind != FileType::RegularFile {
        return Err(failed(io::Error::other("it is no regular file")));
    }
    let mut text = Vec::new();
    File::from(file).take(MAX_ATTRIBUTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_ATTRIBUTES {
        return Err(failed(io::Error::other(format!("it has more than {MAX_ATTRIBUTES} bytes"))));
    }
    match serde_json::from_slice(&text) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(KindError::Syntax { path: shown(), why: "it is another value".to_owned() }),
        Err(error) => Err(KindError::Syntax { path: shown(), why: error.to_string() }),
    }
}

/// The request as a derivation: what is asked for is read by the same code for all doors.
fn derivation(request: &Request, attributes: Option<&Map<String, Value>>) -> Derivation {
    let mut environment: BTreeMap<Vec<u8>, Vec<u8>> = request
        .environment
        .iter()
        .map(|(name, value)| (name.clone().into_bytes(), value.clone().into_bytes()))
        .collect();
    // Only what Nix has written as such counts, not a variable that a derivation has called so.
    environment.remove(STRUCTURED);
    if let Some(attributes) = attributes {
        environment.insert(STRUCTURED.to_vec(), Value::Object(attributes.clone()).to_string().into_bytes());
    }
    let mut outputs: BTreeMap<String, Output> =
        request.outputs.iter().map(|(name, path)| (name.clone(), Output::InputAddressed(path.clone()))).collect();
    if let Some(fixed) = fixed(request, attributes) {
        outputs.insert("out".to_owned(), fixed);
    }
    Derivation {
        name: name(request),
        outputs,
        input_derivations: BTreeMap::new(),
        input_sources: BTreeSet::new(),
        system: request.system.clone(),
        builder: request.builder.clone().into_bytes(),
        arguments: request.arguments.iter().map(|argument| argument.clone().into_bytes()).collect(),
        environment,
    }
}

/// The derivation's name, from an output's path: even a path that Nix has made up ends as the real one.
fn name(request: &Request) -> String {
    let named = request.outputs.iter().find_map(|(output, path)| {
        let end = output_path_name("", output);
        path.name().strip_suffix(&end).filter(|name| !name.is_empty())
    });
    named.unwrap_or("build").to_owned()
}

/// The one output, if its path proves that its contents are known beforehand.
///
/// The variable `NIX_OUTPUT_CHECKED` proves nothing, since derivations set what variables they like. But whoever could have
/// a path that follows from another build's hash would have broken SHA-256.
fn fixed(request: &Request, attributes: Option<&Map<String, Value>>) -> Option<Output> {
    let path = request.outputs.get("out").filter(|_| request.outputs.len() == 1)?;
    let text = |name: &str| match attributes {
        Some(attributes) => attributes.get(name).and_then(Value::as_str),
        None => request.environment.get(name).map(String::as_str),
    };
    let method = match text("outputHashMode") {
        None | Some("flat") => Method::Flat,
        Some("recursive" | "nar") => Method::Recursive,
        Some("text") => Method::Text,
        Some(_) => return None,
    };
    let algorithm: Option<Algorithm> = match text("outputHashAlgo") {
        None | Some("") => None,
        Some(name) => Some(name.parse().ok()?),
    };
    let hash = match text("outputHash")? {
        // Who does not know the hash yet writes none, and learns it from the failure.
        "" => {
            let algorithm = algorithm.unwrap_or(Algorithm::Sha256);
            let length = Hash::of(algorithm, b"").bytes().len();
            Hash::new(algorithm, &vec![0; length])?
        }
        text => Hash::parse(text, algorithm).ok()?,
    };
    let follows = fixed_output_path(&request.store_dir, path.name(), "out", method, &hash)?.ok()?;
    (follows == *path || is_built_again(request, path, &follows)).then(|| Output::Fixed {
        path: path.clone(),
        method,
        hash,
    })
}

/// Whether `path` is the one that Nix makes up to build again what lies at `known` (`--check`). It follows from `known` and from
/// the derivation's own path, which Nix does not tell; but the derivation is in the store. So this proves as much as `known`
/// itself would: Nix takes no derivation whose output it is not.
///
/// Source: `makeFallbackPath` in `src/libstore/unix/build/derivation-builder.cc` of Nix.
fn is_built_again(request: &Request, path: &StorePath, known: &StorePath) -> bool {
    let Some(zero) = Hash::new(Algorithm::Sha256, &[0; 32]) else { return false };
    let end = format!("-{}{EXTENSION}", known.name());
    let Ok(entries) = std::fs::read_dir(&request.real_store) else { return false };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.ends_with(&end)).any(
        |derivation| {
            let made_up = request.store_dir.make_path(&format!("rewrite:{derivation}:{known}"), &zero, known.name());
            made_up.is_ok_and(|made_up| made_up == *path)
        },
    )
}

#[cfg(test)]
mod tests;
