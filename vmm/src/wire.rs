//! The wire between two machines: no uplink, no address of the host, nothing on it but these two.
//!
//! By default a pair of datagram sockets that both QEMUs inherit: a frame is a datagram, there is no path and no process in
//! between, and either machine may start first. `vde_switch` is the way of 2014 and stays possible.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

/// How long vde_switch has until it can be connected to: what the first scripts gave it.
pub const SWITCH_PATIENCE: Duration = Duration::from_secs(20);

/// How often a connection is tried. The switch tells nobody when it is ready.
const AGAIN: Duration = Duration::from_millis(5);

/// Socket addresses have this much room, with a NUL (unix(7)).
const LONGEST_SOCKET: usize = 108;

/// Why there is no wire.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The kernel gives no sockets.
    #[error("making the two ends of a wire: {0}")]
    Sockets(io::Error),
    /// No switch program.
    #[error("{program} cannot be started ({source}): install vde2, or take the default wire")]
    Start {
        /// Which.
        program: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The switch ended at once.
    #[error("the switch {program} ended ({status}) before it could be connected to: {said}")]
    Ended {
        /// Which.
        program: PathBuf,
        /// How.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// It runs, and nobody can connect.
    #[error("the switch in {folder} could not be connected to within {} s: {last}", .limit.as_secs_f32())]
    Late {
        /// Its folder.
        folder: PathBuf,
        /// How long it had.
        limit: Duration,
        /// The last try's answer.
        last: String,
    },
    /// A path that no socket can have.
    #[error("the switch's folder {0} is too long for a socket's address (108 bytes)")]
    LongPath(PathBuf),
}

/// What a wire is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A pair of datagram sockets.
    #[default]
    Dgram,
    /// A `vde_switch` in PATH.
    Vde,
}

/// One end of a wire, for one QEMU, which has it by an inherited socket (or its number) or goes to a switch in this folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End<Socket = OwnedFd> {
    /// A frame in each datagram.
    Datagrams(Socket),
    /// The folder of its sockets.
    Switch(PathBuf),
}

/// A wire that nobody is on yet: its two ends, and what must live as long as it.
///
/// # Errors
/// If the kernel gives no sockets, or there is no switch within [`SWITCH_PATIENCE`].
pub fn between_two(kind: Kind) -> Result<(End, End, Option<Switch>), WireError> {
    match kind {
        Kind::Dgram => datagrams().map(|(one, other)| (End::Datagrams(one), End::Datagrams(other), None)),
        Kind::Vde => {
            let folder = tempfile::tempdir().map_err(WireError::Sockets)?;
            let mut switch = Switch::start(Path::new("vde_switch"), folder.path(), SWITCH_PATIENCE)?;
            switch.place = Some(folder);
            Ok((End::Switch(switch.folder.clone()), End::Switch(switch.folder.clone()), Some(switch)))
        }
    }
}

impl End<RawFd> {
    /// QEMU's words for it.
    pub fn netdev(&self, id: &str) -> String {
        match self {
            // QEMU 7.2 and later.
            Self::Datagrams(descriptor) => format!("dgram,id={id},local.type=fd,local.str={descriptor}"),
            // A comma in a value is written twice.
            Self::Switch(folder) => format!("vde,id={id},sock={}", folder.display().to_string().replace(',', ",,")),
        }
    }
}

/// The two ends of a wire of datagrams, each for one QEMU. Both are closed on exec until whoever starts a QEMU passes one on.
///
/// # Errors
/// If the kernel gives none.
pub fn datagrams() -> Result<(OwnedFd, OwnedFd), WireError> {
    socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| WireError::Sockets(errno.into()))
}

/// A vde_switch, which goes when this is dropped.
#[derive(Debug)]
pub struct Switch {
    child: Child,
    folder: PathBuf,
    /// Where that lies, if it goes with the switch.
    place: Option<tempfile::TempDir>,
}

impl Switch {
    /// Starts it in `folder`, and waits until it can be connected to, for at most `limit` (usually [`SWITCH_PATIENCE`]).
    ///
    /// # Errors
    /// If it cannot be started, ends, or is not there in time; then nothing is left of it.
    pub fn start(program: &Path, folder: &Path, limit: Duration) -> Result<Self, WireError> {
        let control = folder.join("vde.ctl");
        if control.join("ctl").as_os_str().len() >= LONGEST_SOCKET {
            return Err(WireError::LongPath(folder.to_owned()));
        }
        let said = folder.join("vde.log");
        let log = std::fs::File::create(&said);
        let start = |source| WireError::Start { program: program.to_owned(), source };
        let log = log.map_err(start)?;
        let child = Command::new(program)
            .arg("-sock")
            .arg(&control)
            .args(["-mode", "0600", "-dirmode", "0700"])
            // It ends when its standard input does, so that stays open for as long as it is wanted.
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(start)?)
            .stderr(log)
            .spawn()
            .map_err(start)?;
        let mut switch = Self { child, folder: control, place: None };
        let deadline = Instant::now() + limit;
        loop {
            let last = match UnixStream::connect(switch.folder.join("ctl")) {
                Ok(_) => return Ok(switch),
                Err(error) => error.to_string(),
            };
            if let Ok(Some(status)) = switch.child.try_wait() {
                let said = std::fs::read_to_string(&said).unwrap_or_default().trim().to_owned();
                return Err(WireError::Ended { program: program.to_owned(), status, said });
            }
            if Instant::now() >= deadline {
                return Err(WireError::Late { folder: folder.to_owned(), limit, last });
            }
            std::thread::sleep(AGAIN);
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_frame_is_a_datagram_at_the_other_end() {
        let (one, two) = datagrams().unwrap();
        let (one, two) = (UnixDatagram::from(one), UnixDatagram::from(two));
        one.send(b"first").unwrap();
        one.send(b"second").unwrap();
        let mut frame = [0; 100];
        assert_eq!(two.recv(&mut frame).unwrap(), 5);
        assert_eq!(two.recv(&mut frame).unwrap(), 6);
        assert_eq!(End::Datagrams(3).netdev("wire"), "dgram,id=wire,local.type=fd,local.str=3");
        assert_eq!(End::Switch("/a,b".into()).netdev("wire"), "vde,id=wire,sock=/a,,b");
    }

    #[test]
    fn a_switch_is_there_when_it_is_said_to_be_and_goes_with_us() {
        let folder = tempfile::tempdir().unwrap();
        let switch = match Switch::start(Path::new("vde_switch"), folder.path(), SWITCH_PATIENCE) {
            Err(WireError::Start { .. }) => return println!("SKIP: no vde_switch here"),
            started => started.unwrap(),
        };
        let mut control = UnixStream::connect(folder.path().join("vde.ctl/ctl")).unwrap();
        control.write_all(b"alive?").unwrap();
        drop(switch);
        // Its end of the connection is gone with it.
        control.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut rest = Vec::new();
        let _ = control.read_to_end(&mut rest);
        assert!(UnixStream::connect(folder.path().join("vde.ctl/ctl")).is_err());
    }

    #[test]
    fn a_switch_that_does_not_come_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let limit = Duration::from_millis(50);
        let start =
            |program: &str, limit| Switch::start(Path::new(program), folder.path(), limit).unwrap_err().to_string();
        assert!(start("/missing", limit).contains("install vde2"));
        assert!(start("/bin/false", SWITCH_PATIENCE).contains("ended (exit status: 1)"));
        let sleeper = folder.path().join("sleeper");
        std::fs::write(&sleeper, "#!/bin/sh\nexec cat\n").unwrap();
        let executable = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        std::fs::set_permissions(&sleeper, executable).unwrap();
        let told = start(sleeper.to_str().unwrap(), limit);
        assert!(told.contains("could not be connected to within 0.05 s"), "{told}");
    }
}
