//! Paths that come from a client: written as they come, checked before they count.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, Timespec, Timestamps, fchmod, futimens, openat};

use super::content_address::{ContentAddress, hash_file};
use super::{Fault, Server};
use crate::build::stored::{self, StoredError};
use crate::cache::{Compression, NarInfo, Signature};
use crate::derivation::paths::{Calculator, PathsError};
use crate::derivation::{Derivation, EXTENSION, Method, aterm};
use crate::hash::{Algorithm, Hasher};
use crate::nar;
use crate::store::{PathInfo, Registration, Store, TempDir};
use crate::store_path::{StorePath, check_name};
use crate::wire::Hashed;

/// The tree in a temporary directory.
const TREE: &str = "x";

/// Reads an archive to its end and forgets it.
pub(super) fn skip_nar(source: impl BufRead) -> Result<(), Fault> {
    let mut reader = nar::Reader::new(source);
    while reader.next().map_err(Fault::refused)?.is_some() {}
    Ok(())
}

/// Takes the archive that `source` gives as the path that `info` tells of, unless it is there. `check_signatures` is what the client
/// asked for; one who is not believed cannot ask for less.
pub(super) fn add_nar(
    server: &Server<'_>,
    source: impl BufRead,
    mut info: PathInfo,
    check_signatures: bool,
    notice: &mut dyn FnMut(&str),
) -> Result<(), Fault> {
    let store = server.store;
    if store.keep_if_valid(&info.path)?.is_some() {
        return skip_nar(source);
    }
    vouch(server, &info, check_signatures)?;
    info.ultimate &= server.trusted;
    info.registration_time = 0;
    // Known before the first byte is written, so that nobody sends gigabytes for nothing.
    let others: BTreeSet<_> = info.references.iter().filter(|path| **path != info.path).cloned().collect();
    if let Some(missing) = others.difference(&store.valid_of(&others)?).next() {
        return Err(Fault::refused(format!(
            "cannot add path '{}': it refers to '{}', which is not valid here; send that first",
            store.dir().display(&info.path),
            store.dir().display(missing)
        )));
    }

    let temp = store.temp_dir()?;
    let mut reader = nar::Reader::new(Hashed::new(source, Algorithm::Sha256));
    nar::restore(&mut reader, temp.directory(), OsStr::new(TREE)).map_err(Fault::refused)?;
    let canonical = reader.is_as_nix_writes();
    let (mut hash, mut size) = reader.into_source().finish();
    if !canonical {
        // Two archives can stand for this tree, and what counts is the one that we write of it.
        let survey = nar::pass::survey(temp.directory(), OsStr::new(TREE), []).map_err(Fault::refused)?;
        (hash, size) = (survey.hash, survey.size);
    }
    let shown = store.dir().display(&info.path);
    if hash != info.nar_hash {
        return Err(Fault::refused(format!(
            "hash mismatch importing path '{shown}';\n  specified: {}\n  got:       {}",
            info.nar_hash.sri(),
            hash.sri()
        )));
    }
    if size != info.nar_size {
        return Err(Fault::refused(format!(
            "size mismatch importing path '{shown}';\n  specified: {}\n  got:       {size}",
            info.nar_size
        )));
    }
    if let Some(text) = &info.content_address {
        let address: ContentAddress = text.parse()?;
        address.check(temp.directory(), OsStr::new(TREE), &info)?;
    }
    let outputs = derivation_outputs(store, &temp, &info.path)?;
    store.move_in(temp.directory(), OsStr::new(TREE), Registration { info, outputs }, notice)?;
    Ok(())
}

/// Whether what is said of a path may be believed: because of who says it, because of who signed it, or because of its name.
fn vouch(server: &Server<'_>, info: &PathInfo, check_signatures: bool) -> Result<(), Fault> {
    let dir = server.store.dir();
    let named = match &info.content_address {
        Some(text) => {
            let address: ContentAddress = text.parse()?;
            if !address.names(info, dir) {
                return Err(Fault::refused(format!(
                    "the path '{}' is not the one that follows from its content address '{text}'",
                    dir.display(&info.path)
                )));
            }
            true
        }
        None => false,
    };
    if named || !server.require_signatures || (server.trusted && !check_signatures) {
        return Ok(());
    }
    if is_signed(server, info) {
        return Ok(());
    }
    Err(Fault::refused(format!(
        "cannot add path '{}' because it lacks a signature by a trusted key",
        dir.display(&info.path)
    )))
}

/// Whether a key that counts here has signed what `info` says.
pub(super) fn is_signed(server: &Server<'_>, info: &PathInfo) -> bool {
    let signatures: Vec<Signature> = info.signatures.iter().filter_map(|text| text.parse().ok()).collect();
    let signed = NarInfo {
        path: info.path.clone(),
        url: String::new(),
        compression: Compression::None,
        file_hash: None,
        file_size: None,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.clone(),
        deriver: info.deriver.clone(),
        signatures,
        ca: info.content_address.clone(),
    };
    signed.signed_by(&server.keys, server.store.dir()).is_some()
}

/// Takes what `source` gives to its end as a path named by its contents; gives what is then known of it.
pub(super) fn add_by_contents(
    store: &Store,
    source: impl BufRead,
    name: &str,
    (method, algorithm): (Method, Algorithm),
    references: BTreeSet<StorePath>,
    notice: &mut dyn FnMut(&str),
) -> Result<PathInfo, Fault> {
    check_name(name)?;
    let temp = store.temp_dir()?;
    let hash = match method {
        Method::Recursive => {
            let mut source = Hashed::new(source, algorithm);
            let mut reader = nar::Reader::new(&mut source);
            nar::restore(&mut reader, temp.directory(), OsStr::new(TREE)).map_err(Fault::refused)?;
            if reader.is_as_nix_writes() {
                source.finish().0
            } else {
                let mut hasher = Hasher::new(algorithm);
                nar::dump(temp.directory(), OsStr::new(TREE), &mut hasher).map_err(Fault::refused)?;
                hasher.finish()
            }
        }
        Method::Flat | Method::Text => {
            put_file(source, &temp)?;
            hash_file(temp.directory(), OsStr::new(TREE), algorithm)?
        }
    };
    let address = ContentAddress { method, hash };
    let path = address.path(name, &references, None, store.dir())?;
    if let Some(info) = store.keep_if_valid(&path)? {
        return Ok(info);
    }
    let survey = nar::pass::survey(temp.directory(), OsStr::new(TREE), []).map_err(Fault::refused)?;
    let mut info = PathInfo::new(path.clone(), survey.hash, survey.size);
    info.references = references;
    info.content_address = Some(address.to_string());
    let outputs = derivation_outputs(store, &temp, &path)?;
    store.move_in(temp.directory(), OsStr::new(TREE), Registration { info, outputs }, notice)?;
    Ok(store.path_info(&path)?)
}

/// A regular file with all that `source` gives, in a store's own form.
fn put_file(mut source: impl BufRead, temp: &TempDir) -> Result<(), Fault> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o444);
    let mut file = File::from(openat(temp.directory(), TREE, flags, mode).map_err(Fault::refused)?);
    io::copy(&mut source, &mut file).and_then(|_| file.flush()).map_err(Fault::refused)?;
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    fchmod(&file, mode)
        .and_then(|()| futimens(file.as_fd(), &Timestamps { last_access: second, last_modification: second }))
        .map_err(Fault::refused)
}

/// The outputs of a derivation that is about to be registered, after a look at whether they are those that follow from it: whoever
/// finds one in the store takes it for what its derivation makes. For other paths, none.
fn derivation_outputs(store: &Store, temp: &TempDir, path: &StorePath) -> Result<BTreeMap<String, StorePath>, Fault> {
    if !path.is_derivation() {
        return Ok(BTreeMap::new());
    }
    let name = path.name().strip_suffix(EXTENSION).unwrap_or(path.name());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = openat(temp.directory(), TREE, flags, Mode::empty()) else {
        // A directory called `x.drv` is no derivation, and nobody takes it for one.
        return Ok(BTreeMap::new());
    };
    let mut bytes = Vec::new();
    let read = io::Read::read_to_end(&mut io::Read::take(File::from(file), aterm::MAX_LEN as u64 + 1), &mut bytes);
    match read {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Ok(BTreeMap::new()),
        other => other.map_err(Fault::refused)?,
    };
    let derivation = aterm::read(&bytes, name, store.dir())
        .map_err(|error| Fault::refused(format!("cannot add '{}': {error}", store.dir().display(path))))?;
    let mut calculator = Calculator::new(store.dir(), |path: &StorePath| -> Result<Option<Derivation>, StoredError> {
        if store.is_valid(path)? { stored::read(store, path).map(Some) } else { Ok(None) }
    });
    match calculator.check_outputs(&derivation) {
        Ok(()) => {}
        // Its paths are known after the build only: there is nothing to be wrong.
        Err(PathsError::Unsupported { .. } | PathsError::DeferredInput { .. } | PathsError::NoPath { .. }) => {}
        Err(error) => return Err(Fault::refused(format!("cannot add '{}': {error}", store.dir().display(path)))),
    }
    Ok(crate::build::realise::known_outputs(&derivation))
}
