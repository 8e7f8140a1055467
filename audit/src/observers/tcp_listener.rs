//! A listener on the host's own 127.0.0.1.

use std::io;
use std::net::{Ipv4Addr, TcpListener as Socket};

use super::listener::Listener;

/// The socket, listened on.
#[derive(Debug)]
pub struct TcpListener {
    port: u16,
    listener: Listener,
}

impl TcpListener {
    /// Starts to listen, on a port that the kernel chooses.
    pub fn start(nonce: &str) -> io::Result<Self> {
        let socket = Socket::bind((Ipv4Addr::LOCALHOST, 0))?;
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
