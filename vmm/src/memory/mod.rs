//! Machines saved and revived.
//!
//! A *template* is a directory: `ram` (the guest's memory, sparse), `device` (the state of the devices, some hundred KiB),
//! `manifest.json` (what both depend on, and their digests). It is made by a machine whose memory lies in that file, and revived by
//! mapping the file privately: nothing is read but what the guest touches, so the time does not depend on the size of the memory,
//! and many guests share the pages of one file.
//!
//! The same in one file is `state.gz` ([`Template::export`]): it can lie in a store, and is made into a template once, where it is used.

mod digest;
mod manifest;
mod stream;

pub use digest::{Identity, digest, digest_and_dig};
pub use manifest::{Key, Manifest, Remembered};
pub use stream::copy_sparse;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::failure::{Failure, FailureClass};
use crate::machine::{Event, Machine, Run};
use crate::qemu::Installed;
use crate::readiness::{Verdict, Wait, wait};
use crate::spec::{MachineSpec, MemoryBacking};

/// The guest's memory, in a template.
pub const RAM: &str = "ram";
/// The state of the devices, in a template.
pub const DEVICE: &str = "device";
/// What a template depends on.
pub const MANIFEST: &str = "manifest.json";
/// Digests that need not be made again.
const CHECKED: &str = "checked.json";

/// How long QEMU may take to write or read a state.
const PATIENCE: Duration = Duration::from_secs(600);

/// A saved machine.
#[derive(Clone, Debug)]
pub struct Template {
    directory: PathBuf,
    manifest: Manifest,
}

/// The memory of a machine that is to be saved into `directory`: its [`Run::memory`].
pub fn backing(directory: &Path) -> MemoryBacking {
    MemoryBacking::File(directory.join(RAM))
}

impl Template {
    /// The one in `directory`. Its digests are checked when it is revived.
    ///
    /// # Errors
    /// [`FailureClass::CorruptState`] when it has no manifest, or one that was changed.
    pub fn open(directory: &Path) -> Result<Self, Failure> {
        Ok(Self { directory: directory.to_owned(), manifest: Manifest::read(&directory.join(MANIFEST))? })
    }

    /// Saves `machine`, which was started as `spec` with [`backing`] of `directory`, and ends it.
    ///
    /// # Errors
    /// [`FailureClass::SaveFailed`], after which the machine stands still and [`Machine::go`] lets it go on.
    pub fn save(machine: &mut Machine, spec: &MachineSpec, directory: &Path) -> Result<Self, Failure> {
        let failed = |machine: &mut Machine, error: &dyn std::fmt::Display| {
            let what = format!("saving it into {}: {error}", directory.display());
            machine.fail(FailureClass::SaveFailed, what)
        };
        let manifest_file = directory.join(MANIFEST);
        // From here on there is no state in there, whatever happens.
        let _ = std::fs::remove_file(&manifest_file);
        machine.stop()?;
        let device_path = directory.join(DEVICE);
        let device = new_file(&device_path).map_err(|error| failed(machine, &error))?;
        send_state(machine, device.as_fd())?;
        let build = machine.build().to_owned();
        end(machine)?;
        let mut remembered = Remembered::default();
        let mut state = BTreeMap::new();
        let mut keep = |name: &str, dig: bool| -> io::Result<()> {
            let path = directory.join(name);
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            // The disk writes while the processors look at it.
            let digest = std::thread::scope(|scope| {
                let written = scope.spawn(|| file.sync_data());
                let digest = if dig { digest_and_dig(&file) } else { digest(&file) };
                written.join().unwrap_or_else(|_| Err(io::Error::other("writing it to the disk panicked")))?;
                digest
            })?;
            file.sync_all()?;
            remembered.remember(path.to_string_lossy().into_owned(), Identity::of(&file)?, digest.clone());
            state.insert(name.to_owned(), digest);
            Ok(())
        };
        keep(RAM, true).and_then(|()| keep(DEVICE, false)).map_err(|error| failed(machine, &error))?;
        let manifest = Manifest::new(Key::of(spec, &build, &mut remembered)?, state);
        remembered.write(&directory.join(CHECKED));
        manifest.write(&manifest_file).map_err(|error| failed(machine, &error))?;
        Ok(Self { directory: directory.to_owned(), manifest })
    }

    /// What it depends on.
    pub fn key(&self) -> &Key {
        &self.manifest.key
    }

    /// What is saved, read again whatever is remembered of it.
    ///
    /// # Errors
    /// [`FailureClass::CorruptState`].
    pub fn verify(&self) -> Result<(), Failure> {
        self.check(&mut Remembered::default())
    }

    /// As [`Template::verify`], and remembers it for the next who revives.
    fn check_now(&self) -> Result<(), Failure> {
        let mut remembered = Remembered::default();
        self.check(&mut remembered)?;
        remembered.write(&self.directory.join(CHECKED));
        Ok(())
    }

    /// Looks at all that [`Template::revive`] will look at, and remembers it beside the template. What is `known` already is
    /// not read again.
    ///
    /// # Errors
    /// A key that does not match, but for QEMU's build; a state that is not what was written.
    pub fn know(&self, spec: &MachineSpec, known: &Remembered) -> Result<(), Failure> {
        let checked = self.directory.join(CHECKED);
        let mut remembered = Remembered::read(&checked);
        remembered.learn(known);
        self.check(&mut remembered)?;
        let wanted = Key::of(spec, &self.manifest.key.qemu, &mut remembered)?;
        self.manifest.key.check(&wanted)?;
        remembered.write(&checked);
        Ok(())
    }

    fn check(&self, remembered: &mut Remembered) -> Result<(), Failure> {
        for (name, expected) in &self.manifest.state {
            let path = self.directory.join(name);
            let corrupt = |why: &str| Failure::new(FailureClass::CorruptState, format!("{}: {why}", path.display()));
            let found = remembered.digest(&path).map_err(|failure| corrupt(&failure.what))?;
            if found != *expected {
                return Err(corrupt("its digest is not the one that was written with it"));
            }
        }
        Ok(())
    }

    /// Revives it as a machine that stands still where it was saved: [`Machine::go`] lets it go on. `run.memory` and
    /// `run.incoming` are set here. The template is only read.
    ///
    /// # Errors
    /// A key that does not match, a state that is corrupt or that QEMU does not load.
    pub fn revive(&self, installed: &Installed, spec: &MachineSpec, run: Run) -> Result<Machine, Failure> {
        self.begin(installed, spec, run)?.finish()
    }

    /// Begins to revive it, as [`Template::revive`] does, and waits for nothing: so that several machines start at once.
    ///
    /// # Errors
    /// As there.
    pub fn begin(&self, installed: &Installed, spec: &MachineSpec, mut run: Run) -> Result<Reviving<'_>, Failure> {
        let checked = self.directory.join(CHECKED);
        let mut remembered = Remembered::read(&checked);
        self.check(&mut remembered)?;
        // Before QEMU is started, and again for the one thing that only it can say.
        let wanted = Key::of(spec, &self.manifest.key.qemu, &mut remembered)?;
        self.manifest.key.check(&wanted)?;
        remembered.write(&checked);
        run.memory = MemoryBacking::Template {
            file: self.directory.join(RAM),
            read_only: installed.version.has_read_only_templates(),
        };
        run.incoming = true;
        Ok(Reviving { template: self, machine: Machine::launch(installed, spec, run)?, wanted })
    }
}

/// A machine that is being revived. It is killed when this is dropped.
#[derive(Debug)]
pub struct Reviving<'a> {
    template: &'a Template,
    machine: Machine,
    wanted: Key,
}

impl Reviving<'_> {
    /// Waits until it stands still where it was saved.
    ///
    /// # Errors
    /// As [`Template::revive`].
    pub fn finish(self) -> Result<Machine, Failure> {
        let Self { template, mut machine, mut wanted } = self;
        machine.greet()?;
        machine.build().clone_into(&mut wanted.qemu);
        template.manifest.key.check(&wanted)?;
        let device = File::open(template.directory.join(DEVICE))
            .map_err(|error| machine.fail(FailureClass::CorruptState, format!("{DEVICE}: {error}")))?;
        load_state(&mut machine, device.as_fd())?;
        Ok(machine)
    }
}

/// A new file that only we may write; what stood there before is gone.
fn new_file(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(path)
}

/// Has QEMU write its state to `to`, without the memory, which lies in a file.
fn send_state(machine: &mut Machine, to: BorrowedFd<'_>) -> Result<(), Failure> {
    prepare(machine)?;
    // The default is 128 MiB a second, and to leave the guest running meanwhile.
    machine.execute("migrate-set-parameters", &json!({ "max-bandwidth": 1_u64 << 40 }))?;
    machine.execute_with("getfd", &json!({ "fdname": "state" }), Some(to), crate::machine::CONTROL_PATIENCE)?;
    let begun = machine.execute("migrate", &json!({ "uri": "fd:state" }));
    begun.map_err(|failure| Failure { class: FailureClass::SaveFailed, ..failure })?;
    finished(machine, "the state to be written", FailureClass::SaveFailed)
}

/// Has QEMU read its state from `from`.
fn load_state(machine: &mut Machine, from: BorrowedFd<'_>) -> Result<(), Failure> {
    prepare(machine)?;
    machine.execute_with("getfd", &json!({ "fdname": "state" }), Some(from), crate::machine::CONTROL_PATIENCE)?;
    let begun = machine.execute("migrate-incoming", &json!({ "uri": "fd:state" }));
    begun.map_err(|failure| Failure { class: FailureClass::LoadFailed, ..failure })?;
    finished(machine, "the state to be loaded", FailureClass::LoadFailed)
}

fn prepare(machine: &mut Machine) -> Result<(), Failure> {
    let capability = |name: &str| json!({ "capability": name, "state": true });
    let capabilities = json!([capability("events"), capability("x-ignore-shared")]);
    machine.execute("migrate-set-capabilities", &json!({ "capabilities": capabilities })).map(drop)
}

/// Waits until a migration has ended, and says how.
fn finished(machine: &mut Machine, what: &str, class: FailureClass) -> Result<(), Failure> {
    let ended = wait(machine, &Wait::new(what, PATIENCE), |_, event| match event {
        Event::Qmp(event) if event.name == "MIGRATION" => match event.text("status") {
            Some("completed") => Verdict::Done(Ok(())),
            Some("failed" | "cancelled") => Verdict::Done(Err(())),
            _ => Verdict::GoOn,
        },
        // A state that cannot be loaded ends QEMU.
        Event::Exited(exit) => Verdict::Fail(class, format!("QEMU ended ({exit})")),
        _ => Verdict::GoOn,
    })?;
    if ended.is_ok() {
        return Ok(());
    }
    let told = machine.execute("query-migrate", &Value::Null).unwrap_or_default();
    let why = told.get("error-desc").and_then(Value::as_str).unwrap_or("QEMU does not say why").to_owned();
    Err(machine.fail(class, format!("waiting for {what}: {why}")))
}

/// Ends QEMU in order, so that all that it wrote is in its files.
fn end(machine: &mut Machine) -> Result<(), Failure> {
    machine.execute("quit", &Value::Null)?;
    wait(machine, &Wait::new("QEMU's end", Duration::from_secs(60)), |_, event| match event {
        Event::Exited(crate::process::Exit::Status(0)) => Verdict::Done(()),
        _ => Verdict::GoOn,
    })
}
