//! What a derivation in the store says of its outputs, for the database: from an output to its derivation, and back, without
//! reading any file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::fs::OFlags;

use super::{Store, StoreError};
use crate::derivation::{EXTENSION, Output, aterm};
use crate::store_path::StorePath;

impl Store {
    /// The outputs of the derivation whose file is in the place of `path`, valid or not, as far as their paths are known
    /// before it is built.
    ///
    /// # Errors
    /// It is no derivation, whatever its name says. Nix, too, registers no such path.
    pub(super) fn outputs_in_file(&self, path: &StorePath) -> Result<BTreeMap<String, StorePath>, StoreError> {
        let real = self.real_path(path);
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let failed = |error: io::Error| StoreError::io("read the derivation", &real, error);
        let file = File::options().read(true).custom_flags(flags).open(&real).map_err(failed)?;
        let mut bytes = Vec::new();
        // One more than is allowed, so that the reader says that it is too long.
        file.take(aterm::MAX_LEN as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        let name = path.name().strip_suffix(EXTENSION).unwrap_or(path.name());
        let derivation = aterm::read(&bytes, name, &self.dir)
            .map_err(|error| StoreError::Derivation { path: path.clone(), why: error.to_string() })?;
        let known = |(name, output): (String, Output)| output.path().cloned().map(|path| (name, path));
        Ok(derivation.outputs.into_iter().filter_map(known).collect())
    }
}
