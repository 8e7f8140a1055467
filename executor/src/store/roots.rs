//! What keeps paths from the collector. Source: `findRoots` and `findTempRoots` in `src/libstore/gc.cc` of Nix.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::{Store, StoreError};
use crate::store_path::StorePath;

/// What was found to keep paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roots {
    /// Valid paths, and what keeps each: the file or link that is the root, or a text in braces.
    pub paths: BTreeMap<StorePath, BTreeSet<String>>,
    /// Paths that living processes asked for or are making, valid or not.
    pub held: BTreeSet<StorePath>,
    /// What could not be looked at, for a person.
    pub warnings: Vec<String>,
}

/// A search under way.
struct Search<'a> {
    store: &'a Store,
    valid: HashSet<StorePath>,
    roots: Roots,
    /// Whether stale links and files may be removed.
    clean: bool,
}

impl Store {
    /// Finds all roots: links and files in `gcroots` and `profiles`, temporary roots, paths that are locked because they are
    /// being made and, if `runtime` is set, what running processes have open, mapped or in their environment, as far as this
    /// user may see it.
    ///
    /// # Errors
    /// A directory of roots that cannot be read: what it keeps would be taken for garbage.
    pub fn find_roots(&self, runtime: bool) -> Result<Roots, StoreError> {
        self.search_roots(runtime, false)
    }

    pub(super) fn search_roots(&self, runtime: bool, clean: bool) -> Result<Roots, StoreError> {
        let valid = self.all_valid_paths()?.into_iter().collect();
        let mut search = Search { store: self, valid, roots: Roots::default(), clean };
        let state = self.state_dir();
        search.directory(&state.join("gcroots"))?;
        search.directory(&state.join("profiles"))?;
        search.temporary(&state.join("temproots"))?;
        search.locked()?;
        if runtime {
            let valid = &search.valid;
            for (path, by) in super::runtime_roots::find(self, &|path| valid.contains(path)) {
                search.roots.paths.entry(path).or_default().insert(by);
            }
        }
        Ok(search.roots)
    }

    /// The store path that a link's target lies in. Links name a path by the store's own directory; whoever made one by hand
    /// may have named the place where the files really are.
    pub(super) fn path_of_target(&self, target: &Path) -> Option<StorePath> {
        let rest = target.strip_prefix(self.dir.as_str()).or_else(|_| target.strip_prefix(self.real_dir())).ok()?;
        rest.components().next()?.as_os_str().to_str()?.parse().ok()
    }

    /// Makes `link` a root of `path`: an indirect one, which keeps the path for as long as the link is there.
    ///
    /// # Errors
    /// `link` exists and is no link, or what the kernel says.
    pub fn add_indirect_root(&self, path: &StorePath, link: &Path) -> Result<(), StoreError> {
        self.check_writable("add a root")?;
        let link = std::path::absolute(link).map_err(StoreError::on("find", link))?;
        match fs::symlink_metadata(&link) {
            Ok(file) if !file.is_symlink() => {
                return Err(StoreError::io(
                    "replace with a link",
                    &link,
                    io::Error::from(io::ErrorKind::AlreadyExists),
                ));
            }
            _ => {}
        }
        // The root comes first: between the two steps it leads nowhere, and never is there a link that keeps nothing.
        self.add_temp_root(path)?;
        replace_link(&link, Path::new(&self.dir.display(path)))?;
        self.add_link_to_root(&link)
    }

    /// Makes whatever path `link` leads to a root for as long as it does. It need not be there yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_link_to_root(&self, link: &Path) -> Result<(), StoreError> {
        self.check_writable("add a root")?;
        let name = crate::hash::Hash::of(crate::hash::Algorithm::Sha1, link.as_os_str().as_bytes()).base32();
        replace_link(&self.state_dir().join("gcroots/auto").join(name), link)
    }
}

impl Search<'_> {
    fn found(&mut self, path: StorePath, by: &Path) {
        if self.valid.contains(&path) {
            self.roots.paths.entry(path).or_default().insert(by.display().to_string());
        }
    }

    /// All below `top`. Hundreds of thousands of files are usual: nothing is asked about a regular file but its name.
    fn directory(&mut self, top: &Path) -> Result<(), StoreError> {
        let mut left = vec![top.to_owned()];
        while let Some(directory) = left.pop() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(StoreError::io("read the directory of roots", directory, error)),
            };
            for entry in entries {
                let entry = entry.map_err(StoreError::on("read the directory of roots", &directory))?;
                let kind = match entry.file_type() {
                    Ok(kind) => kind,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(StoreError::io("look at the root", entry.path(), error)),
                };
                if kind.is_dir() {
                    left.push(entry.path());
                } else if kind.is_symlink() {
                    self.link(&entry.path());
                } else if kind.is_file()
                    && let Some(path) = entry.file_name().to_str().and_then(|name| name.parse().ok())
                {
                    self.found(path, &entry.path());
                }
            }
        }
        Ok(())
    }

    fn link(&mut self, link: &Path) {
        let target = match fs::read_link(link) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.warn(link, &error),
        };
        if let Some(path) = self.store.path_of_target(&target) {
            return self.found(path, link);
        }
        let indirect = link.parent().unwrap_or(Path::new("/")).join(target);
        match fs::read_link(&indirect) {
            Ok(target) => {
                if let Some(path) = self.store.path_of_target(&target) {
                    self.found(path, &indirect);
                }
            }
            // A file or directory: it is no root any more, or never was.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                if self.clean && link.starts_with(self.store.state_dir().join("gcroots/auto")) {
                    let _ = fs::remove_file(link);
                }
            }
            Err(error) => self.warn(&indirect, &error),
        }
    }

    fn temporary(&mut self, directory: &Path) -> Result<(), StoreError> {
        for (name, path) in list(directory)? {
            let Some(mut file) = open_for_lock(&path)? else { continue };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Nobody holds it: its process is dead.
                Ok(()) => {
                    if self.clean {
                        super::path_lock::remove_lock(&path, &file);
                    }
                    continue;
                }
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(StoreError::io("lock", path, error)),
            }
            let mut text = Vec::new();
            file.read_to_end(&mut text).map_err(StoreError::on("read", &path))?;
            // What follows the last NUL is still being written.
            for one in text.split_inclusive(|byte| *byte == 0).filter_map(|one| one.strip_suffix(&[0])) {
                if let Some(path) = self.store.path_of_target(Path::new(OsStr::from_bytes(one))) {
                    self.held(path, format!("{{temp:{}}}", name.to_string_lossy()));
                }
            }
        }
        Ok(())
    }

    /// Who holds the lock of a path makes it, or is about to.
    fn locked(&mut self) -> Result<(), StoreError> {
        for (name, path) in list(&self.store.real_dir())? {
            let Some(base) = name.to_str().and_then(|name| name.strip_suffix(".lock")) else { continue };
            let Ok(base) = base.parse() else { continue };
            if !is_lockable(&path)? {
                self.held(base, "{locked}".to_owned());
            }
        }
        Ok(())
    }

    fn held(&mut self, path: StorePath, by: String) {
        if self.valid.contains(&path) {
            self.roots.paths.entry(path.clone()).or_default().insert(by);
        }
        self.roots.held.insert(path);
    }

    fn warn(&mut self, link: &Path, error: &io::Error) {
        self.roots
            .warnings
            .push(format!("cannot look at the root ‘{}’, which keeps nothing now: {error}", link.display()));
    }
}

/// Whether nobody holds a lock on what is at `path`. A file that we may not open is taken for held.
pub(super) fn is_lockable(path: &Path) -> Result<bool, StoreError> {
    let Some(file) = open_for_lock(path)? else { return Ok(true) };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(StoreError::io("lock", path, error)),
    }
}

fn open_for_lock(path: &Path) -> Result<Option<File>, StoreError> {
    use rustix::fs::OFlags;
    use std::os::unix::fs::OpenOptionsExt;
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let open = |write| OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
    match open(true).or_else(|_| open(false)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("open", path, error)),
    }
}

/// The names in a directory. That there is none is no error.
pub(super) fn list(directory: &Path) -> Result<Vec<(std::ffi::OsString, PathBuf)>, StoreError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io("read the directory", directory, error)),
    };
    entries
        .map(|entry| entry.map(|entry| (entry.file_name(), entry.path())))
        .collect::<Result<_, _>>()
        .map_err(StoreError::on("read the directory", directory))
}

fn replace_link(link: &Path, target: &Path) -> Result<(), StoreError> {
    let mut name = link.as_os_str().to_owned();
    name.push(format!(".tmp-{}", std::process::id()));
    let temporary = PathBuf::from(name);
    let _ = fs::remove_file(&temporary);
    std::os::unix::fs::symlink(target, &temporary)
        .and_then(|()| fs::rename(&temporary, link))
        .map_err(StoreError::on("make the link", link))
}
