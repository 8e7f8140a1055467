//! pasta(1) of the passt package: found, started against a room's namespaces, awaited, ended.
//!
//! **Identity.** pasta never runs as root. Started by an ordinary supervisor it is that user. Started by root it becomes the
//! room's unprivileged user before it is executed ([`RunAs::User`]); pasta's own `--runas` would do that only after it has
//! parsed options and opened files as root. That user made the room's user namespace, which is what lets pasta join it.
//!
//! **`/dev/net/tun`.** pasta opens it with its own identity, and some machines keep it at 0600 root. A root supervisor
//! therefore gives pasta a mount namespace of its own in which `/dev/net` is a tmpfs with a device node for it, and with the
//! room's namespaces as files, so that the room's process need not be inspectable by its own user. Nothing on the host
//! changes.
//!
//! **Readiness** is pasta's process id file, named as `/proc/self/fd/1`, our pipe: pasta writes it once, when the interface
//! exists and it has confined itself. A pipe is an event that can be awaited together with its end: when pasta fails it
//! closes. (Waiting for a daemonising parent to exit would leave a process that is not our child; watching for the
//! interface would be too early.)
//!
//! **Confinement** is mostly pasta's own: it pivots into an empty read-only tmpfs, drops capabilities and filters its
//! system calls. We add no_new_privs, an empty environment, no inherited descriptors, and death with the supervisor.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, fchown, geteuid, getppid, pipe2, setgroups, setresgid, setresuid};

use super::addresses::{self, Families};
use crate::sys;

/// Where pasta is looked for when nobody names it. Not `PATH`: whoever starts a build must not choose the program that
/// carries its traffic.
const PLACES: [&str; 4] = ["/usr/bin/pasta", "/usr/local/bin/pasta", "/run/current-system/sw/bin/pasta", "/bin/pasta"];

/// How long pasta may take until it is ready. It takes about 20 milliseconds on an idle machine.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How long pasta may take to print its help.
const HELP_WITHIN: Duration = Duration::from_secs(10);

/// How much of pasta's output is kept, in bytes; also what a pipe holds.
const WORDS: usize = 64 * 1024;

/// The device that makes interfaces (Documentation/networking/tuntap.rst): character, major 10, minor 200.
const TUN: &str = "/dev/net/tun";
const TUN_NUMBER: (u64, u64) = (10, 200);

/// Names under which a root supervisor shows pasta the room's namespaces.
const ROOM_NETWORK: &str = "/dev/net/room-net";
const ROOM_USER: &str = "/dev/net/room-user";

/// Options without which a room would be weaker than asked, so a pasta that does not know them is not started.
const REQUIRED: [&str; 21] = [
    "--foreground",
    "--pid",
    "--tcp-ports",
    "--udp-ports",
    "--tcp-ns",
    "--udp-ns",
    "--no-map-gw",
    "--no-icmp",
    "--no-dhcp",
    "--no-dhcpv6",
    "--no-ra",
    "--no-netns-quit",
    "--ns-ifname",
    "--mac-addr",
    "--mtu",
    "--address",
    "--netmask",
    "--gateway",
    "--dns-forward",
    "--userns",
    "--netns",
];

/// Mappings to the host that newer versions know (2024_08_21 and later) and that must be off where they exist.
const MAPPINGS: [&str; 2] = ["--map-host-loopback", "--map-guest-addr"];

/// Whom pasta runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunAs {
    /// The user that the supervisor is, which must not be root.
    Myself,
    /// An unprivileged user, by a supervisor that is root: the one that made the room's user namespace.
    User {
        /// User id, in the supervisor's user namespace.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

/// How pasta comes to its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunAccess {
    /// It opens the host's own node.
    Host,
    /// The host's node is bound into a private `/dev/net`, because the node is open to everybody.
    Bound,
    /// A node is made in a private `/dev/net`, because the host's own is closed to pasta's user.
    Made,
}

/// A pasta that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastaFound {
    /// The program.
    pub program: PathBuf,
    /// First line of what it says about its version. Debian 12's says "unknown version".
    pub version: String,
    /// The long options that its help names.
    pub options: BTreeSet<String>,
    /// How it will come to its device.
    pub tun: TunAccess,
    /// Whom it will run as.
    pub run_as: RunAs,
}

impl PastaFound {
    /// Whether it forwards DNS over TCP too. Versions that know `--map-host-loopback` do; before that only UDP.
    pub fn has_dns_over_tcp(&self) -> bool {
        self.options.contains(MAPPINGS[0])
    }
}

/// Something that a room with a network needs is not there. One line: what, why, what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("network pasta: {what}: {why}; {fix}")]
pub struct Missing {
    /// What is missing.
    pub what: String,
    /// How that was found out, in the system's words.
    pub why: String,
    /// What to do.
    pub fix: String,
}

impl Missing {
    fn new(what: impl Into<String>, why: impl ToString, fix: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.to_string(), fix: fix.into() }
    }
}

/// pasta could not be started or did not become ready. One line: what, pasta's or the kernel's words, what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("network pasta: {what}: {why}; {fix}")]
pub struct PastaFailed {
    /// What was being done.
    pub what: String,
    /// pasta's own last words, or the kernel's.
    pub why: String,
    /// What to do.
    pub fix: String,
}

/// Looks for everything that [`Pasta::start`] needs: for `doctor`, and before a room is entered.
///
/// `program` is pasta's path when configuration names one. Starts the program twice for its help and version; nothing is
/// left behind.
pub fn check(program: Option<&Path>, run_as: RunAs) -> Result<PastaFound, Missing> {
    let root = geteuid().is_root();
    match run_as {
        RunAs::Myself if root => {
            return Err(Missing::new("an unprivileged user", "pasta would run as root", "name the room's user"));
        }
        RunAs::User { uid: 0, .. } => {
            return Err(Missing::new(
                "an unprivileged user",
                "the room's user is root",
                "name another user for the room",
            ));
        }
        RunAs::User { .. } if !root => {
            return Err(Missing::new(
                "the right to change users",
                "the supervisor is not root",
                "run pasta as this user",
            ));
        }
        _ => {}
    }
    let program = find(program)?;
    let tun = tun_access(Path::new(TUN), run_as)?;
    let help = ask(&program, "--help", run_as)?;
    let options = long_options(&help);
    let lacking: Vec<&str> = REQUIRED.into_iter().filter(|option| !options.contains(*option)).collect();
    if !lacking.is_empty() {
        return Err(Missing::new(
            "a pasta that can be confined",
            format!("{} does not know {}", program.display(), lacking.join(", ")),
            "install passt of 2023_03_09 or later",
        ));
    }
    let version = meaningful(&ask(&program, "--version", run_as)?).first().cloned().unwrap_or_default();
    Ok(PastaFound { program, version, options, tun, run_as })
}

fn find(program: Option<&Path>) -> Result<PathBuf, Missing> {
    let places: Vec<PathBuf> = match program {
        Some(program) => vec![program.to_owned()],
        None => PLACES.iter().map(PathBuf::from).collect(),
    };
    let usable = |path: &PathBuf| {
        path.is_absolute()
            && std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    places.iter().find(|path| usable(path)).cloned().ok_or_else(|| {
        let tried: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        let why = format!("no executable file at {}", tried.join(", "));
        Missing::new(
            "the program pasta",
            why,
            "install the package passt (Debian, Fedora, Arch, Nixpkgs), or name its path",
        )
    })
}

fn tun_access(node: &Path, run_as: RunAs) -> Result<TunAccess, Missing> {
    let what = format!("the device {}", node.display());
    let load = "load the kernel module (modprobe tun), or give the container this device";
    let found = std::fs::metadata(node).map_err(|error| Missing::new(what.clone(), error, load))?;
    if !found.file_type().is_char_device() || found.rdev() != makedev(TUN_NUMBER.0, TUN_NUMBER.1) {
        return Err(Missing::new(what, "the file is not the tun device (10, 200)", load));
    }
    // Opening it makes no interface, that takes an ioctl; but it shows whether the kernel has the driver.
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(node);
    let mode = format!("mode {:04o}, owner {}", found.mode() & 0o7777, found.uid());
    match (run_as, opened) {
        (RunAs::Myself, Ok(_)) => Ok(TunAccess::Host),
        (RunAs::Myself, Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            let fix = "as root: chmod 0666 /dev/net/tun, the mode that udev gives it (it grants nothing without \
                       CAP_NET_ADMIN), or start anchorhold as root, which needs no such change";
            Err(Missing::new(what, format!("{error} ({mode})"), fix))
        }
        (_, Err(error)) => Err(Missing::new(what, format!("{error} ({mode})"), load)),
        (RunAs::User { .. }, Ok(_)) if found.mode() & 0o006 == 0o006 => Ok(TunAccess::Bound),
        (RunAs::User { .. }, Ok(_)) if may_make_nodes() => Ok(TunAccess::Made),
        (RunAs::User { .. }, Ok(_)) => {
            let why = format!("closed to pasta's user ({mode}), and the root of a user namespace may make no other");
            Err(Missing::new(what, why, "outside, as root: chmod 0666 /dev/net/tun, the mode that udev gives it"))
        }
    }
}

/// Whether root here is the kernel's root: no other may make device nodes. The first user namespace maps every id to
/// itself (user_namespaces(7)).
fn may_make_nodes() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Runs pasta with one option and returns what it printed on both outputs, bounded in time and size.
fn ask(program: &Path, option: &str, run_as: RunAs) -> Result<String, Missing> {
    let failed = |why: String| {
        let fix = "run it by hand; reinstall the package passt";
        Missing::new(format!("the answer of {} {option}", program.display()), why, fix)
    };
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.to_string()))?;
    let mut command = Command::new(program);
    command.arg(option).env_clear().current_dir("/").stdin(Stdio::null());
    let both = write.try_clone().map_err(|error| failed(error.to_string()))?;
    command.stdout(both).stderr(write);
    let parent = std::process::id();
    sys::network::before_exec(&mut command, move || confine(run_as, parent));
    let child = command.spawn();
    // The command holds the writing ends; the pipe ends only when they are gone.
    drop(command);
    let mut child = Running(child.map_err(|error| failed(error.to_string()))?);
    let words = read_until_end(read, Instant::now() + HELP_WITHIN).map_err(|error| failed(error.to_string()))?;
    child.end();
    Ok(words)
}

/// Reads until the other side closes, the time is over, or [`WORDS`] bytes came.
fn read_until_end(pipe: OwnedFd, deadline: Instant) -> io::Result<String> {
    let mut file = std::fs::File::from(pipe);
    let mut words = Vec::new();
    let mut buffer = [0; 4096];
    while words.len() < WORDS {
        if !wait_readable(&[file.as_fd()], deadline)?[0] {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no end of the output in time"));
        }
        match file.read(&mut buffer)? {
            0 => break,
            count => words.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&words).into_owned())
}

/// Which of these can be read (or have ended) before the deadline; all false when none.
fn wait_readable(descriptors: &[BorrowedFd<'_>], deadline: Instant) -> io::Result<Vec<bool>> {
    let mut set: Vec<PollFd<'_>> = descriptors.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut set, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) => return Ok(set.iter().map(|one| one.any().unwrap_or(false)).collect()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Every `--word` of the help.
fn long_options(help: &str) -> BTreeSet<String> {
    help.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '-'))
        .filter(|word| word.len() > 3 && word.starts_with("--"))
        .map(str::to_owned)
        .collect()
}

/// Lines that say something. Without a system log Debian 12's version complains of that before each of them.
fn meaningful(words: &str) -> Vec<String> {
    let lines = words.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines = lines.filter(|line| !(line.starts_with("Failed to send ") && line.ends_with(" to syslog")));
    lines.map(|line| line.chars().filter(|letter| !letter.is_control()).take(200).collect()).collect()
}

/// What pasta is told, for these namespaces.
fn arguments(found: &PastaFound, families: Families, dns: bool, network: &str, user: &str) -> Vec<OsString> {
    let mut list: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| list.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["--foreground", "--pid", "/proc/self/fd/1"]);
    // Old versions log to the system log only; the newest have no such option and always use standard error.
    if found.options.contains("--stderr") {
        add(&["--stderr"]);
    }
    // Nothing comes in, and no port of the room leads to the host's loopback.
    for ports in ["--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns"] {
        add(&[ports, "none"]);
    }
    add(&["--no-map-gw"]);
    for mapping in MAPPINGS {
        if found.options.contains(mapping) {
            add(&[mapping, "none"]);
        }
    }
    add(&["--no-icmp", "--no-dhcp", "--no-dhcpv6", "--no-ra", "--no-netns-quit"]);
    let interface = addresses::INTERFACE.to_string_lossy();
    let mac: Vec<String> = addresses::GATEWAY_MAC.iter().map(|byte| format!("{byte:02x}")).collect();
    add(&["--ns-ifname", &interface, "--mac-addr", &mac.join(":"), "--mtu", &addresses::MTU.to_string()]);
    if !families.v6 {
        add(&["--ipv4-only"]);
    }
    if !families.v4 {
        add(&["--ipv6-only"]);
    }
    if families.v4 {
        add(&["--address", &addresses::ROOM_V4.to_string(), "--netmask", "24"]);
        add(&["--gateway", &addresses::GATEWAY_V4.to_string()]);
        if dns {
            add(&["--dns-forward", &addresses::DNS_V4.to_string()]);
        }
    }
    if families.v6 {
        add(&["--address", &addresses::ROOM_V6.to_string(), "--gateway", &addresses::GATEWAY_V6.to_string()]);
        if dns {
            add(&["--dns-forward", &addresses::DNS_V6.to_string()]);
        }
    }
    add(&["--userns", user, "--netns", network]);
    list.into_iter().map(OsString::from).collect()
}

/// A child that is killed and reaped when it goes out of scope, so that no path leaves it behind.
#[derive(Debug)]
struct Running(Child);

impl Running {
    /// Kills it when it still runs, and reaps it. Waiting is bounded: a killed process ends.
    fn end(&mut self) -> Option<std::process::ExitStatus> {
        // The only error is that it has ended already.
        let _ = self.0.kill();
        self.0.wait().ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// A running pasta that serves one room. Dropping it ends it.
#[derive(Debug)]
pub struct Pasta {
    child: Running,
    words: std::fs::File,
}

impl Pasta {
    /// Starts pasta for the room whose first process is `room` (as the supervisor's `/proc` numbers it, not yet reaped)
    /// and waits until the interface exists.
    ///
    /// Call it after pid 1 has its own user and network namespace and has said that the policy is in force. With
    /// [`RunAs::Myself`] that process must be inspectable by its own user (prctl(2), `PR_SET_DUMPABLE`), which it is unless
    /// it changed its user id. The calling process must be single-threaded, and its calling thread must outlive pasta.
    ///
    /// # Errors
    /// One line with pasta's own words. Nothing is left behind then: no process, no mount, no interface.
    pub fn start(found: &PastaFound, room: u32, families: Families, dns: bool) -> Result<Self, PastaFailed> {
        let failed = |what: &str, why: String| {
            let fix = fix_for(&why).to_owned();
            PastaFailed { what: what.to_owned(), why, fix }
        };
        if !families.v4 && !families.v6 {
            return Err(failed("starting", "the host has no default route".to_owned()));
        }
        let (ready, told) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed("making a pipe", errno.to_string()))?;
        let (words, written) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed("making a pipe", errno.to_string()))?;
        // A room that makes pasta complain must not be able to fill the pipe and stop its own network, or us: what does
        // not fit is lost.
        fcntl(&written, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .and_then(|_| fcntl(&words, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)))
            .map_err(|errno| failed("making a pipe", errno.to_string()))?;
        let outside = [format!("/proc/{room}/ns/net"), format!("/proc/{room}/ns/user")];
        let (network, user) = match found.run_as {
            RunAs::Myself => (outside[0].as_str(), outside[1].as_str()),
            RunAs::User { uid, gid } => {
                // pasta opens the pipe again by its name in /proc, for which the pipe must be its own.
                fchown(&told, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                    .map_err(|errno| failed("handing over a pipe", errno.to_string()))?;
                (ROOM_NETWORK, ROOM_USER)
            }
        };
        let mut command = Command::new(&found.program);
        command.args(arguments(found, families, dns, network, user)).env_clear().current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(told).stderr(written);
        let (run_as, tun, parent) = (found.run_as, found.tun, std::process::id());
        let namespaces = outside.clone();
        sys::network::before_exec(&mut command, move || {
            if let RunAs::User { .. } = run_as {
                private_devices(tun, &namespaces)?;
            }
            confine(run_as, parent)
        });
        let child = command.spawn();
        drop(command);
        let mut words = std::fs::File::from(words);
        let child = match child {
            Ok(child) => Running(child),
            Err(error) => {
                // The child wrote which step it was; the error has only the number.
                let step = last_words(&mut words).unwrap_or_else(|| error.to_string());
                return Err(failed("starting", step));
            }
        };
        let mut pasta = Self { child, words };
        match await_ready(ready) {
            Ok(true) => match unserved(&mut pasta.words, families) {
                None => Ok(pasta),
                Some(why) => Err(failed("becoming ready", why)),
            },
            Ok(false) => {
                let status = pasta.child.end();
                let status = status.map_or_else(String::new, |status| format!(" ({status})"));
                let why = last_words(&mut pasta.words).unwrap_or_else(|| format!("it ended without a word{status}"));
                Err(failed("becoming ready", why))
            }
            Err(error) => {
                pasta.child.end();
                let said = last_words(&mut pasta.words).map(|words| format!(", last words: {words}"));
                Err(failed("becoming ready", format!("{error}{}", said.unwrap_or_default())))
            }
        }
    }

    /// pasta's process id.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Its last words when it has ended by itself, which cuts the room off: a reason to end the build with a clear error.
    /// To wait for that beside other things, poll [`AsFd`] for a hang-up.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.0.try_wait().ok().flatten()?;
        Some(last_words(&mut self.words).unwrap_or_else(|| status.to_string()))
    }

    /// Ends and reaps it; returns what it said last, if anything. Connections that are still open are cut.
    pub fn stop(mut self) -> Option<String> {
        self.child.end();
        last_words(&mut self.words)
    }
}

impl AsFd for Pasta {
    /// Its standard error. Hangs up when pasta has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }
}

/// True when pasta wrote its number, false when it closed the pipe without.
fn await_ready(ready: OwnedFd) -> io::Result<bool> {
    let deadline = Instant::now() + READY_WITHIN;
    let mut ready = std::fs::File::from(ready);
    let mut buffer = [0; 32];
    if !wait_readable(&[ready.as_fd()], deadline)?[0] {
        let text = format!("not ready after {} s", READY_WITHIN.as_secs());
        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
    }
    Ok(ready.read(&mut buffer)? > 0)
}

/// The last line that says something, out of what is in the pipe now.
fn last_words(words: &mut std::fs::File) -> Option<String> {
    let mut text = Vec::new();
    // Ends at the end of the pipe, or with EAGAIN when it is empty but still open; both leave what came before.
    let _ = words.take(WORDS as u64).read_to_end(&mut text);
    meaningful(&String::from_utf8_lossy(&text)).pop()
}

/// Where pasta says that it goes on without a version of IP that was asked for, which it takes for no error. Its chatter
/// until now leaves the pipe with this.
fn unserved(words: &mut std::fs::File, families: Families) -> Option<String> {
    let mut text = Vec::new();
    let _ = words.take(WORDS as u64).read_to_end(&mut text);
    let asked = [(families.v4, "IPv4"), (families.v6, "IPv6")];
    meaningful(&String::from_utf8_lossy(&text)).into_iter().find(|line| {
        let without =
            line.contains("disabling IPv") || line.contains("interface for IPv") || line.contains(": disabled");
        without && asked.iter().any(|(asked, family)| *asked && line.contains(family))
    })
}

/// What to do, from what pasta or the kernel said.
fn fix_for(words: &str) -> &'static str {
    let words = words.to_ascii_lowercase();
    let has = |part: &str| words.contains(part);
    if has("default route") || has("external interface") || has("routable interface") || has("template interface") {
        "give the host a default route, or use network none"
    } else if has("tun") || has("tap device") {
        "make /dev/net/tun usable for pasta's user (anchorhold doctor says how), or use network none"
    } else if has("user namespace") || has("network namespace") || has("netns") {
        "pasta's user must be the one that made the room's user namespace; report this with the output of anchorhold doctor"
    } else {
        "see pasta(1) of the installed passt; anchorhold doctor checks what it needs"
    }
}

/// In the child, as root: a mount namespace in which `/dev/net` holds pasta's device and the room's namespaces, and which
/// nobody else sees.
fn private_devices(tun: TunAccess, namespaces: &[String; 2]) -> io::Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let none = None::<&str>;
    said("making a mount namespace", unshare(CloneFlags::CLONE_NEWNS))?;
    said("making mounts private", mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))?;
    // Held before the tmpfs covers it.
    let host = said("opening the tun device", std::fs::File::open("/dev/net"))?;
    let covered = format!("/proc/self/fd/{}/tun", std::os::fd::AsRawFd::as_raw_fd(&host));
    let size = Some("mode=0755,size=16k,nr_inodes=8");
    said("covering /dev/net", mount(Some("tmpfs"), "/dev/net", Some("tmpfs"), quiet, size))?;
    let bind = |from: &str, to: &str| {
        std::fs::File::create(to)?;
        mount(Some(from), to, none, MsFlags::MS_BIND, none).map_err(io::Error::from)
    };
    match tun {
        TunAccess::Host => {}
        TunAccess::Bound => said("binding the tun device", bind(&covered, TUN))?,
        TunAccess::Made => {
            let number = makedev(TUN_NUMBER.0, TUN_NUMBER.1);
            said("making a tun device", mknod(TUN, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), number))?;
            // The mode that mknod was given lost what the umask takes.
            said("opening the tun device up", std::fs::set_permissions(TUN, PermissionsExt::from_mode(0o666)))?;
        }
    }
    said("showing the room's network namespace", bind(&namespaces[0], ROOM_NETWORK))?;
    said("showing the room's user namespace", bind(&namespaces[1], ROOM_USER))
}

/// In the child: gives up every privilege and ties its life to the supervisor's.
fn confine(run_as: RunAs, parent: u32) -> io::Result<()> {
    if let RunAs::User { uid, gid } = run_as {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        said("dropping groups", setgroups(&[]))?;
        said("changing the group", setresgid(gid, gid, gid))?;
        said("changing the user", setresuid(uid, uid, uid))?;
    }
    said("setting no_new_privs", sys::network::no_new_privileges())?;
    said("closing descriptors", sys::network::close_on_exec_from(3))?;
    said("setting the parent-death signal", sys::network::die_with_parent())?;
    // When the supervisor died before that line, nobody will send the signal.
    if u32::try_from(getppid().as_raw()) == Ok(parent) { Ok(()) } else { Err(Errno::ESRCH.into()) }
}

/// Lets the parent know which step failed: only the error's number reaches it otherwise.
fn said<T, E: Into<io::Error>>(step: &str, result: Result<T, E>) -> io::Result<T> {
    result.map_err(|error| {
        let error = error.into();
        eprintln!("{step}: {error}");
        error
    })
}

#[cfg(test)]
#[path = "pasta_tests.rs"]
mod tests;
