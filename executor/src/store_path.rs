//! Names in a store: the directory, the paths in it, and how a path is computed from what it holds.
//!
//! Source: `doc/manual/source/protocols/store-path.md` and `src/libstore/store-dir-config.cc` of Nix.

use std::{fmt, str::FromStr};

use crate::hash::{Algorithm, Hash, base32};

/// The number of base 32 digits at the start of a path's base name. This is also what a reference is found by.
pub const HASH_PART_LEN: usize = 32;

/// Longest name after the hash part and the dash, so that the whole fits a file name with room for a suffix.
/// Source: `StorePath::MaxPathLen` in `src/libstore/include/nix/store/path.hh`.
pub const MAX_NAME_LEN: usize = 211;

/// A text that is no store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// It lies elsewhere.
    #[error("the path ‘{path}’ is not in the store ‘{store_dir}’")]
    OutsideStore {
        /// The path.
        path: String,
        /// The store's directory.
        store_dir: String,
    },
    /// It goes on below a store path.
    #[error("‘{0}’ is something inside a store path, where the store path itself is wanted")]
    Below(String),
    /// The base name has no 32 digits and a dash at its start.
    #[error("‘{0}’ does not begin with the 32 digits and the dash of a store path")]
    HashPart(String),
    /// The name is empty or too long.
    #[error("the name of ‘{path}’ has {len} characters: 1 to {MAX_NAME_LEN} are allowed")]
    Length {
        /// The base name.
        path: String,
        /// The name's length.
        len: usize,
    },
    /// The name has a character that no store path may have.
    #[error("‘{name}’ is no valid name in a store: {why}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A store directory must be absolute and in its shortest form.
    #[error("‘{0}’ cannot be a store directory: it must be absolute, without a trailing slash, ‘.’, ‘..’ or ‘//’")]
    StoreDir(String),
}

/// The logical directory of a store: what builds see and what hashes depend on. Where its files really lie is another matter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreDir(String);

impl Default for StoreDir {
    fn default() -> Self {
        Self("/nix/store".to_owned())
    }
}

impl StoreDir {
    /// The store directory at `path`.
    pub fn new(path: &str) -> Result<Self, StorePathError> {
        let valid = path.len() > 1
            && path.strip_prefix('/').is_some_and(|rest| {
                rest.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains(['\0', '\n']))
            });
        if valid { Ok(Self(path.to_owned())) } else { Err(StorePathError::StoreDir(path.to_owned())) }
    }

    /// The directory itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `path` in full.
    pub fn display(&self, path: &StorePath) -> String {
        format!("{}/{path}", self.0)
    }

    /// The store path that `text`, an absolute path, is.
    pub fn parse(&self, text: &str) -> Result<StorePath, StorePathError> {
        let (path, below) = self.parse_below(text)?;
        if below.is_empty() { Ok(path) } else { Err(StorePathError::Below(text.to_owned())) }
    }

    /// The store path that `text` is or lies in, and the rest after it, which is empty or begins with a slash.
    pub fn parse_below<'a>(&self, text: &'a str) -> Result<(StorePath, &'a str), StorePathError> {
        let rest = text
            .strip_prefix(self.as_str())
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| StorePathError::OutsideStore { path: text.to_owned(), store_dir: self.0.clone() })?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (name, below) = rest.split_at(end);
        Ok((name.parse()?, below))
    }

    /// A path computed from what it stands for: `kind` (such as `source` or `output:out`), the hash of its contents and
    /// its name.
    pub fn make_path(&self, kind: &str, inner: &Hash, name: &str) -> Result<StorePath, StorePathError> {
        let fingerprint = format!("{kind}:{}:{}:{}:{name}", inner.algorithm(), inner.base16(), self.0);
        let hash = Hash::sha256(fingerprint.as_bytes());
        let mut folded = [0; 20];
        for (position, byte) in hash.bytes().iter().enumerate() {
            folded[position % 20] ^= byte;
        }
        StorePath::from_parts(&base32::encode(&folded), name)
    }

    /// The path of a text (a `.drv` file, or a file added by `toFile`) with its contents' SHA-256 and its references.
    pub fn text_path<'a>(
        &self,
        name: &str,
        contents: &Hash,
        references: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<StorePath, StorePathError> {
        self.make_path(&self.kind_with_references("text", references, false), contents, name)
    }

    /// The path of a tree that is named by the SHA-256 of its NAR, its references, and whether it refers to itself.
    pub fn source_path<'a>(
        &self,
        name: &str,
        nar: &Hash,
        references: impl IntoIterator<Item = &'a StorePath>,
        refers_to_itself: bool,
    ) -> Result<StorePath, StorePathError> {
        self.make_path(&self.kind_with_references("source", references, refers_to_itself), nar, name)
    }

    /// The path of a fixed output without references: `recursive` says that `hash` is of the NAR, not of the file's bytes.
    pub fn fixed_path(&self, name: &str, recursive: bool, hash: &Hash) -> Result<StorePath, StorePathError> {
        if recursive && hash.algorithm() == Algorithm::Sha256 {
            return self.source_path(name, hash, [], false);
        }
        let method = if recursive { "r:" } else { "" };
        let inner = Hash::sha256(format!("fixed:out:{method}{}:{}:", hash.algorithm(), hash.base16()).as_bytes());
        self.make_path("output:out", &inner, name)
    }

    fn kind_with_references<'a>(
        &self,
        kind: &str,
        references: impl IntoIterator<Item = &'a StorePath>,
        refers_to_itself: bool,
    ) -> String {
        let mut references: Vec<_> = references.into_iter().map(|path| self.display(path)).collect();
        references.sort();
        references.dedup();
        let mut text = kind.to_owned();
        for reference in &references {
            text.push(':');
            text.push_str(reference);
        }
        if refers_to_itself {
            text.push_str(":self");
        }
        text
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl FromStr for StoreDir {
    type Err = StorePathError;

    fn from_str(text: &str) -> Result<Self, StorePathError> {
        Self::new(text)
    }
}

/// The base name of something in a store: 32 digits, a dash and a name. It is a single file name, never `.` or `..`, and
/// has no slash, so it can be used below a held directory as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(String);

impl StorePath {
    /// The path with these two parts.
    pub fn from_parts(hash_part: &str, name: &str) -> Result<Self, StorePathError> {
        format!("{hash_part}-{name}").parse()
    }

    /// The whole base name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 32 digits.
    pub fn hash_part(&self) -> &str {
        &self.0[..HASH_PART_LEN]
    }

    /// What follows the dash.
    pub fn name(&self) -> &str {
        &self.0[HASH_PART_LEN + 1..]
    }

    /// Whether it is a derivation by its name.
    pub fn is_derivation(&self) -> bool {
        self.name().ends_with(".drv")
    }
}

impl FromStr for StorePath {
    type Err = StorePathError;

    fn from_str(text: &str) -> Result<Self, StorePathError> {
        let (digits, rest) =
            text.split_at_checked(HASH_PART_LEN).ok_or_else(|| StorePathError::HashPart(text.to_owned()))?;
        let name = rest.strip_prefix('-').ok_or_else(|| StorePathError::HashPart(text.to_owned()))?;
        if !digits.bytes().all(base32::is_digit) {
            return Err(StorePathError::HashPart(text.to_owned()));
        }
        check_name(name).map_err(|error| match error {
            StorePathError::Length { len, .. } => StorePathError::Length { path: text.to_owned(), len },
            other => other,
        })?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

/// Whether `name` may follow the hash part of a store path; says what is wrong if not.
///
/// A leading dot is allowed but for `.`, `..` and names that begin with one of them and a dash, as in Nix since 2.20.
pub fn check_name(name: &str) -> Result<(), StorePathError> {
    let error = |why| Err(StorePathError::Name { name: name.to_owned(), why });
    if name.is_empty() || name.len() > MAX_NAME_LEN {
        return Err(StorePathError::Length { path: name.to_owned(), len: name.len() });
    }
    if matches!(name, "." | "..") || name.starts_with(".-") || name.starts_with("..-") {
        return error("it would be mistaken for a directory itself");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte)) {
        return error("only letters, digits and + - . _ ? = are allowed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";

    #[test]
    fn a_path_has_its_parts() {
        let path = StoreDir::default().parse(&format!("/nix/store/{HASH}-net-tools-1.60.drv")).unwrap();
        assert_eq!(path.hash_part(), HASH);
        assert_eq!(path.name(), "net-tools-1.60.drv");
        assert!(path.is_derivation());
        assert_eq!(StoreDir::default().display(&path), format!("/nix/store/{HASH}-net-tools-1.60.drv"));
        let store = StoreDir::default();
        let inside = format!("/nix/store/{HASH}-a/bin/b");
        assert_eq!(store.parse_below(&inside).unwrap().1, "/bin/b");
        assert_eq!(store.parse(&inside), Err(StorePathError::Below(inside.clone())));
    }

    #[test]
    fn what_is_no_path_says_why() {
        let store = StoreDir::default();
        for (text, part) in [
            ("/nix/store".to_owned(), "not in the store"),
            ("/nix/storage/x".to_owned(), "not in the store"),
            ("nix/store/x".to_owned(), "not in the store"),
            ("/nix/store/..".to_owned(), "32 digits"),
            (format!("/nix/store/{HASH}"), "32 digits"),
            (format!("/nix/store/{HASH}_a"), "32 digits"),
            (format!("/nix/store/e{}-a", &HASH[1..]), "32 digits"),
            (format!("/nix/store/{HASH}-"), "has 0 characters"),
            (format!("/nix/store/{HASH}-{}", "a".repeat(212)), "has 212 characters"),
            (format!("/nix/store/{HASH}-a b"), "only letters"),
            (format!("/nix/store/{HASH}-ä"), "only letters"),
            (format!("/nix/store/{HASH}-.."), "mistaken"),
            (format!("/nix/store/{HASH}-.-a"), "mistaken"),
            ("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44lä-a".to_owned(), "32 digits"),
        ] {
            let error = store.parse(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        for text in ["", "/", "nix", "/nix/", "/nix//store", "/nix/../store", "/a\nb"] {
            assert!(StoreDir::new(text).is_err(), "{text}");
        }
    }

    /// Paths that Nix 2.8 printed for the same contents (`nix-store --add`, `--add-fixed`, `builtins.toFile`).
    #[test]
    fn computed_paths_are_those_of_nix() {
        let store = StoreDir::default();
        let hello = Hash::sha256(b"hello");
        assert_eq!(store.text_path("t", &hello, []).unwrap().as_str(), TEXT);
        assert_eq!(store.fixed_path("t", false, &hello).unwrap().as_str(), FLAT);
        let nar = Hash::parse(NAR_OF_HELLO, None).unwrap();
        assert_eq!(store.fixed_path("t", true, &nar).unwrap().as_str(), RECURSIVE);
    }

    const TEXT: &str = "vqpn17r03lqabwk0wksgpbgy620zwfd4-t";
    const FLAT: &str = "wqvj4d4j05sccqmj253vhca384czn7bk-t";
    const NAR_OF_HELLO: &str = "sha256:0a430879c266f8b57f4092a0f935cf3facd48bbccde5760d4748ca405171e969";
    const RECURSIVE: &str = "by59cb77bj65cl00yh30p3xqbbxs3vbf-t";

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,80}") {
            let _ = text.parse::<StorePath>();
            let _ = StoreDir::default().parse(&format!("/nix/store/{text}"));
        }
    }
}
