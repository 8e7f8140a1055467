//! Measures how a Linux guest reads a directory of its host, by every path that this library has, for `scripts/bench`.
//!
//! `reads KERNEL-FOLDER AGENT BUSYBOX TREE ROUNDS DIRECTORY` reads TREE, small files and one named `large`, by all paths in turn, and
//! prints one object of JSON: for each path the times, in milliseconds, of reading the small files for the first time and again, of
//! looking at each, and of reading the large one for the first time and again, each the least of all rounds; for images the time
//! of their making, too.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anchorhold_vmm::exchange::Command;
use anchorhold_vmm::kernel::{Feature, Kernel, Modules};
use anchorhold_vmm::linux::{Agent, End};
use anchorhold_vmm::machine::{Machine, Run};
use anchorhold_vmm::qemu::Installed;
use anchorhold_vmm::readiness::Wait;
use anchorhold_vmm::report::{MountRequest, PORT_NAME, RunRequest, Streams, What};
use anchorhold_vmm::shares::image::{self, Content, Form};
use anchorhold_vmm::shares::virtiofs::{self, Caching};
use anchorhold_vmm::shares::{self, Cache};
use anchorhold_vmm::spec::{Drive, MachineSpec, Share, ShareKind};
use serde_json::{Map, Value, json};

const PATIENCE: Duration = Duration::from_secs(600);
/// The guest's memory, in MiB: all of the tree has room in it.
const MEMORY: u64 = 1024;
const AT: &str = "/tree";
const NINE_P: &str = "nine-p";
/// Names in the order of [`Caching`].
const VIRTIOFS: [&str; 3] = ["virtiofs, all kept", "virtiofs, names kept", "virtiofs, nothing kept"];

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [kernel, agent, busybox, tree, rounds, directory] = arguments.as_slice() else {
        return Err("reads KERNEL-FOLDER AGENT BUSYBOX TREE ROUNDS DIRECTORY".into());
    };
    let rounds: usize = rounds.to_str().unwrap_or_default().parse()?;
    let mut told = Map::new();
    let mut paths = vec![
        ("9p, nothing kept", shares::nine_p(NINE_P, AT, true, Cache::None)),
        ("9p, all kept", shares::nine_p(NINE_P, AT, true, Cache::Loose)),
    ];
    let mut guest = Guest::new(kernel, agent, busybox, directory)?;
    guest.spec.shares.push(Share { tag: NINE_P.into(), path: tree.clone(), read_only: true, kind: ShareKind::NineP });
    for form in [Form::Squashfs, Form::Erofs] {
        let file = directory.join(form.kind());
        let Some(program) = form.program() else { continue };
        let begun = Instant::now();
        image::make(form, &program, &Content::Directory(tree.clone()), &file)?;
        told.insert(format!("{}, made", form.kind()), json!(ms(begun)));
        guest.spec.drives.push(Drive::read_only(form.kind(), file));
        paths.push((form.kind(), shares::disk(form.kind(), form, AT)));
    }
    // One for each: what is kept is the server's to say.
    let mut servers = Vec::new();
    for caching in Caching::ALL {
        let Ok(program) = virtiofs::program() else { break };
        let socket = directory.join(format!("{caching}.sock"));
        servers.push(virtiofs::Server::start(&program, tree, caching, &socket)?);
        let tag = caching.to_string();
        guest.spec.shares.push(Share { tag: tag.clone(), path: socket, read_only: true, kind: ShareKind::Virtiofs });
        paths.push((VIRTIOFS[caching as usize], shares::virtiofs(&tag, AT, true)));
    }
    let mut running = guest.start()?;
    let mut least = vec![[f64::INFINITY; 5]; paths.len()];
    for _ in 0..rounds {
        for ((_, mount), least) in paths.iter().zip(&mut least) {
            let times = running.read(mount.clone())?;
            *least = std::array::from_fn(|one| least[one].min(times[one]));
        }
    }
    for ((name, _), times) in paths.iter().zip(least) {
        told.insert((*name).into(), json!(times));
    }
    println!("{}", Value::Object(told));
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

struct Guest {
    installed: Installed,
    spec: MachineSpec,
}

impl Guest {
    fn new(kernel: &Path, agent: &Path, busybox: &Path, directory: &Path) -> Outcome<Self> {
        let installed = Installed::find(None, std::env::var_os("PATH").as_deref())?;
        let kernel = Kernel::at(kernel)?;
        let features = [
            Feature::Virtio,
            Feature::Port,
            Feature::NineP,
            Feature::Disk,
            Feature::Squashfs,
            Feature::Erofs,
            Feature::Virtiofs,
        ];
        let modules = Modules::open(&kernel.modules)?.closure(features)?;
        let mut tree = anchorhold_vmm::agent::image(agent, &modules, &[])?;
        tree.copy("/bin/busybox", 0o755, busybox)?;
        let initramfs = directory.join("initramfs");
        tree.write(&mut BufWriter::new(File::create(&initramfs)?))?;
        let mut spec = MachineSpec::linux("guest", kernel.extracted(directory)?, initramfs, MEMORY);
        spec.ports.push(PORT_NAME.to_owned());
        Ok(Self { installed, spec })
    }

    fn start(&self) -> Outcome<Running> {
        let mut machine = Machine::start(&self.installed, &self.spec, Run::default())?;
        machine.go()?;
        let mut agent = Agent::default();
        agent.ready(&mut machine, &Wait::new("the agent", PATIENCE))?;
        Ok(Running { machine, agent })
    }
}

struct Running {
    machine: Machine,
    agent: Agent,
}

impl Running {
    fn read(&mut self, mount: MountRequest) -> Outcome<[f64; 5]> {
        let target = mount.target.clone();
        self.ask(What::Mount(mount))?;
        let small = "cd /tree && b=/bin/busybox && $b find . -type f ! -name large | $b xargs $b cat";
        let large = "/bin/busybox cat /tree/large";
        self.forget()?;
        let times = [
            self.run(&format!("{small} >/dev/null"))?,
            self.run(&format!("{small} >/dev/null"))?,
            self.run("/bin/busybox find /tree -size +99999999")?,
            {
                self.forget()?;
                self.run(&format!("{large} >/dev/null"))?
            },
            self.run(&format!("{large} >/dev/null"))?,
        ];
        self.ask(What::Unmount(target))?;
        Ok(times)
    }

    /// What was read before is not kept.
    fn forget(&mut self) -> Outcome<()> {
        self.run("/bin/busybox sync; echo 3 >/proc/sys/vm/drop_caches").map(drop)
    }

    fn ask(&mut self, what: What) -> Outcome<()> {
        self.agent.request(&mut self.machine, what, &Wait::new("the guest's answer", PATIENCE))?;
        Ok(())
    }

    /// How long it takes.
    fn run(&mut self, script: &str) -> Outcome<f64> {
        let command = Command::new("/bin/busybox").arguments(["sh", "-ec", script]);
        let request = RunRequest { command: Ok(command), user: None, streams: Streams::Together, alone: false };
        let mut said = Vec::new();
        let begun = Instant::now();
        let end = self.agent.run(&mut self.machine, request, &Wait::new("its end", PATIENCE), &mut |_, bytes| {
            said.extend_from_slice(bytes);
            Ok(())
        })?;
        let took = ms(begun);
        if end != End::Status(0) || !said.is_empty() {
            return Err(format!("{script}: {end:?}: {}", String::from_utf8_lossy(&said)).into());
        }
        Ok(took)
    }
}
