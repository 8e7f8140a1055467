//! A guest that is reached by the network alone, as a Windows, and the controller beside it, on a wire that nobody else is on.
//!
//! ```text
//!                       the room
//!   ┌───────┐ frames ┌────────────┐ 9p  store, xchg
//!   │ guest ├────────┤ controller ├──── directories
//!   └───────┘  SMB   └──────┬─────┘
//!              SSH          │ port: requests, reports
//!                       supervisor
//! ```
//!
//! A [`Pair`] that stands has both machines up, Samba serving and the SSH session open, and no share mounted: it can be saved
//! so, and [`Pair::join`] makes one of two machines that were revived. Then come [`Pair::mount`], [`Pair::run`] and
//! [`Pair::unmount`], the same for both. [`job`] is all of it for one command.
//!
//! [`Direct`] is the same without a controller: Samba serves beside QEMU, at the same address. To a build both are a [`Standing`].

mod direct;
pub mod handover;
pub mod job;
pub mod left;
mod people;
mod session;
mod spec;
mod standing;

pub use direct::Direct;
pub use standing::Standing;

pub use spec::{
    CONTROLLER, CONTROLLER_MEMORY, GUEST, Keys, PairSpec, Side, WIRE, features_of_guest, initramfs_of_controller,
    initramfs_of_guest, root,
};

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::controller::Controller;
use crate::failure::{Failure, FailureClass};
use crate::linux::{Agent, End};
use crate::machine::{Machine, Run};
use crate::profile::Profile;
use crate::qemu::Installed;
use crate::readiness::Wait;
use crate::report::What;
use crate::sessions::Door;
use crate::shares::samba::{Account, SambaError};
use crate::shares::{self, Cache};
use crate::spec::Clock;
use crate::wire;

/// The account of Samba: the user of the controller's image by whom files are written.
const ACCOUNT: &str = "nixbld";
/// Where the controller has the inputs for as long as it takes to show them over themselves.
const ASIDE: &str = "/run/inputs";
/// Samba's server in messages.
const SERVER: &str = "smbd";
/// How long a request that has nothing to wait for may take: on a host that is overloaded.
const PATIENCE: Duration = Duration::from_secs(120);
/// How much longer than the guest's own deadline the host waits for its answer.
const GRACE: Duration = Duration::from_secs(20);
/// ssh's own failures.
const SSH_FAILED: u8 = 255;

/// What of one run is no part of the machines.
#[derive(Debug, Default)]
pub struct PairRun {
    /// Of the guest.
    pub guest: Run,
    /// Of the controller.
    pub controller: Run,
    /// What is between them.
    pub wire: wire::Kind,
}

/// What of a pair at rest is in neither memory: the numbers of the programs that run in its controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Resting {
    /// Samba's server.
    server: u32,
    /// Sessions in which a shell of the guest waits for a line.
    waiting: Vec<u32>,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Limits {
    /// Until both machines are up and SSH answers.
    pub boot: Duration,
    /// How long a machine that starts may do nothing.
    pub stall: Duration,
}

/// Two machines that stand. Both are killed when this is dropped.
#[derive(Debug)]
pub struct Pair {
    controller: Machine,
    /// Has the guest, so that each wait hears of it.
    agent: Agent,
    desk: Controller,
    /// What of the store is shown over itself while the shares are open.
    inputs: Vec<OsString>,
    resting: Resting,
    limits: Limits,
    accelerator: crate::spec::Accelerator,
    kernel: String,
    door: Option<Door>,
    /// Ends after the machines.
    switch: Option<wire::Switch>,
}

impl Pair {
    /// Starts both machines, up to where they could be saved.
    ///
    /// # Errors
    /// A [`Failure`] of either, of SSH, or of Samba.
    pub fn boot(
        installed: &Installed,
        spec: &PairSpec,
        keys: &Keys,
        run: PairRun,
        limits: Limits,
    ) -> Result<Self, Failure> {
        let PairRun { guest: mut guest_run, controller: mut controller_run, wire } = run;
        let (one, two, switch) =
            wire::between_two(wire).map_err(|error| Failure::new(FailureClass::NoWire, error.to_string()))?;
        guest_run.wires.insert(WIRE.to_owned(), one);
        controller_run.wires.insert(WIRE.to_owned(), two);
        let mut guest = Machine::start(installed, &spec.guest_machine(), guest_run)?;
        guest.go()?;
        let mut controller = Machine::start(installed, &spec.controller_machine(), controller_run)?;
        controller.go()?;
        let desk = Controller {
            profile: spec.profile.clone(),
            account: account()?,
            mounts: Vec::new(),
            key: keys.key.clone(),
            known_hosts: keys.known_hosts.clone(),
        };
        let mut pair = Self {
            controller,
            agent: Agent::beside(guest),
            desk,
            inputs: spec.shown_over(),
            resting: Resting::default(),
            limits,
            accelerator: spec.accelerator,
            kernel: String::new(),
            door: None,
            switch,
        };
        let ready = pair.boot_wait("the agent in the controller");
        pair.kernel = pair.agent.ready(&mut pair.controller, &ready)?.kernel;
        pair.write_files()?;
        let server = pair.desk.server();
        pair.resting.server = pair.agent.serve(&mut pair.controller, SERVER, server)?;
        pair.await_guest()?;
        pair.await_server()?;
        standing::log_in(&mut pair)?;
        Ok(pair)
    }

    /// The pair of two machines that were saved together as [`Pair::rest`] leaves them, and revived on one wire. `resting` is what
    /// that said then.
    ///
    /// # Errors
    /// No chance for a password.
    pub fn join(
        spec: &PairSpec,
        keys: &Keys,
        controller: Machine,
        guest: Machine,
        resting: Resting,
        limits: Limits,
    ) -> Result<Self, Failure> {
        let desk = Controller {
            profile: spec.profile.clone(),
            account: account()?,
            mounts: Vec::new(),
            key: keys.key.clone(),
            known_hosts: keys.known_hosts.clone(),
        };
        let mut agent = Agent::beside(guest);
        agent.expect_server(resting.server, SERVER);
        // Whatever was asked for before bears a lower number.
        agent.skip_numbers(1 << 20);
        let (inputs, accelerator) = (spec.shown_over(), spec.accelerator);
        let kernel = String::new();
        Ok(Self { controller, agent, desk, inputs, resting, limits, accelerator, kernel, door: None, switch: None })
    }

    /// Keeps the switch between the two for as long as both.
    pub fn hold(&mut self, switch: Option<wire::Switch>) {
        self.switch = switch;
    }

    /// The release of the controller's kernel, as far as it was told.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Both: the guest first, as they are stopped.
    pub fn machines(&mut self) -> (Option<&mut Machine>, &mut Machine) {
        (self.agent.neighbour(), &mut self.controller)
    }

    /// Both, by themselves: the guest first.
    pub fn take_apart(self) -> (Option<Machine>, Machine) {
        (self.agent.into_neighbour(), self.controller)
    }

    /// As whom the guest's drives are mounted: since the last [`Pair::mount`].
    pub fn account(&self) -> &Account {
        &self.desk.account
    }

    /// The guest's profile.
    pub fn profile(&self) -> &Profile {
        &self.desk.profile
    }

    /// Mounts the directories in the controller, and the drives in the guest; tries each drive. `store` and `exchange` are the
    /// directories, as this process sees them.
    ///
    /// # Errors
    /// [`FailureClass::NoShare`] above all.
    pub fn mount(&mut self, store: &Path, exchange: &Path) -> Result<(), Failure> {
        standing::mount(self, store, exchange, Clock::Virtual)
    }

    /// Runs a line in the guest, as [`Standing::run`].
    ///
    /// # Errors
    /// As there.
    pub fn run(
        &mut self,
        line: &str,
        wait: &Wait,
        output: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<End, Failure> {
        let number = match self.resting.waiting.pop() {
            // A shell that was started before the pair was saved: there is no ssh to be started, and no shell.
            Some(waiting) if !line.contains('\n') => {
                let bytes = format!("{line}\n").into_bytes();
                self.ask(What::Input { run: waiting, bytes }, "the guest's shell to be told a line")?;
                waiting
            }
            _ => self.agent.ask(&mut self.controller, What::Run(self.desk.in_guest(line)))?,
        };
        let ended = self.agent.follow(&mut self.controller, number, wait, &mut |_, bytes| output(bytes));
        ended.map_err(|failure| match failure.class {
            FailureClass::Deadline => self.of_guest(failure),
            _ => failure,
        })
    }

    /// Takes the drives from the guest and the directories from the controller: all that was written is on the host then.
    ///
    /// # Errors
    /// [`FailureClass::NoShare`] when something cannot be written back.
    pub fn unmount(&mut self) -> Result<(), Failure> {
        standing::unmount(self)
    }

    fn boot_wait(&self, what: &str) -> Wait {
        Wait::new(what, self.limits.boot).unless_stalled(self.limits.stall, self.accelerator)
    }

    fn ask(&mut self, what: What, waited_for: &str) -> Result<(), Failure> {
        let asked = self.agent.request(&mut self.controller, what, &Wait::new(waited_for, PATIENCE));
        asked.map(drop).map_err(|failure| of_class(failure, FailureClass::NoShare))
    }

    fn ask_all(&mut self, all: Vec<What>, waited_for: &str) -> Result<(), Failure> {
        let asked = self.agent.request_all(&mut self.controller, all, &Wait::new(waited_for, PATIENCE));
        asked.map_err(|failure| of_class(failure, FailureClass::NoShare))
    }

    fn write_files(&mut self) -> Result<(), Failure> {
        let files = self.desk.files().map_err(|error| samba(&error))?;
        self.agent.request_all(&mut self.controller, files, &Wait::new("the controller's files", PATIENCE))
    }

    fn await_guest(&mut self) -> Result<(), Failure> {
        let limit = self.limits.boot;
        let mut wait = self.boot_wait("the guest's SSH server");
        wait.limit += GRACE;
        let what = self.desk.await_guest(milliseconds(limit));
        let asked = self.agent.request(&mut self.controller, what, &wait);
        asked.map(drop).map_err(|failure| {
            // The agent's own words for a port that is open, and for all others.
            let silent = failure.what.contains("it answers, and said nothing");
            let class = if silent { FailureClass::SshSilent } else { FailureClass::Deadline };
            let failure = of_class(failure, class);
            self.of_guest(failure)
        })
    }

    fn await_server(&mut self) -> Result<(), Failure> {
        let mut wait = self.boot_wait("Samba in the controller");
        wait.limit += GRACE;
        let what = Controller::await_server(milliseconds(self.limits.boot));
        self.agent.request(&mut self.controller, what, &wait).map(drop)
    }

    /// The same failure, told of the guest.
    fn of_guest(&mut self, failure: Failure) -> Failure {
        if failure.machine == GUEST {
            return failure;
        }
        let (what, wait) = (failure.what.clone(), failure.wait.clone());
        Failure { wait, ..self.guest_failed(failure.class, &what) }
    }
}

impl Standing for Pair {
    fn profile(&self) -> &Profile {
        &self.desk.profile
    }

    fn account(&self) -> &Account {
        &self.desk.account
    }

    fn qemu(&self) -> String {
        self.controller.build().to_owned()
    }

    fn kernel(&self) -> String {
        self.kernel.clone()
    }

    fn open_shares(&mut self) -> Result<(), Failure> {
        // Nobody who knew an older password gets in from here on.
        self.desk.account = account()?;
        let mut all = self.desk.accounts().map_err(|error| samba(&error))?;
        for (tag, share) in [(shares::STORE_TAG, shares::STORE_SHARE), (shares::EXCHANGE, shares::EXCHANGE)] {
            // What is written must be written, or fail where somebody hears of it.
            let target = Controller::directory_of(share);
            all.push(What::Mount(shares::nine_p(tag, target, false, Cache::None)));
        }
        if !self.inputs.is_empty() {
            // What nobody changes is asked for once: an SMB server opens, looks and closes for each file that is read.
            let with = shares::nine_p(shares::INPUTS_TAG, ASIDE, true, Cache::Loose);
            let over = Controller::directory_of(shares::STORE_SHARE);
            all.push(What::Cover { with, names: self.inputs.clone(), over });
        }
        self.ask_all(all, "the directories in the controller")
    }

    fn close_shares(&mut self) -> Result<(), Failure> {
        let [store, exchange] = [shares::STORE_SHARE, shares::EXCHANGE].map(Controller::directory_of);
        let covers: Vec<PathBuf> = self.inputs.iter().map(|name| store.join(name)).collect();
        let all = covers.into_iter().chain([store, exchange]).map(What::Unmount);
        self.ask_all(all.collect(), "the directories to be given back")
    }

    fn run(
        &mut self,
        line: &str,
        wait: &Wait,
        output: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<End, Failure> {
        Pair::run(self, line, wait, output)
    }

    fn set_servers_clock(&mut self, time: Duration) -> Result<(), Failure> {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.ask(What::SetClock { nanoseconds }, "the controller's clock")
    }

    fn session(&mut self) -> Result<End, Failure> {
        self.session_at_console()
    }

    fn admit(&mut self, door: &Path) -> Result<(), Failure> {
        self.door = Some(people::admit(&mut self.agent, &self.desk, door).map_err(people::not_admitted)?);
        Ok(())
    }

    fn dismiss(&mut self, why: &str) -> Result<(), Failure> {
        let Some(line) = self.door.as_ref().and_then(|door| people::dismiss(door, &self.desk.profile, why)) else {
            return Ok(());
        };
        let (request, wait) = (self.desk.in_guest(&line), people::waits());
        let ended = self.agent.run(&mut self.controller, request, &wait, &mut |_, _| Ok(()));
        people::dismissed(ended)
    }

    fn guest_failed(&mut self, class: FailureClass, what: &str) -> Failure {
        match self.agent.neighbour() {
            Some(guest) => guest.fail(class, what),
            None => self.controller.fail(class, what),
        }
    }
}

/// A refusal of the controller's agent, as what it means here.
fn of_class(failure: Failure, class: FailureClass) -> Failure {
    let is_refusal = failure.class == FailureClass::GuestRefused;
    Failure { class: if is_refusal { class } else { failure.class }, ..failure }
}

fn account() -> Result<Account, Failure> {
    Account::new(ACCOUNT).map_err(|error| samba(&error))
}

fn samba(error: &SambaError) -> Failure {
    Failure::new(FailureClass::NoShare, error.to_string())
}

/// How an ssh of this host ended.
fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Status(u8::try_from(code).unwrap_or(SSH_FAILED)),
        (None, signal) => End::Signal(signal.unwrap_or_default().unsigned_abs()),
    }
}

fn milliseconds(duration: Duration) -> u32 {
    duration.as_millis().try_into().unwrap_or(u32::MAX)
}
