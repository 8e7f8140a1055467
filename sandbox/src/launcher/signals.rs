//! The caller's signals and terminal while a room runs.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::pump::Pump;
use crate::error::Error;

/// Signals that are handed on to the payload.
const FORWARDED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// Signals for the payload, taken in as events for as long as this lives.
pub struct Signals {
    pub descriptor: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Blocks them, and has them come as events.
    pub fn take() -> Result<Self, Error> {
        let say = |errno| Error::supervisor("blocking signals", errno);
        let set: SigSet = FORWARDED.into_iter().collect();
        let before = set.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK).map_err(say)?;
        let descriptor = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(say)?;
        Ok(Self { descriptor, before })
    }

    /// The next one that has come.
    pub fn next(&mut self) -> Option<Signal> {
        let info = self.descriptor.read_signal().ok().flatten()?;
        Signal::try_from(info.ssi_signo as i32).ok()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// The caller's terminal in raw mode while the room's own is shown on it.
pub struct RawTerminal {
    before: nix::sys::termios::Termios,
}

impl RawTerminal {
    /// Enters it, where there is a terminal to show.
    pub fn enter(pump: &Pump) -> Option<Self> {
        use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
        pump.terminal.as_ref()?;
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        use nix::sys::termios::{SetArg, tcsetattr};
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}
