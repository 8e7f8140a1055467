//! The payload's streams: made before the fork, read by the supervisor.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{Mode, fchmod, fstat};

use super::Stream;
use crate::error::Error;
use crate::room::{Output, Room, Stdin};
use crate::site::Streams;

/// The supervisor's ends.
#[derive(Debug, Default)]
pub struct Pump {
    /// What is read, while it is open.
    pub sources: Vec<(Stream, OwnedFd)>,
    /// The master of the room's terminal.
    pub terminal: Option<OwnedFd>,
}

impl Pump {
    /// Both ends of what the room asks for: the payload's, and ours.
    pub fn make(room: &Room) -> Result<(Streams, Self), Error> {
        let say = |errno: Errno| Error::supervisor("making the command's standard streams", errno);
        let mut streams = Streams::default();
        let mut pump = Self::default();
        match room.process.output {
            Output::Inherit => {}
            Output::Pipe => {
                let (ours, theirs) = pipe().map_err(say)?;
                // Two pipes lose the order between the streams. Where both of ours are one file (a terminal, a log), so are the payload's.
                if same_file(1, 2) {
                    streams.stderr =
                        Some(theirs.try_clone().map_err(|error| Error::supervisor("copying a descriptor", error))?);
                } else {
                    let (our_error, their_error) = pipe().map_err(say)?;
                    streams.stderr = Some(their_error);
                    pump.add(Stream::Error, our_error).map_err(say)?;
                }
                streams.stdout = Some(theirs);
                pump.add(Stream::Output, ours).map_err(say)?;
            }
            // The room opens it itself, in its own devpts, and hands the master out: see `take_terminal`.
            Output::Terminal | Output::Log => {}
        }
        if room.process.output != Output::Terminal && room.process.stdin == Stdin::Null {
            let null = nix::fcntl::open(Path::new("/dev/null"), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
            streams.stdin = Some(null.map_err(|errno| Error::supervisor("opening /dev/null", errno))?);
        }
        Ok((streams, pump))
    }

    /// Takes the master of the terminal that the room has opened.
    pub fn take_terminal(&mut self, room: &Room, master: OwnedFd) -> Result<(), Error> {
        let say = |errno: Errno| Error::supervisor("taking the room's terminal", errno);
        if room.process.output == Output::Terminal {
            if let Ok(size) = crate::sys::device::window_size(std::io::stdin().as_fd()) {
                crate::sys::device::set_window_size(master.as_fd(), &size).map_err(say)?;
            }
            let copy = master.try_clone().map_err(|error| Error::supervisor("copying a descriptor", error))?;
            self.terminal = Some(copy);
        }
        self.add(Stream::Output, master).map_err(say)
    }

    fn add(&mut self, stream: Stream, source: OwnedFd) -> nix::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(&source, FcntlArg::F_GETFL)?);
        fcntl(&source, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        self.sources.push((stream, source));
        Ok(())
    }
}

/// What one reading gave.
pub enum Read {
    /// So many bytes.
    Some(usize),
    /// None now.
    Later,
    /// No more ever.
    End,
}

/// Reads what is there.
pub fn read(source: &OwnedFd, buffer: &mut [u8]) -> Result<Read, Errno> {
    loop {
        return match nix::unistd::read(source, buffer) {
            Ok(0) => Ok(Read::End),
            Ok(length) => Ok(Read::Some(length)),
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => Ok(Read::Later),
            // A terminal's master says so when the last descriptor of the other side is closed.
            Err(Errno::EIO) => Ok(Read::End),
            Err(errno) => Err(errno),
        };
    }
}

/// A pipe that the payload can also open by name: a shell's `> /dev/stderr` and `tee /dev/stderr` open the pipe anew, which asks
/// for its mode, and the room's ids are others than ours. Only who can look into a process that holds it finds it at all.
fn pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fchmod(&theirs, Mode::from_bits_retain(0o622))?;
    Ok((ours, theirs))
}

fn same_file(one: i32, other: i32) -> bool {
    let number = |stream| match stream {
        1 => fstat(std::io::stdout().as_fd()),
        _ => fstat(std::io::stderr().as_fd()),
    };
    match (number(one), number(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino, one.st_rdev) == (other.st_dev, other.st_ino, other.st_rdev),
        _ => false,
    }
}
