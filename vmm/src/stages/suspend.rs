//! The second stage: an installed disk and a controller, started, brought to rest, and saved together. And the third, which is
//! kept nowhere: revived.

use std::fs;
use std::path::{Path, PathBuf};

use super::{DISK, Entry, Fields, Told};
use crate::controller::{Controller, ROOT_SERIAL, root_and_network};
use crate::disk;
use crate::exchange::Command;
use crate::failure::{Failure, FailureClass};
use crate::memory::{Remembered, Template};
use crate::pair::{CONTROLLER, GUEST, Keys, Limits, Pair, PairRun, PairSpec, WIRE};
use crate::profile::Profile;
use crate::qemu::Installed;
use crate::report::{MountRequest, RunRequest, Streams, What};
use crate::shares::samba::{Account, SambaError};
use crate::spec::Drive;
use crate::wire::between_two;

/// The partition of the guest's disk with its system.
const ROOT_PARTITION: u32 = 1;

/// What of a saved pair is in neither memory: [`Pair::server`].
const SERVER: &str = "server";

/// The files of a saved pair.
pub const SUSPENDED_FILES: [&str; 8] = [
    DISK,
    SERVER,
    "guest/ram",
    "guest/device",
    "guest/manifest.json",
    "controller/ram",
    "controller/device",
    "controller/manifest.json",
];

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

/// Everything that a saved pair of `spec` depends on; its guest's disk is that of the stage before.
///
/// # Errors
/// A file that cannot be read.
pub fn suspend_key(
    installed: &Installed,
    spec: &PairSpec,
    keys: &Keys,
    remembered: &mut Remembered,
) -> Result<Fields, Failure> {
    let mut fields = Fields::default();
    fields.qemu(installed, remembered)?;
    fields.machine("guest.", &spec.guest_machine(), remembered)?;
    fields.machine("controller.", &spec.controller_machine(), remembered)?;
    fields.content("key", &keys.key);
    fields.content("known-hosts", &keys.known_hosts);
    fields.profile(&spec.profile);
    fields.shares(&spec.profile);
    fields.content("controller.servers", &servers(&spec.profile)?);
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

/// Makes the places in `directory` that a pair is saved into.
///
/// # Errors
/// What the file system says.
pub fn prepare(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let places = [GUEST, CONTROLLER, "store", "xchg"].map(|name| directory.join(name));
    for place in &places {
        fs::create_dir_all(place)
            .map_err(|error| Failure::new(FailureClass::SaveFailed, format!("making {}: {error}", place.display())))?;
    }
    Ok(places.into())
}

/// Starts the pair and saves it into `directory` ([`prepare`]d), which gets [`SUSPENDED_FILES`]. The disk of the stage before,
/// `installed_disk`, lies in the cache beside `directory`, and is only read.
///
/// # Errors
/// Every failure of one of the two machines.
#[allow(clippy::too_many_arguments, reason = "each is something else")]
pub fn suspend(
    installed: &Installed,
    spec: &PairSpec,
    keys: &Keys,
    installed_disk: &Path,
    directory: &Path,
    mut run: PairRun,
    limits: Limits,
    told: &mut dyn FnMut(Told<'_>),
) -> Result<(), Failure> {
    let stage = installed_disk.parent().and_then(Path::file_name).unwrap_or_default();
    let behind = Path::new("..").join(stage).join(DISK);
    let mut spec = overlay(spec, &directory.join(DISK), &behind, installed_disk)?;
    (spec.store, spec.exchange) = (directory.join("store"), directory.join("xchg"));
    run.guest.memory = crate::memory::backing(&directory.join(GUEST));
    run.controller.memory = crate::memory::backing(&directory.join(CONTROLLER));
    told(Told::Step("both machines start, until the guest is logged into"));
    let mut pair = Pair::boot(installed, &spec, keys, run, limits)?;
    told(Told::Step("both memories are saved"));
    let server = pair.server();
    pair.rest()?;
    let (Some(mut guest), mut controller) = pair.take_apart() else {
        return Err(Failure::new(FailureClass::SaveFailed, "the pair has no guest"));
    };
    // Neither hears of the other's end: frames that are under way are lost, and TCP sends them again.
    guest.stop()?;
    controller.stop()?;
    Template::save(&mut guest, &spec.guest_machine(), &directory.join(GUEST))?;
    Template::save(&mut controller, &spec.controller_machine(), &directory.join(CONTROLLER))?;
    let file = directory.join(SERVER);
    fs::write(&file, server.to_string())
        .map_err(|error| Failure::new(FailureClass::SaveFailed, format!("writing {}: {error}", file.display())))
}

/// Revives the pair that is saved in `directory`, on a wire of its own: as [`Pair::boot`] left it. `spec` has a fresh
/// [`overlay`] of the saved disk as its guest's.
///
/// # Errors
/// A field that is another, a state that is corrupt, and what QEMU says.
pub fn revive(
    installed: &Installed,
    spec: &PairSpec,
    keys: &Keys,
    directory: &Path,
    run: PairRun,
    limits: Limits,
) -> Result<Pair, Failure> {
    let file = directory.join(SERVER);
    let server = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    let server = server
        .ok_or_else(|| Failure::new(FailureClass::CorruptState, format!("{} has no number in it", file.display())))?;
    let PairRun { guest: mut guest_run, controller: mut controller_run, wire } = run;
    let (one, other, switch) =
        between_two(wire).map_err(|error| Failure::new(FailureClass::NoWire, error.to_string()))?;
    guest_run.wires.insert(WIRE.to_owned(), one);
    controller_run.wires.insert(WIRE.to_owned(), other);
    let open = |name: &str| Template::open(&directory.join(name));
    let mut guest = open(GUEST)?.revive(installed, &spec.guest_machine(), guest_run)?;
    let mut controller = open(CONTROLLER)?.revive(installed, &spec.controller_machine(), controller_run)?;
    controller.go()?;
    guest.go()?;
    let mut pair = Pair::join(spec, keys, controller, guest, server, limits)?;
    pair.hold(switch);
    Ok(pair)
}

/// Looks at everything that reviving this pair will look at, and remembers it beside the templates: a room that they are
/// revived in can remember nothing.
///
/// # Errors
/// A field that differs, and a state that is not what was written.
pub fn ready(entry: &Entry, spec: &PairSpec) -> Result<(), Failure> {
    entry.verify()?;
    for (name, machine) in [(GUEST, spec.guest_machine()), (CONTROLLER, spec.controller_machine())] {
        Template::open(&entry.file(name))?.know(&machine)?;
    }
    Ok(())
}
