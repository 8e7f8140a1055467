//! An initramfs: the archive that a kernel unpacks into its first root, in cpio's format `newc` (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst). The same tree gives the same bytes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

/// Why an initramfs cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// A path that has no place in an archive.
    #[error("{path:?} cannot be in an initramfs: {why}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two different things at one place.
    #[error("{path:?} is in the initramfs already")]
    Twice {
        /// The place.
        path: PathBuf,
    },
    /// A file that does not fit the format.
    #[error("{path:?} has {size} bytes: a file in an initramfs has less than 4 GiB")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// In bytes.
        size: u64,
    },
    /// A file that became shorter or longer while it was read.
    #[error("{path:?} changed while it was read: it had {announced} bytes and gave {read}")]
    Changed {
        /// The file.
        path: PathBuf,
        /// At first.
        announced: u64,
        /// In the end.
        read: u64,
    },
    /// Reading a file, or writing the archive.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Unpacked, it would not fit. The kernel would go on with a root that is cut off.
    #[error(
        "the initramfs unpacks to {} MiB, which is more than a guest with {} MiB of memory can unpack: the kernel would cut it off without a word; give the guest at least {} MiB, or put the files on a disk image", .unpacked.div_ceil(1 << 20), .memory >> 20, memory_for(*.unpacked).div_ceil(1 << 20)
    )]
    TooLarge {
        /// In bytes.
        unpacked: u64,
        /// The guest's, in bytes.
        memory: u64,
    },
}

/// Where a file's content comes from.
#[derive(Clone, Debug)]
enum Content {
    Bytes(Vec<u8>),
    File(PathBuf, u64),
}

#[derive(Clone, Debug)]
enum Entry {
    Directory { mode: u32 },
    File { mode: u32, content: Content },
    Link { target: OsString },
    Device { mode: u32, major: u32, minor: u32 },
}

/// What an initramfs will hold. All of it belongs to root, and is as old as 1970.
#[derive(Clone, Debug, Default)]
pub struct Initramfs {
    entries: BTreeMap<PathBuf, Entry>,
}

/// The memory, in bytes, with which a guest can unpack an initramfs that holds this much.
///
/// Linux unpacks it into a tmpfs of at most half of the memory that is left then: by the kernel itself, which takes about
/// 64 MiB of a small guest, and by the archive, which lies beside it meanwhile and is as large where it is not compressed.
fn memory_for(unpacked: u64) -> u64 {
    const KERNEL: u64 = 64 << 20;
    unpacked.saturating_mul(3).saturating_add(KERNEL)
}

impl Initramfs {
    /// With nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory; one that is there already keeps the later mode.
    ///
    /// # Errors
    /// If the path is not absolute or plain, or leads through something else than directories.
    pub fn directory(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<&mut Self, InitramfsError> {
        let path = path.as_ref();
        let place = self.place(path)?;
        match self.entries.insert(place, Entry::Directory { mode: mode & 0o7777 }) {
            None | Some(Entry::Directory { .. }) => Ok(self),
            Some(_) => Err(InitramfsError::Twice { path: path.to_owned() }),
        }
    }

    /// Adds a file of these bytes.
    ///
    /// # Errors
    /// If something is there already, or the path is no place.
    pub fn file(
        &mut self,
        path: impl AsRef<Path>,
        mode: u32,
        content: impl Into<Vec<u8>>,
    ) -> Result<&mut Self, InitramfsError> {
        self.add(path.as_ref(), Entry::File { mode: mode & 0o7777, content: Content::Bytes(content.into()) })
    }

    /// Adds a copy of the file `from`, which is read when the archive is written.
    ///
    /// # Errors
    /// If it is not a file that can be looked at, and like [`Self::file`].
    pub fn copy(
        &mut self,
        path: impl AsRef<Path>,
        mode: u32,
        from: impl Into<PathBuf>,
    ) -> Result<&mut Self, InitramfsError> {
        let from = from.into();
        let found = std::fs::metadata(&from)
            .map_err(|source| InitramfsError::Io { doing: format!("looking at {}", from.display()), source })?;
        if !found.is_file() {
            return Err(InitramfsError::Path { path: from, why: "it is not a file" });
        }
        self.add(path.as_ref(), Entry::File { mode: mode & 0o7777, content: Content::File(from, found.len()) })
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// Like [`Self::file`].
    pub fn link(&mut self, path: impl AsRef<Path>, target: impl Into<OsString>) -> Result<&mut Self, InitramfsError> {
        self.add(path.as_ref(), Entry::Link { target: target.into() })
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// Like [`Self::file`].
    pub fn device(
        &mut self,
        path: impl AsRef<Path>,
        mode: u32,
        (major, minor): (u32, u32),
    ) -> Result<&mut Self, InitramfsError> {
        self.add(path.as_ref(), Entry::Device { mode: mode & 0o7777, major, minor })
    }

    fn add(&mut self, path: &Path, entry: Entry) -> Result<&mut Self, InitramfsError> {
        let place = self.place(path)?;
        if let Entry::File { content, .. } = &entry
            && content.size() > u32::MAX.into()
        {
            return Err(InitramfsError::TooLong { path: path.to_owned(), size: content.size() });
        }
        if self.entries.contains_key(&place) {
            return Err(InitramfsError::Twice { path: path.to_owned() });
        }
        self.entries.insert(place, entry);
        Ok(self)
    }

    /// The path without its slash, with its parents made.
    fn place(&mut self, path: &Path) -> Result<PathBuf, InitramfsError> {
        let no_place = |why| InitramfsError::Path { path: path.to_owned(), why };
        let inside = path.strip_prefix("/").map_err(|_| no_place("it is not absolute"))?;
        if inside.as_os_str().is_empty() {
            return Err(no_place("the root is there by itself"));
        }
        if inside.components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err(no_place("it has dots in it"));
        }
        if inside.as_os_str().len() > 4000 || inside.as_os_str().as_bytes().contains(&0) {
            return Err(no_place("it is too long, or has a NUL"));
        }
        // Without doubled and trailing slashes.
        let place: PathBuf = inside.components().collect();
        if place == Path::new("TRAILER!!!") {
            return Err(no_place("it is how the end of the archive is marked"));
        }
        for parent in place.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            match self.entries.entry(parent.to_owned()).or_insert(Entry::Directory { mode: 0o755 }) {
                Entry::Directory { .. } => {}
                _ => return Err(no_place("it leads through something that is no directory")),
            }
        }
        Ok(place)
    }

    /// How much memory its content takes once it is unpacked, in bytes: every file begins a page of its own.
    pub fn unpacked_size(&self) -> u64 {
        const PAGE: u64 = 4096;
        let page_of = |entry: &Entry| match entry {
            Entry::File { content, .. } => content.size().next_multiple_of(PAGE),
            _ => 0,
        };
        // An inode and its name take about one more kibibyte.
        self.entries.values().map(|entry| page_of(entry) + 1024).sum()
    }

    /// That a guest with this much memory, in bytes, can unpack it.
    ///
    /// # Errors
    /// If it could not: see [`memory_for`].
    pub fn check_fits(&self, memory: u64) -> Result<(), InitramfsError> {
        let unpacked = self.unpacked_size();
        if memory_for(unpacked) > memory { Err(InitramfsError::TooLarge { unpacked, memory }) } else { Ok(()) }
    }

    /// Writes the archive, file by file.
    ///
    /// # Errors
    /// If a file cannot be read, or has changed, or the archive cannot be written.
    pub fn write(&self, to: &mut impl Write) -> Result<(), InitramfsError> {
        let mut archive = Archive { to, written: 0, inode: 0 };
        for (path, entry) in &self.entries {
            archive.entry(path, entry)?;
        }
        archive.header(OsStr::new("TRAILER!!!"), &Header { nlink: 1, ..Header::default() })
    }

    /// Writes the archive compressed: smaller on disk, slower to start (under emulation by seconds).
    ///
    /// # Errors
    /// Like [`Self::write`].
    pub fn write_gzip(&self, to: &mut impl Write) -> Result<(), InitramfsError> {
        // flate2 writes no time and no name into the head: the same tree gives the same bytes.
        let mut packed = GzEncoder::new(to, Compression::default());
        self.write(&mut packed)?;
        packed.finish().map(drop).map_err(writing)
    }
}

impl Content {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, size) => *size,
        }
    }
}

fn writing(source: io::Error) -> InitramfsError {
    InitramfsError::Io { doing: "writing the initramfs".into(), source }
}

#[derive(Default)]
struct Header {
    inode: u32,
    mode: u32,
    nlink: u32,
    size: u32,
    device: (u32, u32),
}

struct Archive<'a, W> {
    to: &'a mut W,
    written: u64,
    inode: u32,
}

impl<W: Write> Archive<'_, W> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), InitramfsError> {
        self.written += bytes.len() as u64;
        self.to.write_all(bytes).map_err(writing)
    }

    fn pad(&mut self) -> Result<(), InitramfsError> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.bytes(&[0; 4][..missing as usize])
    }

    fn header(&mut self, name: &OsStr, header: &Header) -> Result<(), InitramfsError> {
        let Header { inode, mode, nlink, size, device: (major, minor) } = *header;
        let name_size = name.len() as u32 + 1;
        // Owner and group, time, the device that it was on, and a check sum that `newc` has no use for are all 0.
        let head = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{nlink:08x}{0:08x}{size:08x}{0:08x}{0:08x}\
             {major:08x}{minor:08x}{name_size:08x}{0:08x}",
            0
        );
        self.bytes(head.as_bytes())?;
        self.bytes(name.as_bytes())?;
        self.bytes(&[0])?;
        self.pad()
    }

    fn entry(&mut self, path: &Path, entry: &Entry) -> Result<(), InitramfsError> {
        self.inode += 1;
        let header = Header { inode: self.inode, nlink: 1, ..Header::default() };
        match entry {
            Entry::Directory { mode } => {
                self.header(path.as_os_str(), &Header { mode: 0o040_000 | mode, nlink: 2, ..header })
            }
            Entry::Device { mode, major, minor } => {
                self.header(path.as_os_str(), &Header { mode: 0o020_000 | mode, device: (*major, *minor), ..header })
            }
            Entry::Link { target } => {
                let size = target.len() as u32;
                self.header(path.as_os_str(), &Header { mode: 0o120_777, size, ..header })?;
                self.bytes(target.as_bytes())?;
                self.pad()
            }
            Entry::File { mode, content } => {
                // `add` has seen to it that it fits.
                let size = content.size() as u32;
                self.header(path.as_os_str(), &Header { mode: 0o100_000 | mode, size, ..header })?;
                match content {
                    Content::Bytes(bytes) => self.bytes(bytes)?,
                    Content::File(from, size) => self.copy(from, *size)?,
                }
                self.pad()
            }
        }
    }

    fn copy(&mut self, from: &Path, announced: u64) -> Result<(), InitramfsError> {
        let reading = |source| InitramfsError::Io { doing: format!("reading {}", from.display()), source };
        let mut file = File::open(from).map_err(reading)?;
        let mut buffer = vec![0; 1 << 16];
        let mut read = 0;
        loop {
            let length = match file.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(reading(error)),
            };
            read += length as u64;
            if read > announced || (length == 0 && read < announced) {
                return Err(InitramfsError::Changed { path: from.to_owned(), announced, read });
            }
            if length == 0 {
                return Ok(());
            }
            self.bytes(&buffer[..length])?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    fn archive(tree: &Initramfs) -> Vec<u8> {
        let mut bytes = Vec::new();
        tree.write(&mut bytes).unwrap();
        bytes
    }

    /// Unpacks by the real cpio. `None`: it is not here.
    fn unpack(bytes: &[u8]) -> Option<tempfile::TempDir> {
        let directory = tempfile::tempdir().unwrap();
        let spawned = Command::new("cpio")
            .args(["--extract", "--quiet", "--no-absolute-filenames", "--no-preserve-owner", "-m"])
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                println!("SKIP: no cpio here");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        Some(directory)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn the_real_cpio_unpacks_what_was_put_in(
            files in prop::collection::btree_map("[a-z]{1,3}(/[a-z]{1,3}){0,2}x", (any::<Vec<u8>>(), 0..0o1000u32), 0..12),
            links in prop::collection::btree_map("[A-Z]{1,8}", "[a-z/.]{1,20}", 0..4),
        ) {
            let mut tree = Initramfs::new();
            let mut expected = Vec::new();
            for (name, (content, mode)) in &files {
                // One that leads through another file is refused, and that is another test.
                let mode = mode | 0o400;
                if tree.file(format!("/{name}"), mode, content.clone()).is_ok() {
                    expected.push((name, content, mode));
                }
            }
            for (name, target) in &links {
                tree.link(format!("/{name}"), target).unwrap();
            }
            let bytes = archive(&tree);
            prop_assert_eq!(&bytes, &archive(&tree.clone()));
            let Some(directory) = unpack(&bytes) else { return Ok(()) };
            for (name, content, mode) in expected {
                let path = directory.path().join(name);
                prop_assert_eq!(&fs::read(&path).unwrap(), content);
                let found = fs::metadata(&path).unwrap();
                prop_assert_eq!((found.mode() & 0o7777, found.mtime()), (mode, 0));
            }
            for (name, target) in &links {
                prop_assert_eq!(fs::read_link(directory.path().join(name)).unwrap(), Path::new(target));
            }
        }
    }

    #[test]
    fn parents_come_before_what_is_in_them_and_hold_their_mode() {
        let mut tree = Initramfs::new();
        tree.file("/etc/deep/name", 0o644, "x").unwrap().directory("/etc", 0o700).unwrap();
        let bytes = archive(&tree);
        let place = |name: &str| bytes.windows(name.len()).position(|at| at == name.as_bytes()).unwrap();
        assert!(place("etc\0") < place("etc/deep\0") && place("etc/deep\0") < place("etc/deep/name\0"));
        let Some(directory) = unpack(&bytes) else { return };
        assert_eq!(fs::metadata(directory.path().join("etc")).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn what_has_no_place_is_refused() {
        let mut tree = Initramfs::new();
        tree.file("/file", 0o644, "x").unwrap();
        for (path, why) in [
            ("relative", "not absolute"),
            ("/a/../b", "dots"),
            ("/", "by itself"),
            ("/file/inside", "no directory"),
            ("/file", "already"),
            ("/TRAILER!!!", "the end of the archive"),
        ] {
            let error = tree.file(path, 0o644, "y").unwrap_err().to_string();
            assert!(error.contains(why), "{path}: {error}");
        }
    }

    #[test]
    fn a_file_that_changes_under_our_hands_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("file");
        for (before, after) in [("long enough", "short"), ("short", "long enough")] {
            fs::write(&from, before).unwrap();
            let mut tree = Initramfs::new();
            tree.copy("/file", 0o644, &from).unwrap();
            fs::write(&from, after).unwrap();
            assert!(matches!(tree.write(&mut Vec::new()), Err(InitramfsError::Changed { .. })));
        }
    }

    #[test]
    fn more_than_the_memory_can_unpack_is_refused_with_what_it_takes() {
        let mut tree = Initramfs::new();
        tree.file("/big", 0o644, vec![0; 72 << 20]).unwrap();
        tree.check_fits(288 << 20).unwrap();
        // Measured: a guest with 256 MiB cuts this one off.
        let error = tree.check_fits(256 << 20).unwrap_err().to_string();
        assert!(error.contains("73 MiB") && error.contains("with 256 MiB of memory"), "{error}");
        assert!(error.contains("at least 281 MiB"), "{error}");
    }

    #[test]
    fn compressed_it_is_the_same_archive_and_the_same_bytes() {
        let mut tree = Initramfs::new();
        tree.file("/name", 0o644, vec![b'a'; 5000]).unwrap();
        let (mut one, mut two) = (Vec::new(), Vec::new());
        tree.write_gzip(&mut one).unwrap();
        tree.write_gzip(&mut two).unwrap();
        assert_eq!(one, two);
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&one[..]).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, archive(&tree));
    }
}
