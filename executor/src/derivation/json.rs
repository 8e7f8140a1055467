//! The JSON forms of derivations, as `nix derivation show` writes them and `nix derivation add` reads them.
//!
//! | version | Nix | differences |
//! |---|---|---|
//! | 1 (not written down) | to 2.15 | no name; `hashAlgo` such as `r:sha256`; `inputDrvs` as lists of outputs |
//! | 2 (not written down) | to 2.31 | `name`; `method` apart from `hashAlgo`; `inputDrvs` as objects with `dynamicOutputs` |
//! | 3 | 2.32 | `version`; store paths without their directory; `structuredAttrs` apart from `env` |
//! | 4 | since 2.33 | `inputs` with `srcs` and `drvs`; `hash` in SRI form; all below `derivations` |
//!
//! Source: `doc/manual/source/protocols/json/` and `src/libstore/derivations.cc` of Nix.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{Derivation, EXTENSION, InvalidDerivation, Method, Output, aterm, fixed_output_path, json_text};
use crate::hash::{Algorithm, Hash, HashError};
use crate::store_path::{StoreDir, StorePath, StorePathError};

/// The longest JSON text that is read, in bytes: a whole graph may be in one.
pub const MAX_LEN: usize = 256 << 20;

/// A derivation as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The path that the text gives for it, where it gives one. Nothing has compared it with the derivation.
    pub path: Option<StorePath>,
    /// The derivation. Its outputs are [`Output::Deferred`] where the text has no paths.
    pub derivation: Derivation,
}

/// JSON that is no derivation, and where.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct JsonError {
    /// The key, with those it lies in, or the derivation.
    pub place: String,
    /// What.
    pub problem: Problem,
}

/// What is wrong at one place of a JSON text.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// No JSON at all, or a key twice.
    #[error(transparent)]
    Syntax(#[from] serde_json::Error),
    /// Longer than [`MAX_LEN`].
    #[error("it is longer than {} MiB", MAX_LEN >> 20)]
    TooLong,
    /// A key that no version has here.
    #[error("the key ‘{0}’ is not known here")]
    UnknownKey(String),
    /// A key that must be there.
    #[error("the key ‘{0}’ is missing")]
    MissingKey(&'static str),
    /// Two keys that say the same in two ways.
    #[error("the keys ‘{0}’ and ‘{1}’ cannot be together")]
    BothKeys(&'static str, &'static str),
    /// A value of another type.
    #[error("expected {expected}, found {found}")]
    Type {
        /// What type.
        expected: &'static str,
        /// What was there, or its type.
        found: String,
    },
    /// A version that is not read.
    #[error("version {0} of the JSON form is not known: 3, 4 and the older ones without a version are read")]
    Version(String),
    /// A path of a derivation that does not end in `.drv`.
    #[error("‘{0}’ is not the path of a derivation: it does not end in .drv")]
    NotADerivation(StorePath),
    /// The derivation's path has another name than the derivation.
    #[error("the derivation is called ‘{name}’, but its path is ‘{path}’")]
    Name {
        /// The name.
        name: String,
        /// The path.
        path: StorePath,
    },
    /// Outputs of derivations that builds make.
    #[error(
        "this depends on a derivation that is made by a build (dynamicOutputs); anchorhold does not build these yet"
    )]
    Dynamic,
    /// A path of a fixed output that is not the computed one.
    #[error("the path ‘{path}’ is not that of the fixed output, which is ‘{should}’")]
    FixedPath {
        /// The one that was read.
        path: StorePath,
        /// The one that follows from the hash.
        should: StorePath,
    },
    /// Text outputs have SHA-256 hashes only.
    #[error("a text is hashed with sha256 only")]
    TextHash,
    /// A path for an output whose path depends on what is built.
    #[error("a path cannot be given for an output whose hash is not known")]
    UnknowablePath,
    /// A way of hashing that is not built.
    #[error("unknown method ‘{0}’: flat, nar and text are known")]
    Method(String),
    /// The same thing twice in a list.
    #[error("‘{0}’ is listed twice")]
    Duplicate(String),
    /// No path in the store.
    #[error(transparent)]
    Path(#[from] StorePathError),
    /// No hash.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// In the spelling of older versions.
    #[error(transparent)]
    Written(#[from] aterm::Problem),
    /// Something in the derivation as a whole.
    #[error(transparent)]
    Invalid(#[from] InvalidDerivation),
    /// JSON holds text only.
    #[error("this is not UTF-8, so that JSON cannot hold it; the .drv file can")]
    NotUtf8,
}

type Read<T> = Result<T, JsonError>;

fn fail<T>(place: &str, problem: impl Into<Problem>) -> Read<T> {
    Err(JsonError { place: place.to_owned(), problem: problem.into() })
}

trait InPlace<T> {
    fn at(self, place: &str) -> Read<T>;
}

impl<T, E: Into<Problem>> InPlace<T> for Result<T, E> {
    fn at(self, place: &str) -> Read<T> {
        self.map_err(|error| JsonError { place: place.to_owned(), problem: error.into() })
    }
}

/// The keys of an object, each to be taken once, so that what is left is unknown.
struct Keys {
    place: String,
    map: Map<String, Value>,
}

impl Keys {
    fn new(place: &str, value: Value) -> Read<Self> {
        match value {
            Value::Object(map) => Ok(Self { place: place.to_owned(), map }),
            other => fail(place, wrong_type("an object", &other)),
        }
    }

    fn place(&self, key: &str) -> String {
        format!("{}, key ‘{key}’", self.place)
    }

    /// The value, if it is there and not null.
    fn optional(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    fn required(&mut self, key: &'static str) -> Read<Value> {
        match self.map.remove(key) {
            Some(value) => Ok(value),
            None => fail(&self.place, Problem::MissingKey(key)),
        }
    }

    fn text(&mut self, key: &'static str) -> Read<String> {
        let value = self.required(key)?;
        text(&self.place(key), value)
    }

    fn optional_text(&mut self, key: &str) -> Read<Option<String>> {
        self.optional(key).map(|value| text(&self.place(key), value)).transpose()
    }

    fn end(self) -> Read<()> {
        match self.map.into_iter().next() {
            Some((key, _)) => fail(&self.place, Problem::UnknownKey(key)),
            None => Ok(()),
        }
    }
}

fn wrong_type(expected: &'static str, found: &Value) -> Problem {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    Problem::Type { expected, found: found.to_owned() }
}

fn text(place: &str, value: Value) -> Read<String> {
    match value {
        Value::String(text) => Ok(text),
        other => fail(place, wrong_type("a string", &other)),
    }
}

fn texts(place: &str, value: Value) -> Read<Vec<String>> {
    match value {
        Value::Array(all) => all.into_iter().map(|value| text(place, value)).collect(),
        other => fail(place, wrong_type("a list of strings", &other)),
    }
}

fn distinct<T: Ord>(place: &str, all: impl IntoIterator<Item = T>, show: impl Fn(&T) -> String) -> Read<BTreeSet<T>> {
    let mut set = BTreeSet::new();
    for this in all {
        let shown = show(&this);
        if !set.insert(this) {
            return fail(place, Problem::Duplicate(shown));
        }
    }
    Ok(set)
}

/// Reads one derivation, a map from paths to derivations, or the newer object around such a map, in any known version.
///
/// # Errors
/// No JSON, unknown or missing keys, values of another type, derivations that cannot be.
pub fn read(text: &[u8], store_dir: &StoreDir) -> Result<Vec<Named>, JsonError> {
    const TOP: &str = "the JSON text";
    if text.len() > MAX_LEN {
        return fail(TOP, Problem::TooLong);
    }
    let mut keys = Keys::new(TOP, json_text::read_strict(text).at(TOP)?)?;
    let reader = Reader { store_dir };
    if keys.map.contains_key("builder") || keys.map.contains_key("outputs") {
        keys.place = "the derivation".to_owned();
        return Ok(vec![Named { path: None, derivation: reader.derivation("the derivation", None, keys)? }]);
    }
    let mut outer = None;
    if let Some(all) = keys.map.remove("derivations") {
        outer = version(&mut keys)?;
        keys.end()?;
        keys = Keys::new("key ‘derivations’", all)?;
    }
    let mut read = Vec::new();
    for (path_text, value) in keys.map {
        let place = format!("derivation ‘{path_text}’");
        let path =
            if path_text.starts_with('/') { store_dir.parse(&path_text) } else { path_text.parse() }.at(&place)?;
        let mut keys = Keys::new(&place, value)?;
        if let Some(outer) = outer {
            keys.map.entry("version").or_insert_with(|| outer.into());
        }
        read.push(Named { path: Some(path.clone()), derivation: reader.derivation(&place, Some(&path), keys)? });
    }
    Ok(read)
}

fn version(keys: &mut Keys) -> Read<Option<u64>> {
    match keys.optional("version") {
        None => Ok(None),
        Some(value) => match value.as_u64() {
            Some(version @ (3 | 4)) => Ok(Some(version)),
            _ => fail(&keys.place, Problem::Version(value.to_string())),
        },
    }
}

struct Reader<'a> {
    store_dir: &'a StoreDir,
}

impl Reader<'_> {
    fn derivation(&self, place: &str, path: Option<&StorePath>, mut keys: Keys) -> Read<Derivation> {
        let full_paths = version(&mut keys)?.is_none();
        let name = self.name(path, &mut keys)?;

        let mut outputs = BTreeMap::new();
        let all = keys.required("outputs")?;
        for (output, value) in Keys::new(&keys.place("outputs"), all)?.map {
            let place = format!("{place}, output ‘{output}’");
            super::check_output_name(&name, &output).at(&place)?;
            let value = self.output(&place, &name, &output, value, full_paths)?;
            outputs.insert(output, value);
        }

        let (sources, derivations) = match keys.optional("inputs") {
            None => (keys.required("inputSrcs")?, keys.required("inputDrvs")?),
            Some(inputs) => {
                for old in ["inputSrcs", "inputDrvs"] {
                    if keys.map.contains_key(old) {
                        return fail(place, Problem::BothKeys("inputs", old));
                    }
                }
                let mut inputs = Keys::new(&keys.place("inputs"), inputs)?;
                let both = (inputs.required("srcs")?, inputs.required("drvs")?);
                inputs.end()?;
                both
            }
        };
        let input_sources = self.sources(&format!("{place}, input sources"), sources, full_paths)?;
        let mut input_derivations = BTreeMap::new();
        for (path, value) in Keys::new(&format!("{place}, input derivations"), derivations)?.map {
            let place = format!("{place}, input derivation ‘{path}’");
            let path = self.path(&place, &path, full_paths)?;
            input_derivations.insert(path, wanted_outputs(&place, value)?);
        }

        let system = match (keys.optional("system"), keys.optional("platform")) {
            (Some(_), Some(_)) => return fail(place, Problem::BothKeys("system", "platform")),
            (Some(system), None) | (None, Some(system)) => text(&keys.place("system"), system)?,
            (None, None) => return fail(place, Problem::MissingKey("system")),
        };
        let builder = keys.text("builder")?.into_bytes();
        let arguments = keys.required("args")?;
        let arguments = texts(&keys.place("args"), arguments)?.into_iter().map(String::into_bytes).collect();
        let mut environment = BTreeMap::new();
        let variables = keys.required("env")?;
        for (name, value) in Keys::new(&keys.place("env"), variables)?.map {
            let value = text(&format!("{place}, variable ‘{name}’"), value)?;
            environment.insert(name.into_bytes(), value.into_bytes());
        }
        if let Some(attributes) = keys.optional("structuredAttrs") {
            if !attributes.is_object() {
                return fail(&keys.place("structuredAttrs"), wrong_type("an object", &attributes));
            }
            if environment.contains_key(b"__json".as_slice()) {
                return fail(place, Problem::BothKeys("structuredAttrs", "__json"));
            }
            environment.insert(b"__json".to_vec(), json_text::write(&attributes).into_bytes());
        }
        keys.end()?;

        let derivation =
            Derivation { name, outputs, input_derivations, input_sources, system, builder, arguments, environment };
        derivation.kind().at(place)?;
        Ok(derivation)
    }

    fn name(&self, path: Option<&StorePath>, keys: &mut Keys) -> Read<String> {
        let name = keys.optional_text("name")?;
        let Some(path) = path else {
            return match name {
                Some(name) => super::check_derivation_name(&name).at(&keys.place).map(|()| name),
                None => fail(&keys.place, Problem::MissingKey("name")),
            };
        };
        let Some(from_path) = path.name().strip_suffix(EXTENSION) else {
            return fail(&keys.place, Problem::NotADerivation(path.clone()));
        };
        match name {
            Some(name) if name != from_path => fail(&keys.place, Problem::Name { name, path: path.clone() }),
            _ => Ok(from_path.to_owned()),
        }
    }

    fn path(&self, place: &str, text: &str, full: bool) -> Read<StorePath> {
        if full { self.store_dir.parse(text) } else { text.parse() }.at(place)
    }

    fn sources(&self, place: &str, value: Value, full_paths: bool) -> Read<BTreeSet<StorePath>> {
        let paths: Read<Vec<_>> =
            texts(place, value)?.into_iter().map(|text| self.path(place, &text, full_paths)).collect();
        distinct(place, paths?, StorePath::to_string)
    }

    fn output(&self, place: &str, derivation: &str, output: &str, value: Value, full_paths: bool) -> Read<Output> {
        let mut keys = Keys::new(place, value)?;
        let path = match keys.optional_text("path")?.filter(|path| !path.is_empty()) {
            Some(path) => Some(self.path(place, &path, full_paths)?),
            None => None,
        };
        let method_text = keys.optional_text("method")?;
        let algorithm_text = keys.optional_text("hashAlgo")?.filter(|text| !text.is_empty());
        let hash_value = keys.optional("hash").filter(|value| value.as_str() != Some(""));
        let impure = match keys.optional("impure") {
            None => false,
            Some(Value::Bool(impure)) => impure,
            Some(other) => return fail(&keys.place("impure"), wrong_type("a boolean", &other)),
        };
        keys.end()?;

        let (mut method, mut algorithm) = (Method::Flat, None);
        if let Some(text) = algorithm_text {
            let (read_method, read_algorithm) = aterm::parse_method(&text, output).at(place)?;
            if read_method != Method::Flat && method_text.is_some() {
                return fail(place, Problem::Method(text));
            }
            (method, algorithm) = (read_method, Some(read_algorithm));
        }
        let has_method = method_text.is_some();
        if let Some(text) = method_text {
            method = match text.as_str() {
                "flat" => Method::Flat,
                "nar" | "recursive" => Method::Recursive,
                "text" => Method::Text,
                _ => return fail(place, Problem::Method(text)),
            };
        }
        match (hash_value, algorithm) {
            (Some(value), algorithm) => {
                let hash = read_hash(place, value, algorithm)?;
                let should = match fixed_output_path(self.store_dir, derivation, output, method, &hash) {
                    Some(path) => path.at(place)?,
                    None => return fail(place, Problem::TextHash),
                };
                match path {
                    Some(path) if path != should => fail(place, Problem::FixedPath { path, should }),
                    _ => Ok(Output::Fixed { path: should, method, hash }),
                }
            }
            (None, Some(_)) if path.is_some() => fail(place, Problem::UnknowablePath),
            (None, Some(algorithm)) if impure => Ok(Output::Impure { method, algorithm }),
            (None, Some(algorithm)) => Ok(Output::Floating { method, algorithm }),
            (None, None) if has_method || impure => fail(place, Problem::MissingKey("hashAlgo")),
            (None, None) => Ok(path.map_or(Output::Deferred, Output::InputAddressed)),
        }
    }
}

/// A hash in any text form, or as the object with `algorithm`, `format` and `hash` that Nix wrote for some time.
fn read_hash(place: &str, value: Value, algorithm: Option<Algorithm>) -> Read<Hash> {
    let (digits, algorithm) = match value {
        Value::String(text) => (text, algorithm),
        Value::Object(_) => {
            let mut keys = Keys::new(&format!("{place}, key ‘hash’"), value)?;
            let named: Algorithm = keys.text("algorithm")?.parse().at(place)?;
            let digits = keys.text("hash")?;
            // The three formats have different lengths.
            keys.optional_text("format")?;
            keys.end()?;
            if algorithm.is_some_and(|algorithm| algorithm != named) {
                return fail(place, HashError::Digits { text: digits, algorithm: named });
            }
            (digits, Some(named))
        }
        other => return fail(place, wrong_type("a hash", &other)),
    };
    Hash::parse(&digits, algorithm).at(place)
}

fn wanted_outputs(place: &str, value: Value) -> Read<BTreeSet<String>> {
    let list = match value {
        Value::Array(_) => value,
        _ => {
            let mut keys = Keys::new(place, value)?;
            let list = keys.required("outputs")?;
            if keys.optional("dynamicOutputs").is_some_and(|all| all.as_object().is_none_or(|all| !all.is_empty())) {
                return fail(place, Problem::Dynamic);
            }
            keys.end()?;
            list
        }
    };
    distinct(place, texts(place, list)?, String::clone)
}

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
        (attributes.is_object() && json_text::write(&attributes) == text).then_some(attributes)
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

fn write_command(derivation: &Derivation) -> Read<Map<String, Value>> {
    let place = |what: &str| format!("derivation ‘{}’, {what}", derivation.name);
    let mut value = Map::new();
    value.insert("system".to_owned(), derivation.system.clone().into());
    value.insert("builder".to_owned(), written_text(&place("builder"), &derivation.builder)?.into());
    let arguments: Read<Vec<_>> =
        derivation.arguments.iter().map(|argument| written_text(&place("arguments"), argument)).collect();
    value.insert("args".to_owned(), arguments?.into());
    Ok(value)
}

fn write_environment(derivation: &Derivation) -> Read<Map<String, Value>> {
    derivation
        .environment
        .iter()
        .map(|(name, value)| {
            let place = format!("derivation ‘{}’, variable ‘{}’", derivation.name, String::from_utf8_lossy(name));
            Ok((written_text(&place, name)?.to_owned(), written_text(&place, value)?.into()))
        })
        .collect()
}

fn written_text<'a>(place: &str, bytes: &'a [u8]) -> Read<&'a str> {
    std::str::from_utf8(bytes).or_else(|_| fail(place, Problem::NotUtf8))
}

#[cfg(test)]
mod tests {
    use super::super::aterm;
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";
    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    const HELLO_SRI: &str = "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";

    fn read_value(value: &Value) -> Result<Vec<Named>, JsonError> {
        read(value.to_string().as_bytes(), &StoreDir::default())
    }

    fn read_first(value: &Value) -> Derivation {
        read_value(value).unwrap().remove(0).derivation
    }

    /// The same derivation as Nix 2.35, 2.32 and 2.20 write it.
    fn versions() -> [Value; 3] {
        let common = json!({
            "name": "a", "system": "x86_64-linux", "builder": "/bin/sh", "args": ["-c", "true"], "env": {"out": "x"},
        });
        let with = |more: Value| {
            let mut all = common.clone();
            let all_keys = all.as_object_mut().unwrap();
            all_keys.extend(more.as_object().unwrap().clone());
            all
        };
        let (src, drv) = (format!("{HASH}-src"), format!("{HASH}-in.drv"));
        let dynamic = json!({"outputs": ["dev", "out"], "dynamicOutputs": {}});
        let path = StoreDir::default().fixed_path("a", true, &HELLO_SRI.parse().unwrap()).unwrap();
        [
            with(json!({
                "version": 4,
                "outputs": {"out": {"method": "nar", "hash": HELLO_SRI}},
                "inputs": {"srcs": [src], "drvs": {drv.clone(): dynamic}},
            })),
            with(json!({
                "version": 3,
                "outputs": {"out": {"method": "nar", "hashAlgo": "sha256", "hash": HELLO, "path": path.as_str()}},
                "inputSrcs": [src], "inputDrvs": {drv.clone(): dynamic},
            })),
            with(json!({
                "outputs": {"out": {"path": format!("/nix/store/{path}"), "hashAlgo": "r:sha256", "hash": HELLO}},
                "inputSrcs": [format!("/nix/store/{src}")],
                "inputDrvs": {format!("/nix/store/{drv}"): ["dev", "out"]},
            })),
        ]
    }

    #[test]
    fn all_versions_say_the_same() {
        let [four, three, old] = versions();
        let derivation = read_first(&four);
        assert_eq!(derivation.input_derivations.values().next().unwrap().len(), 2);
        assert_eq!(read_first(&three), derivation);
        assert_eq!(read_first(&old), derivation);
        let mut hash_object = four.clone();
        hash_object["outputs"]["out"]["hash"] =
            json!({"algorithm": "sha256", "format": "base64", "hash": HELLO_SRI.split_once('-').unwrap().1});
        assert_eq!(read_first(&hash_object), derivation);
        assert_eq!(write_one(&derivation).unwrap(), four);
    }

    #[test]
    fn paths_are_taken_from_the_maps_around() {
        let [four, _, mut old] = versions();
        old.as_object_mut().unwrap().remove("name");
        let path = format!("{HASH}-a.drv");
        let expected = Named { path: Some(path.parse().unwrap()), derivation: read_first(&four) };
        let new = json!({"version": 4, "derivations": {path.clone(): four}});
        assert_eq!(read_value(&new).unwrap(), std::slice::from_ref(&expected));
        let old = json!({format!("/nix/store/{path}"): old});
        assert_eq!(read_value(&old).unwrap(), std::slice::from_ref(&expected));
        assert_eq!(
            read_value(&write([(expected.path.as_ref().unwrap(), &expected.derivation)]).unwrap()).unwrap(),
            [expected]
        );
    }

    #[test]
    fn structured_attributes_become_their_variable() {
        let [mut four, ..] = versions();
        four["structuredAttrs"] = json!({"b": [1, 2.5, "ü\n"], "a": {}});
        let derivation = read_first(&four);
        assert_eq!(derivation.variable("__json"), Some(r#"{"a":{},"b":[1,2.5,"ü\n"]}"#.as_bytes()));
        assert_eq!(write_one(&derivation).unwrap(), four);
        // A spelling that Nix would not write must not get lost, since it is hashed.
        let mut spaced = derivation;
        spaced.environment.insert(b"__json".to_vec(), b"{ }".to_vec());
        assert_eq!(read_first(&write_one(&spaced).unwrap()), spaced);
    }

    #[test]
    fn what_is_no_derivation_says_what_and_where() {
        let [four, three, old] = versions();
        let change = |base: &Value, pointer: &str, value: Value| {
            let mut changed = base.clone();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            changed.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.to_owned(), value);
            changed
        };
        let without = |base: &Value, key: &str| {
            let mut changed = base.clone();
            changed.as_object_mut().unwrap().remove(key);
            changed
        };
        for (value, part) in [
            (json!(7), "the JSON text: expected an object, found a number"),
            (change(&four, "/colour", json!(1)), "the derivation: the key ‘colour’ is not known here"),
            (change(&four, "/options", json!({})), "the key ‘options’ is not known"),
            (change(&four, "/outputs/out/colour", json!(1)), "output ‘out’: the key ‘colour’"),
            (change(&four, "/inputs/colour", json!(1)), "key ‘inputs’: the key ‘colour’"),
            (change(&four, "/inputSrcs", json!([])), "‘inputs’ and ‘inputSrcs’ cannot be together"),
            (change(&four, "/version", json!(5)), "version 5 of the JSON form"),
            (change(&four, "/builder", json!(5)), "key ‘builder’: expected a string, found a number"),
            (change(&four, "/env/a", json!(true)), "variable ‘a’: expected a string, found a boolean"),
            (change(&four, "/args", json!([null])), "key ‘args’: expected a string, found null"),
            (change(&four, "/name", json!("a/b")), "name ‘a/b’ is not valid"),
            (change(&four, "/outputs", json!({})), "has no outputs"),
            (change(&four, "/outputs", json!({"a/b": {}})), "the invalid name ‘a/b’"),
            (change(&four, "/outputs/out/path", json!(format!("{HASH}-a"))), "is not that of the fixed output"),
            (change(&four, "/outputs/out/method", json!("git")), "unknown method ‘git’"),
            (change(&four, "/outputs/out/hash", json!("sha256-x")), "not a sha256 hash"),
            (change(&four, "/inputs/srcs", json!([format!("/nix/store/{HASH}-a")])), "input sources: ‘/nix/store/"),
            (change(&four, "/inputs/srcs", json!([format!("{HASH}-a"), format!("{HASH}-a")])), "is listed twice"),
            (
                change(
                    &four,
                    "/inputs/drvs",
                    json!({format!("{HASH}-a.drv"): {"outputs": [], "dynamicOutputs": {"a": 1}}}),
                ),
                "made by a build",
            ),
            (change(&four, "/inputs/drvs", json!({format!("{HASH}-a"): ["out"]})), "does not end in .drv"),
            (change(&three, "/outputs", json!({"out": {"path": "/etc/passwd"}})), "‘/etc/passwd’ does not begin with"),
            (change(&old, "/outputs", json!({"out": {"path": "/etc/passwd"}})), "‘/etc/passwd’ is not in the store"),
            (without(&four, "name"), "the key ‘name’ is missing"),
            (without(&four, "system"), "the key ‘system’ is missing"),
            (without(&three, "inputDrvs"), "the key ‘inputDrvs’ is missing"),
            (json!({format!("{HASH}-b.drv"): four}), "is called ‘a’, but its path is"),
            (json!({format!("{HASH}-a"): four}), "does not end in .drv"),
            (json!({"version": 4, "derivations": {}, "x": 1}), "the key ‘x’ is not known"),
        ] {
            let error = read_value(&value).unwrap_err().to_string();
            assert!(error.contains(part), "{value}: {error}");
        }
        let twice = four.to_string().replace(r#""outputs":{"#, r#""outputs":{"out":{},"#);
        let error = read(twice.as_bytes(), &StoreDir::default()).unwrap_err().to_string();
        assert!(error.contains("the key ‘out’ is there twice"), "{error}");
        assert!(read("[".repeat(100_000).as_bytes(), &StoreDir::default()).is_err());
    }

    proptest! {
        /// Wherever all is text; fixed paths of the generated derivations are not the computed ones, so those stay out.
        #[test]
        fn both_forms_are_read_back(mut derivation in aterm::tests::any_derivation()) {
            let store_dir = StoreDir::default();
            prop_assume!(derivation.fixed_output().is_none());
            let printable = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned().into_bytes();
            derivation.builder = printable(&derivation.builder);
            derivation.arguments.iter_mut().for_each(|argument| *argument = printable(argument));
            derivation.environment =
                derivation.environment.iter().map(|(name, value)| (printable(name), printable(value))).collect();
            let path = derivation.store_path(&store_dir).unwrap();
            let named = [Named { path: Some(path.clone()), derivation: derivation.clone() }];
            for value in [write([(&path, &derivation)]).unwrap(), write_old([(&path, &derivation)], &store_dir).unwrap()] {
                prop_assert_eq!(&read_value(&value).unwrap(), &named);
            }
        }

        #[test]
        fn damaged_text_is_read_without_a_panic(
            version in 0..3usize,
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = versions()[version].to_string().into_bytes();
            for (index, byte) in damage {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            let _ = read(&bytes, &StoreDir::default());
        }
    }
}
