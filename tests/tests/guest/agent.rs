//! The agent as a guest's first process.

use std::time::Duration;

use anchorhold_tests::skip;
use anchorhold_vmm::exchange::Command;
use anchorhold_vmm::report::{ConversationError, Ending, MountRequest, RunRequest, Streams, What};

use crate::machine::{Machine, PATIENCE, Parts, parts};

const BUSYBOX: &str = "/usr/bin/busybox";

/// Returns from the test where there is nothing to build a machine of.
macro_rules! parts {
    () => {
        match parts() {
            Ok(parts) if std::path::Path::new(BUSYBOX).exists() => parts,
            Ok(_) => return skip("no static busybox here"),
            Err(reason) => return skip(&reason),
        }
    };
}

fn with_busybox(parts: &Parts, start: &[What]) -> Machine {
    let mut image = parts.image(&[], start);
    image.copy("/bin/busybox", 0o755, BUSYBOX).unwrap();
    image.link("/bin/sh", "busybox").unwrap();
    parts.start(256, &image, &[], None)
}

fn shell(text: &str) -> RunRequest {
    let command = Command::new("/bin/sh").arguments(["-c", text]).variable("PATH", "/bin");
    RunRequest { command: Ok(command), user: None, streams: Streams::Together, alone: true }
}

fn run(machine: &mut Machine, request: RunRequest) -> (Ending, String) {
    let mut said = Vec::new();
    let ending = machine.port.run(request, PATIENCE, &mut |_, bytes| said.extend(bytes)).unwrap();
    (ending, String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_guest_comes_up_runs_programs_and_goes() {
    let parts = parts!();
    let mut machine = with_busybox(&parts, &[What::HostName("anchorage".into())]);
    let started = machine.port.ready(PATIENCE).unwrap_or_else(|error| panic!("{error}\n{}", machine.console()));
    assert_eq!(started.kernel, parts.kernel.version);
    println!("the kernel {:.2} s, then the agent until {:.2} s", started.began.as_secs_f32(), started.up.as_secs_f32());
    assert!(started.began < started.up);

    let (ending, said) = run(&mut machine, shell("busybox hostname; echo out; echo err >&2; exit 37"));
    assert_eq!((ending, said.as_str()), (Ending::Exited(37), "anchorage\nout\nerr\n"));
    let (ending, _) = run(&mut machine, shell("kill -SEGV $$"));
    assert_eq!(ending, Ending::Signalled(11));
    let missing = RunRequest { command: Ok(Command::new("/missing")), ..shell("") };
    let (ending, _) = run(&mut machine, missing);
    assert!(matches!(&ending, Ending::NotStarted(why) if why.contains("/missing")), "{ending:?}");

    // As a build's user, and apart.
    let who = RunRequest { user: Some((1000, 100)), streams: Streams::Apart, ..shell("busybox id; echo err >&2") };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let apart = &mut |error, bytes: &[u8]| if error { &mut err } else { &mut out }.extend(bytes);
    assert_eq!(machine.port.run(who, PATIENCE, apart).unwrap(), Ending::Exited(0));
    assert_eq!(String::from_utf8_lossy(&out), "uid=1000 gid=100\n");
    assert_eq!(err, b"err\n");

    // Odd values arrive as they are.
    let odd = "line\nquote ' \" percent % dollar $(id) \u{1} end ";
    let mut request = shell("printf %s \"$ODD$1\"");
    let command = request.command.as_mut().unwrap();
    command.environment.push(("ODD".into(), odd.into()));
    command.arguments.extend(["sh".into(), odd.into()]);
    let (_, said) = run(&mut machine, request);
    assert_eq!(said, format!("{odd}{odd}"));

    // Much output, and nothing of it lost.
    let (ending, said) = run(&mut machine, shell("busybox seq 1 200000"));
    assert_eq!((ending, said.len()), (Ending::Exited(0), 1_288_895));

    // What outlives a program that ran alone dies with it, and orphans are reaped.
    let (ending, _) = run(&mut machine, shell("busybox sleep 1000 & (busybox true &); exit 3"));
    assert_eq!(ending, Ending::Exited(3));
    let (_, said) =
        run(&mut machine, shell("busybox ps -o stat,args | busybox grep -e sleep -e ^Z | busybox grep -v grep"));
    assert_eq!(said, "");

    machine.must(What::SetClock { nanoseconds: 1_262_304_000_000_000_000 });
    let (_, said) = run(&mut machine, shell("busybox date -u +%Y-%m-%d"));
    assert_eq!(said, "2010-01-01\n");

    machine.must(What::PowerOff);
    assert!(machine.ended().success());
}

#[test]
fn a_request_that_fails_says_why_and_the_guest_goes_on() {
    let parts = parts!();
    let mut machine = with_busybox(&parts, &[]);
    machine.port.ready(PATIENCE).unwrap();
    let mount = MountRequest {
        source: "store".into(),
        target: "/nix/store".into(),
        kind: "erofs".into(),
        options: "".into(),
        read_only: true,
        no_programs: false,
    };
    let error = machine.port.request(What::Mount(mount), PATIENCE, &mut |_| ()).unwrap_err();
    let ConversationError::Failed(why) = error else { panic!("{error}") };
    assert!(why.starts_with("mounting store (erofs) at /nix/store: No such device"), "{why}");
    let network = What::Network { interface: "eth0".into(), address: None };
    assert!(machine.port.request(network, PATIENCE, &mut |_| ()).is_err());
    let input = What::Input { run: 1, bytes: b"true\n".to_vec() };
    let error = machine.port.request(input, PATIENCE, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("giving run 1 its input: it waits for none"), "{error}");
    machine.must(What::Network { interface: "lo".into(), address: Some(([127, 0, 0, 1].into(), 8)) });
    machine.must(What::Ping);
}

#[test]
fn a_start_that_fails_is_told_and_ends_the_guest() {
    let parts = parts!();
    let image = parts.image(&[], &[What::SwitchRoot("/missing".into())]);
    let mut machine = parts.start(256, &image, &[], None);
    let error = machine.port.ready(PATIENCE).unwrap_err();
    let ConversationError::Died(why) = error else { panic!("{error}\n{}", machine.console()) };
    assert!(why.contains("/missing"), "{why}");
    machine.ended();
}

#[test]
fn a_guest_that_powers_off_or_hangs_has_no_status() {
    let parts = parts!();
    let mut machine = with_busybox(&parts, &[]);
    machine.port.ready(PATIENCE).unwrap();
    let late = machine.port.run(shell("busybox sleep 1000"), Duration::from_millis(300), &mut |_, _| ()).unwrap();
    assert!(matches!(&late, Ending::NoStatus(why) if why.contains("within 0.3 s")), "{late:?}");
    let (ending, _) = run(&mut machine, shell("busybox poweroff -f"));
    assert!(matches!(&ending, Ending::NoStatus(why) if why.contains("went away")), "{ending:?}");
}
