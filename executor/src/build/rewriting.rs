//! Putting the paths where outputs are made in place of those that a derivation names.
//!
//! Nix replaces one string after the other; here it is one pass, whose time does not depend on the number of outputs.

use std::collections::HashMap;

use crate::derivation::placeholder;
use crate::hash::base32;
use crate::store_path::{HASH_PART_LEN, StorePath};

/// The digits of a placeholder after its slash: those of a SHA-256.
const PLACEHOLDER_LEN: usize = base32::encoded_len(32);

/// What is replaced, and by what.
#[derive(Debug, Clone, Default)]
pub struct Rewrites {
    /// From the digits of a placeholder.
    placeholders: HashMap<Vec<u8>, Vec<u8>>,
    hash_parts: HashMap<Vec<u8>, Vec<u8>>,
}

impl Rewrites {
    /// Replaces the placeholder of `output` by `path`.
    pub fn add_placeholder(&mut self, output: &str, path: &str) {
        self.placeholders.insert(placeholder(output).as_bytes()[1..].to_vec(), path.as_bytes().to_vec());
    }

    /// Replaces the hash part of `from` by that of `to`, wherever it stands.
    pub fn add_path(&mut self, from: &StorePath, to: &StorePath) {
        self.hash_parts.insert(from.hash_part().into(), to.hash_part().into());
    }

    /// `text` with all replaced.
    pub fn apply(&self, text: &[u8]) -> Vec<u8> {
        let mut result = Vec::with_capacity(text.len());
        let mut rest = text;
        // All that is replaced is, but for the slash, within a run of base 32 digits.
        while !rest.is_empty() {
            let start = rest.iter().position(|byte| base32::is_digit(*byte)).unwrap_or(rest.len());
            result.extend_from_slice(&rest[..start]);
            rest = &rest[start..];
            let end = rest.iter().position(|byte| !base32::is_digit(*byte)).unwrap_or(rest.len());
            self.apply_to_run(&rest[..end], &mut result);
            rest = &rest[end..];
        }
        result
    }

    fn apply_to_run(&self, run: &[u8], result: &mut Vec<u8>) {
        let mut rest = run;
        if result.last() == Some(&b'/')
            && let Some(path) = rest.get(..PLACEHOLDER_LEN).and_then(|digits| self.placeholders.get(digits))
        {
            result.pop();
            result.extend_from_slice(path);
            rest = &rest[PLACEHOLDER_LEN..];
        }
        while let Some((first, after)) = rest.split_first() {
            match rest.get(..HASH_PART_LEN).map(|digits| self.hash_parts.get(digits)) {
                Some(Some(to)) => {
                    result.extend_from_slice(to);
                    rest = &rest[HASH_PART_LEN..];
                }
                Some(None) => {
                    result.push(*first);
                    rest = after;
                }
                None => {
                    result.extend_from_slice(rest);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(digit: char) -> StorePath {
        format!("{}-name", digit.to_string().repeat(32)).parse().unwrap()
    }

    fn rewrites() -> Rewrites {
        let mut rewrites = Rewrites::default();
        rewrites.add_placeholder("out", "/s/out");
        rewrites.add_placeholder("dev", "/s/dev");
        rewrites.add_path(&path('a'), &path('b'));
        rewrites
    }

    #[test]
    fn everything_is_found_wherever_it_stands() {
        let (out, dev, a, b) = (placeholder("out"), placeholder("dev"), "a".repeat(32), "b".repeat(32));
        for (text, expected) in [
            (String::new(), String::new()),
            (format!("{out}{dev}/x{out}"), "/s/out/s/dev/x/s/out".to_owned()),
            (format!("/{out}9"), "//s/out9".to_owned()),
            (out[1..].to_owned(), out[1..].to_owned()),
            (format!("0{a}{a}1"), format!("0{b}{b}1")),
            (format!("{out}{a}"), format!("/s/out{b}")),
            (a[1..].to_owned(), a[1..].to_owned()),
            (b.clone(), b.clone()),
        ] {
            assert_eq!(String::from_utf8(rewrites().apply(text.as_bytes())).unwrap(), expected, "{text}");
        }
    }

    proptest! {
        /// As Nix does it: one after the other.
        #[test]
        fn one_pass_gives_what_several_give(pieces in proptest::collection::vec(0..6usize, 0..12)) {
            let (out, dev, a) = (placeholder("out"), placeholder("dev"), "a".repeat(32));
            let text: String = pieces.iter().map(|piece| ["/", "0z", &out, &dev, &a, "-é "][*piece]).collect();
            let expected = text.replace(&dev, "/s/dev").replace(&out, "/s/out").replace(&a, &"b".repeat(32));
            prop_assert_eq!(rewrites().apply(text.as_bytes()), expected.into_bytes());
        }
    }
}
