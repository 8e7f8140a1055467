//! The options that describe a room, shared by `run` and `explain`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anchorhold_sandbox::Layer;
use anchorhold_sandbox::host::Wanted;
use anchorhold_sandbox::layers::network::policy::{Allow, Prefix};
use anchorhold_sandbox::quantity::{Duration, Size};
use anchorhold_sandbox::room::{Entry, Network, NetworkMode, Output, Outside, ProcSource, Profile, Room, Stdin};
use anchorhold_sandbox::text::Text;
use clap::Args;

/// The home directory of a room that is given none: nobody's on any host.
const HOME: &str = "/home/nixbld";

/// What to run and in which room.
#[derive(Debug, Args)]
pub struct RoomOptions {
    /// Show this path, read-only [INSIDE=OUTSIDE; a trailing ? lets it be missing]
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    ro: Vec<OsString>,

    /// Show this path, writable
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    rw: Vec<OsString>,

    /// Mount an empty, writable file system in memory here
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    tmpfs: Vec<PathBuf>,

    /// The current directory [default: the caller's if the room shows it, else the home directory]
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    cwd: Option<PathBuf>,

    /// Do not show the host's /usr and the links to it
    #[arg(long, help_heading = "Files")]
    no_usr: bool,

    /// Set a variable, or copy the caller's when no value is given
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = "Process")]
    env: Vec<OsString>,

    /// The payload's uid inside [default: 1000]
    #[arg(long, value_name = "N", help_heading = "Identity")]
    uid: Option<u32>,

    /// The payload's gid inside [default: 100]
    #[arg(long, value_name = "N", help_heading = "Identity")]
    gid: Option<u32>,

    /// The unprivileged user behind the payload; takes root [default: an id of the room's own]
    #[arg(long, value_name = "USER", help_heading = "Identity", conflicts_with = "id_range")]
    build_user: Option<String>,

    /// Give the room 65,536 ids instead of one
    #[arg(long, help_heading = "Identity")]
    id_range: bool,

    /// What can be reached: none, pasta or host
    #[arg(long, value_name = "MODE", help_heading = "Network")]
    network: Option<NetworkMode>,

    /// Let pasta reach this private destination [ADDRESS[/PREFIX][:PORT[-PORT]][/tcp|/udp]]
    #[arg(long, value_name = "DESTINATION", help_heading = "Network")]
    allow: Vec<Allow>,

    /// Have pasta refuse this network too [ADDRESS/PREFIX]
    #[arg(long, value_name = "NETWORK", help_heading = "Network")]
    refuse: Vec<Prefix>,

    /// Let pasta reach the allowed destinations only
    #[arg(long, help_heading = "Network")]
    only_allowed: bool,

    /// Grant /dev/kvm
    #[arg(long, help_heading = "Devices")]
    kvm: bool,

    /// Memory of the whole room
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    memory: Option<Size>,

    /// Processes and threads of the whole room
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pids: Option<u64>,

    /// Processors' worth of time, for example 1.5
    #[arg(long, value_name = "N", help_heading = "Limits")]
    cpu: Option<f64>,

    /// Share of the processors against others, 1 to 10000 [default: 100]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    cpu_weight: Option<u32>,

    /// End the room after this time
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    timeout: Option<Duration>,

    /// End the room after this time without output
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    silence: Option<Duration>,

    /// End the room after this much output
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    max_output: Option<Size>,

    /// The bound of /tmp, the home directory and each --tmpfs
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    tmpfs_size: Option<Size>,

    /// The family of rooms: build, nested, fetch or machines
    #[arg(long, value_name = "NAME", help_heading = "Room")]
    profile: Option<Profile>,

    /// Start from a room described in this file; other options add to it
    #[arg(long, value_name = "FILE", help_heading = "Room")]
    room: Option<PathBuf>,

    /// Leave a layer out; the seal and a warning name it
    #[arg(long, value_name = "LAYER", help_heading = "Room")]
    without: Vec<Layer>,

    /// Refuse a kernel whose Landlock interface is older than this
    #[arg(long, value_name = "N", help_heading = "Room")]
    require_landlock: Option<u32>,

    /// Give the room a time namespace of its own
    #[arg(long, help_heading = "Room")]
    time_namespace: bool,

    /// Where /proc comes from: new, or outer (weaker) in containers that mask theirs
    #[arg(long, value_name = "SOURCE", help_heading = "Room", value_parser = proc_source)]
    proc: Option<ProcSource>,

    /// Give the command a terminal of its own
    #[arg(long, short = 't', help_heading = "Process")]
    tty: bool,

    /// The first argument as the command sees it
    #[arg(long, value_name = "TEXT", help_heading = "Process")]
    argv0: Option<OsString>,

    /// Put a reaping first process before the command
    #[arg(long, help_heading = "Process")]
    init: bool,

    /// Let no 32-bit program run
    #[arg(long, help_heading = "Process")]
    no_compat: bool,

    /// Let uname name a 32-bit machine
    #[arg(long, help_heading = "Process")]
    linux32: bool,

    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn proc_source(word: &str) -> Result<ProcSource, String> {
    match word {
        "new" => Ok(ProcSource::New),
        "outer" => Ok(ProcSource::Outer),
        _ => Err(format!("no source `{word}`; there are new, outer")),
    }
}

impl RoomOptions {
    /// What of the host the plan will depend on.
    pub fn wanted(&self, room: &Room) -> Wanted {
        Wanted {
            kvm: room.devices.kvm,
            range: room.identity.outside == Outside::Range,
            way_out: anchorhold_sandbox::layers::network::mode(room) == NetworkMode::Pasta,
            cgroups: anchorhold_sandbox::layers::cgroup::may_be_asked(&room.limits),
        }
    }

    /// The room.
    ///
    /// # Errors
    /// Words, for a file that cannot be read or a user that does not exist.
    pub fn room(&self) -> Result<Room, String> {
        let mut room = match &self.room {
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|error| format!("cannot read the room file {}: {error}", file.display()))?;
                Room::from_toml(&text).map_err(|error| {
                    let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
                    format!("the room file {}, line {line}: {}", file.display(), error.message().replace('\n', "; "))
                })?
            }
            None => everyday_room(!self.no_usr),
        };
        if let Some(profile) = self.profile {
            room.profile = profile;
        }
        room.without.extend(&self.without);
        self.add_mounts(&mut room);
        self.set_identity(&mut room)?;
        self.set_network(&mut room.network);
        self.set_limits(&mut room);
        room.devices.kvm |= self.kvm;
        room.namespaces.time |= self.time_namespace;
        if let Some(source) = self.proc {
            room.proc.source = source;
        }
        if self.require_landlock.is_some() {
            room.landlock.require = self.require_landlock;
        }
        self.set_process(&mut room)?;
        Ok(room)
    }

    fn add_mounts(&self, room: &mut Room) {
        room.mounts.extend(self.ro.iter().map(|path| Entry::bind(path, false)));
        room.mounts.extend(self.rw.iter().map(|path| Entry::bind(path, true)));
        for inside in &self.tmpfs {
            room.mounts.push(Entry::Tmpfs {
                inside: inside.clone(),
                size: Size::Share(50),
                mode: 0o1777,
                noexec: false,
            });
        }
        if let Some(bound) = self.tmpfs_size {
            for entry in &mut room.mounts {
                if let Entry::Tmpfs { size, .. } = entry {
                    *size = bound;
                }
            }
        }
    }

    fn set_identity(&self, room: &mut Room) -> Result<(), String> {
        let identity = &mut room.identity;
        identity.uid = self.uid.unwrap_or(identity.uid);
        identity.gid = self.gid.unwrap_or(identity.gid);
        if self.id_range {
            identity.outside = Outside::Range;
        }
        if let Some(name) = &self.build_user {
            let (uid, gid) = anchorhold_sandbox::ids::user(name)?;
            identity.outside = Outside::User { uid, gid };
        }
        Ok(())
    }

    fn set_network(&self, network: &mut Network) {
        network.mode = self.network.or(network.mode);
        network.allow.extend(&self.allow);
        network.refuse.extend(&self.refuse);
        network.only_allowed |= self.only_allowed;
    }

    fn set_limits(&self, room: &mut Room) {
        let limits = &mut room.limits;
        limits.memory = self.memory.or(limits.memory);
        limits.pids = self.pids.or(limits.pids);
        limits.cpu = self.cpu.or(limits.cpu);
        limits.cpu_weight = self.cpu_weight.or(limits.cpu_weight);
        limits.time = self.timeout.or(limits.time);
        limits.silence = self.silence.or(limits.silence);
        limits.output = self.max_output.or(limits.output);
    }

    fn set_process(&self, room: &mut Room) -> Result<(), String> {
        let process = &mut room.process;
        for assignment in &self.env {
            let (name, value) = variable(assignment)?;
            process.environment.insert(name, value);
        }
        if let Some((program, arguments)) = self.command.split_first() {
            process.program = program.into();
            process.arguments = arguments.iter().map(Text::from).collect();
        }
        if let Some(argv0) = &self.argv0 {
            process.argv0 = Some(argv0.into());
        }
        room.seccomp.compat &= !self.no_compat;
        process.init |= self.init;
        if self.linux32 {
            process.personality = anchorhold_sandbox::room::Personality::Linux32;
        }
        if self.tty {
            process.output = Output::Terminal;
            process.stdin = Stdin::Null;
            if let Some(kind) = std::env::var_os("TERM") {
                process.environment.entry("TERM".into()).or_insert_with(|| kind.into());
            }
        } else if self.room.is_none() && stdin_is_given() {
            process.stdin = Stdin::Inherit;
        }
        if let Some(directory) = &self.cwd {
            process.directory = directory.clone();
        } else if self.room.is_none() {
            process.directory = default_directory(&room.mounts);
        }
        Ok(())
    }
}

/// The room of `anchorhold run` without options: the host's /usr, and nothing else of it.
fn everyday_room(usr: bool) -> Room {
    let mut room = Room::default();
    room.identity.home = HOME.into();
    let tmpfs = |inside: &str, mode| Entry::Tmpfs { inside: inside.into(), size: Size::Share(50), mode, noexec: false };
    room.mounts.extend([tmpfs("/tmp", 0o1777), tmpfs(HOME, 0o700)]);
    if usr {
        let optional = |path: &str| Entry::Bind {
            inside: path.into(),
            outside: None,
            writable: false,
            optional: true,
            noexec: false,
        };
        // Links to /usr on today's distributions, directories on older ones. Debian's /usr is full of links to /etc/alternatives,
        // which holds nothing but links back.
        let paths = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/alternatives"];
        room.mounts.extend(paths.map(optional));
    }
    let environment = [
        ("HOME", HOME),
        ("LANG", "C.UTF-8"),
        ("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"),
        ("TMPDIR", "/tmp"),
        ("USER", "nixbld"),
    ];
    room.process.environment = environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    room
}

/// Whether standard input is something that was put there: a pipe, a file, a socket. A terminal is not handed over as it is (see
/// `--tty`).
fn stdin_is_given() -> bool {
    use std::io::IsTerminal;
    !std::io::stdin().is_terminal()
}

/// The caller's current directory where the room shows it at the same place, else the home directory.
fn default_directory(mounts: &[Entry]) -> PathBuf {
    let shown = |directory: &Path| {
        mounts.iter().any(|entry| match entry {
            Entry::Bind { inside, outside, .. } => {
                directory.starts_with(inside) && outside.as_ref().is_none_or(|outside| outside == inside)
            }
            _ => false,
        })
    };
    std::env::current_dir().ok().filter(|directory| shown(directory)).unwrap_or_else(|| HOME.into())
}

fn variable(assignment: &OsString) -> Result<(Text, Text), String> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = assignment.as_bytes();
    let text = |bytes: &[u8]| Text::from(std::ffi::OsStr::from_bytes(bytes));
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => Ok((text(&bytes[..at]), text(&bytes[at + 1..]))),
        None => match std::env::var_os(assignment) {
            Some(value) => Ok((text(bytes), value.into())),
            None => Err(format!("--env {}: the caller has no such variable; write NAME=VALUE to set one", text(bytes))),
        },
    }
}
