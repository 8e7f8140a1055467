//! Old generations of profiles, which keep what nobody uses any more. Source: `src/libstore/profiles.cc` of Nix.
//!
//! A profile `p` is a link to one of `p-1-link`, `p-2-link` and so on beside it, each of which is a root.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::roots::list;
use super::{Store, StoreError};

impl Store {
    /// Removes the generations of all profiles that were out of use `age` ago already, or all but the current ones without an
    /// age. Gives the links that were removed, or would be if `dry_run` is set.
    pub fn delete_generations(&self, age: Option<Duration>, dry_run: bool) -> Result<Vec<PathBuf>, StoreError> {
        self.check_writable("delete generations")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
        let before = age.map(|age| now.saturating_sub_unsigned(age.as_secs()));
        let mut removed = Vec::new();
        let mut left = vec![self.state_dir().join("profiles")];
        while let Some(directory) = left.pop() {
            let mut profiles: BTreeMap<String, BTreeMap<u64, PathBuf>> = BTreeMap::new();
            for (name, path) in list(&directory)? {
                let Ok(file) = fs::symlink_metadata(&path) else { continue };
                if file.is_dir() {
                    left.push(path);
                } else if file.is_symlink()
                    && let Some((profile, number)) = name.to_str().and_then(generation)
                {
                    profiles.entry(profile.to_owned()).or_default().insert(number, path);
                }
            }
            for (profile, generations) in profiles {
                for path in old(&directory.join(profile), &generations, before) {
                    if !dry_run {
                        match fs::remove_file(&path) {
                            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                                return Err(StoreError::io("remove the generation", path, error));
                            }
                            _ => {}
                        }
                    }
                    removed.push(path);
                }
            }
        }
        Ok(removed)
    }
}

/// The profile and the number in `profile-number-link`.
fn generation(name: &str) -> Option<(&str, u64)> {
    let (profile, number) = name.strip_suffix("-link")?.rsplit_once('-')?;
    Some((profile, number.parse().ok()?))
}

/// Those that can go. Without a current one nothing can: a link that leads elsewhere is not understood here.
fn old(profile: &Path, generations: &BTreeMap<u64, PathBuf>, before: Option<i64>) -> Vec<PathBuf> {
    let current =
        fs::read_link(profile).ok().and_then(|target| generation(target.file_name()?.to_str()?).map(|it| it.1));
    let Some(current) = current else { return Vec::new() };
    let mut old = Vec::new();
    // The newest that is older than the age was in use at that time.
    let mut in_use_then = before.is_some();
    for (number, path) in generations.iter().rev() {
        let age_reached = match before {
            None => true,
            Some(before) => fs::symlink_metadata(path).is_ok_and(|file| file.mtime() < before),
        };
        if !age_reached {
            continue;
        }
        if std::mem::take(&mut in_use_then) || *number == current {
            continue;
        }
        old.push(path.clone());
    }
    old
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{open, temp};
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    use std::os::unix::fs::symlink;

    #[test]
    fn old_generations_go_and_the_current_one_stays() {
        let root = temp();
        let store = open(root.path());
        let profiles = root.path().join("nix/var/nix/profiles");
        let day = 24 * 3600;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        for (number, days) in [(1, 50), (2, 40), (3, 20), (4, 10)] {
            let link = profiles.join(format!("p-{number}-link"));
            symlink("/nix/store/x", &link).unwrap();
            let time = Timespec { tv_sec: now - days * day, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, &link, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        symlink("p-3-link", profiles.join("p")).unwrap();
        symlink("/nix/store/x", profiles.join("alone-1-link")).unwrap();
        let link = |number| profiles.join(format!("p-{number}-link"));
        let month = Some(Duration::from_secs(30 * day as u64));
        // The second was in use a month ago.
        assert_eq!(store.delete_generations(month, true).unwrap(), [link(1)]);
        assert!(link(1).is_symlink(), "only asked");
        assert_eq!(store.delete_generations(month, false).unwrap(), [link(1)]);
        assert_eq!(store.delete_generations(None, false).unwrap(), [link(4), link(2)]);
        assert!(link(3).is_symlink() && profiles.join("alone-1-link").is_symlink());
    }
}
