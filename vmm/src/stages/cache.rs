//! Where stages are kept: one directory for each, named by a digest of everything that it depends on.
//!
//! ```text
//! <cache>/install-0123…/  record.json disk.qcow2
//!         suspend-4567…/  record.json disk.qcow2 guest/{ram,device,manifest.json} controller/{…}
//!         files/          what several of them start from
//!         locks/          two for each name: shared by all who use it, and its one maker's; who removes it has both alone
//!         .making-…       one that is being made, or was when somebody killed its maker
//! ```
//!
//! A stage is written aside and gets its name when it is whole, so nobody ever finds half of one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::key::TOPOLOGY;
use super::{Fields, Stage};
use crate::failure::{Failure, FailureClass};
use crate::memory::{Identity, Remembered, digest};

/// A stage's own record.
pub const RECORD: &str = "record.json";
/// Digests that need not be made again.
const CHECKED: &str = "checked.json";
/// The longest record that is read; real ones have some KiB.
const MAX_RECORD: u64 = 1 << 20;
/// The version of this format.
const FORMAT: u32 = 1;
/// What a directory begins with that is no stage yet.
const MAKING: &str = ".making-";
/// What the lock of a stage's maker begins with. Another than that of those who use it: who wants a stage waits for its maker, and
/// not until he has used it.
const MAKER: &str = "maker-of-";

/// The place of all stages.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// What is known of a stage that is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Record {
    format: u32,
    /// Which stage.
    pub stage: Stage,
    /// The guest's profile.
    pub profile: String,
    /// Everything that it depends on, by name.
    pub key: Fields,
    /// The digests of its files, by their names.
    pub files: BTreeMap<String, String>,
    /// Files of the cache that it starts from.
    pub starts_from: Vec<String>,
    /// The stage that it stands on.
    pub stands_on: Option<String>,
    /// How long it took to make, in milliseconds.
    pub took: u64,
    /// When it was made, in seconds since 1970.
    pub made: u64,
}

/// A record as it is stored, with a digest of itself.
#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    record: Record,
    digest: String,
}

impl Stored {
    pub(super) fn of(record: Record) -> Self {
        Self { digest: own_digest(&record), record }
    }

    /// The record, if it is what was written.
    pub(super) fn checked(self) -> Option<Record> {
        (self.digest == own_digest(&self.record) && self.record.format == FORMAT).then_some(self.record)
    }
}

/// A stage that is whole.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its directory.
    pub directory: PathBuf,
    /// What is known of it.
    pub record: Record,
}

/// A stage that is being made. What there is of it is removed when this is dropped.
#[derive(Debug)]
pub struct Making {
    cache: Cache,
    directory: PathBuf,
    place: PathBuf,
    _lock: File,
}

/// Nobody removes a stage while this is held, which ends with the process at the latest.
#[derive(Debug)]
pub struct InUse {
    _lock: File,
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let doing = format!("{doing} {}", path.display());
    move |error| Failure::new(FailureClass::SaveFailed, format!("{doing}: {error}"))
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Cache {
    /// The cache in `root`, which is made: for its owner alone, since whoever could write in there would give others machines of
    /// his own making.
    ///
    /// # Errors
    /// What the file system says, and a directory that somebody else may write.
    pub fn open(root: &Path) -> Result<Self, Failure> {
        let make = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        for path in [root.to_owned(), root.join("files"), root.join("locks")] {
            make(&path).map_err(failed("making", &path))?;
        }
        // In full, since what lies in here is found by QEMU from elsewhere too.
        let root = fs::canonicalize(root).map_err(failed("looking for", root))?;
        let found = fs::metadata(&root).map_err(failed("looking at", &root))?;
        if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            let what =
                format!("{} may be written by others: it must be yours alone (vm-cache names another)", root.display());
            return Err(Failure::new(FailureClass::CorruptState, what));
        }
        Ok(Self { root })
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is remembered of the digests of files anywhere.
    pub fn remembered(&self) -> Remembered {
        Remembered::read(&self.root.join(CHECKED))
    }

    /// Keeps it for the next.
    pub fn remember(&self, remembered: &Remembered) {
        remembered.write(&self.root.join(CHECKED));
    }

    /// A file that several stages start from, by its content: made only when it is not there yet.
    ///
    /// # Errors
    /// What the file system says.
    pub fn file(&self, kind: &str, content: &[u8]) -> Result<PathBuf, Failure> {
        let path = self.root.join("files").join(format!("{kind}-{}", &hexadecimal(&Sha256::digest(content))[..32]));
        if fs::metadata(&path).is_ok_and(|found| found.len() == content.len() as u64) {
            return Ok(path);
        }
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(self.root.join("files"))?;
            io::Write::write_all(&mut file, content)?;
            file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(failed("writing", &path))?;
        Ok(path)
    }

    /// The stage with exactly this key.
    ///
    /// # Errors
    /// [`FailureClass::CorruptState`] when it is there and not what was written.
    pub fn find(&self, stage: Stage, key: &Fields) -> Result<Option<Entry>, Failure> {
        let directory = self.root.join(key.name(stage));
        match fs::symlink_metadata(&directory) {
            Err(_) => Ok(None),
            Ok(_) => {
                let entry = Entry::read(&directory)?;
                // Not believed because of its name.
                match entry.record.key.differences(key).first() {
                    None => Ok(Some(entry)),
                    Some(field) => Err(entry.corrupt(&format!("its name is another's: {field}"))),
                }
            }
        }
    }

    /// The same, and nobody removes it while what comes with it is held.
    ///
    /// # Errors
    /// As [`Cache::find`], and what the file system says of its lock.
    pub fn hold(&self, stage: Stage, key: &Fields) -> Result<Option<(Entry, InUse)>, Failure> {
        // Looked for before its lock is asked for: a maker has that until there is one.
        let Some(entry) = self.find(stage, key)? else { return Ok(None) };
        let in_use = self.uses(&entry)?;
        // Somebody may have removed it before.
        Ok(self.find(stage, key)?.map(|entry| (entry, in_use)))
    }

    /// The stage of this name.
    ///
    /// # Errors
    /// [`FailureClass::CorruptState`] when it is not there, or not what was written.
    pub fn entry(&self, name: &str) -> Result<Entry, Failure> {
        Entry::read(&self.root.join(name))
    }

    /// All that are whole, the newest first, and what is there instead of others.
    ///
    /// # Errors
    /// What the file system says of the cache itself.
    pub fn list(&self) -> Result<Vec<Result<Entry, Failure>>, Failure> {
        let mut found = Vec::new();
        for name in self.names()? {
            if Stage::ALL.iter().any(|stage| name.starts_with(&format!("{}-", stage.name()))) {
                found.push(Entry::read(&self.root.join(name)));
            }
        }
        found.sort_by_key(|entry| std::cmp::Reverse(entry.as_ref().map(|entry| entry.record.made).unwrap_or(0)));
        Ok(found)
    }

    fn names(&self) -> Result<Vec<String>, Failure> {
        let entries = fs::read_dir(&self.root).map_err(failed("reading", &self.root))?;
        Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }

    /// The stage of this kind and profile that is nearest to `key`: what a person would say that has changed.
    ///
    /// # Errors
    /// What the file system says of the cache itself.
    pub fn nearest(&self, stage: Stage, profile: &str, key: &Fields) -> Result<Option<Entry>, Failure> {
        let entries = self.list()?.into_iter().flatten();
        let alike = entries.filter(|entry| entry.record.stage == stage && entry.record.profile == profile);
        // One of the same machines, if there is any.
        let distance = |entry: &Entry| {
            let is_other = entry.record.key.get(TOPOLOGY) != key.get(TOPOLOGY);
            (is_other, entry.record.key.differences(key).len())
        };
        Ok(alike.min_by_key(distance))
    }

    /// Begins to make a stage. Whoever else makes it is waited for; then it is there, in use, and nothing is to be made.
    ///
    /// # Errors
    /// What the file system says, and as [`Cache::find`].
    pub fn begin(&self, stage: Stage, key: &Fields) -> Result<Result<(Entry, InUse), Making>, Failure> {
        let name = key.name(stage);
        let lock = self.lock(&format!("{MAKER}{name}"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .map_err(failed("locking", &self.root.join("locks").join(&name)))?;
        if let Some(held) = self.hold(stage, key)? {
            return Ok(Ok(held));
        }
        // With the lock in hand, whoever left these is dead.
        self.remove_leftovers(&name)?;
        let directory = tempfile::Builder::new().prefix(&format!("{MAKING}{name}-")).tempdir_in(&self.root);
        let directory = directory.map_err(failed("making a directory in", &self.root))?.keep();
        Ok(Err(Making { cache: self.clone(), directory, place: self.root.join(name), _lock: lock }))
    }

    fn lock(&self, name: &str) -> Result<File, Failure> {
        let path = self.root.join("locks").join(name);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("opening", &path))
    }

    /// Both locks of a name, if nobody has one of them.
    fn alone(&self, name: &str) -> Result<Option<[File; 2]>, Failure> {
        let locks = [self.lock(&format!("{MAKER}{name}"))?, self.lock(name)?];
        for lock in &locks {
            match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(failed("locking", &self.root.join("locks").join(name))(error.into())),
            }
        }
        Ok(Some(locks))
    }

    fn remove_leftovers(&self, of: &str) -> Result<u64, Failure> {
        let mut freed = 0;
        for name in self.names()?.into_iter().filter(|name| name.starts_with(&format!("{MAKING}{of}"))) {
            freed += remove(&self.root.join(name))?;
        }
        Ok(freed)
    }

    /// Removes a stage, unless somebody uses it; how many bytes that gave back.
    ///
    /// # Errors
    /// That it is in use, and what the file system says.
    pub fn remove(&self, name: &str) -> Result<u64, Failure> {
        let Some(_locks) = self.alone(name)? else {
            let what = format!("{name} is in use, and stays: try again when its machines have ended");
            return Err(Failure::new(FailureClass::SaveFailed, what));
        };
        let place = self.root.join(name);
        // Under another name first: half of it is no stage.
        let aside = self.root.join(format!("{MAKING}{name}-removed"));
        let _ = remove(&aside);
        fs::rename(&place, &aside).map_err(failed("removing", &place))?;
        remove(&aside)
    }

    /// Removes what nobody needs: what killed makers left, and files that no stage starts from. The bytes that gave back.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sweep(&self) -> Result<u64, Failure> {
        let mut freed = 0;
        for name in self.names()? {
            let Some(of) = name.strip_prefix(MAKING).and_then(|rest| rest.rsplit_once('-')).map(|(of, _)| of) else {
                continue;
            };
            if let Some(_locks) = self.alone(of)? {
                freed += remove(&self.root.join(&name))?;
            }
        }
        // A maker has its files before it has a record.
        if self.names()?.iter().any(|name| name.starts_with(MAKING)) {
            return Ok(freed);
        }
        let used: Vec<String> = self.list()?.into_iter().flatten().flat_map(|entry| entry.record.starts_from).collect();
        let files = self.root.join("files");
        for file in fs::read_dir(&files).map_err(failed("reading", &files))?.flatten() {
            if !used.contains(&file.file_name().to_string_lossy().into_owned()) {
                freed += remove(&file.path())?;
            }
        }
        Ok(freed)
    }

    /// Keeps others from removing this stage, if it is still there; see [`Cache::hold`].
    ///
    /// # Errors
    /// What the file system says.
    pub fn uses(&self, entry: &Entry) -> Result<InUse, Failure> {
        let lock = self.lock(&entry.name())?;
        rustix::fs::flock(&lock, FlockOperation::LockShared)
            .map_err(io::Error::from)
            .map_err(failed("locking", &entry.directory))?;
        Ok(InUse { _lock: lock })
    }
}

/// Removes a tree or a file; the space that it took.
fn remove(path: &Path) -> Result<u64, Failure> {
    let size = space(path);
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(failed("removing", path)).map(|()| size)
}

/// What a tree takes on its disk, in bytes.
fn space(path: &Path) -> u64 {
    let Ok(found) = fs::symlink_metadata(path) else { return 0 };
    let below = if found.is_dir() { fs::read_dir(path).ok() } else { None };
    found.blocks() * 512 + below.into_iter().flatten().flatten().map(|entry| space(&entry.path())).sum::<u64>()
}

impl Entry {
    fn read(directory: &Path) -> Result<Self, Failure> {
        let file = directory.join(RECORD);
        let corrupt = |why: String| Failure::new(FailureClass::CorruptState, format!("{}: {why}", file.display()));
        let mut text = Vec::new();
        File::open(&file)
            .and_then(|file| file.take(MAX_RECORD).read_to_end(&mut text))
            .map_err(|error| corrupt(error.to_string()))?;
        let stored: Stored = serde_json::from_slice(&text).map_err(|error| corrupt(error.to_string()))?;
        let record = stored.checked().ok_or_else(|| corrupt("it is not what was written".to_owned()))?;
        Ok(Self { directory: directory.to_owned(), record })
    }

    /// Whether both are of the same guest and the same machines: the newer one replaces the older.
    pub fn is_for_the_same(&self, other: &Self) -> bool {
        let of = |entry: &Self| {
            let record = &entry.record;
            (record.stage, record.profile.clone(), record.key.get(TOPOLOGY).map(str::to_owned))
        };
        of(self) == of(other)
    }

    /// Its name in the cache.
    pub fn name(&self) -> String {
        self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What it takes on its disk, in bytes.
    pub fn size(&self) -> u64 {
        space(&self.directory)
    }

    fn corrupt(&self, why: &str) -> Failure {
        Failure::new(FailureClass::CorruptState, format!("{}: {why}", self.directory.display()))
    }

    /// That its files are what was written. Those that nobody touched since they were looked at are not read again. What is
    /// known of them by now.
    ///
    /// # Errors
    /// [`FailureClass::CorruptState`].
    pub fn verify(&self) -> Result<Remembered, Failure> {
        let checked = self.directory.join(CHECKED);
        let mut remembered = Remembered::read(&checked);
        self.check(&mut remembered)?;
        remembered.write(&checked);
        Ok(remembered)
    }

    /// The same, reading all of it whatever is remembered.
    ///
    /// # Errors
    /// [`FailureClass::CorruptState`].
    pub fn verify_again(&self) -> Result<(), Failure> {
        self.check(&mut Remembered::default())
    }

    fn check(&self, remembered: &mut Remembered) -> Result<(), Failure> {
        for (name, expected) in &self.record.files {
            let path = self.directory.join(name);
            let found = remembered.digest(&path).map_err(|failure| self.corrupt(&failure.what))?;
            if found != *expected {
                return Err(self.corrupt(&format!("the digest of {name} is not the one that was written with it")));
            }
        }
        Ok(())
    }
}

fn own_digest(record: &Record) -> String {
    hexadecimal(&Sha256::digest(serde_json::to_vec(record).expect("a record is JSON")))
}

impl Making {
    /// Where it is made.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// It is whole, and consists of these files and no others. From here on it can be found, and is in use.
    ///
    /// # Errors
    /// What the file system says, and files that are no files or not there.
    pub fn finish(self, mut record: Record, files: &[&str]) -> Result<(Entry, InUse), Failure> {
        let known = self.take_over(files)?;
        record.files = known.1;
        record.format = FORMAT;
        record.made = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.place(record, &known.0)
    }

    /// It is whole, and is what somebody else's record says.
    ///
    /// # Errors
    /// As [`Making::finish`], and files of other digests.
    pub(super) fn adopt(self, record: Record) -> Result<(Entry, InUse), Failure> {
        let names: Vec<&str> = record.files.keys().map(String::as_str).collect();
        let (known, found) = self.take_over(&names)?;
        if found != record.files {
            let what = format!("{}: its files have other digests than its record", self.directory.display());
            return Err(Failure::new(FailureClass::CorruptState, what));
        }
        self.place(record, &known)
    }

    /// Makes these files ours; their digests, and the same as it will be remembered of them in their place.
    fn take_over(&self, files: &[&str]) -> Result<(Remembered, BTreeMap<String, String>), Failure> {
        take_over(&self.directory, Path::new(""), files)?;
        let (mut known, mut digests) = (Remembered::default(), BTreeMap::new());
        for name in files {
            let path = self.directory.join(name);
            let look = || -> io::Result<(Identity, String)> {
                let file = File::open(&path)?;
                Ok((Identity::of(&file)?, digest(&file)?))
            };
            let (identity, digest) = look().map_err(failed("reading", &path))?;
            known.remember(self.place.join(name).to_string_lossy().into_owned(), identity, digest.clone());
            digests.insert((*name).to_owned(), digest);
        }
        Ok((known, digests))
    }

    /// Gives it its name.
    fn place(self, record: Record, known: &Remembered) -> Result<(Entry, InUse), Failure> {
        let stored = Stored::of(record);
        let path = self.directory.join(RECORD);
        let write = || -> io::Result<()> {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path)?;
            serde_json::to_writer_pretty(&file, &stored)?;
            file.sync_all()
        };
        write().map_err(failed("writing", &path))?;
        known.write(&self.directory.join(CHECKED));
        // QEMU's rooms run under other users.
        fs::set_permissions(&self.directory, fs::Permissions::from_mode(0o755))
            .map_err(failed("changing the mode of", &self.directory))?;
        fs::rename(&self.directory, &self.place).map_err(failed("renaming to", &self.place))?;
        if let Ok(root) = File::open(self.place.parent().unwrap_or(Path::new("/"))) {
            let _ = root.sync_all();
        }
        let entry = Entry { directory: self.place.clone(), record: stored.record };
        // Nobody removes it before: its maker's lock is still ours.
        let in_use = self.cache.uses(&entry)?;
        Ok((entry, in_use))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // After a rename there is nothing here.
        let _ = remove(&self.directory);
    }
}

/// Makes what a room wrote ours: exactly these files, each a file with one name, none a link to elsewhere.
fn take_over(root: &Path, below: &Path, files: &[&str]) -> Result<(), Failure> {
    let directory = root.join(below);
    for entry in fs::read_dir(&directory).map_err(failed("reading", &directory))?.flatten() {
        let relative = below.join(entry.file_name());
        let path = root.join(&relative);
        let found = fs::symlink_metadata(&path).map_err(failed("looking at", &path))?;
        let is_wanted = files.iter().any(|name| Path::new(name) == relative);
        let has_wanted = files.iter().any(|name| Path::new(name).starts_with(&relative));
        if found.is_dir() && has_wanted {
            take_over(root, &relative, files)?;
            give(&path, 0o755)?;
        } else if found.is_file() && is_wanted && found.nlink() == 1 {
            // Memory is opened for writing by every QEMU before 8.2, and written by none.
            give(&path, if relative.file_name() == Some(crate::memory::RAM.as_ref()) { 0o666 } else { 0o644 })?;
        } else {
            remove(&path)?;
        }
    }
    Ok(())
}

fn give(path: &Path, mode: u32) -> Result<(), Failure> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(failed("taking over", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("changing the mode of", path))
}

impl Record {
    /// A record of a stage that is not written yet.
    pub fn new(stage: Stage, profile: &str, key: Fields, took: Duration) -> Self {
        Self {
            format: FORMAT,
            stage,
            profile: profile.to_owned(),
            key,
            files: BTreeMap::new(),
            starts_from: Vec::new(),
            stands_on: None,
            took: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            made: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(memory: &str) -> Fields {
        [("memory", memory), ("cpu", "max")].into_iter().collect()
    }

    fn record(key: Fields) -> Record {
        Record::new(Stage::Install, "standin", key, Duration::from_secs(1))
    }

    fn made(cache: &Cache, key: Fields) -> Entry {
        let making = cache.begin(Stage::Install, &key).unwrap().unwrap_err();
        fs::write(making.directory().join("disk"), "content").unwrap();
        fs::write(making.directory().join("rubbish"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", making.directory().join("link")).unwrap();
        making.finish(record(key), &["disk"]).unwrap().0
    }

    #[test]
    fn a_stage_is_found_by_its_whole_key_and_what_differs_has_a_name() {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::open(&place.path().join("cache")).unwrap();
        let entry = made(&cache, key("256 MiB"));
        entry.verify().unwrap();
        assert_eq!(fs::read_dir(&entry.directory).unwrap().count(), 2 + 1, "record, disk and what is remembered");
        assert_eq!(cache.find(Stage::Install, &key("256 MiB")).unwrap().unwrap().record, entry.record);
        assert!(cache.find(Stage::Suspend, &key("256 MiB")).unwrap().is_none());
        assert!(cache.find(Stage::Install, &key("512 MiB")).unwrap().is_none());
        let nearest = cache.nearest(Stage::Install, "standin", &key("512 MiB")).unwrap().unwrap();
        let differences = nearest.record.key.differences(&key("512 MiB"));
        assert_eq!(differences[0].to_string(), "memory was ‘256 MiB’ and is ‘512 MiB’ now");
        assert_eq!(differences.len(), 1);
    }

    #[test]
    fn half_a_stage_is_none_and_is_cleared_away_by_the_next() {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::open(place.path()).unwrap();
        let making = cache.begin(Stage::Install, &key("1")).unwrap().unwrap_err();
        fs::write(making.directory().join("disk"), "half").unwrap();
        // As if its maker had been killed: nothing of it is undone.
        let left = making.directory().to_owned();
        let lock = making._lock.try_clone().unwrap();
        let _killed = std::mem::ManuallyDrop::new(making);
        drop(lock);
        assert!(cache.find(Stage::Install, &key("1")).unwrap().is_none());
        assert!(cache.list().unwrap().is_empty());
        // Its lock is held by this very process for ever; another key is free.
        assert_eq!(cache.sweep().unwrap(), 0);
        assert!(left.exists());
        drop(made(&cache, key("2")));
        assert_eq!(cache.list().unwrap().len(), 1);
    }

    #[test]
    fn damage_is_found_wherever_it_is() {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::open(place.path()).unwrap();
        let entry = made(&cache, key("1"));
        let damaged = |name: &str, at: usize| {
            let path = entry.file(name);
            let whole = fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            let told = cache.find(Stage::Install, &key("1")).and_then(|found| found.unwrap().verify()).unwrap_err();
            fs::write(&path, whole).unwrap();
            (told.class, told.what)
        };
        let (class, what) = damaged("disk", 3);
        assert!(class == FailureClass::CorruptState && what.contains("the digest of disk"), "{what}");
        let text = fs::read_to_string(entry.file(RECORD)).unwrap();
        assert_eq!(damaged(RECORD, text.find("standin").unwrap()).0, FailureClass::CorruptState);
        cache.find(Stage::Install, &key("1")).unwrap().unwrap().verify().unwrap();
    }

    #[test]
    fn what_is_used_is_not_removed() {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::open(place.path()).unwrap();
        let entry = made(&cache, key("1"));
        // By whoever finds it, or wanted to make it, whom the others do not keep waiting.
        let hold = || cache.hold(Stage::Install, &key("1")).unwrap().unwrap().1;
        let used = [hold(), hold(), cache.begin(Stage::Install, &key("1")).unwrap().unwrap().1];
        for used in used {
            assert!(cache.remove(&entry.name()).unwrap_err().what.contains("in use"));
            assert!(entry.file("disk").exists());
            drop(used);
        }
        assert!(cache.remove(&entry.name()).unwrap() > 0);
        assert!(cache.list().unwrap().is_empty());
        assert!(cache.hold(Stage::Install, &key("1")).unwrap().is_none());
        // By its maker from the first moment on.
        let making = cache.begin(Stage::Install, &key("1")).unwrap().unwrap_err();
        fs::write(making.directory().join("disk"), "content").unwrap();
        let (entry, used) = making.finish(record(key("1")), &["disk"]).unwrap();
        assert!(cache.remove(&entry.name()).unwrap_err().what.contains("in use"));
        drop(used);
        cache.remove(&entry.name()).unwrap();
        cache.file("initramfs", b"one").unwrap();
        assert!(cache.sweep().unwrap() > 0);
        assert_eq!(fs::read_dir(place.path().join("files")).unwrap().count(), 0);
    }

    #[test]
    fn a_cache_that_others_may_write_is_not_used() {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Cache::open(place.path()).unwrap_err().what.contains("may be written by others"));
    }
}
