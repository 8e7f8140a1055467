//! Namespaces and mounts.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::{Answer, attempt, done, errno};

pub fn answer(words: &[&str]) -> Option<Answer> {
    const NO_TEXT: Option<&str> = None;
    Some(match *words {
        ["unshare", ref kinds @ ..] if !kinds.is_empty() => done(unshare(flags(kinds))),
        ["in-user-namespace", ref rest @ ..] => in_user_namespace(rest),
        ["clone-user-namespace"] => done(clone3_user_namespace()),
        ["namespace", kind] => {
            fs::read_link(Path::new("/proc/self/ns").join(kind)).map_err(errno).map(|link| link.display().to_string())
        }
        ["mount", kind, target] => done(mount(Some("none"), target, Some(kind), MsFlags::empty(), NO_TEXT)),
        ["bind", from, to] => done(mount(Some(from), to, NO_TEXT, MsFlags::MS_BIND, NO_TEXT)),
        ["remount-writable", target] => {
            done(mount(NO_TEXT, target, NO_TEXT, MsFlags::MS_REMOUNT | MsFlags::MS_BIND, NO_TEXT))
        }
        ["unmount", target] => done(umount2(target, MntFlags::MNT_DETACH)),
        ["set-host-name", name] => done(nix::unistd::sethostname(name)),
        ["names"] => names(),
        _ => return None,
    })
}

fn flags(kinds: &[&str]) -> CloneFlags {
    kinds.iter().fold(CloneFlags::empty(), |flags, kind| {
        flags
            | match *kind {
                "user" => CloneFlags::CLONE_NEWUSER,
                "mnt" => CloneFlags::CLONE_NEWNS,
                "pid" => CloneFlags::CLONE_NEWPID,
                "net" => CloneFlags::CLONE_NEWNET,
                "ipc" => CloneFlags::CLONE_NEWIPC,
                "uts" => CloneFlags::CLONE_NEWUTS,
                "cgroup" => CloneFlags::CLONE_NEWCGROUP,
                other => panic!("no kind of namespace {other}"),
            }
    })
}

/// clone3(2), the way that filters forget; the child ends at once.
fn clone3_user_namespace() -> Result<(), Errno> {
    let mut arguments = [0u64; 11];
    arguments[0] = libc::CLONE_NEWUSER as u64;
    arguments[4] = libc::SIGCHLD as u64;
    // SAFETY: the structure is as large as the kernel is told, and the child, which has a copy of this memory, only exits.
    let child = unsafe { libc::syscall(libc::SYS_clone3, arguments.as_mut_ptr(), size_of_val(&arguments)) };
    match child {
        0 => std::process::exit(0),
        -1 => Err(Errno::last()),
        _ => nix::sys::wait::wait().map(drop),
    }
}

/// Does the rest of the words as root of a new user namespace with a mount namespace, and where asked a pid namespace.
fn in_user_namespace(rest: &[&str]) -> Answer {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let (with_pids, rest) = match rest {
        ["with-pids", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut kinds = vec!["user", "mnt"];
    if with_pids {
        kinds.push("pid");
    }
    unshare(flags(&kinds))?;
    fs::write("/proc/self/setgroups", "deny").map_err(errno)?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).map_err(errno)?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).map_err(errno)?;
    if !with_pids {
        return Ok(attempt(rest));
    }
    // Only a child is in the new pid namespace, and a procfs shows the namespace of who mounts it.
    let child = std::process::Command::new("/proc/self/exe").args(rest).output().map_err(errno)?;
    Ok(String::from_utf8_lossy(&child.stdout).trim_end().to_owned())
}

fn names() -> Answer {
    let found = nix::sys::utsname::uname()?;
    let text = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
    let domain = fs::read_to_string("/proc/sys/kernel/domainname").map_err(errno)?;
    Ok(format!("{} {} {}", text(found.nodename()), domain.trim(), text(found.machine())))
}
