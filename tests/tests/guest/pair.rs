//! The controller and the stand-in on a wire of datagrams: from two images and two command lines to a program that ran in
//! the stand-in, started over SSH by the controller's agent, with the store and the exchange from the host.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anchorhold_tests::skip;
use anchorhold_vmm::controller::{self, Controller};
use anchorhold_vmm::exchange::{self, Command};
use anchorhold_vmm::kernel::Feature;
use anchorhold_vmm::profile::Profile;
use anchorhold_vmm::report::{Ending, Report, RunRequest, Streams, What};
use anchorhold_vmm::shares::{self, Cache, image, samba};
use anchorhold_vmm::wire;

use crate::machine::{Machine, PATIENCE, Parts, parts};

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);

fn images() -> Result<PathBuf, String> {
    let named = std::env::var_os("ANCHORHOLD_GUEST_IMAGES").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/anchorhold/guest-images"));
    let places = named.into_iter().chain(home).chain(["/var/cache/anchorhold/guest-images".into()]);
    let found = places.into_iter().find(|place| place.join("controller.erofs").is_file());
    found.ok_or_else(|| "no guest images here: scripts/guest-images makes them".into())
}

fn disk(id: &str, file: &Path) -> Vec<String> {
    vec![
        "-drive".into(),
        format!("if=none,id={id},format=raw,readonly=on,file={}", file.display()),
        "-device".into(),
        format!("virtio-blk-pci,drive={id},serial={id}"),
    ]
}

/// A machine at a wire of QEMU's words.
fn network(netdev: &str, number: u8) -> Vec<String> {
    vec![
        "-netdev".into(),
        netdev.into(),
        "-device".into(),
        format!("virtio-net-pci,netdev=wire,mac=52:54:00:12:01:0{number},romfile="),
    ]
}

fn program(program: &str, arguments: &[&str]) -> RunRequest {
    let command = Command::new(program).arguments(arguments.iter().copied()).variable("PATH", "/bin:/usr/bin");
    RunRequest { command: Ok(command.variable("HOME", "/run")), user: None, streams: Streams::Together, alone: true }
}

struct Pair {
    standin: Machine,
    controller: Machine,
    plan: Controller,
    _wire: Wire,
}

/// What is between the two.
enum Wire {
    Datagrams,
    Switch(wire::Switch),
}

impl Pair {
    /// Both started, and as far as that a login is possible.
    fn start(world: &World, exchange: &Path, known_hosts: &[u8], wire: Wire) -> Self {
        let (parts, images, store) = (&world.parts, &world.images, &world.folder.path().join("store.image"));
        // A wire of datagrams is passed as QEMU's standard input.
        let (netdev, one, two) = match &wire {
            Wire::Datagrams => {
                let (one, two) = wire::datagrams().unwrap();
                (wire::datagram_netdev("wire", 0), Some(Stdio::from(one)), Some(Stdio::from(two)))
            }
            Wire::Switch(switch) => (switch.netdev("wire"), None, None),
        };
        let features = [Feature::Network, Feature::Disk, Feature::Erofs, Feature::Cifs];
        let standin = parts.image(&features, &controller::root_and_network(GUEST));
        let plan = Controller {
            profile: Profile::built_in("standin").unwrap(),
            account: samba::Account::new("nixbld").unwrap(),
            mounts: vec![
                shares::disk(shares::STORE_SERIAL, image::Form::Squashfs, "/nix/store"),
                shares::nine_p(shares::EXCHANGE, "/xchg", false, Cache::None, 512_000),
            ],
            key: fs::read(images.join("key")).unwrap(),
            known_hosts: known_hosts.to_vec(),
        };
        let image = parts.image(&Controller::FEATURES, &plan.start().unwrap());
        let mut arguments = [disk("root", &images.join("standin.erofs")), network(&netdev, 1)].concat();
        let standin = parts.start(256, &standin, &arguments, one);
        arguments =
            [disk("root", &images.join("controller.erofs")), disk(shares::STORE_SERIAL, store), network(&netdev, 2)]
                .concat();
        let share = format!("local,path={},mount_tag=xchg,security_model=none,multidevs=remap", exchange.display());
        arguments.extend(["-virtfs".into(), share]);
        let controller = parts.start(256, &image, &arguments, two);
        let mut pair = Self { standin, controller, plan, _wire: wire };
        pair.standin.port.ready(PATIENCE).unwrap_or_else(|error| panic!("{error}\n{}", pair.standin.console()));
        let server = program("/usr/sbin/dropbear", &["-F", "-E", "-s", "-p", "22", "-P", ""]);
        pair.standin.port.ask(What::Run(server), PATIENCE).unwrap();
        let ready = pair.controller.port.ready(PATIENCE);
        ready.unwrap_or_else(|error| panic!("{error}\n{}", pair.controller.console()));
        pair.controller.port.ask(What::Run(pair.plan.server()), PATIENCE).unwrap();
        pair.controller_waits(pair.plan.await_guest(PATIENCE.as_millis() as u32));
        pair.controller_waits(Controller::await_server(PATIENCE.as_millis() as u32));
        pair
    }

    fn controller_waits(&mut self, what: What) {
        let mut said = String::new();
        let mut other = |report| said.push_str(&format!("{report:?}\n"));
        if let Err(error) = self.controller.port.request(what, PATIENCE, &mut other) {
            panic!("{error}\n{said}\n{}\n{}", self.controller.console(), self.standin.console());
        }
    }

    /// Runs a line in the guest over SSH.
    fn run(&mut self, line: &str) -> (Ending, String) {
        let mut said = Vec::new();
        let mut output = |_, bytes: &[u8]| said.extend(bytes);
        let mut other = |report| {
            let ended = matches!(report, Report::Ended { .. });
            assert!(!ended, "smbd runs until the end: {report:?}");
        };
        let request = self.plan.in_guest(line);
        let ending = self.controller.port.run_beside(request, PATIENCE, &mut output, &mut other).unwrap();
        (ending, String::from_utf8_lossy(&said).into_owned())
    }
}

struct World {
    folder: tempfile::TempDir,
    images: PathBuf,
    parts: Parts,
}

impl World {
    fn new() -> Result<Self, String> {
        let (parts, images) = (parts()?, images()?);
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let store = folder.path().join("store");
        fs::create_dir_all(store.join("aaa-tool/bin")).unwrap();
        fs::write(store.join("aaa-tool/bin/greet"), "#!/bin/sh\necho \"hello $1\"\n").unwrap();
        let executable = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        fs::set_permissions(store.join("aaa-tool/bin/greet"), executable).unwrap();
        fs::create_dir(folder.path().join("xchg")).unwrap();
        let content = image::Content::Paths(vec![store.join("aaa-tool")]);
        image::make(image::Form::Squashfs, &content, &folder.path().join("store.image"))
            .map_err(|error| error.to_string())?;
        Ok(Self { folder, images, parts })
    }

    fn exchange(&self) -> PathBuf {
        self.folder.path().join("xchg")
    }

    fn pair(&self, known_hosts: &[u8]) -> Pair {
        Pair::start(self, &self.exchange(), known_hosts, Wire::Datagrams)
    }

    fn known_hosts(&self) -> Vec<u8> {
        fs::read(self.images.join("known_hosts")).unwrap()
    }
}

/// Two machines under emulation want a processor each for as long as they live: they are tested when somebody asks for it.
fn heavy_tests_are_wanted() -> bool {
    std::env::var_os("ANCHORHOLD_HEAVY_TESTS").is_some()
}

#[test]
fn a_command_runs_in_the_stand_in_with_both_shares_and_its_status_comes_back() {
    if !heavy_tests_are_wanted() {
        return skip("ANCHORHOLD_HEAVY_TESTS is not set: a pair of machines takes half a minute");
    }
    let world = match World::new() {
        Ok(world) => world,
        Err(reason) => return skip(&reason),
    };
    let odd = "line\nquote ' \" percent % dollar $(id) end ";
    let command = Command::new("/nix/store/aaa-tool/bin/greet").arguments([odd]).variable("PATH", "/bin");
    let command = command.directory("/tmp");
    fs::write(world.exchange().join("nonce"), "").unwrap();
    fs::write(
        world.exchange().join(exchange::sh::FILE),
        exchange::sh::run(&command, exchange::sh::LONGEST_STRING).unwrap().bytes,
    )
    .unwrap();

    let began = Instant::now();
    let told = |what: &str| println!("{what}: {:.2} s", began.elapsed().as_secs_f32());
    let mut pair = world.pair(&world.known_hosts());
    told("SSH and SMB answer");
    let (ending, said) = pair.run("exit 37");
    assert_eq!(ending, Ending::Exited(37), "{said}\n{}", pair.standin.console());
    told("first login");

    // The shares, as the stand-in's profile has them mounted.
    let profile = pair.plan.profile.clone();
    for (_, line) in pair.plan.clone().mount_lines() {
        let (ending, said) = pair.run(&line);
        assert_eq!(ending, Ending::Exited(0), "{said}\n{}", pair.standin.console());
    }
    let (ending, said) = pair.run(&profile.probe(&profile.drives[1], "nonce"));
    assert_eq!(ending, Ending::Exited(0), "{said}");
    told("shares mounted");

    let (ending, said) = pair.run(&profile.command.start);
    assert_eq!((ending, said), (Ending::Exited(0), format!("hello {odd}\n")));
    let (ending, said) = pair.run("echo made > /xchg/out && sync && exit 3");
    assert_eq!(ending, Ending::Exited(3), "{said}");
    assert_eq!(fs::read_to_string(world.exchange().join("out")).unwrap(), "made\n");
    told("commands run");
    // The store is not to be written, and there is nothing in it that is not an input.
    let (ending, _) = pair.run("echo no > /nix/store/aaa-tool/new");
    assert_ne!(ending, Ending::Exited(0));
    let (_, said) = pair.run("ls /nix/store");
    assert_eq!(said, "aaa-tool\n");
    // Without the password there is no way in.
    let wrong = format!(
        "mount -t cifs //192.168.0.2/xchg /tmp -o {}",
        shares::smb_options(controller::ADDRESS, &samba::Account::new("nixbld").unwrap(), false)
    );
    let (ending, said) = pair.run(&wrong);
    assert_ne!(ending, Ending::Exited(0), "{said}");
    // No way out of the wire either: nobody has any other address.
    let (ending, _) = pair.run("nc -w 1 10.0.2.2 80 < /dev/null");
    assert_ne!(ending, Ending::Exited(0));

    pair.controller.must(What::PowerOff);
    pair.standin.must(What::PowerOff);
    pair.controller.ended();
    pair.standin.ended();
    told("both off");
}

#[test]
fn a_guest_with_another_key_is_not_logged_into() {
    if !heavy_tests_are_wanted() {
        return skip("ANCHORHOLD_HEAVY_TESTS is not set: a pair of machines takes half a minute");
    }
    let world = match World::new() {
        Ok(world) => world,
        Err(reason) => return skip(&reason),
    };
    // The client's own public key, which is a good one, and not the guest's.
    let other = fs::read_to_string(world.images.join("key.pub")).unwrap();
    let mut pair = world.pair(format!("192.168.0.1 {other}").as_bytes());
    let (ending, said) = pair.run("true");
    assert_eq!(ending, Ending::Exited(255));
    assert!(said.contains("REMOTE HOST IDENTIFICATION HAS CHANGED"), "{said}");
}

/// A file system of its own, which goes with this.
struct Limited {
    place: PathBuf,
}

impl Limited {
    fn new(place: PathBuf, size: &str) -> Result<Self, String> {
        let options = format!("size={size}");
        nix::mount::mount(Some("tmpfs"), &place, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str()))
            .map_err(|errno| format!("no file system of limited size can be mounted here: {errno}"))?;
        Ok(Self { place })
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.place, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// The hole: with a client's cache on, a guest's tools report lost writes as done. Two protections: shares that are written
/// have no such cache, and the host looks itself. On the other wire, so that it has its turn.
#[test]
fn a_full_exchange_is_noticed_whatever_the_guest_says() {
    if !heavy_tests_are_wanted() {
        return skip("ANCHORHOLD_HEAVY_TESTS is not set: a pair of machines takes half a minute");
    }
    let world = match World::new() {
        Ok(world) => world,
        Err(reason) => return skip(&reason),
    };
    let _limited = match Limited::new(world.exchange(), "2m") {
        Ok(limited) => limited,
        Err(reason) => return skip(&reason),
    };
    let switch = wire::Switch::start(Path::new("vde_switch"), world.folder.path(), wire::SWITCH_PATIENCE);
    let switch = match switch {
        Ok(switch) => switch,
        Err(error) => return skip(&error.to_string()),
    };
    shares::exchange::check_limited(&world.exchange(), 2 << 20).unwrap();
    let watch = shares::exchange::Watch::begin(&world.exchange()).unwrap();
    let mut pair = Pair::start(&world, &world.exchange(), &world.known_hosts(), Wire::Switch(switch));

    let profile = pair.plan.profile.clone();
    let line = profile.mount(&profile.drives[1], controller::ADDRESS, &pair.plan.account);
    let fill = "dd if=/dev/zero of=/xchg/big bs=64k count=100 2>/dev/null; echo x > /xchg/small && sync";
    // With the protection off.
    let (ending, said) = pair.run(&line.replace("cache=none", "cache=loose"));
    assert_eq!(ending, Ending::Exited(0), "{said}");
    let (ending, said) = pair.run(&format!("{fill}; s=$?; umount /xchg; exit $s"));
    assert_eq!((ending, said.as_str()), (Ending::Exited(0), ""), "the guest believes it");
    assert_eq!(fs::read(world.exchange().join("small")).unwrap(), b"", "and it is lost");
    // With it on.
    let (ending, said) = pair.run(&line);
    assert_eq!(ending, Ending::Exited(0), "{said}");
    let (ending, said) = pair.run(fill);
    assert_ne!(ending, Ending::Exited(0), "{said}");
    // And though there is room again by now, what the guest said is not to be believed.
    fs::remove_file(world.exchange().join("big")).unwrap();
    let error = watch.end().unwrap_err().to_string();
    assert!(error.contains("ran full"), "{error}");
}
