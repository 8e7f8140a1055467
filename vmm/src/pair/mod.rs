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

pub mod job;
mod session;
mod spec;

pub use spec::{
    CONTROLLER, CONTROLLER_MEMORY, GUEST, Keys, PairSpec, Side, WIRE, initramfs_of_controller, initramfs_of_guest, root,
};

use std::path::Path;
use std::time::Duration;

use crate::controller::Controller;
use crate::failure::{Failure, FailureClass};
use crate::linux::{Agent, End};
use crate::machine::{Machine, Run};
use crate::profile::{Language, Profile};
use crate::qemu::Installed;
use crate::readiness::Wait;
use crate::report::What;
use crate::shares::samba::{Account, SambaError};
use crate::shares::{self, Cache};
use crate::wire;

/// The account of Samba: the user of the controller's image by whom files are written.
const ACCOUNT: &str = "nixbld";
/// Samba's server in messages.
const SERVER: &str = "smbd";
/// How long a request that has nothing to wait for may take: on a host that is overloaded.
const PATIENCE: Duration = Duration::from_secs(120);
/// How much longer than the guest's own deadline the host waits for its answer.
const GRACE: Duration = Duration::from_secs(20);
/// The message size of 9p, in bytes: what QEMU takes at most without a warning.
const NINE_P_MESSAGE: u32 = 512_000;
/// How much of what a line in the guest says is kept for whoever asks why it failed, in bytes.
const KEPT_WORDS: usize = 8 << 10;
/// What a shell says before each of several lines.
const AT: &str = "anchorhold-at-";
/// ssh's own failures.
const SSH_FAILED: u8 = 255;

/// What of one run is no part of the machines.
#[derive(Debug, Default)]
pub struct PairRun {
    /// Of the guest.
    pub guest: Run,
    /// Of the controller.
    pub controller: Run,
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
    server: u32,
    limits: Limits,
    accelerator: crate::spec::Accelerator,
    kernel: String,
}

/// What a line in the guest came to.
struct Said {
    end: End,
    words: String,
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
        let PairRun { guest: mut guest_run, controller: mut controller_run } = run;
        let (one, two) = wire::datagrams()
            .map_err(|error| Failure::new(FailureClass::QemuRefused, error.to_string()))?;
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
            server: 0,
            limits,
            accelerator: spec.accelerator,
            kernel: String::new(),
        };
        let ready = pair.boot_wait("the agent in the controller");
        (pair.kernel, _) = pair.agent.ready(&mut pair.controller, &ready)?;
        pair.write_files()?;
        let server = pair.desk.server();
        pair.server = pair.agent.serve(&mut pair.controller, SERVER, server)?;
        pair.await_guest()?;
        pair.await_server()?;
        pair.log_in()?;
        Ok(pair)
    }

    /// The pair of two machines that were saved together as [`Pair::boot`] leaves them, and revived on one wire. `server` is what
    /// [`Pair::server`] said then.
    pub fn join(
        spec: &PairSpec,
        keys: &Keys,
        controller: Machine,
        guest: Machine,
        server: u32,
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
        agent.expect_server(server, SERVER);
        // Whatever was asked for before bears a lower number.
        agent.skip_numbers(1 << 20);
        let accelerator = spec.accelerator;
        Ok(Self { controller, agent, desk, server, limits, accelerator, kernel: String::new() })
    }

    /// The number of Samba's server, for [`Pair::join`].
    pub fn server(&self) -> u32 {
        self.server
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
        // Nobody who knew an older password gets in from here on.
        self.desk.account = account()?;
        self.write_files()?;
        for (tag, share) in [(shares::STORE_TAG, shares::STORE_SHARE), (shares::EXCHANGE, shares::EXCHANGE)] {
            // What is written must be written, or fail where somebody hears of it.
            let target = Controller::directory_of(share);
            let mount = shares::nine_p(tag, target, false, Cache::None, NINE_P_MESSAGE);
            self.ask(What::Mount(mount), &format!("the directory {tag} in the controller"))?;
        }
        let nonce = format!("probe-{}", std::process::id());
        let probe = exchange.join(&nonce);
        std::fs::write(&probe, b"").map_err(|error| {
            Failure::new(FailureClass::NoShare, format!("writing {}: {error}", probe.display()))
        })?;
        let in_store = std::fs::read_dir(store).ok().and_then(|mut entries| entries.next()?.ok());
        let in_store = in_store.and_then(|entry| entry.file_name().into_string().ok());
        let profile = self.desk.profile.clone();
        let mut lines = Vec::new();
        for drive in &profile.drives {
            let name = format!("the drive {} ({})", drive.letter, drive.share);
            lines.push((name.clone(), profile.mount(drive, crate::controller::ADDRESS, &self.desk.account)));
            let file = match drive.share.as_str() {
                shares::EXCHANGE => Some(&nonce),
                shares::STORE_SHARE => in_store.as_ref(),
                _ => None,
            };
            if let Some(file) = file {
                lines.push((format!("a file on {name}"), profile.probe(drive, file)));
            }
        }
        self.must_all_in_guest(&lines)?;
        std::fs::remove_file(&probe).map_err(|error| {
            Failure::new(FailureClass::NoShare, format!("removing {}: {error}", probe.display()))
        })
    }

    /// Runs a line in the guest over the session. Its output goes to `output`.
    ///
    /// # Errors
    /// All that ends a wait. A status of 255 may be ssh's own: see [`job`].
    pub fn run(
        &mut self,
        line: &str,
        wait: &Wait,
        output: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<End, Failure> {
        let request = self.desk.in_guest(line);
        self.agent.run(&mut self.controller, request, wait, &mut |_, bytes| output(bytes))
    }

    /// Takes the drives from the guest and the directories from the controller: all that was written is on the host then.
    ///
    /// # Errors
    /// [`FailureClass::NoShare`] when something cannot be written back.
    pub fn unmount(&mut self) -> Result<(), Failure> {
        let profile = self.desk.profile.clone();
        let lines: Vec<_> = profile
            .drives
            .iter()
            .map(|drive| {
                (format!("the drive {} ({}) to be given back", drive.letter, drive.share), profile.unmount(drive))
            })
            .collect();
        self.must_all_in_guest(&lines)?;
        for share in [shares::STORE_SHARE, shares::EXCHANGE] {
            let target = Controller::directory_of(share);
            self.ask(What::Unmount(target), &format!("the directory of {share} to be given back"))?;
        }
        Ok(())
    }

    fn boot_wait(&self, what: &str) -> Wait {
        Wait::new(what, self.limits.boot).unless_stalled(self.limits.stall, self.accelerator)
    }

    fn ask(&mut self, what: What, waited_for: &str) -> Result<(), Failure> {
        let asked = self.agent.request(&mut self.controller, what, &Wait::new(waited_for, PATIENCE));
        asked.map(drop).map_err(|failure| of_class(failure, FailureClass::NoShare))
    }

    fn write_files(&mut self) -> Result<(), Failure> {
        let files = self.desk.files().map_err(|error| samba(&error))?;
        for file in files {
            let wait = Wait::new("the controller's files", PATIENCE);
            self.agent.request(&mut self.controller, file, &wait)?;
        }
        Ok(())
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
            self.with_guests_console(failure)
        })
    }

    fn await_server(&mut self) -> Result<(), Failure> {
        let mut wait = self.boot_wait("Samba in the controller");
        wait.limit += GRACE;
        let what = Controller::await_server(milliseconds(self.limits.boot));
        self.agent.request(&mut self.controller, what, &wait).map(drop)
    }

    /// The first login, which opens the session.
    fn log_in(&mut self) -> Result<(), Failure> {
        let limit = self.desk.profile.login_limit();
        let said = self.in_guest("exit 0", &Wait::new("the first login", limit + GRACE))?;
        let class = match said.end {
            End::Status(0) => return Ok(()),
            _ if said.words.contains("Host key verification failed") || said.words.contains("HOST IDENTIFICATION") => {
                FailureClass::WrongKey
            }
            _ => FailureClass::NoLogin,
        };
        Err(self.guest_failed(class, &format!("logging into the guest failed ({}): {}", in_words(&said.end), last_line(&said.words))))
    }

    fn in_guest(&mut self, line: &str, wait: &Wait) -> Result<Said, Failure> {
        let mut said = Vec::new();
        let end = self.run(line, wait, &mut |bytes| {
            let room = KEPT_WORDS.saturating_sub(said.len());
            said.extend(&bytes[..bytes.len().min(room)]);
            Ok(())
        })?;
        Ok(Said { end, words: String::from_utf8_lossy(&said).into_owned() })
    }

    fn must_in_guest(&mut self, line: &str, what: &str, limit: Duration) -> Result<(), Failure> {
        let said = self.in_guest(line, &Wait::new(what, limit))?;
        if said.end == End::Status(0) { Ok(()) } else { Err(self.line_failed(what, &said)) }
    }

    fn line_failed(&mut self, what: &str, said: &Said) -> Failure {
        let class = if said.end == End::Status(SSH_FAILED) { FailureClass::SessionLost } else { FailureClass::NoShare };
        // The line itself has a password in it.
        let words = said.words.replace(self.desk.account.password(), "…");
        self.guest_failed(class, &format!("{what} failed ({}): {}", in_words(&said.end), last_line(&words)))
    }

    /// Lines of which each must succeed, each with what it is for. A login takes longer than most of them, so that a shell gets
    /// them all at once, and says which one it is at.
    fn must_all_in_guest(&mut self, lines: &[(String, String)]) -> Result<(), Failure> {
        if self.desk.profile.shell.kind != Language::Sh {
            return lines.iter().try_for_each(|(what, line)| self.must_in_guest(line, what, PATIENCE));
        }
        let words: Vec<String> =
            lines.iter().enumerate().map(|(number, (_, line))| format!("echo {AT}{number} && {line}")).collect();
        let said = self.in_guest(&words.join(" && "), &Wait::new("the guest's drives", PATIENCE))?;
        if said.end == End::Status(0) {
            return Ok(());
        }
        let at = said.words.lines().rev().find_map(|line| line.strip_prefix(AT)?.parse::<usize>().ok()).unwrap_or(0);
        let what = lines.get(at).map_or("the drives", |(what, _)| what.as_str());
        let words: Vec<&str> = said.words.lines().filter(|line| !line.starts_with(AT)).collect();
        Err(self.line_failed(what, &Said { end: said.end, words: words.join("\n") }))
    }

    /// A failure that is the guest's, with what was seen of it.
    fn guest_failed(&mut self, class: FailureClass, what: &str) -> Failure {
        match self.agent.neighbour() {
            Some(guest) => guest.fail(class, what),
            None => self.controller.fail(class, what),
        }
    }

    /// The same failure, told of the guest.
    fn with_guests_console(&mut self, failure: Failure) -> Failure {
        if failure.machine == GUEST {
            return failure;
        }
        let (what, wait) = (failure.what.clone(), failure.wait.clone());
        Failure { wait, ..self.guest_failed(failure.class, &what) }
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

fn milliseconds(duration: Duration) -> u32 {
    duration.as_millis().try_into().unwrap_or(u32::MAX)
}

fn last_line(words: &str) -> String {
    let line = words.trim().lines().next_back().unwrap_or("it said nothing");
    line.escape_debug().take(300).collect()
}

fn in_words(end: &End) -> String {
    match end {
        End::Status(status) => format!("status {status}"),
        End::Signal(signal) => format!("signal {signal}"),
        End::NotStarted(why) => why.clone(),
    }
}
