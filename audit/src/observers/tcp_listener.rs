//! A listener on one of the host's own loopback addresses.

use std::io;
use std::net::{IpAddr, TcpListener as Socket};

use super::listener::Listener;

/// The socket, listened on.
#[derive(Debug)]
pub struct TcpListener {
    port: u16,
    listener: Listener,
}

impl TcpListener {
    /// Starts to listen at this address, on a port that the kernel chooses.
    pub fn start(nonce: &str, address: IpAddr) -> io::Result<Self> {
        let socket = Socket::bind((address, 0))?;
        let port = socket.local_addr()?.port();
        let own = socket.try_clone()?.into();
        let listener = Listener::start(own, nonce, move || socket.accept().map(|(visitor, _)| visitor))?;
        Ok(Self { port, listener })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether somebody came.
    pub fn visited(&self) -> Option<String> {
        self.listener.visited()
    }
}
