//! A client that dials an abstract name again and again: whoever listens there, inside, is reached from outside.

use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// Nothing tells when a name comes to be, so it is tried this often.
const PAUSE: Duration = Duration::from_millis(20);

/// The client.
#[derive(Debug)]
pub struct Dialler {
    name: String,
    answers: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Dialler {
    /// Starts to dial.
    pub fn start(nonce: &str) -> io::Result<Self> {
        use std::sync::atomic::Ordering;
        let name = format!("anchorhold-dialled-{nonce}");
        let address = SocketAddr::from_abstract_name(&name)?;
        let answers = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
        let (stop, stopped) = mpsc::channel();
        let (counter, nonce) = (answers.clone(), nonce.to_owned());
        let thread = std::thread::Builder::new().name("dialler".into()).spawn(move || {
            while matches!(stopped.recv_timeout(PAUSE), Err(RecvTimeoutError::Timeout)) {
                if let Ok(mut line) = UnixStream::connect_addr(&address) {
                    counter.fetch_add(1, Ordering::Relaxed);
                    let _ = line.write_all(nonce.as_bytes());
                }
            }
        })?;
        Ok(Self { name, answers, stop: Some(stop), thread: Some(thread) })
    }

    /// The name, without the zero byte before it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether somebody listened.
    pub fn answered(&self) -> Option<String> {
        (self.answers.load(std::sync::atomic::Ordering::Relaxed) > 0)
            .then(|| "the observer outside reached a listener inside".to_owned())
    }
}

impl Drop for Dialler {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
