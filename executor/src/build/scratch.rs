//! The directories that one build writes: made under a name nobody can guess, held, and gone afterwards.
//!
//! ```text
//! builds/              0711, ours: can be walked through, cannot be listed
//!   8f3c…/             0711, ours, held by flock(2) while the build lives
//!     room/            0700, the builder's: nobody else gets any further
//!       build/         0700: /build
//!       store/         1775: /nix/store as the builder sees it, below its inputs
//!       tmp/           1777: /tmp
//! ```
//!
//! The builder's three are reached by others through its room only. What it leaves there is an enemy's work: it is looked at
//! through held directories, when everything in the room is dead.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::tree;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// The directories of one build. Removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    builds: OwnedFd,
    name: String,
    path: PathBuf,
    /// Open, and locked: whoever gets the lock knows that the build is no more.
    directory: OwnedFd,
    owner: Option<(u32, u32)>,
}

/// The uid and gid that a builder runs under outside its room, when they are not our own.
pub type Owner = Option<(u32, u32)>;

impl Scratch {
    /// New directories below `builds`, which is made when it is not there. `owner` is given the three inner ones.
    ///
    /// # Errors
    /// What the file system says, with what was being done.
    pub fn create(builds: &Path, owner: Owner) -> io::Result<Self> {
        let held = open_builds(builds, owner)?;
        loop {
            let name = random_name()?;
            match rustix::fs::mkdirat(&held, &name, Mode::from_raw_mode(0o711)) {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(errno) => return Err(said("making a directory in", builds, errno)),
            }
            let path = builds.join(&name);
            // A sweep may come between each of these: then it had the lock, and the name is gone or about to be.
            let directory = match rustix::fs::openat(&held, &name, DIRECTORY, Mode::empty()) {
                Ok(directory) => directory,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(said("opening", &path, errno)),
            };
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => continue,
                Err(errno) => return Err(said("locking", &path, errno)),
            }
            if rustix::fs::fstat(&directory).map_err(|errno| said("looking at", &path, errno))?.st_nlink == 0 {
                continue;
            }
            // Against our umask.
            rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o711))
                .map_err(|errno| said("changing the mode of", &path, errno))?;
            let scratch = Self { builds: held, name, path, directory, owner };
            for (inner, mode) in [("room", 0o700), ("room/build", 0o700), ("room/store", 0o1775), ("room/tmp", 0o1777)]
            {
                scratch.make(inner, mode).map_err(|errno| said("making", &scratch.path.join(inner), errno))?;
            }
            return Ok(scratch);
        }
    }

    fn make(&self, name: &str, mode: u32) -> Result<(), Errno> {
        rustix::fs::mkdirat(&self.directory, name, Mode::from_raw_mode(0o700))?;
        let made = rustix::fs::openat(&self.directory, name, DIRECTORY, Mode::empty())?;
        give(made.as_fd(), self.owner)?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the builder sees as its build directory.
    pub fn build(&self) -> PathBuf {
        self.path.join("room/build")
    }

    /// What the builder sees as the store.
    pub fn store(&self) -> PathBuf {
        self.path.join("room/store")
    }

    /// What the builder sees as `/tmp`.
    pub fn tmp(&self) -> PathBuf {
        self.path.join("room/tmp")
    }

    /// One of the three, held. For use when everything in the room is dead.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(&self, inner: &str) -> io::Result<OwnedFd> {
        rustix::fs::openat(&self.directory, "room", DIRECTORY, Mode::empty())
            .and_then(|room| rustix::fs::openat(&room, inner, DIRECTORY, Mode::empty()))
            .map_err(|errno| said("opening", &self.path.join("room").join(inner), errno))
    }

    /// The directory around the builder's three, which no room shows.
    pub fn aside(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Puts a file for the builder into its build directory, before the room stands.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, name: &str, contents: &[u8]) -> io::Result<()> {
        let say = |errno| said("writing", &self.build().join(name), errno);
        let build = self.open("build")?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&build, name, flags, Mode::from_raw_mode(0o644)).map_err(say)?;
        give(file.as_fd(), self.owner).map_err(say)?;
        let mut file = File::from(file);
        file.write_all(contents)
    }

    /// Writes a file into the store directory, as if the builder had.
    ///
    /// # Errors
    /// What the file systems say.
    pub fn create_output(&self, name: &str, executable: bool, contents: &mut impl Read) -> io::Result<()> {
        let store = self.open("store")?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = if executable { 0o755 } else { 0o644 };
        let file = rustix::fs::openat(&store, name, flags, Mode::from_raw_mode(mode))?;
        give(file.as_fd(), self.owner)?;
        io::copy(contents, &mut File::from(file)).map(drop)
    }

    /// Removes all of it.
    ///
    /// # Errors
    /// What could not be removed, and why.
    pub fn remove(self) -> io::Result<()> {
        self.take_away()
    }

    fn take_away(&self) -> io::Result<()> {
        // Shut first: whoever still holds a descriptor of a directory in it walks nowhere.
        let _ = rustix::fs::fchmod(&self.directory, Mode::from_raw_mode(0o700));
        tree::remove(self.builds.as_fd(), self.name.as_ref()).map_err(io::Error::other)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody is left to be told; the next sweep tries again.
        let _ = self.take_away();
    }
}

/// Removes the directories of builds that are no more: of an executor that was killed, or of a machine that lost power. Returns how many.
///
/// # Errors
/// When `builds` cannot be read. What cannot be removed is left for the next time.
pub fn sweep(builds: &Path) -> io::Result<usize> {
    let held = match rustix::fs::open(builds, DIRECTORY, Mode::empty()) {
        Ok(held) => held,
        Err(Errno::NOENT) => return Ok(0),
        Err(errno) => return Err(said("opening", builds, errno)),
    };
    let mut removed = 0;
    let entries = rustix::fs::Dir::read_from(&held).map_err(|errno| said("reading", builds, errno))?;
    for entry in entries {
        let entry = entry.map_err(|errno| said("reading", builds, errno))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(directory) = rustix::fs::openat(&held, name, DIRECTORY, Mode::empty()) else { continue };
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(name.to_bytes());
        removed += usize::from(tree::remove(held.as_fd(), name).is_ok());
    }
    Ok(removed)
}

/// Opens `builds`, making it when it is not there, and makes sure that nobody but us may write it.
fn open_builds(builds: &Path, owner: Owner) -> io::Result<OwnedFd> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(builds)
        .map_err(|error| io::Error::new(error.kind(), format!("making {}: {error}", builds.display())))?;
    let held = rustix::fs::open(builds, DIRECTORY, Mode::empty()).map_err(|errno| said("opening", builds, errno))?;
    let found = rustix::fs::fstat(&held).map_err(|errno| said("looking at", builds, errno))?;
    if found.st_uid != rustix::process::geteuid().as_raw() || found.st_mode & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{} must belong to the user who builds and be writable by nobody else: builds would take what others put there",
                builds.display()
            ),
        ));
    }
    check_way(builds, owner)?;
    Ok(held)
}

/// Makes sure that nobody but us and the superuser may put another directory at this path: whoever can exchange one on the
/// way gets the builds that are made there (CVE-2025-52991). The builder's own id does no harm: a Nix that hands a build over gives it
/// the directory, and who has the id is in the room.
fn check_way(builds: &Path, owner: Owner) -> io::Result<()> {
    let refused = |place: &Path, why: &str, remedy: &str| {
        io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{} may be exchanged, because {} {why}: {remedy}", builds.display(), place.display()),
        )
    };
    let us = rustix::process::geteuid().as_raw();
    let real = builds
        .canonicalize()
        .map_err(|error| io::Error::new(error.kind(), format!("finding {}: {error}", builds.display())))?;
    for place in real.ancestors().skip(1) {
        let found = rustix::fs::stat(place).map_err(|errno| said("looking at", place, errno))?;
        if found.st_mode & 0o1002 == 0o002 {
            return Err(refused(
                place,
                "can be written by everybody",
                "take that right away (chmod o-w), or name another `build-dir`",
            ));
        }
        // In a user namespace, what belongs to the users outside is shown as nobody's: they are not among those inside.
        let builder = owner.map_or(us, |(uid, _)| uid);
        if ![0, us, builder, OVERFLOW_UID].contains(&found.st_uid) {
            return Err(refused(
                place,
                &format!("belongs to the user {}", found.st_uid),
                "name a `build-dir` below directories of your own",
            ));
        }
    }
    Ok(())
}

/// The id by which the kernel shows those that a user namespace has no id for (`/proc/sys/kernel/overflowuid`).
const OVERFLOW_UID: u32 = 65534;

fn give(fd: BorrowedFd<'_>, owner: Owner) -> Result<(), Errno> {
    match owner {
        Some((uid, gid)) => {
            rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))
        }
        None => Ok(()),
    }
}

/// 16 random hexadecimal digits.
fn random_name() -> io::Result<String> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn said(doing: &str, path: &Path, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("{doing} {}: {error}", path.display()))
}

/// The bytes that are free on the file system of a directory.
pub fn free_bytes(directory: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(directory).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Whether nothing has this name in a held directory.
pub fn is_absent(directory: BorrowedFd<'_>, name: &str) -> bool {
    matches!(rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// CVE-2025-52993: whoever holds a descriptor of the build directory puts a link where a file will be written.
    #[test]
    fn a_file_for_the_builder_is_not_written_through_a_link_that_is_there() {
        let place = tempfile::tempdir().unwrap();
        let canary = place.path().join("canary");
        std::fs::write(&canary, "canary").unwrap();
        let scratch = Scratch::create(&place.path().join("builds"), None).unwrap();
        symlink(&canary, scratch.build().join(".attrs.json")).unwrap();
        let refusal = scratch.write(".attrs.json", b"owned").unwrap_err();
        assert_eq!(refusal.kind(), io::ErrorKind::AlreadyExists, "{refusal}");
        assert_eq!(std::fs::read_to_string(&canary).unwrap(), "canary");
        // It fires on a writer that goes by the path.
        std::fs::write(scratch.build().join(".attrs.json"), "owned").unwrap();
        assert_eq!(std::fs::read_to_string(&canary).unwrap(), "owned");
    }

    #[test]
    fn sweeps_at_any_moment_take_nothing_that_is_being_made() {
        let place = tempfile::tempdir().unwrap();
        let builds = place.path().join("builds");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sweeper = scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    sweep(&builds).unwrap();
                }
            });
            for number in 0..500 {
                let made = Scratch::create(&builds, None).map(|scratch| scratch.write("file", b"").map(|()| scratch));
                assert!(matches!(made, Ok(Ok(_))), "{number}: {made:?}");
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            sweeper.join().unwrap();
        });
        assert_eq!(std::fs::read_dir(&builds).unwrap().count(), 0);
    }
}
