//! Machines that run, so that people find them: a directory for each, with a lock that its owner holds until its death.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anchorhold_vmm::failure::{Failure, FailureClass};
use anchorhold_vmm::pair::job::{DOOR, SOCKETS};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// What a machine without another guest's profile is registered as.
pub const LINUX: &str = "linux";

const LOCK: &str = "lock";
const ABOUT: &str = "machine.json";
/// The longest description that is read.
const MAX_ABOUT: u64 = 64 << 10;
/// The largest picture that is taken, in bytes.
const MAX_PICTURE: u64 = 64 << 20;
/// How long a machine may take to answer a visitor.
const PATIENCE: Duration = Duration::from_secs(60);

/// The machines of this user.
#[derive(Debug, Clone)]
pub struct Registry {
    root: PathBuf,
}

/// A machine that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Registered {
    /// Its name: the guest's, and the process that owns it.
    pub name: String,
    /// Which guest.
    pub guest: String,
    /// What is done with it.
    pub what: String,
    /// The process that owns it.
    pub process: u32,
    /// When it began, in seconds since 1970.
    pub begun: u64,
    /// The directory that its room writes, with the sockets for visitors.
    result: PathBuf,
}

/// Known as long as this is held.
#[derive(Debug)]
pub struct Held {
    directory: PathBuf,
    _lock: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let doing = format!("{doing} {}", path.display());
    move |error| Failure::new(FailureClass::QemuRefused, format!("{doing}: {error}"))
}

fn root() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return "/run/anchorhold/machines".into();
    }
    let named = std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()).map(PathBuf::from);
    let own = || std::env::temp_dir().join(format!("anchorhold-{}", user.as_raw()));
    named.map_or_else(own, |place| place.join("anchorhold")).join("machines")
}

impl Registry {
    /// This user's.
    ///
    /// # Errors
    /// What the file system says, and a directory that somebody else made.
    pub fn open() -> Result<Self, Failure> {
        let root = root();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(failed("making", &root))?;
        let found = fs::symlink_metadata(&root).map_err(failed("looking at", &root))?;
        if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
            let what = format!("{} is somebody else's", root.display());
            return Err(Failure::new(FailureClass::QemuRefused, what));
        }
        Ok(Self { root })
    }

    /// Makes a machine known. `result` is the directory that its room writes.
    ///
    /// # Errors
    /// What the file system says.
    pub fn register(&self, guest: &str, what: &str, result: &Path) -> Result<Held, Failure> {
        let process = std::process::id();
        // A process may have several builds.
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = match COUNT.fetch_add(1, Ordering::Relaxed) {
            1 => format!("{guest}-{process}"),
            count => format!("{guest}-{process}.{count}"),
        };
        let directory = self.root.join(&name);
        let _ = fs::remove_dir_all(&directory);
        let make = || -> io::Result<File> {
            fs::DirBuilder::new().mode(0o700).create(&directory)?;
            let lock = OpenOptions::new().write(true).create_new(true).mode(0o600).open(directory.join(LOCK))?;
            rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
            let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let about = Registered {
                name: name.clone(),
                guest: guest.to_owned(),
                what: what.to_owned(),
                process,
                begun,
                result: result.to_owned(),
            };
            // Found only when all of it is there.
            let new = directory.join("new");
            fs::write(&new, serde_json::to_vec_pretty(&about)?)?;
            fs::rename(new, directory.join(ABOUT))?;
            Ok(lock)
        };
        let lock = make().map_err(failed("making", &directory))?;
        Ok(Held { directory, _lock: lock })
    }

    /// All that run. What the dead have left is removed.
    ///
    /// # Errors
    /// What the file system says.
    pub fn list(&self) -> Result<Vec<Registered>, Failure> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed("reading", &self.root))?.flatten() {
            let directory = entry.path();
            let Ok(about) = read(&directory) else { continue };
            let Ok(lock) = File::open(directory.join(LOCK)) else { continue };
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
                Ok(()) => drop(fs::remove_dir_all(&directory)),
                Err(_) => all.push(about),
            }
        }
        all.sort_by_key(|about| (about.begun, about.name.clone()));
        Ok(all)
    }

    /// The machine of this name or process, or the only one there is.
    ///
    /// # Errors
    /// That there is none, or that there are several.
    pub fn find(&self, name: Option<&str>) -> Result<Registered, Failure> {
        let none = |what: String| Failure::new(FailureClass::QemuRefused, what);
        let all = self.list()?;
        let names = || all.iter().map(|about| about.name.as_str()).collect::<Vec<_>>().join(", ");
        let is_wanted = |about: &&Registered| {
            name.is_none_or(|name| about.name == name || about.process.to_string() == name || about.guest == name)
        };
        let mut found = all.iter().filter(is_wanted);
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one.clone()),
            (Some(_), Some(_)) => Err(none(format!("several machines run, name one: {}", names()))),
            (None, _) => Err(none(match name {
                Some(name) if !all.is_empty() => format!("no machine {name} runs, but {}", names()),
                Some(name) => format!("no machine {name} runs, and no other"),
                None => "no machine runs".to_owned(),
            })),
        }
    }
}

fn read(directory: &Path) -> io::Result<Registered> {
    let mut text = Vec::new();
    File::open(directory.join(ABOUT))?.take(MAX_ABOUT).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(io::Error::other)
}

/// Connects to a socket in a directory that a room writes: what is in its place may lead to somebody else's.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = (rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    UnixStream::connect(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

impl Registered {
    /// To the door behind which the sessions of people in its guest are: [`anchorhold_vmm::sessions`].
    ///
    /// # Errors
    /// Why there is none, or nobody answers.
    pub fn door(&self) -> Result<UnixStream, Failure> {
        let none = |why: &str| {
            let name = &self.name;
            Err(Failure::new(FailureClass::NoLogin, format!("{name} {why}")))
        };
        if self.guest == LINUX {
            let console = format!("`anchorhold vm console {}` is its serial console", self.name);
            return none(&format!("is a Linux machine, in which no SSH server runs; {console}"));
        }
        let path = self.result.join(DOOR);
        match connect(&path) {
            Ok(stream) => Ok(stream),
            Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind()) => {
                none("lets nobody in now: its guest starts or ends, or is a stage that is being made")
            }
            Err(error) => Err(failed("connecting to", &path)(error)),
        }
    }
}

/// A visit to a machine.
#[derive(Debug)]
pub struct Visit {
    stream: UnixStream,
}

impl Visit {
    /// To the guest, or its controller.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn to(machine: &Registered, controller: bool) -> Result<Self, Failure> {
        let path = machine.result.join(SOCKETS[usize::from(controller)]);
        Ok(Self { stream: connect(&path).map_err(failed("connecting to", &path))? })
    }

    /// A picture of the display, as PNG.
    ///
    /// # Errors
    /// Why there is none.
    pub fn screenshot(mut self) -> Result<Vec<u8>, Failure> {
        let refused = |what: String| Failure::new(FailureClass::QemuFailed, format!("the screenshot: {what}"));
        let io = |error: io::Error| refused(error.to_string());
        self.stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        self.stream.write_all(b"screenshot\n").map_err(io)?;
        let mut answer = BufReader::new(self.stream);
        let mut line = String::new();
        answer.by_ref().take(4096).read_line(&mut line).map_err(io)?;
        let length = match line.trim_end().split_once(' ') {
            Some(("picture", length)) => length.parse::<u64>().ok().filter(|length| *length <= MAX_PICTURE),
            Some(("refused", why)) => return Err(refused(why.to_owned())),
            _ => None,
        };
        let length = length.ok_or_else(|| refused("the machine ended, or answers otherwise".to_owned()))?;
        let mut picture = Vec::new();
        answer.take(length).read_to_end(&mut picture).map_err(io)?;
        if picture.len() as u64 == length { Ok(picture) } else { Err(refused("it was cut off".to_owned())) }
    }

    /// The console from here on; what is written is typed at it.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn console(mut self) -> Result<UnixStream, Failure> {
        let asked = self.stream.write_all(b"console\n");
        asked.map_err(|error| Failure::new(FailureClass::QemuFailed, format!("the console: {error}")))?;
        Ok(self.stream)
    }
}
