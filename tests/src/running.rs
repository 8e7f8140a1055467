//! A program that is at work: read line by line, given signals, waited for with a deadline.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;
use crate::host;
use crate::probe;
use crate::room::Ended;

enum Heard {
    Output(Vec<u8>),
    Error(Vec<u8>),
    /// One of the two streams is at its end.
    Closed,
}

/// It is killed, with all that it started in rooms, when this is dropped early.
#[derive(Debug)]
pub struct Running {
    child: Child,
    heard: Receiver<Heard>,
    open: usize,
    lines: std::collections::VecDeque<String>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Running {
    /// Starts a command whose standard output and error are pipes.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (sender, heard) = channel();
        let mut open = 0;
        if let Some(stdout) = child.stdout.take() {
            open += 1;
            listen(stdout, sender.clone(), Heard::Output);
        }
        if let Some(stderr) = child.stderr.take() {
            open += 1;
            listen(stderr, sender, Heard::Error);
        }
        let lines = std::collections::VecDeque::new();
        Self { child, heard, open, lines, stdout: Vec::new(), stderr: Vec::new() }
    }

    /// The process id of the supervisor.
    pub fn pid(&self) -> i32 {
        self.child.id().try_into().expect("process ids are small")
    }

    /// The other end of its standard input.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The next line of its standard output.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.lines.pop_front() {
                return line;
            }
            assert!(self.open > 0, "no more lines: {}", String::from_utf8_lossy(&self.stderr));
            self.hear(deadline);
        }
    }

    /// Sends a signal to the supervisor.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the supervisor is our child");
    }

    /// The processes of the room and the warden, as the host sees them.
    pub fn processes(&self) -> Vec<host::Process> {
        host::descendants(self.pid())
    }

    /// The probe in the room, as the host sees it.
    #[track_caller]
    pub fn payload(&self) -> host::Process {
        let all = self.processes();
        let is_probe = |process: &&host::Process| process.command_line().starts_with(probe::INSIDE);
        all.iter().find(is_probe).unwrap_or_else(|| panic!("no probe among {all:?}")).clone()
    }

    /// Waits until it has ended and both its streams are closed.
    #[track_caller]
    pub fn to_the_end(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        while self.open > 0 {
            self.hear(deadline);
        }
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        assert!(host::wait_for_end(self.pid(), left), "it closed its streams and did not end");
        let status = self.child.wait().expect("our child");
        Ended {
            status: number(status),
            stdout: String::from_utf8_lossy(&self.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&self.stderr).into_owned(),
        }
    }

    #[track_caller]
    fn hear(&mut self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.heard.recv_timeout(left) {
            Ok(Heard::Output(line)) => {
                let text = String::from_utf8_lossy(&line);
                self.lines.push_back(text.strip_suffix('\n').unwrap_or(&text).to_owned());
                self.stdout.extend(line);
            }
            Ok(Heard::Error(line)) => self.stderr.extend(line),
            Ok(Heard::Closed) => self.open -= 1,
            Err(RecvTimeoutError::Disconnected) => self.open = 0,
            Err(RecvTimeoutError::Timeout) => panic!(
                "hung; so far it had said {:?} and {:?}",
                String::from_utf8_lossy(&self.stdout),
                String::from_utf8_lossy(&self.stderr)
            ),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // The warden needs a moment to end the room; whoever looks for processes that a test left must not see it in that moment.
        let processes = self.processes();
        let _ = self.child.kill();
        let _ = self.child.wait();
        for process in processes {
            host::wait_for_end(process.pid, PATIENCE);
        }
    }
}

fn number(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

fn listen(stream: impl Read + Send + 'static, sender: Sender<Heard>, heard: fn(Vec<u8>) -> Heard) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            let more = matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0);
            let said = if more { heard(line) } else { Heard::Closed };
            if sender.send(said).is_err() || !more {
                return;
            }
        }
    });
}
