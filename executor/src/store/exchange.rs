//! The stream of `nix-store --export` and `--import`: archives, each with what is to be known of its path.
//!
//! Source: `src/libstore/export-import.cc` of Nix.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsFd;

use super::{PathInfo, Store, StoreError};
use crate::hash::{Algorithm, Hasher};
use crate::nar;
use crate::store_path::StorePath;
use crate::tree;

/// Stands after each archive.
const MAGIC: u64 = 0x4558_494e;

/// The longest text that is read, and the most references. No path comes near either.
const LONGEST: u64 = 64 << 10;
const MOST: u64 = 1 << 20;

impl Store {
    /// Writes `paths`, each after those of them that it refers to.
    ///
    /// # Errors
    /// A path that is not valid or whose contents have changed, or what the kernel or `sink` says.
    pub fn export(&self, paths: &BTreeSet<StorePath>, mut sink: impl Write) -> Result<(), StoreError> {
        for path in self.references_first(paths)? {
            let info = self.path_info(&path)?;
            let mut text = Vec::new();
            number(&mut text, MAGIC);
            string(&mut text, self.dir.display(&path).as_bytes());
            number(&mut text, info.references.len() as u64);
            for reference in &info.references {
                string(&mut text, self.dir.display(reference).as_bytes());
            }
            let deriver = info.deriver.as_ref().map(|path| self.dir.display(path)).unwrap_or_default();
            string(&mut text, deriver.as_bytes());
            number(&mut text, 0);

            sink.write_all(&1_u64.to_le_bytes()).map_err(StoreError::on("write the export of", path.as_str()))?;
            let mut both = Hashing { inner: &mut sink, hasher: Hasher::new(Algorithm::Sha256) };
            let (parent, name) = tree::place(&self.real_path(&path))?;
            nar::dump(parent.as_fd(), &name, &mut both)?;
            let found = both.hasher.finish();
            if found != info.nar_hash {
                return Err(StoreError::Changed { path, wanted: info.nar_hash.sri(), found: found.sri() });
            }
            sink.write_all(&text).map_err(StoreError::on("write the export of", path.as_str()))?;
        }
        sink.write_all(&0_u64.to_le_bytes()).and_then(|()| sink.flush()).map_err(StoreError::on("write", "the export"))
    }

    /// Reads what [`Store::export`], or a Nix, wrote, and registers it; gives the paths in the order of the stream. The stream is
    /// believed: whoever may write the store answers for it.
    ///
    /// # Errors
    /// A malformed stream, a reference that is neither valid nor earlier in the stream, what the kernel says. Paths before
    /// the error are registered.
    pub fn import(&self, mut source: impl BufRead, notice: &mut dyn FnMut(&str)) -> Result<Vec<StorePath>, StoreError> {
        const TREE: &str = "x";
        let mut paths = Vec::new();
        loop {
            match read_number(&mut source)? {
                0 => return Ok(paths),
                1 => {}
                _ => return Err(malformed("it does not begin as an export does; is it a single archive?")),
            }
            let temp = self.temp_dir()?;
            nar::restore(&mut nar::Reader::new(&mut source), temp.directory(), OsStr::new(TREE))?;
            if read_number(&mut source)? != MAGIC {
                return Err(malformed("no mark follows the archive"));
            }
            let path = self.dir.parse(&read_text(&mut source)?)?;
            let mut references = BTreeSet::new();
            let count = read_number(&mut source)?;
            if count > MOST {
                return Err(malformed("it has too many references"));
            }
            for _ in 0..count {
                references.insert(self.dir.parse(&read_text(&mut source)?)?);
            }
            let deriver = read_text(&mut source)?;
            let deriver = (!deriver.is_empty()).then(|| self.dir.parse(&deriver)).transpose()?;
            if read_number(&mut source)? == 1 {
                // A signature of a kind that nobody makes any more.
                read_text(&mut source)?;
            }
            // Hashed as it lies there: of two ways to write the same archive, the stream may have the other one.
            let survey = nar::pass::survey(temp.directory(), OsStr::new(TREE), [])?;
            let mut info = PathInfo::new(path.clone(), survey.hash, survey.size);
            info.references = references;
            info.deriver = deriver;
            self.move_in(temp.directory(), OsStr::new(TREE), info.into(), notice)?;
            paths.push(path);
        }
    }

    /// `paths`, each after those of them that it refers to.
    ///
    /// # Errors
    /// One of `paths` is not valid.
    pub fn references_first(&self, paths: &BTreeSet<StorePath>) -> Result<Vec<StorePath>, StoreError> {
        let edges = self.references_among(paths)?;
        let paths: Vec<_> = paths.iter().collect();
        let mut order = Vec::with_capacity(paths.len());
        let mut seen = vec![false; paths.len()];
        for start in 0..paths.len() {
            if std::mem::replace(&mut seen[start], true) {
                continue;
            }
            let mut stack = vec![(start, edges[start].iter())];
            while let Some((path, references)) = stack.last_mut() {
                match references.next() {
                    None => {
                        order.push(paths[*path].clone());
                        stack.pop();
                    }
                    Some(&next) if !std::mem::replace(&mut seen[next], true) => stack.push((next, edges[next].iter())),
                    Some(_) => {}
                }
            }
        }
        Ok(order)
    }
}

struct Hashing<'a, W> {
    inner: &'a mut W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.hasher.update(&data[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn number(text: &mut Vec<u8>, number: u64) {
    text.extend(number.to_le_bytes());
}

fn string(text: &mut Vec<u8>, string: &[u8]) {
    number(text, string.len() as u64);
    text.extend(string);
    text.resize(text.len().next_multiple_of(8), 0);
}

fn read_number(source: &mut impl Read) -> Result<u64, StoreError> {
    let mut bytes = [0; 8];
    read_exact(source, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn read_text(source: &mut impl Read) -> Result<String, StoreError> {
    let len = read_number(source)?;
    if len > LONGEST {
        return Err(malformed("a path in it is too long"));
    }
    let mut bytes = vec![0; len as usize];
    read_exact(source, &mut bytes)?;
    let mut padding = [0; 8];
    let padding = &mut padding[..len.next_multiple_of(8).abs_diff(len) as usize];
    read_exact(source, padding)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(malformed("the space after a text is not empty"));
    }
    String::from_utf8(bytes).map_err(|_| malformed("a path in it is no text"))
}

fn read_exact(source: &mut impl Read, bytes: &mut [u8]) -> Result<(), StoreError> {
    source.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => malformed("it was cut off"),
        _ => StoreError::io("read", "the export", error),
    })
}

fn malformed(why: &'static str) -> StoreError {
    StoreError::Import { why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{Temp, nix_lines, open, path, put_file, register, temp};
    use proptest::prelude::*;
    use std::fs;

    fn example() -> (Temp, BTreeSet<StorePath>, Vec<u8>) {
        let root = temp();
        let store = open(root.path());
        let (a, b) = (path(2, "a"), path(1, "b"));
        let mut info = put_file(&store, &b, "b");
        info.references = [a.clone(), b.clone()].into();
        info.deriver = Some(path(3, "b.drv"));
        register(&store, [put_file(&store, &a, "a"), info]);
        let paths = BTreeSet::from([a, b]);
        let mut stream = Vec::new();
        store.export(&paths, &mut stream).unwrap();
        (root, paths, stream)
    }

    #[test]
    fn an_export_comes_back_whole_here_and_in_nix() {
        let (from, paths, stream) = example();
        let to = temp();
        let store = open(to.path());
        assert_eq!(store.import(&stream[..], &mut |_| {}).unwrap(), [path(2, "a"), path(1, "b")]);
        let before = open(from.path());
        for one in &paths {
            let (mut was, mut is) = (before.path_info(one).unwrap(), store.path_info(one).unwrap());
            (was.registration_time, is.registration_time) = (0, 0);
            assert_eq!(was, is);
        }
        // Twice is no error.
        store.import(&stream[..], &mut |_| {}).unwrap();

        let texts: Vec<_> = paths.iter().map(|path| store.dir().display(path)).collect();
        let arguments: Vec<_> = ["--export"].into_iter().chain(texts.iter().map(String::as_str)).collect();
        let Some(theirs) = crate::store::tests::nix(to.path(), "nix-store", &arguments) else { return };
        assert!(theirs.stdout == stream, "Nix writes the same bytes");
        nix_lines(to.path(), "nix-store", &["--verify", "--check-contents"]);
    }

    #[test]
    fn a_changed_path_is_not_exported() {
        let (root, paths, _) = example();
        let store = open(root.path());
        let file = store.real_path(&path(2, "a"));
        fs::remove_file(&file).unwrap();
        fs::write(&file, "other").unwrap();
        let error = store.export(&paths, io::sink()).unwrap_err();
        assert!(matches!(error, StoreError::Changed { .. }), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_damaged_stream_is_refused_and_leaves_nothing_behind(at in 0..1000_usize, byte: u8, cut: bool) {
            let (_, _, mut stream) = example();
            let at = at % stream.len();
            if cut {
                stream.truncate(at);
            } else {
                stream[at] = byte;
            }
            let to = temp();
            let store = open(to.path());
            let result = store.import(&stream[..], &mut |_| {});
            prop_assert!(!cut || result.is_err());
            for name in fs::read_dir(store.real_dir()).unwrap().map(|entry| entry.unwrap().file_name()) {
                let name = name.to_str().unwrap();
                prop_assert!(name == ".links" || store.is_name_valid(name).unwrap(), "{name}");
            }
        }
    }
}
