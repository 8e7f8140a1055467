//! A directory by virtiofs: a virtiofsd beside QEMU, which serves one directory to one machine.
//!
//! Only the virtiofsd that is written in Rust will do (1.13 and later): it serves without a sandbox of its own where it is in a
//! room already. The older one, of QEMU up to 7.2, always changes its root first, which takes a privilege that no room has.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::process::{Exit, Process};

/// The first version that can keep a guest from writing.
const NEEDED: (u32, u32) = (1, 13);
/// How long it may take to end once its machine has let go of its socket.
const ENDING: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// Where packages have it, outside of all paths.
const FOLDERS: [&str; 3] = ["/usr/libexec", "/usr/lib/virtiofsd", "/usr/lib/qemu"];

/// What a guest keeps of what it has read, as virtiofsd calls it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Caching {
    /// Everything, for as long as it likes: for what nobody changes.
    #[default]
    Always,
    /// Names and attributes, and no contents.
    Metadata,
    /// Nothing.
    Never,
}

impl Caching {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Always, Self::Metadata, Self::Never];
}

impl fmt::Display for Caching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "always",
            Self::Metadata => "metadata",
            Self::Never => "never",
        })
    }
}

/// Why there is no virtiofs.
#[derive(Debug, thiserror::Error)]
pub enum VirtiofsError {
    /// No program.
    #[error("there is no virtiofsd here: install the one written in Rust (virtiofsd {}.{} or later)", NEEDED.0, NEEDED.1)]
    None,
    /// One that will not do.
    #[error(
        "{program} is {version}, which cannot serve in a room: install the virtiofsd written in Rust, {}.{} or later", NEEDED.0, NEEDED.1
    )]
    Unfit {
        /// Which.
        program: PathBuf,
        /// What it says of itself.
        version: String,
    },
    /// It, or its socket, could not be made.
    #[error("serving {directory} by {program}: {source}")]
    Io {
        /// Which.
        program: PathBuf,
        /// What was to be served.
        directory: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// The virtiofsd of this host.
///
/// # Errors
/// That there is none, or none that will do.
pub fn program() -> Result<PathBuf, VirtiofsError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    first_fit(places.map(|place| place.join("virtiofsd")).filter(|file| file.is_file()))
}

/// The first that will do; otherwise why the first will not.
fn first_fit(programs: impl Iterator<Item = PathBuf>) -> Result<PathBuf, VirtiofsError> {
    let mut unfit = None;
    for program in programs {
        let said = Command::new(&program).arg("--version").stdin(Stdio::null()).output();
        let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let version = said.as_deref().unwrap_or_default().lines().next().unwrap_or("silent").trim().to_owned();
        if is_fit(&version) {
            return Ok(program);
        }
        unfit = unfit.or(Some(VirtiofsError::Unfit { program, version }));
    }
    Err(unfit.unwrap_or(VirtiofsError::None))
}

/// From `virtiofsd 1.14.0`; the older one says `virtiofsd version 7.2.22 (Debian …)`.
fn is_fit(line: &str) -> bool {
    let Some(version) = line.strip_prefix("virtiofsd ") else { return false };
    let mut numbers = version.split('.').map(|number| number.trim().parse::<u32>().ok());
    matches!((numbers.next().flatten(), numbers.next().flatten()), (Some(major), Some(minor)) if (major, minor) >= NEEDED)
}

/// A virtiofsd that serves. It is killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    process: Process,
    socket: PathBuf,
}

impl Server {
    /// Serves `directory`, of which nothing can be written, to the one machine that connects to the new socket `socket`. The kernel
    /// kills it when the calling thread ends.
    ///
    /// # Errors
    /// What the system says. That it cannot serve shows when the machine connects.
    pub fn start(program: &Path, directory: &Path, caching: Caching, socket: &Path) -> Result<Self, VirtiofsError> {
        let begin = || -> io::Result<Process> {
            // Made here, so that QEMU may connect at once.
            let listener = OwnedFd::from(UnixListener::bind(socket)?);
            let mut command = Command::new(program);
            command.arg("--shared-dir").arg(directory).arg(format!("--fd={}", listener.as_raw_fd()));
            command.arg(format!("--cache={caching}")).args(["--readonly", "--log-level=error"]);
            // It is in a room, with a filter that nobody can take away; limits are the room's to say.
            command.args(["--sandbox=none", "--seccomp=none", "--rlimit-nofile=0"]);
            command.env_clear();
            Process::start(command, vec![listener])
        };
        let process = begin().map_err(|source| VirtiofsError::Io {
            program: program.to_owned(),
            directory: directory.to_owned(),
            source,
        })?;
        Ok(Self { process, socket: socket.to_owned() })
    }

    /// Readable when it has ended, which it does with its machine and not before.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.process.ended()
    }

    /// How it ended and what it last said, if it has ended.
    pub fn gone(&mut self) -> Option<String> {
        let exit = self.process.exit()?;
        self.process.listen();
        let words = self.process.last_lines().pop().unwrap_or_default();
        let said = if words.is_empty() { "said nothing".to_owned() } else { format!("last said “{words}”") };
        Some(format!("{exit}; it {said}"))
    }

    /// The same, when it is because of it that a machine did not stand, whose QEMU has ended and said this. Where QEMU ended for
    /// another reason, its server ends well, and QEMU speaks of something else than what it has from there.
    pub fn failed(&mut self, qemu_said: &[String]) -> Option<String> {
        let ended = PollFd::from_borrowed_fd(self.process.ended(), PollFlags::IN);
        // One that serves nobody any more is at its end, and one that was never reached waits for somebody.
        let _ = poll(&mut [ended], Some(&ENDING));
        let how = self.gone()?;
        let socket = self.socket.to_string_lossy();
        let is_named = qemu_said.iter().any(|line| line.contains(&*socket) || line.contains("vhost"));
        (is_named || self.process.exit() != Some(Exit::Status(0))).then_some(how)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pretender(place: &Path, name: &str, says: &str) -> PathBuf {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let path = place.join(name);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path).unwrap();
        write!(file, "#!/bin/sh\necho '{says}'\n").unwrap();
        path
    }

    #[test]
    fn only_one_that_can_serve_in_a_room_is_taken() {
        let place = tempfile::tempdir().unwrap();
        let old = pretender(place.path(), "old", "virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7)");
        let early = pretender(place.path(), "early", "virtiofsd 1.12.1");
        let fit = pretender(place.path(), "fit", "virtiofsd 1.14.0");
        assert_eq!(first_fit([old.clone(), early.clone(), fit.clone()].into_iter()).unwrap(), fit);
        let told = first_fit([old, early].into_iter()).unwrap_err().to_string();
        assert!(told.contains("old is virtiofsd version 7.2.22") && told.contains("1.13 or later"), "{told}");
        assert!(first_fit(std::iter::empty()).unwrap_err().to_string().contains("no virtiofsd"));
        assert!(is_fit("virtiofsd 2.0") && !is_fit("virtiofsd 0.99.1") && !is_fit("busybox"));
    }
}
