//! Stages of guests, each made in a sealed room: installed disks, saved pairs, and revived ones.
//!
//! What a stage depends on is found out here, outside, and what a room leaves behind is looked at here before it gets a name in
//! the cache. All that a room is shown stands where it stands outside: QEMU remembers paths in disks and states.

pub mod inside;
mod running;

pub use running::{Registered, Registry, Visit};

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anchorhold_sandbox::launcher::{Options, Sink, Stream};
use anchorhold_sandbox::outcome::End;
use anchorhold_sandbox::quantity::Size;
use anchorhold_sandbox::room::{Entry, Limits, Output};
use anchorhold_sandbox::{Launcher, Plan};
use anchorhold_vmm::agent::image;
use anchorhold_vmm::exchange::Command;
use anchorhold_vmm::failure::{Failure, FailureClass};
use anchorhold_vmm::initramfs::Initramfs;
use anchorhold_vmm::kernel::{Feature, Modules};
use anchorhold_vmm::linux::PrepareError;
use anchorhold_vmm::pair::job::{Job, Saved, Topology};
use anchorhold_vmm::pair::{self, CONTROLLER_MEMORY, Keys, PairSpec, Side};
use anchorhold_vmm::profile::{Profile, System};
use anchorhold_vmm::qemu::Installed;
use anchorhold_vmm::report::What;
use anchorhold_vmm::spec::Drive;
use anchorhold_vmm::stages::{
    Cache, DISK, Difference, Entry as Kept, Fields, InstallSpec, Making, Record, SUSPENDED_FILES, Stage, guest_start,
    prepare, ready, suspend_key,
};
use anchorhold_vmm::wire::Kind;

use self::inside::{Order, Task, Words};
use super::supervisor::Report;
use super::{COMMAND, Ground, Ids, Machines, ORDER, SYSTEM_CACHE, cpu, room};
use crate::build::launcher::host_for;
use crate::config::settings::Settings;

/// The size of an installed stand-in's disk, in bytes. Only what is written takes space.
const DISK_SIZE: u64 = 2 << 30;
/// The memory of an installer, in MiB.
const INSTALLER_MEMORY: u64 = 256;
/// How long an installation may take, in seconds.
const INSTALL_LIMIT: u64 = 3600;
/// How long both machines of a pair may take until SSH answers.
const BOOT: Duration = Duration::from_secs(300);
/// How long a machine that starts may do nothing.
const STALL: Duration = Duration::from_secs(60);

/// What is heard while a stage is made.
pub trait Listener {
    /// A stage begins; how long it took the last time.
    fn begins(&mut self, stage: Stage, why: Why<'_>, last: Option<Duration>);
    /// Something begins within it.
    fn step(&mut self, what: &str);
    /// A machine said something.
    fn line(&mut self, line: &str);
    /// It is there now.
    fn done(&mut self, stage: Stage, took: Duration);
}

/// Why a stage is made.
#[derive(Debug, Clone, Copy)]
pub enum Why<'a> {
    /// There is none.
    None,
    /// There is one that depends on something else.
    Differs(&'a [Difference]),
    /// It was asked for.
    Again,
}

/// What is done about a stage that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It is made.
    Make,
    /// It is made whether it is there or not.
    MakeAgain,
    /// That is a failure, which names the field in which the nearest one differs.
    Refuse,
}

/// The stages of one guest.
#[derive(Debug)]
pub struct Stages {
    /// Where they are kept.
    pub cache: Cache,
    machines: Machines,
    profile: Profile,
    images: PathBuf,
    /// The file of its media, among these.
    media: String,
    installed: Installed,
    users: Option<String>,
    memory: u64,
}

/// A pair in the cache, ready to be revived.
#[derive(Debug)]
pub struct Suspended {
    /// The saved machines.
    pub entry: Kept,
    /// The disk that they stand on.
    pub install: Kept,
    spec: PairSpec,
}

fn io(doing: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let doing = format!("{doing} {}", path.display());
    move |error| Failure::new(FailureClass::SaveFailed, format!("{doing}: {error}"))
}

/// Where stages are kept: the setting, or beside the kernels.
pub fn cache_root(settings: &Settings) -> PathBuf {
    settings.vm_cache.clone().unwrap_or_else(|| super::cache().join("stages"))
}

impl Stages {
    /// Those of the guest `name`, with so much memory, in MiB.
    ///
    /// # Errors
    /// What is missing.
    pub fn open(settings: &Settings, name: &str, memory: Option<u64>) -> Result<Self, Failure> {
        let machines = Machines::of(settings);
        let memory = memory.unwrap_or(machines.memory);
        Self::of(machines, settings.build_users_group.clone(), name, memory)
    }

    fn of(machines: Machines, users: Option<String>, name: &str, memory: u64) -> Result<Self, Failure> {
        let installed = Installed::find(machines.qemu.as_deref(), std::env::var_os("PATH").as_deref())?;
        let missing = |what: String| Failure::new(FailureClass::NoImage, what);
        let profile = Profile::built_in(name).map_err(|error| missing(error.to_string()))?;
        if profile.system == System::Windows {
            return Err(missing(format!("the guest {name} is a Windows, and this version installs none")));
        }
        let made = |cache: &Path| cache.join("guest-images");
        let places = match &machines.images {
            Some(named) => vec![named.clone()],
            None => vec![made(&machines.cache), made(Path::new(SYSTEM_CACHE))],
        };
        let media = profile.install.as_ref().map(|install| install.media.clone());
        let media = media.ok_or_else(|| missing(format!("the guest {name} is not one that we install")))?;
        let found = places.iter().find(|place| place.join(&media).is_file());
        let images = found.cloned().ok_or_else(|| {
            let looked = places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ");
            missing(format!("there are no media of the guest {name} ({media}) in {looked}"))
        })?;
        Ok(Self {
            cache: Cache::open(&machines.stages)?,
            memory: memory.max(64),
            images: fs::canonicalize(&images).map_err(io("looking for", &images))?,
            users,
            machines,
            profile,
            installed,
            media,
        })
    }

    /// The same guest with other drives.
    #[must_use]
    pub fn with_profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// What the guest is.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What a machine starts from, by its content.
    fn initramfs(&self, kind: &str, features: &[Feature], start: &[What], memory: u64) -> Result<PathBuf, Failure> {
        let modules = Modules::open(&self.machines.kernel()?.modules).map_err(PrepareError::from)?;
        let features = [Feature::Virtio, Feature::Port].into_iter().chain(features.iter().copied());
        let modules = modules.closure(features).map_err(PrepareError::from)?;
        let tree = image(&self.machines.agent()?, &modules, start).map_err(PrepareError::from)?;
        self.keep(kind, &tree, memory)
    }

    fn keep(&self, kind: &str, tree: &Initramfs, memory: u64) -> Result<PathBuf, Failure> {
        tree.check_fits(memory << 20).map_err(PrepareError::from)?;
        let mut bytes = Vec::new();
        tree.write(&mut bytes).map_err(PrepareError::from)?;
        self.cache.file(kind, &bytes)
    }

    fn kernel(&self) -> Result<PathBuf, Failure> {
        let kernel =
            self.machines.kernel()?.extracted(&self.machines.cache.join("kernels")).map_err(PrepareError::from)?;
        fs::canonicalize(&kernel).map_err(io("looking for", &kernel))
    }

    fn install_spec(&self) -> Result<InstallSpec, Failure> {
        let accelerator = self.machines.accelerator()?;
        Ok(InstallSpec {
            profile: self.profile.clone(),
            accelerator,
            cpu: cpu(accelerator).to_owned(),
            kernel: self.kernel()?,
            initramfs: self.initramfs("installer", &InstallSpec::FEATURES, &InstallSpec::start(), INSTALLER_MEMORY)?,
            memory: INSTALLER_MEMORY,
            cores: 1,
            disk_size: DISK_SIZE,
            media: self.images.join(&self.media),
            answers: self.images.join("answers"),
            installer: Some(vec!["/install".to_owned()]),
            limit: INSTALL_LIMIT,
        })
    }

    fn keys(&self) -> Result<Keys, Failure> {
        let read = |name: &str| {
            let path = self.images.join(name);
            fs::read(&path).map_err(io("reading", &path))
        };
        Ok(Keys { key: read("key")?, known_hosts: read("known_hosts")? })
    }

    /// The pair, as its key wants it: with the installed disk itself as the guest's.
    fn pair_spec(&self, install: &Kept) -> Result<PairSpec, Failure> {
        let accelerator = self.machines.accelerator()?;
        let modules = Modules::open(&self.machines.kernel()?.modules).map_err(PrepareError::from)?;
        let controller = pair::initramfs_of_controller(&modules, &self.machines.agent()?)?;
        let controller = self.keep("controller", &controller, CONTROLLER_MEMORY)?;
        let features = pair::features_of_guest(&self.profile, Feature::Ext4);
        let guest = self.initramfs("guest", &features, &guest_start(&self.profile), self.memory)?;
        let disk = install.file(DISK);
        let side =
            |memory, initramfs, drive| Side { memory, cores: 1, initramfs: Some(initramfs), drives: vec![drive] };
        Ok(PairSpec {
            accelerator,
            cpu: cpu(accelerator).to_owned(),
            kernel: self.kernel()?,
            guest: side(self.memory, guest, Drive::written("root", &disk, Some(disk.clone()))),
            controller: side(CONTROLLER_MEMORY, controller, pair::root(self.images.join("controller.erofs"))),
            profile: self.profile.clone(),
            store: "/nix/store".into(),
            exchange: "/xchg".into(),
        })
    }

    /// The installed disk.
    ///
    /// # Errors
    /// What is missing, every failure of the machine, and what `missing` says.
    pub fn install(&self, missing: Missing, listener: &mut dyn Listener) -> Result<Kept, Failure> {
        let spec = self.install_spec()?;
        let mut remembered = self.cache.remembered();
        let key = spec.key(&self.installed, &mut remembered)?;
        self.cache.remember(&remembered);
        let files = [&spec.initramfs];
        self.stage(Stage::Install, &key, missing, None, &files, &[DISK], listener, |making, listener| {
            let task = Task::Install { spec: Box::new(spec.clone()), directory: making.to_owned() };
            let shown = [&spec.kernel, &spec.initramfs, &spec.media, &spec.answers].map(Clone::clone).to_vec();
            self.in_room(task, &shown, making, listener)
        })
    }

    /// The saved pair, over the installed disk, which is made if need be.
    ///
    /// # Errors
    /// As [`Stages::install`].
    pub fn suspend(&self, missing: Missing, listener: &mut dyn Listener) -> Result<Suspended, Failure> {
        let of_install = if missing == Missing::MakeAgain { Missing::Make } else { missing };
        let install = self.install(of_install, listener)?;
        let (spec, keys) = (self.pair_spec(&install)?, self.keys()?);
        let mut remembered = self.cache.remembered();
        let key = suspend_key(&self.installed, &spec, &keys, &mut remembered)?;
        self.cache.remember(&remembered);
        let initramfs: Vec<PathBuf> =
            [&spec.guest, &spec.controller].iter().filter_map(|side| side.initramfs.clone()).collect();
        let files: Vec<&PathBuf> = initramfs.iter().collect();
        let stands_on = Some(install.name());
        let entry = self.stage(
            Stage::Suspend,
            &key,
            missing,
            stands_on,
            &files,
            &SUSPENDED_FILES,
            listener,
            |making, listener| {
                for place in prepare(making)? {
                    self.give(&place)?;
                }
                let task = Task::Suspend {
                    pair: Box::new(spec.clone()),
                    key: self.images.join("key"),
                    known_hosts: self.images.join("known_hosts"),
                    limits: limits(),
                    installed_disk: install.file(DISK),
                    directory: making.to_owned(),
                };
                self.in_room(task, &self.shown(&spec, &install), making, listener)
            },
        )?;
        ready(&entry, &spec)?;
        Ok(Suspended { entry, install, spec })
    }

    /// Everything outside of a stage that the machines of a pair read.
    fn shown(&self, spec: &PairSpec, install: &Kept) -> Vec<PathBuf> {
        let mut shown = vec![spec.kernel.clone(), install.directory.clone()];
        shown.extend([&spec.guest, &spec.controller].iter().filter_map(|side| side.initramfs.clone()));
        shown.extend(["key", "known_hosts", "controller.erofs"].map(|name| self.images.join(name)));
        shown
    }

    /// The same, and the saved pair itself.
    fn entries(&self, spec: &PairSpec, install: &Kept, saved: &Kept) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.shown(spec, install).iter().map(|path| bind(path, false)).collect();
        entries.push(bind(&saved.directory, false));
        if !self.installed.version.has_read_only_templates() {
            // An older QEMU opens the memory for writing, though it writes nothing. Who did would be found out by its digest.
            entries.extend(["guest/ram", "controller/ram"].map(|name| bind(&saved.file(name), true)));
        }
        entries
    }

    #[allow(clippy::too_many_arguments, reason = "all of it is different for both stages")]
    fn stage(
        &self,
        stage: Stage,
        key: &Fields,
        missing: Missing,
        stands_on: Option<String>,
        starts_from: &[&PathBuf],
        files: &[&str],
        listener: &mut dyn Listener,
        make: impl FnOnce(&Path, &mut dyn Listener) -> Result<(), Failure>,
    ) -> Result<Kept, Failure> {
        if missing == Missing::MakeAgain && self.cache.find(stage, key)?.is_some() {
            self.cache.remove(&key.name(stage))?;
        } else if let Some(entry) = self.cache.find(stage, key)? {
            entry.verify()?;
            return Ok(entry);
        }
        let nearest = self.cache.nearest(stage, &self.profile.name, key)?;
        let differences = nearest.as_ref().map(|entry| entry.record.key.differences(key)).unwrap_or_default();
        if missing == Missing::Refuse {
            return Err(match differences.first() {
                Some(field) => {
                    let what = format!("the stage {} is for something else: {field}", stage.name());
                    Failure::new(FailureClass::StateMismatch, what)
                }
                None => Failure::new(FailureClass::StateMismatch, format!("there is no stage {}", stage.name())),
            });
        }
        let making: Making = match self.cache.begin(stage, key)? {
            // Somebody else has made it meanwhile.
            Ok(entry) => return Ok(entry),
            Err(making) => making,
        };
        let why = match (missing, differences.is_empty()) {
            (Missing::MakeAgain, _) => Why::Again,
            (_, true) => Why::None,
            (_, false) => Why::Differs(&differences),
        };
        listener.begins(stage, why, nearest.map(|entry| Duration::from_millis(entry.record.took)));
        let begun = Instant::now();
        make(making.directory(), listener)?;
        let took = begun.elapsed();
        let mut record = Record::new(stage, &self.profile.name, key.clone(), took);
        let name = |path: &&PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        record.starts_from = starts_from.iter().filter_map(name).collect();
        record.stands_on = stands_on;
        let entry = making.finish(record, files)?;
        listener.done(stage, took);
        Ok(entry)
    }

    /// Gives a directory to whoever rooms run under, where that is somebody else: nobody is told apart yet, and it lies in a
    /// directory that is ours alone.
    fn give(&self, directory: &Path) -> Result<(), Failure> {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).map_err(io("changing the mode of", directory))
    }

    fn in_room(
        &self,
        task: Task,
        shown: &[PathBuf],
        written: &Path,
        listener: &mut dyn Listener,
    ) -> Result<(), Failure> {
        self.give(written)?;
        let mut entries: Vec<Entry> = shown.iter().map(|path| bind(path, false)).collect();
        entries.push(bind(written, true));
        let mut heard = Heard { listener, begun: Vec::new() };
        let asked = Asked { task, entries, output: Output::Pipe, limits: Limits::default(), command: None };
        let (report, _) = self.run(asked, None, &mut heard)?;
        match report {
            Report::Ended { status: 0, .. } => Ok(()),
            Report::Failed(failure) => Err(failure),
            other => {
                let why = other.complaint().unwrap_or_else(|| "it was not done".to_owned());
                Err(Failure::new(FailureClass::SaveFailed, why))
            }
        }
    }

    /// Revives a saved pair, runs one command in its guest, and ends it.
    ///
    /// # Errors
    /// Every failure before there is a report.
    pub fn revive(
        &self,
        suspended: &Suspended,
        wanted: Revival,
        sink: &mut dyn Sink,
    ) -> Result<(Report, End), Failure> {
        let _in_use = [self.cache.uses(&suspended.entry)?, self.cache.uses(&suspended.install)?];
        let mut spec = suspended.spec.clone();
        // Beside everything else of the room, in its memory, unless a directory was named.
        let exchange = PathBuf::from("/machine/xchg");
        let mut entries = self.entries(&spec, &suspended.install, &suspended.entry);
        let directory = &suspended.entry.directory;
        spec.store = "/machine/store".into();
        match &wanted.store {
            Some(store) => entries.push(bind_at(&spec.store, store, false)),
            None => entries.push(memory(&spec.store, 1 << 20)),
        }
        match &wanted.exchange {
            Some(place) => entries.push(bind_at(&exchange, place, true)),
            None => entries.push(memory(&exchange, self.machines.exchange)),
        }
        spec.exchange = exchange.clone();
        let job = Job {
            pair: spec,
            topology: Topology::Pair,
            wire: Kind::Dgram,
            saved: None,
            key: self.images.join("key"),
            known_hosts: self.images.join("known_hosts"),
            qemu: Some(self.installed.program.clone()),
            limits: limits(),
            limit: None,
            console_limit: 64 << 20,
            exchange_limit: if wanted.exchange.is_some() { u64::MAX } else { self.machines.exchange + (64 << 10) },
            watched: vec![exchange],
        };
        let task = Task::Revive {
            job: Box::new(job),
            directory: directory.clone(),
            base: suspended.install.file(DISK),
            clock: wanted.clock,
            session: wanted.command.is_none(),
        };
        let output = if wanted.command.is_none() { Output::Terminal } else { Output::Pipe };
        let asked = Asked { task, entries, output, limits: wanted.limits, command: wanted.command };
        self.run(asked, Some(&self.profile.name), sink)
    }

    /// Runs a task in a room; what its supervisor reports, and how the room ended. `registered` makes it known to people.
    fn run(&self, asked: Asked, registered: Option<&str>, sink: &mut dyn Sink) -> Result<(Report, End), Failure> {
        let refused = |error: &dyn std::fmt::Display| Failure::new(FailureClass::QemuRefused, error.to_string());
        let work = tempfile::Builder::new().prefix("anchorhold-vm-").tempdir();
        let work = work.map_err(io("making a directory in", &std::env::temp_dir()))?;
        let ids = Ids::take(self.users.as_deref()).map_err(|why| refused(&why))?;
        let ground = Ground::lay(&self.machines, work.path(), ids.owner())?;
        let what = asked.task.name();
        let order = Order { qemu: ground.qemu.clone(), task: asked.task };
        let write = |name: &str, bytes: Vec<u8>| {
            let path = ground.order.join(name);
            fs::write(&path, bytes).map_err(io("writing", &path))
        };
        write(ORDER, serde_json::to_vec_pretty(&order).map_err(|error| refused(&error))?)?;
        let command = asked.command.unwrap_or_else(|| Command::new("/bin/sh"));
        write(COMMAND, command.encode().map_err(|error| refused(&error))?)?;
        let kernel = self.kernel()?;
        let prepared = ground.prepared(kernel);
        let program = std::env::current_exe().map_err(|error| refused(&error))?;
        let mut made = room::room(room::Parts {
            prepared: &prepared,
            program: &program,
            shown: asked.entries,
            outside: ids.outside(),
            limits: asked.limits,
            output: asked.output,
        });
        made.process.arguments = vec![inside::SUBCOMMAND.into()];
        let plan = Plan::compile(&made, &host_for(&made)).map_err(|error| refused(&error))?;
        let registered =
            registered.map(|guest| Registry::open()?.register(guest, what, &prepared.result)).transpose()?;
        let outcome = Launcher::new(&plan, Options::default()).run(sink).map_err(|error| refused(&error))?;
        drop(registered);
        let report = Report::read(&prepared.result).map_err(|error| {
            let what = format!("the room of the machines ended ({:?}) without a report: {error}", outcome.end);
            Failure::new(FailureClass::NoStatus, what)
        })?;
        Ok((report, outcome.end))
    }
}

/// One run of a room.
struct Asked {
    task: Task,
    entries: Vec<Entry>,
    output: Output,
    limits: Limits,
    command: Option<Command>,
}

/// A saved pair for exactly the machines that a build wants, and what its room must show of it, if there is one.
///
/// # Errors
/// One that is there, and not what was written.
pub(super) fn saved(
    machines: &Machines,
    profile: &Profile,
    memory: u64,
) -> Result<Option<(PairSpec, Saved, Vec<Entry>)>, Failure> {
    let found = Stages::of(machines.clone(), None, &profile.name, memory)
        .map(|stages| stages.with_profile(profile.clone()))
        .and_then(|stages| {
            let suspended = stages.suspend(Missing::Refuse, &mut Silent)?;
            Ok((stages, suspended))
        });
    match found {
        Ok((stages, suspended)) => {
            let Suspended { entry, install, spec } = suspended;
            let entries = stages.entries(&spec, &install, &entry);
            let saved = Saved {
                directory: entry.directory.clone(),
                base: install.file(DISK),
                overlay: Path::new("/tmp").join(DISK),
            };
            Ok(Some((spec, saved, entries)))
        }
        Err(failure) if failure.class == FailureClass::CorruptState => Err(failure),
        // There is none, and there can be none: both are started.
        Err(_) => Ok(None),
    }
}

/// Hears nothing.
struct Silent;

impl Listener for Silent {
    fn begins(&mut self, _: Stage, _: Why<'_>, _: Option<Duration>) {}
    fn step(&mut self, _: &str) {}
    fn line(&mut self, _: &str) {}
    fn done(&mut self, _: Stage, _: Duration) {}
}

/// What is wanted of a revived pair.
#[derive(Debug, Default)]
pub struct Revival {
    /// What runs in its guest; a session for a person if nothing.
    pub command: Option<Command>,
    /// The directory behind the share of the store; an empty one if none.
    pub store: Option<PathBuf>,
    /// The directory behind the exchange; memory if none.
    pub exchange: Option<PathBuf>,
    /// What the clocks are set to, in seconds since 1970; they go on where they were saved if nothing.
    pub clock: Option<u64>,
    /// How much it may use.
    pub limits: Limits,
}

fn limits() -> pair::Limits {
    pair::Limits { boot: BOOT, stall: STALL }
}

fn bind(path: &Path, writable: bool) -> Entry {
    bind_at(path, path, writable)
}

fn bind_at(inside: &Path, outside: &Path, writable: bool) -> Entry {
    Entry::Bind {
        inside: inside.to_owned(),
        outside: Some(outside.to_owned()),
        writable,
        optional: false,
        noexec: true,
    }
}

fn memory(inside: &Path, size: u64) -> Entry {
    Entry::Tmpfs { inside: inside.to_owned(), size: Size::Bytes(size), mode: 0o1777, noexec: true }
}

/// Makes what a supervisor says into words for a listener.
struct Heard<'a> {
    listener: &'a mut dyn Listener,
    begun: Vec<u8>,
}

impl Sink for Heard<'_> {
    fn output(&mut self, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        if stream == Stream::Error {
            // Complaints come with the report too.
            return Ok(());
        }
        self.begun.extend_from_slice(bytes);
        while let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.begun.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(Words::Step(what)) => self.listener.step(&what),
                Ok(Words::Line(line)) => self.listener.line(&line),
                Err(_) => {}
            }
        }
        // A room that never ends a line is not kept in memory.
        self.begun.truncate(1 << 20);
        Ok(())
    }
}
