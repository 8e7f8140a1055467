//! A person's terminal at a machine's console.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anchorhold_vmm::failure::{Failure, FailureClass};

/// Passes on what is typed, and what the console says, until this process ends: two threads do it.
#[derive(Debug)]
pub struct Typing;

impl Typing {
    /// Begins. `socket` is that of a machine's visitors.
    ///
    /// # Errors
    /// What the terminal and the socket say.
    pub fn begin(socket: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(FailureClass::QemuRefused, format!("the terminal: {error}"));
        let stdin = io::stdin();
        if let Ok(mut terminal) = rustix::termios::tcgetattr(&stdin) {
            // The guest's terminal echoes, and knows what each key means.
            terminal.make_raw();
            rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Now, &terminal)
                .map_err(|errno| failed(errno.into()))?;
        }
        let mut visitor = UnixStream::connect(socket).map_err(failed)?;
        visitor.write_all(b"console\n").map_err(failed)?;
        let mut from = visitor.try_clone().map_err(failed)?;
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut piece) {
                let mut out = io::stdout().lock();
                if out.write_all(&piece[..length]).and_then(|()| out.flush()).is_err() {
                    return;
                }
            }
        });
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = io::stdin().read(&mut piece) {
                if visitor.write_all(&piece[..length]).is_err() {
                    return;
                }
            }
        });
        Ok(Self)
    }
}
