//! Who vouches for a path: a key, or its own contents.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags, openat};

use super::TransferError;
use crate::cache::{NarInfo, PublicKey};
use crate::hash::{Algorithm, Hash, Hasher};
use crate::nar;
use crate::store::StoreError;
use crate::store_path::{StoreDir, StorePath};

/// The name of the key that vouches for `info`; nothing if it is named by its contents, which are then still to be
/// [checked](check).
pub(super) fn voucher(info: &NarInfo, keys: &[PublicKey], dir: &StoreDir) -> Result<Option<String>, TransferError> {
    if let Some(key) = info.signed_by(keys, dir) {
        return Ok(Some(key.name().to_owned()));
    }
    if let Some(address) = &info.ca
        && let Some(address) = Address::read(address, info)
        && address.names(info, dir)
        && !info.references.contains(&info.path)
    {
        return Ok(None);
    }
    let names: Vec<_> = info.signatures.iter().map(|signature| signature.key_name()).collect();
    if let Some(key) = keys.iter().find(|key| names.contains(&key.name())) {
        return Err(TransferError::WrongSignature { path: info.path.clone(), key: key.name().to_owned() });
    }
    let names = names.into_iter().map(|name| format!("‘{}’", name.escape_debug())).collect();
    Err(TransferError::Untrusted { path: info.path.clone(), names })
}

/// Whether the tree `name` in `parent`, which has the archive that `info` says, is also what its content address says.
/// Without one there is nothing to check.
pub(super) fn check(info: &NarInfo, dir: &StoreDir, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), TransferError> {
    let Some(text) = &info.ca else { return Ok(()) };
    let wrong = |what: String| TransferError::ContentAddress {
        path: info.path.clone(),
        address: text.escape_debug().to_string(),
        what,
    };
    let address = Address::read(text, info).ok_or_else(|| wrong("it has none of the known forms".to_owned()))?;
    if !address.names(info, dir) {
        return Err(wrong("the path has another name than would follow from it".to_owned()));
    }
    let wanted = address.hash;
    let differ = |found: Hash| {
        if found == wanted { Ok(()) } else { Err(wrong(format!("the hash is {}, not {}", found.sri(), wanted.sri()))) }
    };
    match address.method {
        Method::Recursive if info.references.contains(&info.path) => {
            // Versions of Nix disagree whether the places of the mentions are hashed as well.
            let modulo = |places| nar::rewrite::hash_modulo(parent, name, wanted.algorithm(), &info.path, places);
            if modulo(true)?.0 == wanted { Ok(()) } else { differ(modulo(false)?.0) }
        }
        Method::Recursive if wanted.algorithm() == Algorithm::Sha256 => differ(info.nar_hash),
        Method::Recursive => {
            let mut hasher = Hasher::new(wanted.algorithm());
            nar::dump(parent, name, &mut hasher)?;
            differ(hasher.finish())
        }
        Method::Flat | Method::Text => {
            let failed = |error| StoreError::io("read", name, error);
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let mut file = File::from(
                openat(parent, name, flags, Mode::empty()).map_err(|_| wrong("it is no regular file".to_owned()))?,
            );
            if !file.metadata().map_err(failed)?.is_file() {
                return Err(wrong("it is no regular file".to_owned()));
            }
            let mut hasher = Hasher::new(wanted.algorithm());
            let mut buffer = vec![0; 128 << 10];
            loop {
                match file.read(&mut buffer).map_err(failed)? {
                    0 => break,
                    count => hasher.update(&buffer[..count]),
                }
            }
            differ(hasher.finish())
        }
    }
}

enum Method {
    Flat,
    Recursive,
    Text,
}

/// `text:sha256:…`, `fixed:sha256:…` or `fixed:r:sha256:…`.
struct Address {
    method: Method,
    hash: Hash,
}

impl Address {
    fn read(text: &str, info: &NarInfo) -> Option<Self> {
        let (method, hash) = match text.split_once(':')? {
            ("text", hash) => (Method::Text, hash),
            ("fixed", hash) => match hash.strip_prefix("r:") {
                Some(hash) => (Method::Recursive, hash),
                None => (Method::Flat, hash),
            },
            _ => return None,
        };
        let hash: Hash = hash.parse().ok()?;
        let plain = info.references.is_empty();
        let possible = match method {
            Method::Text => hash.algorithm() == Algorithm::Sha256 && !info.references.contains(&info.path),
            Method::Recursive => plain || hash.algorithm() == Algorithm::Sha256,
            Method::Flat => plain,
        };
        possible.then_some(Self { method, hash })
    }

    /// Whether the path has the name that follows from it.
    fn names(&self, info: &NarInfo, dir: &StoreDir) -> bool {
        let name = info.path.name();
        let others = info.references.iter().filter(|path| **path != info.path);
        let itself = info.references.contains(&info.path);
        let path: Result<StorePath, _> = match self.method {
            Method::Text => dir.text_path(name, &self.hash, others),
            Method::Recursive if self.hash.algorithm() == Algorithm::Sha256 => {
                dir.source_path(name, &self.hash, others, itself)
            }
            Method::Recursive => dir.fixed_path(name, true, &self.hash),
            Method::Flat => dir.fixed_path(name, false, &self.hash),
        };
        path.is_ok_and(|path| path == info.path)
    }
}
