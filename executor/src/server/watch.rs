//! Whether the client is still there, while it is not being read from.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Looks at a connection during work that takes its time.
pub struct Watch {
    connection: Option<OwnedFd>,
    gone: fn(),
    begun: fn(),
}

impl Watch {
    /// Watches `connection`, and calls `gone` from another thread when the client has closed it.
    pub fn new(connection: OwnedFd, gone: fn()) -> Self {
        Self { connection: Some(connection), gone, begun: || {} }
    }

    /// The same, which calls `begun` before each work.
    pub fn calling(self, begun: fn()) -> Self {
        Self { begun, ..self }
    }

    /// Watches nothing.
    pub fn nothing() -> Self {
        Self { connection: None, gone: || {}, begun: || {} }
    }

    /// Does `work`, here and now, while another thread watches. If no thread can be had, nobody watches: the client's absence
    /// is then seen when it is read from the next time.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        (self.begun)();
        let Some(connection) = &self.connection else { return work() };
        let Ok((stopped, stop)) = std::io::pipe() else { return work() };
        std::thread::scope(|scope| {
            let watching = std::thread::Builder::new().name("watch".to_owned()).spawn_scoped(scope, move || {
                if waits_for_hang_up(connection, &stopped) {
                    (self.gone)();
                }
            });
            let done = work();
            drop(stop);
            drop(watching);
            done
        })
    }
}

/// True when the connection was closed, false when the work was done.
fn waits_for_hang_up(connection: &OwnedFd, stopped: &impl AsFd) -> bool {
    loop {
        // A hang-up is told without being asked for; data is not asked for, because it may be there all the time.
        let mut looked_at = [PollFd::new(connection, PollFlags::empty()), PollFd::new(stopped, PollFlags::empty())];
        match poll(&mut looked_at, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return false,
            Ok(_) => {}
        }
        if !looked_at[1].revents().is_empty() {
            return false;
        }
        if looked_at[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::{Condvar, Mutex};

    static SEEN: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

    fn gone() {
        *SEEN.0.lock().unwrap() = true;
        SEEN.1.notify_all();
    }

    #[test]
    fn work_ends_the_watching_and_a_hang_up_is_seen_during_work() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let watch = Watch::new(ours.into(), gone);
        assert_eq!(watch.during(|| 7), 7);
        assert!(!*SEEN.0.lock().unwrap(), "nobody has gone");
        watch.during(|| {
            drop(theirs);
            // Ends only when it is told.
            drop(SEEN.1.wait_while(SEEN.0.lock().unwrap(), |seen| !*seen).unwrap());
        });
    }
}
