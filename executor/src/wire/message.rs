//! Writing.

use crate::store_path::{StoreDir, StorePath};

/// Bytes to be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message(pub Vec<u8>);

impl Message {
    /// With nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// A number.
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    /// Yes or no.
    pub fn truth(&mut self, truth: bool) -> &mut Self {
        self.number(u64::from(truth))
    }

    /// A string.
    pub fn string(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
        self.0.resize(self.0.len() + (bytes.len().wrapping_neg() % 8), 0);
        self
    }

    /// A list of strings.
    pub fn strings<S: AsRef<[u8]>>(
        &mut self,
        strings: impl IntoIterator<Item = S, IntoIter: ExactSizeIterator>,
    ) -> &mut Self {
        let strings = strings.into_iter();
        self.number(strings.len() as u64);
        for string in strings {
            self.string(string);
        }
        self
    }

    /// A store path.
    pub fn path(&mut self, dir: &StoreDir, path: &StorePath) -> &mut Self {
        self.string(dir.display(path))
    }

    /// A store path, or an empty string for none.
    pub fn maybe_path(&mut self, dir: &StoreDir, path: Option<&StorePath>) -> &mut Self {
        self.string(path.map(|path| dir.display(path)).unwrap_or_default())
    }

    /// A list of store paths.
    pub fn paths<'a>(
        &mut self,
        dir: &StoreDir,
        paths: impl IntoIterator<Item = &'a StorePath, IntoIter: ExactSizeIterator>,
    ) -> &mut Self {
        let paths = paths.into_iter();
        self.number(paths.len() as u64);
        for path in paths {
            self.path(dir, path);
        }
        self
    }
}
