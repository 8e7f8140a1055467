//! Equal files become one: hard links through `.links`. Source: `src/libstore/optimise-store.cc` of Nix.
//!
//! A file in `.links` is named by the hash of its archive, so that its x bit counts too. A file is replaced by renaming a
//! second link over it: at every moment the path holds one whole file or another that is equal to it.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirEntryExt;

use rustix::fs::{
    AtFlags, FileType, Mode, Stat, Timespec, Timestamps, fchmod, fstat, futimens, linkat, openat, renameat, statat,
    unlinkat,
};
use rustix::io::Errno;

use super::{Store, StoreError};
use crate::hash::{Algorithm, Hasher};
use crate::nar;
use crate::store_path::StorePath;
use crate::tree::descent::{DIRECTORY, Descent, Entry, entries};

/// What was saved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OptimiseReport {
    /// Files that were looked into.
    pub examined: u64,
    /// Files that were one with another already.
    pub already: u64,
    /// Files that became one with another now.
    pub linked: u64,
    /// Space that this gave back, in bytes.
    pub bytes_saved: u64,
    /// Files that stay alone because the file system allows no more links to their like.
    pub full: u64,
    /// What was left alone for another reason, for a person.
    pub warnings: Vec<String>,
}

/// Many paths, one after the other, that share what is known of `.links`.
#[derive(Debug)]
pub struct Optimiser<'a> {
    store: &'a Store,
    directory: File,
    links: File,
    /// The inodes in `.links`: a file that is one of them needs not be read.
    known: HashSet<u64>,
    report: OptimiseReport,
    counter: u64,
}

impl Store {
    /// Makes equal files of all valid paths one. `notice` is called with a line for each path.
    ///
    /// # Errors
    /// The database or the store's directory; what is wrong with a file is a warning in the report.
    pub fn optimise(&self, notice: &mut dyn FnMut(&str)) -> Result<OptimiseReport, StoreError> {
        let mut optimiser = self.optimiser()?;
        for path in self.all_valid_paths()? {
            notice(&format!("optimising ‘{}’", self.dir.display(&path)));
            optimiser.path(&path)?;
        }
        Ok(optimiser.finish())
    }

    /// Reads which files are linked already, to optimise some paths.
    pub fn optimiser(&self) -> Result<Optimiser<'_>, StoreError> {
        self.check_writable("optimise the store")?;
        let real = self.real_dir();
        let path = real.join(".links");
        fs::create_dir_all(&path).map_err(StoreError::on("make the directory", &path))?;
        let mut known = HashSet::new();
        for entry in fs::read_dir(&path).map_err(StoreError::on("read the directory", &path))? {
            known.insert(entry.map_err(StoreError::on("read the directory", &path))?.ino());
        }
        let directory = File::open(&real).map_err(StoreError::on("open", &real))?;
        let links = File::open(&path).map_err(StoreError::on("open", &path))?;
        Ok(Optimiser { store: self, directory, links, known, report: OptimiseReport::default(), counter: 0 })
    }
}

/// A directory of the walk: what is left of it, and its mode if it was opened up.
struct Level {
    left: std::vec::IntoIter<Entry>,
    opened_up: bool,
}

impl Optimiser<'_> {
    /// What was done.
    pub fn finish(self) -> OptimiseReport {
        self.report
    }

    /// Makes the files of `path` one with their like. A path that is not valid (any more) is passed over.
    ///
    /// # Errors
    /// The database. What is wrong with the files is a warning.
    pub fn path(&mut self, path: &StorePath) -> Result<(), StoreError> {
        if self.store.keep_if_valid(path)?.is_none() {
            return Ok(());
        }
        if let Err(error) = self.walk(path) {
            self.report.warnings.push(format!("cannot optimise ‘{}’: {error}", self.store.dir.display(path)));
        }
        Ok(())
    }

    fn walk(&mut self, path: &StorePath) -> io::Result<()> {
        let directory = self.directory.try_clone()?;
        let top = CString::new(path.as_str())?;
        let mut walk: Descent<Level> = Descent::new();
        if !self.entry(directory.as_fd(), &top, None)? {
            return Ok(());
        }
        let mut next = Some(top);
        loop {
            if let Some(name) = next.take() {
                let opened = openat(walk.current().unwrap_or(directory.as_fd()), &name, DIRECTORY, Mode::empty())?;
                let left = entries(opened.as_fd())?.into_iter();
                walk.enter(opened, name, Level { left, opened_up: false })?;
            }
            let Some(level) = walk.state() else { return Ok(()) };
            if let Some(entry) = level.left.next() {
                let mut opened_up = level.opened_up;
                let Some(current) = walk.current() else { return Ok(()) };
                let result = self.entry(current, &entry.name, Some(&mut opened_up));
                if let Some(level) = walk.state() {
                    level.opened_up = opened_up;
                }
                if result? {
                    next = Some(entry.name);
                }
                continue;
            }
            // Also one that somebody opened up who was killed then.
            let Some((left, _, level)) = walk.leave()? else { return Ok(()) };
            close_down(&left, level.opened_up)?;
        }
    }

    /// Looks at one entry; says whether it is a directory. `opened_up` says whether its directory can be written; there is none
    /// for the store's own, which always can.
    fn entry(&mut self, parent: BorrowedFd<'_>, name: &CStr, opened_up: Option<&mut bool>) -> io::Result<bool> {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(true),
            FileType::RegularFile => {}
            // A link takes no space of its own on most file systems.
            _ => return Ok(false),
        }
        self.report.examined += 1;
        if stat.st_mode & 0o222 != 0 {
            self.report.warnings.push(format!("‘{}’ can be written: it is left alone", name.to_string_lossy()));
        } else if self.known.contains(&stat.st_ino) {
            self.report.already += 1;
        } else if stat.st_size > 0 {
            self.file(parent, name, &stat, opened_up)?;
        }
        Ok(false)
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
        opened_up: Option<&mut bool>,
    ) -> io::Result<()> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        nar::dump(parent, OsStr::from_bytes(name.to_bytes()), &mut hasher).map_err(io::Error::other)?;
        let link = CString::new(hasher.finish().base32())?;
        // Twice at most: what is in the way can be gone, or removed, once.
        for _ in 0..3 {
            match linkat(parent, name, &self.links, &link, AtFlags::empty()) {
                Ok(()) => {
                    self.known.insert(stat.st_ino);
                    return Ok(());
                }
                Err(Errno::EXIST) => {}
                // The file itself has as many as it can.
                Err(Errno::MLINK) => {
                    self.report.full += 1;
                    return Ok(());
                }
                // The disk, or on some file systems the directory, is full.
                Err(error) => return Err(error.into()),
            }
            let other = match statat(&self.links, &link, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            if other.st_ino == stat.st_ino {
                self.known.insert(stat.st_ino);
                self.report.already += 1;
                return Ok(());
            }
            if other.st_size != stat.st_size || other.st_mode != stat.st_mode {
                self.report.warnings.push(format!("removed the damaged file ‘{}’ from .links", link.to_string_lossy()));
                unlinkat(&self.links, &link, AtFlags::empty())?;
                continue;
            }
            return self.replace(parent, name, stat, &link, opened_up);
        }
        Ok(())
    }

    fn replace(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
        link: &CStr,
        opened_up: Option<&mut bool>,
    ) -> io::Result<()> {
        // In the store's own directory, where a collector finds what a kill leaves.
        self.counter += 1;
        let temporary = CString::new(format!(".tmp-link-{}-{}", std::process::id(), self.counter))?;
        match unlinkat(&self.directory, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match linkat(&self.links, link, &self.directory, &temporary, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::MLINK) => {
                self.report.full += 1;
                return Ok(());
            }
            // A collector found it without another name.
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let open_up = || match opened_up {
            Some(opened_up) if !*opened_up => {
                fchmod(parent, Mode::from_raw_mode(0o755))?;
                *opened_up = true;
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(error) = open_up().and_then(|()| renameat(&self.directory, &temporary, parent, name)) {
            let _ = unlinkat(&self.directory, &temporary, AtFlags::empty());
            return Err(error.into());
        }
        self.report.linked += 1;
        if stat.st_nlink == 1 {
            self.report.bytes_saved += stat.st_blocks as u64 * 512;
        }
        Ok(())
    }
}

/// Gives a directory its form in a store again.
fn close_down(directory: &OwnedFd, opened_up: bool) -> io::Result<()> {
    let mode = fstat(directory)?.st_mode & 0o7777;
    if opened_up || mode == 0o755 {
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        fchmod(directory, Mode::from_raw_mode(0o555))?;
        futimens(directory, &Timestamps { last_access: second, last_modification: second })?;
    }
    Ok(())
}
