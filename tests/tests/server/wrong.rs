//! Clients that do wrong.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use anchorhold_tests::PATIENCE;
use anchorhold_tests::host::{poll_until, processes_that_name};
use anchorhold_tests::room::anchorhold;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::{World, text};

/// What a client says.
#[derive(Clone, Default)]
struct Said(Vec<u8>);

impl Said {
    fn worker() -> Self {
        Self::default().numbers(&[0x6e69_7863, 0x122, 0, 0])
    }

    fn serve() -> Self {
        Self::default().numbers(&[0x390c_9deb, 0x207])
    }

    fn numbers(mut self, numbers: &[u64]) -> Self {
        self.0.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        self
    }

    fn text(self, text: &str) -> Self {
        let mut said = self.numbers(&[text.len() as u64]);
        said.0.extend(text.as_bytes());
        said.0.resize(said.0.len().next_multiple_of(8), 0);
        said
    }
}

#[test]
fn clients_that_do_wrong_harm_nobody_else() {
    let Some(world) = World::new() else { return };
    let (local, served) = (world.local(), world.served());
    // Taken in, and never read from: more than any buffer on the way holds.
    let big = world.path("big");
    fs::write(&big, vec![7; 8 << 20]).unwrap();
    let big = world.said("nix-store", &["--store", &local, "--add", big.to_str().unwrap()]);
    world.said("nix", &["copy", "--from", &local, "--to", &served, &big]);
    let mut deaf = world.connect().unwrap();
    deaf.write_all(&Said::worker().numbers(&[38]).text(&big).0).unwrap();
    // Says half a sentence, and waits.
    let mut slow = world.connect().unwrap();
    slow.write_all(&Said::worker().numbers(&[1, 1 << 40]).0).unwrap();
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).unwrap();
    assert!(text(&answer).contains("length"), "{}", text(&answer));
    let mut silent = world.connect().unwrap();
    silent.write_all(&Said::worker().0[..20]).unwrap();
    // Speaks something else, or of something that is not there.
    let mut stranger = world.connect().unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    answer.clear();
    let _ = stranger.read_to_end(&mut answer);
    assert!(answer.is_empty());
    let mut unknown = world.connect().unwrap();
    unknown.write_all(&Said::worker().numbers(&[4711]).0).unwrap();
    unknown.read_to_end(&mut answer).unwrap();
    assert!(text(&answer).contains("there is no operation 4711"), "{}", text(&answer));

    // Everybody else is served meanwhile.
    let out = world.said("nix-build", &world.build(&served, "meanwhile", "echo $out > $out"));
    assert!(world.real(&out).exists());
    drop((deaf, silent));
    world.is_whole();
}

#[test]
fn a_client_that_takes_nothing_is_gone_after_a_while() {
    let Some(world) = World::with(&["--option", "stalled-client-timeout", "5"]) else { return };
    let big = world.path("big");
    fs::write(&big, vec![7; 8 << 20]).unwrap();
    let local = world.local();
    let big = world.said("nix-store", &["--store", &local, "--add", big.to_str().unwrap()]);
    world.said("nix", &["copy", "--from", &local, "--to", &world.served(), &big]);
    assert!(poll_until(PATIENCE, || world.attendants().is_empty()));
    for (said, times) in [(Said::worker().numbers(&[38]).text(&big), 1), (Said::serve().numbers(&[3]).text(&big), 2)] {
        let mut deaf = world.connect().unwrap();
        deaf.write_all(&said.0).unwrap();
        let told = || world.server_said().matches("has taken nothing of what it was sent for 5 s").count() == times;
        assert!(poll_until(PATIENCE, told), "{}", world.server_said());
        assert!(poll_until(PATIENCE, || world.attendants().is_empty()), "its process is still there");
        drop(deaf);
    }
    // One that reads slowly is another matter, though all takes longer than that. A host that is busy may stop us for longer than
    // we mean to wait, so that the limit is a multiple of it.
    let mut slow = world.connect().unwrap();
    slow.write_all(&Said::worker().numbers(&[38]).text(&big).0).unwrap();
    let mut piece = vec![0; 2 << 20];
    for _ in 0..4 {
        slow.read_exact(&mut piece).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1300));
    }
    drop(slow);

    // One who stops in the middle of a build that has much to say: it ends, and leaves nothing.
    let marker = format!("72{}", std::process::id());
    let script = format!("sleep {marker} & echo begun; yes");
    let served = world.served();
    let log = fs::File::create(world.path("client.log")).unwrap();
    let mut client = world.command("nix-build", &world.build(&served, "chatty", &script));
    let mut client = client.stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let word = format!("sleep\0{marker}");
    assert!(poll_until(PATIENCE, || !processes_that_name(&word).is_empty()), "the build never began");
    let pid = Pid::from_raw(client.id().cast_signed());
    kill(pid, Signal::SIGSTOP).unwrap();
    assert!(poll_until(PATIENCE, || processes_that_name(&word).is_empty()), "its build runs on");
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(poll_until(PATIENCE, || world.left_over().is_empty()), "{:?}", world.left_over());
    world.is_whole();
}

#[test]
fn what_is_refused_in_the_end_takes_no_memory() {
    const SIZE: u64 = 160 << 20;
    const MOST: u64 = 64 << 20;
    let Some(world) = World::new() else { return };
    let name = "00bgd045z0d4icpbc2yyz4gx48ak44la-lie";
    // A regular file with so many bytes, and another hash than is said.
    let mut head = Said::default();
    for word in ["nix-archive-1", "(", "type", "regular", "contents"] {
        head = head.text(word);
    }
    let head = head.numbers(&[SIZE]);
    let tail = Said::default().text(")");
    let whole = head.0.len() as u64 + SIZE + tail.0.len() as u64;
    let info = |said: Said| {
        let said = said.text(&format!("/nix/store/{name}")).text("").text(&"0".repeat(64));
        // References, time, size, not built here, signatures, no content address.
        said.numbers(&[0, 0, whole, 0, 0]).text("")
    };
    let piece = vec![7; 1 << 20];
    for serve in [false, true] {
        let mut server = Command::new(anchorhold())
            .arg("store-server")
            .args(if serve { &["--serve", "--write"][..] } else { &["--stdio"] })
            .arg("--store")
            .arg(world.path("served"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut to = server.stdin.take().unwrap();
        let mut send = |bytes: &[u8]| to.write_all(bytes).unwrap();
        // In one frame, of which the worker protocol says how long it is.
        match serve {
            true => send(&info(Said::serve().numbers(&[9])).0),
            false => send(&info(Said::worker().numbers(&[39])).numbers(&[0, 1, whole]).0),
        }
        send(&head.0);
        for _ in 0..SIZE / piece.len() as u64 {
            send(&piece);
        }
        // All but the end is on its way, and most of it has been taken: a pipe holds little.
        let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
        assert!(peak.parse::<u64>().unwrap() << 10 < MOST, "{peak} KiB");
        send(&tail.0);
        if !serve {
            send(&0u64.to_le_bytes());
        }
        drop(to);
        let output = server.wait_with_output().unwrap();
        let told = text(if serve { &output.stderr } else { &output.stdout });
        assert!(told.contains("hash mismatch importing path"), "{told}");
        assert!(!world.real(&format!("/nix/store/{name}")).exists());
    }
    assert_eq!(world.left_over(), Vec::<String>::new());
    world.is_whole();
}
