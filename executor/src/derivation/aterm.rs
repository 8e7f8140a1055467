//! The form of `.drv` files: one term of the ATerm format, written without spaces, its lists sorted.
//!
//! Only what [`write()`] would write is read. A `.drv` file's path is the hash of its bytes, so that a second spelling of
//! the same derivation would be another derivation.
//!
//! Source: `doc/manual/source/protocols/derivation-aterm.md` and `src/libstore/derivations.cc` of Nix.

mod write;

pub use write::write;
pub(super) use write::{write_with, written_method};

use std::collections::{BTreeMap, BTreeSet};

use super::{Derivation, InvalidDerivation, Method, Output, check_derivation_name, check_output_name};
use crate::hash::{Algorithm, Hash, HashError};
use crate::store_path::{StoreDir, StorePath, StorePathError};

/// The longest `.drv` file that is read, in bytes. The largest of nixpkgs are a few MiB; one of this size, all short strings,
/// takes some 300 MiB of memory.
pub const MAX_LEN: usize = 32 << 20;

/// Bytes that are no derivation, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset} of the derivation ‘{name}’: {problem}")]
pub struct AtermError {
    /// The derivation's name.
    pub name: String,
    /// Where, in bytes from the start.
    pub offset: usize,
    /// What.
    pub problem: Problem,
}

/// What is wrong at one place of a `.drv` file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Something else should stand here.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What should.
        expected: &'static str,
        /// What does.
        found: String,
    },
    /// The file is longer than [`MAX_LEN`].
    #[error("it is longer than {} MiB", MAX_LEN >> 20)]
    TooLong,
    /// A version of the format with features that are not built.
    #[error(
        "it is written in version ‘{0}’, for derivations that depend on derivations made by builds; anchorhold does not build these yet"
    )]
    Version(String),
    /// A backslash before a character that is not escaped.
    #[error("only \\\", \\\\, \\n, \\r and \\t are written with a backslash")]
    Escape,
    /// A name or a path with bytes that are no text.
    #[error("this string must be UTF-8")]
    NotUtf8,
    /// The same thing is listed twice.
    #[error("{what} ‘{name}’ is listed twice")]
    Duplicate {
        /// What kind of thing.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// The list is not sorted.
    #[error("{what} ‘{name}’ must come before the one in front of it: the lists of a derivation are sorted")]
    Order {
        /// What kind of thing.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// No path in this store.
    #[error(transparent)]
    Path(#[from] StorePathError),
    /// No hash.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// A hash in another base than 16, or in capital letters.
    #[error("the hash ‘{0}’ must be written with lower-case hexadecimal digits")]
    HashSpelling(String),
    /// An output whose three fields do not fit together.
    #[error("the output ‘{output}’ has {what}")]
    Output {
        /// Which.
        output: String,
        /// What does not fit.
        what: &'static str,
    },
    /// A way of hashing outputs that is not built.
    #[error("the output ‘{output}’ is hashed as ‘{method}’, which anchorhold does not build")]
    Method {
        /// Which output.
        output: String,
        /// The prefix.
        method: String,
    },
    /// Something in the derivation as a whole.
    #[error(transparent)]
    Invalid(#[from] InvalidDerivation),
}

/// Reads the `.drv` file that `bytes` are of the derivation called `name`, with the paths of `store_dir`.
///
/// # Errors
/// Bytes that [`write()`] would not write, paths outside the store, more than [`MAX_LEN`] bytes, outputs that cannot be
/// together.
pub fn read(bytes: &[u8], name: &str, store_dir: &StoreDir) -> Result<Derivation, AtermError> {
    let mut reader = Reader { bytes, position: 0, store_dir };
    reader.derivation(name).map_err(|Failure { offset, problem }| AtermError { name: name.to_owned(), offset, problem })
}

struct Failure {
    offset: usize,
    problem: Problem,
}

struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
    store_dir: &'a StoreDir,
}

impl Reader<'_> {
    fn derivation(&mut self, name: &str) -> Result<Derivation, Failure> {
        if self.bytes.len() > MAX_LEN {
            return Err(Failure { offset: MAX_LEN, problem: Problem::TooLong });
        }
        check_derivation_name(name).map_err(|error| at(0, error))?;
        if self.bytes.starts_with(b"DrvWithVersion(") {
            self.expect("DrvWithVersion(")?;
            let offset = self.position;
            let version = self.text()?;
            return Err(at(offset, Problem::Version(version)));
        }
        self.expect("Derive(")?;
        let outputs = self.outputs(name)?;
        self.expect(",")?;
        let input_derivations = self.map("the input derivation", StorePath::to_string, |reader| {
            let path = reader.path()?;
            reader.expect(",")?;
            let outputs = reader.set("the output", String::clone, Self::text)?;
            Ok((path, outputs))
        })?;
        self.expect(",")?;
        let input_sources = self.set("the input", StorePath::to_string, Self::path)?;
        self.expect(",")?;
        let system = self.text()?;
        self.expect(",")?;
        let builder = self.string()?;
        self.expect(",")?;
        let arguments = self.list(Self::string)?;
        self.expect(",")?;
        let show = |name: &Vec<u8>| String::from_utf8_lossy(name).into_owned();
        let environment = self.map("the variable", show, |reader| {
            let name = reader.string()?;
            reader.expect(",")?;
            Ok((name, reader.string()?))
        })?;
        self.expect(")")?;
        if self.position != self.bytes.len() {
            return Err(self.unexpected("the end"));
        }
        let derivation = Derivation {
            name: name.to_owned(),
            outputs,
            input_derivations,
            input_sources,
            system,
            builder,
            arguments,
            environment,
        };
        derivation.kind().map_err(|error| at(0, error))?;
        Ok(derivation)
    }

    fn outputs(&mut self, derivation: &str) -> Result<BTreeMap<String, Output>, Failure> {
        self.map("the output", String::clone, |reader| {
            let offset = reader.position;
            let name = reader.text()?;
            check_output_name(derivation, &name).map_err(|error| at(offset, error))?;
            reader.expect(",")?;
            let path_offset = reader.position;
            let path = reader.text()?;
            reader.expect(",")?;
            let method_offset = reader.position;
            let method = reader.text()?;
            reader.expect(",")?;
            let hash_offset = reader.position;
            let hash = reader.text()?;

            let path = match path.as_str() {
                "" => None,
                path => Some(reader.store_dir.parse(path).map_err(|error| at(path_offset, error))?),
            };
            let wrong = |what| at(offset, Problem::Output { output: name.clone(), what });
            let output = if method.is_empty() {
                match (path, hash.as_str()) {
                    (Some(path), "") => Output::InputAddressed(path),
                    (None, "") => Output::Deferred,
                    _ => return Err(wrong("a hash, but no algorithm")),
                }
            } else {
                let (method, algorithm) = parse_method(&method, &name).map_err(|error| at(method_offset, error))?;
                match (path, hash.as_str()) {
                    (None, "") => Output::Floating { method, algorithm },
                    (None, "impure") => Output::Impure { method, algorithm },
                    (None, _) => return Err(wrong("a hash, but no path")),
                    (Some(_), "" | "impure") => return Err(wrong("a path, though it depends on what is built")),
                    (Some(path), digits) => {
                        let hash = Hash::from_digits(algorithm, digits).map_err(|error| at(hash_offset, error))?;
                        if hash.base16() != digits {
                            return Err(at(hash_offset, Problem::HashSpelling(digits.to_owned())));
                        }
                        Output::Fixed { path, method, hash }
                    }
                }
            };
            Ok((name, output))
        })
    }

    /// A list of pairs or longer tuples, sorted by the first of each.
    fn map<K: Ord, V>(
        &mut self,
        what: &'static str,
        show: impl Fn(&K) -> String,
        mut element: impl FnMut(&mut Self) -> Result<(K, V), Failure>,
    ) -> Result<BTreeMap<K, V>, Failure> {
        let mut all = BTreeMap::new();
        self.elements(|reader| {
            let offset = reader.position;
            reader.expect("(")?;
            let (key, value) = element(reader)?;
            reader.expect(")")?;
            check_order(all.last_key_value().map(|(last, _)| last), &key, what, &show)
                .map_err(|error| at(offset, error))?;
            all.insert(key, value);
            Ok(())
        })?;
        Ok(all)
    }

    /// A sorted list.
    fn set<K: Ord>(
        &mut self,
        what: &'static str,
        show: impl Fn(&K) -> String,
        mut element: impl FnMut(&mut Self) -> Result<K, Failure>,
    ) -> Result<BTreeSet<K>, Failure> {
        let mut all = BTreeSet::new();
        self.elements(|reader| {
            let offset = reader.position;
            let key = element(reader)?;
            check_order(all.last(), &key, what, &show).map_err(|error| at(offset, error))?;
            all.insert(key);
            Ok(())
        })?;
        Ok(all)
    }

    fn list<T>(&mut self, mut element: impl FnMut(&mut Self) -> Result<T, Failure>) -> Result<Vec<T>, Failure> {
        let mut all = Vec::new();
        self.elements(|reader| {
            all.push(element(reader)?);
            Ok(())
        })?;
        Ok(all)
    }

    fn elements(&mut self, mut element: impl FnMut(&mut Self) -> Result<(), Failure>) -> Result<(), Failure> {
        self.expect("[")?;
        if self.skip(b']') {
            return Ok(());
        }
        loop {
            element(self)?;
            if self.skip(b']') {
                return Ok(());
            }
            if !self.skip(b',') {
                return Err(self.unexpected("‘,’ or ‘]’"));
            }
        }
    }

    fn path(&mut self) -> Result<StorePath, Failure> {
        let offset = self.position;
        let text = self.text()?;
        self.store_dir.parse(&text).map_err(|error| at(offset, error))
    }

    fn text(&mut self) -> Result<String, Failure> {
        let offset = self.position;
        String::from_utf8(self.string()?).map_err(|_| at(offset, Problem::NotUtf8))
    }

    fn string(&mut self) -> Result<Vec<u8>, Failure> {
        if !self.skip(b'"') {
            return Err(self.unexpected("a string in quotation marks"));
        }
        let mut bytes = Vec::new();
        loop {
            let rest = &self.bytes[self.position..];
            let Some(plain) = rest.iter().position(|byte| b"\"\\\n\r\t".contains(byte)) else {
                self.position = self.bytes.len();
                return Err(self.unexpected("‘\"’ at the end of a string"));
            };
            bytes.extend_from_slice(&rest[..plain]);
            self.position += plain;
            match (rest[plain], rest.get(plain + 1)) {
                (b'"', _) => {
                    self.position += 1;
                    return Ok(bytes);
                }
                (b'\\', Some(escaped)) => bytes.push(match escaped {
                    b'"' | b'\\' => *escaped,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    _ => return Err(at(self.position, Problem::Escape)),
                }),
                (b'\\', None) => return Err(at(self.position, Problem::Escape)),
                _ => return Err(self.unexpected("a line end or tabulator to be written as \\n, \\r or \\t")),
            }
            self.position += 2;
        }
    }

    fn skip(&mut self, byte: u8) -> bool {
        let there = self.bytes.get(self.position) == Some(&byte);
        self.position += usize::from(there);
        there
    }

    fn expect(&mut self, text: &'static str) -> Result<(), Failure> {
        if !self.bytes[self.position..].starts_with(text.as_bytes()) {
            return Err(self.unexpected(match text {
                "Derive(" => "‘Derive(’",
                "(" => "‘(’",
                ")" => "‘)’",
                "[" => "‘[’",
                "," => "‘,’",
                other => other,
            }));
        }
        self.position += text.len();
        Ok(())
    }

    fn unexpected(&self, expected: &'static str) -> Failure {
        let rest = &self.bytes[self.position..];
        let found = match rest {
            [] => "the end".to_owned(),
            _ => format!("‘{}’", rest[..rest.len().min(16)].escape_ascii()),
        };
        at(self.position, Problem::Expected { expected, found })
    }
}

fn at(offset: usize, problem: impl Into<Problem>) -> Failure {
    Failure { offset, problem: problem.into() }
}

fn check_order<K: Ord>(
    last: Option<&K>,
    this: &K,
    what: &'static str,
    show: impl Fn(&K) -> String,
) -> Result<(), Problem> {
    match last.map(|last| last.cmp(this)) {
        None | Some(std::cmp::Ordering::Less) => Ok(()),
        Some(std::cmp::Ordering::Equal) => Err(Problem::Duplicate { what, name: show(this) }),
        Some(std::cmp::Ordering::Greater) => Err(Problem::Order { what, name: show(this) }),
    }
}

/// The two parts of `r:sha256` and the like.
pub(super) fn parse_method(text: &str, output: &str) -> Result<(Method, Algorithm), Problem> {
    let (method, algorithm) = match text.split_once(':') {
        None => (Method::Flat, text),
        Some(("r", algorithm)) => (Method::Recursive, algorithm),
        Some(("text", algorithm)) => (Method::Text, algorithm),
        Some((method, _)) => {
            return Err(Problem::Method { output: output.to_owned(), method: method.to_owned() });
        }
    };
    Ok((method, algorithm.parse()?))
}

#[cfg(test)]
pub(crate) mod tests;
