//! What is kept of a failed build: a copy of its build directory that belongs to who asked, and its room, so that it can be
//! entered again.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anchorhold_sandbox::Room;

use super::scratch::Scratch;
use crate::derivation::Derivation;
use crate::tree;

/// The build directory within what is kept.
pub const BUILD: &str = "build";
/// The room within what is kept.
pub const ROOM: &str = "room.json";

/// Copies what a failed build left in its build directory to a new directory of ours below the directory for temporary files.
/// A copy, taken like an output: a builder's own files may be set-id, linked or still open elsewhere. What no copy can be made of, such as
/// a socket that a server left, is left out: where it is kept, and what was left out.
///
/// # Errors
/// What the file system says; then nothing is kept.
pub fn keep(scratch: &Scratch, derivation: &Derivation, room: &Room) -> io::Result<(PathBuf, Vec<String>)> {
    let kept = make_directory(&std::env::temp_dir(), &derivation.name)?;
    let copied = (|| {
        let from = scratch.open(".")?;
        let into = std::fs::File::open(&kept)?;
        let left_out =
            tree::salvage(from.as_fd(), "build".as_ref(), into.as_fd(), BUILD.as_ref()).map_err(io::Error::other)?;
        std::fs::write(kept.join(ROOM), serde_json::to_vec_pretty(room)?)?;
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

/// Reads the room of a kept build.
///
/// # Errors
/// When there is none, or it is damaged.
pub fn room(kept: &Path) -> io::Result<Room> {
    let text = std::fs::read(kept.join(ROOM))?;
    Ok(serde_json::from_slice(&text)?)
}
