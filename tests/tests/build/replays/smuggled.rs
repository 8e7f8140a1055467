//! What one party hands another past the walls: descriptors, keys.

use std::fs::{self, File};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::sync::mpsc;

use anchorhold_tests::host::Footprint;
use anchorhold_tests::room::Room;
use anchorhold_tests::{PATIENCE, descriptor, probe, skip};

use nix::sys::signal::Signal;

use crate::recipe::Recipe;
use crate::world::World;

/// The hash of a file that holds `hello`.
const HELLO: &str = "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";

/// A process of the host's that takes one descriptor from whoever comes to its abstract socket.
struct Smuggler {
    name: String,
    taken: mpsc::Receiver<File>,
}

impl Smuggler {
    fn new(word: &str) -> Self {
        let name = format!("anchorhold-replay-{word}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let (give, taken) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some(descriptor) = descriptor::received(&stream) {
                    let _ = give.send(File::from(descriptor));
                }
            }
        });
        Self { name, taken }
    }
}

/// A fixed output is opened for writing, the descriptor handed to a process outside, which writes when the output is in
/// the store. Nix before 2.20.5.
#[test]
fn cve_2024_27297_a_descriptor_of_an_output_does_not_come_out_of_a_room() {
    // It fires: with the host's network and no scope, the descriptor arrives and is good for writing.
    let footprint = Footprint::new();
    let file = footprint.path("output");
    fs::write(&file, "hello").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let smuggler = Smuggler::new("open");
    let open = footprint.room().lending("/output", &file).with(["--network", "host"]).without("landlock");
    assert_eq!(open.probe(["send-descriptor", &smuggler.name, "/output"]).line(), "done");
    let taken = smuggler.taken.recv_timeout(PATIENCE).expect("without the two layers the descriptor arrives");
    taken.write_all_at(b"owned", 0).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "owned");

    let world = World::new();
    let probe = world.add_probe();
    for network in ["none", "pasta"] {
        let smuggler = Smuggler::new(network);
        let script = format!("printf hello > $out; echo sent: $($probe send-descriptor {} $out)", smuggler.name);
        let recipe = Recipe::new(&world, network, &script).fixed("flat", "sha256", HELLO).source("probe", &probe);
        let derivation = world.derivation(&recipe);
        let ended = world.build(&[&derivation], &["--option", "network", network]);
        if network == "pasta" && ended.status(&derivation) == "MiscFailure" {
            return skip("pasta cannot be used here");
        }
        assert_eq!((ended.code, ended.status(&derivation)), (0, "Built"), "{}", ended.err);
        assert!(
            ["ECONNREFUSED", "EPERM"].iter().any(|errno| ended.err.contains(&format!("sent: {errno}"))),
            "{}",
            ended.err
        );
        assert!(smuggler.taken.try_recv().is_err(), "a descriptor came out of a room");
    }
}

/// The same hole, behind that wall: somebody outside does hold such a descriptor.
#[test]
fn cve_2024_27297_an_output_is_not_changed_by_a_descriptor_that_was_kept() {
    let world = World::new();
    let gate = world.gate();
    let script = "printf hello > $out; echo here; while ! test -e /gate/open; do :; done";
    let recipe = Recipe::new(&world, "kept", script).fixed("flat", "sha256", HELLO);
    let derivation = world.derivation(&recipe);
    let out = world.output(&derivation, "out");
    let arguments =
        ["build", "--option", "network", "none", "--option", "extra-sandbox-paths", &gate.option, &derivation];
    let mut running = world.start(&arguments);
    running.line_with("> here");
    let build = world.leftovers().pop().expect("a running build has a directory");
    let inside = world.root().join("nix/var/nix/anchorhold/builds").join(build).join("room/store");
    let kept = File::options().write(true).open(inside.join(Path::new(&out).file_name().unwrap())).unwrap();
    gate.open();
    let ended = running.ended();
    assert_eq!(ended.status, 0, "{}", ended.stdout);
    kept.write_all_at(b"owned", 0).expect("the descriptor itself can be written");
    assert_eq!(world.read(&out), "hello");
    world.is_whole();
}

/// Two builds that conspire meet at an abstract socket; one hands the other its directory. Nix before 2.28.4.
#[test]
fn cve_2025_46416_two_rooms_do_not_meet() {
    let footprint = Footprint::new();
    let yard = footprint.path("yard");
    fs::create_dir(&yard).unwrap();
    fs::set_permissions(&yard, fs::Permissions::from_mode(0o777)).unwrap();
    // What the sender says, and the taker if the sender got through.
    let meet = |word: &str, weaken: fn(Room) -> Room| {
        let name = format!("anchorhold-meeting-{word}-{}", std::process::id());
        let mut taker = weaken(footprint.room()).start_probe(["take-descriptor", &name]);
        assert_eq!(taker.line(), "listening");
        let sent = weaken(footprint.room()).lending("/yard", &yard).probe(["send-descriptor", &name, "/yard"]).line();
        let taken = if sent == "done" { taker.line() } else { String::new() };
        taker.signal(Signal::SIGTERM);
        taker.to_the_end();
        (sent, taken)
    };
    let open = meet("open", |room| room.with(["--network", "host"]).without("landlock"));
    assert_eq!(open, ("done".into(), "done".into()), "the replay fires without the two layers");
    assert!(yard.join("planted").exists());
    fs::remove_file(yard.join("planted")).unwrap();
    for (word, weaken) in [
        ("network", (|room| room.without("landlock")) as fn(Room) -> Room),
        ("landlock", |room| room.with(["--network", "host"])),
        ("whole", |room| room),
    ] {
        let (sent, _) = meet(word, weaken);
        assert!(matches!(sent.as_str(), "ECONNREFUSED" | "EPERM"), "{word}: {sent}");
        assert!(!yard.join("planted").exists());
    }
}

/// A key that one room leaves in the keyring of the session that both were called from. Every Nix.
#[test]
fn a_key_left_by_one_room_is_not_found_by_the_next() {
    // Calls the room twice in one session: first it plants the key, then it looks for it.
    let script = r#""$@" > /dev/null
        for word; do shift; test "$word" = add-key && word=find-key; set -- "$@" "$word"; done
        exec "$@""#;
    let program = probe::path().to_string_lossy();
    let twice = |room: Room| {
        room.started_by(&[&program, "with-key", "any", "/bin/sh", "-c", script, "sh"])
            .probe(["add-key", "planted"])
            .line()
    };
    // The filter stands before both: without it, the keyring of the room's own is what is left.
    match twice(Room::new().without("seccomp").without("keyring")).as_str() {
        "ENOSYS" => return skip("this kernel has no keyrings"),
        found => assert_eq!(found, "done", "the replay fires without the two layers"),
    }
    assert_eq!(twice(Room::new().without("seccomp")), "ENOKEY");
    assert_eq!(twice(Room::new().without("keyring")), "ENOSYS");
    assert_eq!(twice(Room::new()), "ENOSYS");
}
