//! The QEMU process: started so that it dies with us, watched by a pidfd, what it says caught and bounded.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use anchorhold_sandbox::sys::tied;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::lines::Lines;

/// How many bytes of what QEMU itself says are looked at. It is silent when all is well.
const MAX_SAID: usize = 64 << 10;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        status.code().map(Self::Status).unwrap_or_else(|| Self::Signal(status.signal().unwrap_or_default()))
    }
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Clock ticks outside the kernel.
    pub user_ticks: u64,
    /// Clock ticks in the kernel.
    pub system_ticks: u64,
    /// Bytes that went through its reads and writes, whether from a disk or not.
    pub transferred: u64,
    /// Nanoseconds in which a thread of it could have run and had no processor.
    pub starved: u64,
}

/// A running QEMU. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
    said: OwnedFd,
    said_bytes: usize,
    lines: Lines,
    last: VecDeque<String>,
    exit: Option<Exit>,
}

impl Process {
    /// Starts `command` with these descriptors open in it. The kernel kills it when the calling thread ends.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(mut command: Command, descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let (said, says) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&said, rustix::fs::OFlags::NONBLOCK)?;
        command.stdin(Stdio::null()).stdout(says.try_clone()?).stderr(says);
        // Keys typed at our terminal are for us.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        tied::tie(&mut command, descriptors);
        let mut child = command.spawn()?;
        // With it go our ends of what only QEMU is to hold: else we would never see them closed.
        drop(command);
        let pid = Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })?;
        Ok(Self { child, pidfd, said, said_bytes: 0, lines: Lines::default(), last: VecDeque::new(), exit: None })
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Readable when it has ended.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable when it has said something.
    pub fn said(&self) -> BorrowedFd<'_> {
        self.said.as_fd()
    }

    /// Takes what it has said.
    pub fn listen(&mut self) {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = rustix::io::read(&self.said, &mut piece) {
            self.said_bytes = self.said_bytes.saturating_add(length);
            if self.said_bytes > MAX_SAID {
                continue;
            }
            for line in self.lines.feed(&piece[..length]) {
                if self.last.len() == crate::console::KEPT_LINES {
                    self.last.pop_front();
                }
                self.last.push_back(line);
            }
        }
    }

    /// The last lines that it said.
    pub fn last_lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.last.iter().cloned().collect();
        lines.extend(self.lines.begun());
        lines
    }

    /// How it ended, if it has, without waiting.
    pub fn exit(&mut self) -> Option<Exit> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().ok().flatten().map(Exit::from);
        }
        self.exit
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) -> Exit {
        if let Some(exit) = self.exit() {
            return exit;
        }
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let exit = self.child.wait().map_or(Exit::Signal(Signal::KILL.as_raw()), Exit::from);
        self.exit = Some(exit);
        exit
    }

    /// What it has used until now; nothing when `/proc` does not say.
    pub fn usage(&self) -> Option<Usage> {
        let stat = std::fs::read(format!("/proc/{}/stat", self.id())).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse().ok();
        let (user_ticks, system_ticks) = (ticks()?, ticks()?);
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.id())).unwrap_or_default();
        let number = |key| io.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok()).unwrap_or(0);
        Some(Usage {
            user_ticks,
            system_ticks,
            transferred: number("rchar:") + number("wchar:"),
            starved: self.starved(),
        })
    }

    /// The second field of each thread's schedstat: `Documentation/scheduler/sched-stats.rst` of Linux.
    fn starved(&self) -> u64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.id())).into_iter().flatten().flatten();
        let waited = |thread: std::fs::DirEntry| -> Option<u64> {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split_ascii_whitespace().nth(1)?.parse().ok()
        };
        threads.filter_map(waited).sum()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
