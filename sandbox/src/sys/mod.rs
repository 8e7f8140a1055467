//! Every system call that changes something, behind one seam.
//!
//! [`Sys`] is what the interpreter of a plan sees of the kernel: one method per system call (or per small group that only
//! makes sense together). [`Kernel`] is the real one. Tests put a [`recorder::Recorder`] in its place, which writes the calls down and
//! can refuse the n-th. All `unsafe` code of the project lives below this folder, one call per function, each
//! with the reason why it is sound; the rest of the crate is checked by `#![deny(unsafe_code)]`.

pub mod device;
pub mod feature;
pub mod file;
pub mod landlock;
pub mod mount;
pub mod namespace;
pub mod network;
pub mod one_by_one;
pub mod process;
#[cfg(test)]
pub mod recorder;
pub mod seccomp;
pub mod socket;
pub mod tied;

use std::cell::OnceCell;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::stat::SFlag;

use crate::layers::landlock::Allowed;
use crate::layers::seccomp::Choices;

pub use mount::{MountFlags, Propagation};

/// The kernel's answer.
pub type Result<T> = std::result::Result<T, Errno>;

/// What the interpreter of a plan may ask of the kernel.
///
/// Paths given with a directory descriptor are single names or relative paths below it; no method follows a symbolic
/// link in the last component.
pub trait Sys {
    /// unshare(2).
    fn unshare(&self, namespaces: CloneFlags) -> Result<()>;

    /// open_tree(2) with `OPEN_TREE_CLONE`: a detached copy of the mount at `path` (not following a final link), with what
    /// is mounted below it when `recursive`. Linux 5.2.
    fn open_tree(&self, dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd>;
    /// From now on, restricts mounts without mount_setattr(2): see [`one_by_one`].
    fn restrict_one_by_one(&self) -> Result<()>;
    /// mount_setattr(2) on the mount at `fd`. Linux 5.12.
    fn mount_setattr(
        &self,
        fd: BorrowedFd<'_>,
        set: MountFlags,
        propagation: Option<Propagation>,
        recursive: bool,
    ) -> Result<()>;
    /// move_mount(2): attaches a detached mount at `name` below `dir`, never following a link. Linux 5.2.
    fn move_mount(&self, mount: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &Path) -> Result<()>;
    /// fsopen(2), fsconfig(2), fsmount(2): a new, detached instance of a file system. Linux 5.2.
    fn new_filesystem(&self, kind: &str, options: &[(&str, &str)], flags: MountFlags) -> Result<OwnedFd>;
    /// mount(2) with `MS_BIND`: the source's own restrictions are inherited.
    fn bind(&self, source: &Path, target: &Path) -> Result<()>;
    /// pivot_root(2) of the current directory over itself: the old root ends up mounted on top of the new one.
    fn pivot_root_here(&self) -> Result<()>;
    /// umount2(2) of the current directory with `MNT_DETACH`.
    fn detach_here(&self) -> Result<()>;

    /// openat(2) with `O_PATH | O_DIRECTORY | O_NOFOLLOW`.
    fn open_dir(&self, dir: BorrowedFd<'_>, name: &Path) -> Result<OwnedFd>;
    /// mkdirat(2) and, where the umask would take bits away, fchmodat(2).
    fn mkdir(&self, dir: BorrowedFd<'_>, name: &Path, mode: u32) -> Result<()>;
    /// A new regular file (`O_EXCL`) with this content and exactly this mode.
    fn create_file(&self, dir: BorrowedFd<'_>, name: &Path, content: &[u8], mode: u32) -> Result<()>;
    /// symlinkat(2).
    fn symlink(&self, target: &Path, dir: BorrowedFd<'_>, name: &Path) -> Result<()>;
    /// Writes an existing kernel file (`/proc/...`) in one write(2).
    fn write_kernel_file(&self, path: &Path, content: &[u8]) -> Result<()>;
    /// One write(2) to an open descriptor.
    fn write_descriptor(&self, fd: BorrowedFd<'_>, content: &[u8]) -> Result<()>;
    /// fchdir(2).
    fn fchdir(&self, dir: BorrowedFd<'_>) -> Result<()>;
    /// chdir(2).
    fn chdir(&self, path: &Path) -> Result<()>;

    /// sethostname(2).
    fn set_hostname(&self, name: &str) -> Result<()>;
    /// setdomainname(2).
    fn set_domainname(&self, name: &str) -> Result<()>;
    /// personality(2).
    fn set_personality(&self, persona: u64) -> Result<()>;
    /// umask(2).
    fn set_umask(&self, mask: u32) -> Result<()>;
    /// getrlimit(2): the hard limit, by the kernel's resource number; `None` is `RLIM_INFINITY`.
    fn hard_limit(&self, resource: u32) -> Result<Option<u64>>;
    /// setrlimit(2), by the kernel's resource number; `None` is `RLIM_INFINITY`.
    fn set_rlimit(&self, resource: u32, soft: Option<u64>, hard: Option<u64>) -> Result<()>;
    /// Raises the soft limit of open files to the hard one, so that a thousand detached mounts can be held at once; the
    /// soft limit before.
    fn raise_open_files(&self) -> Result<Option<u64>>;

    /// setgroups(2).
    fn set_groups(&self, groups: &[u32]) -> Result<()>;
    /// setresgid(2) and setresuid(2) to unprivileged kernel ids, keeping the capabilities that unshare(2) of a user namespace may
    /// need, and staying dumpable so that the process may write its own maps.
    fn become_ids(&self, uid: u32, gid: u32) -> Result<()>;
    /// setsid(2).
    fn new_session(&self) -> Result<()>;
    /// keyctl(2) `KEYCTL_JOIN_SESSION_KEYRING` with no name: a fresh, anonymous session keyring.
    fn new_session_keyring(&self) -> Result<()>;
    /// keyctl(2) `KEYCTL_GET_KEYRING_ID`: the serial number of the session keyring.
    fn session_keyring(&self) -> Result<i64>;
    /// Puts `fd` on the standard stream `number` (dup2).
    fn set_standard_stream(&self, fd: BorrowedFd<'_>, number: i32) -> Result<()>;
    /// Opens a new pseudo-terminal by its multiplexer: the master and the other side, raw when asked.
    fn open_terminal(&self, multiplexer: &Path, raw: bool) -> Result<(OwnedFd, OwnedFd)>;
    /// Makes standard input the controlling terminal (`TIOCSCTTY`).
    fn set_controlling_terminal(&self) -> Result<()>;

    /// The mode of what is at a path, `None` where there is nothing.
    fn mode(&self, path: &Path) -> Option<u32>;
    /// The file type bits of what a descriptor stands for.
    fn file_type(&self, fd: BorrowedFd<'_>) -> Result<SFlag>;
    /// The numbers of a character device, `None` for anything else.
    fn device_number(&self, fd: BorrowedFd<'_>) -> Result<Option<(u32, u32)>>;
    /// readlinkat(2) of the link that a descriptor stands for.
    fn read_link(&self, fd: BorrowedFd<'_>) -> Result<OsString>;

    /// Enforces a Landlock ruleset of this interface version, which allows everything below the root of the message queues where one
    /// is given; what the kernel did, in words.
    fn landlock(&self, abi: u32, files: &[(PathBuf, Allowed)], queues: Option<OwnedFd>) -> Result<String>;
    /// setns(2).
    fn join_namespace(&self, namespace: BorrowedFd<'_>, kind: CloneFlags) -> Result<()>;
    /// `IFF_UP` on loopback of the current network namespace.
    fn loopback_up(&self) -> Result<()>;
    /// seccomp(2) with a finished program; the listener where refusals are recorded.
    fn load_filter(&self, choices: Choices) -> Result<Option<OwnedFd>>;
    /// The numbers of the descriptors that are open, in order.
    fn open_descriptors(&self) -> Result<Vec<u32>>;
    /// Closes every descriptor above 2 but these.
    fn close_others(&self, kept: &[BorrowedFd<'_>]) -> Result<()>;
    /// Empties all five capability sets and locks the secure bits.
    fn drop_capabilities(&self) -> Result<()>;
    /// `PR_SET_NO_NEW_PRIVS`.
    fn no_new_privileges(&self) -> Result<()>;
    /// `PR_SET_PDEATHSIG` with `SIGKILL`.
    fn die_with_parent(&self) -> Result<()>;
}

/// The running kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    /// In the place of mount_setattr(2), when a plan says so.
    one_by_one: OnceCell<one_by_one::OneByOne>,
}

impl Sys for Kernel {
    fn unshare(&self, namespaces: CloneFlags) -> Result<()> {
        nix::sched::unshare(namespaces)
    }

    fn open_tree(&self, dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd> {
        mount::open_tree(dir, path, recursive)
    }

    fn restrict_one_by_one(&self) -> Result<()> {
        self.one_by_one.get_or_init(Default::default);
        Ok(())
    }

    fn mount_setattr(
        &self,
        fd: BorrowedFd<'_>,
        set: MountFlags,
        propagation: Option<Propagation>,
        recursive: bool,
    ) -> Result<()> {
        match self.one_by_one.get() {
            Some(one_by_one) => one_by_one.mount_setattr(fd, set, propagation, recursive),
            None => mount::mount_setattr(fd, set, propagation, recursive),
        }
    }

    fn move_mount(&self, mount: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &Path) -> Result<()> {
        mount::move_mount(mount, dir, name)?;
        self.one_by_one.get().map_or(Ok(()), |one_by_one| one_by_one.attached(mount))
    }

    fn new_filesystem(&self, kind: &str, options: &[(&str, &str)], flags: MountFlags) -> Result<OwnedFd> {
        mount::new_filesystem(kind, options, flags)
    }

    fn bind(&self, source: &Path, target: &Path) -> Result<()> {
        nix::mount::mount(Some(source), target, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)
    }

    fn pivot_root_here(&self) -> Result<()> {
        nix::unistd::pivot_root(".", ".")
    }

    fn detach_here(&self) -> Result<()> {
        nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH)
    }

    fn open_dir(&self, dir: BorrowedFd<'_>, name: &Path) -> Result<OwnedFd> {
        file::open_dir(dir, name)
    }

    fn mkdir(&self, dir: BorrowedFd<'_>, name: &Path, mode: u32) -> Result<()> {
        file::mkdir(dir, name, mode)
    }

    fn create_file(&self, dir: BorrowedFd<'_>, name: &Path, content: &[u8], mode: u32) -> Result<()> {
        file::create(dir, name, content, mode)
    }

    fn symlink(&self, target: &Path, dir: BorrowedFd<'_>, name: &Path) -> Result<()> {
        nix::unistd::symlinkat(target, dir, name)
    }

    fn write_kernel_file(&self, path: &Path, content: &[u8]) -> Result<()> {
        file::write_existing(path, content)
    }

    fn write_descriptor(&self, fd: BorrowedFd<'_>, content: &[u8]) -> Result<()> {
        file::write_whole(fd, content)
    }

    fn fchdir(&self, dir: BorrowedFd<'_>) -> Result<()> {
        nix::unistd::fchdir(dir)
    }

    fn chdir(&self, path: &Path) -> Result<()> {
        nix::unistd::chdir(path)
    }

    fn set_hostname(&self, name: &str) -> Result<()> {
        process::set_hostname(name)
    }

    fn set_domainname(&self, name: &str) -> Result<()> {
        process::set_domainname(name)
    }

    fn set_personality(&self, persona: u64) -> Result<()> {
        process::set_personality(persona)
    }

    fn set_umask(&self, mask: u32) -> Result<()> {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
        Ok(())
    }

    fn hard_limit(&self, resource: u32) -> Result<Option<u64>> {
        process::get_rlimit(resource).map(|(_, hard)| hard)
    }

    fn set_rlimit(&self, resource: u32, soft: Option<u64>, hard: Option<u64>) -> Result<()> {
        process::set_rlimit(resource, soft, hard)
    }

    fn raise_open_files(&self) -> Result<Option<u64>> {
        let (soft, hard) = process::get_rlimit(libc::RLIMIT_NOFILE)?;
        process::set_rlimit(libc::RLIMIT_NOFILE, hard, hard)?;
        Ok(soft)
    }

    fn set_groups(&self, groups: &[u32]) -> Result<()> {
        let groups: Vec<_> = groups.iter().map(|gid| nix::unistd::Gid::from_raw(*gid)).collect();
        nix::unistd::setgroups(&groups)
    }

    fn become_ids(&self, uid: u32, gid: u32) -> Result<()> {
        process::become_ids(uid, gid)
    }

    fn new_session(&self) -> Result<()> {
        nix::unistd::setsid().map(drop)
    }

    fn new_session_keyring(&self) -> Result<()> {
        process::new_session_keyring()
    }

    fn session_keyring(&self) -> Result<i64> {
        process::session_keyring()
    }

    fn set_standard_stream(&self, fd: BorrowedFd<'_>, number: i32) -> Result<()> {
        process::set_standard_stream(fd, number)
    }

    fn open_terminal(&self, multiplexer: &Path, raw: bool) -> Result<(OwnedFd, OwnedFd)> {
        device::open_terminal(multiplexer, raw)
    }
    fn set_controlling_terminal(&self) -> Result<()> {
        device::set_controlling()
    }

    fn mode(&self, path: &Path) -> Option<u32> {
        nix::sys::stat::lstat(path).ok().map(|found| found.st_mode)
    }

    fn file_type(&self, fd: BorrowedFd<'_>) -> Result<SFlag> {
        Ok(SFlag::from_bits_truncate(nix::sys::stat::fstat(fd)?.st_mode & SFlag::S_IFMT.bits()))
    }

    fn device_number(&self, fd: BorrowedFd<'_>) -> Result<Option<(u32, u32)>> {
        file::device_number(fd)
    }

    fn read_link(&self, fd: BorrowedFd<'_>) -> Result<OsString> {
        nix::fcntl::readlinkat(fd, "")
    }

    fn landlock(&self, abi: u32, files: &[(PathBuf, Allowed)], queues: Option<OwnedFd>) -> Result<String> {
        landlock::restrict(abi, files, queues)
    }

    fn join_namespace(&self, namespace: BorrowedFd<'_>, kind: CloneFlags) -> Result<()> {
        nix::sched::setns(namespace, kind)
    }

    fn loopback_up(&self) -> Result<()> {
        network::loopback_flags_up()
    }

    fn load_filter(&self, choices: Choices) -> Result<Option<OwnedFd>> {
        crate::layers::seccomp::load(choices)
            .map_err(|error| error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw))
    }

    fn open_descriptors(&self) -> Result<Vec<u32>> {
        process::open_descriptors()
    }

    fn close_others(&self, kept: &[BorrowedFd<'_>]) -> Result<()> {
        process::close_above_streams_but(kept);
        Ok(())
    }

    fn drop_capabilities(&self) -> Result<()> {
        process::drop_capabilities()
    }

    fn no_new_privileges(&self) -> Result<()> {
        nix::sys::prctl::set_no_new_privs()
    }

    fn die_with_parent(&self) -> Result<()> {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
    }
}

/// A path as the kernel wants it; a NUL inside is `EINVAL`, as the kernel could only ever see the part before it.
pub(crate) fn c_path(path: impl AsRef<OsStr>) -> Result<CString> {
    CString::new(path.as_ref().as_bytes()).map_err(|_| Errno::EINVAL)
}
