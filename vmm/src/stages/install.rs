//! The first stage: a system on a blank disk, by an installer that runs from its media and asks nobody anything.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{DISK, Fields, Told};
use crate::controller::ROOT_SERIAL;
use crate::disk;
use crate::exchange::Command;
use crate::failure::{Failure, FailureClass};
use crate::kernel::Feature;
use crate::linux::{Agent, End};
use crate::machine::{Machine, Run};
use crate::memory::Remembered;
use crate::profile::Profile;
use crate::qemu::Installed;
use crate::readiness::{Wait, wait_for_shutdown};
use crate::report::{PORT_NAME, RunRequest, Streams, What};
use crate::shares::image::Form;
use crate::shares::{disk as image_disk, memory};
use crate::spec::{Accelerator, Drive, MachineSpec};

/// The serial number of the disk with the media.
pub const MEDIA_SERIAL: &str = "media";
/// The serial number of the disk with the answers, which is the file of them, byte for byte.
pub const ANSWERS_SERIAL: &str = "answers";

/// How long an installer may take until it says something, and do nothing.
const BOOT: Duration = Duration::from_secs(300);
const STALL: Duration = Duration::from_secs(60);

/// An installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct InstallSpec {
    /// What is installed.
    pub profile: Profile,
    /// What executes it.
    pub accelerator: Accelerator,
    /// QEMU's CPU model.
    pub cpu: String,
    /// The installer's kernel.
    pub kernel: PathBuf,
    /// Its initial file system.
    pub initramfs: PathBuf,
    /// Memory, in MiB.
    pub memory: u64,
    /// Processors.
    pub cores: u32,
    /// The size of the disk, in bytes.
    pub disk_size: u64,
    /// The media: an image that the installer runs from.
    pub media: PathBuf,
    /// The answers to all that an installer asks; a whole number of blocks of 512 bytes.
    pub answers: PathBuf,
    /// What our agent runs from the media. Without it the media install by themselves, until they power off.
    pub installer: Option<Vec<String>>,
    /// How long it may take, in seconds.
    pub limit: u64,
}

impl InstallSpec {
    /// What the installer's kernel must be able to do.
    pub const FEATURES: [Feature; 5] = [Feature::Virtio, Feature::Port, Feature::Disk, Feature::Erofs, Feature::Ext4];

    /// What the image of an installer with our agent does at its start.
    pub fn start() -> Vec<What> {
        vec![
            What::Mount(image_disk(MEDIA_SERIAL, Form::Erofs, "/root")),
            What::SwitchRoot("/root".into()),
            What::Mount(memory("/run", 32 << 20)),
            What::Mount(memory("/tmp", 64 << 20)),
        ]
    }

    fn machine(&self, disk: Option<&Path>) -> MachineSpec {
        let mut spec = MachineSpec::linux("installer", &self.kernel, &self.initramfs, self.memory);
        spec.accelerator = self.accelerator;
        spec.cpu.clone_from(&self.cpu);
        spec.cores = self.cores;
        spec.display = true;
        spec.ports.push(PORT_NAME.to_owned());
        spec.drives =
            vec![Drive::read_only(MEDIA_SERIAL, &self.media), Drive::read_only(ANSWERS_SERIAL, &self.answers)];
        if let Some(disk) = disk {
            spec.drives.insert(0, Drive::written(ROOT_SERIAL, disk, None));
        }
        spec
    }

    /// Everything that the disk depends on.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn key(&self, installed: &Installed, remembered: &mut Remembered) -> Result<Fields, Failure> {
        let mut fields = Fields::default();
        fields.qemu(installed, remembered)?;
        // Without the blank disk, of which its size is all.
        fields.machine("", &self.machine(None), remembered)?;
        fields.set("disk-size", format!("{} MiB", self.disk_size >> 20));
        fields.set("installer", self.installer.as_ref().map_or("the media's own".to_owned(), |words| words.join(" ")));
        fields.profile(&self.profile);
        Ok(fields)
    }
}

/// Runs the installation into `directory`, which gets the disk [`DISK`].
///
/// # Errors
/// Every failure of the machine, and [`FailureClass::GuestRefused`] with an installer's last words.
pub fn install(
    installed: &Installed,
    spec: &InstallSpec,
    directory: &Path,
    run: Run,
    told: &mut dyn FnMut(Told<'_>),
) -> Result<(), Failure> {
    let path = directory.join(DISK);
    disk::create(&path, spec.disk_size, None)
        .map_err(|error| Failure::new(FailureClass::DiskError, format!("making {}: {error}", path.display())))?;
    let machine = spec.machine(Some(&path));
    installed.check(&machine)?;
    told(Told::Step("the installer starts"));
    let mut machine = Machine::start(installed, &machine, run)?;
    machine.go()?;
    let limit = Duration::from_secs(spec.limit);
    let Some(words) = &spec.installer else {
        told(Told::Step("the media install"));
        return wait_for_shutdown(&mut machine, limit);
    };
    let mut agent = Agent::default();
    let boot = Wait::new("the installer", BOOT).unless_stalled(STALL, spec.accelerator);
    agent.ready(&mut machine, &boot)?;
    told(Told::Step("the installer works"));
    let (program, arguments) = words.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let command = Command::new(program).arguments(arguments).variable("PATH", "/bin:/sbin:/usr/bin:/usr/sbin");
    let request = RunRequest { command: Ok(command), user: None, streams: Streams::Together, alone: true };
    let mut lines = crate::lines::Lines::default();
    let mut last = String::new();
    let end = agent.run(&mut machine, request, &Wait::new("the installer's end", limit), &mut |_, bytes| {
        for line in lines.feed(bytes).into_iter().filter(|line| !line.trim().is_empty()) {
            told(Told::Step(&line));
            last = line;
        }
        Ok(())
    })?;
    if end != End::Status(0) {
        let said = lines.begun().filter(|begun| !begun.is_empty()).unwrap_or(last);
        return Err(machine.fail(FailureClass::GuestRefused, format!("the installer ended with {end:?}: {said}")));
    }
    told(Told::Step("the machine powers off"));
    agent.power_off(&mut machine, Duration::from_secs(120))
}
