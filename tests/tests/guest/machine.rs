//! A machine that a test starts by hand.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anchorhold_vmm::agent;
use anchorhold_vmm::initramfs::Initramfs;
use anchorhold_vmm::kernel::{Feature, Kernel, Modules};
use anchorhold_vmm::report::{Conversation, PORT_NAME, What};

/// How long a machine may take for anything: it is emulated, beside other loads.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// On a busy host an emulated kernel counts too few ticks of its timer and panics, so it is told not to count; and it
/// measures the processor's own clock wrongly, by a factor of fifteen and more, so it is told to take another.
const ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off nokaslr \
                         no_timer_check tsc=unstable clocksource=acpi_pm";

/// What all machines of these tests stand on.
pub struct Parts {
    pub kernel: Kernel,
    pub elf: PathBuf,
    pub agent: PathBuf,
    _scratch: tempfile::TempDir,
}

/// Finds the parts, or says why the test cannot run.
pub fn parts() -> Result<Parts, String> {
    if Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Err("no qemu-system-x86_64 here".into());
    }
    let named = std::env::var_os("ANCHORHOLD_GUEST_KERNEL").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/anchorhold/guest-kernel"));
    let places: Vec<PathBuf> =
        named.into_iter().chain(home).chain(["/var/cache/anchorhold/guest-kernel".into()]).collect();
    let kernel = Kernel::first_of(&places).map_err(|error| error.to_string())?;
    // Beside the kernel, where whoever made it keeps it; others who find nothing there take it out for themselves.
    let beside = kernel.image.parent().unwrap_or(Path::new("/"));
    let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
    let elf =
        kernel.extracted(beside).or_else(|_| kernel.extracted(scratch.path())).map_err(|error| error.to_string())?;
    let agent = without_debug_information(&agent()?, scratch.path())?;
    Ok(Parts { kernel, elf, agent, _scratch: scratch })
}

/// The agent: named, or beside the program, or beside the tests.
fn agent() -> Result<PathBuf, String> {
    let named = std::env::var_os("ANCHORHOLD_AGENT").map(PathBuf::from);
    let beside_program =
        std::env::var_os("ANCHORHOLD_BIN").map(|path| PathBuf::from(path).with_file_name(agent::FILE_NAME));
    let beside_us = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.parent()?.join(agent::FILE_NAME)));
    let found = named.into_iter().chain(beside_program).chain(beside_us).find(|path| path.is_file());
    found.ok_or_else(|| "the agent is not built: cargo build -p anchorhold-agent".to_owned())
}

/// A debug build's agent is mostly about itself: 70 MB, more than a small guest has room for when it unpacks them.
fn without_debug_information(agent: &Path, into: &Path) -> Result<PathBuf, String> {
    let stripped = into.join(agent::FILE_NAME);
    let output = Command::new("strip").arg("-o").arg(&stripped).arg(agent).output();
    match output {
        Ok(output) if output.status.success() => Ok(stripped),
        Ok(output) => Err(format!("strip of the agent: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("strip, of binutils, does not run: {error}")),
    }
}

/// A machine, which goes when this is dropped.
pub struct Machine {
    child: Child,
    pub port: Conversation,
    folder: tempfile::TempDir,
}

impl Parts {
    /// An image with the modules for these features and this at its start.
    pub fn image(&self, features: &[Feature], start: &[What]) -> Initramfs {
        let modules = Modules::open(&self.kernel.modules).unwrap();
        let features = [Feature::Virtio, Feature::Port].into_iter().chain(features.iter().copied());
        agent::image(&self.agent, &modules.closure(features).unwrap(), start).unwrap()
    }

    /// Starts a machine of `memory` MiB with this image, and further arguments of QEMU's. `wire` becomes its descriptor 0.
    pub fn start(&self, memory: u64, image: &Initramfs, arguments: &[String], wire: Option<Stdio>) -> Machine {
        image.check_fits(memory << 20).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let initrd = folder.path().join("initrd");
        image.write(&mut std::io::BufWriter::new(File::create(&initrd).unwrap())).unwrap();
        let socket = folder.path().join("port");
        let listener = UnixListener::bind(&socket).unwrap();
        let console = folder.path().join("console");
        let child = Command::new("qemu-system-x86_64")
            .args(["-M", "pc", "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-monitor", "none", "-m", &memory.to_string()])
            .arg("-kernel")
            .arg(&self.elf)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", ARGUMENTS])
            .args(["-chardev", &format!("file,id=console,path={}", console.display()), "-serial", "chardev:console"])
            .args(["-device", "virtio-serial-pci", "-chardev", &format!("socket,id=port,path={}", socket.display())])
            .args(["-device", &format!("virtserialport,chardev=port,name={PORT_NAME}")])
            .args(arguments)
            .stdin(wire.unwrap_or_else(Stdio::null))
            .stdout(File::create(folder.path().join("said")).unwrap())
            .stderr(File::create(folder.path().join("complained")).unwrap())
            .spawn()
            .unwrap();
        let mut machine = Starting { child: Some(child) };
        listener.set_nonblocking(true).unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        let port = loop {
            match listener.accept() {
                Ok((port, _)) => break port,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            let ended = machine.child.as_mut().unwrap().try_wait().unwrap();
            let late = std::time::Instant::now() > deadline;
            assert!(ended.is_none() && !late, "{ended:?}: {}", read(&folder.path().join("complained")));
            std::thread::sleep(Duration::from_millis(5));
        };
        let port = Conversation::new(port.into()).unwrap();
        Machine { child: machine.child.take().unwrap(), port, folder }
    }
}

/// Killed when a test ends before it has become a machine.
struct Starting {
    child: Option<Child>,
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

impl Machine {
    /// What is on its console.
    pub fn console(&self) -> String {
        read(&self.folder.path().join("console"))
    }

    /// Asks for something, which must go well.
    pub fn must(&mut self, what: What) {
        if let Err(error) = self.port.request(what, PATIENCE, &mut |_| ()) {
            panic!("{error}\n{}", self.console());
        }
    }

    /// Waits for the end of QEMU.
    pub fn ended(mut self) -> std::process::ExitStatus {
        let mut ended = None;
        anchorhold_tests::host::poll_until(PATIENCE, || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap_or_else(|| panic!("QEMU does not end\n{}", self.console()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
