//! What a room is: plain data that a person can read, write as TOML, and compare.
//!
//! A [`Room`] says what is wanted, never how it is made: that is the [`crate::plan`]'s business. Every field has a default, and the
//! defaults are the strictest that an ordinary build can live with; each weakening has a name of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::layers::Layer;
use crate::layers::network::policy::{Allow, Prefix};
use crate::quantity::{Duration, Size};
use crate::text::Text;

/// One sealed room, described.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Room {
    /// The family of rooms it belongs to, which decides what is left open below.
    pub profile: Profile,
    /// Layers that are left out. The seal names each.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub without: BTreeSet<Layer>,
    /// Who the payload is.
    pub identity: Identity,
    /// The names of the machine that the payload sees.
    pub names: Names,
    /// The root file system.
    pub root: Root,
    /// What stands in it. Order does not matter: outer mounts are made before inner ones.
    #[serde(rename = "mount", skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Entry>,
    /// Device nodes beyond the fixed ones.
    pub devices: Devices,
    /// `/proc`.
    pub proc: Proc,
    /// `/etc`.
    pub etc: Etc,
    /// Namespaces beyond those that every room has.
    pub namespaces: Namespaces,
    /// What can be reached.
    pub network: Network,
    /// How much it may use.
    pub limits: Limits,
    /// The file and scope rules of Landlock.
    pub landlock: Landlock,
    /// The system call filter.
    pub seccomp: Seccomp,
    /// What runs.
    pub process: Process,
}

/// A family of rooms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Everything on; no user namespace can be made inside.
    #[default]
    Build,
    /// For payloads that make sandboxes themselves: user and mount namespaces can be made inside, network namespaces cannot.
    Nested,
    /// For fixed-output builds: a private network with a way out.
    Fetch,
    /// For QEMU: as `build`; what its programs need beyond is asked for by name.
    Machines,
}

impl Profile {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Build, Self::Nested, Self::Fetch, Self::Machines];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Nested => "nested",
            Self::Fetch => "fetch",
            Self::Machines => "machines",
        }
    }
}

impl FromStr for Profile {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|profile| profile.name() == word).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|profile| profile.name()).collect();
            format!("no profile `{word}`; there are {}", names.join(", "))
        })
    }
}

/// Who the payload is, inside and outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Identity {
    /// Inside. Nix's builds are 1000.
    pub uid: u32,
    /// Inside. Nix's builds are 100.
    pub gid: u32,
    /// The name that `/etc/passwd` gives the uid.
    pub user: String,
    /// The name that `/etc/group` gives the gid.
    pub group: String,
    /// The home directory that `/etc/passwd` names.
    pub home: PathBuf,
    /// The kernel's ids behind those inside.
    pub outside: Outside,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            uid: 1000,
            gid: 100,
            user: "nixbld".into(),
            group: "nixbld".into(),
            home: "/build".into(),
            outside: Outside::Auto,
        }
    }
}

/// Which kernel ids a room runs under. Never the kernel's uid 0 or gid 0, whoever asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Outside {
    /// Started by root: one id from the allocated range, locked for as long as the room lives. Started by a user: that user.
    #[default]
    Auto,
    /// This unprivileged user, for example a build user of Nix. Takes root.
    User {
        /// Kernel uid.
        uid: u32,
        /// Kernel gid.
        gid: u32,
    },
    /// 65,536 ids, so that the payload can have several users: by root from the allocated range, by a user from
    /// `/etc/subuid` and `/etc/subgid` through newuidmap(1) and newgidmap(1). Inside they are 0 to 65,535.
    Range,
}

/// The names of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Names {
    /// uname(2) nodename.
    pub host: String,
    /// uname(2) domainname.
    pub domain: String,
}

impl Default for Names {
    fn default() -> Self {
        Self { host: "localhost".into(), domain: "(none)".into() }
    }
}

/// The root file system: a tmpfs, read-only once the room stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Root {
    /// Its bound. It holds only mount points and generated files.
    pub size: Size,
}

impl Default for Root {
    fn default() -> Self {
        Self { size: Size::mebibytes(16) }
    }
}

/// One thing in the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum Entry {
    /// A directory, file or symbolic link of the host, with all that is mounted below it. A link is made again, not followed.
    Bind {
        /// Where it stands in the room.
        inside: PathBuf,
        /// Where it stands on the host; the same path when not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outside: Option<PathBuf>,
        /// Whether the payload may write it.
        #[serde(default)]
        writable: bool,
        /// Whether it may be missing.
        #[serde(default)]
        optional: bool,
        /// Whether nothing in it executes.
        #[serde(default)]
        noexec: bool,
    },
    /// A new, empty, writable file system in memory.
    Tmpfs {
        /// Where it stands.
        inside: PathBuf,
        /// Its bound.
        #[serde(default = "Entry::default_tmpfs_size")]
        size: Size,
        /// The mode of its top directory.
        #[serde(default = "Entry::default_tmpfs_mode")]
        mode: u32,
        /// Whether nothing in it executes.
        #[serde(default)]
        noexec: bool,
    },
    /// A directory of the read-only root.
    Directory {
        /// Where it stands.
        inside: PathBuf,
    },
    /// A generated file in the read-only root.
    File {
        /// Where it stands.
        inside: PathBuf,
        /// What is in it.
        text: String,
        /// Whether it is executable.
        #[serde(default)]
        executable: bool,
    },
    /// A symbolic link in the read-only root.
    Symlink {
        /// Where it stands.
        inside: PathBuf,
        /// What it says.
        target: PathBuf,
    },
}

impl Entry {
    fn default_tmpfs_size() -> Size {
        Size::Share(50)
    }

    fn default_tmpfs_mode() -> u32 {
        0o1777
    }

    /// A bind of one path, from Nix's own spelling of a sandbox path: `inside[=outside][?]`.
    pub fn bind(spelled: &std::ffi::OsStr, writable: bool) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let bytes = spelled.as_bytes();
        let (bytes, optional) = match bytes.strip_suffix(b"?") {
            Some(rest) => (rest, true),
            None => (bytes, false),
        };
        let path = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
        let (inside, outside) = match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => (path(&bytes[..at]), Some(path(&bytes[at + 1..]))),
            None => (path(bytes), None),
        };
        Self::Bind { inside, outside, writable, optional, noexec: false }
    }

    /// A read-only bind of a host path at the same place.
    pub fn read_only(path: impl Into<PathBuf>) -> Self {
        Self::Bind { inside: path.into(), outside: None, writable: false, optional: false, noexec: false }
    }

    /// Where it stands in the room.
    pub fn inside(&self) -> &Path {
        match self {
            Self::Bind { inside, .. }
            | Self::Tmpfs { inside, .. }
            | Self::Directory { inside }
            | Self::File { inside, .. }
            | Self::Symlink { inside, .. } => inside,
        }
    }
}

/// Device nodes beyond the fixed ones (full, null, random, tty, urandom, zero).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Devices {
    /// Whether `/dev/kvm` is granted.
    pub kvm: bool,
    /// The bound of `/dev/shm`.
    pub shm_size: Size,
}

impl Default for Devices {
    fn default() -> Self {
        Self { kvm: false, shm_size: Size::Share(50) }
    }
}

/// How `/proc` is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Proc {
    /// Where the procfs comes from.
    pub source: ProcSource,
}

/// Where `/proc` comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcSource {
    /// A new procfs of the room's own pid namespace.
    #[default]
    New,
    /// The procfs around us: for containers that mask their own `/proc`, where the kernel refuses a new one. Weaker: the container's
    /// processes are in sight (not their memory or environment), and user namespaces can be made inside.
    Outer,
}

/// What is generated in `/etc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Etc {
    /// Lines put behind the generated ones of `/etc/hosts`.
    pub hosts: Vec<String>,
}

/// Namespaces beyond those that every room has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Namespaces {
    /// A time namespace of its own, in which the machine has just been started.
    pub time: bool,
}

/// What can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Network {
    /// The kind of network; when not given, what the profile says (`pasta` for `fetch`, else `none`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<NetworkMode>,
    /// Destinations that `pasta` lets through although they are private: `ADDRESS[/PREFIX][:PORT[-PORT]][/tcp|/udp]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Allow>,
    /// Networks that `pasta` refuses besides the private ones: `ADDRESS/PREFIX`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refuse: Vec<Prefix>,
    /// Whether nothing but the allowed destinations is let through.
    pub only_allowed: bool,
    /// Whether names can be looked up; when not given, yes, but no with `only-allowed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<bool>,
}

/// The kinds of network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// A network of its own with nothing but loopback.
    None,
    /// A network of its own, with a user-mode way out through pasta(1).
    Pasta,
    /// The host's. No protection at all.
    Host,
}

impl NetworkMode {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Pasta => "pasta",
            Self::Host => "host",
        }
    }
}

impl FromStr for NetworkMode {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        [Self::None, Self::Pasta, Self::Host]
            .into_iter()
            .find(|mode| mode.name() == word)
            .ok_or_else(|| format!("no network `{word}`; there are none, pasta, host"))
    }
}

/// How much a room may use. What is not given is not limited, unless a default is named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// Memory of all processes together, files in memory included. Needs a cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Processes and threads. Without a cgroup it is kept by `RLIMIT_NPROC`, which the kernel counts per user namespace since 5.14.
    /// When not given, [`Limits::DEFAULT_PIDS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Processors' worth of time, for example 1.5. Needs a cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Share of the processors against others, 1 to 10,000, default 100. Needs a cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u32>,
    /// Share of the disks against others, 1 to 10,000, default 100. Needs a cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_weight: Option<u32>,
    /// Wall-clock time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Duration>,
    /// Time without a byte of output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence: Option<Duration>,
    /// Bytes of output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Size>,
    /// Open files of one process; the host's hard limit when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// The largest file that can be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_size: Option<Size>,
    /// Address space of one process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address_space: Option<Size>,
    /// Processor time of one process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process_time: Option<Duration>,
    /// Whether the room is given a cgroup only to be accounted for.
    pub account: bool,
}

impl Limits {
    /// Processes and threads of a room that does not ask: far above any build seen, far below what makes a host crawl.
    pub const DEFAULT_PIDS: u64 = 16_384;
}

/// The second layer on files and sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Landlock {
    /// Whether file rules are on; when not given, what the profile says: they forbid mounts, so `nested` has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<bool>,
    /// The least version of Landlock's interface to accept; the best one that the kernel has is used anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require: Option<u32>,
}

/// The system call filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Seccomp {
    /// Whether refusals are recorded; when not given, what the profile says: a process tree can have one listener only,
    /// so `nested` leaves it to what runs inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<bool>,
    /// Whether 32-bit programs run.
    pub compat: bool,
    /// Whether changing a file's owner answers success and does nothing. Nobody is given more by it: it is for QEMU, which
    /// does as its guest's root says, in a room that has one user.
    pub ignore_chown: bool,
}

impl Default for Seccomp {
    fn default() -> Self {
        Self { record: None, compat: true, ignore_chown: false }
    }
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Process {
    /// An absolute path inside, or a name that is looked for in the payload's own PATH.
    pub program: Text,
    /// The first argument as the program sees it; `program` when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv0: Option<Text>,
    /// The others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<Text>,
    /// The whole environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<Text, Text>,
    /// The current directory.
    pub directory: PathBuf,
    /// Standard input.
    pub stdin: Stdin,
    /// Standard output and error.
    pub output: Output,
    /// umask(2).
    pub umask: u32,
    /// The machine that uname(2) names.
    pub personality: Personality,
    /// Whether addresses are randomised. Off, as in Nix: builds should not differ by it.
    pub randomize_addresses: bool,
    /// Whether a reaping first process of ours stands before the command.
    pub init: bool,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            program: Text::default(),
            argv0: None,
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            directory: "/".into(),
            stdin: Stdin::Null,
            output: Output::Pipe,
            umask: 0o022,
            personality: Personality::Native,
            randomize_addresses: false,
            init: false,
        }
    }
}

/// Standard input of the payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    Null,
    /// The launcher's own.
    Inherit,
}

/// Standard output and error of the payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// Pipes to the supervisor, which counts and hands on.
    #[default]
    Pipe,
    /// A new pseudo-terminal of the room, which is the payload's controlling terminal and also its standard input.
    Terminal,
    /// A new pseudo-terminal of the room, in raw mode and controlling nobody: what Nix gives a builder. Programs write to it
    /// line by line, and what goes to standard output and error stays in order.
    Log,
    /// The launcher's own descriptors.
    Inherit,
}

/// personality(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Personality {
    /// The machine's own.
    #[default]
    Native,
    /// `PER_LINUX32`: i686 on x86_64, arm on aarch64.
    Linux32,
}

impl Room {
    /// An empty room of this profile.
    pub fn new(profile: Profile) -> Self {
        Self { profile, ..Self::default() }
    }

    /// Reads a room from TOML.
    ///
    /// # Errors
    /// The parser's message, with line and column.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The network it has.
    pub fn network_mode(&self) -> NetworkMode {
        self.network.mode.unwrap_or(match self.profile {
            Profile::Fetch => NetworkMode::Pasta,
            _ => NetworkMode::None,
        })
    }

    /// Whether Landlock's file rules are on.
    pub fn landlock_files(&self) -> bool {
        self.landlock.files.unwrap_or(self.profile != Profile::Nested)
    }

    /// Whether refused system calls are recorded.
    pub fn record_refusals(&self) -> bool {
        self.seccomp.record.unwrap_or(self.profile != Profile::Nested)
    }

    /// Whether `layer` is in force.
    pub fn has(&self, layer: Layer) -> bool {
        !self.without.contains(&layer)
    }

    /// The command line, as the payload sees it.
    pub fn arguments(&self) -> Vec<OsString> {
        let process = &self.process;
        std::iter::once(process.argv0.as_ref().unwrap_or(&process.program))
            .chain(&process.arguments)
            .map(|text| text.0.clone())
            .collect()
    }
}
