//! What is to be copied, as its source describes it, and the archives that it gives.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::{AsFd as _, BorrowedFd};

use super::{Place, TransferError};
use crate::cache::{Compression, Directory, NarInfo};
use crate::hash::{Algorithm, Hasher};
use crate::nar::{self, NarError};
use crate::store::{PathInfo, Store, StoreError};
use crate::store_path::StorePath;
use crate::tree;

const BUFFER: usize = 256 << 10;

/// `paths` and all that they need, but for what `to` has already: that is added to `present`, and kept there.
pub(super) fn closure(
    from: &Place,
    paths: &BTreeSet<StorePath>,
    to: &Place,
    present: &mut BTreeSet<StorePath>,
) -> Result<BTreeMap<StorePath, NarInfo>, TransferError> {
    let mut infos = BTreeMap::new();
    // Where each was first met: the way up to what was asked for.
    let mut needed_by: BTreeMap<StorePath, StorePath> = BTreeMap::new();
    let mut left: Vec<_> = paths.iter().cloned().collect();
    while let Some(path) = left.pop() {
        if infos.contains_key(&path) || present.contains(&path) {
            continue;
        }
        let (is_there, whole) = match to {
            // What is valid in a store has all that it needs.
            Place::Store(store) => (store.keep_if_valid(&path)?.is_some(), true),
            Place::Cache(cache) => (cache.info(path.hash_part())?.is_some_and(|info| info.path == path), false),
        };
        if is_there {
            present.insert(path.clone());
            if whole {
                continue;
            }
        }
        let info = describe(from, &path)?.ok_or_else(|| {
            let mut chain: Vec<_> = std::iter::successors(needed_by.get(&path), |above| needed_by.get(*above))
                .take(paths.len() + needed_by.len())
                .cloned()
                .collect();
            chain.reverse();
            TransferError::Missing { place: from.shown(), path: path.clone(), chain }
        })?;
        for reference in info.references.iter().filter(|reference| **reference != path) {
            if !infos.contains_key(reference) && !paths.contains(reference) {
                needed_by.entry(reference.clone()).or_insert_with(|| path.clone());
            }
            left.push(reference.clone());
        }
        if !is_there {
            infos.insert(path, info);
        }
    }
    Ok(infos)
}

fn describe(from: &Place, path: &StorePath) -> Result<Option<NarInfo>, TransferError> {
    Ok(match from {
        Place::Store(store) => store.query_path_info(path)?.map(as_narinfo),
        Place::Cache(cache) => cache.info(path.hash_part())?.filter(|info| info.path == *path),
    })
}

/// What a store knows, in the form of a cache; there is no archive that it could name.
fn as_narinfo(info: PathInfo) -> NarInfo {
    NarInfo {
        path: info.path,
        url: String::new(),
        compression: Compression::None,
        file_hash: None,
        file_size: None,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references,
        deriver: info.deriver,
        // What is no signature vouches for nothing.
        signatures: info.signatures.iter().filter_map(|text| text.parse().ok()).collect(),
        ca: info.content_address,
    }
}

/// Makes the tree of `info`, as `name` in `parent`, in a store's own form. What is there afterwards is what `info` says.
pub(super) fn unpack(from: &Place, info: &NarInfo, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), TransferError> {
    match from {
        Place::Cache(cache) => Ok(cache.fetch_described(info.clone())?.restore(parent, name)?),
        Place::Store(store) => unpack_from_store(store, info, parent, name),
    }
}

fn unpack_from_store(store: &Store, info: &NarInfo, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), TransferError> {
    let (source, source_name) = tree::place(&store.real_path(&info.path)).map_err(StoreError::from)?;
    let (reader, writer) = io::pipe().map_err(StoreError::on("make a pipe for", info.path.as_str()))?;
    let (dumped, unpacked) = std::thread::scope(|scope| {
        let unpacking = scope.spawn(|| {
            let mut reader = nar::Reader::new(BufReader::with_capacity(BUFFER, reader));
            nar::restore(&mut reader, parent, name)
        });
        let mut sink =
            Hashing { inner: BufWriter::with_capacity(BUFFER, writer), hasher: Hasher::new(Algorithm::Sha256) };
        let dumped = nar::dump(source.as_fd(), &source_name, &mut sink).and_then(|size| {
            sink.inner.flush().map_err(NarError::Sink)?;
            Ok((size, sink.hasher.finish()))
        });
        // The writing end of the pipe is closed by now, or the other side would wait for more.
        (dumped, unpacking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    match (dumped, unpacked) {
        // If one end fails, the other says that it was cut off; the cause is what a person wants to read.
        (Ok(_) | Err(NarError::Sink(_)), Err(error)) => Err(error.into()),
        (Err(error), _) => {
            let _ = tree::remove(parent, name);
            Err(error.into())
        }
        (Ok((size, found)), Ok(())) if (size, found) != (info.nar_size, info.nar_hash) => {
            let _ = tree::remove(parent, name);
            let (wanted, found) = (info.nar_hash.sri(), found.sri());
            Err(StoreError::Changed { path: info.path.clone(), wanted, found }.into())
        }
        (Ok(_), Ok(())) => Ok(()),
    }
}

/// Writes the archive of `info` to `sink`; whether it is the right one is for the caller to see.
pub(super) fn archive(from: &Place, info: &NarInfo, sink: &mut dyn Write) -> Result<(), TransferError> {
    match from {
        Place::Store(store) => {
            let (parent, name) = tree::place(&store.real_path(&info.path)).map_err(StoreError::from)?;
            nar::dump(parent.as_fd(), &name, sink)?;
            Ok(())
        }
        Place::Cache(cache) => copy_archive(cache, info, sink),
    }
}

fn copy_archive(cache: &Directory, info: &NarInfo, sink: &mut dyn Write) -> Result<(), TransferError> {
    let mut fetched = cache.fetch_described(info.clone())?;
    io::copy(&mut fetched, sink).map_err(|source| NarError::Source { offset: 0, source })?;
    Ok(fetched.finish()?)
}

struct Hashing<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
