//! Build users: the members of a group of the host, each of whom is one build at a time.
//!
//! The locks are those of a Nix on the same host, because that Nix kills every process of a build user that it takes.
//!
//! Source: `src/libstore/unix/user-lock.cc` of Nix.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

const GROUPS: &str = "/etc/group";
/// The state of a Nix on this host, and where the locks are when there is none.
const NIX_STATE: &str = "/nix/var/nix";
const OWN_STATE: &str = "/run/anchorhold";

/// A member of the group, whom nobody else builds as while this value lives.
#[derive(Debug)]
pub struct BuildUser {
    /// Its uid.
    pub uid: u32,
    /// The gid of the group.
    pub gid: u32,
    _lock: File,
}

/// Why there is no build user.
#[derive(Debug, thiserror::Error)]
pub enum BuildUserError {
    /// The setting names no usable group.
    #[error("`build-users-group` is ‘{group}’, {why}")]
    Group {
        /// Its name.
        group: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// All are taken.
    #[error(
        "all {count} members of the group ‘{group}’ build already: add members to it, or lower `max-jobs`, here or in the Nix that shares them"
    )]
    AllTaken {
        /// Its name.
        group: String,
        /// How many it has.
        count: usize,
    },
    /// A lock cannot be taken.
    #[error("taking the lock {} of a build user: {error}", .path.display())]
    Lock {
        /// Its file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

impl BuildUser {
    /// Takes a free member of `group`.
    ///
    /// # Errors
    /// There is none, or the group is not one to build with.
    pub fn take(group: &str) -> Result<Self, BuildUserError> {
        let wrong = |why: String| BuildUserError::Group { group: group.to_owned(), why };
        let table = std::fs::read_to_string(GROUPS).map_err(|error| wrong(format!("and {GROUPS}: {error}")))?;
        let (gid, names) = members(&table, group)
            .ok_or_else(|| wrong(format!("which {GROUPS} does not have: groupadd --system {group} makes it")))?;
        if gid == 0 || names.is_empty() {
            let advice = "a system group of its own with some system users as members is wanted";
            return Err(wrong(if gid == 0 {
                format!("root's: {advice}")
            } else {
                format!("without a member: {advice}")
            }));
        }
        let locks = Path::new(if Path::new(NIX_STATE).is_dir() { NIX_STATE } else { OWN_STATE }).join("userpool");
        for name in &names {
            let (uid, _) =
                anchorhold_sandbox::ids::user(name).map_err(|why| wrong(format!("of whose members {why}")))?;
            if uid == 0 || uid == rustix::process::geteuid().as_raw() {
                return Err(wrong(format!("of whose members ‘{name}’ is root or who builds: take it out")));
            }
            if let Some(lock) = lock(&locks, uid)? {
                return Ok(Self { uid, gid, _lock: lock });
            }
        }
        Err(BuildUserError::AllTaken { group: group.to_owned(), count: names.len() })
    }
}

/// The gid and the members of a group in a table as group(5) has it.
fn members(table: &str, group: &str) -> Option<(u32, Vec<String>)> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, gid, members) = (fields.next()?, fields.nth(1)?.parse().ok()?, fields.next()?);
        let names = members.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        (name == group).then_some((gid, names))
    })
}

/// Locks a user, unless somebody has.
fn lock(locks: &Path, uid: u32) -> Result<Option<File>, BuildUserError> {
    let path = locks.join(uid.to_string());
    let failed = |error: io::Error| BuildUserError::Lock { path: path.clone(), error };
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(locks).map_err(failed)?;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(&path)
        .map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(failed(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_as_group_5_has_them() {
        let table = "root:x:0:\nnixbld:x:30000:nixbld1,nixbld2\nempty:x:5:\n";
        assert_eq!(members(table, "nixbld"), Some((30000, vec!["nixbld1".to_owned(), "nixbld2".to_owned()])));
        assert_eq!(members(table, "empty"), Some((5, Vec::new())));
        assert_eq!(members(table, "nixbl"), None);
    }

    #[test]
    fn one_user_is_one_build() {
        let directory = tempfile::tempdir().expect("a directory");
        let held = lock(directory.path(), 30001).expect("a lock");
        assert!(held.is_some());
        assert!(lock(directory.path(), 30001).expect("an answer").is_none());
        drop(held);
        assert!(lock(directory.path(), 30001).expect("a lock").is_some());
    }

    #[test]
    fn a_group_that_is_not_there_is_named_with_what_to_do() {
        let error = BuildUser::take("no-such-group").expect_err("it is not there").to_string();
        assert!(error.contains("no-such-group") && error.contains("groupadd"), "{error}");
    }
}
