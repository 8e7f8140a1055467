//! A thread that accepts, says the nonce to whoever comes, and hears what they say. Stopped by shutting the socket down, which
//! wakes the thread.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// How long a visitor may take to say something.
const PATIENCE: Duration = Duration::from_millis(500);

/// A stream that a visitor came by.
pub trait Visit: Read + Write + Send {
    /// Bounds how long reading waits.
    fn be_patient(&self, limit: Duration) -> io::Result<()>;

    /// Hears what the visitor says, and takes what they hand over.
    fn hear(&mut self) -> Option<OwnedFd> {
        let _ = self.read(&mut [0; 256]);
        None
    }
}

impl Visit for std::os::unix::net::UnixStream {
    fn be_patient(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }

    fn hear(&mut self) -> Option<OwnedFd> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let mut bytes = [0; 256];
        recvmsg(&*self, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
        control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
    }
}

impl Visit for std::net::TcpStream {
    fn be_patient(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

/// What visitors handed over.
type Kept = Arc<Mutex<Vec<OwnedFd>>>;

/// The thread behind a listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    visits: Arc<AtomicUsize>,
    kept: Kept,
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
        let kept = Kept::default();
        let (counter, keeper, nonce) = (Arc::clone(&visits), Arc::clone(&kept), nonce.to_owned());
        let thread = std::thread::Builder::new().name("observer".into()).spawn(move || {
            while let Ok(mut visitor) = accept() {
                counter.fetch_add(1, Ordering::Relaxed);
                let _ = visitor.write_all(nonce.as_bytes());
                let _ = visitor.be_patient(PATIENCE);
                if let Some(descriptor) = visitor.hear() {
                    keeper.lock().expect("nobody panics with the lock").push(descriptor);
                }
            }
        })?;
        Ok(Self { socket, visits, kept, thread: Some(thread) })
    }

    /// Descriptors that visitors handed over, which are ours from now on.
    pub fn kept(&self) -> Vec<OwnedFd> {
        std::mem::take(&mut *self.kept.lock().expect("nobody panics with the lock"))
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
