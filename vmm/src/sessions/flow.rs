//! A program's streams at the side where it runs: each is taken only as far as there is somebody who takes it further.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::Size;

/// How many bytes of one session may be under way in each direction.
pub const WINDOW: usize = 256 << 10;
/// How many bytes are passed on at once.
const PIECE: usize = 16 << 10;
/// How long something that outlives the program may hold its output open before the end is told nevertheless.
const HELD_OPEN: Duration = Duration::from_secs(2);
/// What ends the input of a terminal: control-D.
const END_OF_INPUT: u8 = 4;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much may still be passed on.
#[derive(Debug)]
struct Credit {
    left: Mutex<Option<usize>>,
    more: Condvar,
}

impl Credit {
    fn new() -> Arc<Self> {
        Arc::new(Self { left: Mutex::new(Some(WINDOW)), more: Condvar::new() })
    }

    fn add(&self, bytes: usize) {
        if let Some(left) = lock(&self.left).as_mut() {
            *left = left.saturating_add(bytes);
        }
        self.more.notify_all();
    }

    fn end(&self) {
        *lock(&self.left) = None;
        self.more.notify_all();
    }

    /// Waits until something may be passed on, and takes of it; nothing when there is nobody any more.
    fn take(&self, most: usize) -> Option<usize> {
        let mut left = lock(&self.left);
        loop {
            match left.as_mut() {
                None => return None,
                Some(0) => left = self.more.wait(left).unwrap_or_else(PoisonError::into_inner),
                Some(bytes) => {
                    let taken = most.min(*bytes);
                    *bytes -= taken;
                    return Some(taken);
                }
            }
        }
    }

    /// Whether whoever passes on is waiting for somebody who takes it.
    fn is_spent(&self) -> bool {
        *lock(&self.left) == Some(0)
    }
}

/// What a program's streams are joined to.
pub struct Ends {
    outputs: Vec<(bool, Box<dyn Read + Send>)>,
    input: Box<dyn Write + Send>,
    terminal: Option<File>,
}

impl Ends {
    /// Gives a program a terminal of this size, or three pipes.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(command: &mut Command, terminal: Option<Size>) -> io::Result<Self> {
        let Some(size) = terminal else {
            let ((fed, feed), (output, says), (error, complains)) = (io::pipe()?, io::pipe()?, io::pipe()?);
            command.stdin(fed).stdout(says).stderr(complains);
            return Ok(Self {
                outputs: vec![(false, Box::new(output)), (true, Box::new(error))],
                input: Box::new(feed),
                terminal: None,
            });
        };
        // Never the controlling terminal of whoever opens it.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&ours)?;
        rustix::pty::unlockpt(&ours)?;
        let path = rustix::pty::ptsname(&ours, Vec::new())?;
        let path = path.into_string().map_err(io::Error::other)?;
        let theirs = File::options()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NOCTTY.bits().cast_signed())
            .open(path)?;
        resize(&theirs, size)?;
        command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
        let ours = File::from(ours);
        Ok(Self {
            outputs: vec![(false, Box::new(ours.try_clone()?))],
            input: Box::new(ours.try_clone()?),
            terminal: Some(ours),
        })
    }
}

fn resize(terminal: &File, Size { rows, columns }: Size) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// What comes of a session's streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flowed {
    /// The program said something.
    Output {
        /// To standard error.
        error: bool,
        /// As it came.
        bytes: Vec<u8>,
    },
    /// The program took so much of its input, or never will.
    Taken(u32),
}

/// The streams of the sessions that run here, by their numbers.
#[derive(Debug, Default)]
pub struct Flows {
    open: Mutex<BTreeMap<u32, Flow>>,
}

#[derive(Debug)]
struct Flow {
    credit: Arc<Credit>,
    input: Sender<Vec<u8>>,
    terminal: Option<File>,
}

/// Waits for the end of a session's streams.
#[derive(Debug)]
pub struct AllSaid {
    done: mpsc::Receiver<()>,
    credit: Arc<Credit>,
}

impl Flows {
    /// Passes on what a program says, as far as somebody takes it, and its input; by threads of its own.
    pub fn begin(&self, number: u32, ends: Ends, tell: impl FnMut(Flowed) -> bool + Clone + Send + 'static) -> AllSaid {
        let credit = Credit::new();
        let (done, all_done) = mpsc::channel();
        for (error, from) in ends.outputs {
            let (credit, done, tell) = (credit.clone(), done.clone(), tell.clone());
            thread::spawn(move || {
                pump(error, from, &credit, tell);
                // The last one to go ends the wait.
                drop(done);
            });
        }
        let (input, pieces) = mpsc::channel();
        let (to, is_terminal) = (ends.input, ends.terminal.is_some());
        thread::spawn(move || feed(&pieces, to, is_terminal, tell));
        let flow = Flow { credit: credit.clone(), input, terminal: ends.terminal };
        lock(&self.open).insert(number, flow);
        AllSaid { done: all_done, credit }
    }

    /// Input for a session's program; nothing is its end. One that has ended takes nothing.
    pub fn feed(&self, number: u32, bytes: Vec<u8>) {
        if let Some(flow) = lock(&self.open).get(&number) {
            let _ = flow.input.send(bytes);
        }
    }

    /// So much more of a session's output may be passed on.
    pub fn allow(&self, number: u32, bytes: u32) {
        if let Some(flow) = lock(&self.open).get(&number) {
            flow.credit.add(bytes as usize);
        }
    }

    /// Gives a session's terminal another size; whoever looks at it must be told by SIGWINCH.
    pub fn resize(&self, number: u32, size: Size) {
        if let Some(terminal) = lock(&self.open).get(&number).and_then(|flow| flow.terminal.as_ref()) {
            // A terminal whose other end is closed has no size.
            let _ = resize(terminal, size);
        }
    }

    /// Nobody takes what a session's program says any more, and nobody gives it anything.
    pub fn end(&self, number: u32) {
        if let Some(flow) = lock(&self.open).remove(&number) {
            flow.credit.end();
        }
    }
}

impl AllSaid {
    /// Until all that an ended program said was passed on; not for ever, when something else holds its streams open.
    pub fn wait(&self) {
        loop {
            match self.done.recv_timeout(HELD_OPEN) {
                Err(RecvTimeoutError::Timeout) if self.credit.is_spent() => {}
                _ => return,
            }
        }
    }
}

fn pump(error: bool, mut from: impl Read, credit: &Credit, mut tell: impl FnMut(Flowed) -> bool) {
    let mut buffer = [0; PIECE];
    loop {
        let mut rest = match from.read(&mut buffer) {
            Ok(length @ 1..) => &buffer[..length],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The end of a pipe; EIO, that of a terminal.
            Ok(0) | Err(_) => return,
        };
        while !rest.is_empty() {
            let Some(taken) = credit.take(rest.len()) else { return };
            let (piece, left) = rest.split_at(taken);
            if !tell(Flowed::Output { error, bytes: piece.to_vec() }) {
                return;
            }
            rest = left;
        }
    }
}

fn feed(
    pieces: &mpsc::Receiver<Vec<u8>>,
    to: Box<dyn Write + Send>,
    is_terminal: bool,
    mut tell: impl FnMut(Flowed) -> bool,
) {
    let mut to = Some(to);
    while let Ok(bytes) = pieces.recv() {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        match &mut to {
            Some(open) if bytes.is_empty() && is_terminal => drop(open.write_all(&[END_OF_INPUT])),
            Some(_) if bytes.is_empty() => to = None,
            // One that reads no more is none of our business: its end is told.
            Some(open) => drop(open.write_all(&bytes)),
            None => {}
        }
        if length > 0 && !tell(Flowed::Taken(length)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Child;

    use super::*;

    fn begin(words: &[&str], terminal: Option<Size>) -> (Flows, Child, AllSaid, mpsc::Receiver<Flowed>) {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let ends = Ends::of(&mut command, terminal).unwrap();
        let child = command.spawn().unwrap();
        drop(command);
        let (said, hears) = mpsc::channel();
        let flows = Flows::default();
        let all_said = flows.begin(7, ends, move |flowed| said.send(flowed).is_ok());
        (flows, child, all_said, hears)
    }

    const SOON: Duration = Duration::from_secs(60);

    /// What is said until so many bytes are there.
    fn output(hears: &mpsc::Receiver<Flowed>, enough: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < enough {
            match hears.recv_timeout(SOON).unwrap() {
                Flowed::Output { bytes, .. } => all.extend(bytes),
                Flowed::Taken(_) => {}
            }
        }
        all
    }

    #[test]
    fn a_flood_stops_where_nobody_takes_it() {
        let (flows, mut child, all_said, hears) = begin(&["cat", "/dev/zero"], None);
        assert_eq!(output(&hears, WINDOW).len(), WINDOW);
        while !all_said.credit.is_spent() {
            thread::yield_now();
        }
        assert!(hears.try_recv().is_err(), "more than is allowed");
        flows.allow(7, 1000);
        assert_eq!(output(&hears, 1000).len(), 1000);
        // Whoever waits for room to say something is let go.
        flows.end(7);
        child.kill().unwrap();
        child.wait().unwrap();
        all_said.wait();
    }

    #[test]
    fn input_arrives_and_ends_and_is_told_when_it_was_taken() {
        let (flows, mut child, all_said, hears) = begin(&["sh", "-c", "cat; echo over >&2; exit 3"], None);
        flows.feed(7, b"one ".to_vec());
        flows.feed(7, b"two".to_vec());
        flows.feed(7, Vec::new());
        // Nobody reads what comes behind the end.
        flows.feed(7, b"three".to_vec());
        assert_eq!(child.wait().unwrap().code(), Some(3));
        all_said.wait();
        flows.end(7);
        let (mut out, mut err, mut taken) = (Vec::new(), Vec::new(), 0);
        while let Ok(flowed) = hears.recv_timeout(SOON) {
            match flowed {
                Flowed::Output { error: false, bytes } => out.extend(bytes),
                Flowed::Output { error: true, bytes } => err.extend(bytes),
                Flowed::Taken(bytes) => taken += bytes,
            }
        }
        assert_eq!((&out[..], &err[..], taken), (&b"one two"[..], &b"over\n"[..], 12));
    }

    #[test]
    fn a_terminal_has_its_size_and_gets_another() {
        let script = "stty size; read word; stty size; echo $word; test -t 2 && echo a terminal";
        let size = |rows| Size { rows, columns: 132 };
        let (flows, mut child, all_said, hears) = begin(&["sh", "-c", script], Some(size(41)));
        let mut shown = output(&hears, "41 132\r\n".len());
        flows.resize(7, size(42));
        flows.feed(7, b"typed\n".to_vec());
        child.wait().unwrap();
        all_said.wait();
        flows.end(7);
        while let Ok(flowed) = hears.recv_timeout(SOON) {
            if let Flowed::Output { bytes, .. } = flowed {
                shown.extend(bytes);
            }
        }
        assert_eq!(String::from_utf8_lossy(&shown), "41 132\r\ntyped\r\n42 132\r\ntyped\r\na terminal\r\n");
    }
}
