//! Signals that ask for the end: what was started outside is taken away first.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, Weak};

use nix::sys::signal::{SigSet, Signal};

static ASKED: AtomicBool = AtomicBool::new(false);
static SOCKET: Mutex<Weak<UnixStream>> = Mutex::new(Weak::new());

/// Takes SIGINT, SIGTERM and SIGHUP from now on. To be called before any other thread is started.
pub fn take_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut asking = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            asking.add(signal);
        }
        if asking.thread_block().is_err() {
            return;
        }
        std::thread::spawn(move || {
            while asking.wait().is_ok() {
                ASKED.store(true, Ordering::SeqCst);
                if let Some(socket) = SOCKET.lock().expect("nobody panics with the lock").upgrade() {
                    let _ = socket.shutdown(std::net::Shutdown::Both);
                }
            }
        });
    });
}

/// Whether such a signal came.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Has this socket closed when a signal comes, for as long as the guard lives.
pub fn close(socket: &Arc<UnixStream>) -> Guard {
    *SOCKET.lock().expect("nobody panics with the lock") = Arc::downgrade(socket);
    if asked() {
        let _ = socket.shutdown(std::net::Shutdown::Both);
    }
    Guard
}

/// See [`close`].
#[derive(Debug)]
pub struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        *SOCKET.lock().expect("nobody panics with the lock") = Weak::new();
    }
}
