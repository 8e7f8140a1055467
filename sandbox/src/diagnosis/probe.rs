//! Attempts by a child that ends at once: what a process may do to itself, nothing that stays.

use std::fs;
use std::io::Read;

use nix::errno::Errno;

use crate::layers::namespaces::Kind;
use crate::layers::network::{self, nftables, policy};
use crate::sys::file::{write_existing, write_whole};
use crate::sys::process::{Forked, exit_now, fork, thread_count, wait};
use crate::sys::{self, Kernel, Sys};

/// The kinds beside the user namespace that every room needs.
pub const OTHER_KINDS: [Kind; 6] = [Kind::Mnt, Kind::Net, Kind::Ipc, Kind::Uts, Kind::Cgroup, Kind::Pid];

/// What the kernel said to one attempt: `Ok`, or its errno.
pub type Answer = Result<(), Errno>;

/// What it said to all of them. An attempt that was not reached has the answer ECANCELED.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// unshare(2) of a user namespace.
    pub user: Answer,
    /// Writing its maps.
    pub maps: Answer,
    /// unshare(2) of each of [`OTHER_KINDS`], in it.
    pub others: Vec<(Kind, Answer)>,
    /// Raising loopback in a network namespace made there.
    pub loopback: Answer,
    /// Rules for the packets that leave it.
    pub rules: Answer,
    /// A filter of system calls with a listener.
    pub listener: Answer,
}

impl Answers {
    /// Nothing was tried.
    pub fn none(errno: Errno) -> Self {
        let no = Err(errno);
        Self {
            user: no,
            maps: no,
            others: OTHER_KINDS.map(|kind| (kind, no)).to_vec(),
            loopback: no,
            rules: no,
            listener: no,
        }
    }

    /// Tries them. The calling process must have one thread.
    pub fn gather() -> Self {
        let listener = attempts(1, |answers| answers[0] = listen());
        let count = 4 + OTHER_KINDS.len();
        let mut of_namespaces = attempts(count, namespaces);
        if of_namespaces.get(1) == Some(&Err(Errno::EPERM)) && nix::unistd::geteuid().is_root() {
            // Root may lack CAP_SETFCAP, without which no map may have root in it (user_namespaces(7)). No room has such a
            // map: they are under other ids.
            let as_nobody = attempts(count, |answers| {
                if Kernel::default().become_ids(NOBODY, NOBODY).is_ok() {
                    namespaces(answers);
                }
            });
            if as_nobody.get(1) == Some(&Ok(())) {
                of_namespaces = as_nobody;
            }
        }
        let mut given = of_namespaces.into_iter();
        let mut next = || given.next().unwrap_or(Err(Errno::ECHILD));
        Self {
            user: next(),
            maps: next(),
            loopback: next(),
            rules: next(),
            others: OTHER_KINDS.map(|kind| (kind, next())).to_vec(),
            listener: listener.first().copied().unwrap_or(Err(Errno::ECHILD)),
        }
    }
}

/// An id that is nobody's on most hosts. It is not used for anything but to be another than root's.
const NOBODY: u32 = 65534;

/// Makes a user namespace and all others in it, as whoever the process is.
fn namespaces(answers: &mut [Answer]) {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let (mut raised, mut ruled) = (answers[2], answers[3]);
    answers[0] = Kernel::default().unshare(Kind::User.flag());
    if answers[0].is_err() {
        return;
    }
    answers[1] = write_existing("/proc/self/setgroups".as_ref(), b"deny")
        .and_then(|()| write_existing("/proc/self/uid_map".as_ref(), format!("{uid} {uid} 1").as_bytes()))
        .and_then(|()| write_existing("/proc/self/gid_map".as_ref(), format!("{gid} {gid} 1").as_bytes()));
    if answers[1].is_err() {
        return;
    }
    for (kind, answer) in OTHER_KINDS.iter().zip(&mut answers[4..]) {
        *answer = Kernel::default().unshare(kind.flag());
        // In its own network namespace alone: what is raised and ruled here ends with this process.
        if *kind == Kind::Net && answer.is_ok() {
            raised = network::loopback_up();
            ruled = rule();
        }
    }
    (answers[2], answers[3]) = (raised, ruled);
}

/// Only the attempt shows whether a filter further out already has the one listener that a process may have.
fn listen() -> Answer {
    const ALLOW: libc::sock_filter =
        libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    Kernel::default().no_new_privileges()?;
    match sys::seccomp::install(&[ALLOW], true) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
    }
}

fn rule() -> Answer {
    let rules = policy::compile(&policy::Policy::default(), &[], false).map_err(|_| Errno::EINVAL)?;
    nftables::install(&rules).map_err(|refused| match refused {
        nftables::PolicyNotInForce::Refused { errno, .. } => errno,
        _ => Errno::EPROTO,
    })
}

/// Has a child fill in `count` answers and tell them; a child that dies tells none.
fn attempts(count: usize, attempt: impl FnOnce(&mut [Answer])) -> Vec<Answer> {
    try_attempts(count, attempt).unwrap_or_else(|errno| vec![Err(errno); count])
}

fn try_attempts(count: usize, attempt: impl FnOnce(&mut [Answer])) -> Result<Vec<Answer>, Errno> {
    // The child goes on as a copy of us: with other threads, their locks would be copied too.
    if thread_count().ok() != Some(1) {
        return Err(Errno::EBUSY);
    }
    let (heard, said) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let child = match fork()? {
        Forked::Child => {
            let mut answers = vec![Err(Errno::ECANCELED); count];
            attempt(&mut answers);
            let numbers = answers.iter().map(|answer| answer.err().map_or(0, |errno| errno as i32));
            let bytes: Vec<u8> = numbers.flat_map(i32::to_ne_bytes).collect();
            let _ = write_whole(std::os::fd::AsFd::as_fd(&said), &bytes);
            exit_now(0)
        }
        Forked::Parent { pid, .. } => pid,
    };
    drop(said);
    let mut bytes = Vec::new();
    let read = fs::File::from(heard).read_to_end(&mut bytes);
    let _ = wait(child);
    if read.is_err() || bytes.len() != count * 4 {
        return Err(Errno::ECHILD);
    }
    let number = |bytes: &[u8]| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    Ok(bytes
        .chunks_exact(4)
        .map(|four| match number(four) {
            0 => Ok(()),
            errno => Err(Errno::from_raw(errno)),
        })
        .collect())
}

/// The kernel's answer for a person: what it means, and its name.
pub fn say(errno: Errno) -> String {
    format!("{} ({errno:?})", errno.desc())
}
