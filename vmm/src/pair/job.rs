//! One command in the guest of a pair, from two cold machines to its status.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Direct, Keys, Limits, Pair, PairRun, PairSpec, SSH_FAILED, Standing, left, standing};
use crate::exchange::lines::PlainLines;
use crate::exchange::{Command, sh, windows};
use crate::failure::{Failure, FailureClass};
use crate::linux::{Done, End};
use crate::machine::Run;
use crate::profile::{Language, Profile};
use crate::qemu::Installed;
use crate::readiness::Wait;
use crate::shares::exchange::{ExchangeError, Watch, check_limited};
use crate::spec::Clock;
use crate::visitors::Visitors;
use crate::{stages, wire};

/// The file in the exchange into which the guest's shell writes the command's status. The status that counts is ssh's; this
/// one tells a command that ended with 255 from an ssh that failed.
pub const STATUS_FILE: &str = "status";
/// The longest such file, in bytes.
const LONGEST_STATUS: u64 = 16;
/// The consoles' files, below the directory for them.
pub const CONSOLES: [&str; 2] = ["guest.log", "controller.log"];
/// The sockets for visitors, beside them.
pub const SOCKETS: [&str; 2] = ["guest.sock", "controller.sock"];
/// The socket for people's sessions in the guest, beside them.
pub const DOOR: &str = "sessions.sock";
/// What people in the guest are told when there is nothing more to be done in it.
const OVER: &str = "what the guest was there for has ended";
/// The picture of the guest's display when it fails.
const SCREENSHOT: &str = "guest.png";

/// Who serves the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// A controller, on a wire.
    #[default]
    Pair,
    /// Programs beside QEMU: [`Direct`].
    Direct {
        /// What QEMU starts for each connection to the server: a program that calls [`super::handover::give`] with the path that is
        /// appended.
        connect: Vec<String>,
    },
}

impl Topology {
    /// Its name, as in the settings.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Direct { .. } => "direct",
        }
    }
}

/// Machines that were saved: [`crate::stages`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Saved {
    /// Its directory.
    pub directory: PathBuf,
    /// The installed disk, which its key knows.
    pub base: PathBuf,
    /// Where the disk of this run is made.
    pub overlay: PathBuf,
    /// QEMU, as it was found when it was looked for them: it has been these machines.
    pub qemu: Installed,
}

/// A pair and what it is to do: plain data, but for the command. Paths are those of the room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Job {
    /// The machines.
    pub pair: PairSpec,
    /// Whether both are wanted.
    #[serde(default)]
    pub topology: Topology,
    /// What is between two machines.
    #[serde(default)]
    pub wire: wire::Kind,
    /// The saved machines that are revived instead of starting them; of the same topology.
    #[serde(default)]
    pub saved: Option<Saved>,
    /// What the clocks show while the command runs: what they did when the machines were started or saved, or the host's time.
    #[serde(default)]
    pub clock: Clock,
    /// The file of the private key.
    pub key: PathBuf,
    /// The file of the guest's host key.
    pub known_hosts: PathBuf,
    /// Which QEMU; the first in PATH when none is named.
    pub qemu: Option<PathBuf>,
    /// How long the start may take.
    pub limits: Limits,
    /// How long the command may take, in milliseconds; no bound if none.
    pub limit: Option<u64>,
    /// How many bytes each console may say.
    pub console_limit: u64,
    /// How many bytes the exchange may have at most.
    pub exchange_limit: u64,
    /// Directories that the guest writes: each is watched for the end of its room.
    pub watched: Vec<PathBuf>,
}

/// Starts both machines, runs `command` in the guest, and ends the machines. The consoles go to files in `consoles`.
///
/// # Errors
/// A [`Failure`] whenever there is no status of the command, and when something that it wrote may be lost.
pub fn run(
    job: &Job,
    command: &Command,
    consoles: &Path,
    output: &mut dyn FnMut(bool, &[u8]) -> io::Result<()>,
) -> Result<Done, Failure> {
    let installed = match &job.saved {
        Some(saved) => saved.qemu.clone(),
        None => {
            let installed = Installed::find(job.qemu.as_deref(), std::env::var_os("PATH").as_deref())?;
            installed.check(&job.pair.guest_machine())?;
            if job.topology == Topology::Pair {
                installed.check(&job.pair.controller_machine())?;
            }
            installed
        }
    };
    let begun = Instant::now();
    let console = |number: usize| -> Result<Run, Failure> {
        let socket = consoles.join(SOCKETS[number]);
        let visitors = Visitors::at(&socket)
            .map_err(|error| Failure::new(FailureClass::QemuRefused, format!("{}: {error}", socket.display())))?;
        Ok(Run {
            console_log: Some(consoles.join(CONSOLES[number])),
            console_limit: job.console_limit,
            visitors: Some(visitors),
            ..Run::default()
        })
    };
    let guest = Run { screenshot: Some(consoles.join(SCREENSHOT)), ..console(0)? };
    let read = |path: &Path| {
        let failed = |error| Failure::new(FailureClass::NoImage, format!("reading {}: {error}", path.display()));
        fs::read(path).map_err(failed)
    };
    let keys = Keys { key: read(&job.key)?, known_hosts: read(&job.known_hosts)? };
    let run = PairRun { guest, controller: console(1)?, wire: job.wire };
    let mut standing: Box<dyn Standing> = match (&job.saved, &job.topology) {
        (Some(Saved { directory, base, overlay, .. }), topology) => {
            let spec = stages::overlay(&job.pair, overlay, &directory.join(stages::DISK), base)?;
            let parts = stages::Parts { installed: &installed, topology, keys: &keys, run, limits: job.limits };
            stages::revive(parts, &spec, directory)?
        }
        (None, Topology::Pair) => Box::new(Pair::boot(&installed, &job.pair, &keys, run, job.limits)?),
        (None, Topology::Direct { connect }) => {
            Box::new(Direct::boot(&installed, &job.pair, &keys, run.guest, job.limits, connect)?)
        }
    };
    let ready_after = begun.elapsed();
    let end = in_standing(&mut *standing, job, command, Some(&consoles.join(DOOR)), output)?;
    let done = Done { end, qemu: standing.qemu(), kernel: standing.kernel(), ready_after };
    drop(standing);
    if done.end == End::Status(0) {
        left::restore(&job.pair.profile.files, &job.pair.store).map_err(|error| {
            Failure::new(FailureClass::NoShare, format!("looking through what the guest left: {error}"))
        })?;
    }
    Ok(done)
}

/// Runs `command` in the guest of a pair that stands, however it came to. People come by a socket at `door` meanwhile, if there is
/// to be one.
///
/// # Errors
/// As [`run`].
pub fn in_standing(
    pair: &mut dyn Standing,
    job: &Job,
    command: &Command,
    door: Option<&Path>,
    output: &mut dyn FnMut(bool, &[u8]) -> io::Result<()>,
) -> Result<End, Failure> {
    let exchange = &job.pair.exchange;
    check_limited(exchange, job.exchange_limit).map_err(|error| full(&error))?;
    let left_out = write_command(&job.pair.profile, command, exchange)?;
    if !left_out.is_empty() {
        let line = format!(
            "anchorhold: too long for any program of the guest, and known to its shell alone: {}\n",
            left_out.join(", ")
        );
        let _ = output(true, line.as_bytes());
    }
    standing::mount(pair, &job.pair.store, exchange, job.clock)?;
    let watches = job.watched.iter().map(|directory| Watch::begin(directory)).collect::<Result<Vec<_>, _>>();
    let watches = watches.map_err(|error| full(&error))?;
    let limit = job.limit.map_or(Duration::MAX, Duration::from_millis);
    door.map_or(Ok(()), |door| pair.admit(door))?;
    let mut last = Vec::new();
    let mut lines = job.pair.profile.command.dos_lines.then(PlainLines::default);
    let start = job.pair.profile.command.start.clone();
    let end = pair.run(&start, &Wait::new("the command's status", limit), &mut |bytes| {
        last.splice(.., bytes[bytes.len().saturating_sub(400)..].iter().copied());
        match &mut lines {
            Some(lines) => output(false, &lines.feed(bytes)),
            None => output(false, bytes),
        }
    })?;
    if let Some(held) = lines.as_mut().map(PlainLines::end).filter(|held| !held.is_empty()) {
        let _ = output(false, held);
    }
    if end == End::Status(SSH_FAILED) && told_status(exchange) != Some(SSH_FAILED) {
        let words = standing::last_line(&String::from_utf8_lossy(&last));
        let what = format!(
            "ssh ended with its own status {SSH_FAILED} and the guest told none; the last that came was “{words}”"
        );
        return Err(pair.guest_failed(FailureClass::SessionLost, &what));
    }
    // Whoever is in a drive would keep it.
    pair.dismiss(OVER)?;
    let unmounted = standing::unmount(pair);
    // What ran full is the cause of everything else.
    for watch in watches {
        watch.end().map_err(|error| full(&error))?;
    }
    unmounted?;
    Ok(end)
}

/// A session for a person in the guest of a pair that stands, with its drives; the status that it ended with. Others come by a
/// socket at `door` meanwhile.
///
/// # Errors
/// All that ends a wait.
pub fn session(pair: &mut dyn Standing, job: &Job, door: Option<&Path>) -> Result<End, Failure> {
    standing::mount(pair, &job.pair.store, &job.pair.exchange, job.clock)?;
    door.map_or(Ok(()), |door| pair.admit(door))?;
    let end = pair.session()?;
    pair.dismiss(OVER)?;
    standing::unmount(pair)?;
    Ok(end)
}

/// Puts the command into the exchange in the form that the guest reads; the names of variables that its programs cannot have.
fn write_command(profile: &Profile, command: &Command, exchange: &Path) -> Result<Vec<String>, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(FailureClass::NoShare, format!("putting the command into {}: {error}", exchange.display()))
    };
    let command = &profile.command_for(command);
    let longest = profile.command.longest_variable;
    let mut left_out = Vec::new();
    let files = match profile.command.form {
        Language::Sh => {
            let text = sh::run(command, longest).map_err(|error| failed(&error))?;
            left_out.extend(text.not_exported.iter().map(|name| name.to_string_lossy().into_owned()));
            vec![(sh::FILE, text.bytes)]
        }
        Language::Powershell => {
            windows::check(command).map_err(|error| failed(&error))?;
            let bytes = command.encode().map_err(|error| failed(&error))?;
            vec![(crate::exchange::COMMAND_FILE, bytes), (windows::READER_FILE, windows::READER.as_bytes().to_vec())]
        }
        Language::Cmd => vec![(windows::CMD_FILE, windows::cmd(command).map_err(|error| failed(&error))?)],
    };
    for (name, bytes) in files {
        fs::write(exchange.join(name), bytes).map_err(|error| failed(&error))?;
    }
    Ok(left_out)
}

/// The status in the exchange, which the guest wrote and may be anything.
fn told_status(exchange: &Path) -> Option<u8> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file =
        OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(exchange.join(STATUS_FILE)).ok()?;
    let mut text = String::new();
    file.take(LONGEST_STATUS).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn full(error: &ExchangeError) -> Failure {
    Failure::new(FailureClass::ExchangeFull, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_in_the_exchange_is_a_number_in_a_file_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let told = || told_status(place.path());
        let file = place.path().join(STATUS_FILE);
        assert_eq!(told(), None);
        for (text, status) in [("255\n", Some(255)), ("0", Some(0)), ("256", None), ("", None), ("3 4", None)] {
            fs::write(&file, text).unwrap();
            assert_eq!(told(), status, "{text}");
        }
        fs::rename(&file, place.path().join("other")).unwrap();
        std::os::unix::fs::symlink("other", &file).unwrap();
        assert_eq!(told(), None, "a link is not followed");
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        assert_eq!(told(), None);
    }

    #[test]
    fn each_form_of_a_command_is_put_where_its_reader_looks() {
        let place = tempfile::tempdir().unwrap();
        let mut profile = Profile::built_in("standin").unwrap();
        let command = Command::new("/bin/true").variable("LONG", "x".repeat(200 << 10));
        assert_eq!(write_command(&profile, &command, place.path()).unwrap(), ["LONG"]);
        for (form, file) in [(Language::Powershell, "command.ps1"), (Language::Cmd, "command.cmd")] {
            profile.command.form = form;
            write_command(&profile, &Command::new("/bin/true"), place.path()).unwrap();
            assert!(place.path().join(file).exists());
        }
        assert!(place.path().join("command.sh").exists() && place.path().join("command").exists());
    }
}
