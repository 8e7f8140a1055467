//! Stages of guests, each made in a sealed room: installed disks, saved pairs, and revived ones.
//!
//! What a stage depends on is found out here, outside, and what a room leaves behind is looked at here before it gets a name in
//! the cache. All that a room is shown stands where it stands outside: QEMU remembers paths in disks and states.

pub mod inside;
mod listening;
pub mod making;
mod running;

pub use listening::{Listener, Why};
pub use running::{Held, LINUX, Registered, Registry, Visit};

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anchorhold_sandbox::launcher::{Options, Sink};
use anchorhold_sandbox::outcome::End;
use anchorhold_sandbox::quantity::Size;
use anchorhold_sandbox::room::{Entry, Limits, Output};
use anchorhold_sandbox::{Launcher, Plan};
use anchorhold_vmm::agent::image;
use anchorhold_vmm::answers::Answers;
use anchorhold_vmm::controller::{ADDRESS, Controller, root_and_network};
use anchorhold_vmm::exchange::Command;
use anchorhold_vmm::failure::{Failure, FailureClass};
use anchorhold_vmm::kernel::{Feature, Kernel, Modules};
use anchorhold_vmm::linux::PrepareError;
use anchorhold_vmm::pair::job::{Job, Saved, Topology};
use anchorhold_vmm::pair::{self, CONTROLLER_MEMORY, Keys, PairSpec, Side};
use anchorhold_vmm::profile::{Profile, System};
use anchorhold_vmm::qemu::Installed;
use anchorhold_vmm::report::What;
use anchorhold_vmm::spec::{Clock, Drive};
use anchorhold_vmm::stages::{
    Cache, DISK, Entry as Kept, Fields, InUse, InstallSpec, Making, Record, Stage, guest_start, prepare, ready,
    suspend_key, suspended_files, suspended_memories,
};
use anchorhold_vmm::wire::Kind;

use serde::Serialize;
use serde::de::DeserializeOwned;

use self::inside::{Order, Task};
use self::listening::{Heard, Silent};
use super::supervisor::Report;
use super::{COMMAND, Ids, Machines, ORDER, Prepared, SYSTEM_CACHE, cpu, places, room};
use crate::build::launcher::host_for;
use crate::config::settings::Settings;

/// What was found out of files, in the cache.
const ANSWERS: &str = "answers.json";
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
    /// The guest's, in MiB.
    memory: u64,
    /// The guest's.
    cores: u32,
    answers: RefCell<Answers>,
}

/// Machines in the cache, ready to be revived. Nobody removes them while this is held.
#[derive(Debug)]
pub struct Suspended {
    /// The saved machines.
    pub entry: Kept,
    /// The disk that their guest stands on.
    pub install: Kept,
    spec: PairSpec,
    in_use: [InUse; 2],
}

/// The names of all that lies in a directory.
fn names_in(directory: &Path) -> Result<Vec<OsString>, Failure> {
    let failed = |error| Failure::new(FailureClass::NoShare, format!("listing {}: {error}", directory.display()));
    fs::read_dir(directory).map_err(failed)?.map(|entry| Ok(entry.map_err(failed)?.file_name())).collect()
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
    /// Those of the guest `name`, with so much memory, in MiB, and so many processors.
    ///
    /// # Errors
    /// What is missing.
    pub fn open(settings: &Settings, name: &str, memory: Option<u64>, cores: u32) -> Result<Self, Failure> {
        let machines = Machines::of(settings);
        let memory = memory.unwrap_or(machines.memory);
        Self::of(machines, name, (memory, cores))
    }

    fn of(machines: Machines, name: &str, (memory, cores): (u64, u32)) -> Result<Self, Failure> {
        let cache = Cache::open(&machines.stages)?;
        let mut answers = Answers::read(&cache.root().join(ANSWERS));
        let path = std::env::var_os("PATH");
        let question = format!("which QEMU is {:?} in {path:?}?", machines.qemu);
        let installed: Installed = answers.get(&question, || -> Result<_, Failure> {
            let installed = Installed::find(machines.qemu.as_deref(), path.as_deref())?.with_data();
            let files = [&installed.program].into_iter().chain(&installed.data_folders()).cloned().collect();
            Ok((installed, files))
        })?;
        installed.know();
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
            cache,
            answers: RefCell::new(answers),
            memory: memory.max(64),
            cores: cores.clamp(1, 255),
            images: fs::canonicalize(&images).map_err(io("looking for", &images))?,
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

    /// What is known of files, or is found out now.
    fn ask<T: Serialize + DeserializeOwned>(
        &self,
        question: &str,
        find: impl FnOnce() -> Result<(T, Vec<PathBuf>), Failure>,
    ) -> Result<T, Failure> {
        let mut answers = self.answers.borrow_mut();
        let answer = answers.get(question, find)?;
        answers.write(&self.cache.root().join(ANSWERS));
        Ok(answer)
    }

    /// What a machine of so much memory starts from beside the kernel, by its content.
    fn initramfs(&self, kind: &str, features: &[Feature], start: &[What], memory: u64) -> Result<PathBuf, Failure> {
        let (agent, folder) = (self.machines.agent()?, self.kernel()?.0.modules);
        let question =
            format!("what does a {kind} of {memory} MiB start by {agent:?}, {folder:?}, {features:?}, {start:?}?");
        self.ask(&question, || {
            let modules = Modules::open(&folder).map_err(PrepareError::from)?;
            let features = [Feature::Virtio, Feature::Port].into_iter().chain(features.iter().copied());
            let wanted = modules.closure(features).map_err(PrepareError::from)?;
            let tree = image(&agent, &wanted, start).map_err(PrepareError::from)?;
            tree.check_fits(memory << 20).map_err(PrepareError::from)?;
            let mut bytes = Vec::new();
            tree.write(&mut bytes).map_err(PrepareError::from)?;
            let made = self.cache.file(kind, &bytes)?;
            let mut files = modules.lists();
            files.extend(wanted.into_iter().map(|module| module.path));
            files.extend([agent.clone(), made.clone()]);
            Ok((made, files))
        })
    }

    /// The kernel, and its file that QEMU starts.
    fn kernel(&self) -> Result<(Kernel, PathBuf), Failure> {
        let places = self.machines.kernel_places();
        self.ask(&format!("which kernel is in {places:?}?"), || {
            let kernel = self.machines.kernel()?;
            let file = kernel.extracted(&self.machines.cache.join("kernels")).map_err(PrepareError::from)?;
            let file = fs::canonicalize(&file).map_err(io("looking for", &file))?;
            // A place that is not there may be some day.
            let mut files = vec![kernel.image.clone(), file.clone(), kernel.modules.clone()];
            for place in &places {
                let there = [place.join("boot"), place.clone()].into_iter().find(|path| path.exists());
                files.push(there.unwrap_or_else(|| place.parent().unwrap_or(Path::new("/")).to_owned()));
            }
            Ok(((kernel, file), files))
        })
    }

    fn install_spec(&self) -> Result<InstallSpec, Failure> {
        let accelerator = self.machines.accelerator()?;
        Ok(InstallSpec {
            profile: self.profile.clone(),
            accelerator,
            cpu: cpu(accelerator).to_owned(),
            kernel: self.kernel()?.1,
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
        let start = root_and_network(ADDRESS);
        let controller = self.initramfs("controller", &Controller::FEATURES, &start, CONTROLLER_MEMORY)?;
        let features = pair::features_of_guest(&self.profile, Feature::Ext4);
        let guest = self.initramfs("guest", &features, &guest_start(&self.profile), self.memory)?;
        let disk = install.file(DISK);
        let side =
            |(memory, cores), initramfs, drive| Side { memory, cores, initramfs: Some(initramfs), drives: vec![drive] };
        Ok(PairSpec {
            accelerator,
            cpu: cpu(accelerator).to_owned(),
            kernel: self.kernel()?.1,
            guest: side((self.memory, self.cores), guest, Drive::written("root", &disk, Some(disk.clone()))),
            controller: side((CONTROLLER_MEMORY, 1), controller, pair::root(self.images.join("controller.erofs"))),
            profile: self.profile.clone(),
            store: "/nix/store".into(),
            exchange: "/xchg".into(),
            inputs: Vec::new(),
        })
    }

    /// The installed disk, which nobody removes while what comes with it is held.
    ///
    /// # Errors
    /// What is missing, every failure of the machine, and what `missing` says.
    pub fn install(&self, missing: Missing, listener: &mut dyn Listener) -> Result<(Kept, InUse), Failure> {
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

    /// The saved machines, over the installed disk, which is made if need be.
    ///
    /// # Errors
    /// As [`Stages::install`].
    pub fn suspend(&self, missing: Missing, listener: &mut dyn Listener) -> Result<Suspended, Failure> {
        let of_install = if missing == Missing::MakeAgain { Missing::Make } else { missing };
        let (install, disk_in_use) = self.install(of_install, listener)?;
        let (spec, keys) = (self.pair_spec(&install)?, self.keys()?);
        let mut remembered = self.cache.remembered();
        let topology = self.machines.topology();
        let key = suspend_key(&self.installed, &spec, &topology, &keys, &mut remembered)?;
        self.cache.remember(&remembered);
        let initramfs: Vec<PathBuf> = self.sides(&spec).iter().filter_map(|side| side.initramfs.clone()).collect();
        let files: Vec<&PathBuf> = initramfs.iter().collect();
        let stands_on = Some(install.name());
        let (entry, in_use) = self.stage(
            Stage::Suspend,
            &key,
            missing,
            stands_on,
            &files,
            &suspended_files(&topology),
            listener,
            |making, listener| {
                for place in prepare(making, &topology)? {
                    self.give(&place)?;
                }
                let task = Task::Suspend {
                    pair: Box::new(spec.clone()),
                    topology: topology.clone(),
                    key: self.images.join("key"),
                    known_hosts: self.images.join("known_hosts"),
                    limits: limits(),
                    installed_disk: install.file(DISK),
                    directory: making.to_owned(),
                };
                self.in_room(task, &self.shown(&spec, &install), making, listener)
            },
        )?;
        ready(&entry, &spec, &topology, &remembered)?;
        Ok(Suspended { entry, install, spec, in_use: [in_use, disk_in_use] })
    }

    /// The machines that there are in this topology.
    fn sides<'a>(&self, spec: &'a PairSpec) -> Vec<&'a Side> {
        match self.machines.topology() {
            Topology::Pair => vec![&spec.guest, &spec.controller],
            Topology::Direct { .. } => vec![&spec.guest],
        }
    }

    /// Everything outside of a stage that its machines read.
    fn shown(&self, spec: &PairSpec, install: &Kept) -> Vec<PathBuf> {
        let mut shown = vec![spec.kernel.clone(), install.directory.clone()];
        shown.extend(["key", "known_hosts"].map(|name| self.images.join(name)));
        for side in self.sides(spec) {
            shown.extend(side.initramfs.clone());
            // The guest's own lies in the stage.
            shown.extend(side.drives.iter().filter(|drive| drive.read_only).map(|drive| drive.image.clone()));
        }
        shown
    }

    /// The same, and the saved pair itself.
    fn entries(&self, spec: &PairSpec, install: &Kept, saved: &Kept) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.shown(spec, install).iter().map(|path| bind(path, false)).collect();
        entries.push(bind(&saved.directory, false));
        if !self.installed.version.has_read_only_templates() {
            // An older QEMU opens the memory for writing, though it writes nothing. Who did would be found out by its digest.
            let memories = suspended_memories(&self.machines.topology());
            entries.extend(memories.into_iter().map(|name| bind(&saved.file(name), true)));
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
    ) -> Result<(Kept, InUse), Failure> {
        let mut took_before = None;
        if missing == Missing::MakeAgain {
            if let Some(entry) = self.cache.find(stage, key)? {
                took_before = Some(entry.record.took);
                self.cache.remove(&entry.name())?;
            }
        } else if let Some(held) = self.cache.hold(stage, key)? {
            held.0.verify()?;
            return Ok(held);
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
            Ok(held) => return Ok(held),
            Err(making) => making,
        };
        let why = match (missing, differences.is_empty()) {
            (Missing::MakeAgain, _) => Why::Again,
            (_, true) => Why::None,
            (_, false) => Why::Differs(&differences),
        };
        let is_other = differences.iter().any(|difference| difference.field == "topology");
        let took_before = took_before.or(nearest.filter(|_| !is_other).map(|entry| entry.record.took));
        listener.begins(stage, why, took_before.map(Duration::from_millis));
        let begun = Instant::now();
        make(making.directory(), listener)?;
        let took = begun.elapsed();
        let mut record = Record::new(stage, &self.profile.name, key.clone(), took);
        let name = |path: &&PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        record.starts_from = starts_from.iter().filter_map(name).collect();
        record.stands_on = stands_on;
        let held = making.finish(record, files)?;
        listener.done(stage, took);
        Ok(held)
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
        let mut heard = Heard::new(listener);
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

    /// Revives saved machines, runs one command in their guest, and ends them.
    ///
    /// # Errors
    /// Every failure before there is a report.
    pub fn revive(
        &self,
        suspended: &Suspended,
        wanted: Revival,
        sink: &mut dyn Sink,
    ) -> Result<(Report, End), Failure> {
        let mut spec = suspended.spec.clone();
        // Beside everything else of the room, in its memory, unless a directory was named.
        let exchange = PathBuf::from("/machine/xchg");
        let mut entries = self.entries(&spec, &suspended.install, &suspended.entry);
        let directory = &suspended.entry.directory;
        spec.store = "/machine/store".into();
        match &wanted.store {
            Some(store) => {
                entries.push(bind_at(&spec.store, store, false));
                if self.machines.keeps_inputs() {
                    spec.inputs = names_in(store)?;
                }
            }
            None => entries.push(memory(&spec.store, 1 << 20)),
        }
        match &wanted.exchange {
            Some(place) => entries.push(bind_at(&exchange, place, true)),
            None => entries.push(memory(&exchange, self.machines.exchange)),
        }
        spec.exchange = exchange.clone();
        let job = Job {
            pair: spec,
            topology: self.machines.topology(),
            wire: Kind::Dgram,
            saved: None,
            clock: wanted.clock,
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
        let ids = Ids::take(self.machines.users.as_deref()).map_err(|why| refused(&why))?;
        let (order_directory, result) = places(work.path(), ids.owner())?;
        let what = asked.task.name();
        let order = Order { qemu: self.installed.clone(), task: asked.task };
        let write = |name: &str, bytes: Vec<u8>| {
            let path = order_directory.join(name);
            fs::write(&path, bytes).map_err(io("writing", &path))
        };
        write(ORDER, serde_json::to_vec_pretty(&order).map_err(|error| refused(&error))?)?;
        let command = asked.command.unwrap_or_else(|| Command::new("/bin/sh"));
        write(COMMAND, command.encode().map_err(|error| refused(&error))?)?;
        let prepared = Prepared {
            qemu: self.installed.program.clone(),
            kernel: self.kernel()?.1,
            order: order_directory.clone(),
            result,
            accelerator: self.machines.accelerator()?,
        };
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

/// What a build needs to revive machines.
pub(super) struct Revivable {
    /// Their description.
    pub spec: PairSpec,
    /// Where they are.
    pub saved: Saved,
    /// What the room shows of them.
    pub entries: Vec<Entry>,
    /// Nobody removes them while this is held.
    pub in_use: [InUse; 2],
}

/// What is saved for exactly the machines that a build wants, and what its room must show of it, if there is one.
///
/// # Errors
/// One that is there, and not what was written.
pub(super) fn saved(machines: &Machines, profile: &Profile, size: (u64, u32)) -> Result<Option<Revivable>, Failure> {
    let found = Stages::of(machines.clone(), &profile.name, size)
        .map(|stages| stages.with_profile(profile.clone()))
        .and_then(|stages| {
            let suspended = stages.suspend(Missing::Refuse, &mut Silent)?;
            Ok((stages, suspended))
        });
    match found {
        Ok((stages, suspended)) => {
            let Suspended { entry, install, spec, in_use } = suspended;
            let entries = stages.entries(&spec, &install, &entry);
            let saved = Saved {
                directory: entry.directory.clone(),
                base: install.file(DISK),
                overlay: Path::new("/tmp").join(DISK),
                qemu: stages.installed.clone(),
            };
            Ok(Some(Revivable { spec, saved, entries, in_use }))
        }
        Err(failure) if failure.class == FailureClass::CorruptState => Err(failure),
        // There is none, and there can be none: both are started.
        Err(_) => Ok(None),
    }
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
    /// What the clocks show.
    pub clock: Clock,
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
