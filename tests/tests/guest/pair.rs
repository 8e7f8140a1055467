//! The controller and the stand-in on a wire of datagrams: from two images and two command lines to a program that ran in
//! the stand-in, started over SSH by the controller's agent, with the store and the exchange from the host.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anchorhold_tests::skip;
use anchorhold_vmm::exchange::{self, Command};
use anchorhold_vmm::initramfs::Initramfs;
use anchorhold_vmm::kernel::Feature;
use anchorhold_vmm::profile::Profile;
use anchorhold_vmm::report::{Ending, Report, RunRequest, Streams, What};
use anchorhold_vmm::shares::{self, Cache, image, samba};
use anchorhold_vmm::wire;

use crate::machine::{Machine, PATIENCE, Parts, parts};

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const CONTROLLER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);

fn images() -> Result<PathBuf, String> {
    let named = std::env::var_os("ANCHORHOLD_GUEST_IMAGES").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/anchorhold/guest-images"));
    let places = named.into_iter().chain(home).chain(["/var/cache/anchorhold/guest-images".into()]);
    let found = places.into_iter().find(|place| place.join("controller.erofs").is_file());
    found.ok_or_else(|| "no guest images here: scripts/guest-images makes them".into())
}

/// Up to its own root, with a network.
fn start_of(address: Ipv4Addr, directories: &[PathBuf]) -> Vec<What> {
    let mut start = vec![
        What::Mount(shares::disk("root", image::Form::Erofs, "/root")),
        What::SwitchRoot("/root".into()),
        What::Mount(shares::memory("/run", 32 << 20)),
        What::Mount(shares::memory("/tmp", 64 << 20)),
        What::Network { interface: "lo".into(), address: Some((Ipv4Addr::LOCALHOST, 8)) },
        What::Network { interface: "eth0".into(), address: Some((address, 24)) },
    ];
    for directory in directories {
        let path = directory.join(".there");
        start.push(What::WriteFile { path, mode: 0o600, content: Vec::new() });
    }
    start
}

fn disk(id: &str, file: &Path) -> Vec<String> {
    vec![
        "-drive".into(),
        format!("if=none,id={id},format=raw,readonly=on,file={}", file.display()),
        "-device".into(),
        format!("virtio-blk-pci,drive={id},serial={id}"),
    ]
}

fn network(number: u8) -> Vec<String> {
    vec![
        "-netdev".into(),
        // The tests pass the wire as QEMU's standard input.
        wire::datagram_netdev("wire", 0),
        "-device".into(),
        format!("virtio-net-pci,netdev=wire,mac=52:54:00:12:01:0{number},romfile="),
    ]
}

fn program(program: &str, arguments: &[&str]) -> RunRequest {
    let command = Command::new(program).arguments(arguments.iter().copied()).variable("PATH", "/bin:/usr/bin");
    RunRequest { command: Ok(command.variable("HOME", "/run")), user: None, streams: Streams::Together, alone: true }
}

fn run(machine: &mut Machine, request: RunRequest) -> (Ending, String) {
    let mut said = Vec::new();
    let ending = machine.port.run(request, PATIENCE, &mut |_, bytes| said.extend(bytes)).unwrap();
    (ending, String::from_utf8_lossy(&said).into_owned())
}

/// Runs something in the guest over SSH, with its host key checked.
fn over_ssh(controller: &mut Machine, text: &str) -> (Ending, String) {
    let options = [
        "-F/dev/null",
        "-i/run/key",
        "-oUserKnownHostsFile=/run/known_hosts",
        "-oStrictHostKeyChecking=yes",
        "-oBatchMode=yes",
        "-oServerAliveInterval=5",
        "-oControlMaster=auto",
        "-oControlPath=/run/ssh",
        "-oControlPersist=yes",
        "root@192.168.0.1",
        text,
    ];
    run(controller, program("/usr/bin/ssh", &options))
}

struct Pair {
    standin: Machine,
    controller: Machine,
    account: samba::Account,
}

impl Pair {
    /// Both started, and as far as that a login is possible.
    fn start(parts: &Parts, images: &Path, store: &Path, exchange: &Path, known_hosts: &[u8]) -> Self {
        let (one, two) = wire::datagrams().unwrap();
        let wire = |end: OwnedFd| Some(Stdio::from(end));
        let standin: Initramfs =
            parts.image(&[Feature::Network, Feature::Disk, Feature::Erofs, Feature::Cifs], &start_of(GUEST, &[]));
        let account = samba::Account::new("nixbld").unwrap();
        let smbd = samba::Samba {
            folder: "/run/samba".into(),
            account: account.clone(),
            shares: vec![
                samba::Share { name: shares::STORE_SHARE.into(), path: "/nix/store".into(), read_only: true },
                samba::Share { name: shares::EXCHANGE.into(), path: "/xchg".into(), read_only: false },
            ],
        };
        let mut start = start_of(CONTROLLER, &smbd.directories());
        start.push(What::Mount(shares::disk(shares::STORE_SERIAL, image::Form::Squashfs, "/nix/store")));
        start.push(What::Mount(shares::nine_p(shares::EXCHANGE, "/xchg", false, Cache::None, 512_000)));
        for file in smbd.files().unwrap() {
            start.push(What::WriteFile { path: file.path, mode: file.mode, content: file.content });
        }
        let key = fs::read(images.join("key")).unwrap();
        start.push(What::WriteFile { path: "/run/key".into(), mode: 0o600, content: key });
        start.push(What::WriteFile { path: "/run/known_hosts".into(), mode: 0o644, content: known_hosts.to_vec() });
        let features = [Feature::Network, Feature::Disk, Feature::Erofs, Feature::Squashfs, Feature::NineP];
        let controller = parts.image(&features, &start);

        let mut arguments = [disk("root", &images.join("standin.erofs")), network(1)].concat();
        let standin = parts.start(256, &standin, &arguments, wire(one));
        arguments =
            [disk("root", &images.join("controller.erofs")), disk(shares::STORE_SERIAL, store), network(2)].concat();
        let share = format!("local,path={},mount_tag=xchg,security_model=none,multidevs=remap", exchange.display());
        arguments.extend(["-virtfs".into(), share]);
        let controller = parts.start(256, &controller, &arguments, wire(two));
        let mut pair = Self { standin, controller, account };
        pair.standin.port.ready(PATIENCE).unwrap_or_else(|error| panic!("{error}\n{}", pair.standin.console()));
        let server = program("/usr/sbin/dropbear", &["-F", "-E", "-s", "-p", "22", "-P", ""]);
        pair.standin.port.ask(What::Run(server), PATIENCE).unwrap();
        let ready = pair.controller.port.ready(PATIENCE);
        ready.unwrap_or_else(|error| panic!("{error}\n{}", pair.controller.console()));
        let mut request = program("/usr/sbin/smbd", &[]);
        request.command.as_mut().unwrap().arguments = smbd.arguments();
        pair.controller.port.ask(What::Run(request), PATIENCE).unwrap();
        pair
    }

    /// Until a port answers, as the controller sees it.
    fn answers(&mut self, address: Ipv4Addr, port: u16, banner: &str) -> Report {
        let milliseconds = PATIENCE.as_millis() as u32;
        let what = What::AwaitBanner { address, port, banner: banner.into(), milliseconds };
        let mut said = String::new();
        let mut other = |report| said.push_str(&format!("{report:?}\n"));
        match self.controller.port.request(what, PATIENCE, &mut other) {
            Ok(report) => report,
            Err(error) => panic!("{error}\n{said}\n{}\n{}", self.controller.console(), self.standin.console()),
        }
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
        let store = self.folder.path().join("store.image");
        Pair::start(&self.parts, &self.images, &store, &self.exchange(), known_hosts)
    }
}

#[test]
fn a_command_runs_in_the_stand_in_with_both_shares_and_its_status_comes_back() {
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
    let mut pair = world.pair(&fs::read(world.images.join("known_hosts")).unwrap());
    told("both ready");
    let banner = pair.answers(GUEST, 22, "SSH-");
    assert!(matches!(&banner, Report::Banner { banner, .. } if banner.starts_with(b"SSH-2.0")), "{banner:?}");
    told("SSH answers");
    pair.answers(CONTROLLER, 445, "");
    told("SMB answers");
    let (ending, said) = over_ssh(&mut pair.controller, "exit 37");
    assert_eq!(ending, Ending::Exited(37), "{said}\n{}", pair.standin.console());
    told("first login");

    // The shares, as the stand-in's profile has them mounted.
    let profile = Profile::built_in("standin").unwrap();
    for drive in &profile.drives {
        let line = profile.mount(drive, CONTROLLER, &pair.account);
        let (ending, said) = over_ssh(&mut pair.controller, &line);
        assert_eq!(ending, Ending::Exited(0), "{said}\n{}", pair.standin.console());
    }
    let (ending, said) = over_ssh(&mut pair.controller, &profile.probe(&profile.drives[1], "nonce"));
    assert_eq!(ending, Ending::Exited(0), "{said}");
    told("shares mounted");

    let (ending, said) = over_ssh(&mut pair.controller, &profile.command.start);
    assert_eq!((ending, said), (Ending::Exited(0), format!("hello {odd}\n")));
    let (ending, said) = over_ssh(&mut pair.controller, "echo made > /xchg/out && sync && exit 3");
    assert_eq!(ending, Ending::Exited(3), "{said}");
    assert_eq!(fs::read_to_string(world.exchange().join("out")).unwrap(), "made\n");
    told("commands run");
    // The store is not to be written, and there is nothing in it that is not an input.
    let (ending, _) = over_ssh(&mut pair.controller, "echo no > /nix/store/aaa-tool/new");
    assert_ne!(ending, Ending::Exited(0));
    let (_, said) = over_ssh(&mut pair.controller, "ls /nix/store");
    assert_eq!(said, "aaa-tool\n");
    // Without the password there is no way in.
    let wrong = format!(
        "mount -t cifs //192.168.0.2/xchg /tmp -o {}",
        shares::smb_options(CONTROLLER, &samba::Account::new("nixbld").unwrap(), false)
    );
    let (ending, said) = over_ssh(&mut pair.controller, &wrong);
    assert_ne!(ending, Ending::Exited(0), "{said}");
    // No way out of the wire either: nobody has any other address.
    let (ending, _) = over_ssh(&mut pair.controller, "nc -w 1 10.0.2.2 80 < /dev/null");
    assert_ne!(ending, Ending::Exited(0));

    pair.controller.must(What::PowerOff);
    pair.standin.must(What::PowerOff);
    pair.controller.ended();
    pair.standin.ended();
    told("both off");
}

#[test]
fn a_guest_with_another_key_is_not_logged_into() {
    let world = match World::new() {
        Ok(world) => world,
        Err(reason) => return skip(&reason),
    };
    // The client's own public key, which is a good one, and not the guest's.
    let other = fs::read_to_string(world.images.join("key.pub")).unwrap();
    let mut pair = world.pair(format!("192.168.0.1 {other}").as_bytes());
    pair.answers(GUEST, 22, "SSH-");
    let (ending, said) = over_ssh(&mut pair.controller, "true");
    assert_eq!(ending, Ending::Exited(255));
    assert!(said.contains("REMOTE HOST IDENTIFICATION HAS CHANGED"), "{said}");
}
