//! A kernel that does nothing but write down what it is asked, and refuses what a test says.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::stat::SFlag;

use super::{MountFlags, Propagation, Result, Sys};
use crate::layers::landlock::Allowed;
use crate::layers::seccomp::Choices;

/// What stands at a path of the made-up host.
#[derive(Clone, Debug)]
pub enum Thing {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link that says this.
    Link(PathBuf),
    /// A character device with these numbers.
    Device(u32, u32),
}

/// The calls so far, each as one line; and a made-up host, with the directories that were made meanwhile.
#[derive(Debug, Default)]
pub struct Recorder {
    /// What there is on the host.
    host: BTreeMap<PathBuf, Thing>,
    /// The number of the call that is refused, from 0, and how.
    refuse: Option<(usize, Errno)>,
    calls: RefCell<Vec<String>>,
    /// What descriptors stand for, in words. A number that is used again gets its new meaning when it is given out.
    descriptors: RefCell<HashMap<RawFd, PathBuf>>,
    /// Directories of the room's tree, by the words for them.
    made: RefCell<BTreeSet<PathBuf>>,
}

impl Recorder {
    /// One with this host.
    pub fn new(host: BTreeMap<PathBuf, Thing>) -> Self {
        Self { host, ..Self::default() }
    }

    /// Has a call refused, by its number from 0.
    pub fn refusing(mut self, number: usize, errno: Errno) -> Self {
        self.refuse = Some((number, errno));
        self
    }

    /// The calls, in order.
    pub fn calls(&self) -> Vec<String> {
        self.calls.borrow().clone()
    }

    /// Writes a call down, and refuses it if it is its turn.
    fn call(&self, words: String) -> Result<()> {
        let mut calls = self.calls.borrow_mut();
        calls.push(words);
        match self.refuse {
            Some((number, errno)) if number + 1 == calls.len() => Err(errno),
            _ => Ok(()),
        }
    }

    /// A descriptor that stands for something. It is a real one, so that it can be owned and closed.
    pub fn descriptor(&self, stands_for: impl Into<PathBuf>) -> OwnedFd {
        let fd = OwnedFd::from(std::fs::File::open("/dev/null").expect("every host has /dev/null"));
        self.descriptors.borrow_mut().insert(fd.as_raw_fd(), stands_for.into());
        fd
    }

    /// What a descriptor stands for.
    fn what(&self, fd: BorrowedFd<'_>) -> PathBuf {
        if fd.as_raw_fd() == libc::AT_FDCWD {
            return PathBuf::new();
        }
        self.descriptors.borrow().get(&fd.as_raw_fd()).cloned().unwrap_or_else(|| "something else".into())
    }

    fn below(&self, dir: BorrowedFd<'_>, name: &Path) -> PathBuf {
        self.what(dir).join(name)
    }

    /// What a detached tree of the host is.
    fn thing(&self, fd: BorrowedFd<'_>) -> Result<Thing> {
        let what = self.what(fd);
        let path = what.to_string_lossy();
        let path = path.strip_prefix("tree of ").ok_or(Errno::EBADF)?;
        self.host.get(Path::new(path)).cloned().ok_or(Errno::ENOENT)
    }
}

fn words(flags: MountFlags) -> String {
    flags.words().join(",")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).escape_debug().to_string()
}

impl Sys for Recorder {
    fn unshare(&self, namespaces: CloneFlags) -> Result<()> {
        // Not the names of crate `nix`: CLONE_NEWTIME is unknown to it.
        self.call(format!("unshare {:#x}", namespaces.bits()))
    }

    fn open_tree(&self, dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd> {
        let path = self.below(dir, path);
        self.call(format!("open_tree {}{}", path.display(), if recursive { " and below" } else { "" }))?;
        let in_the_room = path.starts_with("room") || self.made.borrow().contains(&path) || path.starts_with("/proc");
        if !in_the_room && !self.host.contains_key(&path) {
            return Err(Errno::ENOENT);
        }
        Ok(self.descriptor(format!("tree of {}", path.display())))
    }

    fn restrict_one_by_one(&self) -> Result<()> {
        self.call("restrict mounts one by one".into())
    }

    fn mount_setattr(
        &self,
        fd: BorrowedFd<'_>,
        set: MountFlags,
        propagation: Option<Propagation>,
        recursive: bool,
    ) -> Result<()> {
        let private = if propagation.is_some() { ",private" } else { "" };
        let recursive = if recursive { " and below" } else { "" };
        self.call(format!("mount_setattr {} {}{private}{recursive}", self.what(fd).display(), words(set)))
    }

    fn move_mount(&self, mount: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &Path) -> Result<()> {
        let target = self.below(dir, name);
        self.call(format!("move_mount {} to {}", self.what(mount).display(), target.display()))?;
        // The first mount goes over the host's root and is the room's; it is reached by its own descriptor from then on.
        let stands_for = if target == Path::new("/") { "room".into() } else { target };
        self.made.borrow_mut().insert(stands_for.clone());
        self.descriptors.borrow_mut().insert(mount.as_raw_fd(), stands_for);
        Ok(())
    }

    fn new_filesystem(&self, kind: &str, options: &[(&str, &str)], flags: MountFlags) -> Result<OwnedFd> {
        let options: Vec<_> = options.iter().map(|(key, value)| format!("{key}={value}")).collect();
        self.call(format!("new {kind} [{}] {}", options.join(","), words(flags)))?;
        Ok(self.descriptor(format!("new {kind}")))
    }

    fn bind(&self, source: &Path, target: &Path) -> Result<()> {
        self.call(format!("bind {} at {}", source.display(), target.display()))
    }

    fn pivot_root_here(&self) -> Result<()> {
        self.call("pivot_root . .".into())
    }

    fn detach_here(&self) -> Result<()> {
        self.call("umount . detached".into())
    }

    fn open_dir(&self, dir: BorrowedFd<'_>, name: &Path) -> Result<OwnedFd> {
        let path = self.below(dir, name);
        self.call(format!("open directory {}", path.display()))?;
        if self.made.borrow().contains(&path) { Ok(self.descriptor(path)) } else { Err(Errno::ENOENT) }
    }

    fn mkdir(&self, dir: BorrowedFd<'_>, name: &Path, mode: u32) -> Result<()> {
        let path = self.below(dir, name);
        self.call(format!("mkdir {} {mode:04o}", path.display()))?;
        if self.made.borrow_mut().insert(path) { Ok(()) } else { Err(Errno::EEXIST) }
    }

    fn create_file(&self, dir: BorrowedFd<'_>, name: &Path, content: &[u8], mode: u32) -> Result<()> {
        self.call(format!("create {} {mode:04o} \"{}\"", self.below(dir, name).display(), text(content)))
    }

    fn symlink(&self, target: &Path, dir: BorrowedFd<'_>, name: &Path) -> Result<()> {
        self.call(format!("symlink {} -> {}", self.below(dir, name).display(), target.display()))
    }

    fn write_kernel_file(&self, path: &Path, content: &[u8]) -> Result<()> {
        self.call(format!("write {} \"{}\"", path.display(), text(content)))
    }

    fn write_descriptor(&self, fd: BorrowedFd<'_>, content: &[u8]) -> Result<()> {
        self.call(format!("write to {} \"{}\"", self.what(fd).display(), text(content)))
    }

    fn fchdir(&self, dir: BorrowedFd<'_>) -> Result<()> {
        self.call(format!("fchdir {}", self.what(dir).display()))
    }

    fn chdir(&self, path: &Path) -> Result<()> {
        self.call(format!("chdir {}", path.display()))
    }

    fn set_hostname(&self, name: &str) -> Result<()> {
        self.call(format!("sethostname {name}"))
    }

    fn set_domainname(&self, name: &str) -> Result<()> {
        self.call(format!("setdomainname {name}"))
    }

    fn set_personality(&self, persona: u64) -> Result<()> {
        self.call(format!("personality {persona:#x}"))
    }

    fn set_umask(&self, mask: u32) -> Result<()> {
        self.call(format!("umask {mask:03o}"))
    }

    fn hard_limit(&self, resource: u32) -> Result<Option<u64>> {
        self.call(format!("getrlimit {resource}"))?;
        Ok(None)
    }

    fn set_rlimit(&self, resource: u32, soft: Option<u64>, hard: Option<u64>) -> Result<()> {
        let figure = |limit: Option<u64>| limit.map_or("infinity".into(), |limit| limit.to_string());
        self.call(format!("setrlimit {resource} {} {}", figure(soft), figure(hard)))
    }

    fn raise_open_files(&self) -> Result<Option<u64>> {
        self.call("raise the limit of open files".into())?;
        Ok(Some(1024))
    }

    fn set_groups(&self, groups: &[u32]) -> Result<()> {
        self.call(format!("setgroups {groups:?}"))
    }

    fn become_ids(&self, uid: u32, gid: u32) -> Result<()> {
        self.call(format!("setresgid {gid}, setresuid {uid}"))
    }

    fn new_session(&self) -> Result<()> {
        self.call("setsid".into())
    }

    fn new_session_keyring(&self) -> Result<()> {
        self.call("join a new session keyring".into())
    }

    fn session_keyring(&self) -> Result<i64> {
        self.call("ask for the session keyring".into())?;
        Ok(1)
    }

    fn set_standard_stream(&self, fd: BorrowedFd<'_>, number: i32) -> Result<()> {
        self.call(format!("dup2 {} {number}", self.what(fd).display()))
    }

    fn open_terminal(&self, multiplexer: &Path, raw: bool) -> Result<(OwnedFd, OwnedFd)> {
        let kind = if raw { "a raw terminal" } else { "a terminal" };
        self.call(format!("open {kind} of {}", multiplexer.display()))?;
        Ok((self.descriptor("master"), self.descriptor("terminal")))
    }

    fn set_controlling_terminal(&self) -> Result<()> {
        self.call("TIOCSCTTY".into())
    }

    fn mode(&self, path: &Path) -> Option<u32> {
        // A question that cannot fail, and changes nothing.
        self.host.contains_key(path).then_some(0o444)
    }

    fn file_type(&self, fd: BorrowedFd<'_>) -> Result<SFlag> {
        self.call(format!("type of {}", self.what(fd).display()))?;
        Ok(match self.thing(fd)? {
            Thing::Directory => SFlag::S_IFDIR,
            Thing::File => SFlag::S_IFREG,
            Thing::Link(_) => SFlag::S_IFLNK,
            Thing::Device(..) => SFlag::S_IFCHR,
        })
    }

    fn device_number(&self, fd: BorrowedFd<'_>) -> Result<Option<(u32, u32)>> {
        self.call(format!("device number of {}", self.what(fd).display()))?;
        Ok(match self.thing(fd)? {
            Thing::Device(major, minor) => Some((major, minor)),
            _ => None,
        })
    }

    fn read_link(&self, fd: BorrowedFd<'_>) -> Result<OsString> {
        self.call(format!("readlink {}", self.what(fd).display()))?;
        match self.thing(fd)? {
            Thing::Link(target) => Ok(target.into()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn landlock(&self, abi: u32, files: &[(PathBuf, Allowed)], queues: Option<OwnedFd>) -> Result<String> {
        let named = files.iter().map(|(path, allowed)| format!("{} {allowed:?}", path.display()));
        let rules: Vec<_> = named.chain(queues.map(|_| "message queues All".into())).collect();
        self.call(format!("landlock {abi}: {}", rules.join(", ")))?;
        Ok("enforced in full".into())
    }

    fn join_namespace(&self, namespace: BorrowedFd<'_>, kind: CloneFlags) -> Result<()> {
        // It came over a socket, which is no call of the seam.
        let _ = namespace;
        self.call(format!("setns {:#x}", kind.bits()))
    }

    fn loopback_up(&self) -> Result<()> {
        self.call("loopback up".into())
    }

    fn load_filter(&self, _: Choices) -> Result<Option<OwnedFd>> {
        self.call("load the filter".into())?;
        Ok(Some(self.descriptor("listener")))
    }

    fn open_descriptors(&self) -> Result<Vec<u32>> {
        self.call("list descriptors".into())?;
        Ok(vec![0, 1, 2, 3])
    }

    fn close_others(&self, kept: &[BorrowedFd<'_>]) -> Result<()> {
        self.call(format!("close all above 2 but {}", kept.len()))
    }

    fn drop_capabilities(&self) -> Result<()> {
        self.call("drop capabilities".into())
    }

    fn no_new_privileges(&self) -> Result<()> {
        self.call("no_new_privs".into())
    }

    fn die_with_parent(&self) -> Result<()> {
        self.call("die with the parent".into())
    }
}
