//! Hashes as Nix names, reads and writes them.

pub mod base32;

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// A hash function that a fixed output may be declared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// MD5: 16 bytes. Broken; only old derivations name it.
    Md5,
    /// SHA-1: 20 bytes. Broken; only old derivations name it.
    Sha1,
    /// SHA-256: 32 bytes, and what the store itself uses.
    Sha256,
    /// SHA-512: 64 bytes.
    Sha512,
}

impl Algorithm {
    /// All of them, in the order of their lengths.
    pub const ALL: [Self; 4] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512];

    /// The length of a hash in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The name as derivations write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == text)
            .ok_or_else(|| HashError::Algorithm(text.to_owned()))
    }
}

/// A text that is no hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The function is not one of the four.
    #[error("unknown hash algorithm ‘{0}’: md5, sha1, sha256 and sha512 are known")]
    Algorithm(String),
    /// The digits are of no encoding that this function's length allows.
    #[error("‘{text}’ is not a {algorithm} hash in base 16, Nix's base 32 or base 64")]
    Digits {
        /// What was read.
        text: String,
        /// The function that it was read for.
        algorithm: Algorithm,
    },
    /// Nothing says which function it is.
    #[error("the hash ‘{0}’ does not say its algorithm: write sha256:… or sha256-…")]
    NoAlgorithm(String),
}

/// A finished hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash {
    algorithm: Algorithm,
    /// The first `algorithm.size()` bytes; the others are zero, so that comparing all of them is right.
    bytes: [u8; 64],
}

impl Hash {
    /// The hash made of `bytes`, or nothing if there are not as many as the function has.
    pub fn new(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != algorithm.size() {
            return None;
        }
        let mut all = [0; 64];
        all[..bytes.len()].copy_from_slice(bytes);
        Some(Self { algorithm, bytes: all })
    }

    /// The hash of `data`.
    pub fn of(algorithm: Algorithm, data: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(data);
        hasher.finish()
    }

    /// The SHA-256 of `data`.
    pub fn sha256(data: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, data)
    }

    /// The function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The bytes, as many as the function has.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.size()]
    }

    /// Lower-case hexadecimal digits, without the function's name.
    pub fn base16(&self) -> String {
        self.bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Digits in Nix's base 32, without the function's name.
    pub fn base32(&self) -> String {
        base32::encode(self.bytes())
    }

    /// The form of "Subresource Integrity": `sha256-` and base 64. What Nix prints of a mismatch.
    pub fn sri(&self) -> String {
        format!("{}-{}", self.algorithm, STANDARD.encode(self.bytes()))
    }

    /// Reads digits in base 16, Nix's base 32 or base 64; the three are told apart by their lengths.
    pub fn from_digits(algorithm: Algorithm, text: &str) -> Result<Self, HashError> {
        let error = || HashError::Digits { text: text.to_owned(), algorithm };
        let len = algorithm.size();
        let mut bytes = [0; 64];
        let bytes = &mut bytes[..len];
        if text.len() == len * 2 {
            for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
                let digit = |character: u8| char::from(character).to_digit(16);
                let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else { return Err(error()) };
                *byte = (high << 4 | low) as u8;
            }
        } else if text.len() == base32::encoded_len(len) {
            if !base32::decode_into(text, bytes) {
                return Err(error());
            }
        } else {
            let decoded = STANDARD.decode(text).map_err(|_| error())?;
            if decoded.len() != len {
                return Err(error());
            }
            bytes.copy_from_slice(&decoded);
        }
        Self::new(algorithm, bytes).ok_or_else(error)
    }

    /// Reads any form in which people write a hash whose function may be given apart (`outputHash` and `outputHashAlgo`):
    /// `sha256:…`, `sha256-…`, or digits alone when `algorithm` is known.
    ///
    /// # Errors
    /// No valid digits, an unknown function, no function at all, or another function than `algorithm`.
    pub fn parse(text: &str, algorithm: Option<Algorithm>) -> Result<Self, HashError> {
        // Neither sign occurs in base 16 or base 32, and base 64 here is the alphabet with `+` and `/`.
        if let Some((name, digits)) = text.split_once([':', '-']) {
            let named: Algorithm = name.parse()?;
            if algorithm.is_some_and(|algorithm| algorithm != named) {
                return Err(HashError::Digits { text: text.to_owned(), algorithm: algorithm.unwrap_or(named) });
            }
            return Self::from_digits(named, digits);
        }
        match algorithm {
            Some(algorithm) => Self::from_digits(algorithm, text),
            None => Err(HashError::NoAlgorithm(text.to_owned())),
        }
    }
}

/// `sha256:` and base 32, the form in which Nix shows the hash of a path.
impl fmt::Display for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.algorithm, self.base32())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.algorithm, self.base16())
    }
}

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        Self::parse(text, None)
    }
}

/// A hash in the making.
#[derive(Clone)]
pub struct Hasher(Function);

#[derive(Clone)]
enum Function {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// A hash of nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Md5 => Function::Md5(md5::Md5::new()),
            Algorithm::Sha1 => Function::Sha1(sha1::Sha1::new()),
            Algorithm::Sha256 => Function::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Function::Sha512(sha2::Sha512::new()),
        })
    }

    /// Takes in `data`.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.0 {
            Function::Md5(state) => state.update(data),
            Function::Sha1(state) => state.update(data),
            Function::Sha256(state) => state.update(data),
            Function::Sha512(state) => state.update(data),
        }
    }

    /// The hash of all that was taken in.
    pub fn finish(self) -> Hash {
        let mut bytes = [0; 64];
        let (algorithm, len) = match self.0 {
            Function::Md5(state) => (Algorithm::Md5, fill(&mut bytes, &state.finalize())),
            Function::Sha1(state) => (Algorithm::Sha1, fill(&mut bytes, &state.finalize())),
            Function::Sha256(state) => (Algorithm::Sha256, fill(&mut bytes, &state.finalize())),
            Function::Sha512(state) => (Algorithm::Sha512, fill(&mut bytes, &state.finalize())),
        };
        debug_assert_eq!(len, algorithm.size());
        Hash { algorithm, bytes }
    }
}

fn fill(bytes: &mut [u8; 64], digest: &[u8]) -> usize {
    bytes[..digest.len()].copy_from_slice(digest);
    digest.len()
}

/// What is written is hashed: for code that writes a stream.
impl std::io::Write for Hasher {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of `printf hello | md5sum` and so on, and `nix-hash --to-base32`, `--to-sri` of Nix 2.8.
    const HELLO: [(&str, &str, &str); 4] = [
        ("md5", "5d41402abc4b2a76b9719d911017c592", "md5-XUFAKrxLKna5cZ2REBfFkg=="),
        ("sha1", "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d", "sha1-qvTGHdzF6KLavt4PO0gs2a6pQ00="),
        (
            "sha256",
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=",
        ),
        (
            "sha512",
            "9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca72323c3d99ba5c11d7c7acc6e14b8c5da0c4663475c2e5c3adef46f73bcdec043",
            "sha512-m3HSJL1i83hdltRq0+o9czGb+8KJDKra4t/3JRlnPKcjI8PZm6XBHXx6zG4UuMXaDEZjR1wuXDre9G9zvN7AQw==",
        ),
    ];

    #[test]
    fn the_functions_and_forms_are_the_known_ones() {
        for (name, base16, sri) in HELLO {
            let hash = Hash::of(name.parse().unwrap(), b"hello");
            assert_eq!(hash.base16(), base16);
            assert_eq!(hash.sri(), sri);
            for text in [sri, &format!("{name}:{base16}"), &hash.to_string()] {
                assert_eq!(text.parse(), Ok(hash), "{text}");
            }
            for digits in [base16, &hash.base32(), sri.split_once('-').unwrap().1] {
                assert_eq!(Hash::parse(digits, Some(hash.algorithm())), Ok(hash), "{digits}");
            }
        }
    }

    #[test]
    fn what_is_no_hash_says_why() {
        let sha256 = Some(Algorithm::Sha256);
        for (text, algorithm, part) in [
            ("", sha256, "not a sha256 hash"),
            ("sha256:abc", None, "not a sha256 hash"),
            ("blake3:abc", None, "unknown hash algorithm ‘blake3’"),
            ("abc", None, "does not say its algorithm"),
            ("md5:5d41402abc4b2a76b9719d911017c592", sha256, "not a sha256 hash"),
            ("sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ", None, "not a sha256 hash"),
            ("sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCR=", None, "not a sha256 hash"),
        ] {
            let error = Hash::parse(text, algorithm).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,100}") {
            let _ = Hash::parse(&text, None);
            let _ = Hash::parse(&text, Some(Algorithm::Sha512));
        }
    }
}
