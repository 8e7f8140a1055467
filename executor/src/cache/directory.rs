//! A binary cache in a directory: what Nix calls `file://`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags, openat2};
use tempfile::NamedTempFile;

use super::compression::{Decoder, Encoder};
use super::narinfo::MAX_TEXT;
use super::{CacheError, Compression, FetchedNar, NarInfo, SecretKey, Signature};
use crate::hash::{Algorithm, Hash, Hasher, base32};
use crate::nar::NarError;
use crate::store_path::{HASH_PART_LEN, StoreDir, StorePath};

const INFO: &str = "nix-cache-info";
const ARCHIVES: &str = "nar";

/// What a store says of a path that it gives to a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The path.
    pub path: StorePath,
    /// The SHA-256 of its archive.
    pub nar_hash: Hash,
    /// The archive's size in bytes.
    pub nar_size: u64,
    /// The paths that it refers to, itself included if it does.
    pub references: BTreeSet<StorePath>,
    /// The derivation that it was built from.
    pub deriver: Option<StorePath>,
    /// Who vouches for it already.
    pub signatures: Vec<Signature>,
    /// How it is addressed by its contents, as Nix writes it.
    pub ca: Option<String>,
}

/// A binary cache in a directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    directory: OwnedFd,
    store: StoreDir,
}

impl Directory {
    /// Opens the cache in `path` for reading, which must be one of `store`.
    ///
    /// # Errors
    /// There is none, or it is one of another store.
    pub fn open(path: &Path, store: &StoreDir) -> Result<Self, CacheError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| CacheError::system("open the binary cache", path.display().to_string(), errno))?;
        let cache = Self { path: path.to_owned(), directory, store: store.clone() };
        let text = cache
            .read_text(INFO, 64 * 1024)?
            .ok_or_else(|| CacheError::system("find", cache.shown(INFO), io::Error::from(io::ErrorKind::NotFound)))?;
        let theirs = text.lines().find_map(|line| line.strip_prefix("StoreDir:")).map_or("/nix/store", str::trim);
        if theirs != store.as_str() {
            return Err(CacheError::OtherStore {
                cache: path.display().to_string(),
                theirs: theirs.escape_debug().to_string(),
                ours: store.as_str().to_owned(),
            });
        }
        Ok(cache)
    }

    /// Opens the cache in `path`, and makes it first if there is none.
    ///
    /// # Errors
    /// It cannot be made or opened, or is one of another store.
    pub fn create(path: &Path, store: &StoreDir) -> Result<Self, CacheError> {
        let failed = |source| CacheError::system("make the binary cache", path.display().to_string(), source);
        fs::create_dir_all(path.join(ARCHIVES)).map_err(failed)?;
        // What a copy that was killed has left. That it stays is no reason to fail.
        let _ = sweep(path).and_then(|()| sweep(&path.join(ARCHIVES)));
        if !path.join(INFO).exists() {
            let mut file = temporary(path).map_err(failed)?;
            file.write_all(format!("StoreDir: {store}\n").as_bytes()).map_err(failed)?;
            file.persist(path.join(INFO)).map_err(|error| failed(error.error))?;
        }
        Self::open(path, store)
    }

    /// What the cache says of the path with this hash part, or nothing if it has none.
    ///
    /// # Errors
    /// The narinfo cannot be read, is not valid, or is that of another path.
    pub fn info(&self, hash_part: &str) -> Result<Option<NarInfo>, CacheError> {
        if hash_part.len() != HASH_PART_LEN || !hash_part.bytes().all(base32::is_digit) {
            let what = format!("a path is asked for by its {HASH_PART_LEN} digits");
            return Err(CacheError::Invalid { file: format!("‘{}’", hash_part.escape_debug()), what });
        }
        let name = format!("{hash_part}.narinfo");
        let Some(text) = self.read_text(&name, MAX_TEXT)? else { return Ok(None) };
        let info = NarInfo::parse(&text, &self.store)?;
        if info.path.hash_part() != hash_part {
            let what = format!("it describes another path, {}", info.path);
            return Err(CacheError::Invalid { file: self.shown(&name), what });
        }
        Ok(Some(info))
    }

    /// The archive of the path with this hash part. Whether anybody vouches for it is for the caller to ask
    /// ([`NarInfo::signed_by`]) before it is read.
    ///
    /// # Errors
    /// There is none, its narinfo is not valid, or its file cannot be opened.
    pub fn fetch(&self, hash_part: &str) -> Result<FetchedNar<File>, CacheError> {
        let info = self.info(hash_part)?.ok_or_else(|| CacheError::Missing {
            cache: self.path.display().to_string(),
            hash_part: hash_part.to_owned(),
        })?;
        self.fetch_described(info)
    }

    /// The archive that `info`, which this cache gave, describes: for who has looked at it and wants no other.
    ///
    /// # Errors
    /// Its file cannot be opened.
    pub fn fetch_described(&self, info: NarInfo) -> Result<FetchedNar<File>, CacheError> {
        let file = self
            .open_below(&info.url)
            .map_err(|errno| CacheError::system("open the archive", self.shown(&info.url), errno))?;
        FetchedNar::new(info, file)
    }

    /// Fetches the path with this hash part and restores it as `name` in `parent`. What was made is removed again if it is
    /// not what the narinfo says.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), [`nar::restore`] and [`FetchedNar::finish`].
    pub fn restore(&self, hash_part: &str, parent: BorrowedFd<'_>, name: &OsStr) -> Result<NarInfo, CacheError> {
        let fetched = self.fetch(hash_part)?;
        let info = fetched.info().clone();
        fetched.restore(parent, name)?;
        Ok(info)
    }

    /// Puts a path into the cache: `write` writes its archive, which is compressed, checked against `info` and signed with
    /// `keys`. Each file appears as a whole or not at all, the narinfo last.
    ///
    /// # Errors
    /// The archive is not what `info` says; the compression is only read; what the kernel says. The cache has no narinfo
    /// for the path then that it had not before.
    pub fn push(
        &self,
        info: &PathInfo,
        write: impl FnOnce(&mut dyn Write) -> Result<(), NarError>,
        compression: Compression,
        keys: &[SecretKey],
    ) -> Result<NarInfo, CacheError> {
        let mut described = self.push_archive(info, write, compression)?;
        for key in keys {
            described.sign(key, &self.store);
        }
        self.publish(&described)?;
        Ok(described)
    }

    /// The first half of [`push`](Self::push): the archive is in the cache, and nothing there speaks of it before what this
    /// gives is [published](Self::publish).
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_archive(
        &self,
        info: &PathInfo,
        write: impl FnOnce(&mut dyn Write) -> Result<(), NarError>,
        compression: Compression,
    ) -> Result<NarInfo, CacheError> {
        let archives = self.path.join(ARCHIVES);
        let failed = |source| CacheError::system("write an archive into", archives.display().to_string(), source);
        let file = temporary(&archives).map_err(failed)?;
        let sink = Measuring::new(BufWriter::with_capacity(256 * 1024, file));
        let encoder = Encoder::new(compression, info.nar_size, sink)?;
        let mut archive = Measuring::new(encoder);
        write(&mut archive)?;
        let (encoder, nar_hash, nar_size) = archive.finish();
        if (nar_hash, nar_size) != (info.nar_hash, info.nar_size) {
            return Err(CacheError::Mismatch {
                path: info.path.to_string(),
                what: format!(
                    "it should have {} bytes and the hash {}, and has {nar_size} and {}",
                    info.nar_size,
                    info.nar_hash.sri(),
                    nar_hash.sri()
                ),
            });
        }
        let (file, file_hash, file_size) = encoder.finish().map_err(failed)?.finish();
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        let url = format!("{ARCHIVES}/{}{}", file_hash.base32(), compression.suffix());
        file.persist(self.path.join(&url)).map_err(|error| failed(error.error))?;
        Ok(NarInfo {
            path: info.path.clone(),
            url,
            compression,
            file_hash: Some(file_hash),
            file_size: Some(file_size),
            nar_hash,
            nar_size,
            references: info.references.clone(),
            deriver: info.deriver.clone(),
            signatures: info.signatures.clone(),
            ca: info.ca.clone(),
        })
    }

    /// The second half of [`push`](Self::push): writes the narinfo, whose archive is there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn publish(&self, described: &NarInfo) -> Result<(), CacheError> {
        let name = format!("{}.narinfo", described.path.hash_part());
        let failed = |source| CacheError::system("write", self.shown(&name), source);
        let mut file = temporary(&self.path).map_err(failed)?;
        file.write_all(described.to_text(&self.store).as_bytes()).map_err(failed)?;
        file.persist(self.path.join(&name)).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// All paths that it has.
    ///
    /// # Errors
    /// The directory or a narinfo cannot be read.
    pub fn all(&self) -> Result<BTreeSet<StorePath>, CacheError> {
        let failed = |source| CacheError::system("list", self.path.display().to_string(), source);
        let mut all = BTreeSet::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let part = name.to_str().and_then(|name| name.strip_suffix(".narinfo"));
            if let Some(part) = part.filter(|part| part.len() == HASH_PART_LEN && part.bytes().all(base32::is_digit)) {
                all.extend(self.info(part)?.map(|info| info.path));
            }
        }
        Ok(all)
    }

    /// Puts the log of a build into the cache, as a Nix does: as it is. One that is there stays.
    ///
    /// # Errors
    /// What the kernel says, and the log's reader.
    pub fn push_log(&self, drv: &StorePath, log: &mut dyn io::Read) -> Result<(), CacheError> {
        let directory = self.path.join("log");
        let place = directory.join(drv.as_str());
        let failed = |source| CacheError::system("write the log", place.display().to_string(), source);
        if place.exists() {
            return Ok(());
        }
        fs::create_dir_all(&directory).map_err(failed)?;
        let mut file = temporary(&directory).map_err(failed)?;
        io::copy(log, &mut file).map_err(failed)?;
        file.persist(&place).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The store whose paths it has.
    pub fn store_dir(&self) -> &StoreDir {
        &self.store
    }

    /// The bytes of the log of a build; nothing if there is none. Whoever put it there may have compressed it or not, and its
    /// first bytes tell: its name does not.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn log(&self, drv: &StorePath) -> Result<Option<Box<dyn io::Read>>, CacheError> {
        let name = format!("log/{drv}");
        let failed = |source| CacheError::system("open", self.shown(&name), source);
        let file = match self.open_below(&name) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            file => file.map_err(|errno| failed(errno.into()))?,
        };
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(io::Error::other("it is no regular file")));
        }
        let mut start = [0; 6];
        let count = rustix::io::pread(&file, &mut start, 0).map_err(|errno| failed(errno.into()))?;
        let compression = match &start[..count] {
            [b'B', b'Z', b'h', ..] => Compression::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Compression::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            _ => Compression::None,
        };
        Ok(Some(Box::new(Decoder::new(compression, io::BufReader::new(file)).map_err(failed)?)))
    }

    /// Opens a file of the cache; a name in a narinfo leads nowhere else.
    fn open_below(&self, name: &str) -> rustix::io::Result<File> {
        // NONBLOCK: a FIFO in its place is not waited for.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        openat2(self.directory.as_fd(), name, flags, Mode::empty(), resolve).map(File::from)
    }

    fn read_text(&self, name: &str, limit: usize) -> Result<Option<String>, CacheError> {
        let file = match self.open_below(name) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            file => file.map_err(|errno| CacheError::system("open", self.shown(name), errno))?,
        };
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| CacheError::system("read", self.shown(name), source))?;
        let invalid = |what: &str| CacheError::Invalid { file: self.shown(name), what: what.to_owned() };
        if bytes.len() > limit {
            return Err(invalid("it is too long"));
        }
        String::from_utf8(bytes).map(Some).map_err(|_| invalid("it is not UTF-8"))
    }

    fn shown(&self, name: &str) -> String {
        format!("{}/{}", self.path.display(), name.escape_debug())
    }
}

/// What the names of unfinished files begin with.
const UNFINISHED: &str = ".tmp-";

/// A file is left alone for so long after it was written to last, even if nobody seems to hold it.
const FRESH: std::time::Duration = std::time::Duration::from_secs(60);

/// A file that is removed unless it gets a name, and that others may read then. Its lock says that somebody is at work.
fn temporary(directory: &Path) -> io::Result<NamedTempFile> {
    let permissions = fs::Permissions::from_mode(0o644);
    let file = tempfile::Builder::new().prefix(UNFINISHED).permissions(permissions).tempfile_in(directory)?;
    // Where files cannot be locked, their age alone protects them.
    let _ = rustix::fs::flock(file.as_file(), FlockOperation::NonBlockingLockShared);
    Ok(file)
}

/// Removes unfinished files that nobody is at work at.
fn sweep(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        let is_unfinished = entry.file_name().to_str().is_some_and(|name| name.starts_with(UNFINISHED));
        let is_old =
            |found: fs::Metadata| found.modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age > FRESH));
        if is_unfinished
            && entry.metadata().is_ok_and(|found| found.is_file() && is_old(found))
            && let Ok(file) = File::open(entry.path())
            && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Passes a stream on and takes its hash and its size.
struct Measuring<W> {
    sink: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Measuring<W> {
    fn new(sink: W) -> Self {
        Self { sink, hasher: Hasher::new(Algorithm::Sha256), size: 0 }
    }

    fn finish(self) -> (W, Hash, u64) {
        (self.sink, self.hasher.finish(), self.size)
    }
}

impl<W: Write> Write for Measuring<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.sink.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
