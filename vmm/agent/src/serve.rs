//! Doing what is asked.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anchorhold_vmm::report::{Frames, Report, Request, What};
use rustix::time::{ClockId, Timespec};

use crate::port::Port;
use crate::programs::Programs;
use crate::{Doing, Failure, files, network};

/// How long a port that refused is left alone. There is no event for another machine's port that opens.
const AGAIN: Duration = Duration::from_millis(20);

/// How long one connection may say nothing before another is tried.
const SILENT: Duration = Duration::from_secs(5);

/// This guest.
#[derive(Debug)]
pub struct Guest {
    port: Arc<Port>,
    programs: Arc<Programs>,
}

/// What comes of a request at once.
enum Answer {
    /// This, now.
    Now(Report),
    /// It is sent by somebody else.
    Later,
    /// This, and then the machine goes off.
    Last(Report),
}

/// Does what the host asks for until it asks for the end.
pub fn requests(guest: &mut Guest) -> Result<(), Failure> {
    let port = guest.port.clone();
    let mut frames = Frames::new();
    let mut buffer = vec![0; 65536];
    loop {
        frames.feed(port.hear(&mut buffer)?);
        while let Some(message) = frames.next_message().doing(|| "reading from the port".into())? {
            let request = Request::decode(&message).doing(|| "reading from the port".into())?;
            let number = request.number;
            match guest.answer(request) {
                Ok(Answer::Now(report)) => port.say(&report)?,
                Ok(Answer::Later) => {}
                Ok(Answer::Last(report)) => return port.say(&report),
                Err(failure) => port.say(&Report::Failed { number, why: failure.to_string() })?,
            }
        }
    }
}

impl Guest {
    /// With nothing running.
    pub fn new(port: Arc<Port>) -> Self {
        Self { port, programs: Programs::begin() }
    }

    /// Something that the image asks for. A program that it starts goes on, and its output is reported.
    pub fn at_start(&mut self, request: Request) -> Result<(), Failure> {
        self.answer(request).map(drop)
    }

    fn answer(&mut self, request: Request) -> Result<Answer, Failure> {
        let number = request.number;
        let mut answer = Answer::Now(Report::Done { number });
        match request.what {
            What::Ping => {}
            What::Network { interface, address } => network::bring_up(&interface, address)?,
            What::HostName(name) => rustix::system::sethostname(name.as_encoded_bytes())
                .map_err(io::Error::from)
                .doing(|| format!("setting the host name {}", name.display()))?,
            What::Mount(mount) => drop(files::mount_requested(&mount)?),
            What::Cover { with, names, over } => files::cover(&with, &names, &over)?,
            What::Unmount(path) => files::unmount_requested(&path)?,
            What::SwitchRoot(path) => files::switch_root(&path)?,
            What::SetClock { nanoseconds } => {
                let time = Timespec {
                    tv_sec: (nanoseconds / 1_000_000_000) as i64,
                    tv_nsec: (nanoseconds % 1_000_000_000) as i64,
                };
                rustix::time::clock_settime(ClockId::Realtime, time)
                    .map_err(io::Error::from)
                    .doing(|| "setting the clock".into())?;
            }
            What::WriteFile { path, mode, content } => files::write(&path, mode, &content)?,
            What::Run(run) => {
                self.programs.run(&self.port, number, run)?;
                answer = Answer::Later;
            }
            What::Kill { run, signal } => self.programs.kill(run, signal)?,
            What::Input { run, bytes } => self.programs.feed(run, bytes)?,
            What::Feed { run, bytes } => {
                self.programs.feed_piece(run, bytes);
                answer = Answer::Later;
            }
            What::Allow { run, bytes } => {
                self.programs.allow(run, bytes);
                answer = Answer::Later;
            }
            What::Resize { run, size } => self.programs.resize(run, size),
            What::EndSession { run } => {
                self.programs.end_session(run);
                answer = Answer::Later;
            }
            What::AwaitBanner { address, port, banner, milliseconds } => {
                let limit = Duration::from_millis(milliseconds.into());
                let host = self.port.clone();
                thread::spawn(move || {
                    let report = match await_banner(address, port, &banner, limit) {
                        Ok(banner) => Report::Banner { number, banner },
                        Err(failure) => Report::Failed { number, why: failure.to_string() },
                    };
                    // A port that fails ends the guest by the thread that reads from it.
                    let _ = host.say(&report);
                });
                answer = Answer::Later;
            }
            What::Space(path) => {
                let found = rustix::fs::statvfs(&path)
                    .map_err(io::Error::from)
                    .doing(|| format!("looking at the room in {}", path.display()))?;
                let (total, free) =
                    (found.f_blocks.saturating_mul(found.f_frsize), found.f_bavail.saturating_mul(found.f_frsize));
                answer = Answer::Now(Report::Space { number, total, free });
            }
            What::PowerOff => answer = Answer::Last(Report::Done { number }),
        }
        Ok(answer)
    }
}

/// Until a port says what is expected; what it said.
fn await_banner(address: Ipv4Addr, port: u16, banner: &[u8], limit: Duration) -> Result<Vec<u8>, Failure> {
    let to = SocketAddr::from((address, port));
    let deadline = Instant::now() + limit;
    let mut last = String::from("nothing was tried");
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::new(format!("waiting for {to} for {} s", limit.as_secs_f32()), last));
        }
        last = match listen(to, banner, left) {
            Ok(said) => return Ok(said),
            Err(why) => why,
        };
        thread::sleep(AGAIN.min(deadline.saturating_duration_since(Instant::now())));
    }
}

fn listen(to: SocketAddr, banner: &[u8], left: Duration) -> Result<Vec<u8>, String> {
    // An address that nobody has yet does not answer at all, and the kernel's own patience with that is a minute and more.
    let mut stream =
        TcpStream::connect_timeout(&to, left.min(Duration::from_secs(1))).map_err(|error| error.to_string())?;
    if banner.is_empty() {
        return Ok(Vec::new());
    }
    stream.set_read_timeout(Some(left.min(SILENT))).map_err(|error| error.to_string())?;
    let mut said = vec![0; 256];
    let mut length = 0;
    while length < banner.len() {
        match stream.read(&mut said[length..]) {
            Ok(0) => return Err(format!("it hung up after {:?}", String::from_utf8_lossy(&said[..length]))),
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(format!("it answers, and said nothing but {:?}", String::from_utf8_lossy(&said[..length])));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    said.truncate(length);
    if said.starts_with(banner) { Ok(said) } else { Err(format!("it said {:?}", String::from_utf8_lossy(&said))) }
}
