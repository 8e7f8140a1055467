//! Measures saving and reviving a Linux guest, ours and the way of 2014 (everything through gzip), for `scripts/bench`.
//!
//! `template KERNEL-FOLDER AGENT MEMORY-MIB FILL-MIB GUESTS ROUNDS DIRECTORY` prints one object of JSON; times are in milliseconds.

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anchorhold_vmm::failure::Failure;
use anchorhold_vmm::kernel::{Feature, Kernel, Modules};
use anchorhold_vmm::linux::Agent;
use anchorhold_vmm::machine::{Event, Machine, Run};
use anchorhold_vmm::memory::{self, Template};
use anchorhold_vmm::qemu::Installed;
use anchorhold_vmm::readiness::{Verdict, Wait, wait};
use anchorhold_vmm::report::{PORT_NAME, What};
use anchorhold_vmm::spec::MachineSpec;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(600);
/// What one request to the agent writes.
const PIECE: usize = 2 << 20;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, agent, memory, fill, guests, rounds, directory] = arguments.as_slice() else {
        return Err("template KERNEL-FOLDER AGENT MEMORY-MIB FILL-MIB GUESTS ROUNDS DIRECTORY".into());
    };
    let directory = PathBuf::from(directory);
    let world = World::new(Path::new(kernel), Path::new(agent), memory.parse()?, &directory)?;
    let (fill, guests, rounds) = (fill.parse::<usize>()? << 20, guests.parse::<usize>()?, rounds.parse::<usize>()?);
    let mut told = json!({ "initramfs": fs::metadata(directory.join("initramfs"))?.len() });

    let template = directory.join("template");
    fs::create_dir_all(&template)?;
    let mut machine = world.filled(Run { memory: memory::backing(&template), ..Run::default() }, fill)?;
    let begun = Instant::now();
    machine.stop()?;
    let stopped = begun.elapsed();
    let saved = Template::save(&mut machine, &world.spec, &template)?;
    told["save"] = json!(ms(begun));
    told["stop"] = json!(stopped.as_secs_f64() * 1000.0);
    // What any way of saving has to do: the memory to the disk once.
    let begun = Instant::now();
    let copy = directory.join("copy");
    Command::new("cp").arg("--sparse=always").arg(template.join("ram")).arg(&copy).status()?;
    File::open(&copy)?.sync_all()?;
    told["write"] = json!(ms(begun));
    fs::remove_file(copy)?;
    told["ram"] = json!(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(template.join("ram"))?) * 512);
    told["device"] = json!(fs::metadata(template.join("device"))?.len());
    let mut running = Vec::new();
    let mut answer = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        let mut machine = saved.revive(&world.installed, &world.spec, Run::default())?;
        machine.go()?;
        running.push(ms(begun));
        ping(&mut machine)?;
        answer.push(ms(begun));
    }
    told["running"] = json!(running);
    told["answer"] = json!(answer);

    let begun = Instant::now();
    let mut crowd = Vec::new();
    for _ in 0..guests {
        let mut machine = saved.revive(&world.installed, &world.spec, Run::default())?;
        machine.go()?;
        crowd.push(machine);
    }
    for machine in &mut crowd {
        ping(machine)?;
    }
    told["crowd"] = json!(ms(begun));
    told["proportional"] = json!(crowd.iter().map(proportional).collect::<Option<Vec<u64>>>());
    drop(crowd);
    saved.verify()?;

    // The way of 2014: all of the memory through gzip, and back.
    let state = directory.join("state.gz");
    let mut machine = world.filled(Run::default(), fill)?;
    let begun = Instant::now();
    machine.stop()?;
    machine.execute("migrate-set-parameters", &json!({ "max-bandwidth": 1_u64 << 40 }))?;
    let mut gzip = gzip(&["-c"], Stdio::piped(), File::create(&state)?.into())?;
    pass(&mut machine, gzip.stdin.as_ref().ok_or("no pipe")?.as_fd(), "migrate")?;
    gzip.stdin.take();
    drop(machine);
    gzip.wait()?;
    told["gzip-save"] = json!(ms(begun));
    told["gzip-state"] = json!(fs::metadata(&state)?.len());
    let mut running = Vec::new();
    for _ in 0..rounds.clamp(1, 3) {
        let begun = Instant::now();
        let mut machine = Machine::start(&world.installed, &world.spec, Run { incoming: true, ..Run::default() })?;
        let mut gzip = self::gzip(&["-d", "-c"], File::open(&state)?.into(), Stdio::piped())?;
        pass(&mut machine, gzip.stdout.as_ref().ok_or("no pipe")?.as_fd(), "migrate-incoming")?;
        machine.go()?;
        running.push(ms(begun));
        ping(&mut machine)?;
        gzip.wait()?;
    }
    told["gzip-running"] = json!(running);
    println!("{told}");
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

struct World {
    installed: Installed,
    spec: MachineSpec,
}

impl World {
    fn new(kernel: &Path, agent: &Path, memory: u64, directory: &Path) -> Outcome<Self> {
        let installed = Installed::find(None, std::env::var_os("PATH").as_deref())?;
        let kernel = Kernel::at(kernel)?;
        let modules = Modules::open(&kernel.modules)?.closure([Feature::Virtio, Feature::Port])?;
        let tree = anchorhold_vmm::agent::image(agent, &modules, &[])?;
        let initramfs = directory.join("initramfs");
        tree.write(&mut BufWriter::new(File::create(&initramfs)?))?;
        let mut spec = MachineSpec::linux("guest", kernel.extracted(directory)?, initramfs, memory);
        spec.ports.push(PORT_NAME.to_owned());
        Ok(Self { installed, spec })
    }

    /// A guest that has something in its memory: half of it noise, half of it not.
    fn filled(&self, run: Run, size: usize) -> Outcome<Machine> {
        let mut machine = Machine::start(&self.installed, &self.spec, run)?;
        machine.go()?;
        let mut agent = Agent::default();
        agent.ready(&mut machine, &Wait::new("the agent", PATIENCE))?;
        let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
        for number in 0..size / PIECE {
            let mut content = vec![0; PIECE];
            for (at, word) in content.chunks_exact_mut(8).enumerate() {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                word.copy_from_slice(&if at % 2 == 0 { noise } else { 0x2020_6574_7865_7420 }.to_le_bytes());
            }
            let what = What::WriteFile { path: format!("/filled/{number}").into(), mode: 0o600, content };
            agent.request(&mut machine, what, &Wait::new("its memory to be filled", PATIENCE))?;
        }
        Ok(machine)
    }
}

fn ping(machine: &mut Machine) -> Result<(), Failure> {
    let mut agent = Agent::default();
    agent.skip_numbers(1 << 20);
    agent.request(machine, What::Ping, &Wait::new("the guest's answer", PATIENCE)).map(drop)
}

fn gzip(arguments: &[&str], input: Stdio, output: Stdio) -> std::io::Result<Child> {
    Command::new("gzip").args(arguments).stdin(input).stdout(output).spawn()
}

/// A migration over a descriptor, until it is completed.
fn pass(machine: &mut Machine, descriptor: std::os::fd::BorrowedFd<'_>, command: &str) -> Outcome<()> {
    let events = json!([{ "capability": "events", "state": true }]);
    machine.execute("migrate-set-capabilities", &json!({ "capabilities": events }))?;
    machine.execute_with("getfd", &json!({ "fdname": "state" }), Some(descriptor), PATIENCE)?;
    machine.execute(command, &json!({ "uri": "fd:state" }))?;
    wait(machine, &Wait::new("the migration", PATIENCE), |_, event| match event {
        Event::Qmp(event) if event.name == "MIGRATION" && event.text("status") == Some("completed") => {
            Verdict::Done(())
        }
        _ => Verdict::GoOn,
    })?;
    Ok(())
}

/// What a guest's process takes of the host's memory, shared pages shared, in KiB.
fn proportional(machine: &Machine) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", machine.process_id())).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}
