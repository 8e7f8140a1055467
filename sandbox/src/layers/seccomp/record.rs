//! The supervisor's half: answers the refusals that the filter reports, and keeps the account of them.

use super::program::{self, Recorded};
use super::show::{Notation, Show};
use super::socketcall::{self, Answer, SocketMaker};
use crate::sys::seccomp as sys;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Distinct refusals that are told apart. What a program calls itself is the program's choice, so there must be an end.
const DISTINCT: usize = 256;

/// Refusals that are looked at closely. Behind that a build is hammering: it only gets its errno, fast.
const CLOSELY: u64 = 10_000;

/// Notifications answered by one call of [`Recorder::answer`], so that a storm cannot starve the supervisor's other work.
const AT_ONCE: usize = 64;

/// Longest program name in the account; the kernel's are at most 15 bytes, but /proc is read, not trusted.
const NAME_LENGTH: usize = 32;

/// Answers, for the room, what its filter reports: every call gets the errno of its row, or a socket that somebody else
/// made; none is ever let through.
///
/// The recorder must live as long as the room: when the listener is closed, waiting and later calls of recorded rows
/// get `ENOSYS` from the kernel. They stay refused either way.
pub struct Recorder {
    listener: OwnedFd,
    account: HashMap<Entry, u64>,
    others: u64,
    seen: u64,
    over: bool,
}

/// What makes two refusals the same.
#[derive(PartialEq, Eq, Hash)]
struct Entry {
    call: &'static str,
    argument: Option<String>,
    program: String,
    hint: &'static str,
}

/// One thing that the room refused, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The system call.
    pub call: String,
    /// The argument for which it was refused, as a person writes it: `04755`, `AF_VSOCK`.
    pub argument: Option<String>,
    /// The name that the calling process had.
    pub program: String,
    /// How many times.
    pub count: u64,
    /// What to do about it; names the profile that allows the call, if one does.
    pub hint: Option<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.call)?;
        if let Some(argument) = &self.argument {
            write!(out, " {argument}")?;
        }
        write!(out, " by {} ×{}", self.program, self.count)
    }
}

impl Recorder {
    /// Takes the descriptor that loading a recording program gave (`Choices::record`, [`sys::install`]).
    pub fn new(listener: OwnedFd) -> Self {
        // A kernel before 6.6 does not know the request; it costs some microseconds per refusal.
        let _ = sys::take_turns(listener.as_fd());
        Self { listener, account: HashMap::new(), others: 0, seen: 0, over: false }
    }

    /// Answers what waits on the listener; never blocks. To be called when the descriptor polls readable (or hung up),
    /// again and again: one call answers a bounded number.
    ///
    /// Errors are the supervisor's own (out of memory) and leave callers waiting: end the room. A caller that died
    /// meanwhile, or a signal to the supervisor, is no error.
    pub fn answer(&mut self, maker: &mut dyn SocketMaker) -> io::Result<()> {
        for _ in 0..AT_ONCE {
            let mut polled = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            match nix::poll::poll(&mut polled, PollTimeout::ZERO) {
                Err(nix::errno::Errno::EINTR) => return Ok(()),
                other => other?,
            };
            let ready = polled[0].revents().unwrap_or(PollFlags::empty());
            if !ready.contains(PollFlags::POLLIN) {
                self.over = ready.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
                return Ok(());
            }
            match sys::receive(self.listener.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
                Err(error) => return Err(error),
                Ok(None) => {}
                Ok(Some(notification)) => self.answer_one(&notification, maker)?,
            }
        }
        Ok(())
    }

    /// Whether every process under the filter is gone: the descriptor polls as hung up from now on, stop polling it.
    pub fn over(&self) -> bool {
        self.over
    }

    /// What the room refused, most frequent first.
    pub fn refusals(&self) -> Vec<Refused> {
        let mut refusals: Vec<Refused> = self
            .account
            .iter()
            .map(|(entry, count)| Refused {
                call: entry.call.to_owned(),
                argument: entry.argument.clone(),
                program: entry.program.clone(),
                count: *count,
                hint: Some(entry.hint.to_owned()),
            })
            .collect();
        refusals.sort_by(|one, other| {
            let key = |refused: &Refused| {
                (
                    std::cmp::Reverse(refused.count),
                    refused.call.clone(),
                    refused.argument.clone(),
                    refused.program.clone(),
                )
            };
            key(one).cmp(&key(other))
        });
        refusals
    }

    /// Refusals beyond those: too many different ones, or too many altogether, to be told apart.
    pub fn others(&self) -> u64 {
        self.others
    }

    fn answer_one(&mut self, notification: &libc::seccomp_notif, maker: &mut dyn SocketMaker) -> io::Result<()> {
        let row = program::refusing_row(&notification.data);
        if !row.is_some_and(|row| row.made) {
            return self.refuse(notification, row, &notification.data);
        }
        match socketcall::serve(self.listener.as_fd(), notification, maker)? {
            Answer::Value(value) => sys::answer(self.listener.as_fd(), notification.id, value).map(drop),
            Answer::Errno(errno) => sys::refuse(self.listener.as_fd(), notification.id, errno as u16).map(drop),
            Answer::Refused(row, call) => self.refuse(notification, Some(row), &call),
            Answer::Impossible => self.refuse(notification, row, &notification.data),
            Answer::Gone => Ok(()),
        }
    }

    /// Refuses a call by a row, and counts it under what it asked for.
    fn refuse(
        &mut self,
        notification: &libc::seccomp_notif,
        row: Option<&'static Recorded>,
        call: &libc::seccomp_data,
    ) -> io::Result<()> {
        self.seen = self.seen.saturating_add(1);
        match row {
            Some(row) if self.seen <= CLOSELY => {
                let entry = entry(row, call, notification.pid);
                // The name is that of the caller only if the caller waits still: else its pid may be another's by now.
                // An errno here (a kernel before 5.8 has another number for the question) must not keep the caller waiting.
                match sys::still_waiting(self.listener.as_fd(), notification.id) {
                    Ok(true) => self.count(entry),
                    Ok(false) => {}
                    Err(_) => self.others = self.others.saturating_add(1),
                }
            }
            _ => self.others = self.others.saturating_add(1),
        }
        // Only our own program reports to this listener, so there is a row; without one the answer is still a refusal.
        let errno = row.map_or(libc::EPERM as u16, |row| row.errno);
        sys::refuse(self.listener.as_fd(), notification.id, errno)?;
        Ok(())
    }

    fn count(&mut self, entry: Entry) {
        let full = self.account.len() >= DISTINCT;
        match self.account.get_mut(&entry) {
            Some(count) => *count = count.saturating_add(1),
            None if full => self.others = self.others.saturating_add(1),
            None => {
                self.account.insert(entry, 1);
            }
        }
    }
}

impl AsFd for Recorder {
    /// The listener, for `poll(2)`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

fn entry(row: &'static Recorded, call: &libc::seccomp_data, thread: u32) -> Entry {
    Entry {
        call: program::name(call).unwrap_or("system call"),
        argument: row.show.map(|show| argument(show, call)),
        program: program_name(thread).unwrap_or_else(|| "unknown".to_owned()),
        hint: row.hint,
    }
}

/// The shown argument as text. The kernel uses the low half only, as does the filter.
fn argument(show: Show, call: &libc::seccomp_data) -> String {
    let value = call.args.get(usize::from(show.arg)).map_or(0, |value| *value as u32);
    match show.notation {
        Notation::Octal => format!("0{:o}", value & 0o177_777), // mode_t is 16 bits wide in the kernel
        Notation::Hex => format!("{value:#x}"),
        Notation::Family => named(value, &FAMILIES, "AF_"),
        Notation::Netlink => named(value, &NETLINK, "NETLINK_"),
    }
}

fn named(value: u32, names: &[(u32, &str)], prefix: &str) -> String {
    match names.iter().find(|(number, _)| *number == value) {
        Some((_, name)) => format!("{prefix}{name}"),
        None => format!("{prefix}{value}"),
    }
}

/// Socket families that a build may be seen to ask for (bits/socket.h).
const FAMILIES: [(u32, &str); 17] = [
    (0, "UNSPEC"),
    (3, "AX25"),
    (4, "IPX"),
    (5, "APPLETALK"),
    (9, "X25"),
    (15, "KEY"),
    (17, "PACKET"),
    (21, "RDS"),
    (29, "CAN"),
    (30, "TIPC"),
    (31, "BLUETOOTH"),
    (38, "ALG"),
    (39, "NFC"),
    (40, "VSOCK"),
    (42, "QIPCRTR"),
    (43, "SMC"),
    (44, "XDP"),
];

/// Netlink protocols that a build may be seen to ask for (linux/netlink.h).
const NETLINK: [(u32, &str); 9] = [
    (5, "NFLOG"),
    (6, "XFRM"),
    (7, "SELINUX"),
    (9, "AUDIT"),
    (10, "FIB_LOOKUP"),
    (11, "CONNECTOR"),
    (12, "NETFILTER"),
    (20, "RDMA"),
    (21, "CRYPTO"),
];

/// What the process of a thread calls itself. Its file would be the better name but for programs that are many in one
/// (coreutils): `install` is what a person looks for. Untrusted: shortened, and without anything a terminal acts on.
fn program_name(thread: u32) -> Option<String> {
    if thread == 0 {
        return None; // the supervisor's pid namespace does not see it
    }
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok();
    let leader = status.as_deref().and_then(leader).unwrap_or(thread);
    let name = std::fs::read(format!("/proc/{leader}/comm")).ok()?;
    Some(printable(&name))
}

/// The process that a thread belongs to, from its `status` file.
fn leader(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

fn printable(name: &[u8]) -> String {
    let name = name.strip_suffix(b"\n").unwrap_or(name);
    String::from_utf8_lossy(name)
        .chars()
        .take(NAME_LENGTH)
        .map(|character| if character.is_control() || character.is_whitespace() { '?' } else { character })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_as_a_sentence() {
        let refused = Refused {
            call: "chmod".into(),
            argument: Some("04755".into()),
            program: "install".into(),
            count: 3,
            hint: None,
        };
        assert_eq!(refused.to_string(), "chmod 04755 by install ×3");
        assert_eq!(Refused { argument: None, ..refused }.to_string(), "chmod by install ×3");
    }

    #[test]
    fn a_program_cannot_write_to_the_readers_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb c\n"), "a?[2Jb?c");
        assert_eq!(printable(&[b'x'; 100]).len(), NAME_LENGTH);
        assert_eq!(printable(b"\xff\n"), "\u{fffd}");
    }

    #[test]
    fn arguments_are_shown_in_their_notation() {
        let call = libc::seccomp_data {
            nr: 0,
            arch: 0,
            instruction_pointer: 0,
            args: [40, 0xffff_ffff_0000_89ed, 0x5412, 9, 77, 0],
        };
        let shown = |arg, notation| argument(Show { arg, notation }, &call);
        assert_eq!(shown(0, Notation::Family), "AF_VSOCK");
        assert_eq!(shown(1, Notation::Octal), "0104755");
        assert_eq!(shown(2, Notation::Hex), "0x5412");
        assert_eq!(shown(3, Notation::Netlink), "NETLINK_AUDIT");
        assert_eq!(shown(4, Notation::Family), "AF_77");
    }

    #[test]
    fn a_thread_is_named_after_its_process() {
        assert_eq!(leader("Name:\tworker\nUmask:\t0022\nTgid:\t42\nPid:\t43\n"), Some(42));
        assert_eq!(leader("Name:\tworker\n"), None);
    }
}
