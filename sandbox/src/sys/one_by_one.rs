//! Restrictions of mounts without mount_setattr(2), for Linux 5.2 to 5.11.
//!
//! There a mount can be restricted only once it is attached, alone, by mount(2) with `MS_REMOUNT | MS_BIND`, which *replaces* its flags. So
//! what is asked of a detached tree is kept until the tree is attached; then it is made private, each of its mounts is
//! opened by a descriptor that must be of that very mount, and remounted with its old flags and the new ones. At last the mount
//! table is read once more: every mount of the tree must show every flag, or the whole fails. In between the tree can be reached with less
//! than its restrictions, but nobody is there to reach it: the mount namespace has one process, and it is this one.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::MsFlags;
use nix::sys::stat::Mode;

use super::mount::unescape;
use super::{MountFlags, Propagation, Result};

/// What is asked of one mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    flags: MountFlags,
    private: bool,
    recursive: bool,
}

/// What is asked of detached trees, by the ids of their topmost mounts; and those that are attached.
#[derive(Debug, Default)]
pub struct OneByOne {
    waiting: RefCell<HashMap<u32, Wanted>>,
    attached: RefCell<HashSet<u32>>,
}

impl OneByOne {
    /// In the place of mount_setattr(2): now for an attached mount, on attaching for a detached one.
    ///
    /// # Errors
    /// See [`OneByOne::attached`].
    pub fn mount_setattr(
        &self,
        fd: BorrowedFd<'_>,
        flags: MountFlags,
        propagation: Option<Propagation>,
        recursive: bool,
    ) -> Result<()> {
        let wanted = Wanted { flags, private: propagation.is_some(), recursive };
        let id = mount_id(fd)?;
        if self.attached.borrow().contains(&id) {
            return restrict(fd, id, wanted);
        }
        self.waiting.borrow_mut().insert(id, wanted);
        Ok(())
    }

    /// After move_mount(2): does what was asked of the tree while it was detached.
    ///
    /// # Errors
    /// The kernel's; EOPNOTSUPP when a mount of the tree cannot be reached, because another one covers it or because the caller may
    /// not go there, or when it does not show what was asked.
    pub fn attached(&self, mount: BorrowedFd<'_>) -> Result<()> {
        let id = mount_id(mount)?;
        self.attached.borrow_mut().insert(id);
        let wanted = self.waiting.borrow_mut().remove(&id);
        wanted.map_or(Ok(()), |wanted| restrict(mount, id, wanted))
    }
}

fn restrict(top: BorrowedFd<'_>, id: u32, wanted: Wanted) -> Result<()> {
    if wanted.private {
        let recursive = if wanted.recursive { MsFlags::MS_REC } else { MsFlags::empty() };
        mount(top, MsFlags::MS_PRIVATE | recursive)?;
    }
    // From here on no mount of somebody else's can come into the tree.
    let before = Table::read()?;
    for line in before.tree(id, wanted.recursive)? {
        let flags = line.flags() | MsFlags::from_bits_retain(wanted.flags.classic());
        if flags == line.flags() {
            continue;
        }
        let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
        if line.id == id {
            mount(top, remount)?;
        } else {
            mount(open_mount(top, before.below(id, line)?, line.id)?.as_fd(), remount)?;
        }
    }
    let after = Table::read()?;
    let ids = |lines: &[&Line]| lines.iter().map(|line| line.id).collect::<Vec<_>>();
    let tree = after.tree(id, wanted.recursive)?;
    let holds = |line: &&Line| {
        line.flags().contains(MsFlags::from_bits_retain(wanted.flags.classic())) && !(wanted.private && line.propagates)
    };
    if ids(&tree) == ids(&before.tree(id, wanted.recursive)?) && tree.iter().all(holds) {
        Ok(())
    } else {
        Err(Errno::EOPNOTSUPP)
    }
}

/// mount(2) on what a descriptor stands for.
fn mount(fd: BorrowedFd<'_>, flags: MsFlags) -> Result<()> {
    let target = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    nix::mount::mount(None::<&Path>, &target, None::<&str>, flags, None::<&str>)
}

/// A descriptor of the mount with this id at a path below `top`. Another mount found there is the one that covers it.
fn open_mount(top: BorrowedFd<'_>, path: &Path, id: u32) -> Result<OwnedFd> {
    let open = |dir: BorrowedFd<'_>, name: &OsStr| {
        openat(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|_| Errno::EOPNOTSUPP)
    };
    let mut names = path.iter();
    let mut found = open(top, names.next().ok_or(Errno::EINVAL)?)?;
    for name in names {
        found = open(found.as_fd(), name)?;
    }
    if mount_id(found.as_fd())? == id { Ok(found) } else { Err(Errno::EOPNOTSUPP) }
}

/// The id of the mount that a descriptor is on. proc_pid_fdinfo(5), since Linux 3.15.
fn mount_id(fd: BorrowedFd<'_>) -> Result<u32> {
    let info = read(&format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let text = String::from_utf8_lossy(&info);
    text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()).ok_or(Errno::EOPNOTSUPP)
}

fn read(path: &str) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// A line of `/proc/self/mountinfo`, proc_pid_mountinfo(5).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    id: u32,
    parent: u32,
    point: PathBuf,
    options: String,
    propagates: bool,
}

impl Line {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let mut text = || fields.next().and_then(|field| std::str::from_utf8(field).ok());
        let (id, parent) = (text()?.parse().ok()?, text()?.parse().ok()?);
        let (point, options) = (fields.nth(2)?, fields.next()?);
        Some(Self {
            id,
            parent,
            point: unescape(point),
            options: String::from_utf8_lossy(options).into_owned(),
            propagates: fields.next()? != b"-",
        })
    }

    /// What a remount must not lose.
    fn flags(&self) -> MsFlags {
        // Times of access need no mention: a remount that says nothing of them leaves them as they are (Linux 3.17).
        const KEPT: [(&str, MsFlags); 5] = [
            ("ro", MsFlags::MS_RDONLY),
            ("nosuid", MsFlags::MS_NOSUID),
            ("nodev", MsFlags::MS_NODEV),
            ("noexec", MsFlags::MS_NOEXEC),
            // MS_NOSYMFOLLOW (include/uapi/linux/mount.h, Linux 5.10), which crate `nix` does not have.
            ("nosymfollow", MsFlags::from_bits_retain(256)),
        ];
        let has = |option| self.options.split(',').any(|one| one == option);
        KEPT.into_iter().filter(|(option, _)| has(*option)).fold(MsFlags::empty(), |flags, (_, flag)| flags | flag)
    }
}

/// The mount table of this process.
#[derive(Debug)]
struct Table(Vec<Line>);

impl Table {
    fn read() -> Result<Self> {
        Ok(Self::parse(&read("/proc/self/mountinfo")?))
    }

    fn parse(table: &[u8]) -> Self {
        Self(table.split(|byte| *byte == b'\n').filter_map(Line::parse).collect())
    }

    fn line(&self, id: u32) -> Option<&Line> {
        self.0.iter().find(|line| line.id == id)
    }

    /// A mount, and when asked all that is mounted below it, in the order of their ids.
    fn tree(&self, id: u32, recursive: bool) -> Result<Vec<&Line>> {
        let mut tree = vec![self.line(id).ok_or(Errno::EOPNOTSUPP)?];
        let mut next = 0;
        while recursive && next < tree.len() {
            // A root of the whole table can be its own parent.
            let parent = tree[next].id;
            tree.extend(self.0.iter().filter(|line| line.parent == parent && line.id != parent));
            next += 1;
        }
        tree.sort_unstable_by_key(|line| line.id);
        Ok(tree)
    }

    /// The path of a mount below the tree's topmost one.
    fn below<'a>(&self, top: u32, line: &'a Line) -> Result<&'a Path> {
        let top = self.line(top).ok_or(Errno::EOPNOTSUPP)?;
        line.point.strip_prefix(&top.point).map_err(|_| Errno::EOPNOTSUPP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 22 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        30 22 0:30 / / rw,nosuid,nodev - tmpfs tmpfs rw\n\
        31 30 8:1 /src /a\\040b rw,nosymfollow,relatime master:1 - ext4 /dev/sda1 rw\n\
        33 32 0:32 / /a\\040b/sub/deep ro,noexec - tmpfs tmpfs rw\n\
        32 31 0:31 / /a\\040b/sub rw - tmpfs tmpfs ro\n\
        34 30 0:33 / /a rw - tmpfs tmpfs rw\n";

    #[test]
    fn a_tree_is_found_by_parents_not_by_paths() {
        let table = Table::parse(TABLE);
        let ids = |id, recursive| table.tree(id, recursive).unwrap().iter().map(|line| line.id).collect::<Vec<_>>();
        assert_eq!(ids(31, true), [31, 32, 33]);
        assert_eq!(ids(31, false), [31]);
        assert_eq!(ids(22, true), [22, 30, 31, 32, 33, 34]);
        assert_eq!(table.tree(99, true).unwrap_err(), Errno::EOPNOTSUPP);
    }

    #[test]
    fn a_mount_is_reached_from_the_top_of_its_tree() {
        let table = Table::parse(TABLE);
        assert_eq!(table.below(31, table.line(33).unwrap()), Ok(Path::new("sub/deep")));
        assert_eq!(table.below(34, table.line(33).unwrap()), Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn the_mounts_own_options_are_kept_and_not_those_of_the_file_system() {
        let table = Table::parse(TABLE);
        assert_eq!(table.line(31).unwrap().flags().bits(), 256);
        assert_eq!(table.line(32).unwrap().flags(), MsFlags::empty(), "read-only is the file system, not the mount");
        assert_eq!(table.line(33).unwrap().flags(), MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC);
        assert!(table.line(31).unwrap().propagates && !table.line(30).unwrap().propagates);
    }
}
