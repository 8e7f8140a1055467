//! Devices and terminals.

use std::fs::{File, OpenOptions};
use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};

use crate::{Answer, done, errno};

pub fn answer(words: &[&str]) -> Option<Answer> {
    Some(match *words {
        ["controlling-terminal"] => done(File::open("/dev/tty")),
        ["are-terminals"] => Ok(format!(
            "{} {} {}",
            std::io::stdin().is_terminal(),
            std::io::stdout().is_terminal(),
            std::io::stderr().is_terminal()
        )),
        ["type-into", "stdin"] => done(type_into(std::io::stdin().as_fd())),
        ["type-into", "controlling-terminal"] => match OpenOptions::new().read(true).write(true).open("/dev/tty") {
            Ok(terminal) => done(type_into(terminal.as_fd())),
            Err(error) => Err(errno(error)),
        },
        ["type-into", "new-terminal"] => posix_openpt(OFlag::O_RDWR).and_then(|master| done(type_into(master.as_fd()))),
        ["new-terminal"] => new_terminal(),
        _ => return None,
    })
}

/// `TIOCSTI`: puts a character where the terminal's owner would read it as typed.
fn type_into(terminal: BorrowedFd<'_>) -> Result<(), Errno> {
    let character = b'!';
    // SAFETY: the request reads one byte from the given address.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSTI, &raw const character) };
    Errno::result(result).map(drop)
}

/// Makes a terminal the way that everybody does, through `/dev/ptmx`; the name of its other side.
fn new_terminal() -> Answer {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&name);
    opened.map_err(errno).map(|_| name)
}
