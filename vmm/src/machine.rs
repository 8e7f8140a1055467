//! A running machine: its process, its control socket, its console and its ports, as one stream of events.
//!
//! Nothing here waits for anything but the next event; what is waited for, and how long, is [`crate::readiness`]'s business.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use crate::channel::Channel;
use crate::console::Console;
use crate::failure::{Evidence, Failure, FailureClass, Waited};
use crate::process::{Exit, Process, Usage};
use crate::qemu::{Installed, Wiring, arguments};
use crate::qmp::{self, Message, Qmp, QmpError};
use crate::spec::{Boot, MachineSpec, MemoryBacking};
use crate::visitors::{Visitors, Wish};
use crate::wire::End;

/// How long QEMU may take to answer its control socket: long, for hosts that are overloaded.
pub const CONTROL_PATIENCE: Duration = Duration::from_secs(60);

/// How many events are kept for whoever asks what happened last.
const KEPT_EVENTS: usize = 20;

/// What of one run is no part of the machine.
#[derive(Debug)]
pub struct Run {
    /// Where its memory lies.
    pub memory: MemoryBacking,
    /// Whether it waits for a saved state.
    pub incoming: bool,
    /// Its end of each wire.
    pub wires: BTreeMap<String, End>,
    /// Where its console is written to; the file is made anew.
    pub console_log: Option<PathBuf>,
    /// How many bytes its console may say.
    pub console_limit: u64,
    /// Where a picture of its display is put when it fails.
    pub screenshot: Option<PathBuf>,
    /// How long QEMU may take to answer its control socket.
    pub control_patience: Duration,
    /// People who come to look at it while it runs.
    pub visitors: Option<Visitors>,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            memory: MemoryBacking::Anonymous,
            incoming: false,
            wires: BTreeMap::new(),
            console_log: None,
            console_limit: 64 << 20,
            screenshot: None,
            control_patience: CONTROL_PATIENCE,
            visitors: None,
        }
    }
}

/// Something that happened in or to a machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Its console said these bytes.
    Console(Vec<u8>),
    /// Its console completed a line.
    Line(String),
    /// Its console has said more than it may; what follows is dropped.
    Flood,
    /// These bytes came from a port.
    Port(String, Vec<u8>),
    /// QEMU's own event.
    Qmp(qmp::Event),
    /// QEMU has ended, and everything that it said before was told.
    Exited(Exit),
    /// Nothing, until the time that was given.
    Nothing,
}

/// A machine whose QEMU runs. It is killed when this is dropped.
#[derive(Debug)]
pub struct Machine {
    name: String,
    process: Process,
    qmp: Qmp,
    build: String,
    line: Channel,
    console: Console,
    ports: Vec<(String, Channel)>,
    received: u64,
    answers: HashMap<u64, Result<Value, (String, String)>>,
    queue: VecDeque<Event>,
    events: VecDeque<String>,
    is_flood_told: bool,
    exit: Option<Exit>,
    has_display: bool,
    screenshot: Option<PathBuf>,
    patience: Duration,
    visitors: Option<Visitors>,
}

impl Machine {
    /// Starts QEMU as this machine, stopped: [`Machine::go`] lets it run. The kernel kills it when the calling thread ends.
    ///
    /// # Errors
    /// Files that are not there, an initramfs that does not fit, and QEMU's own refusals.
    pub fn start(installed: &Installed, spec: &MachineSpec, run: Run) -> Result<Self, Failure> {
        let mut machine = Self::launch(installed, spec, run)?;
        machine.greet()?;
        Ok(machine)
    }

    /// As [`Machine::start`], without waiting for QEMU: nothing may be asked of it before [`Machine::greet`].
    pub(crate) fn launch(installed: &Installed, spec: &MachineSpec, mut run: Run) -> Result<Self, Failure> {
        check_boot(spec).map_err(|failure| Failure { machine: spec.name.clone(), ..failure })?;
        let refused = |doing: &str, error: &dyn std::fmt::Display| Failure {
            machine: spec.name.clone(),
            ..Failure::new(FailureClass::QemuRefused, format!("{doing}: {error}"))
        };
        let socket = |error: io::Error| refused("making a socket", &error);
        let mut handed = Vec::new();
        let mut hand = |descriptor: OwnedFd| {
            let number = descriptor.as_raw_fd();
            handed.push(descriptor);
            number
        };
        let (control, theirs) = Channel::pair().map_err(socket)?;
        let mut wiring = Wiring { control: hand(theirs), ..Wiring::default() };
        let (line, theirs) = Channel::pair().map_err(socket)?;
        wiring.console = hand(theirs);
        let mut ports = Vec::new();
        for name in &spec.ports {
            let (port, theirs) = Channel::pair().map_err(socket)?;
            wiring.ports.insert(name.clone(), hand(theirs));
            ports.push((name.clone(), port));
        }
        for card in &spec.cards {
            let end = run.wires.remove(&card.wire).ok_or_else(|| refused("connecting the wire", &card.wire))?;
            let end = match end {
                End::Datagrams(socket) => End::Datagrams(hand(socket)),
                End::Switch(folder) => End::Switch(folder),
            };
            wiring.wires.insert(card.wire.clone(), end);
        }
        let log = match &run.console_log {
            Some(path) => {
                Some(open_log(path).map_err(|error| refused(&format!("writing {}", path.display()), &error))?)
            }
            None => None,
        };
        let mut command = Command::new(&installed.program);
        command.args(arguments(spec, &wiring, &run.memory, run.incoming));
        // It needs nothing of our environment, and what is in there is nobody's business in a log of QEMU's.
        command.env_clear().env("LANG", "C.UTF-8");
        let process = Process::start(command, handed).map_err(|error| {
            Failure::new(FailureClass::NoQemu, format!("starting {}: {error}", installed.program.display()))
        })?;
        Ok(Self {
            name: spec.name.clone(),
            process,
            qmp: Qmp::new(control),
            build: String::new(),
            line,
            console: Console::new(log, run.console_limit),
            ports,
            received: 0,
            answers: HashMap::new(),
            queue: VecDeque::new(),
            events: VecDeque::new(),
            is_flood_told: false,
            exit: None,
            has_display: spec.display,
            screenshot: run.screenshot,
            patience: run.control_patience,
            visitors: run.visitors,
        })
    }

    /// Waits for QEMU's greeting and begins to talk.
    pub(crate) fn greet(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        while self.build.is_empty() {
            if let Some(exit) = self.exit {
                return Err(self.fail(FailureClass::QemuRefused, format!("QEMU ended at once ({exit})")));
            }
            if begun.elapsed() > self.patience {
                return Err(self.fail_waiting(FailureClass::QemuSilent, "QEMU said nothing", "its greeting", begun));
            }
            self.pump(begun + self.patience)?;
        }
        // It greets before it has looked at all of its command line.
        self.execute("qmp_capabilities", &Value::Null).map(drop).map_err(|failure| match self.exit {
            Some(exit) => self.fail(FailureClass::QemuRefused, format!("QEMU ended at once ({exit})")),
            None => failure,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which build of QEMU it is.
    pub fn build(&self) -> &str {
        &self.build
    }

    /// The id of its process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Whether QEMU has ended, as far as was seen.
    pub fn has_ended(&self) -> bool {
        self.exit.is_some()
    }

    /// Lets it run.
    ///
    /// # Errors
    /// What QEMU answers.
    pub fn go(&mut self) -> Result<(), Failure> {
        self.execute("cont", &Value::Null).map(drop)
    }

    /// Stops it where it stands.
    ///
    /// # Errors
    /// What QEMU answers.
    pub fn stop(&mut self) -> Result<(), Failure> {
        self.execute("stop", &Value::Null).map(drop)
    }

    /// Types at its console.
    ///
    /// # Errors
    /// The socket's.
    pub fn type_at_console(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.line.send(bytes)
    }

    /// Sends to a port. What the guest does not take yet waits here.
    ///
    /// # Errors
    /// The socket's, or when there is no such port.
    pub fn send(&mut self, port: &str, bytes: &[u8]) -> io::Result<()> {
        let channel = self.ports.iter_mut().find(|(name, _)| name == port).map(|(_, channel)| channel);
        channel.ok_or_else(|| io::Error::other(format!("{} has no port {port}", self.name)))?.send(bytes)
    }

    /// How much has come from its console and its ports.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// What its process has used.
    pub fn usage(&self) -> Option<Usage> {
        self.process.usage()
    }

    /// The bound of its console.
    pub fn console_limit(&self) -> u64 {
        self.console.limit()
    }

    /// The next thing that happens, until `until`. After [`Event::Exited`] it is that for ever.
    ///
    /// # Errors
    /// When QEMU says what is no QMP, or our own files and sockets fail.
    pub fn next(&mut self, until: Instant) -> Result<Event, Failure> {
        self.next_or(until, &[]).map(|event| event.unwrap_or(Event::Nothing))
    }

    /// As [`Machine::next`], but also nothing at all as soon as one of `others` can be read.
    ///
    /// # Errors
    /// As [`Machine::next`].
    pub fn next_or(&mut self, until: Instant, others: &[BorrowedFd<'_>]) -> Result<Option<Event>, Failure> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(Some(event));
            }
            if let Some(exit) = self.exit {
                return Ok(Some(Event::Exited(exit)));
            }
            if Instant::now() >= until {
                return Ok(Some(Event::Nothing));
            }
            if self.pump_or(until, others)? && self.queue.is_empty() && self.exit.is_none() {
                return Ok(None);
            }
        }
    }

    /// What has happened already: [`Machine::next`] without any waiting. After [`Event::Exited`] it is that for ever.
    ///
    /// # Errors
    /// As [`Machine::next`].
    pub fn happened(&mut self) -> Result<Option<Event>, Failure> {
        if self.queue.is_empty() && self.exit.is_none() {
            self.pump(Instant::now())?;
        }
        Ok(self.queue.pop_front().or_else(|| self.exit.map(Event::Exited)))
    }

    /// What can be read when something happens, for whoever waits for several machines at once.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.process.ended(), self.process.said()];
        if self.qmp.is_open() {
            all.push(self.qmp.as_fd());
        }
        let channels = std::iter::once(&self.line).chain(self.ports.iter().map(|(_, channel)| channel));
        all.extend(channels.filter(|channel| channel.is_open()).map(AsFd::as_fd));
        all.extend(self.visitors.iter().flat_map(Visitors::descriptors));
        all
    }

    /// Tells QEMU to do something, and waits for its answer.
    ///
    /// # Errors
    /// QEMU's refusal as [`FailureClass::QemuFailed`]; its end; its silence.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Failure> {
        self.execute_with(command, arguments, None, self.patience)
    }

    /// As [`Machine::execute`], with a descriptor for QEMU and a time of its own.
    ///
    /// # Errors
    /// As [`Machine::execute`].
    pub fn execute_with(
        &mut self,
        command: &str,
        arguments: &Value,
        descriptor: Option<BorrowedFd<'_>>,
        patience: Duration,
    ) -> Result<Value, Failure> {
        let begun = Instant::now();
        let sent = self.qmp.send(command, arguments, descriptor);
        let id =
            sent.map_err(|error| self.fail(FailureClass::QemuFailed, format!("telling QEMU {command}: {error}")))?;
        loop {
            match self.answers.remove(&id) {
                Some(Ok(value)) => return Ok(value),
                Some(Err((class, description))) => {
                    let why = QmpError::Refused { command: command.to_owned(), class, description };
                    return Err(self.fail(FailureClass::QemuFailed, why.to_string()));
                }
                None => {}
            }
            if let Some(exit) = self.exit {
                let class = class_of(exit);
                return Err(self.fail(class, format!("QEMU ended ({exit}) before it answered {command}")));
            }
            if begun.elapsed() > patience {
                let what = format!("QEMU did not answer {command}");
                return Err(self.fail_waiting(FailureClass::QemuSilent, &what, "its answer", begun));
            }
            self.pump(begun + patience)?;
        }
    }

    /// A picture of its display, as PNG.
    ///
    /// # Errors
    /// What QEMU answers; it writes the file.
    pub fn screenshot(&mut self, file: &Path) -> Result<(), Failure> {
        // What is in the file's place may be anybody's.
        let _ = std::fs::remove_file(file);
        self.execute_with("screendump", &qmp::screendump(file), None, Duration::from_secs(10)).map(drop)
    }

    /// Kills it.
    pub fn kill(&mut self) -> Exit {
        self.process.kill()
    }

    fn pump(&mut self, until: Instant) -> Result<(), Failure> {
        self.pump_or(until, &[]).map(drop)
    }

    /// Waits until something happens and takes it; says whether one of `others` can be read.
    fn pump_or(&mut self, until: Instant, others: &[BorrowedFd<'_>]) -> Result<bool, Failure> {
        let wanted = |outgoing| if outgoing { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let (ended, said) = (self.process.ended(), self.process.said());
        let mut fds =
            vec![PollFd::from_borrowed_fd(ended, PollFlags::IN), PollFd::from_borrowed_fd(said, PollFlags::IN)];
        if self.qmp.is_open() {
            fds.push(PollFd::new(&self.qmp, wanted(self.qmp.has_outgoing())));
        }
        let channels = std::iter::once(&self.line).chain(self.ports.iter().map(|(_, channel)| channel));
        for channel in channels.filter(|channel| channel.is_open()) {
            fds.push(PollFd::new(channel, wanted(channel.has_outgoing())));
        }
        if let Some(visitors) = &self.visitors {
            fds.extend(visitors.descriptors().map(|visitor| PollFd::from_borrowed_fd(visitor, PollFlags::IN)));
        }
        let first_other = fds.len();
        fds.extend(others.iter().map(|other| PollFd::from_borrowed_fd(*other, PollFlags::IN)));
        let left = until.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(self.fail(FailureClass::QemuFailed, format!("waiting for QEMU: {errno}"))),
        }
        let has_ended = !fds[0].revents().is_empty();
        // The pipe stays readable at its end: QEMU closes it only by ending.
        let other = fds[first_other..].iter().any(|fd| !fd.revents().is_empty());
        drop(fds);
        self.process.listen();
        self.take_all()?;
        if has_ended && let Some(exit) = self.process.exit() {
            // It is dead: all that it ever said is in the sockets now.
            self.process.listen();
            while self.take_all()? {}
            self.exit = Some(exit);
        }
        Ok(other)
    }

    /// Takes what there is of each channel; says whether there was anything.
    fn take_all(&mut self) -> Result<bool, Failure> {
        // Read first and told last: what the guest said before QEMU's event is then told before it.
        let messages = match self.qmp.receive() {
            Ok(messages) => messages,
            Err(error) => {
                self.process.kill();
                return Err(self.fail(FailureClass::QemuFailed, error.to_string()));
            }
        };
        let failed = |machine: &mut Self, error: io::Error| {
            machine.fail(FailureClass::QemuFailed, format!("its console or a port: {error}"))
        };
        let mut found = !messages.is_empty();
        self.hear_visitors().map_err(|error| failed(self, error))?;
        let flushed = self.qmp.flush().and_then(|()| self.line.flush());
        flushed.map_err(|error| failed(self, error))?;
        for number in 0..self.ports.len() {
            let (name, port) = &mut self.ports[number];
            let taken = port.flush().and_then(|()| port.read());
            let name = name.clone();
            if let Some(bytes) = taken.map_err(|error| failed(self, error))? {
                found = true;
                self.received += bytes.len() as u64;
                self.queue.push_back(Event::Port(name, bytes));
            }
        }
        if let Some(bytes) = self.line.read().map_err(|error| failed(self, error))? {
            found = true;
            self.received += bytes.len() as u64;
            let lines = self.console.take(&bytes).map_err(|error| failed(self, error))?;
            if let Some(visitors) = &mut self.visitors {
                visitors.tell(&bytes);
            }
            if !self.console.is_flooded() {
                self.queue.push_back(Event::Console(bytes));
            } else if !self.is_flood_told {
                self.is_flood_told = true;
                self.queue.push_back(Event::Flood);
            }
            self.queue.extend(lines.into_iter().map(Event::Line));
        }
        for message in messages {
            self.take_message(message);
        }
        Ok(found)
    }

    /// Does what visitors want.
    fn hear_visitors(&mut self) -> io::Result<()> {
        let Some(visitors) = &mut self.visitors else { return Ok(()) };
        for wish in visitors.listen() {
            match wish {
                Wish::Type(bytes) => self.line.send(&bytes)?,
                Wish::Picture(visitor, file) => {
                    // Nobody waits for it: the answer is passed on when it comes.
                    if let Ok(answer) = self.qmp.send("screendump", &qmp::screendump(&file), None) {
                        visitors.promise(visitor, answer, file);
                    }
                }
            }
        }
        Ok(())
    }

    fn take_message(&mut self, message: Message) {
        if let (Message::Answer { id: Some(id), .. } | Message::Refusal { id: Some(id), .. }, Some(visitors)) =
            (&message, &mut self.visitors)
        {
            let refusal = match &message {
                Message::Refusal { description, .. } => Some(description.as_str()),
                _ => None,
            };
            if visitors.answered(*id, refusal) {
                return;
            }
        }
        match message {
            Message::Greeting(greeting) => self.build = greeting.build,
            Message::Answer { id: Some(id), value } => drop(self.answers.insert(id, Ok(value))),
            Message::Refusal { id: Some(id), class, description } => {
                self.answers.insert(id, Err((class, description)));
            }
            Message::Answer { id: None, .. } | Message::Refusal { id: None, .. } => {}
            Message::Event(event) => {
                if self.events.len() == KEPT_EVENTS {
                    self.events.pop_front();
                }
                self.events.push_back(event.line());
                self.queue.push_back(Event::Qmp(event));
            }
        }
    }

    /// What has been seen of it until now.
    pub fn evidence(&self) -> Evidence {
        Evidence {
            console: self.console.last_lines(),
            qemu: self.process.last_lines(),
            events: self.events.iter().cloned().collect(),
            exit: self.exit.map(|exit| exit.to_string()),
            screenshot: None,
        }
    }

    /// A failure of this machine, with what was seen of it.
    pub fn fail(&mut self, class: FailureClass, what: impl Into<String>) -> Failure {
        self.process.listen();
        let what = what.into();
        Failure { class, machine: self.name.clone(), what, wait: None, evidence: Box::new(self.evidence()) }
    }

    /// A failure while something was waited for since `begun`, with a picture of the display if there is one.
    pub fn fail_waiting(&mut self, class: FailureClass, what: &str, waited_for: &str, begun: Instant) -> Failure {
        let lasted = begun.elapsed();
        let mut picture = None;
        // Taken out, so that a display that cannot be had is not asked for again.
        if let Some(file) = self.screenshot.take()
            && self.has_display
            && self.exit.is_none()
            && class != FailureClass::QemuSilent
            && self.screenshot(&file).is_ok()
        {
            picture = Some(file);
        }
        let mut failure = self.fail(class, what);
        failure.wait = Some(Waited { what: waited_for.to_owned(), lasted });
        failure.evidence.screenshot = picture;
        failure
    }
}

/// What an end of QEMU is that nobody asked for.
pub fn class_of(exit: Exit) -> FailureClass {
    match exit {
        Exit::Signal(_) => FailureClass::QemuKilled,
        Exit::Status(_) => FailureClass::QemuFailed,
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    // Not through a link that somebody put there.
    let _ = std::fs::remove_file(path);
    OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)
}

/// Whether what it starts from is there and fits.
fn check_boot(spec: &MachineSpec) -> Result<(), Failure> {
    let Boot::Kernel { kernel, initramfs, .. } = &spec.boot else { return Ok(()) };
    for (what, file) in [("kernel", kernel), ("initramfs", initramfs)] {
        File::open(file)
            .and_then(|file| file.metadata())
            .map_err(|error| error.to_string())
            .and_then(|found| {
                if found.is_file() && found.len() > 0 { Ok(()) } else { Err("it is no file, or empty".to_owned()) }
            })
            .map_err(|why| Failure::new(FailureClass::NoKernel, format!("the {what} {}: {why}", file.display())))?;
    }
    let size = unpacked_size(initramfs).map_err(|error| {
        Failure::new(FailureClass::NoKernel, format!("the initramfs {}: {error}", initramfs.display()))
    })?;
    let room = (spec.memory << 20) / 2;
    if size > room {
        return Err(Failure::new(
            FailureClass::InitramfsTooLarge,
            format!(
                "the initramfs {} takes {} MiB and may take half of the memory, {} MiB",
                initramfs.display(),
                size.div_ceil(1 << 20),
                room >> 20
            ),
        ));
    }
    Ok(())
}

/// How large an initramfs is when it is unpacked, as far as its file says: of gzip the last four bytes say it.
fn unpacked_size(file: &Path) -> io::Result<u64> {
    use std::os::unix::fs::FileExt;
    let file = File::open(file)?;
    let length = file.metadata()?.len();
    let mut magic = [0; 2];
    if length < 18 || file.read_exact_at(&mut magic, 0).is_err() || magic != [0x1f, 0x8b] {
        return Ok(length);
    }
    let mut last = [0; 4];
    file.read_exact_at(&mut last, length - 4)?;
    Ok(length.max(u32::from_le_bytes(last).into()))
}

impl AsFd for Machine {
    /// Readable when its process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.ended()
    }
}
