//! An abstract stream socket: names of these belong to the network namespace, and need no file system to be reached.

use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::listener::Listener;

/// The socket, listened on.
#[derive(Debug)]
pub struct AbstractSocket {
    name: String,
    listener: Listener,
}

impl AbstractSocket {
    /// Starts to listen.
    pub fn start(nonce: &str) -> io::Result<Self> {
        let name = format!("anchorhold-observer-{nonce}");
        let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        let own = socket.try_clone()?.into();
        let listener = Listener::start(own, nonce, move || socket.accept().map(|(visitor, _)| visitor))?;
        Ok(Self { name, listener })
    }

    /// Its name, without the zero byte before it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Descriptors that were handed over.
    pub fn kept(&self) -> Vec<OwnedFd> {
        self.listener.kept()
    }

    /// Whether somebody came.
    pub fn visited(&self) -> Option<String> {
        self.listener.visited()
    }
}
