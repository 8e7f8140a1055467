//! The Linux machine: one guest with a kernel, our agent and directories of its host, which runs one program.
//!
//! [`prepare`] makes what the machine starts from, before and outside of the room that it runs in. [`run`] starts it, runs the
//! program, and brings back its status by the agent's own channel: a status that did not come is a failure, never a number.

mod agent;
mod inputs;

pub use agent::{Agent, Aside, End, OF_OTHERS};
pub use inputs::{Inputs, Way};

use inputs::Ready;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::agent::{AgentError, image};
use crate::exchange::Command;
use crate::failure::{Failure, FailureClass};
use crate::initramfs::{Initramfs, InitramfsError};
use crate::kernel::{Feature, Kernel, KernelError, Modules, ModulesError};
use crate::machine::{Machine, Run};
use crate::qemu::Installed;
use crate::readiness::Wait;
use crate::report::{MountRequest, PORT_NAME, RunRequest, Streams, What};
use crate::shares::{self, Cache, virtiofs};
use crate::spec::{Accelerator, Clock, Drive, DriveBus, DriveFormat, MachineSpec, Share, ShareKind};
use crate::visitors::Visitors;

/// How long a request that has nothing to wait for may take: on a host that is overloaded.
const PATIENCE: Duration = Duration::from_secs(120);

/// One Linux machine and what it is to do: plain data, but for the program that it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Job {
    /// What the machine is called in messages.
    pub name: String,
    /// The kernel, an ELF file where it can be one.
    pub kernel: PathBuf,
    /// The initial file system, made by [`prepare`] for this very job.
    pub initramfs: PathBuf,
    /// Which QEMU; the first in PATH when none is named.
    pub qemu: Option<PathBuf>,
    /// What executes the guest.
    pub accelerator: Accelerator,
    /// QEMU's CPU model.
    pub cpu: String,
    /// What its clock begins with.
    #[serde(default)]
    pub clock: Clock,
    /// Memory, in MiB.
    pub memory: u64,
    /// Processors.
    pub cores: u32,
    /// What the guest sees.
    pub view: View,
    /// What of it has a way of its own to be read.
    #[serde(default)]
    pub inputs: Option<Inputs>,
    /// The image, byte for byte, of a disk that is the guest's alone: `/dev/vda`.
    #[serde(default)]
    pub disk: Option<PathBuf>,
    /// Whether the program has the machine's console as its terminal: it says nothing then, and a visitor types.
    #[serde(default)]
    pub terminal: bool,
    /// As which user and group the program runs.
    pub user: (u32, u32),
    /// Whether standard error is told apart from standard output.
    pub streams_apart: bool,
    /// How long the guest may take until its agent is ready, in milliseconds.
    pub boot_limit: u64,
    /// How long a guest that starts may do nothing, in milliseconds.
    pub boot_stall: u64,
    /// How long the program may take, in milliseconds; no bound if none.
    pub limit: Option<u64>,
    /// How many bytes the console may say.
    pub console_limit: u64,
}

/// The guest's file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct View {
    /// Directories of the host.
    pub directories: Vec<Directory>,
    /// Empty file systems in memory.
    pub memory: Vec<PathBuf>,
    /// Symbolic links: where, and what they say.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Programs of the host that the guest has a copy of: where, and which.
    pub copies: Vec<(PathBuf, PathBuf)>,
    /// Files: where, and what is in them.
    pub files: Vec<(PathBuf, String)>,
}

/// A directory of the host in a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Directory {
    /// On the host.
    pub outside: PathBuf,
    /// In the guest.
    pub inside: PathBuf,
    /// Whether the guest may write it.
    pub writable: bool,
}

/// Why a machine's start cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Its modules.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The archive.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// The file system.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl From<PrepareError> for Failure {
    fn from(error: PrepareError) -> Self {
        let class = match &error {
            PrepareError::Modules(ModulesError::Missing { .. })
            | PrepareError::Agent(AgentError::Module(ModulesError::Missing { .. })) => FailureClass::KernelLacksModule,
            PrepareError::Initramfs(InitramfsError::TooLarge { .. }) => FailureClass::InitramfsTooLarge,
            _ => FailureClass::NoKernel,
        };
        Self::new(class, error.to_string())
    }
}

/// Makes the kernel of a machine (in `cache`, once for all) and its initramfs (at `to`) for a guest that sees `view`, and whose
/// kernel can do `more` than that takes. Memory is in MiB.
///
/// # Errors
/// What is missing, with its name.
pub fn prepare(
    kernel: &Kernel,
    agent: &Path,
    (view, more): (&View, &[Feature]),
    memory: u64,
    cache: &Path,
    to: &Path,
) -> Result<PathBuf, PrepareError> {
    let image_file = kernel.extracted(cache)?;
    let needed = [Feature::Virtio, Feature::Port, Feature::NineP].into_iter().chain(more.iter().copied());
    let modules = Modules::open(&kernel.modules)?.closure(needed)?;
    let mut tree = image(agent, &modules, &start(view))?;
    place(&mut tree, view)?;
    tree.check_fits(memory << 20)?;
    let io = |source| PrepareError::Io { doing: format!("writing {}", to.display()), source };
    let mut file = io::BufWriter::new(File::create(to).map_err(io)?);
    tree.write(&mut file)?;
    file.flush().map_err(io)?;
    Ok(image_file)
}

fn tag(number: usize) -> String {
    format!("directory{number}")
}

/// What the guest does before its agent is ready: no word goes over the port for it.
fn start(view: &View) -> Vec<What> {
    // As in a room.
    let mut start = vec![What::Network { interface: "lo".into(), address: None }, What::HostName("localhost".into())];
    for path in &view.memory {
        start.push(What::Mount(MountRequest {
            source: "tmpfs".into(),
            target: path.clone(),
            kind: "tmpfs".into(),
            options: "mode=1777".into(),
            read_only: false,
            no_programs: false,
        }));
    }
    for (number, Directory { inside, writable, .. }) in view.directories.iter().enumerate() {
        let cache = if *writable { Cache::Mmap } else { Cache::Loose };
        start.push(What::Mount(shares::nine_p(&tag(number), inside, !writable, cache)));
    }
    start
}

fn place(tree: &mut Initramfs, view: &View) -> Result<(), InitramfsError> {
    for (path, text) in &view.files {
        tree.file(path, 0o644, text.as_bytes())?;
    }
    for (path, from) in &view.copies {
        tree.copy(path, 0o755, from)?;
    }
    for (path, target) in &view.links {
        tree.link(path, target)?;
    }
    Ok(())
}

/// How a job went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// How its program ended.
    pub end: End,
    /// The build of QEMU.
    pub qemu: String,
    /// The release of the guest's kernel.
    pub kernel: String,
    /// From the start of QEMU until the agent was ready.
    pub ready_after: Duration,
}

impl Job {
    /// The machine.
    pub fn spec(&self) -> MachineSpec {
        let mut spec = MachineSpec::linux(&self.name, &self.kernel, &self.initramfs, self.memory);
        spec.accelerator = self.accelerator;
        spec.cpu.clone_from(&self.cpu);
        spec.cores = self.cores;
        spec.clock = self.clock;
        spec.ports.push(PORT_NAME.to_owned());
        spec.drives.extend(self.disk.iter().map(|image| Drive {
            serial: "disk".into(),
            image: image.clone(),
            base: None,
            format: DriveFormat::Raw,
            read_only: false,
            bus: DriveBus::default(),
        }));
        spec.shares = (0..)
            .zip(&self.view.directories)
            .map(|(number, directory)| Share {
                tag: tag(number),
                path: directory.outside.clone(),
                read_only: !directory.writable,
                kind: ShareKind::NineP,
            })
            .collect();
        spec
    }
}

impl Job {
    fn inputs_ready(&self, told: &mut dyn FnMut(&str)) -> Result<Ready, Failure> {
        let Some(inputs) = &self.inputs else { return Ok(Ready::default()) };
        let directory = self.view.directories.iter().find(|directory| directory.inside == inputs.directory);
        let ready = match directory {
            Some(directory) => inputs.ready(&directory.outside, told),
            None => Err(format!("the guest has no directory {}", inputs.directory.display())),
        };
        let class = match &inputs.way {
            Way::Image { .. } => FailureClass::NoImage,
            Way::Virtiofs { .. } | Way::NineP { .. } => FailureClass::NoShare,
        };
        ready.map_err(|why| Failure::new(class, format!("the inputs: {why}")))
    }
}

/// A failure to start a machine, which may be that of the server of its inputs: QEMU knows only that nobody answers it.
fn of_server(failure: Failure, server: Option<&mut virtiofs::Server>) -> Failure {
    match server.and_then(|server| server.failed(&failure.evidence.qemu)) {
        None => failure,
        Some(how) => {
            let what = format!("the server of a directory ended before the machine stood ({how})");
            Failure { class: FailureClass::NoShare, what, ..failure }
        }
    }
}

/// Starts the machine, runs `command` in it, and ends the machine. The console goes to `console_log`, and to `visitors`; what a
/// person should know of how it went, to `told`.
///
/// # Errors
/// A [`Failure`] whenever there is no status of the command.
pub fn run(
    job: &Job,
    command: Command,
    console_log: &Path,
    visitors: Visitors,
    output: &mut dyn FnMut(bool, &[u8]) -> io::Result<()>,
    told: &mut dyn FnMut(&str),
) -> Result<Done, Failure> {
    let installed = Installed::find(job.qemu.as_deref(), std::env::var_os("PATH").as_deref())?;
    let mut spec = job.spec();
    let Ready { drive, share, mut server, cover } = job.inputs_ready(told)?;
    // Behind the guest's own disk, which is the first.
    spec.drives.extend(drive);
    spec.shares.extend(share);
    installed.check(&spec)?;
    let begun = Instant::now();
    let run = Run {
        console_log: Some(console_log.to_owned()),
        console_limit: job.console_limit,
        visitors: Some(visitors),
        ..Run::default()
    };
    let mut machine = Machine::start(&installed, &spec, run).map_err(|failure| of_server(failure, server.as_mut()))?;
    machine.go()?;
    let mut agent = Agent::default();
    if let Some(server) = server {
        agent.attended_by(server);
    }
    let boot = Wait::new("the agent in the guest", Duration::from_millis(job.boot_limit))
        .unless_stalled(Duration::from_millis(job.boot_stall), job.accelerator);
    let kernel = agent.ready(&mut machine, &boot)?.kernel;
    if let Some(cover) = cover {
        agent.request(&mut machine, cover, &Wait::new("the inputs in the guest", PATIENCE)).map_err(|failure| {
            let is_refusal = failure.class == FailureClass::GuestRefused;
            Failure { class: if is_refusal { FailureClass::NoShare } else { failure.class }, ..failure }
        })?;
    }
    let ready_after = begun.elapsed();
    let limit = job.limit.map_or(Duration::MAX, Duration::from_millis);
    let request = RunRequest {
        command: Ok(command),
        user: Some(job.user),
        streams: match (job.terminal, job.streams_apart) {
            (true, _) => Streams::Console,
            (false, true) => Streams::Apart,
            (false, false) => Streams::Together,
        },
        alone: true,
    };
    let end = agent.run(&mut machine, request, &Wait::new("the command's status", limit), output)?;
    // What the guest has not written back yet is in its memory until then.
    agent.power_off(&mut machine, Duration::from_secs(120))?;
    Ok(Done { end, qemu: machine.build().to_owned(), kernel, ready_after })
}
