//! Sessions of people in a guest that has something else to do: another ssh beside the build's own, from where that is, so
//! that nothing but the guest's words comes out of the room, and no key. Each has a connection of its own, of which the build's
//! knows nothing.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use anchorhold_sandbox::sys::tied;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::spec::REACHED_BY;
use super::{PATIENCE, end_of};
use crate::controller::{self, Controller};
use crate::exchange::sh;
use crate::failure::{Failure, FailureClass};
use crate::linux::{Agent, Aside, End, OF_OTHERS};
use crate::profile::{Language, Profile};
use crate::readiness::Wait;
use crate::report::{Ending, Report, Request, RunRequest, Streams, What};
use crate::sessions::{self, Asked, Door, Ends, Flowed, Flows, Size, Teller, Told};

/// The variable by which everything in a guest is known that was started in a session: its number behind it, and a dot.
const MARK: &str = "ANCHORHOLD_SESSION=";
/// Added to the number of a session's request for what ends the rest of it, of which nobody wants to hear.
const ENDING: u32 = 1 << 30;
/// The number of requests that are not answered.
const UNANSWERED: u32 = u32::MAX;

/// The line that starts what is wanted, a login shell if nothing is; nothing where sshd itself knows best.
fn line(profile: &Profile, number: u32, words: &[OsString]) -> Option<OsString> {
    if profile.shell.kind != Language::Sh {
        // As ssh itself makes a line of words. What it starts ends with the session: Windows' sshd sees to that.
        return (!words.is_empty()).then(|| words.join(OsStr::new(" ")));
    }
    let mut line = format!("exec /usr/bin/env {MARK}{number}. ").into_bytes();
    if words.is_empty() {
        line.extend(b"\"${SHELL:-/bin/sh}\" -l");
    }
    for word in words {
        sh::quote(&mut line, word);
        line.push(b' ');
    }
    Some(OsString::from_vec(line))
}

/// The line that ends what is left of a session, or of all; nothing where sshd sees to that.
fn ending(profile: &Profile, number: Option<u32>) -> Option<String> {
    // Busybox looks for a plain word no further than to the first NUL.
    let mark = number.map_or_else(|| MARK.to_owned(), |number| format!("{MARK}{number}[.]"));
    // Again, until there is none: one may start another one meanwhile.
    let line = format!(
        "n=0; while test $n -lt 50; do p=$(grep -ls '{mark}' /proc/[0-9]*/environ | cut -d/ -f3); \
         test -n \"$p\" || exit 0; kill -9 $p 2>/dev/null; n=$((n+1)); test $n -lt 2 || sleep 0.1; done; exit 1"
    );
    (profile.shell.kind == Language::Sh).then_some(line)
}

/// What is said when there can be no door.
pub(super) fn not_admitted(error: io::Error) -> Failure {
    Failure::new(FailureClass::QemuRefused, format!("opening a door for people's sessions: {error}"))
}

/// Closes a door; the line that ends whatever the sessions have left in the guest, if there may be something.
pub(super) fn dismiss(door: &Door, profile: &Profile, why: &str) -> Option<String> {
    door.close(why);
    if door.was_used() { ending(profile, None) } else { None }
}

/// How long that line is waited for.
pub(super) fn waits() -> Wait {
    Wait::new("the end of people's sessions", PATIENCE)
}

/// What became of it is no matter of the build's: if something is in its way, that is told when it is.
pub(super) fn dismissed(ended: Result<End, Failure>) -> Result<(), Failure> {
    match ended {
        Err(failure) if failure.class != FailureClass::Deadline => Err(failure),
        _ => Ok(()),
    }
}

/// Lets people in whose ssh runs in the controller of a pair.
pub(super) fn admit(agent: &mut Agent, desk: &Controller, path: &Path) -> io::Result<Door> {
    let (teller, hearing) = sessions::hearing()?;
    let (asks, requests) = mpsc::channel();
    let (bell, rung) = sessions::bell()?;
    let desk = desk.clone();
    let ask = move |asked| {
        for request in requests_for(&desk, asked) {
            // A pair that is gone does nothing more.
            let _ = asks.send(request);
        }
        sessions::ring(&rung);
    };
    let door = Door::open(path, (teller.clone(), hearing), ask)?;
    let hears = Box::new(move |report| {
        if let Some(told) = told(report) {
            teller.tell(told);
        }
    });
    agent.serve_aside(Aside { requests, bell, hears });
    Ok(door)
}

fn requests_for(desk: &Controller, asked: Asked) -> Vec<Request> {
    let run = |number: u32| OF_OTHERS | number;
    let unanswered = |what| vec![Request { number: UNANSWERED, what }];
    match asked {
        Asked::Open(number, wanted) => {
            let line = line(&desk.profile, number, &wanted.words);
            let what = What::Run(desk.for_person(line.as_deref(), wanted.terminal.as_ref()));
            vec![Request { number: run(number), what }]
        }
        Asked::Feed(number, bytes) => unanswered(What::Feed { run: run(number), bytes }),
        Asked::Allow(number, bytes) => unanswered(What::Allow { run: run(number), bytes }),
        Asked::Resize(number, size) => {
            vec![Request { number: run(number), what: What::Resize { run: run(number), size } }]
        }
        Asked::Close(number) => {
            let mut all = unanswered(What::EndSession { run: run(number) });
            let line = ending(&desk.profile, Some(number));
            all.extend(line.map(|line| Request {
                number: run(number) | ENDING,
                what: What::Run(RunRequest {
                    streams: Streams::Together,
                    ..desk.for_person(Some(OsStr::new(&line)), None)
                }),
            }));
            all
        }
    }
}

/// What a report means for a session.
fn told(report: Report) -> Option<Told> {
    let of = report.number()? & !OF_OTHERS;
    if of & ENDING != 0 {
        return None;
    }
    Some(match report {
        Report::Output { error, bytes, .. } => Told::Flowed(of, Flowed::Output { error, bytes }),
        Report::Taken { bytes, .. } => Told::Flowed(of, Flowed::Taken(bytes)),
        Report::Done { .. } => Told::Resized(of),
        Report::Failed { why, .. } => Told::Ended(of, End::NotStarted(why)),
        Report::Ended { ending, .. } => Told::Ended(
            of,
            match ending {
                Ending::Exited(status) => End::Status(status),
                Ending::Signalled(signal) => End::Signal(signal),
                Ending::NotStarted(why) | Ending::NoStatus(why) => End::NotStarted(why),
            },
        ),
        _ => return None,
    })
}

/// Lets people in whose ssh runs beside QEMU.
pub(super) fn admit_here(ssh: PathBuf, folder: PathBuf, profile: Profile, path: &Path) -> io::Result<Door> {
    let (teller, hearing) = sessions::hearing()?;
    let mut here =
        Here { ssh, folder, profile, teller: teller.clone(), flows: Arc::default(), running: BTreeMap::new() };
    Door::open(path, (teller, hearing), move |asked| here.take(asked))
}

/// The ssh of each session, in this process's own room. The kernel kills them when the thread that asks for them ends.
struct Here {
    ssh: PathBuf,
    folder: PathBuf,
    profile: Profile,
    teller: Teller,
    flows: Arc<Flows>,
    running: BTreeMap<u32, Arc<Started>>,
}

/// A program that somebody waits for.
struct Started {
    child: Mutex<Child>,
    pidfd: OwnedFd,
}

impl Started {
    fn new(mut command: Command) -> io::Result<Arc<Self>> {
        tied::tie(&mut command, Vec::new());
        Self::of(command.spawn()?)
    }

    fn of(mut child: Child) -> io::Result<Arc<Self>> {
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })?;
        Ok(Arc::new(Self { child: Mutex::new(child), pidfd }))
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) -> End {
        // Without the lock: whoever is to kill it needs that.
        while poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], None) == Err(rustix::io::Errno::INTR) {}
        match self.child().wait() {
            Ok(status) => end_of(status),
            Err(error) => End::NotStarted(error.to_string()),
        }
    }
}

impl Here {
    fn take(&mut self, asked: Asked) {
        match asked {
            Asked::Open(number, wanted) => {
                let line = line(&self.profile, number, &wanted.words);
                if let Err(error) = self.open(number, line.as_deref(), wanted.terminal) {
                    let why = format!("{}: {error}", self.ssh.display());
                    self.teller.tell(Told::Ended(number, End::NotStarted(why)));
                }
            }
            Asked::Feed(number, bytes) => self.flows.feed(number, bytes),
            Asked::Allow(number, bytes) => self.flows.allow(number, bytes),
            Asked::Resize(number, size) => {
                self.flows.resize(number, size);
                if let Some(started) = self.running.get(&number) {
                    // It is nobody's controlling terminal, so that the kernel tells nobody.
                    let _ = pidfd_send_signal(&started.pidfd, Signal::WINCH);
                }
                self.teller.tell(Told::Resized(number));
            }
            Asked::Close(number) => self.close(number),
        }
    }

    fn ssh(&self, line: Option<&OsStr>, terminal: bool) -> Command {
        let (reach, at) = (&self.profile.reach, (Ipv4Addr::LOCALHOST, REACHED_BY));
        let mut command = Command::new(&self.ssh);
        command.args(controller::ssh_for_person(reach, &self.folder, at, line, terminal));
        command.env_clear().env("PATH", "/bin:/usr/bin").env("HOME", "/tmp");
        command
    }

    fn open(&mut self, number: u32, line: Option<&OsStr>, terminal: Option<(String, Size)>) -> io::Result<()> {
        let mut command = self.ssh(line, terminal.is_some());
        let ends = Ends::of(&mut command, terminal.as_ref().map(|(_, size)| *size))?;
        if let Some((name, _)) = terminal {
            command.env("TERM", name);
        }
        let started = Started::new(command)?;
        let teller = self.teller.clone();
        let all_said = self.flows.begin(number, ends, move |flowed| teller.tell(Told::Flowed(number, flowed)));
        self.running.insert(number, started.clone());
        let (flows, teller) = (self.flows.clone(), self.teller.clone());
        thread::spawn(move || {
            let end = started.wait();
            all_said.wait();
            flows.end(number);
            teller.tell(Told::Ended(number, end));
        });
        Ok(())
    }

    fn close(&mut self, number: u32) {
        self.flows.end(number);
        if let Some(started) = self.running.remove(&number) {
            // One that has ended takes no signal any more.
            let _ = started.child().kill();
        }
        let Some(line) = ending(&self.profile, Some(number)) else { return };
        let mut command = self.ssh(Some(OsStr::new(&line)), false);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Ok(started) = Started::new(command) {
            thread::spawn(move || started.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    /// What the line does in this host's shell.
    fn done(line: &OsStr, shell: &str) -> String {
        let output = Command::new("/bin/sh").arg("-c").arg(line).env("SHELL", shell).stdin(Stdio::null()).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    #[test]
    fn words_reach_their_program_as_they_are_and_bear_the_mark() {
        let profile = Profile::built_in("standin").unwrap();
        let odd =
            ["/bin/sh", "-c", "echo $ANCHORHOLD_SESSION; printf '<%s>' \"$@\"", "sh", "a b", "", "'", "$x `y`\n;"];
        let made = line(&profile, 12, &words(&odd)).unwrap();
        assert_eq!(done(&made, "/bin/sh"), "12.\n<a b><><'><$x `y`\n;>");
        // Without any it is what the guest calls its shell.
        let made = line(&profile, 3, &[]).unwrap();
        assert_eq!(done(&made, "/bin/echo"), "-l\n");
        let mut windows = profile.clone();
        windows.shell.kind = Language::Cmd;
        let made = |all: &[&str]| line(&windows, 1, &words(all));
        assert_eq!((made(&[]), made(&["dir", "C:\\"])), (None, Some("dir C:\\".into())));
    }

    #[test]
    fn one_session_is_told_from_another_by_its_mark() {
        let mut profile = Profile::built_in("standin").unwrap();
        let of = |number| ending(&profile, number).unwrap();
        assert!(of(Some(1)).contains("'ANCHORHOLD_SESSION=1[.]'") && of(None).contains("'ANCHORHOLD_SESSION='"));
        profile.shell.kind = Language::Cmd;
        assert_eq!(ending(&profile, Some(1)), None);
    }

    #[test]
    fn what_ends_a_session_is_no_part_of_it() {
        let report = |number| Report::Ended { number, ending: Ending::Exited(7) };
        assert!(matches!(told(report(OF_OTHERS | 5)), Some(Told::Ended(5, End::Status(7)))));
        assert!(told(report(OF_OTHERS | ENDING | 5)).is_none());
        assert!(told(Report::Done { number: UNANSWERED }).is_none());
    }
}
