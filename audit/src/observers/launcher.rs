//! The parent of a sandbox's launcher: it is of the launcher's user, and does what needs raw calls.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anchorhold_probe::observation::{Launch, Order, Seen, SetUp, Standing, Survivor};
use anchorhold_probe::world::World;
use serde::Serialize;

use super::{Sighting, VARIABLE};
use crate::error::Error;
use crate::interrupt;
use crate::user::User;

/// The longest output of a sandbox that is kept, in bytes.
const LONGEST: u64 = 16 << 20;

/// How long a sandbox may take before it is ended: the battery takes a few seconds, a first start of some peers half a minute.
pub const LIMIT: Duration = Duration::from_secs(180);

/// How a sandbox ended, and what it wrote.
#[derive(Debug, Default)]
pub struct Ended {
    /// Its exit status; none when it could not be started.
    pub status: Option<i32>,
    /// Why it could not be started, or was ended.
    pub problem: Option<String>,
    /// What it wrote.
    pub output: Vec<u8>,
    /// What it wrote on standard error.
    pub errors: Vec<u8>,
    /// Whether somebody looked for what outlived it.
    pub watched: bool,
    /// Processes that were still there after the grace period.
    pub survivors: Vec<Survivor>,
    /// What was seen from outside.
    pub sightings: Vec<Sighting>,
}

/// The process, before it has started the command. When it is dropped, or we die, it ends what it started.
#[derive(Debug)]
pub struct Launcher {
    child: Child,
    socket: Arc<UnixStream>,
    lines: BufReader<UnixStream>,
    output: Drain,
    errors: Drain,
    /// What could not be set up.
    pub missing: Vec<String>,
}

impl Launcher {
    /// Starts it and has it set up its observers, which are then in the world.
    ///
    /// # Errors
    /// That it does not start, or does not speak.
    pub fn start(program: &Path, user: Option<&User>, folder: &Path, world: &mut World) -> Result<Self, Error> {
        let failed = |error| Error::Observer { what: "launcher", error };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(program);
        // A group of its own: Ctrl-C is for us, and our end of the socket tells it.
        command
            .arg("observe")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some(user) = user {
            command.uid(user.uid).gid(user.gid);
            command.env("HOME", &user.home).env("USER", &user.name).env("LOGNAME", &user.name);
            for variable in ["XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"]
            {
                command.env_remove(variable);
            }
        }
        let mut child = command.spawn().map_err(failed)?;
        drop(command);
        let output = Drain::of(child.stdout.take());
        let errors = Drain::of(child.stderr.take());
        let lines = BufReader::new(ours.try_clone().map_err(failed)?);
        let mut launcher = Self { child, socket: Arc::new(ours), lines, output, errors, missing: Vec::new() };
        let port = world.nonce.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
            % 1_000_000
            + 100_000;
        let order =
            Order { nonce: world.nonce.clone(), folder: folder.to_owned(), variable: VARIABLE.to_owned(), port };
        launcher.say(&order).map_err(failed)?;
        let theirs: SetUp = launcher.hear(program)?;
        world.victim = theirs.victim;
        world.inherited_descriptor = theirs.inherited_descriptor;
        world.shared_memory_key = theirs.shared_memory_key;
        world.message_queue = theirs.message_queue;
        world.shared_memory_file = theirs.shared_memory_file;
        world.session_key = theirs.session_key;
        world.user_key = theirs.user_key;
        world.vsock_port = theirs.vsock_port;
        world.terminal = theirs.terminal;
        world.survivors = true;
        launcher.missing = theirs.missing;
        Ok(launcher)
    }

    /// Runs the command to its end.
    ///
    /// # Errors
    /// That the launcher does not speak any more, and that a signal asked for the end.
    pub fn run(self, program: &Path, launch: &Launch) -> Result<Ended, Error> {
        self.watched(program, launch, |_| ())
    }

    /// Runs the command until it stands, calls `look`, has it killed, and waits for what becomes of it.
    ///
    /// # Errors
    /// As [`Launcher::run`].
    pub fn hold(self, program: &Path, launch: Launch, look: impl FnOnce(&Standing)) -> Result<Ended, Error> {
        self.watched(program, &Launch { held: true, ..launch }, look)
    }

    fn watched(mut self, program: &Path, launch: &Launch, look: impl FnOnce(&Standing)) -> Result<Ended, Error> {
        let failed = |error| Error::Observer { what: "launcher", error };
        self.say(launch).map_err(failed)?;
        let timer = Timer::start(Arc::clone(&self.socket), LIMIT);
        let _at_signals = interrupt::close(&self.socket);
        if launch.held
            && let Ok(standing) = self.hear::<Standing>(program)
        {
            look(&standing);
            // If it has gone, the next line will not come.
            let _ = self.say(&true);
        }
        let heard = self.hear::<Seen>(program);
        let too_long = timer.stop();
        if interrupt::asked() {
            return Err(Error::Interrupted);
        }
        let mut ended = Ended::default();
        match heard {
            Ok(seen) => {
                ended.status = seen.status;
                ended.problem = seen.problem;
                ended.watched = true;
                ended.sightings.extend(seen.survivors.iter().map(|one| Sighting {
                    id: if one.name == "anchor-holder" { "life.pipe.hold" } else { "life.daemon" },
                    detail: format!("process {} outlived the sandbox: {}", one.pid, one.command),
                }));
                ended.survivors = seen.survivors;
                ended.sightings.extend(seen.keys.iter().map(|key| Sighting {
                    id: "key.session.plant",
                    detail: format!("the observer outside found the key {key}"),
                }));
            }
            Err(_) if too_long => ended.problem = Some(format!("ended: it took longer than {} s", LIMIT.as_secs())),
            Err(error) => return Err(error),
        }
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
        ended.output = self.output.take();
        ended.errors = self.errors.take();
        Ok(ended)
    }

    fn say(&mut self, what: &impl Serialize) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        (&*self.socket).write_all(&line)
    }

    fn hear<T: serde::de::DeserializeOwned>(&mut self, program: &Path) -> Result<T, Error> {
        let wrong = |why: String| Error::Program { program: program.to_owned(), what: "observe", why };
        let mut line = String::new();
        match (&mut self.lines).take(1 << 20).read_line(&mut line) {
            Ok(0) => {
                let _ = self.child.wait();
                let said = String::from_utf8_lossy(&self.errors.take()).trim().to_owned();
                Err(wrong(if said.is_empty() { "it ended".to_owned() } else { said }))
            }
            Ok(_) => serde_json::from_str(&line).map_err(|error| wrong(error.to_string())),
            Err(error) => Err(wrong(error.to_string())),
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // It takes away what it set up, and what it started, when our end closes.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

/// A thread that reads a pipe to its end, so that nobody blocks on it.
#[derive(Debug)]
struct Drain {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Drain {
    fn of<R: Read + Send + 'static>(pipe: Option<R>) -> Self {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let store = Arc::clone(&bytes);
        let thread = pipe.map(|mut pipe| {
            std::thread::spawn(move || {
                let mut buffer = [0; 16 << 10];
                while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                    let mut store = store.lock().expect("nobody panics with the lock");
                    if (store.len() as u64) < LONGEST {
                        store.extend_from_slice(&buffer[..length]);
                    }
                }
            })
        });
        Self { bytes, thread }
    }

    /// All of it. A process that got away may hold the pipe for ever; its end is waited for only a moment.
    fn take(&mut self) -> Vec<u8> {
        if let Some(thread) = self.thread.take() {
            let until = Instant::now() + Duration::from_secs(2);
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        std::mem::take(&mut *self.bytes.lock().expect("nobody panics with the lock"))
    }
}

/// Closes the socket after a time, unless stopped before.
struct Timer {
    stop: std::sync::mpsc::Sender<()>,
    thread: JoinHandle<bool>,
}

impl Timer {
    fn start(socket: Arc<UnixStream>, limit: Duration) -> Self {
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let late = matches!(stopped.recv_timeout(limit), Err(std::sync::mpsc::RecvTimeoutError::Timeout));
            if late {
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
            late
        });
        Self { stop, thread }
    }

    /// Whether the time was up.
    fn stop(self) -> bool {
        drop(self.stop);
        self.thread.join().unwrap_or(false)
    }
}
