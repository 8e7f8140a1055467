//! What a saved state depends on, and what it must be: written when it is saved, compared before it is revived.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::digest::{self, Identity};
use crate::failure::{Failure, FailureClass};
use crate::qemu::arguments;
use crate::spec::{Accelerator, Boot, MachineSpec};

/// The longest manifest; real ones have some KiB.
const MAX_MANIFEST: u64 = 1 << 20;

/// The version of this format.
const FORMAT: u32 = 1;

/// Everything that a state depends on besides its own bytes. Two machines with equal keys can revive each other's states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Key {
    /// The build of QEMU, as it greets.
    pub qemu: String,
    /// The versioned machine type.
    pub machine_type: String,
    /// The CPU model.
    pub cpu: String,
    /// What executes the guest.
    pub accelerator: String,
    /// The host's processor, where the guest sees it.
    pub processor: String,
    /// Memory, in MiB.
    pub memory: u64,
    /// Processors.
    pub cores: u32,
    /// Every device in its order, with its place on the board, without paths of the host.
    pub devices: Vec<String>,
    /// Digests of what it was started from and of its disks, by their part in the machine.
    pub files: BTreeMap<String, String>,
}

impl Key {
    /// The key of `spec` under the QEMU of this build. `remembered` spares reading files that were looked at before.
    ///
    /// # Errors
    /// A file of the machine that cannot be read.
    pub fn of(spec: &MachineSpec, build: &str, remembered: &mut Remembered) -> Result<Self, Failure> {
        let mut files = BTreeMap::new();
        if let Boot::Kernel { kernel, initramfs, command_line } = &spec.boot {
            files.insert("kernel".to_owned(), remembered.digest(kernel)?);
            files.insert("initramfs".to_owned(), remembered.digest(initramfs)?);
            files.insert("command-line".to_owned(), hexadecimal(&Sha256::digest(command_line)));
        }
        for drive in &spec.drives {
            files.insert(
                format!("drive {}", drive.serial),
                remembered.digest(drive.base.as_ref().unwrap_or(&drive.image))?,
            );
        }
        Ok(Self {
            qemu: build.to_owned(),
            machine_type: spec.machine_type.clone(),
            cpu: spec.cpu.clone(),
            accelerator: spec.accelerator.to_string(),
            processor: if spec.accelerator == Accelerator::Kvm { processor() } else { String::new() },
            memory: spec.memory,
            cores: spec.cores,
            devices: arguments::devices(spec),
            files,
        })
    }

    /// The first field in which `wanted` differs from what a state was made with: its name, and both values.
    fn difference(&self, wanted: &Self) -> Option<(String, String, String)> {
        let fields = |key: &Self| -> Vec<(String, String)> {
            let mut fields = vec![
                ("qemu".to_owned(), key.qemu.clone()),
                ("machine-type".to_owned(), key.machine_type.clone()),
                ("accelerator".to_owned(), key.accelerator.clone()),
                ("cpu".to_owned(), key.cpu.clone()),
                ("processor".to_owned(), key.processor.clone()),
                ("memory".to_owned(), format!("{} MiB", key.memory)),
                ("cores".to_owned(), key.cores.to_string()),
            ];
            fields.extend(key.files.iter().map(|(part, digest)| (part.clone(), digest.clone())));
            fields
        };
        let (mine, others) = (fields(self), fields(wanted));
        let value = |fields: &[(String, String)], name: &str| {
            fields.iter().find(|(known, _)| known == name).map_or("none".to_owned(), |(_, value)| value.clone())
        };
        let names = mine.iter().chain(&others).map(|(name, _)| name);
        for name in names {
            let (made, wanted) = (value(&mine, name), value(&others, name));
            if made != wanted {
                return Some((name.clone(), made, wanted));
            }
        }
        let longest = self.devices.len().max(wanted.devices.len());
        let device = |key: &Self, number: usize| key.devices.get(number).cloned().unwrap_or_else(|| "none".into());
        (0..longest)
            .map(|number| ("devices".to_owned(), device(self, number), device(wanted, number)))
            .find(|(_, made, wanted)| made != wanted)
    }

    /// Refuses `wanted` when it is another machine.
    ///
    /// # Errors
    /// [`FailureClass::StateMismatch`], with the field's name.
    pub fn check(&self, wanted: &Self) -> Result<(), Failure> {
        match self.difference(wanted) {
            None => Ok(()),
            Some((field, made, wanted)) => Err(Failure::new(
                FailureClass::StateMismatch,
                format!("the state was made with {field} ‘{made}’, and this machine has ‘{wanted}’"),
            )),
        }
    }
}

/// The manifest of one state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    /// The version of this format.
    format: u32,
    /// What the state depends on.
    pub key: Key,
    /// The digests of the state's own files, by their names.
    pub state: BTreeMap<String, String>,
}

/// A manifest as it is stored, with a digest of itself.
#[derive(Serialize, Deserialize)]
struct Stored {
    manifest: Manifest,
    digest: String,
}

impl Manifest {
    /// The manifest of a state with these files.
    pub fn new(key: Key, state: BTreeMap<String, String>) -> Self {
        Self { format: FORMAT, key, state }
    }

    fn own_digest(&self) -> String {
        hexadecimal(&Sha256::digest(serde_json::to_vec(self).expect("a manifest is JSON")))
    }

    /// Writes it to `file`, all or nothing.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let stored = Stored { manifest: self.clone(), digest: self.own_digest() };
        let new = file.with_extension("new");
        let written = File::create(&new)?;
        serde_json::to_writer_pretty(&written, &stored)?;
        written.sync_all()?;
        std::fs::rename(new, file)
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`FailureClass::CorruptState`].
    pub fn read(file: &Path) -> Result<Self, Failure> {
        let corrupt = |why: String| Failure::new(FailureClass::CorruptState, format!("{}: {why}", file.display()));
        let mut text = Vec::new();
        File::open(file)
            .and_then(|file| file.take(MAX_MANIFEST).read_to_end(&mut text))
            .map_err(|error| corrupt(error.to_string()))?;
        let stored: Stored = serde_json::from_slice(&text).map_err(|error| corrupt(error.to_string()))?;
        if stored.digest != stored.manifest.own_digest() {
            return Err(corrupt("it is not what was written".to_owned()));
        }
        if stored.manifest.format != FORMAT {
            let format = stored.manifest.format;
            return Err(Failure::new(
                FailureClass::StateMismatch,
                format!("the state was made with format ‘{format}’, and this program has ‘{FORMAT}’"),
            ));
        }
        Ok(stored.manifest)
    }
}

/// Digests of files that were looked at before, kept beside a state: reading them again would take longer than reviving.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    files: BTreeMap<String, (Identity, String)>,
    #[serde(skip)]
    is_new: bool,
}

impl Remembered {
    /// What is remembered in `file`; nothing when it cannot be read, which costs only time.
    pub fn read(file: &Path) -> Self {
        let mut text = Vec::new();
        match File::open(file).and_then(|file| file.take(MAX_MANIFEST).read_to_end(&mut text)) {
            Ok(_) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(_) => Self::default(),
        }
    }

    /// Writes it to `file` if anything is new. Where that cannot be done, as in a read-only store, it is done without.
    pub fn write(&self, file: &Path) {
        if self.is_new
            && let Ok(text) = serde_json::to_vec(self)
        {
            let new = file.with_extension(format!("new-{}", std::process::id()));
            let _ = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, file));
        }
    }

    /// The digest of the file at `path`.
    ///
    /// # Errors
    /// [`FailureClass::NoKernel`] for a file that cannot be read.
    pub fn digest(&mut self, path: &Path) -> Result<String, Failure> {
        let failed = |error: io::Error| Failure::new(FailureClass::NoKernel, format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(failed)?;
        let identity = Identity::of(&file).map_err(failed)?;
        let name = path.to_string_lossy().into_owned();
        if let Some((known, digest)) = self.files.get(&name)
            && *known == identity
        {
            return Ok(digest.clone());
        }
        let digest = digest::digest(&file).map_err(failed)?;
        // What was changed while it was read is not remembered.
        if Identity::of(&file).map_err(failed)? == identity {
            self.remember(name, identity, digest.clone());
        }
        Ok(digest)
    }

    /// Takes over what `other` knows of files that are not known here, or not as they are now.
    pub fn learn(&mut self, other: &Self) {
        for (name, known) in &other.files {
            if self.files.get(name) != Some(known) {
                self.files.insert(name.clone(), known.clone());
                self.is_new = true;
            }
        }
    }

    /// Remembers a digest that was just made.
    pub fn remember(&mut self, name: String, identity: Identity, digest: String) {
        self.files.insert(name, (identity, digest));
        self.is_new = true;
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The host's processor: a state made under kvm is one for it.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.split_once(':'));
        line.map_or("", |(_, value)| value.trim()).to_owned()
    };
    [line("model name"), line("stepping"), line("microcode")].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(spec: &MachineSpec) -> Key {
        Key::of(spec, "7.2.22 Debian", &mut Remembered::default()).unwrap()
    }

    #[test]
    fn a_key_that_does_not_match_is_refused_by_its_field() {
        let place = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = place.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let spec = MachineSpec::linux("m", file("k", "kernel"), file("i", "initramfs"), 128);
        let made = key(&spec);
        made.check(&made).unwrap();
        let changed = |change: &dyn Fn(&mut MachineSpec)| {
            let mut other = spec.clone();
            change(&mut other);
            let failure = made.check(&key(&other)).unwrap_err();
            assert_eq!(failure.class, FailureClass::StateMismatch);
            failure.what
        };
        assert_eq!(
            changed(&|spec| spec.memory = 256),
            "the state was made with memory ‘128 MiB’, and this machine has ‘256 MiB’"
        );
        assert!(changed(&|spec| spec.cpu = "qemu64".into()).contains("with cpu ‘max’"));
        assert!(changed(&|spec| spec.cores = 2).contains("with cores ‘1’"));
        assert!(changed(&|spec| spec.ports.push("p".into())).contains("with devices"));
        let other = file("k2", "another kernel");
        let is_kernel = changed(&|spec| {
            if let Boot::Kernel { kernel, .. } = &mut spec.boot {
                *kernel = other.clone();
            }
        });
        assert!(is_kernel.contains("with kernel ‘"), "{is_kernel}");
        let newer = Key { qemu: "9.0.0".into(), ..made.clone() };
        assert!(
            made.check(&newer).unwrap_err().what.contains("with qemu ‘7.2.22 Debian’, and this machine has ‘9.0.0’")
        );
    }

    #[test]
    fn every_flipped_byte_of_a_manifest_is_found() {
        let place = tempfile::tempdir().unwrap();
        let (kernel, file) = (place.path().join("k"), place.path().join("manifest.json"));
        std::fs::write(&kernel, "kernel").unwrap();
        let made =
            Manifest::new(key(&MachineSpec::linux("m", &kernel, &kernel, 128)), [("ram".into(), "00".into())].into());
        made.write(&file).unwrap();
        assert_eq!(Manifest::read(&file).unwrap(), made);
        let text = std::fs::read(&file).unwrap();
        for at in (0..text.len()).step_by(7) {
            let mut flipped = text.clone();
            flipped[at] ^= 1;
            std::fs::write(&file, &flipped).unwrap();
            // A blank between two words is none of the manifest.
            match Manifest::read(&file) {
                Ok(read) => assert_eq!(read, made, "byte {at}"),
                Err(failure) => assert_eq!(failure.class, FailureClass::CorruptState),
            }
        }
    }

    #[test]
    fn what_is_remembered_is_forgotten_when_the_file_is_touched() {
        let place = tempfile::tempdir().unwrap();
        let (image, kept) = (place.path().join("image"), place.path().join("checked.json"));
        std::fs::write(&image, "one").unwrap();
        let mut remembered = Remembered::default();
        let one = remembered.digest(&image).unwrap();
        remembered.write(&kept);
        let mut again = Remembered::read(&kept);
        assert_eq!(again.digest(&image).unwrap(), one);
        assert!(!again.is_new);
        std::fs::write(&image, "two").unwrap();
        assert_ne!(again.digest(&image).unwrap(), one);
    }
}
