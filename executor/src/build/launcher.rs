//! Launcher processes: a room is entered only from a process with one thread, and the executor has many.
//!
//! A launcher is this same program started again (`anchorhold launch`). It takes one order after the other over a socket that
//! is its standard input, enters a room for each, and hands back what the payload wrote and how it ended. When we die, it dies,
//! and its room with it.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anchorhold_sandbox::host::Wanted;
use anchorhold_sandbox::launcher::{Options, Sink, Stream};
use anchorhold_sandbox::layers::seccomp::Refused;
use anchorhold_sandbox::outcome::{Account, End};
use anchorhold_sandbox::room::NetworkMode;
use anchorhold_sandbox::{Error, Host, Launcher, Layer, Outcome, Plan, Room};
use serde::{Deserialize, Serialize};

/// The hidden subcommand by which a launcher is started.
pub const SUBCOMMAND: &str = "launch";

/// The longest order or report: arguments and environment are far below it, because the kernel's own bound is 128 KiB for one
/// of them and a quarter of the stack for all.
const MAX_MESSAGE: usize = 64 << 20;

/// The longest piece of output in one frame.
const MAX_OUTPUT: usize = 64 << 10;

/// What happened to a room.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// The payload ran.
    Ended(Box<Ended>),
    /// It did not, or its room could not be watched to the end.
    Failed(Failed),
}

/// How a payload ended: an [`Outcome`], with its seal as the text that is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ended {
    /// What ended it.
    pub end: End,
    /// What it used.
    pub account: Account,
    /// What its system call filter refused, most frequent first.
    pub refused: Vec<Refused>,
    /// Refusals beyond those that are told apart.
    pub refused_others: u64,
    /// What was proved of the room before the payload ran.
    pub seal: serde_json::Value,
}

/// Why a payload did not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
#[error("{message}")]
pub struct Failed {
    /// Which kind of failure.
    pub kind: FailureKind,
    /// The layer that refuses or failed, where it is one.
    pub layer: Option<Layer>,
    /// The whole sentence.
    pub message: String,
}

/// Kinds of failures before a payload runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// What was asked for is refused; nothing was touched.
    Refused,
    /// The kernel did not let us, or does not show what was set up.
    SetUp,
    /// The room stood, and the payload could not be executed.
    NotExecutable,
    /// A signal ended the set-up.
    Interrupted,
    /// The launcher itself failed.
    Launcher,
}

impl Failed {
    fn of(error: &Error, room: &Room) -> Self {
        let (kind, layer) = match error {
            Error::Refused(refusal) => (FailureKind::Refused, Some(refusal.layer)),
            Error::SetUp(failure) => (FailureKind::SetUp, Some(failure.layer)),
            Error::NotSealed { layer, .. } => (FailureKind::SetUp, Some(*layer)),
            Error::SetUpDied { .. } => (FailureKind::SetUp, None),
            Error::Exec { .. } => (FailureKind::NotExecutable, None),
            Error::Interrupted { .. } => (FailureKind::Interrupted, None),
            Error::ManyThreads { .. } | Error::Supervisor { .. } => (FailureKind::Launcher, None),
        };
        Self { kind, layer, message: format!("{error}{}", without_network(error, room)) }
    }

    fn launcher(doing: &str, error: &io::Error) -> Self {
        Self { kind: FailureKind::Launcher, layer: None, message: format!("the launcher: {doing}: {error}") }
    }
}

/// One launcher process, for one room at a time.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    socket: UnixStream,
}

impl Worker {
    /// Starts a launcher. The kernel ends it when the calling *thread* ends, so that thread must live as long as the worker.
    ///
    /// # Errors
    /// When no process can be started.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg0("anchorhold")
            .arg(SUBCOMMAND)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            // Keys typed at our terminal are for us: we end the rooms, and say so.
            .process_group(0)
            .spawn()?;
        Ok(Self { child, socket: ours })
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Enters `room` and waits for its end. What the payload writes is given to `output` as it comes, standard output and error
    /// alike; when that fails, the room is ended and the failure is the answer.
    ///
    /// # Errors
    /// When the launcher is gone, or `output` fails. The worker must not be used again then.
    pub fn run(&mut self, room: &Room, output: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<Report> {
        send(&mut self.socket, Frame::Message, &serde_json::to_vec(room)?)?;
        let mut piece = Vec::new();
        loop {
            match receive(&mut self.socket, &mut piece)? {
                Some(Frame::Output) => output(&piece)?,
                Some(Frame::Message) => return Ok(serde_json::from_slice(&piece)?),
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the launcher process ended")),
            }
        }
    }

    /// What ends the worker and its room from another thread.
    pub fn handle(&self) -> io::Result<Handle> {
        Ok(Handle(self.socket.try_clone()?))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Its room goes with it: the room's warden waits for that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends a worker from another thread: its `run` then fails.
#[derive(Debug)]
pub struct Handle(UnixStream);

impl Handle {
    /// Cuts the connection.
    pub fn end(&self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

/// The launcher's side: takes orders from standard input until it is closed.
///
/// # Errors
/// When an order cannot be read, or its answer cannot be written.
pub fn serve() -> io::Result<()> {
    // Before anything else, and then looked at: the parent may have died before we asked.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let mut socket = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    // Rooms inherit standard input only when they ask for it, and ours is the way to our parent.
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    let mut order = Vec::new();
    while let Some(frame) = receive(&mut socket, &mut order)? {
        if frame != Frame::Message {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an order was expected"));
        }
        let report = enter(&serde_json::from_slice(&order)?, &mut socket);
        send(&mut socket, Frame::Message, &serde_json::to_vec(&report)?)?;
    }
    Ok(())
}

/// What this host has of what a room depends on.
pub fn host_for(room: &Room) -> Host {
    let limits = &room.limits;
    Host::probe(Wanted {
        kvm: room.devices.kvm,
        range: room.identity.outside == anchorhold_sandbox::room::Outside::Range,
        cgroups: limits.account
            || limits.memory.is_some()
            || limits.pids.is_some()
            || limits.cpu.is_some()
            || limits.cpu_weight.is_some()
            || limits.io_weight.is_some(),
        way_out: room.network_mode() == NetworkMode::Pasta,
    })
}

/// How a build can do without the network that its room could not be given. Begins with a separator; nothing if it is not that
/// which failed.
pub(crate) fn without_network(error: &Error, room: &Room) -> &'static str {
    let layer = match error {
        Error::Refused(refusal) => refusal.layer,
        Error::SetUp(failure) => failure.layer,
        _ => return "",
    };
    if layer == Layer::Network && room.network_mode() == NetworkMode::Pasta {
        "; or say `--option network none`: builds whose hash is declared then get no network like all others, which is enough \
         for those that fetch nothing, or whose sources are at hand"
    } else {
        ""
    }
}

fn enter(room: &Room, socket: &mut UnixStream) -> Report {
    let host = host_for(room);
    let plan = match Plan::compile(room, &host) {
        Ok(plan) => plan,
        Err(refusal) => return Report::Failed(Failed::of(&refusal.into(), room)),
    };
    match Launcher::new(&plan, Options::default()).run(&mut Forward(socket)) {
        Ok(Outcome { end, account, refused, refused_others, seal, timings: _ }) => match serde_json::to_value(&seal) {
            Ok(seal) => Report::Ended(Box::new(Ended { end, account, refused, refused_others, seal })),
            Err(error) => Report::Failed(Failed::launcher("writing the seal", &error.into())),
        },
        Err(error) => Report::Failed(Failed::of(&error, room)),
    }
}

/// Output on its way to the executor.
struct Forward<'a>(&'a mut UnixStream);

impl Sink for Forward<'_> {
    fn output(&mut self, _: Stream, bytes: &[u8]) -> io::Result<()> {
        bytes.chunks(MAX_OUTPUT).try_for_each(|piece| send(self.0, Frame::Output, piece))
    }
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// JSON: an order, or a report.
    Message,
    /// Bytes that the payload wrote.
    Output,
}

fn send(socket: &mut UnixStream, frame: Frame, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= MAX_MESSAGE);
    let Some(length) = length else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message to a launcher is too long"));
    };
    let mut head = [0; 5];
    head[0] = match frame {
        Frame::Message => b'm',
        Frame::Output => b'o',
    };
    head[1..].copy_from_slice(&length.to_le_bytes());
    socket.write_all(&head)?;
    socket.write_all(bytes)
}

/// The next frame, its bytes in `bytes`; nothing when the other side has closed.
fn receive(socket: &mut UnixStream, bytes: &mut Vec<u8>) -> io::Result<Option<Frame>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "a launcher's message is damaged");
    let mut head = [0; 5];
    match socket.read(&mut head[..1])? {
        0 => return Ok(None),
        _ => socket.read_exact(&mut head[1..])?,
    }
    let frame = match head[0] {
        b'm' => Frame::Message,
        b'o' => Frame::Output,
        _ => return Err(invalid()),
    };
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let most = if frame == Frame::Output { MAX_OUTPUT } else { MAX_MESSAGE };
    if length > most {
        return Err(invalid());
    }
    bytes.clear();
    // Not set aside in advance: only what really comes takes memory.
    let read = socket.take(length as u64).read_to_end(bytes)?;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(frame))
}

#[cfg(test)]
mod tests {
    use anchorhold_sandbox::Refusal;
    use anchorhold_sandbox::room::Network;

    use super::*;

    #[test]
    fn who_cannot_have_the_network_is_told_how_to_do_without() {
        let refused =
            |layer| Error::Refused(Refusal::new(layer, "network pasta: /dev/net/tun", "it is closed", "open it"));
        let fetching =
            Room { network: Network { mode: Some(NetworkMode::Pasta), ..Network::default() }, ..Room::default() };
        let told = Failed::of(&refused(Layer::Network), &fetching).message;
        assert!(told.contains("/dev/net/tun") && told.contains("`--option network none`"), "{told}");
        for (error, room) in [(refused(Layer::Network), Room::default()), (refused(Layer::Limits), fetching)] {
            assert!(!Failed::of(&error, &room).message.contains("--option"));
        }
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        send(&mut one, Frame::Output, b"abc").unwrap();
        send(&mut one, Frame::Message, b"").unwrap();
        drop(one);
        let mut bytes = Vec::new();
        assert_eq!(receive(&mut other, &mut bytes).unwrap(), Some(Frame::Output));
        assert_eq!(bytes, b"abc");
        assert_eq!(receive(&mut other, &mut bytes).unwrap(), Some(Frame::Message));
        assert!(bytes.is_empty());
        assert_eq!(receive(&mut other, &mut bytes).unwrap(), None);
    }

    #[test]
    fn damaged_frames_are_errors() {
        for bytes in [&b"x\0\0\0\0"[..], b"m\x01\0\0\0", b"m\0\0", b"o\xff\xff\xff\xff", b"m\xff\xff\xff\xff"] {
            let (mut one, mut other) = UnixStream::pair().unwrap();
            one.write_all(bytes).unwrap();
            drop(one);
            assert!(receive(&mut other, &mut Vec::new()).is_err(), "{bytes:?}");
        }
    }
}
