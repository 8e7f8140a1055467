//! Linux machines in rooms.
//!
//! ```text
//! outside                      in a room of the profile `machines`
//! prepare: kernel, initramfs,  supervisor: QEMU, the guest, the program in it ──► its output, its status
//!          job, command        result.json, console.log
//! ```
//!
//! What a machine starts from is made outside, of files that only the operator writes. QEMU, which a guest may take over, and
//! the supervisor that talks to it run in a room: nothing of the host but what the machine is shown, a network of its own
//! with nothing but loopback. The supervisor's standard output and error are those of the program in the guest.

pub mod build;
pub mod granted;
pub mod inputs;
pub mod pair;
pub mod room;
pub mod stages;
pub mod supervisor;
pub mod typing;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anchorhold_sandbox::room::Outside;
use anchorhold_vmm::accelerator::{self, AcceleratorError};
use anchorhold_vmm::exchange::Command;
use anchorhold_vmm::failure::{Failure, FailureClass};
use anchorhold_vmm::kernel::{Feature, Kernel};
use anchorhold_vmm::linux::{self, Job, View};
use anchorhold_vmm::pair::job::Topology;
use anchorhold_vmm::qemu::Installed;
use anchorhold_vmm::spec::{Accelerator, Clock};
use serde::{Deserialize, Serialize};

use crate::config::settings::Settings;
use inputs::InputNames;

/// Whom a machine's room runs under.
pub struct Ids(crate::build::realise::Ids);

impl Ids {
    /// The person who asks; for root an id that no other room has, or a member of this group.
    ///
    /// # Errors
    /// Why there is none.
    pub fn take(group: Option<&str>) -> Result<Self, String> {
        crate::build::realise::Ids::take(group).map(Self)
    }

    /// As the room wants it.
    pub fn outside(&self) -> Outside {
        self.0.outside()
    }

    /// Who it is, if not the person who asks: uid and gid.
    pub fn owner(&self) -> Option<(u32, u32)> {
        self.0.owner()
    }
}

/// The hidden subcommand that is the payload of a machine's room.
pub const SUBCOMMAND: &str = "machine";

/// Its own subcommand that hands a guest's connection to the supervisor.
pub const CONNECTION: &str = "connection";

/// The agent's file name, beside this program.
const AGENT: &str = anchorhold_vmm::agent::FILE_NAME;

/// What of the settings machines are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Machines {
    /// QEMU; the one in PATH when none is named.
    pub qemu: Option<PathBuf>,
    /// A kernel, or a folder of one.
    pub kernel: Option<PathBuf>,
    /// The agent; the one beside this program when none is named.
    pub agent: Option<PathBuf>,
    /// What executes guests: `auto`, `kvm` or `tcg`.
    pub accelerator: String,
    /// Memory of a machine that does not say, in MiB.
    pub memory: u64,
    /// Where kernels that were made ready are kept.
    pub cache: PathBuf,
    /// Where installed disks and saved pairs are kept.
    pub stages: PathBuf,
    /// The guest of a pair whose build does not say; without one there are no pairs.
    pub guest: Option<String>,
    /// The folder with the images of guests and of the controller.
    pub images: Option<PathBuf>,
    /// The bound of an exchange, in bytes.
    pub exchange: u64,
    /// Who serves a guest: `pair` or `direct`.
    pub topology: String,
    /// What is between a guest and its controller: `dgram` or `vde`.
    pub wire: String,
    /// How a Linux machine reads the inputs of its build: `auto`, or a way.
    pub store: String,
    /// What it keeps of the store by 9p: `auto`, `loose` or `none`.
    pub store_cache: String,
    /// What the clocks of guests show: `now` or `2010`.
    pub clock: String,
    /// Whether builds save machines that are not saved yet, and revive them from then on.
    pub save: bool,
    /// The group whose members the rooms of stages run under; nobody's ids if none.
    pub users: Option<String>,
}

impl Machines {
    /// As the settings say.
    pub fn of(settings: &Settings) -> Self {
        Self {
            qemu: settings.vm_qemu.clone(),
            kernel: settings.vm_kernel.clone(),
            agent: settings.vm_agent.clone(),
            accelerator: settings.accel.clone(),
            memory: (settings.vm_memory >> 20).max(1),
            cache: cache(),
            stages: stages::cache_root(settings),
            guest: settings.vm_guest.clone(),
            images: settings.vm_images.clone(),
            exchange: settings.vm_exchange,
            topology: settings.vm_topology.clone(),
            wire: settings.vm_wire.clone(),
            store: settings.vm_store.clone(),
            store_cache: settings.vm_store_cache.clone(),
            clock: settings.vm_clock.clone(),
            save: settings.vm_save,
            users: settings.build_users_group.clone(),
        }
    }

    /// Who serves a guest.
    pub fn topology(&self) -> Topology {
        match self.topology.as_str() {
            "direct" => {
                Topology::Direct { connect: [room::SUPERVISOR, SUBCOMMAND, CONNECTION].map(str::to_owned).to_vec() }
            }
            _ => Topology::Pair,
        }
    }

    /// Whether there may be machines here, as far as a look at two files tells: QEMU and the agent.
    pub fn may_be_there(&self) -> bool {
        let name = format!("qemu-system-{}", std::env::consts::ARCH);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let qemu = match &self.qemu {
            Some(named) => named.is_file(),
            None => std::env::split_paths(&path).any(|place| place.join(&name).is_file()),
        };
        qemu && self.agent().is_ok()
    }

    /// Whether there are: the accelerator and a kernel too. Only asked for a build that wants one: it reads the kernel.
    pub fn are_there(&self) -> bool {
        self.may_be_there() && self.accelerator().is_ok() && self.kernel().is_ok()
    }

    /// Where a kernel is looked for: the named one, or that of `scripts/guest-kernel`, or the host's.
    fn kernel_places(&self) -> Vec<PathBuf> {
        match &self.kernel {
            Some(named) => vec![named.clone()],
            None => {
                let made = |cache: PathBuf| cache.join("guest-kernel");
                vec![made(self.cache.clone()), made(SYSTEM_CACHE.into()), "/boot".into()]
            }
        }
    }

    /// The first kernel there.
    ///
    /// # Errors
    /// [`FailureClass::NoKernel`].
    fn kernel(&self) -> Result<Kernel, Failure> {
        Kernel::first_of(&self.kernel_places()).map_err(|error| Failure::new(FailureClass::NoKernel, error.to_string()))
    }

    fn agent(&self) -> Result<PathBuf, Failure> {
        let missing = |what: String| Failure::new(FailureClass::NoKernel, what);
        match &self.agent {
            Some(named) => Ok(named.clone()),
            None => {
                let own = std::env::current_exe().map_err(|error| missing(format!("finding this program: {error}")))?;
                let beside = own.with_file_name(AGENT);
                if beside.is_file() {
                    return Ok(beside);
                }
                Err(missing(format!(
                    "there is no {} (cargo build --workspace makes it; vm-agent names another)",
                    beside.display()
                )))
            }
        }
    }

    /// Whether machines keep what they have read of what nobody changes, by 9p: the setting `vm-store-cache`.
    pub(crate) fn keeps_inputs(&self) -> bool {
        self.store_cache != "none"
    }

    /// What the clocks of guests show: the setting `vm-clock`.
    pub(crate) fn clock(&self) -> Clock {
        if self.clock == "2010" { Clock::Virtual } else { Clock::Host }
    }

    /// What executes a guest.
    ///
    /// # Errors
    /// [`FailureClass::AcceleratorUnusable`] when KVM is asked for and is of no use.
    pub fn accelerator(&self) -> Result<Accelerator, Failure> {
        let unusable = |why: String| {
            Failure::new(FailureClass::AcceleratorUnusable, format!("accel is {}: {why}", self.accelerator))
        };
        let wanted: accelerator::Wanted =
            self.accelerator.parse().map_err(|error: AcceleratorError| unusable(error.to_string()))?;
        if wanted == accelerator::Wanted::Tcg {
            return Ok(Accelerator::Tcg);
        }
        // Whoever the room runs under must be able to open it, and a guest must get somewhere under it.
        let usable = anchorhold_sandbox::kvm::probe(rustix::process::geteuid().is_root())
            .map_err(|(why, fix)| format!("{why}; {fix}"))
            .and_then(|_| {
                accelerator::choose(accelerator::Wanted::Kvm, &accelerator::Host::default(), Some(&self.cache))
                    .map_err(|error| error.to_string())
            });
        match usable {
            Ok(choice) => Ok(choice.accelerator),
            Err(why) if wanted == accelerator::Wanted::Kvm => Err(unusable(why)),
            Err(_) => Ok(Accelerator::Tcg),
        }
    }
}

const SYSTEM_CACHE: &str = "/var/cache/anchorhold";

/// Where this user keeps what can be made again.
fn cache() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return SYSTEM_CACHE.into();
    }
    let named = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    named.or_else(home).unwrap_or_else(std::env::temp_dir).join("anchorhold")
}

/// What is asked of one machine.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What it is called in messages.
    pub name: String,
    /// Memory, in MiB.
    pub memory: u64,
    /// Processors.
    pub cores: u32,
    /// What the guest sees; where its directories lie *in the room*.
    pub view: View,
    /// What of it are the inputs of a build.
    pub inputs: Option<InputNames>,
    /// The size, in bytes, of a blank disk of its own.
    pub disk: Option<u64>,
    /// What runs in it.
    pub command: Command,
    /// Whether standard error is told apart from standard output.
    pub streams_apart: bool,
    /// Whether it has the machine's console as its terminal.
    pub terminal: bool,
    /// Programs around it, in the room.
    pub hooks: Vec<Hook>,
    /// How long it may take, in milliseconds.
    pub limit: Option<u64>,
}

/// A program that is run in the room, before or after the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Hook {
    /// After the guest, even when that failed; else before it.
    pub after: bool,
    /// What it is called in messages: `preVM`, `postVM`.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// All that the supervisor is told, but for the program in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Order {
    /// The machines, and what they are to do.
    pub work: Work,
    /// Programs around it.
    pub hooks: Vec<Hook>,
}

/// What is done in a room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// A Linux machine.
    Linux(Box<Job>),
    /// A guest beside a controller.
    Pair(Box<anchorhold_vmm::pair::job::Job>),
}

/// A machine that is ready to be started in its room.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The program that is QEMU.
    pub qemu: PathBuf,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The directory of what the supervisor reads.
    pub order: PathBuf,
    /// The directory of what it writes.
    pub result: PathBuf,
    /// What executes it.
    pub accelerator: Accelerator,
}

/// The order's file.
pub const ORDER: &str = "order.json";
/// The program in the guest, encoded.
pub const COMMAND: &str = "command";
/// The disk, among what the room writes.
const DISK: &str = "disk.raw";
/// The initial file system.
const INITRAMFS: &str = "initramfs";

/// Makes everything that a machine needs in `work`, which is ours; what the room writes is below it, and belongs to `owner` if
/// that is somebody else.
///
/// # Errors
/// What is missing, and what the file system says.
pub fn prepare(
    machines: &Machines,
    wanted: &Wanted,
    work: &Path,
    owner: Option<(u32, u32)>,
) -> Result<Prepared, Failure> {
    let Ground { qemu, accelerator, kernel: found, agent, order: order_directory, result } =
        Ground::lay(machines, work, owner)?;
    let initramfs = order_directory.join(INITRAMFS);
    let inputs = wanted.inputs.as_ref().map(|inputs| inputs.by(machines, &found, &qemu)).transpose()?.flatten();
    let mut features = inputs::features(inputs.as_ref()).to_vec();
    if wanted.disk.is_some() {
        features.extend([Feature::Disk, Feature::Ext4]);
    }
    let kernel = linux::prepare(
        &found,
        &agent,
        (&wanted.view, &features),
        wanted.memory,
        &machines.cache.join("kernels"),
        &initramfs,
    )
    .map_err(Failure::from)?;
    if let Some(size) = wanted.disk {
        let disk = result.join(DISK);
        let made = fs::File::create_new(&disk).and_then(|file| file.set_len(size));
        made.map_err(io("making the disk", &disk))?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&disk, Some(uid), Some(gid)).map_err(io("giving away", &disk))?;
        }
    }
    let job = Job {
        name: wanted.name.clone(),
        kernel: room::KERNEL.into(),
        initramfs: Path::new(room::ORDER).join(INITRAMFS),
        qemu: Some(qemu.clone()),
        accelerator,
        cpu: cpu(accelerator).to_owned(),
        clock: machines.clock(),
        memory: wanted.memory,
        cores: wanted.cores,
        view: wanted.view.clone(),
        inputs,
        disk: wanted.disk.map(|_| disk_in_room()),
        terminal: wanted.terminal,
        user: (0, 0),
        streams_apart: wanted.streams_apart,
        boot_limit: 120_000,
        boot_stall: 30_000,
        limit: wanted.limit,
        console_limit: 16 << 20,
    };
    let order = Order { work: Work::Linux(Box::new(job)), hooks: wanted.hooks.clone() };
    write_order(&order_directory, &order, &wanted.command)?;
    Ok(Prepared { qemu, kernel, order: order_directory, result, accelerator })
}

/// Where the room has the disk.
pub fn disk_in_room() -> PathBuf {
    Path::new(room::RESULT).join(DISK)
}

/// What every kind of machine stands on.
struct Ground {
    qemu: PathBuf,
    accelerator: Accelerator,
    kernel: Kernel,
    agent: PathBuf,
    order: PathBuf,
    result: PathBuf,
}

impl Ground {
    /// Finds the parts, and makes the directories in `work`.
    fn lay(machines: &Machines, work: &Path, owner: Option<(u32, u32)>) -> Result<Self, Failure> {
        let path = std::env::var_os("PATH");
        let qemu = Installed::find(machines.qemu.as_deref(), path.as_deref())?.program;
        let accelerator = machines.accelerator()?;
        let (kernel, agent) = (machines.kernel()?, machines.agent()?);
        let (order, result) = places(work, owner)?;
        Ok(Self { qemu, accelerator, kernel, agent, order, result })
    }

    /// A machine whose kernel is this file, and whose order is written.
    fn prepared(self, kernel: PathBuf) -> Prepared {
        let Self { qemu, accelerator, order, result, .. } = self;
        Prepared { qemu, kernel, order, result, accelerator }
    }
}

/// The directories of what a room's supervisor reads and of what it writes, which belongs to `owner` if that is somebody else.
fn places(work: &Path, owner: Option<(u32, u32)>) -> Result<(PathBuf, PathBuf), Failure> {
    let (order, result) = (work.join("order"), work.join("result"));
    for (directory, mode) in [(&order, 0o755), (&result, 0o700)] {
        fs::create_dir_all(directory).map_err(io("making", directory))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(mode))
            .map_err(io("changing the mode of", directory))?;
    }
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(&result, Some(uid), Some(gid)).map_err(io("giving away", &result))?;
    }
    Ok((order, result))
}

/// QEMU's CPU model.
fn cpu(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    }
}

fn write_order(directory: &Path, order: &Order, command: &Command) -> Result<(), Failure> {
    let write = |name: &str, bytes: io::Result<Vec<u8>>| {
        let file = directory.join(name);
        bytes.and_then(|bytes| fs::write(&file, bytes)).map_err(io("writing", &file))
    };
    write(ORDER, serde_json::to_vec_pretty(order).map_err(io::Error::other))?;
    write(COMMAND, command.encode().map_err(io::Error::other))
}

fn io(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let doing = format!("{doing} {}", path.display());
    move |error| Failure::new(FailureClass::NoKernel, format!("{doing}: {error}"))
}

/// What every guest has: a place for temporary files, and who it knows.
pub fn plain_view() -> View {
    let file = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
    View {
        directories: Vec::new(),
        copies: Vec::new(),
        memory: vec!["/tmp".into(), "/run".into()],
        links: vec![("/etc/mtab".into(), "/proc/mounts".into()), ("/var/run".into(), "/run".into())],
        files: vec![
            file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/noshell\n"),
            file("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
            file("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
            file("/root/.keep", ""),
        ],
    }
}

/// The host's programs, as a guest and a room see them: `/usr`, and what links to it. Where `path` is a link, it is one in there too.
pub fn host_programs() -> (Vec<PathBuf>, Vec<(PathBuf, PathBuf)>) {
    let (mut directories, mut links) = (Vec::new(), Vec::new());
    for path in room::HOST_PROGRAMS {
        let path = Path::new(path);
        match fs::read_link(path) {
            Ok(target) => links.push((path.to_owned(), target)),
            Err(_) if path.is_dir() => directories.push(path.to_owned()),
            Err(_) => {}
        }
    }
    (directories, links)
}
