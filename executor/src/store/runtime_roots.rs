//! Paths that running processes use. Source: `findRuntimeRootsUnchecked` in `src/libstore/gc.cc` of Nix.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Store;
use crate::store_path::StorePath;

/// More than this of one file below `/proc` is not read. In bytes.
const MOST: u64 = 64 << 20;

/// Every path that `wanted` accepts and a process has open, mapped, as its program or directory, or in its environment, with
/// the file below `/proc` that says so. The superuser sees all processes, others their own; what cannot be seen is passed over.
pub(super) fn find(store: &Store, wanted: &dyn Fn(&StorePath) -> bool) -> Vec<(StorePath, String)> {
    let real = store.real_dir();
    let prefixes = [format!("{}/", store.dir().as_str()), format!("{}/", real.display())];
    let mut found = Vec::new();
    let mut scan = |text: &[u8], by: &Path| {
        for path in paths_in(text, &prefixes).filter(|path| wanted(path)) {
            found.push((path, by.display().to_string()));
        }
    };
    let Ok(processes) = fs::read_dir("/proc") else { return found };
    for process in processes.flatten() {
        let name = process.file_name();
        if !name.as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let directory = process.path();
        for name in ["exe", "cwd", "root"] {
            let link = directory.join(name);
            if let Ok(target) = fs::read_link(&link) {
                scan(target.as_os_str().as_bytes(), &link);
            }
        }
        if let Ok(descriptors) = fs::read_dir(directory.join("fd")) {
            for link in descriptors.flatten().map(|entry| entry.path()) {
                if let Ok(target) = fs::read_link(&link) {
                    scan(target.as_os_str().as_bytes(), &link);
                }
            }
        }
        for name in ["maps", "environ"] {
            let path = directory.join(name);
            let mut text = Vec::new();
            if fs::File::open(&path).and_then(|file| file.take(MOST).read_to_end(&mut text)).is_ok() {
                scan(&text, &path);
            }
        }
    }
    for path in ["/proc/sys/kernel/modprobe", "/proc/sys/kernel/poweroff_cmd"] {
        if let Ok(text) = fs::read(path) {
            scan(&text, Path::new(path));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The store paths that are named anywhere in `text`.
fn paths_in<'a>(text: &'a [u8], prefixes: &'a [String; 2]) -> impl Iterator<Item = StorePath> + 'a {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte);
    text.iter().enumerate().filter(|(_, byte)| **byte == b'/').filter_map(move |(position, _)| {
        let here = &text[position..];
        let rest = prefixes.iter().find_map(|prefix| here.strip_prefix(prefix.as_bytes()))?;
        let end = rest.iter().position(|byte| !is_part(*byte)).unwrap_or(rest.len());
        std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_in_anything() {
        const ONE: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la-one";
        let prefixes = ["/nix/store/".to_owned(), "/r/nix/store/".to_owned()];
        let text = format!("PATH=/nix/store/{ONE}/bin:/r/nix/store/{ONE}.x (deleted)\0/nix/store/e\0/nix/store");
        let found: Vec<_> = paths_in(text.as_bytes(), &prefixes).map(|path| path.to_string()).collect();
        // The second is found by its own prefix and by the one inside it.
        assert_eq!(found, [ONE.to_owned(), format!("{ONE}.x"), format!("{ONE}.x")]);
    }
}
