//! The shapes that both protocols share.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::time::{SystemTime, UNIX_EPOCH};

use super::source::{LONGEST_PATH, LONGEST_STRING};
use super::{Message, Source, WireError};
use crate::build::graph::Wanted;
use crate::build::result::BuildResult;
use crate::derivation::{Derivation, EXTENSION, aterm};
use crate::hash::{Algorithm, Hash};
use crate::store::PathInfo;
use crate::store_path::{StoreDir, StorePath};

/// What is known of a path, as a client says it: to be believed as far as the client is.
pub type ReadInfo = PathInfo;

/// Reads what is known of `path`, which was read before it.
///
/// # Errors
/// What cannot stand there, and what the stream says.
pub fn unkeyed_info<R: BufRead>(
    source: &mut Source<R>,
    dir: &StoreDir,
    path: StorePath,
) -> Result<ReadInfo, WireError> {
    let deriver = source.maybe_path("a deriver", dir)?;
    let hash = source.text("the hash of an archive", LONGEST_PATH)?;
    // Some clients put the function's name in front.
    let digits = hash.strip_prefix("sha256:").unwrap_or(&hash);
    let nar_hash = Hash::from_digits(Algorithm::Sha256, digits)
        .map_err(|error| WireError::invalid("the hash of an archive", error))?;
    let references = source.paths("a reference", dir)?;
    let registration_time = source.number("a registration time")?;
    let nar_size = source.number("the size of an archive")?;
    let ultimate = source.truth("whether a path was built here")?;
    let signatures = source.texts("a signature")?;
    let content_address = source.text("a content address", LONGEST_PATH)?;
    if let Some(bad) = signatures.iter().find(|text| text.contains(char::is_whitespace)) {
        return Err(WireError::invalid("a signature", format!("‘{}’ has a blank", bad.escape_debug())));
    }
    Ok(PathInfo {
        path,
        nar_hash,
        nar_size,
        references,
        deriver,
        registration_time: i64::try_from(registration_time).unwrap_or(0),
        ultimate,
        signatures: signatures.into_iter().filter(|text| !text.is_empty()).collect(),
        content_address: Some(content_address).filter(|text| !text.is_empty()),
    })
}

/// Writes what is known of a path, without its name.
pub fn write_unkeyed_info(message: &mut Message, dir: &StoreDir, info: &PathInfo) {
    message
        .maybe_path(dir, info.deriver.as_ref())
        .string(info.nar_hash.base16())
        .paths(dir, &info.references)
        .number(u64::try_from(info.registration_time).unwrap_or(0))
        .number(info.nar_size)
        .truth(info.ultimate)
        .strings(&info.signatures)
        .string(info.content_address.as_deref().unwrap_or_default());
}

/// Writes a path and what is known of it.
pub fn write_info(message: &mut Message, dir: &StoreDir, info: &PathInfo) {
    message.path(dir, &info.path);
    write_unkeyed_info(message, dir, info);
}

/// A derivation whose inputs are paths only, with the path that it is said to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicDerivation {
    /// Its path. The derivation itself need not be in any store.
    pub path: StorePath,
    /// What is to be built.
    pub derivation: Derivation,
}

/// Reads the path of a derivation and the derivation.
///
/// # Errors
/// What no derivation has, and what the stream says.
pub fn basic_derivation<R: BufRead>(source: &mut Source<R>, dir: &StoreDir) -> Result<BasicDerivation, WireError> {
    let path = source.path("the path of a derivation", dir)?;
    let name = path
        .name()
        .strip_suffix(EXTENSION)
        .ok_or_else(|| WireError::invalid("the path of a derivation", "its name does not end in .drv"))?
        .to_owned();
    let mut outputs: Vec<[String; 4]> = source.list("an output", |source| {
        let mut field = || source.text("an output", LONGEST_PATH);
        Ok([field()?, field()?, field()?, field()?])
    })?;
    let input_sources = source.paths("an input", dir)?;
    let system = source.text("a system", LONGEST_PATH)?;
    let builder = source.bytes("a builder", LONGEST_STRING)?;
    let arguments = source.list("an argument", |source| source.bytes("an argument", LONGEST_STRING))?;
    let environment = source.list("a variable", |source| {
        Ok((source.bytes("a variable", LONGEST_STRING)?, source.bytes("a variable", LONGEST_STRING)?))
    })?;
    // The outputs' fields are those of a `.drv` file, so it is for the reader of those to say what they mean.
    outputs.sort();
    if outputs.iter().flatten().any(|field| field.contains(['"', '\\', '\n', '\r', '\t'])) {
        return Err(WireError::invalid("an output", "it has a character that none can have"));
    }
    let listed: Vec<_> = outputs.iter().map(|[a, b, c, d]| format!("(\"{a}\",\"{b}\",\"{c}\",\"{d}\")")).collect();
    let term = format!("Derive([{}],[],[],\"\",\"\",[],[])", listed.join(","));
    let read = aterm::read(term.as_bytes(), &name, dir).map_err(|error| WireError::invalid("a derivation", error))?;
    let environment: BTreeMap<_, _> = environment.into_iter().collect();
    Ok(BasicDerivation {
        path,
        derivation: Derivation { input_sources, system, builder, arguments, environment, ..read },
    })
}

/// What a client wants to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A path as it is.
    Path(StorePath),
    /// Outputs of a derivation.
    Built(Wanted),
}

/// Understands one wish: a path, or a derivation with `!` and the names of outputs, parted by commas, or `*` for all.
///
/// # Errors
/// What is no such thing.
pub fn wanted(text: &str, dir: &StoreDir) -> Result<Asked, WireError> {
    let invalid = |why: &dyn std::fmt::Display| {
        WireError::invalid("what is to be built", format!("‘{}’: {why}", text.escape_debug()))
    };
    let Some((path, outputs)) = text.split_once('!') else {
        return Ok(Asked::Path(dir.parse(text).map_err(|error| invalid(&error))?));
    };
    let derivation = dir.parse(path).map_err(|error| invalid(&error))?;
    if !derivation.is_derivation() {
        return Err(invalid(&"outputs are wanted of what is no derivation"));
    }
    let outputs: BTreeSet<String> = match outputs {
        "*" | "" => BTreeSet::new(),
        names => names.split(',').map(str::to_owned).collect(),
    };
    if outputs.iter().any(|name| name.is_empty() || name.contains('!')) {
        return Err(invalid(&"the names of outputs are not understood"));
    }
    Ok(Asked::Built(Wanted { derivation, outputs }))
}

/// What a result has in a protocol of some version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultForm {
    /// Whether the time of the processor follows (worker protocol 1.37).
    pub processor_time: bool,
    /// Whether outputs are listed (worker protocol 1.28, serve protocol 2.6).
    pub outputs: bool,
    /// Whether they are listed by name and path alone (serve protocol 2.8).
    pub plain_outputs: bool,
}

/// Writes a result. `message` is what a person is told of a failure.
pub fn build_result(into: &mut Message, dir: &StoreDir, result: &BuildResult, message: &str, form: ResultForm) {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (start, stop) = result
        .times
        .map_or((0, 0), |(start, took)| (seconds(start), seconds(start.checked_add(took).unwrap_or(start))));
    into.number(result.status.wire())
        .string(message)
        .number(u64::from(result.times.is_some()))
        .truth(result.status == crate::build::result::Status::NotDeterministic)
        .number(start)
        .number(stop);
    if form.processor_time {
        let times = result.account.as_ref().map(|account| [account.user_seconds, account.system_seconds]);
        for seconds in times.map_or([None, None], |times| times.map(Some)) {
            match seconds {
                // A number of microseconds with a sign, which a time has not.
                Some(seconds) => into.number(1).number((seconds * 1e6) as u64),
                None => into.number(0),
            };
        }
    }
    if !form.outputs {
        return;
    }
    into.number(result.outputs.len() as u64);
    for (name, path) in &result.outputs {
        if form.plain_outputs {
            into.string(name).path(dir, path).number(0);
            continue;
        }
        // The hash of the derivation matters for content-addressed ones only; newer Nixes too send zeros.
        let id = format!("sha256:{:064}!{name}", 0);
        let realisation =
            serde_json::json!({"id": id, "outPath": path.as_str(), "signatures": [], "dependentRealisations": {}});
        into.string(&id).string(realisation.to_string());
    }
}
