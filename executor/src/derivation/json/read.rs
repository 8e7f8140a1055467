//! Reading: each key is taken once, and what is left over is refused by name.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{JsonError, MAX_LEN, Named, Problem};
use crate::derivation::{self, Derivation, EXTENSION, Method, Output, aterm, fixed_output_path, json_text};
use crate::hash::{Algorithm, Hash, HashError};
use crate::store_path::{StoreDir, StorePath};

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
            derivation::check_output_name(&name, &output).at(&place)?;
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
                Some(name) => derivation::check_derivation_name(&name).at(&keys.place).map(|()| name),
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
