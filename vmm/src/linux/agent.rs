//! Talking to the agent in a running guest: its reports among all other events of the machine, so that a panic, a flood or QEMU's
//! end is heard while an answer is waited for.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use crate::failure::{Failure, FailureClass};
use crate::machine::{Event, Machine};
use crate::process::Exit;
use crate::readiness::{Verdict, Wait, Watch};
use crate::report::{Ending, Frames, PORT_NAME, Report, Request, RunRequest, Started, What};
use crate::sessions;
use crate::shares::virtiofs;

/// How much of what a server says is kept, in bytes.
const KEPT_WORDS: usize = 2 << 10;

/// How long QEMU may take to end once it has let go of its sockets.
const ENDING: Duration = Duration::from_secs(2);

/// The first of the numbers that requests of others have: [`Aside`].
pub const OF_OTHERS: u32 = 1 << 31;

/// The agent, as its host hears it.
#[derive(Debug, Default)]
pub struct Agent {
    frames: Frames,
    last_number: u32,
    reports: VecDeque<Report>,
    neighbour: Option<Machine>,
    servers: Vec<Server>,
    attendants: Vec<virtiofs::Server>,
    aside: Option<Aside>,
}

/// Requests of somebody in another thread, who is not waited for. What comes of them is no part of any wait.
pub struct Aside {
    /// The requests. They have numbers from [`OF_OTHERS`].
    pub requests: Receiver<Request>,
    /// Can be read when there are some.
    pub bell: OwnedFd,
    /// Hears what comes of them, and does not wait.
    pub hears: Box<dyn FnMut(Report)>,
}

impl std::fmt::Debug for Aside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Aside").finish_non_exhaustive()
    }
}

/// A program that runs until the end of its machine.
#[derive(Debug)]
struct Server {
    number: u32,
    name: String,
    last_words: String,
}

/// How a program in a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With this status.
    Status(u8),
    /// By this signal.
    Signal(u32),
    /// It was never started; why.
    NotStarted(String),
}

impl Agent {
    /// The agent of a machine that is nothing without another one: whatever ends a wait for that one ends each of this one's.
    pub fn beside(neighbour: Machine) -> Self {
        Self { neighbour: Some(neighbour), ..Self::default() }
    }

    /// The other machine.
    pub fn neighbour(&mut self) -> Option<&mut Machine> {
        self.neighbour.as_mut()
    }

    /// The other machine, to have it by itself.
    pub fn into_neighbour(self) -> Option<Machine> {
        self.neighbour
    }

    /// Has a program beside the machine, without which that would wait for ever: its end is a failure of the machine.
    pub fn attended_by(&mut self, server: virtiofs::Server) {
        self.attendants.push(server);
    }

    /// Does what somebody else asks for, too, whenever there is a wait.
    pub fn serve_aside(&mut self, aside: Aside) {
        self.aside = Some(aside);
    }

    /// Says that a program runs already under this number, which must not end: of a machine that was revived. Requests are
    /// counted from behind it.
    pub fn expect_server(&mut self, number: u32, name: &str) {
        self.last_number = self.last_number.max(number);
        self.servers.push(Server { number, name: name.to_owned(), last_words: String::new() });
    }

    /// Counts requests from behind this number.
    pub fn skip_numbers(&mut self, last: u32) {
        self.last_number = self.last_number.max(last);
    }

    /// Starts a program that must not end before the machine does; its number.
    ///
    /// # Errors
    /// As [`Agent::ask`].
    pub fn serve(&mut self, machine: &mut Machine, name: &str, run: RunRequest) -> Result<u32, Failure> {
        let number = self.ask(machine, What::Run(run))?;
        self.expect_server(number, name);
        Ok(number)
    }

    /// Waits until the agent is ready.
    ///
    /// # Errors
    /// The agent's refusal, and all that ends a wait.
    pub fn ready(&mut self, machine: &mut Machine, wait: &Wait) -> Result<Started, Failure> {
        self.until(machine, wait, |report| match report {
            Report::Ready { kernel, began, up } => Verdict::Done(Started::of(kernel, began, up)),
            Report::Died { why } => Verdict::Fail(FailureClass::GuestRefused, format!("the guest gave up: {why}")),
            _ => Verdict::GoOn,
        })
    }

    /// Asks for something; the number of the request.
    ///
    /// # Errors
    /// A request that is too long, or a port that fails.
    pub fn ask(&mut self, machine: &mut Machine, what: What) -> Result<u32, Failure> {
        // What others asked for before this is done before it.
        self.pass_on(machine)?;
        self.last_number = self.last_number.wrapping_add(1);
        let number = self.last_number;
        send(machine, &Request { number, what })?;
        Ok(number)
    }

    /// Asks for something, and waits until it is done.
    ///
    /// # Errors
    /// [`FailureClass::GuestRefused`] when the guest cannot do it, and all that ends a wait.
    pub fn request(&mut self, machine: &mut Machine, what: What, wait: &Wait) -> Result<Report, Failure> {
        let number = self.ask(machine, what)?;
        self.until(machine, wait, |report| match report {
            Report::Failed { number: of, why } if of == number => {
                Verdict::Fail(FailureClass::GuestRefused, format!("the guest could not do it: {why}"))
            }
            Report::Died { why } => Verdict::Fail(FailureClass::GuestRefused, format!("the guest gave up: {why}")),
            Report::Done { number: of } | Report::Banner { number: of, .. } | Report::Space { number: of, .. }
                if of == number =>
            {
                Verdict::Done(report)
            }
            _ => Verdict::GoOn,
        })
    }

    /// Waits until a program that was started by the request of this number has said something.
    ///
    /// # Errors
    /// [`FailureClass::GuestRefused`] when it ends before, and all that ends a wait.
    pub fn first_words(&mut self, machine: &mut Machine, number: u32, wait: &Wait) -> Result<(), Failure> {
        self.until(machine, wait, |report| match report {
            Report::Output { number: of, .. } if of == number => Verdict::Done(()),
            Report::Ended { number: of, .. } | Report::Failed { number: of, .. } if of == number => {
                Verdict::Fail(FailureClass::GuestRefused, format!("it ended before it said anything: {report:?}"))
            }
            _ => Verdict::GoOn,
        })
    }

    /// As [`Agent::request`], for several things that are done one after the other: all are asked for at once.
    ///
    /// # Errors
    /// As there, for the first that fails; others may have been done.
    pub fn request_all(&mut self, machine: &mut Machine, all: Vec<What>, wait: &Wait) -> Result<(), Failure> {
        let numbers = all.into_iter().map(|what| self.ask(machine, what)).collect::<Result<Vec<_>, _>>()?;
        let mut left = numbers.len();
        if left == 0 {
            return Ok(());
        }
        self.until(machine, wait, |report| match report {
            Report::Failed { number, why } if numbers.contains(&number) => {
                Verdict::Fail(FailureClass::GuestRefused, format!("the guest could not do it: {why}"))
            }
            Report::Died { why } => Verdict::Fail(FailureClass::GuestRefused, format!("the guest gave up: {why}")),
            Report::Done { number } if numbers.contains(&number) => {
                left -= 1;
                if left == 0 { Verdict::Done(()) } else { Verdict::GoOn }
            }
            _ => Verdict::GoOn,
        })
    }

    /// Runs a program to its end. Its output goes to `output`, with whether it is standard error; when that fails, the machine is
    /// killed.
    ///
    /// # Errors
    /// [`FailureClass::NoStatus`] when the agent gives up before it told a status, and all that ends a wait.
    pub fn run(
        &mut self,
        machine: &mut Machine,
        run: RunRequest,
        wait: &Wait,
        output: &mut dyn FnMut(bool, &[u8]) -> std::io::Result<()>,
    ) -> Result<End, Failure> {
        let number = self.ask(machine, What::Run(run))?;
        self.follow(machine, number, wait, output)
    }

    /// As [`Agent::run`], of a program that was started by the request of this number.
    ///
    /// # Errors
    /// As there.
    pub fn follow(
        &mut self,
        machine: &mut Machine,
        number: u32,
        wait: &Wait,
        output: &mut dyn FnMut(bool, &[u8]) -> std::io::Result<()>,
    ) -> Result<End, Failure> {
        self.until(machine, wait, |report| match report {
            Report::Output { number: of, error, bytes } if of == number => match output(error, &bytes) {
                Ok(()) => Verdict::GoOn,
                Err(why) => Verdict::Fail(FailureClass::NoStatus, format!("nobody takes the command's output: {why}")),
            },
            Report::Ended { number: of, ending } if of == number => match ending {
                Ending::Exited(status) => Verdict::Done(End::Status(status)),
                Ending::Signalled(signal) => Verdict::Done(End::Signal(signal)),
                Ending::NotStarted(why) => Verdict::Done(End::NotStarted(why)),
                Ending::NoStatus(why) => Verdict::Fail(FailureClass::NoStatus, why),
            },
            Report::Failed { number: of, why } if of == number => Verdict::Done(End::NotStarted(why)),
            Report::Died { why } => Verdict::Fail(FailureClass::NoStatus, format!("the guest's agent gave up: {why}")),
            _ => Verdict::GoOn,
        })
    }

    /// Has the guest write everything back and power off, and waits for QEMU's end.
    ///
    /// # Errors
    /// All that ends a wait.
    pub fn power_off(&mut self, machine: &mut Machine, limit: Duration) -> Result<(), Failure> {
        self.ask(machine, What::PowerOff)?;
        let mut is_shutdown = false;
        crate::readiness::wait(machine, &Wait::new("the guest's shutdown", limit), |_, event| match event {
            Event::Qmp(event) if event.name == "SHUTDOWN" && event.text("reason") == Some("guest-shutdown") => {
                is_shutdown = true;
                Verdict::GoOn
            }
            Event::Exited(Exit::Status(0)) if is_shutdown => Verdict::Done(()),
            _ => Verdict::GoOn,
        })
    }

    /// Waits until `look` finds in a report what is waited for.
    fn until<T>(
        &mut self,
        machine: &mut Machine,
        wait: &Wait,
        mut look: impl FnMut(Report) -> Verdict<T>,
    ) -> Result<T, Failure> {
        let mut watch = Watch::new(machine, wait);
        let mut broken = None;
        let mut beside = self.neighbour.as_ref().map(|neighbour| Watch::new(neighbour, wait));
        loop {
            self.pass_on(machine)?;
            while let Some(report) = self.reports.pop_front() {
                if report.number().is_some_and(|number| number >= OF_OTHERS) {
                    if let Some(aside) = &mut self.aside {
                        (aside.hears)(report);
                    }
                    continue;
                }
                if let Some(what) = self.of_server(&report) {
                    return Err(watch.fail(machine, FailureClass::GuestRefused, &what));
                }
                match look(report) {
                    Verdict::GoOn => {}
                    Verdict::Done(found) => return Ok(found),
                    Verdict::Fail(class, what) => return Err(watch.fail(machine, class, &what)),
                }
            }
            if let Some(why) = broken {
                // What came before it was heard, but the stream cannot be followed.
                machine.kill();
                return Err(watch.fail(machine, FailureClass::BadReport, &format!("the guest's port: {why}")));
            }
            let mut next_look = watch.next_look();
            let mut others: Vec<_> = self.attendants.iter().map(virtiofs::Server::ended).collect();
            others.extend(self.aside.as_ref().map(|aside| aside.bell.as_fd()));
            if let (Some(neighbour), Some(watch)) = (&mut self.neighbour, &mut beside) {
                while let Some(event) = neighbour.happened()? {
                    watch.see(neighbour, &event)?;
                }
                watch.see(neighbour, &Event::Nothing)?;
                next_look = next_look.min(watch.next_look());
                others.extend(neighbour.descriptors());
            }
            let Some(event) = machine.next_or(next_look, &others)? else {
                if let Some(how) = self.of_attendant(machine)? {
                    let what = format!("the server of a directory, which must not end, has ended ({how})");
                    return Err(watch.fail(machine, FailureClass::NoShare, &what));
                }
                continue;
            };
            if let Event::Port(name, bytes) = &event
                && name == PORT_NAME
                && let Err(why) = self.take(bytes)
            {
                broken = Some(why);
                continue;
            }
            watch.see(machine, &event)?;
        }
    }

    /// Sends what others ask for.
    fn pass_on(&self, machine: &mut Machine) -> Result<(), Failure> {
        let Some(aside) = &self.aside else { return Ok(()) };
        sessions::still(&aside.bell);
        aside.requests.try_iter().try_for_each(|request| send(machine, &request))
    }

    /// How an attendant has ended, unless that is because QEMU has.
    fn of_attendant(&mut self, machine: &mut Machine) -> Result<Option<String>, Failure> {
        let Some(server) = self.attendants.iter_mut().find_map(virtiofs::Server::gone) else { return Ok(None) };
        let until = Instant::now() + ENDING;
        // What it says meanwhile nobody can use any more.
        while !matches!(machine.next(until)?, Event::Nothing) {
            if machine.has_ended() {
                self.attendants.clear();
                return Ok(None);
            }
        }
        Ok(Some(server))
    }

    /// Hears what a server says; that it has ended, in words.
    fn of_server(&mut self, report: &Report) -> Option<String> {
        let (Report::Output { number, .. } | Report::Ended { number, .. } | Report::Failed { number, .. }) = report
        else {
            return None;
        };
        let server = self.servers.iter_mut().find(|server| server.number == *number)?;
        match report {
            Report::Output { bytes, .. } => {
                server.last_words.push_str(&String::from_utf8_lossy(bytes));
                let mut from = server.last_words.len().saturating_sub(KEPT_WORDS);
                while !server.last_words.is_char_boundary(from) {
                    from += 1;
                }
                server.last_words.drain(..from);
                None
            }
            other => {
                let words = server.last_words.trim().lines().next_back().unwrap_or_default().escape_debug();
                Some(format!("{}, which must not end, has ended ({other:?}); it last said “{words}”", server.name))
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), crate::report::FrameError> {
        self.frames.feed(bytes);
        while let Some(message) = self.frames.next_message()? {
            self.reports.push_back(Report::decode(&message)?);
        }
        Ok(())
    }
}

fn send(machine: &mut Machine, request: &Request) -> Result<(), Failure> {
    let sent = request.encode().map_err(|error| error.to_string());
    let sent = sent.and_then(|bytes| machine.send(PORT_NAME, &bytes).map_err(|error| error.to_string()));
    sent.map_err(|why| machine.fail(FailureClass::BadReport, format!("asking the guest: {why}")))
}
