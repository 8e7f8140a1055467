//! Devices: the kernel's announcements of them, and finding disks by their serial numbers.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::{Doing, Failure};

/// What the kernel announces, from when this was opened.
#[derive(Debug)]
pub struct Events {
    socket: OwnedFd,
}

impl Events {
    /// Listens from now on.
    pub fn open() -> Result<Self, Failure> {
        let doing = || "listening for devices".to_owned();
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(KOBJECT_UEVENT),
        )
        .map_err(io::Error::from)
        .doing(doing)?;
        // Group 1 is the kernel's own announcements.
        bind(&socket, &SocketAddrNetlink::new(0, 1)).map_err(io::Error::from).doing(doing)?;
        Ok(Self { socket })
    }

    /// Looks for something whenever a device was announced, until it is there.
    pub fn wait_until<T>(
        &self,
        patience: Duration,
        what: &str,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + patience;
        loop {
            self.drain();
            if let Some(found) = look() {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => {
                    let why =
                        format!("it did not appear within {} s; is the device in the machine?", patience.as_secs());
                    return Err(Failure::new(format!("waiting for {what}"), why));
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Failure::new(format!("waiting for {what}"), io::Error::from(errno))),
            }
        }
    }

    /// What was announced is of no interest, only that something was. An overrun (ENOBUFS) is an announcement too.
    fn drain(&self) {
        let mut buffer = [0; 4096];
        while !matches!(recv(&self.socket, &mut buffer, RecvFlags::empty()), Err(rustix::io::Errno::AGAIN)) {}
    }
}

/// The disk with this serial number; of `NUMBER:PARTITION` that partition of it.
pub fn by_serial(wanted: &str) -> Option<PathBuf> {
    let (serial, partition) = wanted.split_once(':').unwrap_or((wanted, ""));
    let disks = fs::read_dir("/sys/class/block").ok()?;
    for disk in disks.filter_map(Result::ok) {
        let found = fs::read_to_string(disk.path().join("serial")).unwrap_or_default();
        if found.trim_end() == serial {
            let mut name = disk.file_name();
            name.push(partition);
            let device = PathBuf::from("/dev").join(name);
            return device.exists().then_some(device);
        }
    }
    None
}
