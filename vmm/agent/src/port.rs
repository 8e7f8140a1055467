//! The port to the host.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anchorhold_vmm::report::{PORT_NAME, Report};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::devices::Events;
use crate::{Doing, Failure};

/// How long the port may take to appear after its driver is loaded.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a port without a host is looked at again. The kernel has no event for it that poll(2) would tell: it says
/// "hung up" at once for as long as nobody is there.
const NOBODY_THERE: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// The port to the host, of which there is one.
#[derive(Debug)]
pub struct Port {
    device: File,
    /// Held for a whole frame: several threads say something.
    saying: Mutex<()>,
}

impl Port {
    /// Finds it by its name.
    pub fn open(events: &Events) -> Result<Self, Failure> {
        let path = events.wait_until(PATIENCE, &format!("the port {PORT_NAME}"), find)?;
        // Not blocking, since a blocking write keeps the processor spinning inside the kernel until the host has read.
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(&path)
            .doing(|| format!("opening {}", path.display()))?;
        Ok(Self { device, saying: Mutex::new(()) })
    }

    /// Says something, and waits until the host's end has taken it.
    pub fn say(&self, report: &Report) -> Result<(), Failure> {
        let frame = report.encode().doing(|| "making a report".into())?;
        let _held = self.saying.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = &frame[..];
        while !rest.is_empty() {
            match (&self.device).write(rest) {
                Ok(0) => return Err(Failure::new("writing to the port", "it takes nothing")),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::OUT)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::new("writing to the port", error)),
            }
        }
        Ok(())
    }

    /// The next bytes from the host.
    pub fn hear<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a [u8], Failure> {
        loop {
            match (&self.device).read(buffer) {
                // Nobody is at the other end.
                Ok(0) => self.wait(PollFlags::IN)?,
                Ok(length) => return Ok(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::IN)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::new("reading from the port", error)),
            }
        }
    }

    fn wait(&self, event: PollFlags) -> Result<(), Failure> {
        let mut waited = [PollFd::new(&self.device, event)];
        match poll(&mut waited, None) {
            Ok(_) if waited[0].revents().intersects(event) => Ok(()),
            // Hung up: an empty list of descriptors is a sleep.
            Ok(_) => poll(&mut [], Some(&NOBODY_THERE)).map(drop).or_else(interrupted).doing(|| "waiting".into()),
            Err(errno) => interrupted(errno).doing(|| "waiting for the port".into()),
        }
    }
}

fn interrupted(errno: rustix::io::Errno) -> Result<(), io::Error> {
    if errno == rustix::io::Errno::INTR { Ok(()) } else { Err(errno.into()) }
}

fn find() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    for port in ports.filter_map(Result::ok) {
        // The name comes in a message of its own, after the port.
        let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            let device = PathBuf::from("/dev").join(port.file_name());
            return device.exists().then_some(device);
        }
    }
    None
}
