//! Mounts, files, and the end of the machine.

use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anchorhold_vmm::report::MountRequest;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move, unmount};
use rustix::system::RebootCommand;

use crate::devices::{Events, by_serial};
use crate::{Doing, Failure};

/// How long a disk may take to appear.
const PATIENCE: Duration = Duration::from_secs(20);

fn errno<T>(result: rustix::io::Result<T>) -> Result<T, io::Error> {
    result.map_err(Into::into)
}

/// /proc, /sys and /dev.
pub fn mount_basics() -> Result<(), Failure> {
    let hardened = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, target, flags, options) in [
        ("proc", "/proc", hardened, c""),
        ("sysfs", "/sys", hardened, c""),
        ("devtmpfs", "/dev", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=0755"),
    ] {
        fs::create_dir_all(target).doing(|| format!("making {target}"))?;
        errno(mount(kind, target, kind, flags, options)).doing(|| format!("mounting {target}"))?;
    }
    for (target, options) in [("/dev/shm", c"mode=1777"), ("/dev/pts", c"mode=0620,ptmxmode=0666")] {
        let kind = if target == "/dev/pts" { "devpts" } else { "tmpfs" };
        fs::create_dir_all(target).doing(|| format!("making {target}"))?;
        errno(mount(kind, target, kind, MountFlags::NOSUID | MountFlags::NOEXEC, options))
            .doing(|| format!("mounting {target}"))?;
    }
    for (link, target) in
        [("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "fd/0"), ("/dev/stdout", "fd/1"), ("/dev/stderr", "fd/2")]
    {
        std::os::unix::fs::symlink(target, link).doing(|| format!("making {link}"))?;
    }
    Ok(())
}

/// Mounts what the host asks for; gives what its source turned out to be.
pub fn mount_requested(request: &MountRequest) -> Result<PathBuf, Failure> {
    let target = &request.target;
    let doing = || format!("mounting {} ({}) at {}", request.source.display(), request.kind, target.display());
    if !target.is_dir() {
        fs::create_dir_all(target).doing(|| format!("making {}", target.display()))?;
    }
    let source = match request.source.as_bytes().strip_prefix(b"serial:") {
        Some(serial) => {
            let serial = String::from_utf8_lossy(serial);
            let events = Events::open()?;
            events.wait_until(PATIENCE, &format!("the disk with serial number {serial}"), || by_serial(&serial))?
        }
        None => PathBuf::from(&request.source),
    };
    if request.kind == "bind" {
        errno(mount_bind(&source, target)).doing(doing)?;
        return Ok(source);
    }
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::RDONLY, request.read_only);
    flags.set(MountFlags::NOEXEC, request.no_programs);
    let options = CString::new(request.options.as_bytes()).doing(doing)?;
    errno(mount(&source, target, request.kind.as_str(), flags, options.as_c_str())).doing(doing)?;
    Ok(source)
}

/// Shows parts of a file system over parts of a directory. The binds have its flags and keep it alive; where it was mounted,
/// and the node of its disk, nobody needs to find it.
pub fn cover(with: &MountRequest, names: &[OsString], over: &Path) -> Result<(), Failure> {
    let source = mount_requested(with)?;
    for name in names {
        let (from, to) = (with.target.join(name), over.join(name));
        errno(mount_bind(&from, &to)).doing(|| format!("showing {} at {}", from.display(), to.display()))?;
    }
    unmount_requested(&with.target)?;
    fs::remove_dir(&with.target).doing(|| format!("removing {}", with.target.display()))?;
    if source.starts_with("/dev") {
        fs::remove_file(&source).doing(|| format!("removing {}", source.display()))?;
    }
    Ok(())
}

/// Takes a mount away.
pub fn unmount_requested(target: &Path) -> Result<(), Failure> {
    errno(unmount(target, UnmountFlags::empty())).doing(|| format!("unmounting {}", target.display()))
}

/// Makes a mounted directory the root. What was in the old one can no longer be seen.
pub fn switch_root(to: &Path) -> Result<(), Failure> {
    let doing = || format!("switching the root to {}", to.display());
    for kept in ["dev", "proc", "sys"] {
        errno(mount_move(Path::new("/").join(kept), to.join(kept)))
            .doing(|| format!("moving /{kept} into {}", to.display()))?;
    }
    std::env::set_current_dir(to).doing(doing)?;
    errno(mount_move(".", "/")).doing(doing)?;
    errno(rustix::process::chroot(".")).doing(doing)?;
    std::env::set_current_dir("/").doing(doing)
}

/// Writes a file whole or not at all.
pub fn write(path: &Path, mode: u32, content: &[u8]) -> Result<(), Failure> {
    let doing = || format!("writing {}", path.display());
    let folder = path.parent().ok_or_else(|| Failure::new(doing(), "it is no file"))?;
    if !folder.is_dir() {
        fs::create_dir_all(folder).doing(|| format!("making {}", folder.display()))?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&name).doing(doing)?;
    file.write_all(content).doing(doing)?;
    file.set_permissions(fs::Permissions::from_mode(mode & 0o7777)).doing(doing)?;
    fs::rename(&name, path).doing(doing)
}

/// The end: everything killed, written back and unmounted, as far as it goes.
pub fn power_off() -> ! {
    // Everything but ourselves.
    let _ = errno(rustix::process::kill_process_group(rustix::process::Pid::INIT, rustix::process::Signal::KILL));
    rustix::fs::sync();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    // The last mounted first. Names with spaces are written as \040; none of ours has one, and what stays was synced.
    for target in targets.collect::<Vec<_>>().into_iter().rev() {
        if !["/", "/proc", "/sys", "/dev"].contains(&target) {
            let _ = unmount(target, UnmountFlags::DETACH);
        }
    }
    rustix::fs::sync();
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    // A machine without a way to power off: the end of the first process is a panic, which ends it too.
    std::process::exit(1)
}
