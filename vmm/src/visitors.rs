//! People who look at a machine while it runs: its console, a picture of its display.
//!
//! A visitor connects to a socket, says in one line what is wanted, and gets it:
//!
//! ```text
//! console\n      the console from here on; what is sent is typed at it
//! screenshot\n   `picture LENGTH\n` and a PNG, or `refused WHY\n`
//! ```
//!
//! They are heard by whoever waits for the machine, between everything else: a visitor who takes nothing is sent away, and
//! nobody waits for one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::channel::Channel;

/// How much a visitor may leave lying before he is sent away, in bytes.
const MOST_WAITING: usize = 1 << 20;
/// The longest wish.
const MAX_WISH: usize = 64;
/// How many may be there at once.
const MOST: usize = 16;
/// The largest picture that is passed on, in bytes.
const MAX_PICTURE: u64 = 64 << 20;

/// The socket and who came by it.
#[derive(Debug)]
pub struct Visitors {
    listener: UnixListener,
    pictures: PathBuf,
    count: u64,
    visitors: Vec<Visitor>,
}

#[derive(Debug)]
struct Visitor {
    channel: Channel,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Has not said yet what is wanted.
    Asking(Vec<u8>),
    /// At the console.
    Console,
    /// Waits for QEMU's answer with this number, and the file of the picture.
    Waiting(u64, PathBuf),
    /// Gets the rest of what is sent, and goes.
    Leaving,
}

/// What a visitor wants of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// This is typed at the console.
    Type(Vec<u8>),
    /// A picture, in this file; [`Visitors::promise`] tells the number of the answer.
    Picture(usize, PathBuf),
}

impl Visitors {
    /// Whoever comes by a new socket at `path`. Pictures lie in its directory until they are sent.
    ///
    /// # Errors
    /// What the system says.
    pub fn at(path: &Path) -> io::Result<Self> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let pictures = path.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self { listener, pictures, count: 0, visitors: Vec::new() })
    }

    /// What can be read when something happens.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd()).chain(self.visitors.iter().map(|visitor| visitor.channel.as_fd()))
    }

    /// Takes what they say.
    pub fn listen(&mut self) -> Vec<Wish> {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.visitors.len() < MOST {
                self.visitors.push(Visitor { channel: Channel::of(stream), state: State::Asking(Vec::new()) });
            }
        }
        let mut wishes = Vec::new();
        for number in 0..self.visitors.len() {
            let visitor = &mut self.visitors[number];
            // One who breaks his socket is gone.
            let _ = visitor.channel.flush();
            let Ok(Some(bytes)) = visitor.channel.read() else { continue };
            match &mut visitor.state {
                State::Console => wishes.push(Wish::Type(bytes)),
                State::Waiting(..) | State::Leaving => {}
                State::Asking(said) => {
                    said.extend_from_slice(&bytes[..bytes.len().min(MAX_WISH)]);
                    let Some(end) = said.iter().position(|byte| *byte == b'\n') else {
                        if said.len() >= MAX_WISH {
                            visitor.refuse("this is no wish");
                        }
                        continue;
                    };
                    let rest = said.split_off(end + 1);
                    match said.as_slice() {
                        b"console\n" => {
                            visitor.state = State::Console;
                            if !rest.is_empty() {
                                wishes.push(Wish::Type(rest));
                            }
                        }
                        b"screenshot\n" => {
                            self.count += 1;
                            let file = self.pictures.join(format!("picture-{}.png", self.count));
                            wishes.push(Wish::Picture(number, file));
                        }
                        _ => visitor.refuse("wishes are: console, screenshot"),
                    }
                }
            }
        }
        self.visitors.retain(|visitor| {
            let is_done = matches!(visitor.state, State::Leaving) && !visitor.channel.has_outgoing();
            visitor.channel.is_open() && !is_done && visitor.channel.waiting() <= MOST_WAITING
        });
        wishes
    }

    /// What the console says.
    pub fn tell(&mut self, bytes: &[u8]) {
        for visitor in self.visitors.iter_mut().filter(|visitor| matches!(visitor.state, State::Console)) {
            let _ = visitor.channel.send(bytes);
        }
    }

    /// The picture of a visitor will come with this answer of QEMU's.
    pub fn promise(&mut self, visitor: usize, answer: u64, file: PathBuf) {
        if let Some(visitor) = self.visitors.get_mut(visitor) {
            visitor.state = State::Waiting(answer, file);
        }
    }

    /// An answer of QEMU's; whether it was for a visitor.
    pub fn answered(&mut self, answer: u64, refusal: Option<&str>) -> bool {
        let waits = |visitor: &&mut Visitor| matches!(visitor.state, State::Waiting(of, _) if of == answer);
        let Some(visitor) = self.visitors.iter_mut().find(waits) else { return false };
        let State::Waiting(_, file) = &visitor.state else { return false };
        let file = file.clone();
        let picture = match refusal {
            Some(why) => Err(why.to_owned()),
            None => read(&file).map_err(|error| error.to_string()),
        };
        let _ = std::fs::remove_file(file);
        match picture {
            Ok(picture) => {
                let _ = visitor.channel.send(format!("picture {}\n", picture.len()).as_bytes());
                let _ = visitor.channel.send(&picture);
                visitor.state = State::Leaving;
            }
            Err(why) => visitor.refuse(&why),
        }
        true
    }
}

impl Visitor {
    fn refuse(&mut self, why: &str) {
        let why: String = why.chars().filter(|letter| !letter.is_control()).collect();
        let _ = self.channel.send(format!("refused {why}\n").as_bytes());
        self.state = State::Leaving;
    }
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let found = std::fs::symlink_metadata(file)?;
    if !found.is_file() || found.len() > MAX_PICTURE {
        return Err(io::Error::other("QEMU wrote no picture"));
    }
    std::fs::read(file)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn everybody_gets_what_was_asked_for_and_goes() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("sock");
        let mut visitors = Visitors::at(&path).unwrap();
        let come = |words: &str| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(words.as_bytes()).unwrap();
            stream
        };
        let mut console = come("console\nls\n");
        assert_eq!(visitors.listen(), [Wish::Type(b"ls\n".to_vec())]);
        visitors.tell(b"file\n");
        let mut said = [0; 5];
        console.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"file\n");

        let mut picture = come("screenshot\n");
        let Wish::Picture(number, file) = visitors.listen().remove(0) else { panic!() };
        visitors.promise(number, 7, file.clone());
        assert!(!visitors.answered(6, None));
        std::fs::write(&file, "PNG").unwrap();
        assert!(visitors.answered(7, None));
        visitors.listen();
        let mut said = String::new();
        picture.read_to_string(&mut said).unwrap();
        assert_eq!(said, "picture 3\nPNG");
        assert!(!file.exists());

        let mut other = come("reboot\n");
        visitors.listen();
        let mut said = String::new();
        other.read_to_string(&mut said).unwrap();
        assert!(said.starts_with("refused wishes are"), "{said}");
        // One who takes nothing does not make a machine wait, and is sent away.
        for _ in 0..20 {
            visitors.tell(&[b'x'; 100_000]);
        }
        visitors.listen();
        assert_eq!(visitors.descriptors().count(), 1);
    }
}
