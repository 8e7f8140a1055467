//! A tree's owner.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Gid, Uid, chownat, statat};

use super::descent::{Descent, Entry, entries, open_directory};
use super::{TreeError, single_name};

/// Gives `name` in `parent`, and all below it, to another owner. No link is followed and no other file system is entered.
///
/// Nobody else may be able to put files into the tree meanwhile: a hard link to somebody's file would be given away too.
///
/// # Errors
/// What the kernel says; part of the tree has its new owner then.
pub fn give(parent: BorrowedFd<'_>, name: &OsStr, uid: u32, gid: u32) -> Result<(), TreeError> {
    let name = single_name(name)?;
    let mut walk: Descent<std::vec::IntoIter<Entry>> = Descent::new();
    let mut next = Some(Entry { name, kind: FileType::Directory });
    loop {
        if let Some(Entry { name, kind }) = next.take() {
            let current = walk.current().unwrap_or(parent);
            let failed = |doing| {
                let path = walk.shown(&name);
                move |errno: rustix::io::Errno| TreeError::system(doing, path, errno)
            };
            chownat(current, &name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed("change the owner of"))?;
            let kind = match kind {
                // Some file systems do not say it in their listings.
                FileType::Unknown => {
                    let found = statat(current, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at"))?;
                    FileType::from_raw_mode(found.st_mode)
                }
                known => known,
            };
            if kind == FileType::Directory {
                let directory = open_directory(current, &name).map_err(failed("open the directory"))?;
                let listed = entries(std::os::fd::AsFd::as_fd(&directory))
                    .map_err(|source| TreeError::system("list the directory", walk.shown(&name), source))?;
                walk.enter(directory, name, listed.into_iter()).map_err(TreeError::lost)?;
            }
        }
        let Some(listed) = walk.state() else { return Ok(()) };
        match listed.next() {
            Some(entry) => next = Some(entry),
            None => drop(walk.leave().map_err(TreeError::lost)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn everything_in_the_tree_is_given_and_nothing_that_it_points_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(path("tree/a/b")).unwrap();
        std::fs::write(path("tree/a/b/file"), "").unwrap();
        std::fs::write(path("outside"), "").unwrap();
        symlink(path("outside"), path("tree/a/link")).unwrap();
        symlink("nothing", path("tree/dangling")).unwrap();
        std::fs::set_permissions(path("tree/a/b/file"), std::fs::Permissions::from_mode(0o000)).unwrap();
        let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        // Only root can give anything to anybody else; for others the way is the same.
        let to = if me.0 == 0 { (4711, 4712) } else { me };
        let held = std::fs::File::open(directory.path()).unwrap();
        give(held.as_fd(), "tree".as_ref(), to.0, to.1).unwrap();
        for name in ["tree", "tree/a", "tree/a/b", "tree/a/b/file", "tree/a/link", "tree/dangling"] {
            let found = path(name).symlink_metadata().unwrap();
            assert_eq!((found.uid(), found.gid()), to, "{name}");
        }
        assert_eq!(path("outside").metadata().unwrap().uid(), me.0);
        let error = give(held.as_fd(), "absent".as_ref(), to.0, to.1).unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }
}
