//! What processes have left that were ended in the middle of something. A collector removes it as well; this is for whoever
//! knows that one just was, and does not want it to lie there until then.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::FlockOperation;

use super::{Store, StoreError, path_lock};
use crate::tree;

impl Store {
    /// Removes locks, temporary roots and temporary directories that nobody holds any more; returns how many. Valid paths are
    /// never touched, whatever they are called.
    ///
    /// # Errors
    /// A directory that cannot be read. What cannot be removed is left for the collector.
    pub fn sweep(&self) -> Result<usize, StoreError> {
        self.check_writable("remove what others left")?;
        let mut removed = 0;
        let temproots = self.state_dir().join("temproots");
        for entry in fs::read_dir(&temproots).map_err(StoreError::on("read the directory", &temproots))?.flatten() {
            removed += usize::from(is_lock_file(&entry.path(), u64::MAX) && remove_free_file(&entry.path()));
        }
        let real = self.real_dir();
        let store = fs::File::open(&real).map_err(StoreError::on("open", &real))?;
        for entry in fs::read_dir(&real).map_err(StoreError::on("read the directory", &real))?.flatten() {
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str() else { continue };
            let path = entry.path();
            if name.ends_with(".lock") {
                // A path may be called like the lock of another. The files of paths have other modes.
                let is_one = is_lock_file(&path, 1) && !self.is_name_valid(name)?;
                removed += usize::from(is_one && path_lock::remove_stale(&path).unwrap_or(false));
            } else if is_temporary(name) {
                let free = fs::File::open(&path).is_ok_and(|directory| {
                    rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
                        && tree::remove(std::os::fd::AsFd::as_fd(&store), name.as_ref()).is_ok()
                });
                removed += usize::from(free);
            }
        }
        Ok(removed)
    }
}

/// Whether this is the name of a [`TempDir`](super::TempDir).
fn is_temporary(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.strip_prefix("tmp-")
        .and_then(|rest| rest.split_once('-'))
        .is_some_and(|(one, other)| digits(one) && digits(other))
}

/// Whether it looks as those who lock make their files.
fn is_lock_file(path: &Path, longest: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| {
        found.is_file() && found.permissions().mode() & 0o777 == 0o600 && found.len() <= longest && found.nlink() == 1
    })
}

/// Removes a file of temporary roots that no process holds.
fn remove_free_file(path: &Path) -> bool {
    let Ok(file) = fs::OpenOptions::new().read(true).write(true).open(path) else { return false };
    let free = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    if free {
        path_lock::remove_lock(path, &file);
    }
    free
}

#[cfg(test)]
mod tests {
    use super::super::tests::{open, path, put_file, register, temp};
    use super::*;

    #[test]
    fn what_nobody_holds_is_removed_and_nothing_else() {
        let root = temp();
        let store = open(root.path());
        // A valid path that is called as the lock of another would be.
        let info = put_file(&store, &path(1, "Cargo.lock"), "a path");
        register(&store, [info.clone()]);
        let held = store.lock_paths([&path(2, "held")], &mut |_| {}).unwrap();
        store.add_temp_root(&path(2, "held")).unwrap();
        let filled = store.temp_dir().unwrap();
        let lock = |name: &str| {
            let file = store.real_dir().join(name);
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            file
        };
        let stale = lock(&path(3, "left.lock").to_string());
        // Moved to its place, and not yet registered.
        let moved = store.real_path(&path(4, "poetry.lock"));
        fs::write(&moved, "").unwrap();
        let roots = store.state_dir().join("temproots/999999999");
        fs::write(&roots, "/nix/store/x\0").unwrap();
        fs::set_permissions(&roots, fs::Permissions::from_mode(0o600)).unwrap();
        let left = store.real_dir().join("tmp-999999999-0");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("x"), "half").unwrap();

        assert_eq!(store.sweep().unwrap(), 3);
        assert!(!stale.exists() && !roots.exists() && !left.exists());
        assert!(moved.exists() && filled.path().exists() && store.real_path(&info.path).exists());
        assert!(store.real_dir().join(format!("{}.lock", path(2, "held"))).exists());
        assert_eq!(fs::read_dir(store.state_dir().join("temproots")).unwrap().count(), 1);
        assert_eq!(store.sweep().unwrap(), 0);
        drop(held);
    }
}
