//! Whether the store is what its database says.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;

use super::roots::list;
use super::{Store, StoreError};
use crate::hash::{Algorithm, Hash, Hasher};
use crate::nar;
use crate::store_path::StorePath;
use crate::tree;

/// What was found wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// How many valid paths there were.
    pub checked: usize,
    /// Valid paths without files.
    pub missing: BTreeSet<StorePath>,
    /// Valid paths whose files are others than were registered, with the registered hash and the one they have.
    pub changed: Vec<(StorePath, Hash, Hash)>,
    /// Valid paths that could not be read, and why.
    pub unreadable: Vec<(StorePath, String)>,
    /// Files in `.links` that do not hold what their names say.
    pub bad_links: Vec<String>,
    /// What was set right, for a person.
    pub repaired: Vec<String>,
    /// How many of the findings above are still there.
    pub left: usize,
}

impl Store {
    /// Checks that every valid path has files and, if `contents` is set, that they are those that were registered.
    ///
    /// With `repair`, what can be set right from what is here is set right: a path whose files are gone and that no other valid
    /// path needs becomes invalid, and a damaged file in `.links` is taken out, so that nothing more is linked to it. Contents
    /// that are lost must be built or copied again; nothing here can bring them back.
    ///
    /// # Errors
    /// The database cannot be read or, with `repair`, not be written. What is wrong with a path is in the report.
    pub fn verify(
        &self,
        contents: bool,
        repair: bool,
        notice: &mut dyn FnMut(&str),
    ) -> Result<VerifyReport, StoreError> {
        if repair {
            self.check_writable("repair the store")?;
        }
        let mut report = VerifyReport::default();
        let real = self.real_dir();
        let directory = File::open(&real).map_err(StoreError::on("open", &real))?;
        let names: BTreeSet<_> = list(&real)?.into_iter().map(|(name, _)| name).collect();
        let infos = self.all_path_infos()?;
        report.checked = infos.len();
        for info in &infos {
            let name = OsStr::new(info.path.as_str());
            if !names.contains(name) {
                // Gone by now, if a collector is at work.
                if self.is_valid(&info.path)? {
                    report.missing.insert(info.path.clone());
                }
            } else if contents {
                notice(&format!("checking ‘{}’", self.dir.display(&info.path)));
                match nar::pass::survey(directory.as_fd(), name, []) {
                    Ok(survey) if survey.hash == info.nar_hash => {}
                    _ if !self.is_valid(&info.path)? => {}
                    Ok(survey) => report.changed.push((info.path.clone(), info.nar_hash, survey.hash)),
                    Err(error) => report.unreadable.push((info.path.clone(), error.to_string())),
                }
            }
        }
        if contents {
            self.check_links(repair, &mut report)?;
        }
        if repair {
            self.forget_missing(&mut report)?;
        }
        report.left += report.missing.len() + report.changed.len() + report.unreadable.len();
        Ok(report)
    }

    /// Each file in `.links` is named by the hash of its archive.
    fn check_links(&self, repair: bool, report: &mut VerifyReport) -> Result<(), StoreError> {
        let links = self.real_dir().join(".links");
        for (name, path) in list(&links)? {
            let (parent, last) = tree::place(&path)?;
            let mut hasher = Hasher::new(Algorithm::Sha256);
            match nar::dump(parent.as_fd(), &last, &mut hasher) {
                Ok(_) if *hasher.finish().base32() == *name => continue,
                Err(nar::NarError::Tree { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
                _ => {}
            }
            let name = name.to_string_lossy().into_owned();
            if repair {
                fs::remove_file(&path).map_err(StoreError::on("remove", &path))?;
                report.repaired.push(format!("took the damaged file ‘{name}’ out of .links"));
            } else {
                report.left += 1;
            }
            report.bad_links.push(name);
        }
        Ok(())
    }

    fn forget_missing(&self, report: &mut VerifyReport) -> Result<(), StoreError> {
        // In rounds: when the last path that needs one is forgotten, it can be forgotten too.
        loop {
            let mut forgotten = Vec::new();
            for path in &report.missing {
                if self.query_referrers(path)?.iter().all(|referrer| referrer == path) {
                    self.invalidate([path])?;
                    forgotten.push(path.clone());
                }
            }
            if forgotten.is_empty() {
                return Ok(());
            }
            for path in forgotten {
                report.repaired.push(format!("‘{}’ has no files and is not valid any more", self.dir.display(&path)));
                report.missing.remove(&path);
            }
        }
    }
}
