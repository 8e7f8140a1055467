//! What a guest left beside its inputs. SMB carries no links and no right to execute, so that a client writes links down as files of
//! its own form, and everything looks executable to the guest. A profile says what is made of such files ([`Files`]) when both
//! machines are gone.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};

use crate::profile::{Files, Links, Programs};

/// The length of a link as a file: the head, and the longest target, filled up with spaces.
const LINK_LENGTH: usize = 1067;
/// What such a file begins with; behind it the length of the target in four digits.
const LINK_HEAD: &[u8] = b"XSym\n";
/// How programs begin: of Windows, of Linux, and scripts of any shell.
const PROGRAMS: [&[u8]; 3] = [b"MZ", b"\x7fELF", b"#!"];

/// Restores links and programs in everything that lies in `store` and is no mount of its own, as inputs are. Nobody else may change
/// it at this time.
///
/// # Errors
/// What cannot be read or changed, with its path.
pub fn restore(files: &Files, store: &Path) -> io::Result<()> {
    if *files == Files::default() {
        return Ok(());
    }
    let mounts = mounts(&fs::read("/proc/self/mountinfo")?);
    let mut directories = vec![store.to_owned()];
    while let Some(directory) = directories.pop() {
        let within = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", directory.display()));
        for entry in fs::read_dir(&directory).map_err(within)? {
            let entry = entry.map_err(within)?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(within)?);
            if mounts.contains(&path) {
                continue;
            }
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() {
                restore_file(files, &path)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
            }
        }
    }
    Ok(())
}

fn restore_file(files: &Files, path: &Path) -> io::Result<()> {
    let mut begin = Vec::new();
    File::open(path)?.take(LINK_LENGTH as u64 + 1).read_to_end(&mut begin)?;
    if let (Links::Xsym, Some(target)) = (files.links, target(&begin)) {
        fs::remove_file(path)?;
        return symlink(target, path);
    }
    if files.programs == Programs::ByContent && PROGRAMS.iter().any(|magic| begin.starts_with(magic)) {
        let mode = fs::symlink_metadata(path)?.permissions().mode();
        return fs::set_permissions(path, Permissions::from_mode(mode & 0o777 | 0o111));
    }
    Ok(())
}

/// Where the link leads that this file is, if it is one: its digest says so.
fn target(file: &[u8]) -> Option<&OsStr> {
    if file.len() != LINK_LENGTH {
        return None;
    }
    let rest = file.strip_prefix(LINK_HEAD)?;
    let (length, rest) = rest.split_at_checked(4)?;
    let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
    let (digest, rest) = rest.strip_prefix(b"\n")?.split_at_checked(32)?;
    let (target, filling) = rest.strip_prefix(b"\n")?.split_at_checked(length)?;
    let told: String = Md5::digest(target).iter().map(|byte| format!("{byte:02x}")).collect();
    let is_filling = filling.iter().enumerate().all(|(at, byte)| *byte == if at == 0 { b'\n' } else { b' ' });
    let is_link = !target.is_empty() && !target.contains(&0) && is_filling && digest == told.as_bytes();
    is_link.then_some(OsStr::from_bytes(target))
}

/// The places at which something is mounted, as proc_pid_mountinfo(5) writes them down.
fn mounts(table: &[u8]) -> BTreeSet<PathBuf> {
    let points = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points.map(|point| unescaped(point).into()).collect()
}

/// Blanks and backslashes are `\` and three octal digits there.
fn unescaped(text: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, behind @ ..] = rest {
        let digits = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                plain.push(byte);
                rest = &behind[3..];
            }
            _ => {
                plain.push(*first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(target: &str) -> Vec<u8> {
        let digest: String = Md5::digest(target).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut file = format!("XSym\n{:04}\n{digest}\n{target}\n", target.len()).into_bytes();
        file.resize(LINK_LENGTH, b' ');
        file
    }

    #[test]
    fn a_link_is_one_in_every_byte_or_none() {
        assert_eq!(target(&link("../b two")), Some(OsStr::new("../b two")));
        for changed in [0, 6, 20, 43, 60, LINK_LENGTH - 1] {
            let mut file = link("../b two");
            file[changed] ^= 1;
            assert_eq!(target(&file), None, "{changed}");
        }
        let mut longer = link("x");
        longer.push(b' ');
        for file in [&longer[..], &link("")[..], &link("a\0b")[..], &longer[..60], b"XSym\n"] {
            assert_eq!(target(file), None);
        }
    }

    #[test]
    fn links_and_programs_are_what_they_were_and_nothing_else_is_touched() {
        let place = tempfile::tempdir().unwrap();
        let bin = place.path().join("made/bin");
        fs::create_dir_all(&bin).unwrap();
        let content = [
            ("link", link("tool")),
            ("tool", b"\x7fELF and more".to_vec()),
            ("tool.exe", b"MZ".to_vec()),
            ("script", b"#!/bin/sh\n".to_vec()),
            ("text", b"a # !".to_vec()),
            ("empty", Vec::new()),
        ];
        for (name, bytes) in content {
            fs::write(bin.join(name), bytes).unwrap();
            fs::set_permissions(bin.join(name), Permissions::from_mode(0o644)).unwrap();
        }
        // What a link leads to is not what lies there.
        let aside = place.path().join("aside");
        fs::write(&aside, "#!").unwrap();
        fs::set_permissions(&aside, Permissions::from_mode(0o644)).unwrap();
        symlink(&aside, bin.join("to-aside")).unwrap();

        restore(&Files::default(), &place.path().join("made")).unwrap();
        assert!(fs::symlink_metadata(bin.join("link")).unwrap().is_file());
        let files = Files { links: Links::Xsym, programs: Programs::ByContent };
        restore(&files, &place.path().join("made")).unwrap();
        assert_eq!(fs::read_link(bin.join("link")).unwrap(), Path::new("tool"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for (name, wanted) in
            [("tool", 0o755), ("tool.exe", 0o755), ("script", 0o755), ("text", 0o644), ("empty", 0o644)]
        {
            assert_eq!(mode(&bin.join(name)), wanted, "{name}");
        }
        assert_eq!(mode(&aside), 0o644);
    }

    #[test]
    fn a_mount_is_known_by_its_place_as_it_is_written_down() {
        let table = b"29 1 0:26 / / rw - tmpfs tmpfs rw\n31 29 0:27 / /nix/store/a\\040b\\134c ro - ext4 /dev/x rw\n";
        let wanted = ["/", "/nix/store/a b\\c"].map(PathBuf::from);
        assert_eq!(mounts(table), BTreeSet::from(wanted));
    }
}
