//! Machines saved and revived.
//!
//! A *template* is a directory: `ram` (the guest's memory, sparse), `device` (the state of the devices, some hundred KiB),
//! `manifest.json` (what both depend on, and their digests). It is made by a machine whose memory lies in that file, and revived by
//! mapping the file privately: nothing is read but what the guest touches, so the time does not depend on the size of the memory,
//! and many guests share the pages of one file.
//!
//! A *stream* is the same state in one gzip file (`state.gz`) with its manifest: what can lie in a store and be carried elsewhere. It
//! is read as a whole to revive a machine from it, so it is better made into a template once.

mod digest;
mod manifest;

pub use digest::{Identity, digest, digest_and_dig};
pub use manifest::{Key, Manifest, Remembered};

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::{Compression, GzBuilder, read::GzDecoder};
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
/// What a template or a stream depends on.
pub const MANIFEST: &str = "manifest.json";
/// Digests that need not be made again.
const CHECKED: &str = "checked.json";
/// All state in one file, in a stream.
pub const STREAM: &str = "state.gz";

/// How long QEMU may take to write or read a state.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the state of the devices may add to a stream of the memory's size.
const DEVICES_AT_MOST: u64 = 512 << 20;

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
        send_state(machine, device.as_fd(), true)?;
        let build = machine.build().to_owned();
        end(machine)?;
        let mut remembered = Remembered::default();
        let mut state = BTreeMap::new();
        let mut keep = |name: &str, dig: bool| -> io::Result<()> {
            let path = directory.join(name);
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let digest = if dig { digest_and_dig(&file)? } else { digest(&file)? };
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
    pub fn revive(&self, installed: &Installed, spec: &MachineSpec, mut run: Run) -> Result<Machine, Failure> {
        let checked = self.directory.join(CHECKED);
        let mut remembered = Remembered::read(&checked);
        self.check(&mut remembered)?;
        // Before QEMU is started, and again for the one thing that only it can say.
        let mut wanted = Key::of(spec, &self.manifest.key.qemu, &mut remembered)?;
        self.manifest.key.check(&wanted)?;
        remembered.write(&checked);
        run.memory = MemoryBacking::Template {
            file: self.directory.join(RAM),
            read_only: installed.version.has_read_only_templates(),
        };
        run.incoming = true;
        let mut machine = Machine::start(installed, spec, run)?;
        wanted.qemu = machine.build().to_owned();
        self.manifest.key.check(&wanted)?;
        let device = File::open(self.directory.join(DEVICE))
            .map_err(|error| machine.fail(FailureClass::CorruptState, format!("{DEVICE}: {error}")))?;
        load_state(&mut machine, device.as_fd(), true)?;
        Ok(machine)
    }

    /// Writes it as a stream into `directory`, which is made.
    ///
    /// # Errors
    /// As reviving, saving, and what the file system says.
    pub fn export(&self, installed: &Installed, spec: &MachineSpec, directory: &Path) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(FailureClass::SaveFailed, format!("writing {}: {error}", directory.display()))
        };
        std::fs::create_dir_all(directory).map_err(|error| failed(&error))?;
        let mut machine = self.revive(installed, spec, Run::default())?;
        let path = directory.join(STREAM);
        let file = new_file(&path).map_err(|error| failed(&error))?;
        let (reads, writes) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| failed(&error))?;
        let compressor = std::thread::spawn(move || compress(File::from(reads), file));
        let sent = send_state(&mut machine, writes.as_fd(), false);
        // Closes QEMU's end as well as ours, which is what ends the compressor.
        let ended = sent.and_then(|()| end(&mut machine));
        drop((machine, writes));
        let compressed = compressor.join().unwrap_or_else(|_| Err(io::Error::other("the compressor panicked")));
        ended?;
        compressed.map_err(|error| failed(&error))?;
        let mut state = BTreeMap::new();
        let written = File::open(&path).and_then(|file| digest(&file)).map_err(|error| failed(&error))?;
        state.insert(STREAM.to_owned(), written);
        let manifest = Manifest::new(self.manifest.key.clone(), state);
        manifest.write(&directory.join(MANIFEST)).map_err(|error| failed(&error))
    }

    /// Makes a template in `directory`, which is made, of the stream in `stream`.
    ///
    /// # Errors
    /// As reviving and saving.
    pub fn import(installed: &Installed, spec: &MachineSpec, stream: &Path, directory: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(directory).map_err(|error| {
            Failure::new(FailureClass::SaveFailed, format!("making {}: {error}", directory.display()))
        })?;
        let run = Run { memory: backing(directory), ..Run::default() };
        let mut machine = revive_stream(installed, spec, stream, run)?;
        Self::save(&mut machine, spec, directory)
    }
}

/// Revives a machine from a stream, standing still, with `run.memory` as it is: the whole state is read.
///
/// # Errors
/// As [`Template::revive`].
pub fn revive_stream(
    installed: &Installed,
    spec: &MachineSpec,
    stream: &Path,
    mut run: Run,
) -> Result<Machine, Failure> {
    let kept = Template { directory: stream.to_owned(), manifest: Manifest::read(&stream.join(MANIFEST))? };
    let mut remembered = Remembered::read(&stream.join(CHECKED));
    kept.check(&mut remembered)?;
    let mut wanted = Key::of(spec, &kept.manifest.key.qemu, &mut remembered)?;
    kept.manifest.key.check(&wanted)?;
    let path = stream.join(STREAM);
    let corrupt = |error: &dyn std::fmt::Display| {
        Failure::new(FailureClass::CorruptState, format!("{}: {error}", path.display()))
    };
    let file = File::open(&path).map_err(|error| corrupt(&error))?;
    run.incoming = true;
    let mut machine = Machine::start(installed, spec, run)?;
    wanted.qemu = machine.build().to_owned();
    kept.manifest.key.check(&wanted)?;
    let (reads, writes) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| corrupt(&error))?;
    let most = (spec.memory << 20) + DEVICES_AT_MOST;
    let expander = std::thread::spawn(move || expand(file, File::from(writes), most));
    let loaded = load_state(&mut machine, reads.as_fd(), false);
    drop(reads);
    if loaded.is_err() {
        // Else the expander would wait for a reader that is stuck.
        machine.kill();
    }
    let expanded = expander.join().unwrap_or_else(|_| Err(io::Error::other("the expander panicked")));
    match (loaded, expanded) {
        (Ok(()), Ok(())) => Ok(machine),
        // What is wrong with the stream is the cause, QEMU's failure the consequence.
        (_, Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(corrupt(&error)),
        (Err(failure), _) => Err(failure),
        (Ok(()), Err(error)) => Err(corrupt(&error)),
    }
}

/// Always the same bytes for the same state: no name, no time.
fn compress(mut from: File, to: File) -> io::Result<()> {
    let mut writer = GzBuilder::new().mtime(0).operating_system(255).write(to, Compression::fast());
    io::copy(&mut from, &mut writer)?;
    writer.finish()?.sync_all()
}

fn expand(from: File, mut to: File, most: u64) -> io::Result<()> {
    let mut reader = GzDecoder::new(io::BufReader::new(from)).take(most);
    io::copy(&mut reader, &mut to)?;
    if reader.limit() == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it holds more than this machine has memory"));
    }
    to.flush()
}

/// A new file that only we may write; what stood there before is gone.
fn new_file(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(path)
}

/// Has QEMU write its state to `to`, without the memory if that lies in a file.
fn send_state(machine: &mut Machine, to: BorrowedFd<'_>, without_memory: bool) -> Result<(), Failure> {
    prepare(machine, without_memory)?;
    // The default is 128 MiB a second, and to leave the guest running meanwhile.
    machine.execute("migrate-set-parameters", &json!({ "max-bandwidth": 1_u64 << 40 }))?;
    machine.execute_with("getfd", &json!({ "fdname": "state" }), Some(to), crate::machine::CONTROL_PATIENCE)?;
    let begun = machine.execute("migrate", &json!({ "uri": "fd:state" }));
    begun.map_err(|failure| Failure { class: FailureClass::SaveFailed, ..failure })?;
    finished(machine, "the state to be written", FailureClass::SaveFailed)
}

/// Has QEMU read its state from `from`.
fn load_state(machine: &mut Machine, from: BorrowedFd<'_>, without_memory: bool) -> Result<(), Failure> {
    prepare(machine, without_memory)?;
    machine.execute_with("getfd", &json!({ "fdname": "state" }), Some(from), crate::machine::CONTROL_PATIENCE)?;
    let begun = machine.execute("migrate-incoming", &json!({ "uri": "fd:state" }));
    begun.map_err(|failure| Failure { class: FailureClass::LoadFailed, ..failure })?;
    finished(machine, "the state to be loaded", FailureClass::LoadFailed)
}

fn prepare(machine: &mut Machine, without_memory: bool) -> Result<(), Failure> {
    let capability = |name: &str, state: bool| json!({ "capability": name, "state": state });
    let capabilities = json!([capability("events", true), capability("x-ignore-shared", without_memory)]);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(bytes: &[u8], most: u64) -> io::Result<Vec<u8>> {
        use std::io::Seek;
        let mut from = tempfile::tempfile()?;
        from.write_all(bytes)?;
        from.rewind()?;
        let mut to = tempfile::tempfile()?;
        expand(from, to.try_clone()?, most)?;
        to.rewind()?;
        let mut found = Vec::new();
        to.read_to_end(&mut found)?;
        Ok(found)
    }

    fn compressed(bytes: &[u8]) -> Vec<u8> {
        use std::io::Seek;
        let mut from = tempfile::tempfile().unwrap();
        from.write_all(bytes).unwrap();
        from.rewind().unwrap();
        let mut to = tempfile::tempfile().unwrap();
        compress(from, to.try_clone().unwrap()).unwrap();
        to.rewind().unwrap();
        let mut found = Vec::new();
        to.read_to_end(&mut found).unwrap();
        found
    }

    #[test]
    fn the_same_state_is_the_same_file_and_a_cut_one_is_none() {
        let state: Vec<u8> = (0..300_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        let stream = compressed(&state);
        assert_eq!(compressed(&state), stream);
        assert!(expanded(&stream, 1 << 30).unwrap() == state);
        assert!(expanded(&stream[..stream.len() - 9], 1 << 30).is_err());
        let mut flipped = stream.clone();
        flipped[stream.len() / 2] ^= 1;
        assert!(expanded(&flipped, 1 << 30).map_or(true, |found| found != state));
    }

    #[test]
    fn a_stream_that_would_fill_the_memory_is_refused() {
        let stream = compressed(&vec![0; 1 << 20]);
        assert!(stream.len() < 10_000);
        assert!(expanded(&stream, 1 << 19).unwrap_err().to_string().contains("more than this machine"));
    }
}
