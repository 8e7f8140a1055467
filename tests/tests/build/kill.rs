//! Killed at any instant: nothing lives on, nothing is half there, and the next call does the rest.
//!
//! Some hundred kills by default; `ANCHORHOLD_KILLS=1000` in the environment asks for so many of each kind, and `ANCHORHOLD_SEED` for the
//! instants of a run that has failed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use anchorhold_tests::PATIENCE;
use anchorhold_tests::host::{descendants, poll_until, wait_for_end};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::recipe::Recipe;
use crate::world::{Gate, World};

/// How many kills of each kind, if `ANCHORHOLD_KILLS` does not say.
const ROUNDS: u32 = 50;

/// No round is begun after this time, unless `ANCHORHOLD_KILLS` says how many there are.
const AT_MOST: Duration = Duration::from_secs(30);

/// Small and repeatable: xorshift.
struct Random(u64);

impl Random {
    /// Of `ANCHORHOLD_SEED`, or another one each time; said, so that a failure can be repeated.
    fn new() -> Self {
        let given = std::env::var("ANCHORHOLD_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = given.unwrap_or_else(now) | 1;
        println!("ANCHORHOLD_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}

/// Four derivations that need one another, and what they must give.
struct Work {
    world: World,
    marker: String,
    top: String,
    all: Vec<String>,
    /// The archive hashes of everything, as a call that nobody disturbs has built it.
    expected: BTreeMap<String, String>,
    /// The outputs of the last one.
    outputs: Vec<String>,
    /// How long that took.
    takes: Duration,
}

impl Work {
    fn new(name: &str) -> Self {
        let world = World::new();
        let marker = format!("killed-{}-{name}", std::process::id());
        let recipe = |name: &str, needs: &str| {
            // One that loses a process of its own ends there: else it would make something else and call it done.
            let script = format!(
                ": {marker}; set -e; mkdir $out $dev; for i in 1 2 3 4 5 6 7 8; do head -c 20000 /dev/zero > $out/$i; echo {needs} > $dev/$i; done; ln $out/1 $out/same"
            );
            Recipe::new(&world, name, &script).outputs(&["out", "dev"])
        };
        let one = world.derivation(&recipe("one", ""));
        let two = world.derivation(&recipe("two", "$one").needs(&world, "one", &one, "out"));
        let three = world.derivation(&recipe("three", ""));
        let four =
            recipe("four", "$two $three").needs(&world, "two", &two, "dev").needs(&world, "three", &three, "out");
        let top = world.derivation(&four);
        // Keeps derivations and tools, not what is built.
        symlink(&top, world.root().join("nix/var/nix/gcroots/top")).unwrap();
        let all = vec![one, two, three, top.clone()];
        let mut work =
            Self { world, marker, top, all, expected: BTreeMap::new(), outputs: Vec::new(), takes: Duration::ZERO };
        let begun = Instant::now();
        let ended = work.world.build(&[&work.top], &["--jobs", "2"]);
        work.takes = begun.elapsed();
        assert_eq!(ended.code, 0, "{}", ended.err);
        work.expected = work.hashes();
        work.outputs = ["out", "dev"].map(|output| work.world.output(&work.top, output)).to_vec();
        assert_eq!(work.expected.len(), 4 + 1 + 8);
        work
    }

    fn hashes(&self) -> BTreeMap<String, String> {
        let said = self.world.said(&["store", "path-info", "--json", "--all"]);
        let facts: Vec<Value> = serde_json::from_str(&said).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        facts.iter().map(|one| (text(&one["path"]), text(&one["narHash"]))).collect()
    }

    /// Processes of ours that run: builders by their script, all others by the store that they were told of.
    fn alive(&self) -> Vec<String> {
        let root = self.world.root().to_string_lossy().into_owned();
        let own = std::process::id().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == own || name.parse::<i32>().is_err() {
                continue;
            }
            let read = |file: &str| {
                String::from_utf8_lossy(&fs::read(entry.path().join(file)).unwrap_or_default()).into_owned()
            };
            if read("cmdline").contains(&self.marker) || read("environ").contains(&root) {
                found.push(format!("{name} {}", read("cmdline")));
            }
        }
        found
    }

    /// Fails unless everything is as after a call that ended by itself, but for what may be missing.
    /// Whether something was missing.
    #[track_caller]
    fn check(&self, round: &str) -> bool {
        let mut alive = Vec::new();
        let dead = poll_until(PATIENCE, || {
            alive = self.alive();
            alive.is_empty()
        });
        assert!(dead, "{round}: alive: {alive:?}");
        self.world.is_whole();
        for (path, hash) in self.hashes() {
            assert_eq!(self.expected.get(&path), Some(&hash), "{round}: {path}");
        }
        let ended = self.world.build(&[&self.top], &["--jobs", "2"]);
        assert_eq!(ended.code, 0, "{round}: {}", ended.err);
        let some_were_missing = self.all.iter().any(|derivation| ended.status(derivation) == "Built");
        if some_were_missing {
            assert_eq!(self.world.leftovers(), Vec::<String>::new(), "{round}: directories of killed builds are left");
        }
        // The inputs of what was there already need not be.
        let hashes = self.hashes();
        for path in &self.outputs {
            assert!(hashes.contains_key(path), "{round}: {path} is missing");
        }
        assert!(hashes.iter().all(|(path, hash)| self.expected.get(path) == Some(hash)), "{round}");
        some_were_missing
    }

    /// Nothing but what is registered lies in the store.
    #[track_caller]
    fn nothing_is_left_over(&self) {
        self.world.said(&["store", "gc"]);
        let mut valid: Vec<String> = self.world.valid();
        valid.push("/nix/store/.links".into());
        valid.sort();
        let mut there: Vec<String> = fs::read_dir(self.world.real("/nix/store"))
            .unwrap()
            .map(|entry| format!("/nix/store/{}", entry.unwrap().file_name().to_string_lossy()))
            .collect();
        there.sort();
        assert_eq!(there, valid);
        assert_eq!(fs::read_dir(self.world.path("tmp")).unwrap().count(), 0, "files are left in TMPDIR");
    }

    /// So many rounds: a call, `killed` at some instant, and what must hold then. Before each, what was built is removed.
    fn rounds(&self, killed: impl Fn(&mut Random, &mut std::process::Child, Duration)) {
        let wanted: Option<u32> = std::env::var("ANCHORHOLD_KILLS").ok().and_then(|count| count.parse().ok());
        let (mut random, begun) = (Random::new(), Instant::now());
        let (mut done, mut met) = (0, 0);
        while done < wanted.unwrap_or(ROUNDS) && (wanted.is_some() || begun.elapsed() < AT_MOST) {
            self.world.said(&["store", "gc"]);
            let instant = Duration::from_micros(random.below(self.takes.as_micros() as u64));
            let mut child = self
                .world
                .command(["build", "--jobs", "2", &self.top])
                .process_group(0)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            killed(&mut random, &mut child, instant);
            met += u32::from(self.check(&format!("round {done}, after {instant:?}")));
            done += 1;
        }
        println!("{done} rounds in {:?}, {met} of which met something unfinished", begun.elapsed());
        assert!(met > 0, "all came too late to be a test");
        self.nothing_is_left_over();
    }
}

#[test]
fn a_call_that_is_killed_at_any_instant_loses_nothing() {
    let work = Work::new("call");
    work.rounds(|_, child, instant| {
        // Not to wait for anything: the instant itself is what is tried.
        std::thread::sleep(instant);
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

/// A launcher, a room's first process, a builder: whichever it meets.
#[test]
fn a_call_that_loses_any_of_its_processes_ends_and_loses_nothing() {
    let work = Work::new("process");
    work.rounds(|random, child, instant| {
        std::thread::sleep(instant);
        let mut below = Vec::new();
        let own = child.id().try_into().unwrap();
        poll_until(PATIENCE, || {
            below = descendants(own);
            !below.is_empty() || wait_for_end(own, Duration::ZERO)
        });
        if !below.is_empty() {
            let victim = &below[random.below(below.len() as u64) as usize];
            let _ = kill(Pid::from_raw(victim.pid), Signal::SIGKILL);
        }
        assert!(
            wait_for_end(child.id().try_into().unwrap(), PATIENCE),
            "it waits for ever for the process that was killed"
        );
        child.wait().unwrap();
    });
}

/// A derivation whose builder waits, says so, and leaves something behind if it can.
fn waiting(world: &World, name: &str) -> String {
    let script = "mkdir $out; echo x > $out/x; echo x > /build/x; echo here; while ! test -e /gate/open; do :; done";
    world.derivation(&Recipe::new(world, name, script))
}

fn arguments<'a>(gate: &'a Gate, more: &[&'a str]) -> Vec<&'a str> {
    [&["build", "--option", "timeout", "60", "--option", "extra-sandbox-paths", &gate.option], more].concat()
}

#[test]
fn a_killed_call_takes_its_builds_with_it_and_the_next_one_cleans_up() {
    let world = World::new();
    let gate = world.gate();
    let derivation = waiting(&world, "waits");
    let mut running = world.start(&arguments(&gate, &[&derivation]));
    running.line_with("> here");
    let below = running.0.processes();
    assert!(below.iter().any(|process| process.command_line().contains("echo here")), "{below:?}");
    running.0.signal(Signal::SIGKILL);
    assert_eq!(running.ended().status, 128 + 9);
    for process in below {
        assert!(wait_for_end(process.pid, PATIENCE), "{process:?} lives on");
    }
    assert_eq!(world.leftovers().len(), 1, "nobody could clean up yet");
    world.is_whole();
    assert!(!world.valid().contains(&world.output(&derivation, "out")));
    gate.open();
    let next = world.build(&[&derivation], &["--option", "extra-sandbox-paths", &gate.option]);
    assert_eq!((next.code, next.status(&derivation)), (0, "Built"), "{}", next.err);
    assert_eq!(world.leftovers(), Vec::<String>::new());
    world.is_whole();
}

/// Somebody pressed Ctrl-C, closed the terminal, or stopped the service.
#[test]
fn an_interrupted_call_ends_its_builds_and_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let world = World::new();
        let gate = world.gate();
        let derivation = waiting(&world, "interrupted");
        let mut running = world.start(&arguments(&gate, &[&derivation]));
        running.line_with("> here");
        let below = running.0.processes();
        running.0.signal(signal);
        let ended = running.ended();
        assert_ne!(ended.status, 0, "{signal}: {}", ended.stdout);
        for process in below {
            assert!(wait_for_end(process.pid, PATIENCE), "{signal}: {process:?} lives on");
        }
        assert!(!world.real(&world.output(&derivation, "out")).exists());
        world.is_whole();
        gate.open();
        let next = world.build(&[&derivation], &["--option", "extra-sandbox-paths", &gate.option]);
        assert_eq!(next.code, 0, "{signal}: {}", next.err);
        assert_eq!(world.leftovers(), Vec::<String>::new(), "{signal}");
    }
}

/// The build that it had is lost, the others are not.
#[test]
fn a_launcher_that_dies_is_told_and_replaced() {
    let world = World::new();
    let gate = world.gate();
    let derivation = waiting(&world, "loses");
    let good: Vec<String> =
        (0..3).map(|number| world.derivation(&Recipe::new(&world, &format!("good-{number}"), "echo > $out"))).collect();
    let all: Vec<&str> = [&derivation].into_iter().chain(&good).map(String::as_str).collect();
    let mut running = world.start(&arguments(&gate, &[&["--keep-going", "--jobs", "1"], &all[..]].concat()));
    running.line_with("> here");
    let launcher = descendants(running.0.pid()).into_iter().find(|process| process.parent == running.0.pid()).unwrap();
    kill(Pid::from_raw(launcher.pid), Signal::SIGKILL).unwrap();
    let ended = running.ended();
    assert_eq!(ended.status, 1, "{}", ended.stdout);
    assert!(ended.stdout.contains("the launcher process ended"), "{}", ended.stdout);
    for derivation in &good {
        assert!(world.valid().contains(&world.output(derivation, "out")), "{}", ended.stdout);
    }
    assert!(!world.valid().contains(&world.output(&derivation, "out")));
    assert_eq!(world.leftovers(), Vec::<String>::new());
    world.is_whole();
}
