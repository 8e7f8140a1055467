//! What is kept of a failed build: a copy of its build directory that belongs to who asked, and its room, so that it can be
//! entered again.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anchorhold_sandbox::Room;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::scratch::Scratch;
use crate::derivation::Derivation;
use crate::tree;

/// The build directory within what is kept.
pub const BUILD: &str = "build";
/// The room within what is kept.
pub const ROOM: &str = "room.json";
/// What runs a command in the machine of a build that had one, within what is kept.
pub const RUN: &str = "run-vm";

/// Copies what a failed build left in its build directory to a new directory of ours below the directory for temporary files.
/// A copy, taken like an output: a builder's own files may be set-id, linked or still open elsewhere. What no copy can be made of, such as
/// a socket that a server left, is left out: where it is kept, and what was left out.
///
/// # Errors
/// What the file system says; then nothing is kept.
pub fn keep(
    scratch: &Scratch,
    derivation: &Derivation,
    room: &Room,
    machine: Option<&str>,
) -> io::Result<(PathBuf, Vec<String>)> {
    let kept = make_directory(&std::env::temp_dir(), &derivation.name)?;
    let copied = (|| {
        let from = scratch.open(".")?;
        let into = std::fs::File::open(&kept)?;
        let left_out =
            tree::salvage(from.as_fd(), "build".as_ref(), into.as_fd(), BUILD.as_ref()).map_err(io::Error::other)?;
        std::fs::write(kept.join(ROOM), serde_json::to_vec_pretty(room)?)?;
        if let Some(options) = machine {
            write_script(&kept, options)?;
        }
        Ok(left_out)
    })();
    match copied {
        Ok(left_out) => Ok((kept, left_out)),
        Err(error) => {
            let _ = std::fs::remove_dir_all(&kept);
            Err(error)
        }
    }
}

/// The script that enters the machine again: a shell on a terminal, or the command that it is given.
fn write_script(kept: &Path, options: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let program = std::env::current_exe()?;
    let quoted = |path: &Path| format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"));
    let text = format!(
        "#!/bin/sh\n# A shell in the machine of this build, or a command.\nexec {} vm run --kept {} {options} -- \"$@\"\n",
        quoted(&program),
        quoted(kept)
    );
    let script = kept.join(RUN);
    std::fs::write(&script, text)?;
    std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755))
}

/// A new directory with Nix's kind of name, 0700: `nix-build-NAME-N`.
fn make_directory(parent: &Path, name: &str) -> io::Result<PathBuf> {
    for number in 0..10_000 {
        let path = parent.join(format!("nix-build-{name}.drv-{number}"));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("too many kept builds in {}", parent.display())))
}

/// A kept build, held: nobody else is in it.
#[derive(Debug)]
pub struct Kept {
    /// Where it is, without links.
    pub path: PathBuf,
    /// Its directory, locked.
    pub directory: OwnedFd,
    /// The room that it was built in.
    pub room: Room,
}

/// Why a kept build cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// A system call.
    #[error("{doing} {path}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It is somebody else's, or others can write it: its room could name any of our files.
    #[error(
        "{path} belongs to user {owner} (mode {mode:04o}): a kept build is entered by the user that it was kept for, and its directory is writable for nobody else"
    )]
    NotOurs {
        /// Where it is.
        path: String,
        /// Whose it is.
        owner: u32,
        /// Its mode.
        mode: u32,
    },
    /// Somebody is in it.
    #[error("{0} is being visited already: one shell at a time can be in a kept build")]
    Visited(String),
    /// Its room cannot be read.
    #[error("{path}/{ROOM} is damaged or of another version ({source}): build again with --keep-failed")]
    Room {
        /// Where it is.
        path: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// The longest room that is read: its environment is far below it.
const MAX_ROOM: u64 = 64 << 20;

/// Opens a kept build, for one visitor at a time.
///
/// # Errors
/// When there is none, it is not ours, or somebody is in it.
pub fn open(kept: &Path) -> Result<Kept, KeptError> {
    let shown = kept.display().to_string();
    let system = |doing| {
        let path = shown.clone();
        move |source: io::Error| KeptError::System { doing, path, source }
    };
    let path = kept.canonicalize().map_err(system("opening"))?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(&path, flags, Mode::empty()).map_err(io::Error::from).map_err(system("opening"))?;
    let found = rustix::fs::fstat(&directory).map_err(io::Error::from).map_err(system("looking at"))?;
    if found.st_uid != rustix::process::geteuid().as_raw() || found.st_mode & 0o022 != 0 {
        return Err(KeptError::NotOurs { path: shown, owner: found.st_uid, mode: found.st_mode & 0o7777 });
    }
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(KeptError::Visited(shown)),
        Err(errno) => return Err(system("locking")(errno.into())),
    }
    let file = rustix::fs::openat(&directory, ROOM, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(io::Error::from)
        .map_err(system("opening room.json in"))?;
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(std::fs::File::from(file), MAX_ROOM), &mut text)
        .map_err(system("reading room.json in"))?;
    let room = serde_json::from_slice(&text).map_err(|source| KeptError::Room { path: shown, source })?;
    Ok(Kept { path, directory, room })
}
