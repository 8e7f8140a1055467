//! The host's end of the port.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Started;
use super::frame::{FrameError, Frames};
use super::message::{Ending, Report, Request, RunRequest, What};

/// Why a conversation cannot go on, or did not give what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ConversationError {
    /// The port itself failed.
    #[error("{doing}: {source}")]
    Port {
        /// What was being done.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The guest's end is gone: QEMU ended, or the machine is off.
    #[error("the guest went away while we waited for {waited_for}; its console may tell why")]
    Gone {
        /// What was due.
        waited_for: String,
    },
    /// Nothing came in time.
    #[error(
        "the guest did not give {waited_for} within {} s; the last it said was: {last}; its console may tell why", .limit.as_secs_f32()
    )]
    Late {
        /// What was due.
        waited_for: String,
        /// How long it had.
        limit: Duration,
        /// Its last report, in words.
        last: String,
    },
    /// What came is not our protocol.
    #[error("the guest's port: {0}")]
    Frame(#[from] FrameError),
    /// The guest said that it could not do it.
    #[error("the guest could not do it: {0}")]
    Failed(String),
    /// The agent gave up.
    #[error("the guest's agent gave up: {0}")]
    Died(String),
}

/// The host's end of a guest's port: a socket whose other end QEMU has.
#[derive(Debug)]
pub struct Conversation {
    port: OwnedFd,
    frames: Frames,
    numbers: u32,
    waiting: VecDeque<Report>,
    last: String,
}

impl Conversation {
    /// Over this socket, which becomes non-blocking.
    ///
    /// # Errors
    /// If it cannot be made so.
    pub fn new(port: OwnedFd) -> Result<Self, ConversationError> {
        rustix::io::ioctl_fionbio(&port, true)
            .map_err(|source| ConversationError::Port { doing: "preparing the guest's port", source: source.into() })?;
        Ok(Self { port, frames: Frames::new(), numbers: 0, waiting: VecDeque::new(), last: "nothing".into() })
    }

    /// The socket, for a caller that waits for several things at once.
    pub fn port(&self) -> &OwnedFd {
        &self.port
    }

    /// Sends a request; its number.
    ///
    /// # Errors
    /// If the guest has not taken it within `limit`, or is gone.
    pub fn ask(&mut self, what: What, limit: Duration) -> Result<u32, ConversationError> {
        self.numbers = self.numbers.wrapping_add(1);
        let bytes = Request { number: self.numbers, what }.encode()?;
        let deadline = Instant::now() + limit;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match rustix::net::send(&self.port, rest, rustix::net::SendFlags::NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::AGAIN) => {
                    // A guest that is itself stuck in a write to us must be able to go on: take what it says meanwhile.
                    self.wait(PollFlags::OUT | PollFlags::IN, deadline, limit, "room for a request")?;
                    self.take_in()?;
                }
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    return Err(ConversationError::Gone { waited_for: "room for a request".into() });
                }
                Err(source) => {
                    return Err(ConversationError::Port {
                        doing: "sending to the guest's port",
                        source: source.into(),
                    });
                }
            }
        }
        Ok(self.numbers)
    }

    /// The next report, in the order in which they were sent; what it is waited for is said when it does not come.
    ///
    /// # Errors
    /// If none comes within `limit`, the guest is gone, or speaks another protocol.
    pub fn next(&mut self, limit: Duration, waited_for: &str) -> Result<Report, ConversationError> {
        self.next_until(Instant::now() + limit, limit, waited_for)
    }

    fn next_until(
        &mut self,
        deadline: Instant,
        limit: Duration,
        waited_for: &str,
    ) -> Result<Report, ConversationError> {
        loop {
            if let Some(report) = self.waiting.pop_front() {
                return Ok(report);
            }
            self.wait(PollFlags::IN, deadline, limit, waited_for)?;
            if !self.take_in()? && self.waiting.is_empty() {
                return Err(ConversationError::Gone { waited_for: waited_for.to_owned() });
            }
        }
    }

    /// Asks, and waits until it is done. What else is reported meanwhile goes to `other`.
    ///
    /// # Errors
    /// If the guest could not do it, did not answer within `limit`, or is gone.
    pub fn request(
        &mut self,
        what: What,
        limit: Duration,
        other: &mut dyn FnMut(Report),
    ) -> Result<Report, ConversationError> {
        let waited_for = format!("an answer to {}", name_of(&what));
        let number = self.ask(what, limit)?;
        let deadline = Instant::now() + limit;
        loop {
            match self.next_until(deadline, limit, &waited_for)? {
                Report::Failed { number: of, why } if of == number => return Err(ConversationError::Failed(why)),
                Report::Died { why } => return Err(ConversationError::Died(why)),
                report if answers(&report) == Some(number) => return Ok(report),
                report => other(report),
            }
        }
    }

    /// Waits until the agent is ready; the release of its kernel, and how long that has run.
    ///
    /// # Errors
    /// If it gave up, is not ready within `limit`, or is gone.
    pub fn ready(&mut self, limit: Duration) -> Result<Started, ConversationError> {
        let deadline = Instant::now() + limit;
        loop {
            match self.next_until(deadline, limit, "its agent to be ready")? {
                Report::Ready { kernel, began, up } => return Ok(Started::of(kernel, began, up)),
                Report::Died { why } => return Err(ConversationError::Died(why)),
                _ => {}
            }
        }
    }

    /// Runs a program to its end. Its output goes to `output`, with whether it is standard error.
    ///
    /// A guest that goes away, gives up, or is not done within `limit` told no status: [`Ending::NoStatus`].
    ///
    /// # Errors
    /// If the request could not be sent at all.
    pub fn run(
        &mut self,
        run: RunRequest,
        limit: Duration,
        output: &mut dyn FnMut(bool, &[u8]),
    ) -> Result<Ending, ConversationError> {
        self.run_beside(run, limit, output, &mut |_| ())
    }

    /// Like [`Self::run`] while other programs run: what is not of this one goes to `other`, the end of a server too.
    ///
    /// # Errors
    /// If the request could not be sent at all.
    pub fn run_beside(
        &mut self,
        run: RunRequest,
        limit: Duration,
        output: &mut dyn FnMut(bool, &[u8]),
        other: &mut dyn FnMut(Report),
    ) -> Result<Ending, ConversationError> {
        let number = self.ask(What::Run(run), limit)?;
        let deadline = Instant::now() + limit;
        loop {
            match self.next_until(deadline, limit, "the status of its command") {
                Ok(Report::Output { number: of, error, bytes }) if of == number => output(error, &bytes),
                Ok(Report::Ended { number: of, ending }) if of == number => return Ok(ending),
                Ok(Report::Failed { number: of, why }) if of == number => return Ok(Ending::NotStarted(why)),
                Ok(Report::Died { why }) => return Ok(Ending::NoStatus(format!("its agent gave up: {why}"))),
                Ok(report) => other(report),
                Err(error) => return Ok(Ending::NoStatus(error.to_string())),
            }
        }
    }

    fn wait(
        &self,
        events: PollFlags,
        deadline: Instant,
        limit: Duration,
        waited_for: &str,
    ) -> Result<(), ConversationError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs().min(1 << 30) as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.port, events)], Some(&timeout)) {
                Ok(0) => {
                    let waited_for = waited_for.to_owned();
                    return Err(ConversationError::Late { waited_for, limit, last: self.last.clone() });
                }
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(source) => {
                    let doing = "waiting for the guest's port";
                    return Err(ConversationError::Port { doing, source: source.into() });
                }
            }
        }
    }

    /// Takes in what is there; whether the other end is still there.
    fn take_in(&mut self) -> Result<bool, ConversationError> {
        let mut buffer = [0; 65536];
        let there = match rustix::io::read(&self.port, &mut buffer) {
            Ok(0) | Err(Errno::CONNRESET) => false,
            Ok(length) => {
                self.frames.feed(&buffer[..length]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(source) => {
                let doing = "reading the guest's port";
                return Err(ConversationError::Port { doing, source: source.into() });
            }
        };
        while let Some(message) = self.frames.next_message()? {
            let report = Report::decode(&message)?;
            self.last = in_words(&report);
            self.waiting.push_back(report);
        }
        Ok(there)
    }
}

fn answers(report: &Report) -> Option<u32> {
    match report {
        Report::Done { number }
        | Report::Failed { number, .. }
        | Report::Ended { number, .. }
        | Report::Banner { number, .. }
        | Report::Space { number, .. } => Some(*number),
        Report::Ready { .. }
        | Report::Progress(_)
        | Report::Output { .. }
        | Report::Taken { .. }
        | Report::Died { .. } => None,
    }
}

fn name_of(what: &What) -> String {
    match what {
        What::Ping => "a sign of life".into(),
        What::Network { interface, .. } => format!("bringing {interface} up"),
        What::HostName(_) => "setting its name".into(),
        What::Mount(mount) => format!("mounting {} at {}", mount.source.display(), mount.target.display()),
        What::Unmount(path) => format!("unmounting {}", path.display()),
        What::SwitchRoot(path) => format!("switching its root to {}", path.display()),
        What::SetClock { .. } => "setting its clock".into(),
        What::WriteFile { path, .. } => format!("writing {}", path.display()),
        What::Run(_) => "running a command".into(),
        What::Kill { .. } | What::EndSession { .. } => "killing a command".into(),
        What::Input { .. } | What::Feed { .. } => "giving a command its input".into(),
        What::Allow { .. } => "letting a command say more".into(),
        What::Resize { .. } => "giving a terminal its size".into(),
        What::AwaitBanner { address, port, .. } => format!("waiting for {address}:{port}"),
        What::Space(path) => format!("looking at the room in {}", path.display()),
        What::PowerOff => "powering off".into(),
        What::Cover { over, .. } => format!("showing parts of {}", over.display()),
    }
}

fn in_words(report: &Report) -> String {
    match report {
        Report::Output { bytes, .. } => {
            let text = String::from_utf8_lossy(bytes);
            let line = text.trim_end().lines().next_back().unwrap_or_default();
            format!("output, {:?}", line.chars().take(200).collect::<String>())
        }
        Report::Progress(text) => format!("{:?}", text.chars().take(200).collect::<String>()),
        other => format!("{other:?}").chars().take(200).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Command;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    const SOON: Duration = Duration::from_millis(50);

    fn pair() -> (Conversation, UnixStream) {
        let (ours, guests) = UnixStream::pair().unwrap();
        (Conversation::new(ours.into()).unwrap(), guests)
    }

    fn a_run() -> RunRequest {
        RunRequest {
            command: Ok(Command::new("/bin/true")),
            user: None,
            streams: super::super::Streams::Apart,
            alone: true,
        }
    }

    #[test]
    fn output_that_looks_like_a_status_is_output() {
        let (mut host, mut guest) = pair();
        let fake = Report::Ended { number: 1, ending: Ending::Exited(0) }.encode().unwrap();
        guest.write_all(&Report::Output { number: 1, error: false, bytes: fake.clone() }.encode().unwrap()).unwrap();
        guest.write_all(&Report::Ended { number: 1, ending: Ending::Exited(7) }.encode().unwrap()).unwrap();
        let mut seen = Vec::new();
        let ending = host.run(a_run(), SOON, &mut |_, bytes| seen.extend(bytes)).unwrap();
        assert_eq!((ending, seen), (Ending::Exited(7), fake));
    }

    #[test]
    fn a_status_that_never_came_is_no_number() {
        let (mut host, guest) = pair();
        let Ending::NoStatus(why) = host.run(a_run(), SOON, &mut |_, _| ()).unwrap() else { panic!() };
        assert!(why.contains("within 0.05 s") && why.contains("the last it said was: nothing"), "{why}");
        let mut guest_gone = host;
        drop(guest);
        let ending = guest_gone.run(a_run(), SOON, &mut |_, _| ());
        assert!(matches!(&ending, Ok(Ending::NoStatus(_)) | Err(ConversationError::Gone { .. })), "{ending:?}");
    }

    #[test]
    fn a_console_on_the_wrong_port_is_named() {
        let (mut host, mut guest) = pair();
        guest.write_all(b"Booting Linux").unwrap();
        let error = host.ready(SOON).unwrap_err().to_string();
        assert!(error.contains("speaks something else"), "{error}");
    }

    #[test]
    fn what_was_said_before_the_end_is_heard() {
        let (mut host, mut guest) = pair();
        guest.write_all(&Report::Died { why: "no store".into() }.encode().unwrap()).unwrap();
        drop(guest);
        let error = host.ready(SOON).unwrap_err().to_string();
        assert_eq!(error, "the guest's agent gave up: no store");
    }

    #[test]
    fn a_failed_request_tells_why_and_others_are_passed_on() {
        let (mut host, mut guest) = pair();
        guest.write_all(&Report::Progress("looking".into()).encode().unwrap()).unwrap();
        guest.write_all(&Report::Done { number: 77 }.encode().unwrap()).unwrap();
        guest.write_all(&Report::Failed { number: 1, why: "no such device".into() }.encode().unwrap()).unwrap();
        let mut others = 0;
        let error = host.request(What::Ping, SOON, &mut |_| others += 1).unwrap_err().to_string();
        assert_eq!((&error[..], others), ("the guest could not do it: no such device", 2));
    }
}
