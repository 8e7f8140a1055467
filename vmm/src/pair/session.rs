//! What people want of a pair that stands: its clock, its guest at rest, a session of their own.

use std::path::Path;
use std::time::Duration;

use super::{Pair, standing};
use crate::failure::Failure;
use crate::linux::End;
use crate::readiness::Wait;
use crate::report::{RunRequest, Streams, What};

impl Pair {
    /// Has the guest write back what it still has in memory, and both answer: nothing is half done then, or half said.
    ///
    /// # Errors
    /// All that ends a wait.
    pub fn rest(&mut self) -> Result<(), Failure> {
        standing::must(self, "sync", "writing back the guest's disk")?;
        self.ask(What::Ping, "a sign of life")
    }

    /// Sets the clock of both, to seconds since 1970. Without it they go on where they were saved.
    ///
    /// # Errors
    /// All that ends a wait.
    pub fn set_clock(&mut self, seconds: u64) -> Result<(), Failure> {
        let nanoseconds = seconds.saturating_mul(1_000_000_000);
        self.ask(What::SetClock { nanoseconds }, "the controller's clock")?;
        let line = self.desk.profile.set_clock(seconds);
        standing::must(self, &line, "setting the guest's clock")
    }

    /// A session in the guest for a person at the controller's console, with the shares mounted; the status that it ended with.
    ///
    /// # Errors
    /// All that ends a wait.
    pub fn session(&mut self, store: &Path, exchange: &Path) -> Result<End, Failure> {
        self.mount(store, exchange)?;
        let mut request = self.desk.in_guest("");
        if let Ok(command) = &mut request.command {
            // A terminal of the guest's, even though ours is none that ssh would know; and no line, but a login.
            command.arguments.retain(|argument| argument != "-T" && !argument.is_empty());
            command.arguments.insert(0, "-tt".into());
            command.environment.push(("TERM".into(), "xterm".into()));
        }
        let request = RunRequest { streams: Streams::Console, ..request };
        let wait = Wait::new("the end of the session", Duration::MAX);
        let end = self.agent.run(&mut self.controller, request, &wait, &mut |_, _| Ok(()))?;
        self.unmount()?;
        Ok(end)
    }
}
