//! What a builder left behind, brought into a store's form or refused.
//!
//! Source: `src/libstore/posix-fs-canonicalise.cc` of Nix for what is stripped and what is refused; the walk is ours.
//! Nothing is opened for reading but directories: devices are not woken and FIFOs do not block.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, StatxAttributes, StatxFlags, StatxTimestamp, Uid, chmod, chownat, listxattr,
    llistxattr, lremovexattr, openat, removexattr, statx, utimensat,
};
use rustix::io::Errno;

use super::descent::{DIRECTORY, Descent, Entry, entries, open_handle, procfs_name};
use super::{TreeError, single_name};
use crate::nar::{CANONICAL_TIME, EXECUTABLE, FILE, kind_in_words};

/// Attributes that stay, as `ignored-acls` of Nix has them: the host's own, which a builder cannot choose.
pub const KEPT_ATTRIBUTES: [&str; 3] = ["security.selinux", "system.nfs4_acl", "security.csm"];

/// Names of all extended attributes of one file, at most. The kernel's own limit is 64 KiB (`XATTR_LIST_MAX`).
const ATTRIBUTE_NAMES: usize = 64 * 1024;

/// What is asked of a tree besides its form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The user ids that the builder's files can have on this side of the room. A file of anybody else is refused: a
    /// builder can have it only by a hard link.
    pub owners: RangeInclusive<u32>,
    /// To whom everything is given: user and group id of the store. Nothing: it stays with its owner.
    pub store_owner: Option<(u32, u32)>,
    /// What happens with files that have a hard link outside the tree.
    pub outside_links: OutsideLinks,
}

/// What happens with files that have a hard link outside the trees that are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutsideLinks {
    /// They are taken: the owner decides, as in Nix. Right when builders have user ids of their own.
    Keep,
    /// They are refused. Right when the builder's user owns other files as well, which would be changed through the link.
    Refuse,
}

/// Brings the tree `name` in `parent` into a store's form: modes 0444 and 0555, modification time 1, no extended attributes
/// or access control lists but [`KEPT_ATTRIBUTES`].
///
/// # Errors
/// The tree is refused, with words for each reason, or the kernel refuses something. Part of the tree may be in its new
/// form then; files of others, and files that have hard links, are untouched.
pub fn canonicalise(parent: BorrowedFd<'_>, name: &OsStr, policy: &Policy) -> Result<(), TreeError> {
    canonicalise_all(&[(parent, name)], policy)
}

/// As [`canonicalise`] for several trees that may have hard links to each other, such as all outputs of a build.
///
/// # Errors
/// As [`canonicalise`]. Files with hard links are touched only if all trees are good.
pub fn canonicalise_all(trees: &[(BorrowedFd<'_>, &OsStr)], policy: &Policy) -> Result<(), TreeError> {
    let mut walk = Canonicaliser { policy, links: HashMap::new(), touching_links: false };
    for (parent, name) in trees {
        walk.tree(*parent, name)?;
    }
    if walk.links.is_empty() {
        return Ok(());
    }
    if policy.outside_links == OutsideLinks::Refuse
        && let Some(links) = walk.links.values().find(|links| links.seen < links.all)
    {
        return Err(TreeError::OutsideLink { path: links.first.clone(), outside: links.all - links.seen });
    }
    // Inodes with several names were only counted so far.
    walk.touching_links = true;
    for (parent, name) in trees {
        walk.tree(*parent, name)?;
    }
    Ok(())
}

struct Canonicaliser<'a> {
    policy: &'a Policy,
    links: HashMap<(u64, u64), Links>,
    touching_links: bool,
}

/// The names of an inode that has several.
struct Links {
    first: String,
    seen: u64,
    all: u64,
    touched: bool,
}

type Walk = Descent<(Found, std::vec::IntoIter<Entry>)>;

/// A held file, and its name in a held directory.
struct File<'a> {
    handle: BorrowedFd<'a>,
    here: BorrowedFd<'a>,
    name: &'a CStr,
}

/// What is known of a file before anything is done with it.
struct Found {
    kind: FileType,
    mode: u32,
    owner: (u32, u32),
    identity: (u64, u64),
    links: u64,
    modified: StatxTimestamp,
}

impl Canonicaliser<'_> {
    fn tree(&mut self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), TreeError> {
        let name = single_name(name)?;
        let mut walk = Walk::new();
        let mut next = Some(name);
        loop {
            if let Some(name) = next.take() {
                let here = walk.current().unwrap_or(parent);
                let (handle, found) = self.look(&walk, here, &name)?;
                let file = File { handle: handle.as_fd(), here, name: &name };
                if found.kind == FileType::Directory {
                    let (directory, listed) = open(&walk, &file, &found)?;
                    let path = walk.shown(&name);
                    walk.enter(directory, name, (found, listed.into_iter()))
                        .map_err(|source| TreeError::system("examine the directory", path, source))?;
                } else if found.links > 1 && found.kind == FileType::RegularFile {
                    self.linked(&walk, &file, &found)?;
                } else if !self.touching_links {
                    self.settle(|| walk.shown(&name), &file, &found)?;
                }
            }
            let Some((_, listed)) = walk.state() else { return Ok(()) };
            if let Some(entry) = listed.next() {
                // In the second round only directories and files with several names matter, but any can be such a file.
                next = Some(entry.name);
                continue;
            }
            let path = walk.shown_current();
            let left = walk.leave().map_err(|source| TreeError::system("go back up from", path, source))?;
            let Some((directory, name, (found, _))) = left else { return Ok(()) };
            // Last of all, because it may have been opened up for the walk.
            let here = walk.current().unwrap_or(parent);
            self.settle(|| walk.shown(&name), &File { handle: directory.as_fd(), here, name: &name }, &found)?;
        }
    }

    /// Refuses what no store can hold, before anything is done with it.
    fn look(&self, walk: &Walk, here: BorrowedFd<'_>, name: &CStr) -> Result<(OwnedFd, Found), TreeError> {
        let path = || walk.shown(name);
        let handle = open_handle(here, name).map_err(|errno| match errno {
            Errno::XDEV => TreeError::Mount { path: path() },
            Errno::NOENT if walk.depth() == 0 => TreeError::Missing { path: path() },
            _ => TreeError::system("examine", path(), errno),
        })?;
        let flags = StatxFlags::BASIC_STATS;
        let stat = statx(&handle, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, flags)
            .map_err(|errno| TreeError::system("examine", path(), errno))?;
        let mode = u32::from(stat.stx_mode);
        let kind = FileType::from_raw_mode(mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink) {
            return Err(TreeError::Kind { path: path(), kind: kind_in_words(kind) });
        }
        if !self.owned(stat.stx_uid) {
            return Err(TreeError::Owner { path: path(), owner: stat.stx_uid });
        }
        if walk.depth() == 0 && kind != FileType::Symlink && mode & 0o022 != 0 {
            return Err(TreeError::Writable { path: path(), mode: mode & 0o7777 });
        }
        for (attribute, word, letter) in
            [(StatxAttributes::IMMUTABLE, "immutable", 'i'), (StatxAttributes::APPEND, "append-only", 'a')]
        {
            if stat.stx_attributes.contains(attribute) {
                return Err(TreeError::Attribute { path: path(), word, letter });
            }
        }
        let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
        let found = Found {
            kind,
            mode: mode & 0o7777,
            owner: (stat.stx_uid, stat.stx_gid),
            identity: (device, stat.stx_ino),
            links: u64::from(stat.stx_nlink),
            modified: stat.stx_mtime,
        };
        Ok((handle, found))
    }

    fn owned(&self, uid: u32) -> bool {
        // In the second round most files have been given to the store's owner.
        self.policy.owners.contains(&uid)
            || (self.touching_links && self.policy.store_owner.is_some_and(|(store, _)| store == uid))
    }

    /// Counts a name of a file that has several; touches the file in the second round.
    fn linked(&mut self, walk: &Walk, file: &File<'_>, found: &Found) -> Result<(), TreeError> {
        let links = self.links.entry(found.identity).or_insert_with(|| Links {
            first: walk.shown(file.name),
            seen: 0,
            all: found.links,
            touched: false,
        });
        if !self.touching_links {
            links.seen += 1;
            return Ok(());
        }
        if !std::mem::replace(&mut links.touched, true) {
            self.settle(|| walk.shown(file.name), file, found)?;
        }
        Ok(())
    }

    /// Gives one file its canonical form. Only what differs is changed.
    fn settle(&self, path: impl Fn() -> String, file: &File<'_>, found: &Found) -> Result<(), TreeError> {
        let failed = |doing: &'static str| {
            let path = &path;
            move |errno: Errno| TreeError::system(doing, path(), errno)
        };
        let opened_up = strip(&path, file, found)? || found.kind == FileType::Directory;
        if let Some((uid, gid)) = self.policy.store_owner
            && found.owner != (uid, gid)
        {
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            chownat(file.handle, c"", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)
                .map_err(failed("give to the store's owner"))?;
        }
        let timely = found.modified.tv_sec == 1 && found.modified.tv_nsec == 0;
        if found.kind == FileType::Symlink {
            if !timely {
                utimensat(file.here, file.name, &CANONICAL_TIME, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed("set the time of"))?;
            }
            return Ok(());
        }
        let executable = found.kind == FileType::Directory || found.mode & 0o100 != 0;
        let mode = if executable { EXECUTABLE } else { FILE };
        let by_handle = procfs_name(file.handle);
        if opened_up || found.mode != mode.as_raw_mode() {
            chmod(&by_handle, mode).map_err(failed("set the mode of"))?;
        }
        if !timely {
            utimensat(CWD, &by_handle, &CANONICAL_TIME, AtFlags::empty()).map_err(failed("set the time of"))?;
        }
        Ok(())
    }
}

/// Removes extended attributes, access control lists among them; says whether it had to change the mode for that.
///
/// By way of procfs, because the calls that take a descriptor want one that was opened for reading, which a file without
/// permissions does not allow. It leads to the held file, and for a link to its name in the held directory.
fn strip(path: &impl Fn() -> String, file: &File<'_>, found: &Found) -> Result<bool, TreeError> {
    let failed = |doing: &'static str| move |errno: Errno| TreeError::system(doing, path(), errno);
    let symlink = found.kind == FileType::Symlink;
    let by_handle = if symlink {
        [procfs_name(file.here).as_bytes(), file.name.to_bytes()].join(&b'/')
    } else {
        procfs_name(file.handle).into_bytes()
    };
    let by_handle = by_handle.as_slice();
    let list = |names: &mut [u8]| if symlink { llistxattr(by_handle, names) } else { listxattr(by_handle, names) };
    let mut names = [0; 1024];
    let listed = match list(&mut names) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(false),
        Ok(len) => names[..len].to_vec(),
        Err(Errno::RANGE) => {
            let mut names = vec![0; ATTRIBUTE_NAMES];
            let len = list(&mut names).map_err(failed("list the attributes of"))?;
            names.truncate(len);
            names
        }
        Err(errno) => return Err(failed("list the attributes of")(errno)),
    };
    let kept = |attribute: &[u8]| KEPT_ATTRIBUTES.iter().any(|kept| kept.as_bytes() == attribute);
    let mut opened_up = false;
    for attribute in listed.split(|byte| *byte == 0).filter(|attribute| !attribute.is_empty() && !kept(attribute)) {
        if !symlink && !opened_up {
            // `user.` attributes may be removed by who may write the file, and its mode may forbid that to its owner.
            chmod(by_handle, Mode::RWXU).map_err(failed("open up"))?;
            opened_up = true;
        }
        match if symlink { lremovexattr(by_handle, attribute) } else { removexattr(by_handle, attribute) } {
            // Removing one attribute may take another with it.
            Ok(()) | Err(Errno::NODATA) => {}
            Err(errno) => return Err(failed("remove an extended attribute of")(errno)),
        }
    }
    Ok(opened_up)
}

/// Opens and lists a directory that was looked at, whatever its mode.
fn open(walk: &Walk, file: &File<'_>, found: &Found) -> Result<(OwnedFd, Vec<Entry>), TreeError> {
    let failed = |errno: Errno| TreeError::system("open the directory", walk.shown(file.name), errno);
    if found.mode & 0o500 != 0o500 {
        chmod(procfs_name(file.handle), Mode::RWXU).map_err(failed)?;
    }
    let directory = openat(file.handle, c".", DIRECTORY, Mode::empty()).map_err(failed)?;
    let listed = entries(directory.as_fd())
        .map_err(|source| TreeError::system("list the directory", walk.shown(file.name), source))?;
    Ok((directory, listed))
}
