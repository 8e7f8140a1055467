//! Writing.

use serde_json::{Map, Value, json};

use super::{JsonError, Problem};
use crate::derivation::{Derivation, Output, aterm, json_text};
use crate::store_path::{StoreDir, StorePath};

/// The deepest structured attributes that are written as JSON in JSON: with what lies around them, they must not be deeper
/// than what is read.
const MAX_DEPTH: usize = 120;

/// The newest form, version 4, of several derivations at their paths.
///
/// # Errors
/// A builder, argument or variable that is not UTF-8.
pub fn write<'a>(all: impl IntoIterator<Item = (&'a StorePath, &'a Derivation)>) -> Result<Value, JsonError> {
    let mut derivations = Map::new();
    for (path, derivation) in all {
        derivations.insert(path.to_string(), write_one(derivation)?);
    }
    Ok(json!({ "version": 4, "derivations": derivations }))
}

/// The newest form of one derivation.
pub fn write_one(derivation: &Derivation) -> Result<Value, JsonError> {
    let outputs: Map<_, _> = derivation
        .outputs
        .iter()
        .map(|(name, output)| {
            let value = match output {
                Output::InputAddressed(path) => json!({ "path": path.as_str() }),
                Output::Fixed { method, hash, .. } => json!({ "method": method.name(), "hash": hash.sri() }),
                Output::Floating { method, algorithm } => {
                    json!({ "method": method.name(), "hashAlgo": algorithm.name() })
                }
                Output::Deferred => json!({}),
                Output::Impure { method, algorithm } => {
                    json!({ "method": method.name(), "hashAlgo": algorithm.name(), "impure": true })
                }
            };
            (name.clone(), value)
        })
        .collect();
    let drvs: Map<_, _> = derivation
        .input_derivations
        .iter()
        .map(|(path, outputs)| (path.to_string(), json!({ "outputs": outputs, "dynamicOutputs": {} })))
        .collect();
    let srcs: Vec<_> = derivation.input_sources.iter().map(StorePath::as_str).collect();
    let mut env = write_environment(derivation)?;
    let mut value = write_command(derivation)?;
    // Only where reading gives back the same bytes; otherwise the variable stays what it is.
    let attributes = env.get("__json").and_then(Value::as_str).and_then(|text| {
        let attributes = json_text::read_strict(text.as_bytes()).ok()?;
        let comes_back = json_text::depth(&attributes) <= MAX_DEPTH && json_text::write(&attributes) == text;
        (attributes.is_object() && comes_back).then_some(attributes)
    });
    if let Some(attributes) = attributes {
        env.remove("__json");
        value.insert("structuredAttrs".to_owned(), attributes);
    }
    value.insert("name".to_owned(), derivation.name.clone().into());
    value.insert("version".to_owned(), 4.into());
    value.insert("outputs".to_owned(), outputs.into());
    value.insert("inputs".to_owned(), json!({ "srcs": srcs, "drvs": drvs }));
    value.insert("env".to_owned(), env.into());
    Ok(value.into())
}

/// The oldest form, which Nix 2.8 writes and reads: a map from full paths.
///
/// # Errors
/// A builder, argument or variable that is not UTF-8.
pub fn write_old<'a>(
    all: impl IntoIterator<Item = (&'a StorePath, &'a Derivation)>,
    store_dir: &StoreDir,
) -> Result<Value, JsonError> {
    let mut map = Map::new();
    for (path, derivation) in all {
        let outputs: Map<_, _> = derivation
            .outputs
            .iter()
            .map(|(name, output)| {
                let mut value = Map::new();
                if let Some(path) = output.path() {
                    value.insert("path".to_owned(), store_dir.display(path).into());
                }
                let (method, hash) = match output {
                    Output::InputAddressed(_) | Output::Deferred => (None, None),
                    Output::Fixed { method, hash, .. } => (Some((method, hash.algorithm())), Some(hash.base16())),
                    Output::Floating { method, algorithm } => (Some((method, *algorithm)), None),
                    Output::Impure { method, algorithm } => {
                        value.insert("impure".to_owned(), true.into());
                        (Some((method, *algorithm)), None)
                    }
                };
                if let Some((method, algorithm)) = method {
                    value.insert("hashAlgo".to_owned(), aterm::written_method(*method, algorithm).into());
                }
                if let Some(hash) = hash {
                    value.insert("hash".to_owned(), hash.into());
                }
                (name.clone(), value.into())
            })
            .collect();
        let drvs: Map<_, _> = derivation
            .input_derivations
            .iter()
            .map(|(path, outputs)| (store_dir.display(path), json!(outputs)))
            .collect();
        let srcs: Vec<_> = derivation.input_sources.iter().map(|path| store_dir.display(path)).collect();
        let mut value = write_command(derivation)?;
        value.insert("outputs".to_owned(), outputs.into());
        value.insert("inputSrcs".to_owned(), srcs.into());
        value.insert("inputDrvs".to_owned(), drvs.into());
        value.insert("env".to_owned(), write_environment(derivation)?.into());
        map.insert(store_dir.display(path), value.into());
    }
    Ok(map.into())
}

fn write_command(derivation: &Derivation) -> Result<Map<String, Value>, JsonError> {
    let place = |what: &str| format!("derivation ‘{}’, {what}", derivation.name);
    let mut value = Map::new();
    value.insert("system".to_owned(), derivation.system.clone().into());
    value.insert("builder".to_owned(), written_text(&place("builder"), &derivation.builder)?.into());
    let arguments: Result<Vec<_>, JsonError> =
        derivation.arguments.iter().map(|argument| written_text(&place("arguments"), argument)).collect();
    value.insert("args".to_owned(), arguments?.into());
    Ok(value)
}

fn write_environment(derivation: &Derivation) -> Result<Map<String, Value>, JsonError> {
    derivation
        .environment
        .iter()
        .map(|(name, value)| {
            let place = format!("derivation ‘{}’, variable ‘{}’", derivation.name, String::from_utf8_lossy(name));
            Ok((written_text(&place, name)?.to_owned(), written_text(&place, value)?.into()))
        })
        .collect()
}

fn written_text<'a>(place: &str, bytes: &'a [u8]) -> Result<&'a str, JsonError> {
    std::str::from_utf8(bytes).map_err(|_| JsonError { place: place.to_owned(), problem: Problem::NotUtf8 })
}
