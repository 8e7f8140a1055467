//! Sockets for the room that the filter could not judge: made by a process of ours that stands where the caller stands.
//!
//! i386's `socketcall(2)` keeps what it asks for behind a pointer, so the filter hands it to the supervisor, which copies it, judges the
//! copy by the policy, and has the *maker* make the socket. A socket belongs for ever to the network namespace and the credentials of
//! its maker: so that is a process in the room's network and user namespaces, of the room's ids, without capabilities, under the room's
//! own filter. It is in none of the room's other namespaces: nobody there can see it. It is born when it is first asked for, which in
//! most rooms is never, and ends with this value.
//!
//! It has no Landlock domain: nothing that a socket's owner may do is looked up there, but others of the room can not reach an abstract
//! name that a 32-bit program listens on, because a scope ends where the listener is in no domain of one's own.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::doors::{Doors, Resident, hide, start_time};
use super::message::Hatch;
use crate::error::Error;
use crate::layers::cgroup::Cgroup;
use crate::layers::namespaces::Kind;
use crate::layers::seccomp::{self, Choices, SocketMaker, Wanted};
use crate::room::Room;
use crate::sys::process::{self, Forked, close_all_but, exit_now, pidfd_signal};
use crate::sys::{Kernel, Sys, socket};

/// How long the maker may take for one socket: the kernel may load a module for it, and the room may be standing still.
const PATIENCE_MS: u16 = 5_000;

/// Makers that are born for one room: one that died has been killed, for its memory perhaps, and will be again.
const BIRTHS: u32 = 3;

/// What the maker answers; the descriptors come one by one after it.
#[derive(Debug, Serialize, Deserialize)]
enum Made {
    /// So many sockets.
    Sockets(u8),
    /// None, and why.
    Refused(i32),
}

/// A room's sockets, on request.
pub struct Sockets<'a> {
    room: &'a Room,
    first: Pid,
    cgroup: Option<&'a Cgroup>,
    maker: Option<Maker>,
    births: u32,
}

struct Maker {
    pid: Pid,
    pidfd: OwnedFd,
    hatch: Hatch,
}

impl<'a> Sockets<'a> {
    /// For the room of this first process, which is the caller's child and not waited for.
    pub fn new(room: &'a Room, first: Pid, cgroup: Option<&'a Cgroup>) -> Self {
        Self { room, first, cgroup, maker: None, births: 0 }
    }

    fn maker(&mut self) -> Result<&Maker, Error> {
        if self.maker.is_none() {
            if self.births == BIRTHS {
                return Err(Error::supervisor(
                    "making the room's sockets: the process for it was killed",
                    Errno::ECHILD,
                ));
            }
            self.births += 1;
            self.maker = Some(self.bear()?);
        }
        self.maker.as_ref().ok_or_else(|| Error::supervisor("making the room's sockets", Errno::ECHILD))
    }

    fn bear(&self) -> Result<Maker, Error> {
        let say = |errno| Error::supervisor("starting the process that makes the room's sockets", errno);
        let start = start_time(self.first).ok_or_else(|| say(Errno::ESRCH))?;
        let doors = Doors::open(Resident { pid: self.first.as_raw(), start }, self.room)?;
        let (hatch, other) = Hatch::pair().map_err(say)?;
        match process::fork().map_err(say)? {
            Forked::Child => live_as_maker(&doors, &other),
            Forked::Parent { pid, pidfd } => {
                let maker = Maker { pid, pidfd, hatch };
                // What its sockets hold is the room's memory. It waits for the first request until then.
                match self.cgroup.map_or(Ok(()), |group| group.attach(pid)) {
                    Ok(()) => Ok(maker),
                    Err(error) => Err(Error::supervisor(
                        "moving the maker of sockets into the room's control group",
                        std::io::Error::other(error),
                    )),
                }
            }
        }
    }
}

impl SocketMaker for Sockets<'_> {
    fn make(&mut self, wanted: Wanted) -> Result<Vec<OwnedFd>, Errno> {
        let asked = match self.maker() {
            Ok(maker) => maker.ask(wanted),
            Err(_) => Err(Errno::ECHILD),
        };
        asked.unwrap_or_else(|errno| {
            // It no longer says what it is asked.
            self.maker = None;
            Err(errno)
        })
    }

    fn stands_where_the_room_does(&self, thread: Pid) -> bool {
        let place = |pid: Pid, kind: Kind| std::fs::read_link(format!("/proc/{pid}/ns/{}", kind.name())).ok();
        [Kind::User, Kind::Net].into_iter().all(|kind| {
            let its = place(thread, kind);
            its.is_some() && its == place(self.first, kind)
        })
    }
}

impl Maker {
    /// The sockets, or why the kernel made none.
    ///
    /// # Errors
    /// When the maker does not answer.
    fn ask(&self, wanted: Wanted) -> Result<Result<Vec<OwnedFd>, Errno>, Errno> {
        self.hatch.send(&wanted, None)?;
        let listen = || {
            let mut waited = [PollFd::new(self.hatch.as_fd(), PollFlags::POLLIN)];
            loop {
                match poll(&mut waited, PollTimeout::from(PATIENCE_MS)) {
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno),
                    Ok(0) => return Err(Errno::ETIMEDOUT),
                    Ok(_) => return Ok(()),
                }
            }
        };
        listen()?;
        let count = match self.hatch.receive::<Made>()?.ok_or(Errno::ECHILD)? {
            (Made::Refused(errno), _) => return Ok(Err(Errno::from_raw(errno))),
            (Made::Sockets(count), _) => count,
        };
        let mut sockets = Vec::new();
        for _ in 0..count {
            listen()?;
            let ((), socket) = self.hatch.receive::<()>()?.ok_or(Errno::ECHILD)?;
            sockets.push(socket.ok_or(Errno::EBADMSG)?);
        }
        Ok(Ok(sockets))
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        let _ = pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = process::wait(self.pid);
    }
}

fn live_as_maker(doors: &Doors, hatch: &Hatch) -> ! {
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    let held: Vec<_> =
        [doors.owner.as_fd(), hatch.as_fd()].into_iter().chain(doors.second.iter().map(AsFd::as_fd)).collect();
    let others: Vec<_> = doors.others.iter().map(|(_, door)| door.as_fd()).collect();
    close_all_but(&[held, others].concat());
    process::reset_signals();
    if enter(doors).is_err() {
        exit_now(1);
    }
    // The other side's end closes this, if the signal does not come first.
    while let Ok(Some((wanted, _))) = hatch.receive::<Wanted>() {
        let made = socket::make(wanted.family, wanted.kind, wanted.protocol, wanted.pair);
        let (said, sockets) = match made {
            Ok(sockets) => (Made::Sockets(sockets.len() as u8), sockets),
            Err(errno) => (Made::Refused(errno as i32), Vec::new()),
        };
        let told = hatch.send(&said, None);
        let handed = sockets.iter().try_for_each(|socket| hatch.send(&(), Some(socket.as_fd())));
        if told.and(handed).is_err() {
            break;
        }
    }
    exit_now(0)
}

/// To where the payload is, as far as a socket knows, and with nothing that the payload has not.
fn enter(doors: &Doors) -> Result<(), Errno> {
    let kernel = Kernel::default();
    hide()?;
    if nix::unistd::geteuid().is_root() {
        doors.take_ids(&kernel)?;
    }
    kernel.join_namespace(doors.owner.as_fd(), Kind::User.flag())?;
    if let Some((_, door)) = doors.others.iter().find(|(kind, _)| *kind == Kind::Net) {
        kernel.join_namespace(door.as_fd(), Kind::Net.flag())?;
    }
    if let Some(second) = &doors.second {
        kernel.join_namespace(second.as_fd(), Kind::User.flag())?;
    }
    hide()?;
    nix::sys::prctl::set_no_new_privs()?;
    kernel.drop_capabilities()?;
    // The supervisor has judged the request by the same table. Should it ever be wrong, this is not.
    let strict = Choices { record: false, nested: false, compat: false, ignore_chown: false };
    seccomp::load(strict).map_err(|error| error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw))?;
    Ok(())
}
