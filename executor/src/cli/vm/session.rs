//! `anchorhold vm ssh`: a session in a guest, one that runs or one that is revived for it.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anchorhold::machines::stages::Registry;
use anchorhold_sandbox::outcome::exit_status;
use anchorhold_vmm::failure::Failure;
use anchorhold_vmm::linux::End;
use anchorhold_vmm::report::Frames;
use anchorhold_vmm::sessions::{Answer, Said, Size, Wanted};
use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::super::complain;
use super::stages::{self, ReviveOptions};
use super::visit::Raw;
use super::{Refused, not_started};

/// The status of a session that its person has left, as ssh's.
const LEFT: i32 = 255;
/// Nobody has ended the session from here.
const NOT_ENDED: i32 = -1;

#[derive(Debug, Args)]
pub(super) struct SshOptions {
    /// A machine that runs, as `vm list` names it [default: one that is revived for this and ends with it]
    #[arg(
        value_name = "MACHINE",
        conflicts_with_all = ["guest", "memory", "cores", "drive", "only_saved", "store", "exchange", "cwd", "env", "now", "timeout"],
    )]
    machine: Option<String>,

    /// Give the command a terminal, in a machine that runs; a session without a command has one
    #[arg(long, short, requires = "machine", help_heading = "Process")]
    terminal: bool,

    #[command(flatten)]
    revive: ReviveOptions,
}

pub(super) fn ssh(options: &SshOptions) -> Result<i32, Refused> {
    let words = &options.revive.command;
    if words.is_empty() && !io::stdin().is_terminal() {
        return Err(not_started("a session wants a terminal; give a command after -- instead"));
    }
    match &options.machine {
        Some(machine) => in_running(machine, words, options.terminal || words.is_empty()),
        None => stages::in_revived(&options.revive),
    }
}

fn in_running(machine: &str, words: &[OsString], terminal: bool) -> Result<i32, Refused> {
    let words_of = |failure: Failure| not_started(failure.what);
    let found = Registry::open().and_then(|all| all.find(Some(machine))).map_err(words_of)?;
    let wanted = Wanted { words: words.to_vec(), terminal: terminal.then(|| (kind(), size())) };
    wanted.check().map_err(not_started)?;
    let stream = found.door().map_err(words_of)?;
    let person = Person::begin(&stream, &Said::Open(wanted)).map_err(not_started)?;
    let raw = if terminal { Raw::begin() } else { None };
    if raw.is_some() {
        person.hear_signals().map_err(not_started)?;
    }
    person.hear_input(raw.is_some());
    let last = listen(stream, &mut |is_error, bytes| {
        if is_error {
            return io::stderr().lock().write_all(bytes);
        }
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush())
    });
    if raw.is_some() && !matches!(last, Ok(Some(Answer::Ended(_)))) {
        // Whatever was shown last, its line is not ended.
        eprint!("\r\n");
    }
    drop(raw);
    let here = person.ended_here.load(Ordering::SeqCst);
    if here != NOT_ENDED {
        if here == LEFT {
            complain(format_args!("the session in {} was left, and what ran in it is ended", found.name));
        }
        return Ok(here);
    }
    let over = |why: &str| {
        complain(format_args!("the session in {} is over: {why}", found.name));
        Ok(exit_status::MACHINE)
    };
    match last {
        Ok(Some(Answer::Ended(End::Status(status)))) => Ok(status.into()),
        Ok(Some(Answer::Ended(End::Signal(signal)))) => Ok(128 + i32::try_from(signal).unwrap_or(0)),
        Ok(Some(Answer::Ended(End::NotStarted(why)))) => {
            Err((exit_status::NOT_EXECUTABLE, format!("starting ssh for {}: {why}", found.name)))
        }
        Ok(Some(Answer::Over(why))) => over(&why),
        Ok(Some(Answer::Output { .. }) | None) => over("its machines are gone"),
        Err(error) => over(&error.to_string()),
    }
}

/// Until the last thing that is told, which is given; nothing when it never came.
fn listen(mut stream: UnixStream, output: &mut dyn FnMut(bool, &[u8]) -> io::Result<()>) -> io::Result<Option<Answer>> {
    let (mut frames, mut piece) = (Frames::new(), vec![0; 64 << 10]);
    loop {
        while let Some(message) = frames.next_message().map_err(io::Error::other)? {
            match Answer::decode(&message).map_err(io::Error::other)? {
                Answer::Output { error, bytes } => output(error, &bytes)?,
                last => return Ok(Some(last)),
            }
        }
        match stream.read(&mut piece) {
            Ok(0) => return Ok(None),
            Ok(length) => frames.feed(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// The kind of our terminal, as far as a guest can be told it.
fn kind() -> String {
    let named = std::env::var("TERM").unwrap_or_default();
    let wanted = Wanted { words: Vec::new(), terminal: Some((named.clone(), Size::default())) };
    if wanted.check().is_ok() { named } else { "xterm".to_owned() }
}

/// How large our terminal is.
fn size() -> Size {
    let found = rustix::termios::tcgetwinsize(io::stdin());
    found.map_or(Size { rows: 24, columns: 80 }, |found| Size { rows: found.ws_row, columns: found.ws_col })
}

/// What a person says from here, by threads of its own.
#[derive(Clone)]
struct Person {
    stream: Arc<Mutex<UnixStream>>,
    ended_here: Arc<AtomicI32>,
}

impl Person {
    fn begin(stream: &UnixStream, first: &Said) -> io::Result<Self> {
        let stream = Arc::new(Mutex::new(stream.try_clone()?));
        let person = Self { stream, ended_here: Arc::new(AtomicI32::new(NOT_ENDED)) };
        person.say(first)?;
        Ok(person)
    }

    fn say(&self, said: &Said) -> io::Result<()> {
        let frame = said.encode().map_err(io::Error::other)?;
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).write_all(&frame)
    }

    fn end(&self, stream: &UnixStream, status: i32) {
        self.ended_here.store(status, Ordering::SeqCst);
        let _ = stream.shutdown(Shutdown::Both);
    }

    /// Tells the guest when the terminal changes its size, and gives the terminal back when we are to end.
    fn hear_signals(&self) -> io::Result<()> {
        let set: SigSet = [Signal::SIGWINCH, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        // In this thread and all that come after it.
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?;
        let person = self.clone();
        let stream = person.stream.lock().unwrap_or_else(PoisonError::into_inner).try_clone()?;
        thread::spawn(move || {
            while let Ok(Some(signal)) = signals.read_signal() {
                if signal.ssi_signo == Signal::SIGWINCH as u32 {
                    let _ = person.say(&Said::Resize(size()));
                } else {
                    person.end(&stream, 128 + signal.ssi_signo.cast_signed());
                }
            }
        });
        Ok(())
    }

    fn hear_input(&self, is_terminal: bool) {
        let person = self.clone();
        thread::spawn(move || {
            let Ok(stream) = person.stream.lock().unwrap_or_else(PoisonError::into_inner).try_clone() else { return };
            let mut piece = [0; 16 << 10];
            let mut escape = Escape::default();
            while let Ok(length @ 1..) = io::stdin().read(&mut piece) {
                let (bytes, leaves) = match is_terminal {
                    true => escape.take(&piece[..length]),
                    false => (piece[..length].to_vec(), false),
                };
                if leaves {
                    return person.end(&stream, LEFT);
                }
                if !bytes.is_empty() && person.say(&Said::Input(bytes)).is_err() {
                    return;
                }
            }
            let _ = person.say(&Said::Input(Vec::new()));
        });
    }
}

/// Finds `~.` at the beginning of a line, which leaves a session that does not end by itself; `~~` is one tilde.
struct Escape {
    at_beginning: bool,
    is_begun: bool,
}

impl Default for Escape {
    fn default() -> Self {
        Self { at_beginning: true, is_begun: false }
    }
}

impl Escape {
    /// What of this is typed in the guest, and whether the session is left.
    fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut typed = Vec::with_capacity(bytes.len() + 1);
        for byte in bytes {
            if std::mem::take(&mut self.is_begun) {
                match byte {
                    b'.' => return (typed, true),
                    b'~' => {}
                    _ => typed.push(b'~'),
                }
            } else if self.at_beginning && *byte == b'~' {
                self.is_begun = true;
                continue;
            }
            typed.push(*byte);
            self.at_beginning = matches!(byte, b'\r' | b'\n');
        }
        (typed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_and_a_dot_at_the_beginning_of_a_line_leave_and_nothing_else() {
        let typed = |pieces: &[&[u8]]| {
            let mut escape = Escape::default();
            let mut all = Vec::new();
            for piece in pieces {
                let (bytes, leaves) = escape.take(piece);
                all.extend(bytes);
                if leaves {
                    return (all, true);
                }
            }
            (all, false)
        };
        assert_eq!(typed(&[b"~."]), (Vec::new(), true));
        assert_eq!(typed(&[b"ls\r", b"~", b"."]), (b"ls\r".to_vec(), true));
        assert_eq!(typed(&[b"cat ~/x~.\r~x"]), (b"cat ~/x~.\r~x".to_vec(), false));
        assert_eq!(typed(&[b"~~.\n~", b"~."]), (b"~.\n~.".to_vec(), false));
    }

    #[test]
    fn what_comes_out_of_a_room_is_shown_until_the_last_word() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut said = Vec::new();
        for answer in [
            Answer::Output { error: false, bytes: b"out".to_vec() },
            Answer::Output { error: true, bytes: b"err".to_vec() },
            Answer::Ended(End::Status(7)),
        ] {
            said.extend(answer.encode().unwrap());
        }
        // Cut wherever it may be, and with something behind its end.
        for piece in said.chunks(5) {
            theirs.write_all(piece).unwrap();
        }
        theirs.write_all(b"more").unwrap();
        let mut heard = Vec::new();
        let last = listen(ours, &mut |is_error, bytes| {
            heard.push((is_error, bytes.to_vec()));
            Ok(())
        });
        assert_eq!(last.unwrap(), Some(Answer::Ended(End::Status(7))));
        assert_eq!(heard, [(false, b"out".to_vec()), (true, b"err".to_vec())]);

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"HTTP/1.1 200").unwrap();
        let error = listen(ours, &mut |_, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("speaks something else"), "{error}");
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(listen(ours, &mut |_, _| Ok(())).unwrap(), None);
    }
}
