//! Measures how long the controller of a pair takes to start, by its own clock, for `scripts/bench`.
//!
//! `controller KERNEL-FOLDER AGENT IMAGES ROUNDS DIRECTORY` starts the controller of IMAGES without a guest and prints one object of
//! JSON: in milliseconds, the times of the kernel's own start, of what the agent does until it is ready, and from there until
//! Samba is started and the guest's SSH is asked for the first time, of all rounds; and the size of the initramfs, in bytes.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::time::Duration;

use anchorhold_vmm::controller::Controller;
use anchorhold_vmm::exchange::Command;
use anchorhold_vmm::kernel::{Kernel, Modules};
use anchorhold_vmm::linux::{Agent, End};
use anchorhold_vmm::machine::{Machine, Run};
use anchorhold_vmm::pair::{CONTROLLER, CONTROLLER_MEMORY, initramfs_of_controller, root};
use anchorhold_vmm::profile::Profile;
use anchorhold_vmm::qemu::Installed;
use anchorhold_vmm::readiness::Wait;
use anchorhold_vmm::report::{PORT_NAME, RunRequest, Streams};
use anchorhold_vmm::shares::samba::Account;
use anchorhold_vmm::spec::{Card, MachineSpec};
use anchorhold_vmm::wire;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(600);

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [kernel, agent, images, rounds, directory] = arguments.as_slice() else {
        return Err("controller KERNEL-FOLDER AGENT IMAGES ROUNDS DIRECTORY".into());
    };
    let rounds: usize = rounds.to_str().unwrap_or_default().parse()?;
    let installed = Installed::find(None, std::env::var_os("PATH").as_deref())?;
    let kernel = Kernel::at(kernel)?;
    let initramfs = directory.join("initramfs");
    let tree = initramfs_of_controller(&Modules::open(&kernel.modules)?, agent)?;
    tree.write(&mut BufWriter::new(File::create(&initramfs)?))?;
    let size = initramfs.metadata()?.len();
    let mut spec = MachineSpec::linux(CONTROLLER, kernel.extracted(directory)?, initramfs, CONTROLLER_MEMORY);
    spec.ports.push(PORT_NAME.to_owned());
    spec.drives.push(root(images.join("controller.erofs")));
    spec.cards.push(Card { wire: "wire".to_owned(), address: anchorhold_vmm::controller::CONTROLLER_MAC.to_owned() });
    let desk = Controller {
        profile: Profile::built_in("standin")?,
        account: Account::new("nixbld")?,
        mounts: Vec::new(),
        key: std::fs::read(images.join("key"))?,
        known_hosts: std::fs::read(images.join("known_hosts"))?,
    };
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        for (all, time) in times.iter_mut().zip(started(&installed, &spec, &desk)?) {
            all.push(time);
        }
    }
    let [of_kernel, ready, asked] = times;
    println!("{}", json!({ "kernel": of_kernel, "ready": ready, "asked": asked, "initramfs": size }));
    Ok(())
}

/// The three times of one start.
fn started(installed: &Installed, spec: &MachineSpec, desk: &Controller) -> Outcome<[f64; 3]> {
    let (ours, _nobody, _) = wire::between_two(wire::Kind::Dgram)?;
    let mut run = Run::default();
    run.wires.insert("wire".to_owned(), ours);
    let mut machine = Machine::start(installed, spec, run)?;
    machine.go()?;
    let mut agent = Agent::default();
    let wait = Wait::new("the controller", PATIENCE);
    let started = agent.ready(&mut machine, &wait)?;
    agent.request_all(&mut machine, desk.files()?, &wait)?;
    agent.serve(&mut machine, "smbd", desk.server())?;
    // Where the pair asks for the guest's SSH, the clock is looked at instead.
    let clock = Command::new("/bin/cat").arguments(["/proc/uptime"]);
    let request = RunRequest { command: Ok(clock), user: None, streams: Streams::Together, alone: false };
    let mut said = Vec::new();
    let end = agent.run(&mut machine, request, &wait, &mut |_, bytes| {
        said.extend_from_slice(bytes);
        Ok(())
    })?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let (End::Status(0), Some(now)) = (&end, said.split(' ').next().and_then(|word| word.parse::<f64>().ok())) else {
        return Err(format!("the controller's clock: {end:?}: {said}").into());
    };
    let [began, up] = [started.began, started.up].map(|time| time.as_secs_f64() * 1000.0);
    Ok([began, up - began, now * 1000.0 - up])
}
