//! What a derivation in the store says of its outputs, for the database: from an output to its derivation, and back, without
//! reading any file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::fs::OFlags;

use super::{Store, StoreError};
use crate::derivation::paths::{Calculator, PathsError};
use crate::derivation::{Derivation, EXTENSION, Output, aterm};
use crate::store_path::StorePath;

impl Store {
    /// The outputs of the derivations whose files are in the places of `paths`, as far as they are known before they are built.
    /// They must be those that follow from the derivations: whoever finds one in the store takes it for what its derivation makes.
    ///
    /// # Errors
    /// One is no derivation, whatever its name says, has outputs of others, or needs a derivation that is neither valid nor among
    /// `paths`. Nix, too, registers no such path.
    pub(super) fn outputs_in_files<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<BTreeMap<&'a StorePath, BTreeMap<String, StorePath>>, StoreError> {
        let paths: BTreeSet<_> = paths.into_iter().collect();
        let mut calculator = Calculator::new(&self.dir, |path: &StorePath| -> Result<Option<Derivation>, StoreError> {
            if paths.contains(path) || self.is_valid(path)? {
                self.derivation_in_file(path).map(Some)
            } else {
                Ok(None)
            }
        });
        let mut outputs = BTreeMap::new();
        for path in &paths {
            let derivation = self.derivation_in_file(path)?;
            match calculator.check_outputs(&derivation) {
                Ok(()) => {}
                // Its paths are known after the build only: there is nothing to be wrong.
                Err(PathsError::Unsupported { .. } | PathsError::DeferredInput { .. } | PathsError::NoPath { .. }) => {}
                Err(error) => {
                    return Err(StoreError::Derivation { path: (*path).clone(), why: error.to_string() });
                }
            }
            let known = |(name, output): (String, Output)| output.path().cloned().map(|path| (name, path));
            outputs.insert(*path, derivation.outputs.into_iter().filter_map(known).collect());
        }
        Ok(outputs)
    }

    fn derivation_in_file(&self, path: &StorePath) -> Result<Derivation, StoreError> {
        let real = self.real_path(path);
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let failed = |error: io::Error| StoreError::io("read the derivation", &real, error);
        let file = File::options().read(true).custom_flags(flags).open(&real).map_err(failed)?;
        let mut bytes = Vec::new();
        // One more than is allowed, so that the reader says that it is too long.
        file.take(aterm::MAX_LEN as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        let name = path.name().strip_suffix(EXTENSION).unwrap_or(path.name());
        aterm::read(&bytes, name, &self.dir)
            .map_err(|error| StoreError::Derivation { path: path.clone(), why: error.to_string() })
    }
}
