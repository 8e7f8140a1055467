//! References: the hash parts of store paths that a tree's bytes contain.
//!
//! Source: `src/libstore/references.cc` and `src/libutil/references.cc` of Nix. What refers to a path contains its 32
//! digits somewhere, be it in a script, a symlink or a program's data; nothing else is asked.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};

use crate::hash::base32;
use crate::store_path::{HASH_PART_LEN, StorePath};

pub(crate) type HashPart = [u8; HASH_PART_LEN];

/// Finds hash parts of a given set in a stream. What is written to it is scanned, across the borders of writes as well.
pub struct ReferenceScanner {
    wanted: Wanted<Vec<StorePath>>,
    found: BTreeSet<StorePath>,
    /// The last bytes of the stream, fewer than a hash part.
    tail: Vec<u8>,
}

impl ReferenceScanner {
    /// A scanner for paths of `candidates`.
    pub fn new(candidates: impl IntoIterator<Item = StorePath>) -> Self {
        let mut paths: HashMap<HashPart, Vec<StorePath>> = HashMap::new();
        for candidate in candidates {
            paths.entry(hash_part(&candidate)).or_default().push(candidate);
        }
        Self { wanted: Wanted::new(paths), found: BTreeSet::new(), tail: Vec::new() }
    }

    /// The candidates whose hash parts occurred.
    pub fn found(&self) -> &BTreeSet<StorePath> {
        &self.found
    }

    /// As [`found`](Self::found), when nothing more is to be scanned.
    pub fn into_found(self) -> BTreeSet<StorePath> {
        self.found
    }

    fn scan(&mut self, bytes: &[u8]) {
        let mut from = 0;
        while let Some(position) = self.wanted.find(bytes, from) {
            // Found once is enough: the rest is searched for the others only.
            if let Some(paths) = self.wanted.take(&bytes[position..]) {
                self.found.extend(paths);
            }
            from = position + 1;
        }
    }
}

impl Write for ReferenceScanner {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        const KEPT: usize = HASH_PART_LEN - 1;
        if self.wanted.is_empty() {
            return Ok(bytes.len());
        }
        let mut tail = std::mem::take(&mut self.tail);
        tail.extend_from_slice(&bytes[..bytes.len().min(KEPT)]);
        self.scan(&tail);
        if bytes.len() >= KEPT {
            self.scan(bytes);
            tail.clear();
            tail.extend_from_slice(&bytes[bytes.len() - KEPT..]);
        } else {
            tail.drain(..tail.len().saturating_sub(KEPT));
        }
        self.tail = tail;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The hash part of `path` as bytes.
pub(crate) fn hash_part(path: &StorePath) -> HashPart {
    let mut part = [0; HASH_PART_LEN];
    part.copy_from_slice(path.hash_part().as_bytes());
    part
}

/// Hash parts that are searched for, and what each stands for.
pub(crate) struct Wanted<T> {
    parts: HashMap<HashPart, T>,
    /// A bit for each value of [`slot`]: in text that is all digits, a look into the map at every byte would be slow.
    filter: Box<[u64; 1024]>,
    digit: [bool; 256],
}

/// 16 bits of the first bytes of a hash part.
fn slot(part: &[u8]) -> usize {
    let first = u32::from_le_bytes([part[0], part[1], part[2], part[3]]);
    (first.wrapping_mul(0x9e37_79b1) >> 16) as usize
}

impl<T> Wanted<T> {
    pub(crate) fn new(parts: HashMap<HashPart, T>) -> Self {
        let mut filter = Box::new([0; 1024]);
        for part in parts.keys() {
            filter[slot(part) / 64] |= 1 << (slot(part) % 64);
        }
        let mut digit = [false; 256];
        for byte in 0..=u8::MAX {
            digit[usize::from(byte)] = base32::is_digit(byte);
        }
        Self { parts, filter, digit }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Where the first wanted part at or after `from` begins in `bytes`.
    pub(crate) fn find(&self, bytes: &[u8], from: usize) -> Option<usize> {
        if self.parts.is_empty() {
            return None;
        }
        let mut start = from;
        // Bytes before this one are known to be digits.
        let mut known = from;
        while let Some(window) = bytes.get(start..start + HASH_PART_LEN) {
            // From the window's end backwards: one byte that is no digit rules out all windows that contain it.
            let unknown = known.saturating_sub(start);
            match window[unknown..].iter().rposition(|byte| !self.digit[usize::from(*byte)]) {
                Some(position) => {
                    start += unknown + position + 1;
                    known = start;
                }
                None => {
                    known = start + HASH_PART_LEN;
                    let slot = slot(window);
                    if self.filter[slot / 64] & 1 << (slot % 64) != 0 && self.parts.contains_key(window) {
                        return Some(start);
                    }
                    start += 1;
                }
            }
        }
        None
    }

    /// What the part at the start of `bytes` stands for.
    pub(crate) fn get(&self, bytes: &[u8]) -> Option<&T> {
        self.parts.get(bytes.get(..HASH_PART_LEN)?)
    }

    /// As [`get`](Self::get), and the part is wanted no more.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Option<T> {
        self.parts.remove(bytes.get(..HASH_PART_LEN)?)
    }
}
