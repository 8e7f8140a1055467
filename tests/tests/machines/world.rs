//! A kernel, a QEMU, and guests of one shell script each.

use std::path::PathBuf;
use std::time::Duration;

use anchorhold_vmm::initramfs::Initramfs;
use anchorhold_vmm::kernel::Kernel;
use anchorhold_vmm::machine::{Event, Machine, Run};
use anchorhold_vmm::qemu::Installed;
use anchorhold_vmm::readiness::{Verdict, Wait, wait};
use anchorhold_vmm::spec::MachineSpec;
use tempfile::TempDir;

/// How long a guest may take for anything. It is emulated, on a machine that does much else.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// What guests need of the host.
pub struct World {
    pub qemu: Installed,
    pub kernel: Kernel,
    /// The kernel as an ELF file.
    pub elf: PathBuf,
    busybox: PathBuf,
}

impl World {
    /// Says why and gives nothing where there is no QEMU, no kernel or no busybox.
    pub fn new() -> Option<Self> {
        match Self::find() {
            Ok(world) => Some(world),
            Err(why) => {
                anchorhold_tests::skip(&why);
                None
            }
        }
    }

    fn find() -> Result<Self, String> {
        let qemu = anchorhold_tests::machines::qemu()?;
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
        let busybox = busybox.ok_or("there is no busybox")?;
        let kernel = anchorhold_tests::machines::kernel()?;
        // One for each user: what another made is not to be trusted.
        let cache = std::env::temp_dir().join(format!("anchorhold-test-kernel-{}", nix::unistd::geteuid()));
        let elf = kernel.extracted(&cache).map_err(|error| error.to_string())?;
        Ok(Self { qemu, kernel, elf, busybox })
    }

    /// A guest with 128 MiB whose first process is this script of busybox's shell. Its commands are `busybox NAME`.
    pub fn guest(&self, script: &str) -> Guest {
        self.guest_with(script, 0)
    }

    /// The same, with so many bytes more in its initramfs.
    pub fn guest_with(&self, script: &str, ballast: usize) -> Guest {
        let place = tempfile::tempdir().unwrap();
        let mut tree = Initramfs::new();
        tree.copy("/bin/busybox", 0o755, &self.busybox).unwrap();
        tree.link("/bin/sh", "busybox").unwrap();
        tree.directory("/proc", 0o755).unwrap().directory("/tmp", 0o755).unwrap();
        tree.device("/dev/console", 0o600, (5, 1)).unwrap();
        let script = format!("#!/bin/sh\nbusybox mount -t proc proc /proc\n{script}\n");
        tree.file("/init", 0o755, script).unwrap();
        if ballast > 0 {
            tree.file("/ballast", 0o644, vec![1; ballast]).unwrap();
        }
        let initramfs = place.path().join("initramfs");
        tree.write(&mut std::fs::File::create(&initramfs).unwrap()).unwrap();
        Guest { spec: MachineSpec::linux("guest", &self.elf, initramfs, 128), place }
    }
}

/// A guest to be.
pub struct Guest {
    pub spec: MachineSpec,
    pub place: TempDir,
}

impl Guest {
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Starts it and lets it run.
    #[track_caller]
    pub fn start(&self, world: &World) -> Machine {
        self.start_with(world, Run::default())
    }

    /// The same, with a console log and whatever else `run` says.
    #[track_caller]
    pub fn start_with(&self, world: &World, run: Run) -> Machine {
        let mut machine = Machine::start(&world.qemu, &self.spec, run).unwrap();
        machine.go().unwrap();
        machine
    }
}

/// Waits for a line of the console that ends like this, and gives it.
#[track_caller]
pub fn line(machine: &mut Machine, end: &str) -> String {
    let found = wait(machine, &Wait::new(format!("the line “{end}”"), PATIENCE), |_, event| match event {
        Event::Line(line) if line.ends_with(end) => Verdict::Done(line.clone()),
        _ => Verdict::GoOn,
    });
    found.unwrap_or_else(|failure| panic!("{failure}: {:#?}", failure.evidence))
}

/// Whether a process is still there, as anything but a zombie.
pub fn is_alive(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X'])))
}

/// Whether `anchorhold` can make machines here; says why if not.
pub fn has_machines() -> bool {
    anchorhold_tests::machines::guest_kernel().is_some()
}
