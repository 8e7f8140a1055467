//! From a tree to its archive.

use std::ffi::{CStr, CString, OsStr};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{Advice, AtFlags, FileType, Mode, OFlags, fadvise, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::encoder::{Encoder, Sink, ToWriter};
use super::{CASE_HACK_SUFFIX, MAGIC, MAX_DEPTH, NarError, Options};
use crate::tree::descent::{DIRECTORY, Descent, Entry, entries};

/// Files from this size on are announced to the kernel as read from start to end, which doubles its read-ahead.
const LARGE: u64 = 1 << 20;

/// Writes the archive of `name` in `parent`; gives its size in bytes.
///
/// No link is followed, not even at the top. Memory is one chunk and the names of the directories on the way.
///
/// # Errors
/// Something that is neither file, directory nor symlink; a file that changes; what the kernel or `sink` says.
pub fn dump(parent: BorrowedFd<'_>, name: &OsStr, sink: impl Write) -> Result<u64, NarError> {
    dump_with(parent, name, sink, Options::default())
}

/// As [`dump`], with options.
///
/// # Errors
/// As [`dump`]; with the case hack also two names that become one.
pub fn dump_with(parent: BorrowedFd<'_>, name: &OsStr, sink: impl Write, options: Options) -> Result<u64, NarError> {
    let mut encoder = Encoder::new(ToWriter(sink));
    dump_to(parent, name, &mut encoder, options)?;
    let (ToWriter(mut sink), size) = encoder.finish().map_err(NarError::Sink)?;
    sink.flush().map_err(NarError::Sink)?;
    Ok(size)
}

pub(crate) fn dump_to<S: Sink>(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    encoder: &mut Encoder<S>,
    options: Options,
) -> Result<(), NarError> {
    let name = CString::new(name.as_bytes()).map_err(|_| {
        NarError::tree("archive", name.to_string_lossy().into_owned(), io::Error::from(io::ErrorKind::InvalidInput))
    })?;
    let mut walk = Descent::new();
    encoder.string(MAGIC).map_err(NarError::Sink)?;
    let top = Entry { name, kind: FileType::Unknown };
    let mut next = node(encoder, &walk, parent, &top, options)?.map(|opened| (opened, top.name));
    loop {
        if let Some(((directory, listed), name)) = next.take() {
            if walk.depth() == MAX_DEPTH {
                return Err(NarError::Depth { path: walk.shown(&name) });
            }
            walk.enter(directory, name, listed).map_err(NarError::lost)?;
        }
        let Some(listed) = walk.state() else { return Ok(()) };
        match listed.next() {
            Some(entry) => {
                let archived = archived_name(entry.name.to_bytes(), options);
                encoder.strings(&[b"entry", b"(", b"name", archived, b"node"]).map_err(NarError::Sink)?;
                let Some(current) = walk.current() else { return Ok(()) };
                match node(encoder, &walk, current, &entry, options)? {
                    Some(opened) => next = Some((opened, entry.name)),
                    None => encoder.string(b")").map_err(NarError::Sink)?,
                }
            }
            None => {
                walk.leave().map_err(NarError::lost)?;
                encoder.string(b")").map_err(NarError::Sink)?;
                if walk.depth() > 0 {
                    encoder.string(b")").map_err(NarError::Sink)?;
                }
            }
        }
    }
}

type Listed = std::vec::IntoIter<Entry>;

/// Writes a node: a whole one if it is a file or a symlink. A directory is only begun, and given back opened and listed.
fn node<S: Sink>(
    encoder: &mut Encoder<S>,
    walk: &Descent<Listed>,
    parent: BorrowedFd<'_>,
    entry: &Entry,
    options: Options,
) -> Result<Option<(OwnedFd, Listed)>, NarError> {
    let name = entry.name.as_c_str();
    let failed = |doing, errno| match errno {
        // What was listed as something else a moment ago was exchanged.
        Errno::LOOP | Errno::NOENT | Errno::NOTDIR if walk.depth() > 0 => NarError::Changed { path: walk.shown(name) },
        _ => NarError::tree(doing, walk.shown(name), errno),
    };
    let kind = match entry.kind {
        FileType::Unknown => {
            let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| failed("examine", errno))?;
            FileType::from_raw_mode(stat.st_mode)
        }
        kind => kind,
    };
    let other = match kind {
        FileType::RegularFile => {
            regular(encoder, walk, parent, name)?;
            return Ok(None);
        }
        FileType::Symlink => {
            let target = readlinkat(parent, name, Vec::new()).map_err(|errno| failed("read the symlink", errno))?;
            encoder
                .strings(&[b"(", b"type", b"symlink", b"target", target.to_bytes(), b")"])
                .map_err(NarError::Sink)?;
            return Ok(None);
        }
        FileType::Directory => {
            let directory =
                openat(parent, name, DIRECTORY, Mode::empty()).map_err(|errno| failed("open the directory", errno))?;
            let mut listed = entries(directory.as_fd())
                .map_err(|source| NarError::tree("list the directory", walk.shown(name), source))?;
            listed.sort_unstable_by(|a, b| {
                archived_name(a.name.to_bytes(), options).cmp(archived_name(b.name.to_bytes(), options))
            });
            if options.case_hack {
                let same = |pair: &&[Entry]| {
                    archived_name(pair[0].name.to_bytes(), options) == archived_name(pair[1].name.to_bytes(), options)
                };
                if let Some(pair) = listed.windows(2).find(same) {
                    let names = [name.to_bytes(), pair[1].name.to_bytes()].join(&b'/');
                    let path = walk.shown(&CString::new(names).unwrap_or_default());
                    return Err(NarError::CaseHack { path });
                }
            }
            encoder.strings(&[b"(", b"type", b"directory"]).map_err(NarError::Sink)?;
            return Ok(Some((directory, listed.into_iter())));
        }
        other => other,
    };
    Err(NarError::Kind { path: walk.shown(name), kind: kind_in_words(other) })
}

fn regular<S: Sink>(
    encoder: &mut Encoder<S>,
    walk: &Descent<Listed>,
    parent: BorrowedFd<'_>,
    name: &CStr,
) -> Result<(), NarError> {
    let changed = || NarError::Changed { path: walk.shown(name) };
    // Were it exchanged for a FIFO, NONBLOCK keeps the open from waiting for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(parent, name, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::LOOP | Errno::NXIO => changed(),
        _ => NarError::tree("open", walk.shown(name), errno),
    })?;
    let stat = fstat(&file).map_err(|errno| NarError::tree("examine", walk.shown(name), errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(changed());
    }
    let size = stat.st_size as u64;
    if size > LARGE {
        // Advice: nothing depends on whether the kernel takes it.
        let _ = fadvise(&file, 0, None, Advice::Sequential);
    }
    encoder.strings(&[b"(", b"type", b"regular"]).map_err(NarError::Sink)?;
    if stat.st_mode & 0o100 != 0 {
        encoder.strings(&[b"executable", b""]).map_err(NarError::Sink)?;
    }
    encoder.string(b"contents").map_err(NarError::Sink)?;
    encoder.length(size).map_err(NarError::Sink)?;
    let mut left = size;
    while left > 0 {
        let spare = encoder.spare().map_err(NarError::Sink)?;
        let wanted = spare.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match rustix::io::read(&file, &mut spare[..wanted]) {
            Ok(0) => return Err(changed()),
            Ok(count) => {
                encoder.filled(count);
                left -= count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(NarError::tree("read", walk.shown(name), errno)),
        }
    }
    encoder.pad(size).map_err(NarError::Sink)?;
    encoder.string(b")").map_err(NarError::Sink)
}

/// The name as the archive has it.
fn archived_name(name: &[u8], options: Options) -> &[u8] {
    if !options.case_hack {
        return name;
    }
    match name.windows(CASE_HACK_SUFFIX.len()).position(|part| part == CASE_HACK_SUFFIX) {
        Some(position) => &name[..position],
        None => name,
    }
}

/// What something is that no store path may hold.
pub(crate) fn kind_in_words(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symlink",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "of an unknown kind",
    }
}
