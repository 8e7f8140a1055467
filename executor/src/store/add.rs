//! Files and trees of the user's that become paths named by their contents.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{Timespec, Timestamps};

use super::{PathInfo, Registration, Store, StoreError, TempDir};
use crate::hash::{Algorithm, Hash, Hasher};
use crate::nar;
use crate::store_path::{StorePath, check_name};
use crate::tree;

/// What a path's name is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// The archive of the tree: everything about it that a store keeps.
    Recursive(Algorithm),
    /// The bytes of a single file, which loses its x bit.
    Flat(Algorithm),
}

/// The tree in a temporary directory.
const TREE: &str = "x";

impl Store {
    /// Adds the file or directory at `source` under `name`; a link is added as a link. Gives what is then known of the path.
    ///
    /// # Errors
    /// A bad name, something that no archive can hold, a directory where a file is wanted, what the kernel says.
    pub fn add(
        &self,
        name: &str,
        source: &Path,
        naming: Naming,
        notice: &mut dyn FnMut(&str),
    ) -> Result<PathInfo, StoreError> {
        check_name(name)?;
        let temp = self.temp_dir()?;
        let (recursive, hash, survey) = match naming {
            Naming::Recursive(algorithm) => {
                let (parent, last) = tree::place(source)?;
                copy_tree(|sink| nar::dump(parent.as_fd(), &last, sink), &temp)?;
                let survey = survey(&temp)?;
                let hash = match algorithm {
                    Algorithm::Sha256 => survey.hash,
                    other => {
                        let mut hasher = Hasher::new(other);
                        nar::dump(temp.directory(), OsStr::new(TREE), &mut hasher)?;
                        hasher.finish()
                    }
                };
                (true, hash, survey)
            }
            Naming::Flat(algorithm) => {
                let file = File::open(source).map_err(StoreError::on("open", source))?;
                let hash = copy_file(file, source, algorithm, &temp)?;
                (false, hash, survey(&temp)?)
            }
        };
        let path = self.dir.fixed_path(name, recursive, &hash)?;
        let mut info = PathInfo::new(path, survey.hash, survey.size);
        info.content_address = Some(format!("fixed:{}{hash}", if recursive { "r:" } else { "" }));
        self.finish(&temp, info.into(), notice)
    }

    /// Adds `contents` as a file named by them and by `references`, which must be valid: what a derivation is, with its
    /// `outputs`, and what `builtins.toFile` makes.
    ///
    /// # Errors
    /// A bad name, a reference that is not valid, what the kernel says.
    pub fn add_text<'a>(
        &self,
        name: &str,
        contents: &[u8],
        references: impl IntoIterator<Item = &'a StorePath>,
        outputs: impl IntoIterator<Item = (String, StorePath)>,
        notice: &mut dyn FnMut(&str),
    ) -> Result<PathInfo, StoreError> {
        check_name(name)?;
        let references: std::collections::BTreeSet<_> = references.into_iter().cloned().collect();
        let hash = Hash::sha256(contents);
        let path = self.dir.text_path(name, &hash, &references)?;
        if let Some(info) = self.keep_if_valid(&path)? {
            return Ok(info);
        }
        let temp = self.temp_dir()?;
        copy_file(contents, Path::new(name), Algorithm::Sha256, &temp)?;
        let survey = survey(&temp)?;
        let mut info = PathInfo::new(path, survey.hash, survey.size);
        info.references = references;
        info.content_address = Some(format!("text:{hash}"));
        self.finish(&temp, Registration { info, outputs: outputs.into_iter().collect() }, notice)
    }

    /// Keeps `path` from the collector and gives what is known of it, if it is valid.
    pub fn keep_if_valid(&self, path: &StorePath) -> Result<Option<PathInfo>, StoreError> {
        if !self.is_valid(path)? {
            return Ok(None);
        }
        // Asked again once it cannot go any more.
        self.add_temp_root(path)?;
        self.query_path_info(path)
    }

    fn finish(
        &self,
        temp: &TempDir,
        registration: Registration,
        notice: &mut dyn FnMut(&str),
    ) -> Result<PathInfo, StoreError> {
        let path = registration.info.path.clone();
        self.move_in(temp.directory(), OsStr::new(TREE), registration, notice)?;
        self.path_info(&path)
    }
}

/// What the store must know of the tree in `temp`.
fn survey(temp: &TempDir) -> Result<nar::pass::Survey, StoreError> {
    Ok(nar::pass::survey(temp.directory(), OsStr::new(TREE), [])?)
}

/// Unpacks the archive that `dump` writes: a copy in a store's own form.
fn copy_tree(
    dump: impl FnOnce(Box<dyn Write>) -> Result<u64, nar::NarError>,
    temp: &TempDir,
) -> Result<(), StoreError> {
    let (reader, writer) = std::io::pipe().map_err(StoreError::on("make a pipe for", temp.path()))?;
    std::thread::scope(|scope| {
        let unpacked = scope.spawn(|| {
            let mut reader = nar::Reader::new(BufReader::with_capacity(256 << 10, reader));
            nar::restore(&mut reader, temp.directory(), OsStr::new(TREE))
        });
        let writer = std::io::BufWriter::with_capacity(256 << 10, writer);
        let dumped = dump(Box::new(writer));
        let unpacked = unpacked.join().expect("unpacking does not panic");
        // If one end fails, the other says that it was cut off; the cause is what a person wants to read.
        match (dumped, unpacked) {
            (Err(nar::NarError::Sink(_)) | Ok(_), Err(error)) | (Err(error), _) => Err(error.into()),
            (Ok(_), Ok(())) => Ok(()),
        }
    })
}

fn copy_file(mut source: impl Read, shown: &Path, algorithm: Algorithm, temp: &TempDir) -> Result<Hash, StoreError> {
    let path = temp.path().join(TREE);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(&path)
        .map_err(StoreError::on("make the file", &path))?;
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; 128 << 10];
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(StoreError::io("read", shown, error)),
        };
        hasher.update(&buffer[..read]);
        file.write_all(&buffer[..read]).map_err(StoreError::on("write", &path))?;
    }
    use rustix::fs::{Mode, fchmod, futimens};
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    fchmod(&file, Mode::from_raw_mode(0o444))
        .and_then(|()| futimens(&file, &Timestamps { last_access: second, last_modification: second }))
        .map_err(StoreError::on("finish", &path))?;
    Ok(hasher.finish())
}
