//! Which QEMU there is, and what it can do.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureClass};
use crate::memory::Identity;
use crate::spec::{DriveFormat, MachineSpec, ShareKind};

/// The most that QEMU's lists may say; they are some ten KiB.
const MAX_ANSWER: u64 = 4 << 20;

/// The first version with all that machines need, `-netdev dgram` above all.
const NEEDED: Version = Version { major: 7, minor: 2, micro: 0 };

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
    /// The third.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl Version {
    /// From the first line of `--version`: `QEMU emulator version 7.2.22 (Debian …)`.
    fn of_line(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once("version ")?;
        let number = rest.split(|letter: char| !letter.is_ascii_digit() && letter != '.').next()?;
        let mut parts = number.split('.').map(|part| part.parse().ok());
        Some(Self { major: parts.next()??, minor: parts.next()??, micro: parts.next().flatten().unwrap_or(0) })
    }

    /// Whether a template's memory can be opened read-only and private at once.
    pub fn has_read_only_templates(self) -> bool {
        self >= Self { major: 8, minor: 2, micro: 0 }
    }
}

/// Those that were asked in this process, or that somebody else has asked.
static KNOWN: Mutex<Vec<(Identity, Installed)>> = Mutex::new(Vec::new());

/// A QEMU that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
    /// Its versioned machine types.
    machine_types: Vec<String>,
    /// Where it has its firmware, if it was asked.
    #[serde(default)]
    data: Option<Vec<PathBuf>>,
}

impl Installed {
    /// Looks for QEMU for this architecture: `program` if it is given, else in `path`, which is written as the variable PATH is.
    ///
    /// # Errors
    /// [`FailureClass::NoQemu`] and [`FailureClass::QemuTooOld`].
    pub fn find(program: Option<&Path>, path: Option<&OsStr>) -> Result<Self, Failure> {
        let none = |what: String| Failure::new(FailureClass::NoQemu, what);
        let program = match program {
            Some(program) => program.to_owned(),
            None => {
                let name = format!("qemu-system-{}", std::env::consts::ARCH);
                let places: Vec<PathBuf> = path.map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
                let found = places.iter().map(|place| place.join(&name)).find(|file| file.is_file());
                found.ok_or_else(|| none(format!("there is no {name} in PATH")))?
            }
        };
        let identity = Identity::at(&program).ok();
        let is_it = |known: &&(Identity, Self)| Some(known.0) == identity && known.1.program == program;
        let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).iter().find(is_it).cloned();
        if let Some((_, installed)) = known {
            return Ok(installed);
        }
        let ask = |question: &[&str]| answer(&program, question);
        let said = ask(&["--version"]).map_err(|why| none(format!("{} cannot be run: {why}", program.display())))?;
        let version = Version::of_line(said.lines().next().unwrap_or_default())
            .ok_or_else(|| none(format!("{} does not say that it is QEMU", program.display())))?;
        let mut lacks = Vec::new();
        if version < NEEDED {
            // What it does not have is what people look for in release notes.
            if !ask(&["-netdev", "help"]).unwrap_or_default().lines().any(|line| line.trim() == "dgram") {
                lacks.push("netdev dgram".to_owned());
            }
            lacks.push(format!("what came until {NEEDED}"));
        }
        let types = ask(&["-machine", "help"]).map_err(|why| none(format!("{}: {why}", program.display())))?;
        let machine_types =
            types.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next()).map(str::to_owned).collect();
        let installed = Self { program, version, machine_types, data: None };
        if !lacks.is_empty() {
            return Err(installed.too_old(&lacks));
        }
        installed.know();
        Ok(installed)
    }

    /// The same, with what it says of where its firmware is: it is not asked again.
    #[must_use]
    pub fn with_data(mut self) -> Self {
        self.data = Some(self.data_folders());
        self
    }

    /// Where it has its firmware, as it says itself.
    pub fn data_folders(&self) -> Vec<PathBuf> {
        if let Some(data) = &self.data {
            return data.clone();
        }
        let text = answer(&self.program, &["-L", "help"]).unwrap_or_default();
        text.lines().map(PathBuf::from).filter(|path| path.is_dir()).collect()
    }

    /// From here on [`Installed::find`] finds it in this process without asking: whoever has asked before, of this very file.
    pub fn know(&self) {
        if let Ok(identity) = Identity::at(&self.program) {
            KNOWN.lock().unwrap_or_else(PoisonError::into_inner).push((identity, self.clone()));
        }
    }

    fn too_old(&self, lacks: &[String]) -> Failure {
        let what = format!("{} is QEMU {}, which lacks {}", self.program.display(), self.version, lacks.join(", "));
        Failure::new(FailureClass::QemuTooOld, what)
    }

    /// Whether it can be this machine, as far as can be known without trying.
    ///
    /// # Errors
    /// [`FailureClass::QemuTooOld`], with what is missing.
    pub fn check(&self, spec: &MachineSpec) -> Result<(), Failure> {
        let mut lacks = Vec::new();
        if !self.machine_types.contains(&spec.machine_type) {
            lacks.push(format!("machine type {}", spec.machine_type));
        }
        // Packagers build some of it as modules, in packages of their own.
        let mut devices = vec!["pvpanic"];
        if !spec.ports.is_empty() {
            devices.push("virtserialport");
        }
        if !spec.cards.is_empty() {
            devices.push("virtio-net-pci");
        }
        if !spec.drives.is_empty() {
            devices.push("virtio-blk-pci");
        }
        devices.extend(spec.shares.iter().map(|share| match share.kind {
            ShareKind::NineP => "virtio-9p-pci",
            ShareKind::Virtiofs => "vhost-user-fs-pci",
        }));
        if spec.display {
            devices.push("VGA");
        }
        let known = answer(&self.program, &["-device", "help"]).unwrap_or_default();
        let is_known = |device: &str| known.contains(&format!("name \"{device}\""));
        lacks.extend(devices.into_iter().filter(|device| !is_known(device)).map(|device| format!("device {device}")));
        if lacks.is_empty() { Ok(()) } else { Err(self.too_old(&lacks)) }
    }

    /// The program that makes disk images, beside this one or in `path`.
    pub fn image_program(&self, path: Option<&OsStr>) -> Option<PathBuf> {
        let beside = self.program.parent().map(|place| place.join("qemu-img"));
        let places = path.map(|path| std::env::split_paths(path).collect::<Vec<_>>()).unwrap_or_default();
        beside.into_iter().chain(places.into_iter().map(|place| place.join("qemu-img"))).find(|file| file.is_file())
    }
}

/// The arguments by which `qemu-img` makes an overlay of `base`.
pub fn overlay_arguments(base: &Path, format: DriveFormat, overlay: &Path) -> Vec<std::ffi::OsString> {
    let format = match format {
        DriveFormat::Raw => "raw",
        DriveFormat::Qcow2 => "qcow2",
    };
    let mut words: Vec<std::ffi::OsString> = ["create", "-q", "-f", "qcow2", "-F", format, "-b"].map(Into::into).into();
    words.extend([base.into(), overlay.into()]);
    words
}

/// What QEMU says to a question, bounded.
fn answer(program: &Path, question: &[&str]) -> std::io::Result<String> {
    let mut child = Command::new(program)
        .args(question)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut text = Vec::new();
    let read = child.stdout.take().expect("a pipe").take(MAX_ANSWER).read_to_end(&mut text);
    // One that says more than that is no QEMU, and may never end.
    if text.len() as u64 == MAX_ANSWER {
        child.kill()?;
    }
    let status = child.wait()?;
    read?;
    if !status.success() {
        return Err(std::io::Error::other(format!("it ended with {status}")));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    /// A program that answers as a QEMU would.
    fn pretender(place: &Path, says: &str) -> PathBuf {
        let path = place.join("qemu");
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path).unwrap();
        write!(file, "#!/bin/sh\n{says}\n").unwrap();
        path
    }

    #[test]
    fn a_version_is_read_from_what_distributions_print() {
        let line = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)";
        assert_eq!(Version::of_line(line), Some(Version { major: 7, minor: 2, micro: 22 }));
        assert_eq!(Version::of_line("QEMU emulator version 10.0"), Some(Version { major: 10, minor: 0, micro: 0 }));
        assert_eq!(Version::of_line("busybox"), None);
    }

    #[test]
    fn no_qemu_is_said() {
        let empty = tempfile::tempdir().unwrap();
        let failure = Installed::find(None, Some(empty.path().as_os_str())).unwrap_err();
        assert_eq!(failure.class, FailureClass::NoQemu);
        assert!(failure.to_string().contains("in PATH"), "{failure}");
        let failure = Installed::find(Some(Path::new("/bin/true")), None).unwrap_err();
        assert_eq!((failure.class, failure.what.contains("/bin/true")), (FailureClass::NoQemu, true), "{failure}");
    }

    #[test]
    fn an_old_qemu_is_refused_with_what_it_lacks() {
        let place = tempfile::tempdir().unwrap();
        let says =
            "case $1 in --version) echo QEMU emulator version 6.2.0;; -netdev) echo user;; *) echo Supported; esac";
        let failure = Installed::find(Some(&pretender(place.path(), says)), None).unwrap_err();
        assert_eq!(failure.class, FailureClass::QemuTooOld);
        assert!(failure.what.contains("QEMU 6.2.0, which lacks netdev dgram"), "{failure}");
    }

    #[test]
    fn a_missing_device_is_named() {
        let place = tempfile::tempdir().unwrap();
        let says = "case $1 in --version) echo QEMU emulator version 9.1.0;; -machine) printf 'Supported machines are:\\npc-i440fx-7.2 x\\n';; *) echo 'name \"pvpanic\", bus ISA'; esac";
        let installed = Installed::find(Some(&pretender(place.path(), says)), None).unwrap();
        let mut spec = MachineSpec::linux("m", "/k", "/i", 128);
        assert_eq!(installed.check(&spec), Ok(()));
        spec.ports.push("p".into());
        spec.machine_type = "pc-i440fx-99.0".into();
        let failure = installed.check(&spec).unwrap_err();
        assert_eq!(failure.class, FailureClass::QemuTooOld);
        assert!(failure.what.ends_with("lacks machine type pc-i440fx-99.0, device virtserialport"), "{failure}");
    }
}
