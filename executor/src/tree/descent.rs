//! A way down a tree by held directories, with a bounded number of descriptors.
//!
//! Nothing here takes a path of more than one name. Directories far above are closed and opened again through `..` when
//! the way leads back; that is safe because the identity of what `..` gives is compared with the one that was left.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, fstat, openat, openat2};
use rustix::io::Errno;

/// Directories held at once. The usual limit of descriptors is 1024 for the whole process, and several trees may be
/// walked at a time.
const WINDOW: usize = 32;

/// What a directory is opened with: for listing, never through a link, never inherited.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A handle to anything, without opening it: devices are not woken, FIFOs do not block, no permission is needed.
pub(crate) const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What a tree that was written by an enemy is opened below: no link of any kind, no other file system.
pub(crate) const ENEMY: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// The directories from a tree's top to where a walk is, each with what the walk keeps about it.
pub(crate) struct Descent<T> {
    levels: Vec<Level<T>>,
}

struct Level<T> {
    /// Nothing while the walk is far below.
    directory: Option<OwnedFd>,
    identity: (u64, u64),
    name: CString,
    state: T,
}

/// A walk that cannot go on.
pub(crate) struct Lost {
    /// The directory where that happened, as a person may read it.
    pub(crate) path: String,
    pub(crate) source: io::Error,
}

impl From<Lost> for io::Error {
    fn from(lost: Lost) -> Self {
        Self::new(lost.source.kind(), format!("{}: {}", lost.path, lost.source))
    }
}

/// Which file it is: device and inode.
pub(crate) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

impl<T> Descent<T> {
    pub(crate) fn new() -> Self {
        Self { levels: Vec::new() }
    }

    /// Goes into `directory`, which is called `name` in the current one.
    pub(crate) fn enter(&mut self, directory: OwnedFd, name: CString, state: T) -> Result<(), Lost> {
        let stat = fstat(&directory).map_err(|errno| Lost { path: self.shown(&name), source: errno.into() })?;
        let identity = identity(&stat);
        self.levels.push(Level { directory: Some(directory), identity, name, state });
        if let Some(far) = self.levels.len().checked_sub(WINDOW + 1) {
            self.levels[far].directory = None;
        }
        Ok(())
    }

    /// Goes up by one; gives the directory that was left, its name and its state. Nothing if there is none.
    pub(crate) fn leave(&mut self) -> Result<Option<(OwnedFd, CString, T)>, Lost> {
        let Some(Level { directory, name, state, .. }) = self.levels.pop() else { return Ok(None) };
        let left = directory.ok_or_else(|| io::Error::other("the directory where the walk stands is not held"));
        match left.and_then(|left| self.reopen_above(&left).map(|()| left)) {
            Ok(left) => Ok(Some((left, name, state))),
            Err(source) => Err(Lost { path: self.shown(&name), source }),
        }
    }

    fn reopen_above(&mut self, left: &OwnedFd) -> io::Result<()> {
        if let Some(above) = self.levels.last_mut()
            && above.directory.is_none()
        {
            let reopened = openat(left, c"..", DIRECTORY, Mode::empty())?;
            if identity(&fstat(&reopened)?) != above.identity {
                return Err(io::Error::other("the directory was moved elsewhere during the walk"));
            }
            above.directory = Some(reopened);
        }
        Ok(())
    }

    /// The directory where the walk stands, or nothing if it is not in the tree (any more).
    pub(crate) fn current(&self) -> Option<BorrowedFd<'_>> {
        self.levels.last().and_then(|level| level.directory.as_ref()).map(AsFd::as_fd)
    }

    /// What the walk keeps about the current directory.
    pub(crate) fn state(&mut self) -> Option<&mut T> {
        self.levels.last_mut().map(|level| &mut level.state)
    }

    /// How many directories lead here.
    pub(crate) fn depth(&self) -> usize {
        self.levels.len()
    }

    /// The names from the top to `name` in the current directory, as a person may read them.
    pub(crate) fn shown(&self, name: &CStr) -> String {
        shown_names(self.levels.iter().map(|level| level.name.to_bytes()).chain([name.to_bytes()]))
    }

    /// As [`shown`](Self::shown), for the current directory itself.
    pub(crate) fn shown_current(&self) -> String {
        shown_names(self.levels.iter().map(|level| level.name.to_bytes()))
    }
}

/// Longest path that a message shows in full. A hostile tree can have one of megabytes.
const SHOWN: usize = 600;

/// `names` as one path for a message: control characters and bytes that are no UTF-8 spelled out, and a very long middle
/// left out.
pub(crate) fn shown_names<'a>(names: impl Iterator<Item = &'a [u8]>) -> String {
    let path = names.collect::<Vec<_>>().join(&b'/');
    let spell = |bytes: &[u8]| bytes.escape_ascii_but_letters();
    if path.len() <= SHOWN {
        return spell(&path);
    }
    let half = SHOWN / 2;
    format!("{}…{}", spell(&path[..half]), spell(&path[path.len() - half..]))
}

trait Spelled {
    fn escape_ascii_but_letters(&self) -> String;
}

impl Spelled for [u8] {
    fn escape_ascii_but_letters(&self) -> String {
        let mut text = String::new();
        for chunk in self.utf8_chunks() {
            for letter in chunk.valid().chars() {
                if letter.is_control() { text.extend(letter.escape_default()) } else { text.push(letter) }
            }
            for byte in chunk.invalid() {
                text.push_str(&format!("\\x{byte:02x}"));
            }
        }
        text
    }
}

/// A directory's entry: its name and, where the file system says it, its kind.
pub(crate) struct Entry {
    pub(crate) name: CString,
    pub(crate) kind: FileType,
}

/// All entries of `directory`, which must be freshly opened, in no order. `.` and `..` are left out.
///
/// Memory grows with the names of one directory: an archive's order cannot be had without all of them.
pub(crate) fn entries(directory: BorrowedFd<'_>) -> io::Result<Vec<Entry>> {
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut listing = RawDir::new(directory, buffer.spare_capacity_mut());
    let mut entries = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            entries.push(Entry { name: name.to_owned(), kind: entry.file_type() });
        }
    }
    Ok(entries)
}

/// Opens the directory `name` of an enemy's tree for listing.
pub(crate) fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    retrying(|| openat2(parent, name, DIRECTORY, Mode::empty(), ENEMY))
}

/// A handle to `name` of an enemy's tree, whatever it is: of a link, the link itself (`openat2(2)`, RESOLVE_NO_SYMLINKS).
pub(crate) fn open_handle(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    retrying(|| openat2(parent, name, HANDLE, Mode::empty(), ENEMY))
}

/// `openat2` answers EAGAIN when anything was renamed or mounted anywhere while it looked (`openat2(2)`).
fn retrying(open: impl Fn() -> rustix::io::Result<OwnedFd>) -> rustix::io::Result<OwnedFd> {
    for _ in 0..1000 {
        match open() {
            Err(Errno::AGAIN) => {}
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}

/// The name under which procfs shows a held descriptor. It leads to the very file, whatever happened to names since.
pub(crate) fn procfs_name(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
