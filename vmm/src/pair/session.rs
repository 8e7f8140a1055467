//! What is wanted of a pair besides builds: the guest at rest, a session for a person.

use std::time::Duration;

use super::{PATIENCE, Pair, Resting, standing};
use crate::failure::Failure;
use crate::linux::End;
use crate::profile::Language;
use crate::readiness::Wait;
use crate::report::{RunRequest, Streams, What};

/// How many sessions a pair is saved with: a build mounts, runs, and unmounts.
const WAITING: usize = 3;
/// What a shell of the guest does in such a session: it says that it is there, and does the line that it is told, which may
/// not read on from where that came.
const WAITS: &str = "echo ready; IFS= read -r line; eval \"$line\" </dev/null";

impl Pair {
    /// Has the guest write back what it still has in memory, and both answer: nothing is half done then, or half said. In a guest
    /// with a shell that can, sessions are left in which that waits: starting one takes longer than most lines do.
    ///
    /// # Errors
    /// All that ends a wait.
    pub fn rest(&mut self) -> Result<Resting, Failure> {
        standing::must(self, "sync", "writing back the guest's disk")?;
        if self.desk.profile.shell.kind == Language::Sh {
            for _ in 0..WAITING {
                let request = RunRequest { streams: Streams::Fed, ..self.desk.in_guest(WAITS) };
                let number = self.agent.ask(&mut self.controller, What::Run(request))?;
                let wait = Wait::new("a shell in the guest", PATIENCE);
                self.agent.first_words(&mut self.controller, number, &wait)?;
                self.resting.waiting.push(number);
            }
        }
        self.ask(What::Ping, "a sign of life")?;
        Ok(self.resting.clone())
    }

    pub(super) fn session_at_console(&mut self) -> Result<End, Failure> {
        let mut request = self.desk.in_guest("");
        if let Ok(command) = &mut request.command {
            // A terminal of the guest's, even though ours is none that ssh would know; and no line, but a login.
            command.arguments.retain(|argument| argument != "-T" && !argument.is_empty());
            command.arguments.insert(0, "-tt".into());
            command.environment.push(("TERM".into(), "xterm".into()));
        }
        let request = RunRequest { streams: Streams::Console, ..request };
        let wait = Wait::new("the end of the session", Duration::MAX);
        self.agent.run(&mut self.controller, request, &wait, &mut |_, _| Ok(()))
    }
}
