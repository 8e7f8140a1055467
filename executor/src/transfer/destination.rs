//! A batch of paths on its arrival.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::AsFd as _;

use super::{Place, Request, TransferError, contents, parallel, source};
use crate::cache::{self, Directory, NarInfo};
use crate::nar::NarError;
use crate::store::{PathInfo, Registration, Store};
use crate::store_path::StorePath;
use crate::tree;

/// Says which path it was.
fn of_path(info: &NarInfo) -> impl FnOnce(TransferError) -> TransferError {
    let path = info.path.clone();
    move |error| match error {
        TransferError::ContentAddress { .. } | TransferError::Path { .. } => error,
        other => TransferError::Path { path, source: Box::new(other) },
    }
}

/// Puts `batch` into `store`, whose paths may refer to each other and to what is valid there; gives those that were not
/// valid already.
pub(super) fn into_store(
    from: &Place,
    store: &Store,
    batch: &[&NarInfo],
    request: &Request,
    told: &(dyn Fn(&NarInfo) + Sync),
    notice: &mut dyn FnMut(&str),
) -> Result<BTreeSet<StorePath>, TransferError> {
    for info in batch {
        store.add_temp_root(&info.path)?;
    }
    let temp = store.temp_dir()?;
    let parent = temp.directory();
    parallel::map(request.jobs, batch, |info| {
        let name = OsStr::new(info.path.as_str());
        source::unpack(from, info, parent, name)
            .and_then(|()| contents::check(info, store.dir(), parent, name))
            .map_err(of_path(info))?;
        told(info);
        Ok::<_, TransferError>(())
    })?;
    // Somebody may have made some of them meanwhile, and theirs stay.
    let locks = store.lock_paths(batch.iter().map(|info| &info.path), notice)?;
    let there = store.valid_of(&batch.iter().map(|info| info.path.clone()).collect())?;
    let new: Vec<_> = batch.iter().filter(|info| !there.contains(&info.path)).collect();
    let mut moved = Vec::new();
    let registered = new
        .iter()
        .try_for_each(|info| {
            moved.push(&info.path);
            store.move_files(parent, OsStr::new(info.path.as_str()), &info.path)
        })
        .and_then(|()| store.register(&new.iter().map(|info| registration(info, request, store)).collect::<Vec<_>>()));
    if registered.is_err() {
        // Nobody can use what is not valid. What cannot be removed either, the next collector takes.
        for path in moved {
            let _ = tree::place(&store.real_path(path)).and_then(|(top, name)| tree::remove(top.as_fd(), &name));
        }
    }
    locks.release();
    registered?;
    Ok(new.iter().map(|info| info.path.clone()).collect())
}

fn registration(info: &NarInfo, request: &Request, store: &Store) -> Registration {
    let mut signed = info.clone();
    for key in &request.keys {
        signed.sign(key, store.dir());
    }
    Registration::from(PathInfo {
        references: info.references.clone(),
        deriver: info.deriver.clone(),
        signatures: signed.signatures.iter().map(ToString::to_string).collect(),
        content_address: info.ca.clone(),
        ..PathInfo::new(info.path.clone(), info.nar_hash, info.nar_size)
    })
}

/// Puts `batch` into `cache`: first the archives, then what speaks of them, each after those that it refers to.
pub(super) fn into_cache(
    from: &Place,
    cache: &Directory,
    batch: &[&NarInfo],
    request: &Request,
    told: &(dyn Fn(&NarInfo) + Sync),
) -> Result<BTreeSet<StorePath>, TransferError> {
    let described = parallel::map(request.jobs, batch, |info| {
        let wanted = cache::PathInfo {
            path: info.path.clone(),
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            references: info.references.clone(),
            deriver: info.deriver.clone(),
            signatures: info.signatures.clone(),
            ca: info.ca.clone(),
        };
        // The cache asks for an archive and knows errors of archives only; what else went wrong is kept aside.
        let mut cause = None;
        let write = |sink: &mut dyn std::io::Write| match source::archive(from, info, sink) {
            Err(TransferError::Archive(error)) => Err(error),
            Err(error) => {
                let short = std::io::Error::other(error.to_string());
                cause = Some(error);
                Err(NarError::Sink(short))
            }
            Ok(()) => Ok(()),
        };
        let pushed = cache.push_archive(&wanted, write, request.compression);
        let pushed = pushed.map_err(|error| cause.take().unwrap_or_else(|| error.into())).map_err(of_path(info))?;
        told(info);
        Ok::<_, TransferError>(pushed)
    })?;
    for mut info in described {
        for key in &request.keys {
            info.sign(key, cache.store_dir());
        }
        cache.publish(&info)?;
    }
    Ok(batch.iter().map(|info| info.path.clone()).collect())
}
