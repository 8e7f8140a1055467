//! Files: what can be read, written, changed, and what is there.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{AccessFlags, access};

use crate::{Answer, done, errno, number, octal};

pub fn answer(words: &[&str]) -> Option<Answer> {
    Some(match *words {
        ["read", path] => fs::read_to_string(path).map_err(errno).map(|text| text.trim_end_matches('\n').to_owned()),
        ["open-to-read", path] => done(fs::File::open(path)),
        ["open-to-write", path] => done(fs::OpenOptions::new().write(true).open(path)),
        ["create", path] => create(path, 0o644),
        ["create", path, mode] => create(path, octal(mode)),
        ["chmod", path, mode] => done(nix::sys::stat::fchmodat(
            AT_FDCWD,
            path,
            Mode::from_bits_retain(octal(mode)),
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )),
        ["give", path, user, group] => std::os::unix::fs::lchown(path, Some(number(user)), Some(number(group)))
            .map_err(errno)
            .and_then(|()| described(Path::new(path))),
        ["set-times", path] => {
            let (now, flags) = (TimeSpec::UTIME_NOW, UtimensatFlags::FollowSymlink);
            done(utimensat(AT_FDCWD, path, &now, &now, flags))
        }
        ["unlink", path] => done(fs::remove_file(path)),
        ["set-attribute", path, name] => set_attribute(path, name),
        // The kernel says that no such descriptor is open, before it looks at the command; a filter looks at the command alone.
        ["command-of-nothing", command] => match libc::Ioctl::from_str_radix(command, 16) {
            // SAFETY: no descriptor has this number, so nothing is done with the missing argument.
            Ok(command) => done(nix::errno::Errno::result(unsafe { libc::ioctl(-1, command, 0) })),
            Err(_) => Err(nix::errno::Errno::EINVAL),
        },
        ["mkdir", path] => done(fs::create_dir(path)),
        ["rename", from, to] => done(fs::rename(from, to)),
        ["rename-whiteout", from, to] => {
            use nix::fcntl::{RenameFlags, renameat2};
            create(from, 0o644)
                .and_then(|_| done(renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_WHITEOUT)))
        }
        ["link", from, to] => done(fs::hard_link(from, to)),
        ["symlink", target, path] => done(std::os::unix::fs::symlink(target, path)),
        ["mknod", path, major, minor] => {
            done(mknod(path, SFlag::S_IFCHR, Mode::from_bits_retain(0o666), makedev(number(major), number(minor))))
        }
        ["mknod-regular", path, mode] => done(mknod(path, SFlag::S_IFREG, Mode::from_bits_retain(octal(mode)), 0)),
        ["stat", path] => described(Path::new(path)),
        ["list", path] => list(Path::new(path)),
        ["writable-below", path] => writable_below(Path::new(path)),
        ["size-of-file-system", path] => {
            nix::sys::statvfs::statvfs(path).map(|found| (found.blocks() * found.fragment_size()).to_string())
        }
        ["fill", path, most] => fill(path, number(most)),
        ["execute", path] => done(std::process::Command::new(path).status()),
        _ => return None,
    })
}

fn create(path: &str, mode: u32) -> Answer {
    nix::sys::stat::umask(Mode::empty());
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    done(made)
}

fn set_attribute(path: &str, name: &str) -> Answer {
    let text = |text| std::ffi::CString::new(text).map_err(|_| nix::errno::Errno::EINVAL);
    let (path, name) = (text(path)?, text(name)?);
    // SAFETY: both texts end in a zero, and the value is as long as is said.
    done(nix::errno::Errno::result(unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), [b'x'].as_ptr().cast(), 1, 0)
    }))
}

/// Kind, mode, owner and, of a device or a link, what it stands for.
fn described(path: &Path) -> Answer {
    let found = fs::symlink_metadata(path).map_err(errno)?;
    let kind = found.file_type();
    let kind_in_words = match kind {
        _ if kind.is_dir() => "directory",
        _ if kind.is_symlink() => "link",
        _ if kind.is_char_device() => "character-device",
        _ if kind.is_block_device() => "block-device",
        _ if kind.is_file() => "file",
        _ => "other",
    };
    let mut text = format!("{kind_in_words} {:04o} {}:{}", found.mode() & 0o7777, found.uid(), found.gid());
    if kind.is_symlink() {
        text += &format!(" {}", fs::read_link(path).map_err(errno)?.display());
    } else if kind.is_char_device() || kind.is_block_device() {
        text += &format!(" {}:{}", nix::sys::stat::major(found.rdev()), nix::sys::stat::minor(found.rdev()));
    }
    Ok(text)
}

fn list(directory: &Path) -> Answer {
    let mut lines = Vec::new();
    for entry in fs::read_dir(directory).map_err(errno)? {
        let entry = entry.map_err(errno)?;
        lines.push(format!("{} {}", entry.file_name().to_string_lossy(), described(&entry.path())?));
    }
    lines.sort();
    Ok(lines.join("\n"))
}

/// Every file below a directory that the kernel says may be written; `none` if there are none.
fn writable_below(top: &Path) -> Answer {
    let mut found = Vec::new();
    let mut left = vec![top.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(path);
            } else if access(&path, AccessFlags::W_OK).is_ok() {
                found.push(path.display().to_string());
            }
        }
    }
    found.sort();
    Ok(if found.is_empty() { "none".into() } else { found.join("\n") })
}

/// Writes a file up to so many bytes: how many there were when the kernel refused, and how it did.
fn fill(path: &str, most: u64) -> Answer {
    use std::io::Write;
    let mut file = fs::File::create(path).map_err(errno)?;
    let block = vec![b'x'; 64 * 1024];
    let mut written = 0;
    while written < most {
        match file.write(&block) {
            Ok(length) => written += length as u64,
            Err(error) => return Ok(format!("{:?} after {written}", errno(error))),
        }
    }
    Ok(format!("done after {written}"))
}
