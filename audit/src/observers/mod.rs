//! What is outside and watches. Everything is made anew for each sandbox, has the nonce of that run in its name, and is taken
//! away when dropped.
//!
//! Here are those that need no raw calls and no launcher's user: sockets, and files. The rest (keys, shared memory, the victim,
//! the terminal, the inherited descriptor, survivors) is set up by the launcher's parent, `anchorhold-probe observe`; see
//! [`launcher`].

mod abstract_socket;
pub mod canary;
mod dialler;
pub mod launcher;
mod listener;
mod path_socket;
mod tcp_listener;
mod traces;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anchorhold_probe::world::World;

use crate::error::Error;

/// Something that was seen from outside and that shows a probe's hole open, whatever the probe itself could tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The probe.
    pub id: &'static str,
    /// What was seen.
    pub detail: String,
}

/// The variable of the launcher's environment that holds the nonce.
pub const VARIABLE: &str = "ANCHORHOLD_AUDIT_MARK";

/// All observers of one run that live in this process.
#[derive(Debug)]
pub struct Observers {
    abstract_socket: abstract_socket::AbstractSocket,
    dialler: dialler::Dialler,
    path_socket: path_socket::PathSocket,
    tcp: tcp_listener::TcpListener,
    /// None on a host without version 6.
    tcp6: Option<tcp_listener::TcpListener>,
    canary: canary::Canary,
    nonce: String,
}

impl Observers {
    /// Sets them up. `folder` is theirs, outside of every sandbox.
    ///
    /// # Errors
    /// The observer that could not be set up.
    pub fn start(nonce: &str, folder: &Path) -> Result<Self, Error> {
        let failed = |what| move |error| Error::Observer { what, error };
        Ok(Self {
            abstract_socket: abstract_socket::AbstractSocket::start(nonce).map_err(failed("abstract socket"))?,
            dialler: dialler::Dialler::start(nonce).map_err(failed("dialler"))?,
            path_socket: path_socket::PathSocket::start(nonce, folder).map_err(failed("socket file"))?,
            tcp: tcp_listener::TcpListener::start(nonce, Ipv4Addr::LOCALHOST.into()).map_err(failed("TCP listener"))?,
            tcp6: tcp_listener::TcpListener::start(nonce, Ipv6Addr::LOCALHOST.into()).ok(),
            canary: canary::Canary::lay(nonce, folder).map_err(failed("canary"))?,
            nonce: nonce.to_owned(),
        })
    }

    /// Tells the probes where they are.
    pub fn describe(&self, world: &mut World) {
        world.nonce.clone_from(&self.nonce);
        world.canary = Some(self.canary.folder().to_owned());
        world.abstract_socket = Some(self.abstract_socket.name().to_owned());
        world.dialled_socket = Some(self.dialler.name().to_owned());
        world.path_socket = Some(self.path_socket.path().to_owned());
        world.tcp_port = Some(self.tcp.port());
        world.tcp6_port = self.tcp6.as_ref().map(tcp_listener::TcpListener::port);
        world.environment_variable = Some(VARIABLE.to_owned());
    }

    /// Where the canary is.
    pub fn canary(&self) -> &canary::Canary {
        &self.canary
    }

    /// Descriptors that came out of the sandbox over the abstract socket.
    pub fn kept(&self) -> Vec<std::os::fd::OwnedFd> {
        self.abstract_socket.kept()
    }

    /// What they saw. To be asked when the sandbox is gone.
    pub fn sightings(&self) -> Vec<Sighting> {
        let mut seen = Vec::new();
        let mut see = |id, what: Option<String>| seen.extend(what.map(|detail| Sighting { id, detail }));
        see("net.abs.out", self.abstract_socket.visited());
        see("net.abs.in", self.dialler.answered());
        see("net.path", self.path_socket.visited());
        see("net.loopback.host", self.tcp.visited());
        see("net.loopback.six", self.tcp6.as_ref().and_then(tcp_listener::TcpListener::visited));
        see("fs.canary.write", self.canary.changed());
        see("fs.tmp.shared", traces::found(&self.nonce));
        seen
    }
}
