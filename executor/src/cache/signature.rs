//! Signatures on paths, in Nix's form: a name, a colon, and base 64 of Ed25519's bytes.
//!
//! Source: `src/libutil/signature/` of Nix.

use std::{fmt, io::Read as _, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use super::CacheError;

/// Longest name of a key that is accepted. Names are host names with a number by custom.
const MAX_NAME: usize = 255;

/// A signature and the name of the key that made it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature {
    key_name: String,
    bytes: [u8; 64],
}

/// A key that signatures are checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

/// A key that signs. It shows nothing of itself but its name.
#[derive(Clone)]
pub struct SecretKey {
    name: String,
    key: SigningKey,
}

/// The name and exactly `N` bytes of `text`.
fn named_bytes<const N: usize>(text: &str, what: &str) -> Result<(String, [u8; N]), CacheError> {
    let error = |why| CacheError::Key { what: what.to_owned(), why };
    let (name, digits) = text.split_once(':').ok_or_else(|| error("it has no colon between a name and base 64"))?;
    if name.is_empty() || name.len() > MAX_NAME || name.contains(|letter: char| letter.is_whitespace()) {
        return Err(error("the name before its colon is empty, too long, or has a space"));
    }
    let error = |why| CacheError::Key { what: format!("{what} ‘{}’", name.escape_debug()), why };
    if digits.len() != N.div_ceil(3) * 4 {
        return Err(error("what follows its colon has not the length that it should have"));
    }
    let bytes = STANDARD.decode(digits).map_err(|_| error("what follows its colon is not base 64"))?;
    let bytes = bytes.try_into().map_err(|_| error("what follows its colon has not the length that it should have"))?;
    Ok((name.to_owned(), bytes))
}

impl Signature {
    /// The name of the key that made it.
    pub fn key_name(&self) -> &str {
        &self.key_name
    }
}

impl FromStr for Signature {
    type Err = CacheError;

    fn from_str(text: &str) -> Result<Self, CacheError> {
        let (key_name, bytes) = named_bytes(text, "the signature")?;
        Ok(Self { key_name, bytes })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.key_name, STANDARD.encode(self.bytes))
    }
}

impl PublicKey {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether `signature` is this key's on `message`.
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        // Strict: a weak key, with which one signature fits many messages, verifies nothing.
        signature.key_name == self.name
            && self.key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(&signature.bytes)).is_ok()
    }
}

impl FromStr for PublicKey {
    type Err = CacheError;

    fn from_str(text: &str) -> Result<Self, CacheError> {
        let (name, bytes) = named_bytes::<32>(text.trim(), "the public key")?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| CacheError::Key {
            what: format!("the public key ‘{}’", name.escape_debug()),
            why: "its bytes are no point of the curve",
        })?;
        Ok(Self { name, key })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.name, STANDARD.encode(self.key.as_bytes()))
    }
}

impl SecretKey {
    /// A new key with the kernel's random bytes.
    ///
    /// # Errors
    /// The name is not valid, or there are no random bytes.
    pub fn generate(name: &str) -> Result<Self, CacheError> {
        let mut seed = [0; 32];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut seed))
            .map_err(|source| CacheError::system("take random bytes from", "/dev/urandom", source))?;
        let key = SigningKey::from_bytes(&seed);
        format!("{name}:{}", STANDARD.encode(key.to_keypair_bytes())).parse()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key that its signatures are checked with.
    pub fn public(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// Its signature on `message`.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature { key_name: self.name.clone(), bytes: self.key.sign(message).to_bytes() }
    }

    /// The text of a secret key file.
    pub fn to_secret_text(&self) -> String {
        format!("{}:{}", self.name, STANDARD.encode(self.key.to_keypair_bytes()))
    }
}

/// Reads the text of a secret key file.
impl FromStr for SecretKey {
    type Err = CacheError;

    fn from_str(text: &str) -> Result<Self, CacheError> {
        let (name, bytes) = named_bytes::<64>(text.trim(), "the secret key")?;
        let key = SigningKey::from_keypair_bytes(&bytes).map_err(|_| CacheError::Key {
            what: format!("the secret key ‘{}’", name.escape_debug()),
            why: "its second half is not the public key of the first",
        })?;
        Ok(Self { name, key })
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SecretKey({}:…)", self.name)
    }
}
