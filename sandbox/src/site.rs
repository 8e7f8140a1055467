//! The building site: what the interpreter of a plan holds in its hands while the room is made.
//!
//! Everything in the room's tree is reached from a descriptor of its root, one component at a time, never through a
//! symbolic link: a mount that was made earlier in the plan may hold links of somebody else's choosing.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::ids::{Pool, Reservation};
use crate::launcher::Hatch;
use crate::layers::Layer;
use crate::layers::cgroup::Cgroup;
use crate::layers::network::pasta::Pasta;
use crate::sys::{MountFlags, Propagation, Sys};

/// What went wrong in a step: the kernel's answer, and words where it alone says too little.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// The kernel's answer.
    pub errno: Errno,
    /// More words.
    pub detail: Option<String>,
}

impl Trouble {
    /// An answer with words.
    pub fn new(errno: Errno, detail: impl Into<String>) -> Self {
        Self { errno, detail: Some(detail.into()) }
    }
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        Self { errno, detail: None }
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Errno::from_raw(number).into(),
            None => Self::new(Errno::EIO, error.to_string()),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "{} ({:?}): {detail}", self.errno.desc(), self.errno),
            None => write!(f, "{} ({:?})", self.errno.desc(), self.errno),
        }
    }
}

/// How a step went.
pub type Outcome = Result<(), Trouble>;

/// A fact that only the room itself can know, told to the supervisor for the seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The layer it is about.
    pub layer: Layer,
    /// What it says.
    pub key: String,
    /// The value.
    pub value: String,
}

/// The descriptors of the payload's standard streams.
#[derive(Debug, Default)]
pub struct Streams {
    /// Standard input; `/dev/null` when absent.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// What the interpreter holds.
pub struct Site<'a> {
    /// The kernel, or a test's idea of it.
    pub sys: &'a dyn Sys,
    /// Where root's rooms get their ids from.
    pub ids: Pool,
    /// The reserved ids, held by the supervisor; the others have a copy that ends with them.
    pub reservation: Option<Reservation>,
    /// The ids held in the launcher's user namespace.
    pub held_ids: (u32, u32),
    /// The kernel ids that were asked for by number.
    pub given_ids: Option<(u32, u32)>,
    /// What steps took, where it is known before it is told, in nanoseconds.
    pub timings: Vec<(usize, u64)>,
    /// The process that a step of the supervisor is about.
    pub child: Option<Pid>,
    /// The soft limit of open files before it was raised, `None` inside for no limit.
    pub open_files_before: Option<Option<u64>>,
    /// Detached trees that were opened before ids were given up, by the plan's numbers.
    pub sources: Vec<Option<OwnedFd>>,
    /// Standard streams, before they are put in place.
    pub streams: Streams,
    /// The room's control group, held by the supervisor.
    pub cgroup: Option<Cgroup>,
    /// pasta, held by the supervisor.
    pub pasta: Option<Pasta>,
    /// The warden's word that the network is made, with the network; held by the room's first process.
    pub bridge: Option<Hatch>,
    /// The root of the room's POSIX message queues, until Landlock has its rule about them.
    pub queues: Option<OwnedFd>,
    /// The way to the supervisor.
    pub hatch: Option<Rc<Hatch>>,
    /// What is told to the supervisor.
    pub notes: Vec<Note>,
    /// The listener of the system call filter, until it is handed over.
    pub listener: Option<OwnedFd>,
    /// The room's root, once it is mounted.
    root: Option<Rc<OwnedFd>>,
    /// Directories of the tree that were opened before.
    directories: HashMap<PathBuf, Rc<OwnedFd>>,
    /// The directory of files that cover others.
    covers: Option<OwnedFd>,
}

impl<'a> Site<'a> {
    /// An empty site.
    pub fn new(sys: &'a dyn Sys, ids: Pool, held_ids: (u32, u32)) -> Self {
        Self {
            sys,
            ids,
            reservation: None,
            held_ids,
            given_ids: None,
            timings: Vec::new(),
            child: None,
            open_files_before: None,
            sources: Vec::new(),
            streams: Streams::default(),
            cgroup: None,
            pasta: None,
            bridge: None,
            queues: None,
            hatch: None,
            notes: Vec::new(),
            listener: None,
            root: None,
            directories: HashMap::new(),
            covers: None,
        }
    }

    /// Tells the supervisor a fact for the seal.
    pub fn note(&mut self, layer: Layer, key: &str, value: impl Into<String>) {
        self.notes.push(Note { layer, key: key.into(), value: value.into() });
    }

    /// The kernel ids that the room runs under, where they were reserved.
    pub fn room_ids(&self) -> Option<(u32, u32)> {
        self.given_ids.or_else(|| self.reservation.as_ref().map(|held| (held.first, held.first)))
    }

    /// Waits for the network namespace that the warden makes.
    pub fn receive_network(&mut self) -> Result<OwnedFd, Trouble> {
        let bridge = self.bridge.take().ok_or(Errno::ENOTCONN)?;
        match bridge.receive::<Vec<(usize, u64)>>()? {
            Some((timings, Some(namespace))) => {
                self.timings.extend(timings);
                Ok(namespace)
            }
            // The warden has said why it could not.
            _ => Err(Errno::ECANCELED.into()),
        }
    }

    /// The room's root directory.
    pub fn root(&self) -> Result<Rc<OwnedFd>, Trouble> {
        self.root.clone().ok_or_else(|| Trouble::new(Errno::ENOENT, "the room has no root yet"))
    }

    /// Makes `root` the room's root directory.
    pub fn set_root(&mut self, root: OwnedFd) {
        self.root = Some(Rc::new(root));
        self.directories.clear();
    }

    /// The directory that holds `path`'s last component, made with its parents where missing, and that component's name.
    fn parent<'p>(&mut self, path: &'p Path) -> Result<(Rc<OwnedFd>, &'p Path), Trouble> {
        let name = path.file_name().ok_or_else(|| Trouble::new(Errno::EINVAL, "the root itself"))?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        Ok((self.directory(parent)?, Path::new(name)))
    }

    /// A directory of the tree by its absolute path, made where missing.
    fn directory(&mut self, path: &Path) -> Result<Rc<OwnedFd>, Trouble> {
        if let Some(open) = self.directories.get(path) {
            return Ok(Rc::clone(open));
        }
        if path == Path::new("/") {
            return self.root();
        }
        let (parent, name) = self.parent(path)?;
        let open = match self.sys.open_dir(parent.as_fd(), name) {
            Err(Errno::ENOENT) => {
                self.sys.mkdir(parent.as_fd(), name, 0o755).map_err(|errno| at(errno, path))?;
                self.sys.open_dir(parent.as_fd(), name)
            }
            found => found,
        };
        // A link answers ENOTDIR to O_DIRECTORY with O_NOFOLLOW: say what it is.
        let open = open.map_err(|errno| match errno {
            Errno::ENOTDIR | Errno::ELOOP => Trouble::new(
                errno,
                format!("{} is a symbolic link or a file in the room, not a directory", path.display()),
            ),
            errno => at(errno, path),
        })?;
        let open = Rc::new(open);
        self.directories.insert(path.to_owned(), Rc::clone(&open));
        Ok(open)
    }

    /// Makes a directory, with its parents.
    pub fn make_directory(&mut self, path: &Path) -> Outcome {
        self.directory(path).map(drop)
    }

    /// Makes a file, with its parents.
    pub fn create_file(&mut self, path: &Path, content: &[u8], mode: u32) -> Outcome {
        let (parent, name) = self.parent(path)?;
        self.sys.create_file(parent.as_fd(), name, content, mode).map_err(|errno| at(errno, path))
    }

    /// Makes a symbolic link, with the directories above it.
    pub fn make_symlink(&mut self, path: &Path, target: &Path) -> Outcome {
        let (parent, name) = self.parent(path)?;
        self.sys.symlink(target, parent.as_fd(), name).map_err(|errno| at(errno, path))
    }

    /// Attaches a detached mount at `path`, on a mount point of the right kind that is made where it is missing.
    pub fn attach(&mut self, mount: BorrowedFd<'_>, path: &Path, is_directory: bool) -> Outcome {
        let (parent, name) = self.parent(path)?;
        let parent = parent.as_fd();
        let made = if is_directory {
            self.sys.mkdir(parent, name, 0o755)
        } else {
            self.sys.create_file(parent, name, b"", 0o444)
        };
        match made {
            // In a tree that came with an earlier mount the mount point may be there already.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(Errno::EROFS) => {
                return Err(Trouble::new(
                    Errno::EROFS,
                    format!(
                        "{} does not exist in the read-only tree around it, so it cannot be a mount point",
                        path.display()
                    ),
                ));
            }
            Err(errno) => return Err(at(errno, path)),
        }
        self.sys.move_mount(mount, parent, name).map_err(|errno| at(errno, path))?;
        // What was opened below this path lies under the new mount now.
        self.directories.retain(|directory, _| !directory.starts_with(path));
        Ok(())
    }

    /// Keeps a directory of generated files that a mount is about to hide, each to be bound elsewhere: see [`Site::cover`].
    pub fn keep_covers(&mut self, directory: &Path) -> Outcome {
        let (parent, name) = self.parent(directory)?;
        // Restricted once, over itself: what is cloned from here inherits the restrictions.
        let tree = self.sys.open_tree(parent.as_fd(), name, false).map_err(|errno| at(errno, directory))?;
        self.sys.mount_setattr(tree.as_fd(), MountFlags::SEALED, None, false)?;
        self.sys.move_mount(tree.as_fd(), parent.as_fd(), name).map_err(|errno| at(errno, directory))?;
        self.directories.retain(|known, _| !known.starts_with(directory));
        self.covers = Some(tree);
        Ok(())
    }

    /// Makes the kept directory the current one, so that its files are named without a path in [`Site::cover`].
    pub fn enter_covers(&self) -> Outcome {
        let covers = self.covers.as_ref().ok_or_else(|| Trouble::new(Errno::ENOENT, "the covers are not made yet"))?;
        Ok(self.sys.fchdir(covers.as_fd())?)
    }

    /// Covers a file or directory of the room, by its path after pivot_root, with one of the kept files; nothing to do
    /// where there is none.
    pub fn cover(&self, path: &Path, cover: &str) -> Outcome {
        match self.sys.bind(Path::new(cover), path) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(at(errno, path)),
        }
    }

    /// Binds a host directory over the same path, plainly: what a room without a layer has instead of it.
    pub fn bind_host_path(&mut self, path: &Path, flags: MountFlags) -> Outcome {
        let tree = self.sys.open_tree(nix::fcntl::AT_FDCWD, path, true).map_err(|errno| at(errno, path))?;
        self.sys.mount_setattr(tree.as_fd(), flags, Some(Propagation::Private), true)?;
        self.attach(tree.as_fd(), path, true)
    }

    /// Forgets every descriptor of the tree.
    pub fn close_tree(&mut self) {
        self.directories.clear();
        self.root = None;
        self.sources.clear();
    }
}

/// Checks a path of the room: absolute, plain components, nothing that the kernel or a mount table could misread.
///
/// # Errors
/// Words.
pub fn check_room_path(path: &Path) -> Result<(), &'static str> {
    if !path.is_absolute() {
        return Err("it must be absolute");
    }
    if path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, 0 | b'\n')) {
        return Err("a NUL or a newline cannot be in a path of a room");
    }
    // `components` folds `.` and repeated slashes away; they harm nothing.
    if path.components().any(|component| matches!(component, Component::ParentDir)) {
        return Err("`..` cannot be in a path of a room");
    }
    Ok(())
}

fn at(errno: Errno, path: &Path) -> Trouble {
    Trouble::new(errno, path.display().to_string())
}
