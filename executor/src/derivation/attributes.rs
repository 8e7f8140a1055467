//! The attributes of a derivation, wherever it keeps them: as environment variables, or as JSON in the one variable
//! `__json` ("structured attributes").
//!
//! Source: `src/libstore/parsed-derivations.cc` of Nix. A variable holds a list as words between spaces and a truth as `1`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Derivation;

/// The variable that holds structured attributes.
pub const STRUCTURED: &str = "__json";

/// The longest text of structured attributes that is read, in bytes. As a tree it takes up to 16 times as much memory.
pub const MAX_STRUCTURED_LEN: usize = 16 << 20;

/// An attribute with a value that it cannot have.
#[derive(Debug, thiserror::Error)]
pub enum AttributeError {
    /// The structured attributes are no JSON.
    #[error("cannot read the structured attributes of the derivation ‘{derivation}’: {source}")]
    Syntax {
        /// The derivation's name.
        derivation: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The structured attributes are longer than [`MAX_STRUCTURED_LEN`].
    #[error("the structured attributes of the derivation ‘{0}’ are longer than {limit} MiB", limit = MAX_STRUCTURED_LEN >> 20)]
    TooLong(String),
    /// A value of another type.
    #[error("the attribute ‘{attribute}’ of the derivation ‘{derivation}’ must be {expected}")]
    Type {
        /// The derivation's name.
        derivation: String,
        /// Which attribute, with those that it lies in.
        attribute: String,
        /// What it must be.
        expected: &'static str,
    },
}

/// The attributes of one derivation.
#[derive(Debug)]
pub struct Attributes<'a> {
    derivation: &'a str,
    environment: &'a BTreeMap<Vec<u8>, Vec<u8>>,
    structured: Option<Map<String, Value>>,
}

impl<'a> Attributes<'a> {
    /// Those of `derivation`.
    pub fn new(derivation: &'a Derivation) -> Result<Self, AttributeError> {
        let structured = match derivation.variable(STRUCTURED) {
            None => None,
            Some(text) if text.len() > MAX_STRUCTURED_LEN => {
                return Err(AttributeError::TooLong(derivation.name.clone()));
            }
            Some(text) => match serde_json::from_slice(text) {
                Ok(Value::Object(map)) => Some(map),
                Ok(_) => {
                    return Err(AttributeError::Type {
                        derivation: derivation.name.clone(),
                        attribute: STRUCTURED.to_owned(),
                        expected: "a JSON object",
                    });
                }
                Err(source) => {
                    return Err(AttributeError::Syntax { derivation: derivation.name.clone(), source });
                }
            },
        };
        Ok(Self { derivation: &derivation.name, environment: &derivation.environment, structured })
    }

    /// The structured ones.
    pub fn structured(&self) -> Option<&Map<String, Value>> {
        self.structured.as_ref()
    }

    /// The structured ones, taken out.
    pub fn into_structured(self) -> Option<Map<String, Value>> {
        self.structured
    }

    /// Whether there is such an attribute at all.
    pub fn contains(&self, name: &str) -> bool {
        match &self.structured {
            Some(map) => map.contains_key(name),
            None => self.environment.contains_key(name.as_bytes()),
        }
    }

    /// A truth value.
    pub fn boolean(&self, name: &str, default: bool) -> Result<bool, AttributeError> {
        match &self.structured {
            Some(map) => match map.get(name) {
                None => Ok(default),
                Some(Value::Bool(value)) => Ok(*value),
                Some(_) => Err(self.wrong(name, "true or false")),
            },
            None => Ok(self.environment.get(name.as_bytes()).map_or(default, |value| value == b"1")),
        }
    }

    /// A list of words.
    pub fn strings(&self, name: &str) -> Result<Option<Vec<String>>, AttributeError> {
        match &self.structured {
            Some(map) => map.get(name).map(|value| self.list(name, value)).transpose(),
            None => self.environment.get(name.as_bytes()).map(|value| self.words(name, value)).transpose(),
        }
    }

    /// An object, which only structured attributes have.
    pub fn object(&self, name: &str) -> Result<Option<&Map<String, Value>>, AttributeError> {
        match self.structured.as_ref().and_then(|map| map.get(name)) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(self.wrong(name, "an attribute set")),
        }
    }

    /// The strings of a JSON list.
    pub fn list(&self, name: &str, value: &Value) -> Result<Vec<String>, AttributeError> {
        let error = || self.wrong(name, "a list of strings");
        let all = value.as_array().ok_or_else(error)?;
        all.iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(error)).collect()
    }

    /// The error of an attribute that should have been `expected`.
    pub fn wrong(&self, name: &str, expected: &'static str) -> AttributeError {
        AttributeError::Type { derivation: self.derivation.to_owned(), attribute: name.to_owned(), expected }
    }

    fn words(&self, name: &str, value: &[u8]) -> Result<Vec<String>, AttributeError> {
        let text = std::str::from_utf8(value).map_err(|_| self.wrong(name, "UTF-8"))?;
        Ok(text.split([' ', '\t', '\n', '\r']).filter(|word| !word.is_empty()).map(str::to_owned).collect())
    }
}
