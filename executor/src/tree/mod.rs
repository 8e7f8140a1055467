//! Trees that a builder wrote, walked as an enemy's work: by held directories, never through a link.
//!
//! Every function takes a tree as a name in a held directory. The names below are found by system calls on held directories
//! only, so that whoever exchanges a directory for a link in the meantime gains nothing.

mod canonicalise;
mod copy;
pub(crate) mod descent;
mod give;
mod remove;
#[cfg(test)]
mod tests;

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags, RenameFlags, chmod, fstat, open, renameat_with};
use rustix::io::Errno;

pub use canonicalise::{KEPT_ATTRIBUTES, OutsideLinks, Policy, canonicalise, canonicalise_all};
pub use copy::{copy, salvage};
pub use give::give;
pub use remove::remove;

/// Why a tree was not taken, copied, moved or removed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A system call.
    #[error("cannot {doing} ‘{path}’: {source}{hint}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// To what: the way from the tree's top, its name included.
        path: String,
        /// The system's answer.
        source: io::Error,
        /// What it may mean and what to do, with a separator before it, or nothing.
        hint: &'static str,
    },
    /// A tree that should be there is not.
    #[error("‘{path}’ was not made by the builder")]
    Missing {
        /// Its name.
        path: String,
    },
    /// Something that no store can hold.
    #[error("‘{path}’ is {kind}: only regular files, directories and symlinks can be kept; have the build remove it")]
    Kind {
        /// The way from the tree's top.
        path: String,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// A file that the builder cannot have made.
    #[error(
        "suspicious ownership or permission on ‘{path}’: it belongs to user {owner}, not to the builder; a hard link to a file of somebody else cannot be kept"
    )]
    Owner {
        /// The way from the tree's top.
        path: String,
        /// The user id that it has.
        owner: u32,
    },
    /// A top that others may write to.
    #[error(
        "suspicious ownership or permission on ‘{path}’: its mode {mode:04o} lets group or others write; have the build take that away (chmod go-w)"
    )]
    Writable {
        /// The tree's name.
        path: String,
        /// Its mode.
        mode: u32,
    },
    /// A file with a name that is in none of the trees.
    #[error(
        "‘{path}’ has hard links outside the outputs ({outside}): it would change there as well; have the build copy it instead"
    )]
    OutsideLink {
        /// The way from the tree's top.
        path: String,
        /// How many names are outside.
        outside: u64,
    },
    /// A file that the kernel lets nobody change.
    #[error("‘{path}’ is {word}: take the attribute away (chattr -{letter})")]
    Attribute {
        /// The way from the tree's top.
        path: String,
        /// Which attribute.
        word: &'static str,
        /// Its letter for chattr.
        letter: char,
    },
    /// Another file system begins.
    #[error("something is mounted on ‘{path}’: a tree must lie on one file system")]
    Mount {
        /// The way from the tree's top.
        path: String,
    },
    /// A name that no file can have, or a path without a last name.
    #[error("‘{0}’ does not name a file in a directory")]
    Name(String),
}

impl TreeError {
    pub(crate) fn lost(lost: descent::Lost) -> Self {
        Self::system("go on in the directory", lost.path, lost.source)
    }

    pub(crate) fn system(doing: &'static str, path: String, source: impl Into<io::Error>) -> Self {
        Self::System { doing, path, source: source.into(), hint: "" }
    }
}

/// The directory that holds `path`, and its last name: what the functions here want.
///
/// Links on the way to the directory are followed; the last name is not looked at.
///
/// # Errors
/// The directory cannot be opened, or `path` ends in `..` or is a root.
pub fn place(path: &Path) -> Result<(OwnedFd, OsString), TreeError> {
    let Some(Component::Normal(name)) = path.components().next_back() else {
        return Err(TreeError::Name(path.display().to_string()));
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| TreeError::system("open the directory", parent.display().to_string(), errno))?;
    Ok((directory, name.to_owned()))
}

/// Gives the tree `name` in `from` the name `new_name` in `to`, which must not exist, in one step.
///
/// # Errors
/// The new name exists, both are not on one file system (then [`copy`] and [`remove`]), or what else the kernel says.
pub fn rename(from: BorrowedFd<'_>, name: &OsStr, to: BorrowedFd<'_>, new_name: &OsStr) -> Result<(), TreeError> {
    let (name, new_name) = (single_name(name)?, single_name(new_name)?);
    let failed = |errno: Errno| {
        let hint = match errno {
            Errno::EXIST => "; nothing is ever replaced: remove it first if it is not wanted",
            Errno::XDEV => "; it lies on another file system",
            _ => "",
        };
        let path = descent::shown_names([new_name.to_bytes()].into_iter());
        TreeError::System { doing: "move a tree to", path, source: errno.into(), hint }
    };
    let moved = || renameat_with(from, &name, to, &new_name, RenameFlags::NOREPLACE);
    match moved() {
        // Another place means another `..`, which only who may write to a directory may change; in its canonical form
        // nobody may but root.
        Err(Errno::ACCESS) => {
            let handle = descent::open_handle(from, &name).map_err(failed)?;
            let stat = fstat(&handle).map_err(failed)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory || stat.st_mode & 0o200 != 0 {
                return Err(failed(Errno::ACCESS));
            }
            let by_handle = descent::procfs_name(handle.as_fd());
            chmod(&by_handle, Mode::from_raw_mode(stat.st_mode | 0o200)).map_err(failed)?;
            let result = moved();
            chmod(&by_handle, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(failed)?;
            result.map_err(failed)
        }
        result => result.map_err(failed),
    }
}

fn single_name(name: &OsStr) -> Result<CString, TreeError> {
    let bytes = name.as_bytes();
    let single = !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/');
    CString::new(bytes).ok().filter(|_| single).ok_or_else(|| TreeError::Name(shown(name)))
}

fn shown(name: &OsStr) -> String {
    descent::shown_names([name.as_bytes()].into_iter())
}
