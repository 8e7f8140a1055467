//! From an archive to a tree.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, BufRead};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, fstat, futimens, mkdirat, openat, symlinkat,
    utimensat,
};

use super::{Event, NarError, Reader};
use crate::tree::descent::{DIRECTORY, Descent};

/// The modes that a store has.
pub(crate) const FILE: Mode = Mode::from_raw_mode(0o444);
pub(crate) const EXECUTABLE: Mode = Mode::from_raw_mode(0o555);

/// One second after the epoch: the time of everything in a store. The time of access stays.
pub(crate) const CANONICAL_TIME: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
    last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
};

/// Makes the tree of the archive that `reader` gives, as `name` in `parent`, which must not exist yet.
///
/// Modes and times are a store's own: 0444, 0555 and one second after the epoch. Nothing that exists is followed or
/// written to. What was made is removed again if the archive turns out to be no good.
///
/// # Errors
/// `name` exists; the archive is malformed or cut off; what the kernel says.
pub fn restore<R: BufRead>(reader: &mut Reader<R>, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), NarError> {
    let top = CString::new(name.as_bytes()).map_err(|_| {
        NarError::tree("make", name.to_string_lossy().into_owned(), io::Error::from(io::ErrorKind::InvalidInput))
    })?;
    let mut made = false;
    let result = restore_nodes(reader, parent, &top, &mut made);
    if result.is_err() && made {
        // The first error is the one to report; what cannot be removed now is left to whoever clears up after a crash.
        let _ = crate::tree::remove(parent, name);
    }
    result
}

fn restore_nodes<R: BufRead>(
    reader: &mut Reader<R>,
    parent: BorrowedFd<'_>,
    top: &CString,
    made: &mut bool,
) -> Result<(), NarError> {
    let mut walk: Descent<()> = Descent::new();
    let mut name = top.clone();
    while let Some(event) = reader.next()? {
        let here = walk.current().unwrap_or(parent);
        let failed = |doing, errno: rustix::io::Errno| NarError::tree(doing, walk.shown(&name), errno);
        match event {
            // The reader lets no NUL through.
            Event::Entry(bytes) => name = CString::new(bytes).unwrap_or_default(),
            Event::Directory => {
                mkdirat(here, &name, Mode::RWXU).map_err(|errno| failed("make the directory", errno))?;
                *made = true;
                let directory = openat(here, &name, DIRECTORY, Mode::empty())
                    .map_err(|errno| failed("open the directory", errno))?;
                walk.enter(directory, std::mem::take(&mut name), ()).map_err(NarError::lost)?;
            }
            Event::EndDirectory => {
                fchmod(here, EXECUTABLE)
                    .and_then(|()| futimens(here, &CANONICAL_TIME))
                    .map_err(|errno| NarError::tree("finish the directory", walk.shown_current(), errno))?;
                walk.leave().map_err(NarError::lost)?;
            }
            Event::Symlink(target) => {
                symlinkat(target.as_slice(), here, &name).map_err(|errno| failed("make the symlink", errno))?;
                *made = true;
                utimensat(here, &name, &CANONICAL_TIME, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|errno| failed("set the time of", errno))?;
            }
            Event::Regular { executable, .. } => {
                let mode = if executable { EXECUTABLE } else { FILE };
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(here, &name, flags, mode).map_err(|errno| failed("make the file", errno))?;
                *made = true;
                let mut file = File::from(file);
                reader.contents_to(&mut file).map_err(|error| match error {
                    NarError::Sink(source) => NarError::tree("write", walk.shown(&name), source),
                    other => other,
                })?;
                let stat = fstat(&file).map_err(|errno| failed("examine", errno))?;
                // The umask may have taken bits from the mode.
                if Mode::from_raw_mode(stat.st_mode) != mode {
                    fchmod(&file, mode).map_err(|errno| failed("set the mode of", errno))?;
                }
                futimens(file.as_fd(), &CANONICAL_TIME).map_err(|errno| failed("set the time of", errno))?;
            }
        }
    }
    Ok(())
}
