//! A pseudo-terminal, for a caller that sits at one.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::PATIENCE;
use crate::running::Running;

/// Our end of it, and what runs at the other.
#[derive(Debug)]
pub struct Terminal {
    ours: File,
    /// The program at the other end.
    pub running: Running,
    seen: String,
}

impl Terminal {
    /// Starts a command as the leader of a new session on a new terminal, which is its standard input, output and error.
    pub fn start(command: &Command) -> Self {
        let pair = nix::pty::openpty(None, None).expect("a pseudo-terminal");
        let ours = File::from(pair.master);
        // setsid(1) makes the terminal the controlling one.
        let mut line = Command::new("setsid");
        line.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        line.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let copy = || pair.slave.try_clone().expect("a copy of a descriptor");
        line.stdin(copy()).stdout(copy()).stderr(copy());
        let running = Running::start(line);
        Self { ours, running, seen: String::new() }
    }

    /// Types something.
    pub fn types(&mut self, text: &str) {
        use std::io::Write;
        self.ours.write_all(text.as_bytes()).expect("the terminal takes what is typed");
    }

    /// Gives it another size, of which the program at the other end is told.
    pub fn resize(&self, rows: u16, columns: u16) {
        let mut stty = Command::new("stty");
        stty.args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
        stty.stdin(self.ours.try_clone().expect("a copy of a descriptor"));
        assert!(stty.status().expect("stty").success());
    }

    /// Waits until this is shown; everything that was shown until then.
    #[track_caller]
    pub fn shows(&mut self, text: &str) -> &str {
        self.until(|seen| seen.contains(text), &format!("{text:?}"))
    }

    /// Waits until this is shown somewhere behind what was first shown of something else.
    #[track_caller]
    pub fn shows_behind(&mut self, before: &str, text: &str) {
        let found = |seen: &str| seen.split_once(before).is_some_and(|(_, behind)| behind.contains(text));
        self.until(found, &format!("{text:?} behind {before:?}"));
    }

    #[track_caller]
    fn until(&mut self, found: impl Fn(&str) -> bool, what: &str) -> &str {
        let deadline = Instant::now() + PATIENCE;
        while !found(&self.seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && self.read(left), "{what} was never shown, but {:?}", self.seen);
        }
        &self.seen
    }

    /// Everything that was shown until the other end was closed, and the exit status.
    #[track_caller]
    pub fn to_the_end(mut self) -> (String, i32) {
        let deadline = Instant::now() + PATIENCE;
        while self.read(deadline.saturating_duration_since(Instant::now())) {}
        (self.seen, self.running.to_the_end().status)
    }

    /// Reads what is there within this long; false when there is no more.
    fn read(&mut self, within: Duration) -> bool {
        let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
        let mut waited = [PollFd::new(self.ours.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut waited, timeout), Ok(1)) {
            return false;
        }
        let mut buffer = [0; 4096];
        // Linux says EIO when nobody holds the other end any more.
        match self.ours.read(&mut buffer) {
            Ok(length) if length > 0 => {
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
                true
            }
            _ => false,
        }
    }
}
