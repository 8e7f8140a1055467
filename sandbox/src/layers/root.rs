//! The tree: a small read-only tmpfs as the root, and in it exactly what the room was given, each mount with its restrictions.
//!
//! Trees of the host are cloned detached (open_tree(2)), restricted while nobody can reach them (mount_setattr(2)), and only then attached
//! (move_mount(2)): there is no moment at which a mount is visible with less than its restrictions. Before Linux 5.12 there
//! is one, in which nobody looks: see [`crate::sys::one_by_one`].

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::SFlag;
use serde::Serialize;

use super::Layer;
use crate::error::Refusal;
use crate::host::Host;
use crate::plan::{Draft, Stage};
use crate::room::{Entry, Room};
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site, Trouble, check_room_path};
use crate::sys::{MountFlags, Propagation};

/// Where a bind's tree comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Opened now, with the ids of the room: the caller's own.
    Path(PathBuf),
    /// Opened before the caller's ids were given up; the number in the plan's list of sources.
    Opened(usize),
}

/// The steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Raises the soft limit of open files, as each source is held by a descriptor.
    RaiseOpenFiles,
    /// Sets it back, for the payload.
    LowerOpenFiles,
    /// A detached clone of a host path, taken while the caller's ids are still held.
    Open {
        /// Where it is kept.
        number: usize,
        /// The host's path.
        path: PathBuf,
        /// Whether it may be missing.
        optional: bool,
    },
    /// Has mounts restricted after they are attached, each by itself, for want of mount_setattr(2).
    RestrictOneByOne,
    /// The tmpfs that becomes the root.
    NewRoot {
        /// Its bound in bytes.
        size: u64,
    },
    /// A tree of the host.
    Bind {
        /// Where from.
        source: Source,
        /// The host's path, for messages.
        outside: PathBuf,
        /// Where to.
        inside: PathBuf,
        /// Restrictions of it and of all below.
        flags: MountFlags,
        /// Whether it may be missing.
        optional: bool,
    },
    /// A new tmpfs.
    Tmpfs {
        /// Where to.
        inside: PathBuf,
        /// Its bound in bytes.
        size: u64,
        /// The mode of its top directory.
        mode: u32,
        /// Its restrictions.
        flags: MountFlags,
    },
    /// A directory.
    Directory(PathBuf),
    /// A generated file.
    File {
        /// Where to.
        inside: PathBuf,
        /// What is in it.
        text: String,
        /// Its mode.
        mode: u32,
    },
    /// A symbolic link.
    Symlink {
        /// Where to.
        inside: PathBuf,
        /// What it says.
        target: PathBuf,
    },
    /// Makes the root tmpfs itself read-only.
    SealRoot {
        /// Its restrictions.
        flags: MountFlags,
    },
    /// pivot_root(2).
    Pivot,
    /// Unmounts the old root.
    DetachOldRoot,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RaiseOpenFiles => f.write_str("raise the soft limit of open files to the hard one, to hold the sources"),
            Self::LowerOpenFiles => f.write_str("set the soft limit of open files back"),
            Self::Open { path, optional, .. } => {
                write!(
                    f,
                    "open {} as a detached tree{}",
                    path.display(),
                    if *optional { ", if it is there" } else { "" }
                )
            }
            Self::RestrictOneByOne => f.write_str(
                "restrict each mount by itself from here on, once it is attached, and read it back: there is no mount_setattr(2)",
            ),
            Self::NewRoot { size } => write!(f, "mount a tmpfs of {size} bytes as the new root"),
            Self::Bind { outside, inside, flags, optional, .. } => {
                write!(f, "bind {} at {} ({})", outside.display(), inside.display(), flags.words().join(","))?;
                f.write_str(if *optional { ", if it is there" } else { "" })
            }
            Self::Tmpfs { inside, size, mode, flags } => {
                write!(
                    f,
                    "mount a tmpfs of {size} bytes at {} (mode {mode:04o}, {})",
                    inside.display(),
                    flags.words().join(",")
                )
            }
            Self::Directory(inside) => write!(f, "make the directory {}", inside.display()),
            Self::File { inside, mode, .. } => write!(f, "write {} (mode {mode:04o})", inside.display()),
            Self::Symlink { inside, target } => write!(f, "link {} -> {}", inside.display(), target.display()),
            Self::SealRoot { flags } => write!(f, "make the root read-only ({})", flags.words().join(",")),
            Self::Pivot => f.write_str("pivot_root into it"),
            Self::DetachOldRoot => f.write_str("detach the old root"),
        }
    }
}

/// More sources than this are not held within the usual soft limit of 1,024 descriptors, beside others.
const MANY_SOURCES: usize = 500;

/// tmpfs(5).
pub(super) const NO_BOUND: &str = "for a tmpfs it means that there is no bound";

/// Places that the room makes itself; an entry there would undo a protection.
const OWN_PLACES: [&str; 2] = ["/proc", "/dev"];

pub(super) fn plan(room: &Room, host: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    let refuse = |what: String, why: &str, fix: &str| Err(Refusal::new(Layer::Root, what, why, fix));
    if !host.open_tree {
        return refuse(
            "mounts by descriptor".into(),
            "there are no open_tree(2), move_mount(2) and fsopen(2) here (Linux 5.2)",
            "use a newer kernel, or let the system call filter of the container around us pass them",
        );
    }
    let mut entries: Vec<&Entry> = room.mounts.iter().collect();
    // Outer before inner: a parent path sorts before what is below it.
    entries.sort_by(|a, b| a.inside().cmp(b.inside()));
    for entry in &entries {
        let inside = entry.inside();
        if let Err(why) = check_room_path(inside) {
            return refuse(format!("mount point {inside:?}"), why, "correct the path");
        }
        if inside == Path::new("/") {
            return refuse("a mount over /".into(), "it would cover the room itself", "mount below it");
        }
        if let Some(own) = OWN_PLACES.iter().find(|own| inside.starts_with(own)) {
            return refuse(
                format!("mount point {}", inside.display()),
                &format!("{own} is made by the room and nothing can be put over it"),
                "choose another place",
            );
        }
        if inside == Path::new("/etc") && room.has(Layer::Etc) && !matches!(entry, Entry::Directory { .. }) {
            return refuse(
                "mount point /etc".into(),
                "the generated /etc stands there",
                "mount single files below it, or leave the layer out with --without etc",
            );
        }
        if let Entry::Tmpfs { size, mode, .. } = entry {
            if size.bytes(host.memory) == 0 {
                return refuse(format!("size = 0 of {}", inside.display()), NO_BOUND, "give a size such as 512M");
            }
            if *mode > 0o7777 {
                return refuse(format!("mode {mode:o} of {}", inside.display()), "it is more than 7777", "correct it");
            }
        }
        if let Entry::Bind { outside: Some(outside), .. } = entry
            && let Err(why) = check_room_path(outside)
        {
            return refuse(format!("source {outside:?}"), why, "give the absolute path");
        }
    }
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].inside() == pair[1].inside()) {
        return refuse(
            format!("{} twice", pair[0].inside().display()),
            "one would cover the other",
            "leave one of them out",
        );
    }

    if room.root.size.bytes(host.memory) == 0 {
        return refuse("size = 0 of the root".into(), NO_BOUND, "give a size such as 16M");
    }

    let restrict = |flags: MountFlags| if room.has(Layer::Root) { flags } else { MountFlags::default() };
    if !host.mount_setattr {
        draft.add(Stage::NewRoot, Action::RestrictOneByOne);
    }
    draft.add(Stage::NewRoot, Action::NewRoot { size: room.root.size.bytes(host.memory) });
    let sources = entries.iter().filter(|entry| matches!(entry, Entry::Bind { .. })).count();
    if host.privileged && sources > MANY_SOURCES {
        draft.add(Stage::OpenSources, Action::RaiseOpenFiles);
        draft.add(Stage::Limits, Action::LowerOpenFiles);
    }
    let mut opened = 0;
    for entry in entries {
        let step = match entry.clone() {
            Entry::Bind { inside, outside, writable, optional, noexec } => {
                let outside = outside.unwrap_or_else(|| inside.clone());
                let source = if host.privileged {
                    draft.add(Stage::OpenSources, Action::Open { number: opened, path: outside.clone(), optional });
                    opened += 1;
                    Source::Opened(opened - 1)
                } else {
                    Source::Path(outside.clone())
                };
                let flags = MountFlags { read_only: !writable, noexec, ..MountFlags::PLAIN };
                Action::Bind { source, outside, inside, flags: restrict(flags), optional }
            }
            Entry::Tmpfs { inside, size, mode, noexec } => Action::Tmpfs {
                inside,
                size: size.bytes(host.memory),
                mode,
                flags: restrict(MountFlags { noexec, ..MountFlags::PLAIN }),
            },
            Entry::Directory { inside } => Action::Directory(inside),
            Entry::File { inside, text, executable } => {
                Action::File { inside, text, mode: if executable { 0o555 } else { 0o444 } }
            }
            Entry::Symlink { inside, target } => Action::Symlink { inside, target },
        };
        draft.add(Stage::Tree, step);
    }
    if room.has(Layer::Root) {
        // Nothing in it executes, unless a generated file is there to.
        let executes = room.mounts.iter().any(|entry| matches!(entry, Entry::File { executable: true, .. }));
        let flags = if executes { MountFlags::READ_ONLY } else { MountFlags::SEALED };
        draft.add(Stage::Seal, Action::SealRoot { flags });
    }
    draft.add(Stage::Pivot, Action::Pivot);
    draft.add(Stage::Pivot, Action::DetachOldRoot);
    Ok(())
}

pub(super) fn apply(action: &Action, site: &mut Site<'_>) -> Outcome {
    match action {
        Action::RaiseOpenFiles => site.open_files_before = Some(site.sys.raise_open_files()?),
        Action::LowerOpenFiles => {
            if let Some(before) = site.open_files_before {
                let hard = site.sys.hard_limit(libc::RLIMIT_NOFILE)?;
                site.sys.set_rlimit(libc::RLIMIT_NOFILE, before, hard)?;
            }
        }
        Action::Open { number, path, optional } => {
            debug_assert_eq!(*number, site.sources.len(), "sources are opened in the plan's order");
            let tree = open(site, path, *optional)?;
            site.sources.push(tree);
        }
        Action::RestrictOneByOne => site.sys.restrict_one_by_one()?,
        Action::NewRoot { size } => {
            let options = [("size", size.to_string()), ("mode", "0755".into()), ("nr_inodes", "65536".into())];
            let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
            let root = site.sys.new_filesystem("tmpfs", &options, MountFlags::PLAIN)?;
            // Over the host's root: everything below is still reached from this process's root directory, which is the
            // directory *under* the new mount, and nothing of the host can be in the way of the new one.
            site.sys.move_mount(root.as_fd(), AT_FDCWD, Path::new("/"))?;
            site.set_root(root);
        }
        Action::Bind { source, outside, inside, flags, optional } => {
            let tree = match source {
                Source::Path(path) => open(site, path, *optional)?,
                Source::Opened(number) => site.sources.get_mut(*number).and_then(Option::take),
            };
            match tree {
                Some(tree) => bind(site, &tree, outside, inside, *flags)?,
                None if *optional => {}
                None => return Err(Trouble::new(Errno::ENOENT, outside.display().to_string())),
            }
        }
        Action::Tmpfs { inside, size, mode, flags } => {
            let (most, size, mode) = (inodes(*size).to_string(), size.to_string(), format!("{mode:o}"));
            let options = [("size", &*size), ("mode", &mode), ("nr_inodes", &most)];
            let mount = site.sys.new_filesystem("tmpfs", &options, *flags)?;
            site.attach(mount.as_fd(), inside, true)?;
        }
        Action::Directory(inside) => site.make_directory(inside)?,
        Action::File { inside, text, mode } => site.create_file(inside, text.as_bytes(), *mode)?,
        Action::Symlink { inside, target } => site.make_symlink(inside, target)?,
        Action::SealRoot { flags } => {
            let root = site.root()?;
            site.sys.mount_setattr(root.as_fd(), *flags, None, false)?;
        }
        Action::Pivot => {
            site.sys.fchdir(site.root()?.as_fd())?;
            site.sys.pivot_root_here()?;
        }
        Action::DetachOldRoot => {
            // After pivot_root(".", ".") the old root is mounted over the new one, and "." still means the old.
            site.sys.detach_here()?;
            site.sys.chdir(Path::new("/"))?;
            site.close_tree();
        }
    }
    Ok(())
}

fn open(site: &Site<'_>, path: &Path, optional: bool) -> Result<Option<OwnedFd>, Trouble> {
    match site.sys.open_tree(AT_FDCWD, path, true) {
        Ok(tree) => Ok(Some(tree)),
        Err(Errno::ENOENT | Errno::ENOTDIR) if optional => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn bind(site: &mut Site<'_>, tree: &OwnedFd, outside: &Path, inside: &Path, flags: MountFlags) -> Outcome {
    let kind = site.sys.file_type(tree.as_fd())?;
    if kind == SFlag::S_IFLNK {
        // A mount point cannot be a link; the link itself is what the host has there.
        let target = site.sys.read_link(tree.as_fd())?;
        return site.make_symlink(inside, Path::new(&target));
    }
    if matches!(kind, SFlag::S_IFBLK | SFlag::S_IFCHR) {
        return Err(Trouble::new(Errno::EPERM, format!("{} is a device node", outside.display())));
    }
    // Private too: what is mounted on the host later must not appear in the room.
    site.sys.mount_setattr(tree.as_fd(), flags, Some(Propagation::Private), true)?;
    site.attach(tree.as_fd(), inside, kind == SFlag::S_IFDIR)
}

fn wanted(room: &Room) -> Wanted {
    let entries = room.mounts.iter().filter_map(|entry| {
        let flags = match entry {
            Entry::Bind { writable, noexec, .. } => {
                MountFlags { read_only: !writable, noexec: *noexec, ..MountFlags::PLAIN }
            }
            Entry::Tmpfs { noexec, .. } => MountFlags { noexec: *noexec, ..MountFlags::PLAIN },
            _ => return None,
        };
        let normal: PathBuf = entry.inside().components().collect();
        // The table is read as text, in which other bytes are replaced, so paths are compared as such text.
        Some((normal.to_string_lossy().into_owned(), flags))
    });
    Wanted(entries.collect())
}

/// What each entry's mounts must be. A room has hundreds of entries and as many mounts, so neither is walked for the other.
struct Wanted(HashMap<String, MountFlags>);

impl Wanted {
    /// What the mount at `point` must be, by the innermost entry that it belongs to: what is given writable may hold
    /// something that is not.
    fn at(&self, point: &str) -> MountFlags {
        let mut ancestor = point;
        loop {
            if let Some(flags) = self.0.get(ancestor) {
                return *flags;
            }
            match ancestor.rfind('/') {
                Some(slash) if slash > 0 => ancestor = &ancestor[..slash],
                _ => return MountFlags::READ_ONLY,
            }
        }
    }
}

pub(super) fn verify(room: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    if view.mounts.is_empty() {
        finding.wrong("the room has no mount table");
    }
    let mut read_only = 0;
    let wanted = wanted(room);
    let covers: HashSet<_> = view.mounts.iter().map(|mount| (mount.parent, mount.point)).collect();
    for mount in view.mounts.iter() {
        let point = mount.point;
        if !mount.has("nosuid") {
            finding.wrong(format!("{point} is without nosuid"));
        }
        if !mount.propagation.is_empty() {
            finding.wrong(format!("{point} exchanges mount events with the host ({})", mount.propagation));
        }
        // `devices` and `proc` answer for what is below these two.
        if OWN_PLACES.iter().any(|own| Path::new(point).starts_with(own)) || point == super::proc::PRISTINE {
            continue;
        }
        if !mount.has("nodev") {
            finding.wrong(format!("{point} is without nodev"));
        }
        read_only += u32::from(mount.has("ro"));
        // What another mount covers whole cannot be reached, and has the restrictions of what it came with.
        if covers.contains(&(mount.id, point)) {
            continue;
        }
        let wanted = wanted.at(&mount.path().to_string_lossy());
        if wanted.read_only && !mount.has("ro") {
            finding.wrong(format!("{point} is writable"));
        }
        if wanted.noexec && !mount.has("noexec") {
            finding.wrong(format!("{point} is without noexec"));
        }
    }
    finding.fact("mounts", view.mounts.len().to_string());
    finding.fact("read-only", read_only.to_string());
    // In the order of mount ids, which is not that of the tree.
    match view.mounts.iter().filter(|mount| mount.point == "/").collect::<Vec<_>>().as_slice() {
        [root] if root.kind == "tmpfs" => finding.fact("root", "tmpfs"),
        [root] => finding.wrong(format!("the root is {} ({})", root.source, root.kind)),
        roots => finding.wrong(format!("{} mounts stand at /: the old root is still there", roots.len())),
    }
    finding
}

/// The most files, directories and links in a tmpfs of this size. Those without content use none of it, but about a
/// kibibyte of the kernel's memory each; and the kernel's own bound goes by the memory of the machine, whatever the size.
/// One for each page, which is that bound for half of the memory, and more for small ones that are full of links.
pub(super) fn inodes(size: u64) -> u64 {
    const PAGE: u64 = 4096;
    size / PAGE + 16_384
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_held_to_the_innermost_entry_that_it_belongs_to() {
        let bind = |inside: &str, writable, noexec| Entry::Bind {
            inside: inside.into(),
            outside: None,
            writable,
            optional: false,
            noexec,
        };
        let mounts = vec![
            bind("/a", true, false),
            bind("/a/inputs", false, true),
            Entry::Tmpfs {
                inside: "/a/inputs/t".into(),
                size: crate::quantity::Size::mebibytes(1),
                mode: 0o755,
                noexec: false,
            },
        ];
        let room = Room { mounts, ..Room::default() };
        let at = |point: &str| {
            let wanted = wanted(&room).at(point);
            (wanted.read_only, wanted.noexec)
        };
        assert_eq!(at("/"), (true, false));
        assert_eq!(at("/a/submount"), (false, false));
        assert_eq!(at("/a/inputs/submount"), (true, true), "a writable tree does not make what is in it writable");
        assert_eq!(at("/a/inputs/t"), (false, false));
        assert_eq!(at("/ab"), (true, false), "a name is not a path's beginning");
    }
}
