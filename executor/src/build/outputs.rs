//! What a builder has left, taken as an enemy's work: looked at only when everything in its room is dead, through held
//! directories, and put in its place only when nothing more can be wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::result::Status;
use super::scratch;
use super::upkeep::Upkeep;
use crate::derivation::{Derivation, Method};
use crate::hash::{Algorithm, Hash, Hasher};
use crate::nar;
use crate::store::{PathInfo, Registration, Store};
use crate::store_path::StorePath;
use crate::tree;

/// Why outputs are not taken.
#[derive(Debug)]
pub struct Rejected {
    /// The class of the failure.
    pub status: Status,
    /// What a person reads.
    pub message: String,
}

impl Rejected {
    fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    fn output(message: impl Into<String>) -> Self {
        Self::new(Status::OutputRejected, message)
    }
}

/// One output, canonical and measured, still where the builder made it.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Its path.
    pub path: StorePath,
    /// The SHA-256 of its archive.
    pub nar_hash: Hash,
    /// The length of its archive in bytes.
    pub nar_size: u64,
    /// What it refers to, itself and other outputs too.
    pub references: BTreeSet<StorePath>,
    /// What its path was computed from, if from its contents.
    pub content_address: Option<String>,
}

/// Takes every output from `store`, the directory that the builder saw as the store. `inputs` is the closure that it saw;
/// `policy` says whose files they may be. `aside` is a directory on the same file system that no builder has seen.
///
/// # Errors
/// A missing output, or one that is not what it may be.
pub fn take(
    derivation: &Derivation,
    store: BorrowedFd<'_>,
    aside: BorrowedFd<'_>,
    store_dir: &crate::store_path::StoreDir,
    inputs: &[StorePath],
    policy: &tree::Policy,
    discard_references: &BTreeSet<String>,
) -> Result<BTreeMap<String, Taken>, Rejected> {
    let outputs: Vec<_> =
        derivation.outputs.iter().filter_map(|(name, output)| output.path().map(|path| (name, path))).collect();
    let missing: Vec<_> = outputs
        .iter()
        .filter(|(_, path)| scratch::is_absent(store, path.as_str()))
        .map(|(name, path)| format!("‘{name}’ ({})", store_dir.display(path)))
        .collect();
    if !missing.is_empty() {
        return Err(Rejected::output(format!(
            "ended well but did not make its output {}; it must create that path",
            missing.join(", ")
        )));
    }
    // All of them first: what is measured must not change under a hard link from another output.
    let trees: Vec<_> = outputs.iter().map(|(_, path)| (store, OsStr::new(path.as_str()))).collect();
    tree::canonicalise_all(&trees, policy)
        .map_err(|error| Rejected::output(format!("made an output that is refused: {error}")))?;
    if let Some((path, ..)) = derivation.fixed_output() {
        renew(store, aside, path.as_str().as_ref()).map_err(|error| {
            Rejected::new(Status::MiscFailure, format!("copying ‘{}’: {error}", store_dir.display(path)))
        })?;
    }
    let candidates: BTreeSet<StorePath> =
        inputs.iter().cloned().chain(outputs.iter().map(|(_, path)| (*path).clone())).collect();
    let mut taken = BTreeMap::new();
    for (name, path) in outputs {
        let found = nar::pass::survey(store, path.as_str().as_ref(), candidates.iter().cloned()).map_err(|error| {
            Rejected::output(format!("made an output that cannot be read, ‘{}’: {error}", store_dir.display(path)))
        })?;
        let mut one = Taken {
            path: path.clone(),
            nar_hash: found.hash,
            nar_size: found.size,
            references: found.references,
            content_address: None,
        };
        if discard_references.contains(name) {
            one.references.clear();
        }
        if let Some((path, method, wanted)) = derivation.fixed_output() {
            check_fixed(&mut one, store, store_dir, path, method, wanted)?;
        }
        taken.insert(name.clone(), one);
    }
    Ok(taken)
}

/// Puts a copy in the place of a tree: what was opened for writing before is then another file. A builder with a network
/// has more ways than others to hand a descriptor to somebody who outlives it (CVE-2024-27297).
fn renew(store: BorrowedFd<'_>, aside: BorrowedFd<'_>, name: &OsStr) -> Result<(), tree::TreeError> {
    let fresh = OsStr::new("fresh");
    tree::copy(store, name, aside, fresh)?;
    tree::remove(store, name)?;
    tree::rename(aside, fresh, store, name)
}

/// A fixed output must be the one that was declared, and must refer to nothing.
fn check_fixed(
    taken: &mut Taken,
    store: BorrowedFd<'_>,
    store_dir: &crate::store_path::StoreDir,
    path: &StorePath,
    method: Method,
    wanted: &Hash,
) -> Result<(), Rejected> {
    let got = match method {
        Method::Recursive if wanted.algorithm() == Algorithm::Sha256 => taken.nar_hash,
        Method::Recursive => {
            let mut hasher = Hasher::new(wanted.algorithm());
            nar::dump(store, path.as_str().as_ref(), &mut hasher)
                .map_err(|error| Rejected::output(format!("reading ‘{}’: {error}", store_dir.display(path))))?;
            hasher.finish()
        }
        Method::Flat | Method::Text => hash_file(store, path, wanted.algorithm()).map_err(|why| {
            Rejected::output(format!(
                "made what it must not: the output ‘{}’ is declared as a file that is hashed as it is, and it is none: {why}; use ‘outputHashMode = \"recursive\"’ for anything else",
                store_dir.display(path)
            ))
        })?,
    };
    if got != *wanted {
        return Err(Rejected::new(
            Status::HashMismatch,
            format!(
                "made something else than was declared: hash mismatch in fixed-output derivation, output ‘{}’:\n  specified: {}\n  got:       {}",
                store_dir.display(path),
                wanted.sri(),
                got.sri()
            ),
        ));
    }
    if method != Method::Text
        && let Some(reference) = taken.references.first()
    {
        return Err(Rejected::output(format!(
            "made what it must not: the fixed output ‘{}’ refers to ‘{}’, and what is known by its hash alone may refer to nothing",
            store_dir.display(path),
            store_dir.display(reference)
        )));
    }
    taken.content_address = Some(match method {
        Method::Text => format!("text:{wanted}"),
        Method::Flat => format!("fixed:{wanted}"),
        Method::Recursive => format!("fixed:r:{wanted}"),
    });
    Ok(())
}

fn hash_file(store: BorrowedFd<'_>, path: &StorePath, algorithm: Algorithm) -> Result<Hash, String> {
    use rustix::fs::{FileType, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: OwnedFd =
        rustix::fs::openat(store, path.as_str(), flags, Mode::empty()).map_err(|errno| errno.to_string())?;
    let found = rustix::fs::fstat(file.as_fd()).map_err(|errno| errno.to_string())?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err("it is not a regular file".to_owned());
    }
    if found.st_mode & 0o111 != 0 {
        return Err("it is executable".to_owned());
    }
    let mut hasher = Hasher::new(algorithm);
    std::io::copy(&mut File::from(file), &mut hasher).map_err(|error| error.to_string())?;
    Ok(hasher.finish())
}

/// Puts the outputs that are not valid yet in their places, signs and registers them, all or none. The caller holds their
/// locks.
///
/// # Errors
/// What the file system or the store says.
pub fn register(
    store: &Store,
    from: BorrowedFd<'_>,
    derivation: &StorePath,
    taken: &BTreeMap<String, Taken>,
    upkeep: &Upkeep,
) -> Result<(), String> {
    let mut registrations = Vec::new();
    for one in taken.values() {
        if store.is_valid(&one.path).map_err(|error| error.to_string())? {
            continue;
        }
        store.move_files(from, one.path.as_str().as_ref(), &one.path).map_err(|error| error.to_string())?;
        let mut info = PathInfo {
            references: one.references.clone(),
            deriver: Some(derivation.clone()),
            ultimate: true,
            content_address: one.content_address.clone(),
            ..PathInfo::new(one.path.clone(), one.nar_hash, one.nar_size)
        };
        upkeep.sign(store, &mut info);
        registrations.push(Registration::from(info));
    }
    store.register(&registrations).map_err(|error| error.to_string())
}

/// Compares what a second build has left with what is in the store; a story of all differences, if there are any. With
/// `keep`, what differs is put beside the original as `PATH.check`.
///
/// # Errors
/// What the store or the file system says.
pub fn compare(
    store: &Store,
    from: BorrowedFd<'_>,
    taken: &BTreeMap<String, Taken>,
    keep: bool,
) -> Result<Option<String>, String> {
    let mut story = Vec::new();
    for (name, one) in taken {
        let known = store.path_info(&one.path).map_err(|error| error.to_string())?;
        if known.nar_hash == one.nar_hash {
            continue;
        }
        let mut line = format!(
            "the output ‘{name}’ differs: ‘{}’ has {}, and the second build gave {}",
            store.dir().display(&one.path),
            known.nar_hash,
            one.nar_hash
        );
        if keep {
            let kept = put_aside(store, from, &one.path)?;
            line.push_str(&format!("; the second is kept as ‘{}’", kept.display()));
            if let Some(text) = diffoscope(&store.real_path(&one.path), &kept) {
                line.push('\n');
                line.push_str(&text);
            }
        }
        story.push(line);
    }
    if story.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!("may not be deterministic:\n{}", story.join("\n"))))
}

fn put_aside(store: &Store, from: BorrowedFd<'_>, path: &StorePath) -> Result<PathBuf, String> {
    let real = store.real_dir();
    let into = File::open(&real).map_err(|error| format!("opening {}: {error}", real.display()))?;
    let name = format!("{path}.check");
    if !scratch::is_absent(into.as_fd(), &name) {
        tree::remove(into.as_fd(), name.as_ref()).map_err(|error| error.to_string())?;
    }
    tree::copy(from, path.as_str().as_ref(), into.as_fd(), name.as_ref()).map_err(|error| error.to_string())?;
    Ok(real.join(name))
}

/// What diffoscope(1) says, where it is installed.
fn diffoscope(first: &Path, second: &Path) -> Option<String> {
    let said = std::process::Command::new("diffoscope")
        .args(["--text", "-"])
        .args([first, second])
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    (!text.is_empty()).then_some(text)
}
