//! Sessions of people in a guest that runs, beside whatever is done in it.
//!
//! ```text
//!   person ──socket── Door ──Asked──▶ whoever starts programs: ssh in the room, or the controller's agent
//!                          ◀──Told───
//! ```
//!
//! A [`Door`] is a socket in the room, and a thread that hears whoever comes by it: frames of [`message`]. It starts nothing
//! itself. What it wants done it asks of a function, which never waits, and what comes of that it is told by a [`Teller`]. At
//! most [`WINDOW`] bytes of each session are under way in each direction, wherever one of its ends does not go on: nobody who
//! has other things to do waits for a person, or remembers more of one than that.

mod flow;
pub mod message;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

pub use self::flow::{AllSaid, Ends, Flowed, Flows, WINDOW};
pub use self::message::{Answer, Said, Size, Wanted};
use crate::channel::Channel;
use crate::linux::End;
use crate::report::Frames;

/// How many sessions there may be at once.
pub const MOST: usize = 4;
/// How much of its output a session is allowed again at once, in bytes: not a message for each piece.
const ALLOWED_AT_ONCE: usize = WINDOW / 4;

/// What is to be done for a session. Sessions are numbered from 1, and no number is used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Start one; it was found to be sound.
    Open(u32, Wanted),
    /// Give its program input; nothing is the end.
    Feed(u32, Vec<u8>),
    /// Let it say so many bytes more.
    Allow(u32, u32),
    /// Give its terminal a size; [`Told::Resized`] is due.
    Resize(u32, Size),
    /// End it, if it has not ended, and what it has left running.
    Close(u32),
}

/// What comes of a session.
#[derive(Clone, Debug)]
pub enum Told {
    /// Of its streams.
    Flowed(u32, Flowed),
    /// Its terminal has the size.
    Resized(u32),
    /// Its program has ended, and all that it said was told.
    Ended(u32, End),
    /// There are to be no more sessions, and why; whoever waits for it is told when nothing more will be asked for but what was.
    Over(String, Sender<()>),
    /// The thread is to end.
    Stop,
}

/// Tells a door what comes of what it asked for.
#[derive(Clone, Debug)]
pub struct Teller {
    told: Sender<Told>,
    bell: Arc<OwnedFd>,
}

impl Teller {
    /// Whether there is still a door.
    pub fn tell(&self, told: Told) -> bool {
        self.told.send(told).is_ok() && ring(&self.bell)
    }
}

/// What a door is told: the other end of a [`Teller`].
#[derive(Debug)]
pub struct Hearing {
    told: Receiver<Told>,
    bell: OwnedFd,
}

/// Both ends of what a door is told.
///
/// # Errors
/// pipe(2)'s.
pub fn hearing() -> io::Result<(Teller, Hearing)> {
    let (sender, told) = mpsc::channel();
    let (heard, rung) = bell()?;
    Ok((Teller { told: sender, bell: Arc::new(rung) }, Hearing { told, bell: heard }))
}

/// A pipe whose reading end can be read once something was put where its reader looks; neither end ever waits.
pub(crate) fn bell() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
    Ok(rustix::pipe::pipe_with(flags)?)
}

/// Rings; whether anybody could hear it.
pub(crate) fn ring(bell: &OwnedFd) -> bool {
    // A pipe that is full has been heard by nobody yet, which is as good.
    matches!(rustix::io::write(bell, b"!"), Ok(_) | Err(rustix::io::Errno::AGAIN))
}

/// Makes the bell still, before its reader looks.
pub(crate) fn still(bell: &OwnedFd) {
    let mut piece = [0; 512];
    while matches!(rustix::io::read(bell, &mut piece), Ok(1..) | Err(rustix::io::Errno::INTR)) {}
}

/// The socket by which people come, and the thread that hears them. They are told that all is over when this is dropped.
#[derive(Debug)]
pub struct Door {
    teller: Teller,
    was_used: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    /// Opens one at `path`.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(
        path: &Path,
        (teller, hearing): (Teller, Hearing),
        ask: impl FnMut(Asked) + Send + 'static,
    ) -> io::Result<Self> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let was_used = Arc::new(AtomicBool::new(false));
        let mut hall = Hall {
            listener: Some((listener, path.to_owned())),
            hearing,
            callers: Vec::new(),
            last: 0,
            was_used: was_used.clone(),
            ask,
        };
        let thread = std::thread::Builder::new().name("sessions".into()).spawn(move || hall.serve())?;
        Ok(Self { teller, was_used, thread: Some(thread) })
    }

    /// Whether there was any session.
    pub fn was_used(&self) -> bool {
        self.was_used.load(Ordering::Acquire)
    }

    /// Ends all sessions and lets nobody in any more; says why. When this is done, everything was asked for that ever will be; what
    /// they ran may run on for a moment.
    pub fn close(&self, why: &str) {
        let (done, is_done) = mpsc::channel();
        if self.teller.tell(Told::Over(why.to_owned(), done)) {
            // The thread waits for nobody. One that has ended has dropped the other end.
            let _ = is_done.recv();
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.close("the guest has ended");
        self.teller.tell(Told::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Hall<F> {
    listener: Option<(UnixListener, PathBuf)>,
    hearing: Hearing,
    callers: Vec<Caller>,
    last: u32,
    was_used: Arc<AtomicBool>,
    ask: F,
}

struct Caller {
    channel: Channel,
    frames: Frames,
    state: State,
    /// The other end of the socket is closed.
    is_gone: bool,
}

enum State {
    /// Has not said yet what is wanted.
    Asking,
    /// In a session.
    Open(Session),
    /// Gets the rest of what is sent, and goes.
    Leaving,
}

#[derive(Default)]
struct Session {
    number: u32,
    /// Input that its program has not taken yet, in bytes.
    under_way: usize,
    has_ended_input: bool,
    /// Output that was passed on and not allowed again, in bytes.
    owed: usize,
    /// The terminal is being given a size, and that is not done.
    is_resizing: bool,
    next_size: Option<Size>,
}

impl<F: FnMut(Asked)> Hall<F> {
    fn serve(&mut self) {
        while self.wait().is_ok() {
            still(&self.hearing.bell);
            while let Ok(told) = self.hearing.told.try_recv() {
                match told {
                    Told::Stop => return,
                    Told::Over(why, done) => {
                        self.close(&why);
                        let _ = done.send(());
                    }
                    Told::Flowed(of, flowed) => self.hear(of, |caller| caller.pass_on(flowed)),
                    Told::Resized(of) => self.hear(of, |caller| {
                        if let State::Open(session) = &mut caller.state {
                            session.is_resizing = false;
                        }
                    }),
                    Told::Ended(of, end) => self.hear(of, |caller| caller.leave(&Answer::Ended(end))),
                }
            }
            self.let_in();
            for number in 0..self.callers.len() {
                let before = self.callers[number].session();
                self.listen(number);
                self.allow(number);
                self.close_left(number, before);
            }
            self.callers.retain(|caller| !caller.is_done());
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.hearing.bell, PollFlags::IN)];
        fds.extend(self.listener.as_ref().map(|(listener, _)| PollFd::new(listener, PollFlags::IN)));
        let first = fds.len();
        for caller in &self.callers {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, caller.may_speak());
            wanted.set(PollFlags::OUT, caller.channel.has_outgoing());
            fds.push(PollFd::from_borrowed_fd(caller.channel.as_fd(), wanted));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let broken = PollFlags::HUP | PollFlags::ERR;
        let gone: Vec<bool> = fds[first..].iter().map(|fd| fd.revents().intersects(broken)).collect();
        drop(fds);
        for (caller, is_gone) in self.callers.iter_mut().zip(gone) {
            caller.is_gone = is_gone;
        }
        Ok(())
    }

    fn let_in(&mut self) {
        while let Some((listener, _)) = &self.listener
            && let Ok((stream, _)) = listener.accept()
        {
            let channel = Channel::of(stream);
            let mut caller = Caller { channel, frames: Frames::new(), state: State::Asking, is_gone: false };
            if self.callers.len() < MOST {
                self.callers.push(caller);
            } else {
                caller.leave(&Answer::Over(format!("there are {MOST} sessions in this guest already")));
            }
        }
    }

    /// Takes what a caller says, as much as may be under way.
    fn listen(&mut self, number: usize) {
        let caller = &mut self.callers[number];
        // One who breaks his socket is gone.
        let _ = caller.channel.flush();
        if !caller.may_speak() {
            return;
        }
        match caller.channel.read() {
            Ok(Some(bytes)) => caller.frames.feed(&bytes),
            Ok(None) if caller.channel.is_open() => return,
            Ok(None) | Err(_) => return caller.lose(),
        }
        let (mut input, mut has_ended) = (Vec::new(), false);
        loop {
            let said = match caller.frames.next_message() {
                Ok(Some(message)) => Said::decode(&message),
                Ok(None) => break,
                Err(error) => Err(error),
            };
            let refused = match (said, &mut caller.state) {
                (Err(error), _) => Some(error.to_string()),
                (Ok(Said::Open(wanted)), State::Asking) => match wanted.check() {
                    Ok(()) => {
                        self.last += 1;
                        caller.state = State::Open(Session { number: self.last, ..Session::default() });
                        self.was_used.store(true, Ordering::Release);
                        (self.ask)(Asked::Open(self.last, wanted));
                        None
                    }
                    Err(why) => Some(why.to_owned()),
                },
                (Ok(Said::Input(bytes)), State::Open(session)) => {
                    // What comes behind its end is nobody's.
                    if !session.has_ended_input && !has_ended {
                        has_ended = bytes.is_empty();
                        input.extend(bytes);
                    }
                    None
                }
                (Ok(Said::Resize(size)), State::Open(session)) => {
                    session.next_size = Some(size);
                    None
                }
                (Ok(_), _) => Some("what is wanted must be said first, and once".to_owned()),
            };
            if let Some(why) = refused {
                return caller.leave(&Answer::Over(why));
            }
        }
        let State::Open(session) = &mut caller.state else { return };
        if !input.is_empty() {
            session.under_way += input.len();
            (self.ask)(Asked::Feed(session.number, input));
        }
        if has_ended {
            session.has_ended_input = true;
            (self.ask)(Asked::Feed(session.number, Vec::new()));
        }
    }

    /// Allows again what was passed on, and asks for a size that was not asked for yet.
    fn allow(&mut self, number: usize) {
        let caller = &mut self.callers[number];
        let State::Open(session) = &mut caller.state else { return };
        if caller.channel.waiting() < WINDOW / 2 && session.owed >= ALLOWED_AT_ONCE {
            (self.ask)(Asked::Allow(session.number, u32::try_from(session.owed).unwrap_or(u32::MAX)));
            session.owed = 0;
        }
        if !session.is_resizing
            && let Some(size) = session.next_size.take()
        {
            session.is_resizing = true;
            (self.ask)(Asked::Resize(session.number, size));
        }
    }

    /// Closes the session of a caller who has left it since, or is gone.
    fn close_left(&mut self, number: usize, before: Option<u32>) {
        let caller = &mut self.callers[number];
        // Whoever says more than is allowed loses its person.
        let is_flooded = caller.channel.waiting() > 4 * WINDOW;
        let is_unheard = caller.is_gone && !caller.may_speak();
        if is_flooded || is_unheard {
            caller.lose();
        }
        if let Some(session) = before.filter(|_| caller.session().is_none()) {
            (self.ask)(Asked::Close(session));
        }
    }

    /// Tells somebody something; what comes of one who has gone is nobody's.
    fn hear(&mut self, of: u32, tell: impl FnOnce(&mut Caller)) {
        let Some(caller) = self.callers.iter_mut().find(|caller| caller.session() == Some(of)) else { return };
        tell(caller);
        if caller.session().is_none() {
            (self.ask)(Asked::Close(of));
        }
    }

    fn close(&mut self, why: &str) {
        if let Some((_, path)) = self.listener.take() {
            let _ = std::fs::remove_file(path);
        }
        for caller in &mut self.callers {
            let session = caller.session();
            if !matches!(caller.state, State::Leaving) {
                caller.leave(&Answer::Over(why.to_owned()));
            }
            if let Some(session) = session {
                (self.ask)(Asked::Close(session));
            }
        }
    }
}

impl Caller {
    /// Whether what is said can be heard now.
    fn may_speak(&self) -> bool {
        match &self.state {
            State::Asking => true,
            State::Open(session) => session.under_way < WINDOW,
            State::Leaving => false,
        }
    }

    fn session(&self) -> Option<u32> {
        match &self.state {
            State::Open(session) => Some(session.number),
            _ => None,
        }
    }

    fn is_done(&self) -> bool {
        let is_leaving = matches!(self.state, State::Leaving);
        is_leaving && (self.is_gone || !self.channel.has_outgoing())
    }

    fn pass_on(&mut self, flowed: Flowed) {
        let State::Open(session) = &mut self.state else { return };
        match flowed {
            Flowed::Output { error, bytes } => {
                session.owed += bytes.len();
                if let Ok(frame) = (Answer::Output { error, bytes }).encode() {
                    let _ = self.channel.send(&frame);
                }
            }
            Flowed::Taken(bytes) => session.under_way = session.under_way.saturating_sub(bytes as usize),
        }
    }

    /// There is nobody any more to whom anything could be said.
    fn lose(&mut self) {
        self.state = State::Leaving;
        self.is_gone = true;
    }

    fn leave(&mut self, last: &Answer) {
        if let Ok(frame) = last.encode() {
            let _ = self.channel.send(&frame);
        }
        self.state = State::Leaving;
    }
}

#[cfg(test)]
mod tests;
