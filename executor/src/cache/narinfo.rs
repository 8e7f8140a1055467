//! The text in which a cache describes a path.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::{CacheError, Compression, PublicKey, SecretKey, Signature};
use crate::hash::{Algorithm, Hash};
use crate::store::PathInfo;
use crate::store_path::{StoreDir, StorePath};

/// Longest text that is read: a path with ten thousand references still fits.
pub(super) const MAX_TEXT: usize = 4 << 20;

/// What a cache says of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// The path.
    pub path: StorePath,
    /// Where its compressed archive is, seen from the cache's top.
    pub url: String,
    /// How that is compressed.
    pub compression: Compression,
    /// The hash of the compressed file.
    pub file_hash: Option<Hash>,
    /// Its size in bytes.
    pub file_size: Option<u64>,
    /// The SHA-256 of the archive.
    pub nar_hash: Hash,
    /// The archive's size in bytes.
    pub nar_size: u64,
    /// The paths that it refers to, itself included if it does.
    pub references: BTreeSet<StorePath>,
    /// The derivation that it was built from.
    pub deriver: Option<StorePath>,
    /// Who vouches for it.
    pub signatures: Vec<Signature>,
    /// How it is addressed by its contents, as Nix writes it.
    pub ca: Option<String>,
}

impl NarInfo {
    /// Reads a narinfo of a cache for `store`. Fields that are not known are skipped, as Nix does: newer ones may come.
    ///
    /// # Errors
    /// A field is missing, occurs twice, or is not in its form.
    pub fn parse(text: &str, store: &StoreDir) -> Result<Self, CacheError> {
        let mut fields = Fields::default();
        if text.len() > MAX_TEXT {
            return Err(fields.invalid(format!("it has more than {MAX_TEXT} bytes")));
        }
        if text.contains(|letter: char| letter.is_control() && letter != '\n') {
            return Err(fields.invalid("it has control characters"));
        }
        for line in text.split('\n').filter(|line| !line.is_empty()) {
            let (key, value) = line
                .split_once(':')
                .ok_or_else(|| fields.invalid(format!("the line ‘{}’ has no colon", shortened(line))))?;
            let value = value.strip_prefix(' ').unwrap_or(value);
            let slot = match key {
                "StorePath" => &mut fields.path,
                "URL" => &mut fields.url,
                "Compression" => &mut fields.compression,
                "FileHash" => &mut fields.file_hash,
                "FileSize" => &mut fields.file_size,
                "NarHash" => &mut fields.nar_hash,
                "NarSize" => &mut fields.nar_size,
                "References" => &mut fields.references,
                "Deriver" => &mut fields.deriver,
                "CA" => &mut fields.ca,
                "Sig" => {
                    fields.signatures.push(value);
                    continue;
                }
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(fields.invalid(format!("the field {key} occurs twice")));
            }
        }
        fields.parse(store)
    }

    /// The text, as Nix writes it.
    pub fn to_text(&self, store: &StoreDir) -> String {
        let mut text = String::new();
        let mut field = |key: &str, value: &str| {
            text.push_str(key);
            text.push_str(": ");
            text.push_str(value);
            text.push('\n');
        };
        field("StorePath", &store.display(&self.path));
        field("URL", &self.url);
        field("Compression", self.compression.name());
        if let Some(hash) = &self.file_hash {
            field("FileHash", &hash.to_string());
        }
        if let Some(size) = self.file_size {
            field("FileSize", &size.to_string());
        }
        field("NarHash", &self.nar_hash.to_string());
        field("NarSize", &self.nar_size.to_string());
        let references: Vec<_> = self.references.iter().map(StorePath::as_str).collect();
        field("References", &references.join(" "));
        if let Some(deriver) = &self.deriver {
            field("Deriver", deriver.as_str());
        }
        for signature in &self.signatures {
            field("Sig", &signature.to_string());
        }
        if let Some(ca) = &self.ca {
            field("CA", ca);
        }
        text
    }

    /// The text that is signed: the path, its archive's hash and size, its references.
    pub fn fingerprint(&self, store: &StoreDir) -> String {
        let mut info = PathInfo::new(self.path.clone(), self.nar_hash, self.nar_size);
        info.references.clone_from(&self.references);
        info.fingerprint(store)
    }

    /// Adds the signature of `key`, unless it is there.
    pub fn sign(&mut self, key: &SecretKey, store: &StoreDir) {
        let signature = key.sign(self.fingerprint(store).as_bytes());
        if !self.signatures.contains(&signature) {
            self.signatures.push(signature);
        }
    }

    /// The first of `keys` that vouches for this path, or nothing.
    pub fn signed_by<'a>(&self, keys: &'a [PublicKey], store: &StoreDir) -> Option<&'a PublicKey> {
        let fingerprint = self.fingerprint(store);
        let signed =
            |key: &&PublicKey| self.signatures.iter().any(|signature| key.verifies(fingerprint.as_bytes(), signature));
        keys.iter().find(signed)
    }
}

#[derive(Default)]
struct Fields<'a> {
    path: Option<&'a str>,
    url: Option<&'a str>,
    compression: Option<&'a str>,
    file_hash: Option<&'a str>,
    file_size: Option<&'a str>,
    nar_hash: Option<&'a str>,
    nar_size: Option<&'a str>,
    references: Option<&'a str>,
    deriver: Option<&'a str>,
    ca: Option<&'a str>,
    signatures: Vec<&'a str>,
}

impl Fields<'_> {
    fn parse(&self, store: &StoreDir) -> Result<NarInfo, CacheError> {
        let missing = |key: &str| self.invalid(format!("it has no field {key}"));
        let path = self.path.ok_or_else(|| missing("StorePath"))?;
        let url = self.url.ok_or_else(|| missing("URL"))?;
        if url.is_empty() {
            return Err(self.invalid("its URL is empty"));
        }
        let nar_hash: Hash = self.read("NarHash", self.nar_hash.ok_or_else(|| missing("NarHash"))?)?;
        if nar_hash.algorithm() != Algorithm::Sha256 {
            return Err(self.invalid("its NarHash is no SHA-256"));
        }
        let nar_size = self.size("NarSize", self.nar_size.ok_or_else(|| missing("NarSize"))?)?;
        let references = self.references.unwrap_or_default().split(' ').filter(|reference| !reference.is_empty());
        let deriver = self.deriver.filter(|deriver| !matches!(*deriver, "" | "unknown-deriver"));
        Ok(NarInfo {
            path: store.parse(path).map_err(|error| self.invalid(error.to_string()))?,
            url: url.to_owned(),
            compression: self.compression.filter(|name| !name.is_empty()).map_or(Ok(Compression::Bzip2), str::parse)?,
            file_hash: self.file_hash.map(|hash| self.read("FileHash", hash)).transpose()?,
            file_size: self.file_size.map(|size| self.size("FileSize", size)).transpose()?,
            nar_hash,
            nar_size,
            references: references.map(|path| self.read("References", path)).collect::<Result<_, _>>()?,
            deriver: deriver.map(|path| self.read("Deriver", path)).transpose()?,
            signatures: self.signatures.iter().map(|signature| signature.parse()).collect::<Result<_, _>>()?,
            ca: self.ca.filter(|ca| !ca.is_empty()).map(str::to_owned),
        })
    }

    fn read<T: FromStr<Err: std::fmt::Display>>(&self, key: &str, value: &str) -> Result<T, CacheError> {
        value.parse().map_err(|error| self.invalid(format!("its field {key}: {error}")))
    }

    fn size(&self, key: &str, value: &str) -> Result<u64, CacheError> {
        // Rust's own parser takes a sign, and a database has no room for more than this.
        let size = value.parse().ok().filter(|size| *size <= i64::MAX as u64 && !value.starts_with('+'));
        size.ok_or_else(|| self.invalid(format!("its field {key} is no number of bytes: ‘{}’", shortened(value))))
    }

    fn invalid(&self, what: impl Into<String>) -> CacheError {
        let file = match self.path {
            Some(path) => format!("the narinfo of ‘{}’", shortened(path)),
            None => "the narinfo".to_owned(),
        };
        CacheError::Invalid { file, what: what.into() }
    }
}

/// A foreign text for a message.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 250;
    let start: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() { start + "…" } else { start }
}
