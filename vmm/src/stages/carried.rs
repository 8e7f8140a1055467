//! Stages as one file, `state.gz`: what can lie in a store and be carried to another machine. A stage and what it stands on, one
//! after the other, compressed without a name or a time: the same stages are the same file.
//!
//! ```text
//! anchorhold stages 1\n    for each stage:  its name\n    length, record.json    length, file    length, file …
//!                          at the end:      \n
//! ```
//!
//! A stage that was carried is a guest of somebody else's making, and its digests are his own: they tell damage, not trust.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use flate2::{Compression, GzBuilder, bufread::GzDecoder};

use super::cache::{Cache, Entry, InUse, Making, Record, Stored};
use super::key::TOPOLOGY;
use super::suspend::suspended_files;
use super::{DISK, Stage};
use crate::failure::{Failure, FailureClass};
use crate::memory::{copy_sparse, digest};
use crate::pair::job::Topology;

const MAGIC: &[u8] = b"anchorhold stages 1\n";
/// The longest name of a stage.
const MAX_NAME: u64 = 80;
/// The longest record.
const MAX_RECORD: u64 = 1 << 20;
/// The longest file; holes take no room.
const MAX_FILE: u64 = 1 << 42;

impl Cache {
    /// Writes the stage and what it stands on as one file, which is made anew. All of it is read again and checked before.
    ///
    /// # Errors
    /// [`FailureClass::CorruptState`], and [`FailureClass::SaveFailed`] with what the file system says.
    pub fn export(&self, entry: &Entry, to: &Path) -> Result<(), Failure> {
        let mut stages = vec![entry.clone()];
        while let Some(below) = stages.last().and_then(|stage| stage.record.stands_on.clone()) {
            stages.push(self.entry(&below)?);
        }
        stages.reverse();
        for stage in &stages {
            stage.verify_again()?;
        }
        let write = || -> io::Result<()> {
            let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            // Under its name only when it is whole.
            let new = tempfile::NamedTempFile::new_in(parent)?;
            let mut out = GzBuilder::new().mtime(0).operating_system(255).write(new, Compression::fast());
            out.write_all(MAGIC)?;
            for stage in &stages {
                writeln!(out, "{}", stage.name())?;
                let record = serde_json::to_vec_pretty(&Stored::of(stage.record.clone()))?;
                out.write_all(&(record.len() as u64).to_le_bytes())?;
                out.write_all(&record)?;
                for name in stage.record.files.keys() {
                    let file = File::open(stage.file(name))?;
                    let length = file.metadata()?.len();
                    out.write_all(&length.to_le_bytes())?;
                    if io::copy(&mut file.take(length), &mut out)? != length {
                        return Err(io::Error::other(format!("{name} became shorter while it was read")));
                    }
                }
            }
            out.write_all(b"\n")?;
            let new = out.finish()?;
            new.as_file().sync_all()?;
            new.persist(to).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|error| Failure::new(FailureClass::SaveFailed, format!("writing {}: {error}", to.display())))
    }

    /// Takes the stages of such a file into the cache; the last of them, which is the one that was exported. Nothing of it is
    /// there before all of it was read and checked. What is there already stays as it is.
    ///
    /// # Errors
    /// [`FailureClass::CorruptState`], and [`FailureClass::SaveFailed`] with what the file system says.
    pub fn import(&self, from: &Path) -> Result<Entry, Failure> {
        let corrupt = |why: String| Failure::new(FailureClass::CorruptState, format!("{}: {why}", from.display()));
        let unread = |error: io::Error| corrupt(format!("it cannot be read to its end: {error}"));
        let file = File::open(from).map_err(|error| corrupt(error.to_string()))?;
        let mut input = BufReader::new(GzDecoder::new(BufReader::with_capacity(1 << 20, file)));
        let mut magic = vec![0; MAGIC.len()];
        input.read_exact(&mut magic).map_err(unread)?;
        if magic != MAGIC {
            return Err(corrupt("it is no file of stages of this version".to_owned()));
        }
        let mut stages: Vec<Carried> = Vec::new();
        loop {
            let mut name = Vec::new();
            input.by_ref().take(MAX_NAME).read_until(b'\n', &mut name).map_err(unread)?;
            let Some(name) = name.strip_suffix(b"\n") else {
                return Err(corrupt("it ends in the middle, or has no name where one must be".to_owned()));
            };
            if name.is_empty() {
                break;
            }
            let record = self.record(&mut input, name).map_err(|problem| problem.of(&corrupt))?;
            // In their order, each on the one before it.
            let before = stages.last().map(|stage| stage.name.clone());
            if record.stands_on != before {
                return Err(corrupt(format!("its stage {} stands on another than is in it", record.stage.name())));
            }
            let carried = self.carried(&mut input, record).map_err(|problem| problem.of(&corrupt))?;
            stages.push(carried);
        }
        // To its very end, where gzip's own checksum is.
        match input.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(corrupt("there is more in it than stages".to_owned())),
            Err(error) => return Err(unread(error)),
        }
        // None of them goes before all are there.
        let mut taken = Vec::new();
        for Carried { place, record, .. } in stages {
            taken.push(match place {
                Place::Known { entry, in_use, .. } => (entry, in_use),
                Place::New(making) => making.adopt(record)?,
            });
        }
        taken.pop().map(|(entry, _)| entry).ok_or_else(|| corrupt("there is no stage in it".to_owned()))
    }

    /// A stage's record, which says of itself what it is.
    fn record(&self, input: &mut impl Read, name: &[u8]) -> Result<Record, Problem> {
        let length = length(input, MAX_RECORD)?;
        let mut text = Vec::new();
        input.take(length).read_to_end(&mut text).map_err(Problem::Input)?;
        let stored: Stored =
            serde_json::from_slice(&text).map_err(|error| Problem::Wrong(format!("a record: {error}")))?;
        let record = stored.checked().ok_or_else(|| Problem::Wrong("a record is not what was written".to_owned()))?;
        if record.key.name(record.stage).as_bytes() != name {
            return Err(Problem::Wrong("a stage has the name of another".to_owned()));
        }
        let expected = match record.stage {
            Stage::Install => vec![DISK],
            Stage::Suspend => match record.key.get(TOPOLOGY) {
                Some("direct") => suspended_files(&Topology::Direct { connect: Vec::new() }),
                _ => suspended_files(&Topology::Pair),
            },
        };
        if record.files.len() != expected.len() || !expected.iter().all(|file| record.files.contains_key(*file)) {
            return Err(Problem::Wrong(format!("its stage {} has other files than such a stage", record.stage.name())));
        }
        Ok(record)
    }

    /// A stage's files, each with the digest that its record says.
    fn carried(&self, input: &mut impl Read, record: Record) -> Result<Carried, Problem> {
        let place = match self.begin(record.stage, &record.key).map_err(Problem::Failed)? {
            // Its files are looked at nevertheless.
            Ok((entry, in_use)) => {
                let aside = tempfile::tempdir_in(self.root()).map_err(Problem::Output)?;
                Place::Known { entry, aside, in_use }
            }
            Err(making) => Place::New(making),
        };
        let directory = match &place {
            Place::Known { aside, .. } => aside.path(),
            Place::New(making) => making.directory(),
        };
        for (name, expected) in &record.files {
            let length = length(input, MAX_FILE)?;
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap_or(directory)).map_err(Problem::Output)?;
            let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(Problem::Output)?;
            copy_sparse(input, &file, length).map_err(|error| match error {
                (true, error) => Problem::Input(error),
                (false, error) => Problem::Output(error),
            })?;
            let found = digest(&file).map_err(Problem::Output)?;
            if found != *expected {
                return Err(Problem::Wrong(format!("the digest of {name} is not the one that was written with it")));
            }
            if matches!(place, Place::Known { .. }) {
                fs::remove_file(&path).map_err(Problem::Output)?;
            }
        }
        Ok(Carried { name: record.key.name(record.stage), place, record })
    }
}

/// A stage that was read.
struct Carried {
    name: String,
    place: Place,
    record: Record,
}

/// Where a stage's files go.
enum Place {
    /// It is there already, and stays; where its files were looked at.
    Known { entry: Entry, aside: tempfile::TempDir, in_use: InUse },
    /// It is to be.
    New(Making),
}

/// Why a stage cannot be taken.
enum Problem {
    Input(io::Error),
    Output(io::Error),
    Wrong(String),
    Failed(Failure),
}

impl Problem {
    fn of(self, corrupt: &dyn Fn(String) -> Failure) -> Failure {
        match self {
            Self::Input(error) => corrupt(format!("it cannot be read to its end: {error}")),
            Self::Output(error) => Failure::new(FailureClass::SaveFailed, format!("writing into the cache: {error}")),
            Self::Wrong(why) => corrupt(why),
            Self::Failed(failure) => failure,
        }
    }
}

fn length(input: &mut impl Read, most: u64) -> Result<u64, Problem> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes).map_err(Problem::Input)?;
    match u64::from_le_bytes(bytes) {
        length if length <= most => Ok(length),
        length => Err(Problem::Wrong(format!("a part of it would have {length} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::stages::Fields;

    fn key(name: &str) -> Fields {
        [("memory", name), ("topology", "direct")].into_iter().collect()
    }

    /// A cache with a saved guest on an installed disk.
    fn filled(place: &Path) -> (Cache, Entry) {
        let cache = Cache::open(&place.join("cache")).unwrap();
        let install = cache.begin(Stage::Install, &key("1")).unwrap().unwrap_err();
        fs::write(install.directory().join(DISK), "disk").unwrap();
        let record = Record::new(Stage::Install, "standin", key("1"), Duration::from_secs(1));
        let (install, _in_use) = install.finish(record, &[DISK]).unwrap();
        let suspend = cache.begin(Stage::Suspend, &key("2")).unwrap().unwrap_err();
        fs::create_dir(suspend.directory().join("guest")).unwrap();
        let files = suspended_files(&Topology::Direct { connect: Vec::new() });
        for name in &files {
            fs::write(suspend.directory().join(name), format!("content of {name}")).unwrap();
        }
        File::options().write(true).open(suspend.directory().join("guest/ram")).unwrap().set_len(3 << 20).unwrap();
        let mut record = Record::new(Stage::Suspend, "standin", key("2"), Duration::from_secs(2));
        record.stands_on = Some(install.name());
        let (entry, _in_use) = suspend.finish(record, &files).unwrap();
        (cache, entry)
    }

    #[test]
    fn what_is_carried_is_the_same_there_and_the_same_file_again() {
        let place = tempfile::tempdir().unwrap();
        let (cache, entry) = filled(place.path());
        let [one, two, three] = ["one", "two", "three"].map(|name| place.path().join(name));
        cache.export(&entry, &one).unwrap();
        cache.export(&entry, &two).unwrap();
        assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
        let other = Cache::open(&place.path().join("other")).unwrap();
        let carried = other.import(&one).unwrap();
        assert_eq!((carried.name(), &carried.record), (entry.name(), &entry.record));
        carried.verify_again().unwrap();
        assert_eq!(other.list().unwrap().len(), 2);
        other.export(&carried, &three).unwrap();
        assert_eq!(fs::read(&one).unwrap(), fs::read(&three).unwrap());
        // Again: nothing is there twice, and nothing is left lying about.
        other.import(&one).unwrap();
        let names: Vec<_> = fs::read_dir(other.root()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names.len(), 4, "{names:?}");
    }

    #[test]
    fn damage_is_refused_and_leaves_the_cache_as_it_was() {
        let place = tempfile::tempdir().unwrap();
        let (cache, entry) = filled(place.path());
        let file = place.path().join("state.gz");
        cache.export(&entry, &file).unwrap();
        let whole = fs::read(&file).unwrap();
        let other = Cache::open(&place.path().join("other")).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            let failure = other.import(&file).unwrap_err();
            assert_eq!(failure.class, FailureClass::CorruptState, "{failure}");
            assert!(other.list().unwrap().is_empty());
            assert_eq!(fs::read_dir(other.root()).unwrap().count(), 2, "files and locks");
            failure.what
        };
        let unpacked = |bytes: &[u8]| {
            let mut found = Vec::new();
            GzDecoder::new(bytes).read_to_end(&mut found).map(|_| found)
        };
        let content = unpacked(&whole).unwrap();
        let mut refusals = 0;
        for at in (10..whole.len()).step_by(23) {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            // Within a run of zeroes it may say the same in other words.
            if unpacked(&flipped).ok().as_ref() != Some(&content) {
                refused(&flipped);
                refusals += 1;
            }
        }
        assert!(refusals > 10, "{refusals}");
        for length in [0, 5, 30, whole.len() / 2, whole.len() - 1] {
            refused(&whole[..length]);
        }
        assert!(refused(b"something else altogether").contains("invalid gzip header"));
        // Whole as a gzip file, and not what it says of itself.
        let again = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = content.clone();
            change(&mut bytes);
            let mut out = GzBuilder::new().write(Vec::new(), Compression::fast());
            out.write_all(&bytes).unwrap();
            out.finish().unwrap()
        };
        let replaced = |from: &'static [u8], to: &'static [u8]| {
            again(&move |bytes: &mut Vec<u8>| {
                let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
                bytes.splice(at..at + from.len(), to.iter().copied());
            })
        };
        assert!(
            refused(&replaced(b"content of guest/device", b"kontent of guest/device"))
                .contains("digest of guest/device")
        );
        assert!(refused(&replaced(b"standin", b"stand1n")).contains("a record is not what was written"));
        assert!(refused(&replaced(b"install-", b"../stall-")).contains("the name of another"));
        assert!(refused(&again(&|bytes| bytes.push(0))).contains("more in it"));
        fs::write(&file, &whole).unwrap();
        other.import(&file).unwrap();
    }
}
