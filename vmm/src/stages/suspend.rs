//! The second stage: an installed disk, and beside it a controller if the topology has one, started, brought to rest, and saved
//! together. And the third, which is kept nowhere: revived.

use std::fs;
use std::path::{Path, PathBuf};

use super::key::TOPOLOGY;
use super::{DISK, Entry, Fields, Told};
use crate::controller::{Controller, ROOT_SERIAL, root_and_network};
use crate::disk;
use crate::exchange::Command;
use crate::failure::{Failure, FailureClass};
use crate::machine::Machine;
use crate::memory::{Remembered, Template};
use crate::pair::job::Topology;
use crate::pair::{CONTROLLER, Direct, GUEST, Keys, Limits, Pair, PairRun, PairSpec, Resting, Standing, WIRE};
use crate::profile::Profile;
use crate::qemu::Installed;
use crate::report::{MountRequest, RunRequest, Streams, What};
use crate::shares::samba::{Account, SambaError};
use crate::spec::{Drive, MachineSpec};
use crate::wire::between_two;

/// The partition of the guest's disk with its system.
const ROOT_PARTITION: u32 = 1;

/// What of a saved pair is in neither memory: [`Resting`].
const RESTING: &str = "resting.json";

/// The files of what is saved, first those of the guest, and what of them is memory.
const GUEST_FILES: [&str; 4] = [DISK, "guest/device", "guest/manifest.json", GUEST_MEMORY];
const CONTROLLER_FILES: [&str; 4] = [RESTING, "controller/device", "controller/manifest.json", CONTROLLER_MEMORY];
const GUEST_MEMORY: &str = "guest/ram";
const CONTROLLER_MEMORY: &str = "controller/ram";

/// The files of what is saved in this topology.
pub fn suspended_files(topology: &Topology) -> Vec<&'static str> {
    match topology {
        Topology::Pair => GUEST_FILES.into_iter().chain(CONTROLLER_FILES).collect(),
        Topology::Direct { .. } => GUEST_FILES.into(),
    }
}

/// Those of them that are a machine's memory.
pub fn suspended_memories(topology: &Topology) -> Vec<&'static str> {
    suspended_files(topology).into_iter().filter(|name| [GUEST_MEMORY, CONTROLLER_MEMORY].contains(name)).collect()
}

/// The machines of `spec`, each by the name of its directory: the guest first.
fn machines(spec: &PairSpec, topology: &Topology) -> Vec<(&'static str, MachineSpec)> {
    match topology {
        Topology::Pair => vec![(GUEST, spec.guest_machine()), (CONTROLLER, spec.controller_machine())],
        // What QEMU starts for a connection is no part of the machine.
        Topology::Direct { .. } => vec![(GUEST, spec.lone_machine(Vec::new()))],
    }
}

/// What the image of an installed stand-in does at its start: its root is the disk that was installed, and its SSH server starts
/// with it. From here on it is reached over the wire alone.
pub fn guest_start(profile: &Profile) -> Vec<What> {
    let root = MountRequest {
        source: format!("serial:{ROOT_SERIAL}:{ROOT_PARTITION}").into(),
        target: "/root".into(),
        kind: "ext4".into(),
        options: "".into(),
        read_only: false,
        no_programs: false,
    };
    let server = Command::new("/usr/sbin/dropbear")
        .arguments(["-F", "-E", "-s", "-p", "22", "-P", ""])
        .variable("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
        .variable("HOME", "/root");
    let mut start = root_and_network(profile.reach.address);
    // A root of its own, which it writes.
    if let Some(first) = start.first_mut() {
        *first = What::Mount(root);
    }
    start.push(What::HostName(GUEST.into()));
    start.push(What::Run(RunRequest { command: Ok(server), user: None, streams: Streams::Together, alone: false }));
    start
}

/// Everything that the saved machines of `spec` depend on; the guest's disk is that of the stage before.
///
/// # Errors
/// A file that cannot be read.
pub fn suspend_key(
    installed: &Installed,
    spec: &PairSpec,
    topology: &Topology,
    keys: &Keys,
    remembered: &mut Remembered,
) -> Result<Fields, Failure> {
    let mut fields = Fields::default();
    fields.set(TOPOLOGY, topology.name());
    fields.qemu(installed, remembered)?;
    for (name, machine) in machines(spec, topology) {
        fields.machine(&format!("{name}."), &machine, remembered)?;
    }
    fields.content("key", &keys.key);
    fields.content("known-hosts", &keys.known_hosts);
    fields.profile(&spec.profile);
    fields.shares(&spec.profile);
    if *topology == Topology::Pair {
        fields.content("controller.servers", &servers(&spec.profile)?);
    }
    Ok(fields)
}

/// What the controller's servers are told when they start, but for what each run has its own: it is in their memory then.
fn servers(profile: &Profile) -> Result<Vec<u8>, Failure> {
    let refused = |error: SambaError| Failure::new(FailureClass::NoShare, error.to_string());
    let controller = Controller {
        profile: profile.clone(),
        account: Account::new("nobody").map_err(refused)?,
        mounts: Vec::new(),
        key: Vec::new(),
        known_hosts: Vec::new(),
    };
    let mut told = Vec::new();
    for what in controller.files().map_err(refused)? {
        if let What::WriteFile { path, content, .. } = what
            && !path.ends_with("smbpasswd")
        {
            told.extend(path.as_os_str().as_encoded_bytes());
            told.extend(content);
        }
    }
    for program in [controller.server(), controller.in_guest("")] {
        told.extend(program.command.ok().and_then(|command| command.encode().ok()).unwrap_or_default());
    }
    Ok(told)
}

/// The same pair with a fresh overlay at `path` as its guest's disk, over `behind`; `base` is what its saved state is compared by.
///
/// # Errors
/// What the file system says.
pub fn overlay(spec: &PairSpec, path: &Path, behind: &Path, base: &Path) -> Result<PairSpec, Failure> {
    let failed = |error: std::io::Error| {
        let what = format!("making {} over {}: {error}", path.display(), behind.display());
        Failure::new(FailureClass::DiskError, what)
    };
    // A relative name is one beside the new disk.
    let real = path.parent().map(|parent| parent.join(behind)).unwrap_or_else(|| behind.to_owned());
    let size = disk::size(&real).map_err(failed)?;
    disk::create(path, size, Some(behind)).map_err(failed)?;
    let mut spec = spec.clone();
    spec.guest.drives.retain(|drive| drive.serial != ROOT_SERIAL);
    spec.guest.drives.insert(0, Drive::written(ROOT_SERIAL, path, Some(base.to_owned())));
    Ok(spec)
}

/// Makes the places in `directory` that machines are saved into.
///
/// # Errors
/// What the file system says.
pub fn prepare(directory: &Path, topology: &Topology) -> Result<Vec<PathBuf>, Failure> {
    let machines: &[&str] = if *topology == Topology::Pair { &[GUEST, CONTROLLER] } else { &[GUEST] };
    let places: Vec<_> = machines.iter().chain(&["store", "xchg"]).map(|name| directory.join(name)).collect();
    for place in &places {
        fs::create_dir_all(place)
            .map_err(|error| Failure::new(FailureClass::SaveFailed, format!("making {}: {error}", place.display())))?;
    }
    Ok(places)
}

/// What machines are made of, however they come to stand.
#[derive(Debug)]
pub struct Parts<'a> {
    /// QEMU.
    pub installed: &'a Installed,
    /// Who serves the guest.
    pub topology: &'a Topology,
    /// How the guest is logged into.
    pub keys: &'a Keys,
    /// What of one run is no part of the machines; without a controller its part is not used.
    pub run: PairRun,
    /// How long things may take.
    pub limits: Limits,
}

/// Starts the machines of `spec` and saves them into `directory` ([`prepare`]d), which gets [`suspended_files`]. The disk of the
/// stage before, `installed_disk`, lies in the cache beside `directory`, and is only read.
///
/// # Errors
/// Every failure of one of the machines.
pub fn suspend(
    parts: Parts<'_>,
    spec: &PairSpec,
    installed_disk: &Path,
    directory: &Path,
    told: &mut dyn FnMut(Told<'_>),
) -> Result<(), Failure> {
    let Parts { installed, topology, keys, mut run, limits } = parts;
    let stage = installed_disk.parent().and_then(Path::file_name).unwrap_or_default();
    let behind = Path::new("..").join(stage).join(DISK);
    let mut spec = overlay(spec, &directory.join(DISK), &behind, installed_disk)?;
    (spec.store, spec.exchange) = (directory.join("store"), directory.join("xchg"));
    run.guest.memory = crate::memory::backing(&directory.join(GUEST));
    run.controller.memory = crate::memory::backing(&directory.join(CONTROLLER));
    let mut saved = match topology {
        Topology::Pair => {
            told(Told::Step("both machines start, until the guest is logged into"));
            let mut pair = Pair::boot(installed, &spec, keys, run, limits)?;
            told(Told::Step("both memories are saved"));
            let resting = serde_json::to_vec(&pair.rest()?).expect("numbers are JSON");
            let file = directory.join(RESTING);
            fs::write(&file, resting).map_err(|error| {
                Failure::new(FailureClass::SaveFailed, format!("writing {}: {error}", file.display()))
            })?;
            let (guest, controller) = pair.take_apart();
            guest.into_iter().chain([controller]).collect::<Vec<_>>()
        }
        Topology::Direct { connect } => {
            told(Told::Step("the guest starts, until it is logged into"));
            let mut direct = Direct::boot(installed, &spec, keys, run.guest, limits, connect)?;
            told(Told::Step("its memory is saved"));
            direct.rest()?;
            vec![direct.into_guest()]
        }
    };
    // None hears of the other's end: frames that are under way are lost, and TCP sends them again.
    saved.iter_mut().try_for_each(Machine::stop)?;
    for (machine, (name, spec)) in saved.iter_mut().zip(machines(&spec, topology)) {
        Template::save(machine, &spec, &directory.join(name))?;
    }
    Ok(())
}

/// Revives the machines that are saved in `directory`, in a network of their own: as they were saved. `spec` has a fresh
/// [`overlay`] of the saved disk as its guest's.
///
/// # Errors
/// A field that is another, a state that is corrupt, and what QEMU says.
pub fn revive(parts: Parts<'_>, spec: &PairSpec, directory: &Path) -> Result<Box<dyn Standing>, Failure> {
    let Parts { installed, topology, keys, run, limits } = parts;
    let PairRun { guest: mut guest_run, controller: mut controller_run, wire } = run;
    let guest = Template::open(&directory.join(GUEST))?;
    if let Topology::Direct { connect } = topology {
        return Ok(Box::new(Direct::revive(installed, spec, keys, &guest, guest_run, connect)?));
    }
    let file = directory.join(RESTING);
    let corrupt = |why: String| Failure::new(FailureClass::CorruptState, format!("{}: {why}", file.display()));
    let resting = fs::read(&file).map_err(|error| corrupt(error.to_string()))?;
    let resting: Resting = serde_json::from_slice(&resting).map_err(|error| corrupt(error.to_string()))?;
    let (one, other, switch) =
        between_two(wire).map_err(|error| Failure::new(FailureClass::NoWire, error.to_string()))?;
    guest_run.wires.insert(WIRE.to_owned(), one);
    controller_run.wires.insert(WIRE.to_owned(), other);
    let controller = Template::open(&directory.join(CONTROLLER))?;
    // Both at once.
    let guest = guest.begin(installed, &spec.guest_machine(), guest_run)?;
    let controller = controller.begin(installed, &spec.controller_machine(), controller_run)?;
    let (mut guest, mut controller) = (guest.finish()?, controller.finish()?);
    controller.go()?;
    guest.go()?;
    let mut pair = Pair::join(spec, keys, controller, guest, resting, limits)?;
    pair.hold(switch);
    Ok(Box::new(pair))
}

/// Looks at everything that reviving these machines will look at, and remembers it beside the templates: a room that they are
/// revived in can remember nothing. What is `known` is not read again.
///
/// # Errors
/// A field that differs, and a state that is not what was written.
pub fn ready(entry: &Entry, spec: &PairSpec, topology: &Topology, known: &Remembered) -> Result<(), Failure> {
    let mut remembered = entry.verify()?;
    remembered.learn(known);
    for (name, machine) in machines(spec, topology) {
        Template::open(&entry.file(name))?.know(&machine, &remembered)?;
    }
    Ok(())
}
