//! Waiting for a machine: every wait is for an event, has a deadline, and says when it fails what it waited for and what it saw.
//!
//! The caller looks at each event and says whether that was it. What no caller wants — QEMU's end, a panic, a flood, a disk
//! that fails, a guest that does nothing — is found here, and is a failure of one of the classes of [`crate::failure`].

mod stall;

pub use stall::{Sample, StallWatch};

use std::time::{Duration, Instant};

use crate::failure::{Failure, FailureClass};
use crate::machine::{Event, Machine, class_of};
use crate::process::Exit;
use crate::spec::Accelerator;

/// What Linux says when it panics.
const PANIC: &str = "Kernel panic - not syncing";

/// What Linux says when its initramfs does not fit, before it goes on with a part of it; and what it panics by when there is not
/// even room for that: there is no process yet that could be killed.
const CUT_INITRAMFS: [&str; 2] = ["Initramfs unpacking failed: write error", "System is deadlocked on memory"];

/// How long QEMU may take to end after it said that it would.
const ENDING: Duration = Duration::from_secs(20);

/// One wait.
#[derive(Clone, Debug)]
pub struct Wait {
    /// For what, as a noun with its article: “the agent's greeting”.
    pub what: String,
    /// How long at most.
    pub limit: Duration,
    /// How long the guest may do nothing at all; no bound if none.
    pub stall: Option<Duration>,
    /// What executes the guest: its stall under kvm has a cause of its own.
    pub accelerator: Accelerator,
}

impl Wait {
    /// A wait for `what`, of at most `limit`.
    pub fn new(what: impl Into<String>, limit: Duration) -> Self {
        Self { what: what.into(), limit, stall: None, accelerator: Accelerator::Tcg }
    }

    /// The same, that also fails when the guest does nothing for so long.
    #[must_use]
    pub fn unless_stalled(mut self, stall: Duration, accelerator: Accelerator) -> Self {
        self.stall = Some(stall);
        self.accelerator = accelerator;
        self
    }
}

/// What an event means to whoever waits.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict<T> {
    /// That was not it.
    GoOn,
    /// That was it.
    Done(T),
    /// It will not come.
    Fail(FailureClass, String),
}

/// Waits until `look` finds in an event what is waited for. A guest's end is an event too: [`Event::Exited`].
///
/// # Errors
/// What `look` calls a failure, and every failure that can be seen from outside.
pub fn wait<T>(
    machine: &mut Machine,
    wait: &Wait,
    mut look: impl FnMut(&mut Machine, &Event) -> Verdict<T>,
) -> Result<T, Failure> {
    let mut watch = Watch::new(machine, wait);
    loop {
        let event = machine.next(watch.next_look())?;
        match look(machine, &event) {
            Verdict::Done(found) => return Ok(found),
            Verdict::Fail(class, what) => return Err(watch.fail(machine, class, &what)),
            Verdict::GoOn => watch.see(machine, &event)?,
        }
    }
}

/// The part of a wait that is the same for all: used by itself where events come from more than the machine.
#[derive(Debug)]
pub struct Watch {
    what: String,
    begun: Instant,
    deadline: Instant,
    limit: Duration,
    stall: Option<StallWatch>,
    accelerator: Accelerator,
    panic: Option<String>,
    shutdown: Option<(String, Instant)>,
}

impl Watch {
    /// Begins now.
    pub fn new(machine: &Machine, wait: &Wait) -> Self {
        let begun = Instant::now();
        let deadline = begun.checked_add(wait.limit).unwrap_or(begun + Duration::from_secs(1 << 32));
        Self {
            what: wait.what.clone(),
            begun,
            deadline,
            limit: wait.limit,
            stall: wait.stall.map(|stall| StallWatch::new(stall, begun, Sample::of(machine))),
            accelerator: wait.accelerator,
            panic: None,
            shutdown: None,
        }
    }

    /// When there must be a look at the clock, whatever happens.
    pub fn next_look(&self) -> Instant {
        let mut next = self.deadline;
        if let Some(stall) = &self.stall {
            next = next.min(stall.next_look());
        }
        if let Some((_, since)) = &self.shutdown {
            next = next.min(*since + ENDING);
        }
        next
    }

    /// Looks at an event that the caller does not want.
    ///
    /// # Errors
    /// When it ends the wait.
    pub fn see(&mut self, machine: &mut Machine, event: &Event) -> Result<(), Failure> {
        match event {
            Event::Line(line) if CUT_INITRAMFS.iter().any(|words| line.contains(words)) => {
                let what = "the guest's memory is too small for its initramfs";
                return Err(self.fail(machine, FailureClass::InitramfsTooLarge, what));
            }
            Event::Line(line) if line.contains(PANIC) => self.panic = Some(line.clone()),
            Event::Flood => {
                let what = format!("the console said more than {} bytes", machine.console_limit());
                machine.kill();
                return Err(self.fail(machine, FailureClass::ConsoleFlood, &what));
            }
            Event::Qmp(event) => match event.name.as_str() {
                "GUEST_PANICKED" => self.panic = Some(self.panic.take().unwrap_or_else(|| event.line())),
                "SHUTDOWN" => {
                    let reason = event.text("reason").unwrap_or("unknown").to_owned();
                    self.shutdown = Some((reason, Instant::now()));
                }
                "BLOCK_IO_ERROR" => {
                    let action = event.text("action").unwrap_or_default();
                    let is_full = event.data.get("nospace").and_then(serde_json::Value::as_bool).unwrap_or(false);
                    // With `report` the guest is told, and knows better than we whether it can go on.
                    if action != "report" || is_full {
                        let what = format!(
                            "{} of a disk failed: {}",
                            event.text("operation").unwrap_or("use"),
                            event.text("reason").unwrap_or("no reason is given")
                        );
                        return Err(self.fail(machine, FailureClass::DiskError, &what));
                    }
                }
                _ => {}
            },
            Event::Exited(exit) => return Err(self.ended(machine, *exit)),
            Event::Nothing => self.look_at_the_clock(machine)?,
            Event::Console(_) | Event::Line(_) | Event::Port(..) => {}
        }
        // A guest that never falls silent must not keep us from the clock.
        if Instant::now() >= self.next_look() { self.look_at_the_clock(machine) } else { Ok(()) }
    }

    fn look_at_the_clock(&mut self, machine: &mut Machine) -> Result<(), Failure> {
        let now = Instant::now();
        if let Some((reason, since)) = &self.shutdown
            && now >= *since + ENDING
        {
            let what = format!("QEMU said that it ends ({reason}) and did not");
            machine.kill();
            return Err(self.fail(machine, FailureClass::QemuSilent, &what));
        }
        if now >= self.deadline {
            let what = format!("it did not come within {:.1} s", self.limit.as_secs_f64());
            let class = if self.panic.is_some() { FailureClass::Panic } else { FailureClass::Deadline };
            return Err(self.fail(machine, class, &what));
        }
        if let Some(stall) = &mut self.stall
            && now >= stall.next_look()
            && let Some(stalled) = stall.look(now, Sample::of(machine))
        {
            let what = stalled.in_words();
            let class =
                match (self.panic.is_some(), stalled.is_emulated_privilege && self.accelerator == Accelerator::Kvm) {
                    (true, _) => FailureClass::Panic,
                    (_, true) => FailureClass::AcceleratorUnusable,
                    _ => FailureClass::Stalled,
                };
            return Err(self.fail(machine, class, &what));
        }
        Ok(())
    }

    /// What an end of QEMU is, by what was seen before it.
    fn ended(&mut self, machine: &mut Machine, exit: Exit) -> Failure {
        let reason = self.shutdown.as_ref().map(|(reason, _)| reason.as_str());
        let (class, what) = match (&self.panic, reason, exit) {
            (Some(line), ..) => (FailureClass::Panic, format!("the guest's kernel panicked: {line}")),
            (None, Some("guest-shutdown"), Exit::Status(0)) => {
                (FailureClass::PowerOff, "the guest was powered off".to_owned())
            }
            (None, Some("guest-reset"), Exit::Status(0)) => (FailureClass::Reset, "the guest restarted".to_owned()),
            (None, Some(reason), Exit::Status(0)) => (FailureClass::PowerOff, format!("the machine ended ({reason})")),
            // A signal that QEMU catches: it ends in order, and says by what.
            _ => (class_of(exit), format!("QEMU ended ({exit})")),
        };
        let (class, what) = match reason {
            Some("host-signal") => (FailureClass::QemuKilled, "QEMU was told to end by a signal".to_owned()),
            _ => (class, what),
        };
        self.fail(machine, class, &what)
    }

    /// A failure of this wait.
    pub fn fail(&self, machine: &mut Machine, class: FailureClass, what: &str) -> Failure {
        machine.fail_waiting(class, what, &self.what, self.begun)
    }
}

/// Waits until QEMU has ended by itself, as after a guest's orderly shutdown.
///
/// # Errors
/// Every other end, and none in time.
pub fn wait_for_shutdown(machine: &mut Machine, limit: Duration) -> Result<(), Failure> {
    let mut is_shutdown = false;
    wait(machine, &Wait::new("the guest's shutdown", limit), |_, event| match event {
        Event::Qmp(event) if event.name == "SHUTDOWN" && event.text("reason") == Some("guest-shutdown") => {
            is_shutdown = true;
            Verdict::GoOn
        }
        Event::Exited(Exit::Status(0)) if is_shutdown => Verdict::Done(()),
        _ => Verdict::GoOn,
    })
}
