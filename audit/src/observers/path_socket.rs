//! A socket file that everybody may connect to, in the folder of the canary.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::listener::Listener;

/// The socket, listened on.
#[derive(Debug)]
pub struct PathSocket {
    path: PathBuf,
    listener: Listener,
}

impl PathSocket {
    /// Starts to listen.
    pub fn start(nonce: &str, folder: &Path) -> io::Result<Self> {
        let path = folder.join("socket");
        let socket = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o777))?;
        let own = socket.try_clone()?.into();
        let listener = Listener::start(own, nonce, move || socket.accept().map(|(visitor, _)| visitor))?;
        Ok(Self { path, listener })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether somebody came.
    pub fn visited(&self) -> Option<String> {
        self.listener.visited()
    }
}
