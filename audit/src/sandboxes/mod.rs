//! The sandboxes that the battery can be run in: a file for each, with its exact command line.
//!
//! All are given the same: the probe program and an input, read-only; a folder to write to; nothing else of the host but what
//! the sandbox cannot do without. What a peer leaves open here it leaves open as its own documentation starts it.

mod attach;
mod bubblewrap;
mod build;
mod chroot;
mod crun;
mod custom;
mod firejail;
mod host;
mod naive;
mod nix;
mod nsjail;
mod nspawn;
mod podman;
mod room;
mod rootfs;
mod unshare;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anchorhold_probe::observation::{Launch, OutputKind};
use anchorhold_probe::world::World;

use crate::error::Error;
use crate::user::User;

/// What is there for one run, outside.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The folder of the run; everything else but `anchorhold` is below it.
    pub folder: PathBuf,
    /// What sandboxes show read-only: `anchorhold-probe`, and the folder `input` with a file in it.
    pub shown: PathBuf,
    /// Where probes may write, in sandboxes that share the host's tree.
    pub scratch: PathBuf,
    /// The `anchorhold` program.
    pub anchorhold: PathBuf,
    /// The launcher's user, if that is not ours.
    pub user: Option<User>,
    /// Options that every room of ours gets as well, `--without LAYER` and such.
    pub room_options: Vec<String>,
    /// The nonce of the run, for names that must be of one's own.
    pub nonce: String,
}

/// A limit that ends whoever goes beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Bytes of memory.
    Memory(u64),
    /// Seconds.
    Time(u64),
    /// Bytes of output.
    Log(u64),
}

impl Bound {
    /// Those that are tried: small, but enough for the battery itself.
    pub const TRIED: [Self; 3] = [Self::Memory(96 << 20), Self::Time(2), Self::Log(1 << 20)];

    /// The probe that goes beyond it.
    pub fn probe(self) -> &'static str {
        match self {
            Self::Memory(_) => "res.mem",
            Self::Time(_) => "res.cpu",
            Self::Log(_) => "res.log",
        }
    }

    /// Tells the probe of it.
    pub fn describe(self, world: &mut World) {
        match self {
            Self::Memory(bytes) => world.memory_limit = Some(bytes),
            Self::Time(seconds) => world.time_limit = Some(seconds),
            Self::Log(bytes) => world.log_limit = Some(bytes),
        }
    }
}

/// Where the probes find things, inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// The probe program.
    pub program: PathBuf,
    /// A file below the read-only input.
    pub input: PathBuf,
    /// The folder to write to.
    pub scratch: PathBuf,
    /// What `--output` gets, for sandboxes whose standard output does not come out as it is, and the file outside.
    pub output: Option<String>,
}

impl Inside {
    /// As in sandboxes that can show things where one likes.
    fn usual() -> Self {
        Self {
            program: "/audit/anchorhold-probe".into(),
            input: "/audit/input/file".into(),
            scratch: "/scratch".into(),
            output: None,
        }
    }

    /// As in sandboxes that show the host's own tree.
    fn of_host(ground: &Ground) -> Self {
        Self {
            program: ground.shown.join("anchorhold-probe"),
            input: ground.shown.join("input/file"),
            scratch: ground.scratch.clone(),
            output: None,
        }
    }
}

/// One sandbox.
pub trait Sandbox: std::fmt::Debug {
    /// What it is called in reports.
    fn name(&self) -> String;

    /// Its version, as it says itself.
    ///
    /// # Errors
    /// Why it cannot be used here.
    fn version(&self, ground: &Ground) -> Result<String, String>;

    /// Where the run's folder is made. Not /tmp: some sandboxes put one of their own there, and what they are to run must stay in
    /// sight.
    fn place(&self) -> &'static Path {
        Path::new("/var/tmp")
    }

    /// Makes ready what the command line needs.
    ///
    /// # Errors
    /// Why it could not be made.
    fn prepare(&self, ground: &Ground) -> Result<Inside, String>;

    /// What probes should know of what was granted.
    fn grant(&self, _world: &mut World) {}

    /// Ids of probes, or beginnings of ids, that reach because the sandbox was asked for what they need.
    fn granted(&self) -> &'static [&'static str] {
        &[]
    }

    /// The command line that runs these words inside.
    ///
    /// # Errors
    /// Why there is none.
    fn launch(&self, ground: &Ground, words: &[String]) -> Result<Launch, String>;

    /// The same sandbox with a limit that ends it; none if it is not to be tried.
    fn bounded(&self, _bound: Bound) -> Option<Box<dyn Sandbox>> {
        None
    }

    /// Whether an output of this kind could be taken over and registered.
    fn registers(&self, _kind: OutputKind) -> bool {
        false
    }

    /// Where the output of the last launch lies, if it was registered. Called when the sandbox has ended.
    fn registered(&self, _ground: &Ground, _stdout: &[u8]) -> Option<PathBuf> {
        None
    }

    /// What came out, where that is not the standard output. Called when the sandbox has ended.
    fn output(&self, ground: &Ground, stdout: &[u8]) -> Option<Vec<u8>> {
        fs::read(self.registered(ground, stdout)?).ok()
    }

    /// Takes away what it made outside of the run's folder.
    fn clean_up(&self, _ground: &Ground) {}
}

/// The words that `--in` takes, with what each is.
pub const NAMES: &[(&str, &str)] = &[
    ("host", "no sandbox: the baseline"),
    ("room", "anchorhold run"),
    ("room:nested", "anchorhold run --profile nested"),
    ("room:fetch", "anchorhold run --profile fetch, with its own way out"),
    ("room:limited", "anchorhold run with limits on processes and on what is written"),
    ("room:machines", "anchorhold run --profile machines"),
    ("build", "anchorhold build"),
    ("attach", "anchorhold attach, with a request as Nix writes it"),
    ("bubblewrap", "bwrap --unshare-all, /usr read-only"),
    ("crun", "crun run with the specification that crun spec makes"),
    ("podman", "podman run --network none"),
    ("nsjail", "nsjail --chroot, as uid 99999"),
    ("firejail", "firejail with its default profile"),
    ("nspawn", "systemd-nspawn -D"),
    ("nix", "a build of the installed Nix, sandboxed"),
    ("nix-fixed-output", "a fixed-output build of the installed Nix"),
    ("unshare", "unshare -Urmpniu"),
    ("chroot", "chroot, as root"),
];

/// A sandbox by its word, and whether `user:` asks for the ordinary user.
///
/// # Errors
/// That there is none of this name.
pub fn named(word: &str) -> Result<(Box<dyn Sandbox>, bool), Error> {
    // A command line may begin with anything.
    if word.contains("{}") {
        return Ok((Box::new(custom::Custom(word.to_owned())), false));
    }
    let (bare, ordinary) = word.strip_prefix("user:").map_or((word, false), |bare| (bare, true));
    let sandbox: Box<dyn Sandbox> = match bare {
        "host" => Box::new(host::Host),
        "room" => Box::new(room::Room::default()),
        "build" => Box::new(build::Build),
        "attach" => Box::new(attach::Attach::default()),
        "bubblewrap" => Box::new(bubblewrap::Bubblewrap),
        "crun" => Box::new(crun::Crun),
        "podman" => Box::new(podman::Podman),
        "nsjail" => Box::new(nsjail::Nsjail),
        "firejail" => Box::new(firejail::Firejail),
        "nspawn" => Box::new(nspawn::Nspawn),
        "nix" => Box::new(nix::Nix { fixed_output: false }),
        "nix-fixed-output" => Box::new(nix::Nix { fixed_output: true }),
        "unshare" => Box::new(unshare::Unshare),
        "chroot" => Box::new(chroot::Chroot),
        "naive" => Box::new(naive::Naive),
        _ => match bare.strip_prefix("room:") {
            Some("limited") => Box::new(room::Room::limited()),
            Some("unlimited") => Box::new(room::Room::unlimited()),
            Some(profile @ ("build" | "nested" | "fetch" | "machines")) => Box::new(room::Room::of(profile)),
            _ => {
                let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
                return Err(Error::UnknownSandbox(word.to_owned(), names.join(", ")));
            }
        },
    };
    Ok((sandbox, ordinary))
}

/// A room of ours with these options, for controls.
pub fn weakened_room(options: &[&str]) -> Box<dyn Sandbox> {
    Box::new(room::Room::weakened(options))
}

/// Text of an argument. The paths are our own: plain ASCII but for what the temporary folder is called.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A command line of plain words.
fn line(words: impl IntoIterator<Item = impl Into<String>>) -> Launch {
    Launch { words: words.into_iter().map(Into::into).collect(), directory: "/".into(), ..Launch::default() }
}

/// The words before a container runtime's that give it a mount namespace, so that no mount of it is left behind, and, on a host that
/// has both versions of control groups, the pure version 2 which it wants.
fn in_own_mounts() -> Vec<String> {
    let is_pure = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let mounts = if is_pure { "" } else { "umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; " };
    let script = format!("{mounts}exec \"$@\"");
    ["unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", &script, "sh"].map(str::to_owned).into()
}

/// What a program says to `--version`, its first line.
fn version_of(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Result<String, String> {
    let program = program.as_ref();
    let said = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    match said {
        Ok(said) => {
            let all = [said.stdout, said.stderr].concat();
            let first =
                String::from_utf8_lossy(&all).lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned);
            first.ok_or_else(|| format!("{} does not say its version", program.to_string_lossy()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(format!("not installed: no {} in PATH", program.to_string_lossy()))
        }
        Err(error) => Err(format!("{}: {error}", program.to_string_lossy())),
    }
}
