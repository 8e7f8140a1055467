//! A build's log: stored as it came, in Nix's place and name; the last lines kept at hand.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use bzip2::Compression;
use bzip2::read::MultiBzDecoder;
use bzip2::write::BzEncoder;
use tempfile::NamedTempFile;

use crate::store_path::StorePath;

/// The longest line of which the last ones are kept whole.
const LONGEST_LINE: usize = 4096;

/// Where the log of a derivation lies, as Nix has it: `drvs/`, the first two letters, the rest and `.bz2`.
pub fn path(log_dir: &Path, derivation: &StorePath) -> PathBuf {
    let (first, rest) = derivation.as_str().split_at(2);
    log_dir.join("drvs").join(first).join(format!("{rest}.bz2"))
}

/// Stores a log while it comes. It takes the place of an older one when it is whole; one that is dropped before leaves
/// nothing.
pub struct LogWriter {
    encoder: BzEncoder<NamedTempFile>,
    path: PathBuf,
}

impl LogWriter {
    /// Begins the log of a derivation's build.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(log_dir: &Path, derivation: &StorePath) -> io::Result<Self> {
        let path = path(log_dir, derivation);
        let directory = path.parent().unwrap_or(log_dir).to_owned();
        fs::create_dir_all(&directory)
            .map_err(|error| io::Error::new(error.kind(), format!("making {}: {error}", directory.display())))?;
        let file = tempfile::Builder::new()
            .prefix(".log-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(&directory)
            .map_err(|error| {
                io::Error::new(error.kind(), format!("making a file in {}: {error}", directory.display()))
            })?;
        // The least memory and the most speed: a log is written while a build waits.
        Ok(Self { encoder: BzEncoder::new(file, Compression::fast()), path })
    }

    /// Takes what the builder wrote.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.encoder.write_all(bytes)
    }

    /// Puts the log in its place.
    ///
    /// # Errors
    /// What the file system says.
    pub fn finish(self) -> io::Result<()> {
        let say = |error: io::Error| io::Error::new(error.kind(), format!("writing {}: {error}", self.path.display()));
        let file = self.encoder.finish().map_err(say)?;
        file.persist(&self.path).map(drop).map_err(|error| say(error.error))
    }
}

/// Opens the log of a derivation, uncompressed: ours, or one that Nix stored without compression.
///
/// # Errors
/// When there is none, or it cannot be read.
pub fn open(log_dir: &Path, derivation: &StorePath) -> io::Result<Box<dyn Read>> {
    let compressed = path(log_dir, derivation);
    match File::open(&compressed) {
        Ok(file) => Ok(Box::new(MultiBzDecoder::new(BufReader::new(file)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = File::open(compressed.with_extension(""))?;
            Ok(Box::new(file))
        }
        Err(error) => Err(error),
    }
}

/// The last lines of a log, in bounded memory.
#[derive(Debug)]
pub struct Tail {
    lines: VecDeque<Vec<u8>>,
    most: usize,
    /// The line that is being written.
    open: Vec<u8>,
}

impl Tail {
    /// Keeps the last `most` lines.
    pub fn new(most: usize) -> Self {
        Self { lines: VecDeque::new(), most, open: Vec::new() }
    }

    /// Takes what the builder wrote.
    pub fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let room = LONGEST_LINE.saturating_sub(self.open.len());
            self.open.extend_from_slice(&text[..text.len().min(room)]);
            if ends {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        let line = std::mem::take(&mut self.open);
        self.lines.push_back(line);
        if self.lines.len() > self.most {
            self.lines.pop_front();
        }
    }

    /// The lines, the last one even if it was not ended.
    pub fn into_lines(mut self) -> Vec<Vec<u8>> {
        if !self.open.is_empty() {
            self.close();
        }
        self.lines.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derivation() -> StorePath {
        StorePath::from_parts("00bgd045z0d4icpbc2yyz4gx48ak44la", "a.drv").unwrap()
    }

    #[test]
    fn a_log_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = LogWriter::create(directory.path(), &derivation()).unwrap();
        log.write(b"one\n\x1b[31m").unwrap();
        log.write(b"\xff\0two").unwrap();
        log.finish().unwrap();
        assert!(directory.path().join("drvs/00/bgd045z0d4icpbc2yyz4gx48ak44la-a.drv.bz2").exists());
        let mut read = Vec::new();
        open(directory.path(), &derivation()).unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, b"one\n\x1b[31m\xff\0two");
    }

    #[test]
    fn a_log_that_is_not_whole_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = LogWriter::create(directory.path(), &derivation()).unwrap();
        log.write(b"one\n").unwrap();
        drop(log);
        assert_eq!(open(directory.path(), &derivation()).map(drop).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(fs::read_dir(directory.path().join("drvs/00")).unwrap().count(), 0);
    }

    #[test]
    fn the_last_lines_are_kept_however_they_come() {
        let mut tail = Tail::new(2);
        for piece in ["on", "e\ntw", "o\n", "\nthree"] {
            tail.write(piece.as_bytes());
        }
        assert_eq!(tail.into_lines(), [b"".to_vec(), b"three".to_vec()]);
        let mut tail = Tail::new(1);
        tail.write(&vec![b'x'; 100_000]);
        assert_eq!(tail.into_lines(), [vec![b'x'; LONGEST_LINE]]);
    }
}
