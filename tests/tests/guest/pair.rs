//! The stand-in and the controller as a pair: from two images to a command's status, and each way in which it can fail.
//!
//! Two machines under emulation want a processor each for as long as they live: these run when ANCHORHOLD_HEAVY_TESTS is
//! set. Builds in pairs are tested by the suite `machines`.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anchorhold_tests::{machines, skip};
use anchorhold_vmm::controller::{self, root_and_network};
use anchorhold_vmm::exchange::Command;
use anchorhold_vmm::failure::{Failure, FailureClass};
use anchorhold_vmm::initramfs::Initramfs;
use anchorhold_vmm::kernel::{Feature, Modules};
use anchorhold_vmm::linux::End;
use anchorhold_vmm::pair::job::{self, Job, Topology};
use anchorhold_vmm::pair::{self, Keys, Limits, Pair, PairRun, PairSpec, Side};
use anchorhold_vmm::profile::{Language, Profile};
use anchorhold_vmm::qemu::Installed;
use anchorhold_vmm::readiness::Wait;
use anchorhold_vmm::report::{RunRequest, Streams, What};
use anchorhold_vmm::shares::{self, samba};
use anchorhold_vmm::spec::{Accelerator, Clock};
use anchorhold_vmm::wire::Kind;
use serde_json::json;

use crate::machine::{PATIENCE, Parts, parts};

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const LIMITS: Limits = Limits { boot: PATIENCE, stall: Duration::from_secs(120) };

fn images() -> Result<PathBuf, String> {
    let named = std::env::var_os("ANCHORHOLD_GUEST_IMAGES").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/anchorhold/guest-images"));
    let places = named.into_iter().chain(home).chain(["/var/cache/anchorhold/guest-images".into()]);
    let found = places.into_iter().find(|place| place.join("controller.erofs").is_file());
    found.ok_or_else(|| "no guest images here: scripts/guest-images makes them".into())
}

/// A store with one path in it, an exchange, and a pair that is described.
struct World {
    folder: tempfile::TempDir,
    parts: Parts,
    images: PathBuf,
    installed: Installed,
    spec: PairSpec,
    keys: Keys,
}

impl World {
    /// Says why and gives nothing where there is none, or nobody asked for it.
    fn new() -> Option<Self> {
        if std::env::var_os("ANCHORHOLD_HEAVY_TESTS").is_none() {
            skip("ANCHORHOLD_HEAVY_TESTS is not set: a pair of machines takes half a minute");
            return None;
        }
        match Self::find("standin", 256) {
            Ok(world) => Some(world),
            Err(reason) => {
                skip(&reason);
                None
            }
        }
    }

    /// With a guest of this profile, which has so many MiB.
    fn find(name: &str, memory: u64) -> Result<Self, String> {
        let (parts, images) = (parts()?, images()?);
        let installed =
            Installed::find(None, std::env::var_os("PATH").as_deref()).map_err(|failure| failure.to_string())?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let place = |name: &str| folder.path().join(name);
        fs::create_dir_all(place("store/aaa-tool/bin")).unwrap();
        fs::create_dir(place("xchg")).unwrap();
        let greet = place("store/aaa-tool/bin/greet");
        fs::write(&greet, "#!/bin/sh\necho \"hello $1\"\n").unwrap();
        let executable = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        fs::set_permissions(&greet, executable).unwrap();
        let modules = Modules::open(&parts.kernel.modules).unwrap();
        let side = |name: &str, memory: u64, tree: Initramfs| {
            let initramfs = place(name);
            tree.write(&mut BufWriter::new(File::create(&initramfs).unwrap())).unwrap();
            let drives = vec![pair::root(images.join(format!("{name}.erofs")))];
            Side { memory, cores: 1, initramfs: Some(initramfs), drives }
        };
        let profile = Profile::built_in(name).unwrap();
        let spec = PairSpec {
            accelerator: Accelerator::Tcg,
            cpu: "max".into(),
            kernel: parts.elf.clone(),
            guest: side(name, memory, pair::initramfs_of_guest(&modules, &parts.agent, &profile).unwrap()),
            controller: side("controller", 256, pair::initramfs_of_controller(&modules, &parts.agent).unwrap()),
            profile,
            store: place("store"),
            exchange: place("xchg"),
            inputs: vec!["aaa-tool".into()],
        };
        let keys = Keys {
            key: fs::read(images.join("key")).unwrap(),
            known_hosts: fs::read(images.join("known_hosts")).unwrap(),
        };
        Ok(Self { folder, parts, images, installed, spec, keys })
    }

    fn boot(&self) -> Result<Pair, Failure> {
        Pair::boot(&self.installed, &self.spec, &self.keys, PairRun::default(), LIMITS)
    }

    /// One that stands, and has its drives.
    fn mounted(&self) -> Pair {
        let mut pair = self.boot().unwrap_or_else(|failure| panic!("{failure}\n{:?}", failure.evidence));
        self.mount(&mut pair);
        pair
    }

    fn mount(&self, pair: &mut Pair) {
        let mounted = pair.mount(&self.spec.store, &self.spec.exchange);
        mounted.unwrap_or_else(|failure| panic!("{failure}\n{:?}", failure.evidence));
    }

    fn job(&self) -> Job {
        let path = |name: &str| self.images.join(name);
        Job {
            pair: self.spec.clone(),
            topology: Topology::Pair,
            wire: Kind::Dgram,
            saved: None,
            clock: Clock::Virtual,
            key: path("key"),
            known_hosts: path("known_hosts"),
            qemu: None,
            limits: LIMITS,
            limit: None,
            console_limit: 1 << 20,
            exchange_limit: u64::MAX,
            watched: vec![self.spec.exchange.clone()],
        }
    }

    fn exchange(&self) -> &Path {
        &self.spec.exchange
    }
}

fn tried(pair: &mut Pair, line: &str) -> Result<(End, String), Failure> {
    let mut said = Vec::new();
    let end = pair.run(line, &Wait::new("a line's status", PATIENCE), &mut |bytes| {
        said.extend(bytes);
        Ok(())
    })?;
    Ok((end, String::from_utf8_lossy(&said).into_owned()))
}

fn run(pair: &mut Pair, line: &str) -> (End, String) {
    tried(pair, line).unwrap_or_else(|failure| panic!("{failure}\n{:?}", failure.evidence))
}

#[track_caller]
fn is(failure: &Failure, class: FailureClass, machine: &str, words: &str) {
    let told = failure.to_string();
    assert_eq!((failure.class, &*failure.machine), (class, machine), "{told}\n{:?}", failure.evidence);
    assert!(told.contains(words), "{told}");
}

#[test]
fn a_command_runs_in_the_guest_with_both_drives_and_its_status_comes_back() {
    let Some(world) = World::new() else { return };
    let began = Instant::now();
    let told = |what: &str| println!("{what}: {:.2} s", began.elapsed().as_secs_f32());
    let mut pair = world.boot().unwrap_or_else(|failure| panic!("{failure}\n{:?}", failure.evidence));
    told("stands");
    let odd = "line\nquote ' \" percent % dollar $(id) end ";
    let command = Command::new("/nix/store/aaa-tool/bin/greet").arguments([odd]).variable("PATH", "/bin");
    let mut said = Vec::new();
    let mut take = |_: bool, bytes: &[u8]| -> io::Result<()> {
        said.extend(bytes);
        Ok(())
    };
    let ended = job::in_standing(&mut pair, &world.job(), &command.directory("/tmp"), None, &mut take);
    let ended = ended.unwrap_or_else(|failure| panic!("{failure}\n{:?}", failure.evidence));
    assert_eq!((ended, String::from_utf8_lossy(&said).into_owned()), (End::Status(0), format!("hello {odd}\n")));
    told("a command has run, and the drives are given back");

    // The same pair again, with a new account and a new exchange.
    world.mount(&mut pair);
    told("mounted again");
    let (end, said) = run(&mut pair, "echo made > /xchg/out && exit 3");
    assert_eq!(end, End::Status(3), "{said}");
    assert_eq!(fs::read_to_string(world.exchange().join("out")).unwrap(), "made\n");
    let (_, said) = run(&mut pair, "ls /nix/store");
    assert_eq!(said, "aaa-tool\n");
    // What a guest might leave behind: none of it is what it looks like to the guest.
    let line = "cp /bin/busybox /xchg/set; chmod 6755 /xchg/set; mknod /xchg/device b 8 0; mknod /xchg/pipe p
        ln -s /etc/passwd /xchg/link; chown 1234:1234 /xchg/set; true";
    run(&mut pair, line);
    for entry in fs::read_dir(world.exchange()).unwrap() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let entry = entry.unwrap();
        let found = entry.metadata().unwrap();
        assert!(found.is_file() && found.permissions().mode() & 0o6000 == 0, "{entry:?}: {found:?}");
        assert_eq!(found.uid(), nix::unistd::geteuid().as_raw(), "{entry:?}");
    }
    // Without the password there is no way in, and the one of before is none any more.
    let wrong = format!(
        "mount -t cifs //192.168.0.2/xchg /tmp -o {}",
        shares::smb_options(controller::ADDRESS, &samba::Account::new("nixbld").unwrap(), false)
    );
    let (end, said) = run(&mut pair, &wrong);
    assert_ne!(end, End::Status(0), "{said}");
}

#[test]
fn nobody_is_reached_from_the_wire() {
    let Some(world) = World::new() else { return };
    // Somebody listens on the host, at every address of it.
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let reached = std::net::TcpStream::connect(("127.0.0.1", port));
    assert!(reached.is_ok(), "the host itself reaches it: {reached:?}");
    let mut pair = world.boot().unwrap_or_else(|failure| panic!("{failure}\n{:?}", failure.evidence));
    let mut addresses =
        vec!["127.0.0.1".to_owned(), "10.0.2.2".into(), "192.168.0.254".into(), "169.254.169.254".into()];
    let own = std::process::Command::new("hostname").arg("-I").output().map(|output| output.stdout).unwrap_or_default();
    addresses
        .extend(String::from_utf8_lossy(&own).split_whitespace().filter(|one| one.contains('.')).map(str::to_owned));
    for address in addresses {
        let (end, said) = run(&mut pair, &format!("nc -w 2 {address} {port} < /dev/null"));
        assert_ne!(end, End::Status(0), "{address}: {said}");
    }
    for server in ["192.168.0.2", "192.168.0.253", "10.0.2.3"] {
        let (_, said) = run(&mut pair, &format!("timeout 4 nslookup example.com {server} 2>&1"));
        assert!(!said.contains("Name:"), "{said}");
    }
    // Another pair, at the same addresses, is somewhere else.
    let Some(other) = World::new() else { return };
    let mut others = other.mounted();
    world.mount(&mut pair);
    fs::write(world.exchange().join("one"), "").unwrap();
    fs::write(other.exchange().join("other"), "").unwrap();
    assert_eq!(run(&mut pair, "ls /xchg").1, "one\n");
    assert_eq!(run(&mut others, "ls /xchg").1, "other\n");
    // The controller is the only neighbour.
    let (_, said) = run(&mut pair, "cat /proc/net/arp; ip route; ip -6 route 2>/dev/null");
    assert!(!said.contains("default"), "{said}");
    let neighbours = said.lines().filter(|line| line.contains("52:54:00")).count();
    assert_eq!(neighbours, 1, "{said}");
}

#[test]
fn a_guest_with_another_key_is_not_logged_into() {
    let Some(mut world) = World::new() else { return };
    // The client's own public key, which is a good one, and not the guest's.
    let other = fs::read_to_string(world.images.join("key.pub")).unwrap();
    world.keys.known_hosts = format!("192.168.0.1 {other}").into_bytes();
    is(&world.boot().unwrap_err(), FailureClass::WrongKey, "guest", "logging into the guest failed");
}

#[test]
fn a_guest_whose_port_is_open_and_silent_is_told_from_one_that_is_not_there() {
    let Some(mut world) = World::new() else { return };
    let modules = Modules::open(&world.parts.kernel.modules).unwrap();
    let mut start = root_and_network(GUEST);
    let silent = Command::new("/bin/nc").arguments(["-ll", "-p", "22", "-e", "/bin/sleep", "1000"]);
    let command = Ok(silent.variable("PATH", "/bin"));
    start.push(What::Run(RunRequest { command, user: None, streams: Streams::Together, alone: false }));
    let features = [Feature::Virtio, Feature::Port, Feature::Network, Feature::Disk, Feature::Erofs];
    let tree = anchorhold_vmm::agent::image(&world.parts.agent, &modules.closure(features).unwrap(), &start).unwrap();
    let initramfs = world.folder.path().join("silent");
    tree.write(&mut BufWriter::new(File::create(&initramfs).unwrap())).unwrap();
    world.spec.guest.initramfs = Some(initramfs);
    let limits = Limits { boot: Duration::from_secs(60), ..LIMITS };
    let failure = Pair::boot(&world.installed, &world.spec, &world.keys, PairRun::default(), limits).unwrap_err();
    is(&failure, FailureClass::SshSilent, "guest", "the guest's SSH server");
}

#[test]
fn whichever_machine_is_killed_is_named_at_once() {
    let Some(world) = World::new() else { return };
    for machine in ["guest", "controller"] {
        let mut pair = world.mounted();
        let (guest, controller) = pair.machines();
        let id = if machine == "guest" { guest.unwrap().process_id() } else { controller.process_id() };
        let id = nix::unistd::Pid::from_raw(id.cast_signed());
        // It is known to be in the middle of the command by what that says.
        let mut killed = false;
        let failure = pair.run("echo begun; sleep 1000", &Wait::new("the command's status", PATIENCE), &mut |_| {
            if !std::mem::replace(&mut killed, true) {
                nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL).unwrap();
            }
            Ok(())
        });
        is(&failure.unwrap_err(), FailureClass::QemuKilled, machine, "the command's status");
    }
}

#[test]
fn a_wire_that_is_cut_ends_the_session_and_never_makes_a_status() {
    let Some(world) = World::new() else { return };
    let mut pair = world.boot().unwrap_or_else(|failure| panic!("{failure}\n{:?}", failure.evidence));
    // With the wire whole the command's own 255 is a status.
    let command = |script: &str| Command::new("/bin/sh").arguments(["-c", script]).variable("PATH", "/bin");
    let ended = job::in_standing(&mut pair, &world.job(), &command("exit 255"), None, &mut |_, _| Ok(()));
    assert_eq!(ended.unwrap_or_else(|failure| panic!("{failure}")), End::Status(255));
    let (_, controller) = pair.machines();
    controller.execute("set_link", &json!({ "name": "wire0", "up": false })).unwrap();
    let _ = fs::remove_file(world.exchange().join(job::STATUS_FILE));
    // What mounts the drives is the first to notice.
    let failure = job::in_standing(&mut pair, &world.job(), &command("exit 0"), None, &mut |_, _| Ok(())).unwrap_err();
    is(&failure, FailureClass::SessionLost, "guest", "255");
}

#[test]
fn a_guest_that_freezes_has_no_status() {
    let Some(world) = World::new() else { return };
    let mut pair = world.boot().unwrap_or_else(|failure| panic!("{failure}\n{:?}", failure.evidence));
    let mut job = world.job();
    let command = Command::new("/bin/sh").arguments(["-c", "echo begun; poweroff -f"]).variable("PATH", "/bin");
    let failure = job::in_standing(&mut pair, &job, &command, None, &mut |_, _| Ok(())).unwrap_err();
    is(&failure, FailureClass::PowerOff, "guest", "the command's status");
    // And one that does nothing for ever ends by its deadline.
    let mut pair = world.boot().unwrap_or_else(|failure| panic!("{failure}\n{:?}", failure.evidence));
    job.limit = Some(3000);
    let command = Command::new("/bin/sh").arguments(["-c", "sleep 1000"]).variable("PATH", "/bin");
    let failure = job::in_standing(&mut pair, &job, &command, None, &mut |_, _| Ok(())).unwrap_err();
    is(&failure, FailureClass::Deadline, "guest", "within 3.0 s");
}

/// A file system of its own, which goes with this.
struct Limited {
    place: PathBuf,
}

impl Limited {
    fn new(place: &Path, size: &str) -> Result<Self, String> {
        let options = format!("size={size}");
        nix::mount::mount(Some("tmpfs"), place, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str()))
            .map_err(|errno| format!("no file system of limited size can be mounted here: {errno}"))?;
        Ok(Self { place: place.to_owned() })
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.place, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A guest's tools may report lost writes as done. Two protections: a client cannot keep what it writes, and the host looks itself,
/// whatever a guest makes of what it was told.
#[test]
fn a_full_exchange_is_noticed_whatever_the_guest_says() {
    let Some(world) = World::new() else { return };
    let _limited = match Limited::new(world.exchange(), "2m") {
        Ok(limited) => limited,
        Err(reason) => return skip(&reason),
    };
    let mut pair = world.mounted();
    let fill = "dd if=/dev/zero of=/xchg/big bs=64k count=100 2>/dev/null; echo x > /xchg/small && sync";
    // The guest is told: the server lets no client keep what it writes, and each write waits for it.
    let (end, said) = run(&mut pair, fill);
    assert_ne!(end, End::Status(0), "{said}");
    // And what it makes of that is not believed, though there is room again in the end.
    fs::remove_file(world.exchange().join("big")).unwrap();
    pair.unmount().unwrap_or_else(|failure| panic!("{failure}"));
    let script = format!("{fill}; rm /xchg/big; exit 0");
    let command = Command::new("/bin/sh").arguments(["-c".to_owned(), script]).variable("PATH", "/bin");
    let failure = job::in_standing(&mut pair, &world.job(), &command, None, &mut |_, _| Ok(())).unwrap_err();
    is(&failure, FailureClass::ExchangeFull, "", "ran full");
}

/// What is written for cmd.exe, read by one: Wine's.
#[test]
fn cmd_reads_what_is_written_for_it() {
    if machines::wine_images().is_none() {
        return;
    }
    let world = World::find("wine", 1024).unwrap_or_else(|why| panic!("{why}"));
    let program = world.folder.path().join("store/aaa-tool/show tool.exe");
    if !machines::windows_program(&program) {
        return;
    }
    let mut pair = world.boot().unwrap_or_else(|failure| panic!("{failure}\n{:?}", failure.evidence));
    let mut job = world.job();
    job.pair.profile.command.form = Language::Cmd;
    job.pair.profile.command.start =
        "cd /xchg && /usr/bin/windows 'X:\\command.cmd'; s=$?; echo $s > /xchg/status; exit $s".into();
    let arguments =
        ["100%", "end\\", "a b", "", "a&b|c<d>e^f(g)", "!x!", "%PATH%", "=,;", "a\\\\b c\\", "*", "two\\\\", "it's"];
    let variables = [
        ("AND", "x&y|%PATH%"),
        ("QUOTED", "say \"a&b\" & go"),
        ("SPACE", " around "),
        ("ODD", "one \" quote & more ^ (x) | <y>"),
        ("SIGNS", "^caret ! bang %1 %% 100%"),
        ("QUOTES", "q\"\"q&x"),
        ("BACK", "back\\"),
        ("EQUALS", "a=b"),
    ];
    let of = |status: &str, directory: &str| {
        let mut command = Command::new("S:\\aaa-tool\\show tool.exe").arguments(["X:\\shown", status]);
        command = command.arguments(arguments).directory(directory);
        variables.iter().fold(command, |command, (name, value)| command.variable(*name, *value))
    };
    fs::create_dir(world.exchange().join("work here")).unwrap();
    let mut run = |command: &Command| {
        let mut said = Vec::new();
        let end = job::in_standing(&mut pair, &job, command, None, &mut |_, bytes| {
            said.extend(bytes);
            Ok(())
        });
        let end = end.unwrap_or_else(|failure| panic!("{failure}\n{:?}", failure.evidence));
        (end, String::from_utf8_lossy(&said).into_owned())
    };
    let (end, said) = run(&of("37", "X:\\work here"));
    assert_eq!(end, End::Status(37), "{said}");
    let mut lines: Vec<&str> = said.split('\n').collect();
    lines.sort();
    assert_eq!(lines, ["", "complained", "said"]);
    let shown = machines::Shown::of(&world.exchange().join("shown"));
    assert_eq!(shown.arguments, arguments);
    for (name, value) in variables {
        assert_eq!(shown.environment.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(shown.places[0], "X:\\work here");
    // A directory that is not there has its own status.
    fs::remove_file(world.exchange().join("shown")).unwrap();
    let (end, said) = run(&of("37", "X:\\none"));
    assert_eq!(end, End::Status(125), "{said}");
    assert!(!world.exchange().join("shown").exists());
}
