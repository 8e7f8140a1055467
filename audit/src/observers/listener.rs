//! A thread that accepts, says the nonce to whoever comes, and hears what they say. Stopped by shutting the socket down, which
//! wakes the thread.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a visitor may take to say something.
const PATIENCE: Duration = Duration::from_millis(500);

/// A stream that a visitor came by.
pub trait Visit: Read + Write + Send {
    /// Bounds how long reading waits.
    fn be_patient(&self, limit: Duration) -> io::Result<()>;
}

impl Visit for std::os::unix::net::UnixStream {
    fn be_patient(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

impl Visit for std::net::TcpStream {
    fn be_patient(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

/// The thread behind a listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    visits: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Starts it. `socket` is the listening socket that `accept` takes visitors from.
    pub fn start<V: Visit>(
        socket: OwnedFd,
        nonce: &str,
        accept: impl Fn() -> io::Result<V> + Send + 'static,
    ) -> io::Result<Self> {
        let visits = Arc::new(AtomicUsize::new(0));
        let (counter, nonce) = (Arc::clone(&visits), nonce.to_owned());
        let thread = std::thread::Builder::new().name("observer".into()).spawn(move || {
            while let Ok(mut visitor) = accept() {
                counter.fetch_add(1, Ordering::Relaxed);
                let _ = visitor.write_all(nonce.as_bytes());
                let _ = visitor.be_patient(PATIENCE);
                let _ = visitor.read(&mut [0; 256]);
            }
        })?;
        Ok(Self { socket, visits, thread: Some(thread) })
    }

    /// Whether somebody came.
    pub fn visited(&self) -> Option<String> {
        match self.visits.load(Ordering::Relaxed) {
            0 => None,
            1 => Some("the observer outside was reached".to_owned()),
            visits => Some(format!("the observer outside was reached {visits} times")),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(self.socket.as_fd(), rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
