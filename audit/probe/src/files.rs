//! What probes of files share: a folder to work in, calls by path, and the tables of mounts. All of it stands on
//! [`crate::calls`]; nothing here is unsafe.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anchorhold_probe::verdict::{Finding, name_of};
use anchorhold_probe::world::World;

use crate::calls;

/// `statfs(2)`: procfs.
pub const PROC: u64 = 0x9fa0;

/// `statfs(2)`: the mount ignores set-id bits.
pub const NO_SET_ID: u64 = 2;

/// What `lstat(2)` says of a path. The error is the error number.
pub fn status(path: impl AsRef<Path>) -> Result<std::fs::Metadata, i32> {
    std::fs::symlink_metadata(path).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

/// What tells one file from all others: device and inode number. Links are followed.
pub fn identity(path: impl AsRef<Path>) -> Result<(u64, u64), i32> {
    let found = std::fs::metadata(path).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))?;
    Ok((found.dev(), found.ino()))
}

/// `faccessat(2)` with `W_OK`, by number: whether the path could be opened for writing, without opening it. That a
/// running program is busy, which open(2) says first, is not asked.
pub fn writable(path: impl AsRef<Path>) -> Result<i64, i32> {
    let path = calls::c_path(path);
    calls::raw(libc::SYS_faccessat, &[libc::AT_FDCWD as usize, path.as_ptr() as usize, libc::W_OK as usize])
}

/// Opens and closes again: whether this is allowed, with the error number.
pub fn opens(path: impl AsRef<Path>, flags: i32) -> Result<i64, i32> {
    let descriptor = calls::open(path, flags | libc::O_NOCTTY | libc::O_NONBLOCK, 0)?;
    calls::close(descriptor);
    Ok(0)
}

/// Names in a folder, sorted. The error is the error number.
pub fn names(folder: impl AsRef<Path>) -> Result<Vec<String>, i32> {
    let number = |error: std::io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(number)? {
        names.push(entry.map_err(number)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Kind and flags of the file system that a path lies on, as `statfs(2)` gives them.
pub fn file_system(path: impl AsRef<Path>) -> Result<FileSystem, i32> {
    let path = calls::c_path(path);
    // `struct statfs` of the 64-bit architectures is fifteen words.
    let mut words = [0_u64; 32];
    calls::raw(libc::SYS_statfs, &[path.as_ptr() as usize, words.as_mut_ptr() as usize])?;
    Ok(FileSystem { kind: words[0], size: words[1].saturating_mul(words[2]), files: words[5], flags: words[10] })
}

/// The part of `struct statfs` that probes ask for.
#[derive(Clone, Copy, Debug)]
pub struct FileSystem {
    /// Its magic number.
    pub kind: u64,
    /// Bytes altogether; zero where there is no bound.
    pub size: u64,
    /// Inodes altogether; zero where there is no bound.
    pub files: u64,
    /// `ST_RDONLY` and so on.
    pub flags: u64,
}

/// Walks folders, without following links, until the time or the number of entries is used up. Tells whether it came to
/// the end.
pub fn walk(tops: &[&str], mut visit: impl FnMut(&Path, &std::fs::Metadata) -> Descend) -> bool {
    const ENTRIES: usize = 100_000;
    const TIME: Duration = Duration::from_secs(4);
    let started = Instant::now();
    let mut seen = 0;
    let mut waiting: Vec<PathBuf> = tops.iter().map(PathBuf::from).collect();
    while let Some(folder) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            seen += 1;
            if seen > ENTRIES || started.elapsed() > TIME {
                return false;
            }
            let path = entry.path();
            let Ok(found) = status(&path) else { continue };
            match visit(&path, &found) {
                Descend::Yes if found.is_dir() => waiting.push(path),
                Descend::Stop => return true,
                _ => {}
            }
        }
    }
    true
}

/// Whether a walk goes into what it has just been shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descend {
    /// If it is a folder.
    Yes,
    /// Not into this one.
    No,
    /// Enough was seen.
    Stop,
}

/// A folder that a probe may write to, gone with everything in it when the probe is done.
pub struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    /// In the folder that the world names, or in the first usual one that can be written to. The error is the finding that the
    /// probe then has.
    pub fn new(world: &World) -> Result<Self, Finding> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(".anchorhold-probe-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let named = world.scratch.iter().map(PathBuf::as_path);
        let usual = [".", "/build", "/tmp", "/var/tmp", "/dev/shm"].map(Path::new);
        for parent in named.chain(usual) {
            let folder = parent.join(&name);
            if std::fs::create_dir(&folder).is_ok() {
                return Ok(Self { folder });
            }
        }
        Err(Finding::inconclusive("no folder to write to"))
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A new, short file of mode 0644 in it.
    pub fn file(&self, name: &str) -> Result<PathBuf, Finding> {
        let path = self.path(name);
        match std::fs::write(&path, b"probe\n") {
            Ok(()) => Ok(path),
            Err(error) => {
                Err(Finding::inconclusive(format!("no file: {}", name_of(error.raw_os_error().unwrap_or(0)))))
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// One line of `/proc/self/mountinfo`. proc_pid_mountinfo(5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// The device, `major:minor`.
    pub device: String,
    /// Which part of the file system is seen here.
    pub root: String,
    /// Where it is mounted.
    pub point: String,
    /// Options of this mount.
    pub options: Vec<String>,
    /// Propagation, for example `shared:7`; empty for private mounts.
    pub propagation: Vec<String>,
    /// The kind of file system.
    pub kind: String,
    /// What was mounted, as its mounter called it.
    pub source: String,
    /// Options of the file system.
    pub super_options: Vec<String>,
}

impl Mount {
    /// Whether neither the mount nor its file system is read-only.
    pub fn writable(&self) -> bool {
        !self.has("ro") && !self.super_options.iter().any(|option| option == "ro")
    }

    /// Whether the mount has this option.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|other| other == option)
    }
}

/// The mounts that this process sees. The error is the error number.
pub fn mounts() -> Result<Vec<Mount>, i32> {
    let text = calls::contents("/proc/self/mountinfo", 1 << 20)?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(mount).collect())
}

/// One line of mountinfo; `None` for one that is cut off or of another form.
pub fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    let list = |word: &str| word.split(',').map(str::to_owned).collect();
    Some(Mount {
        device: (*left.get(2)?).to_owned(),
        root: unescaped(left.get(3)?),
        point: unescaped(left.get(4)?),
        options: list(left.get(5)?),
        propagation: left.get(6..)?.iter().map(|word| (*word).to_owned()).collect(),
        kind: (*right.first()?).to_owned(),
        source: unescaped(right.get(1)?),
        super_options: list(right.get(2)?),
    })
}

/// Undoes `\040` and its like, by which the tables of mounts write blanks, tabs, newlines and backslashes.
fn unescaped(word: &str) -> String {
    let mut text = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal =
            after.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|digit| (b'0'..b'8').contains(digit)));
        let value = octal.map(|digits| digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0')));
        match value.and_then(|value| u8::try_from(value).ok()) {
            Some(byte) => {
                text.push(byte);
                rest = &after[3..];
            }
            None => {
                text.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_taken_apart() {
        let line = r"36 35 98:0 /mnt\0401 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root\134x rw,errors=continue";
        let mount = mount(line).expect("the example of the manual, more or less");
        assert_eq!(mount.root, "/mnt 1");
        assert_eq!(mount.point, "/mnt2");
        assert_eq!(mount.propagation, ["master:1", "shared:7"]);
        assert_eq!(mount.source, r"/dev/root\x");
        assert!(mount.writable() && mount.has("noatime") && !mount.has("nosuid"));
    }

    #[test]
    fn a_read_only_file_system_makes_every_mount_of_it_read_only() {
        let line = "1 0 0:5 / /sys rw,nosuid - sysfs sysfs ro";
        assert!(!mount(line).expect("whole").writable());
    }

    #[test]
    fn lines_that_are_cut_off_are_left_out() {
        for line in ["", "1 0 0:5 / /sys rw", "1 0 - sysfs", "1 0 0:5 / /sys rw - sysfs sysfs"] {
            assert_eq!(mount(line), None, "{line}");
        }
    }

    #[test]
    fn a_lone_backslash_is_itself() {
        assert_eq!(unescaped(r"a\b\04\777\040"), r"a\b\04\777 ");
    }

    #[test]
    fn the_scratch_folder_is_gone_afterwards() {
        let world = World { scratch: Some(std::env::temp_dir()), ..World::default() };
        let scratch = Scratch::new(&world).expect("the temporary folder can be written to");
        let file = scratch.file("one").expect("so can a folder of ours");
        assert!(file.exists());
        drop(scratch);
        assert!(!file.exists());
    }
}
