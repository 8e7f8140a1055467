//! Every class of failure that a real machine can show, provoked.

use std::process::Command;
use std::time::Duration;

use anchorhold_vmm::failure::{Failure, FailureClass};
use anchorhold_vmm::initramfs::Initramfs;
use anchorhold_vmm::kernel::Kernel;
use anchorhold_vmm::linux::{self, View};
use anchorhold_vmm::machine::{Machine, Run};
use anchorhold_vmm::readiness::{Verdict, Wait, wait};
use anchorhold_vmm::spec::{Accelerator, Boot, Clock};

use crate::world::{PATIENCE, World, is_alive, line};

/// Runs a guest of this script and waits for what never comes.
#[track_caller]
fn failure_of(world: &World, script: &str, what: &Wait, run: Run) -> Failure {
    let guest = world.guest(script);
    let mut machine = guest.start_with(world, run);
    fails(&mut machine, what)
}

#[track_caller]
fn fails(machine: &mut Machine, what: &Wait) -> Failure {
    let failure = wait(machine, what, |_, _| Verdict::<()>::GoOn).unwrap_err();
    assert_eq!(failure.machine, "guest");
    assert_eq!(failure.wait.as_ref().map(|wait| wait.what.as_str()), Some(what.what.as_str()), "{failure}");
    println!("{failure}");
    failure
}

fn a_word() -> Wait {
    Wait::new("a word that never comes", PATIENCE)
}

#[test]
fn a_panic() {
    let Some(world) = World::new() else { return };
    let failure = failure_of(&world, "echo bye; exit 3", &a_word(), Run::default());
    assert_eq!(failure.class, FailureClass::Panic);
    assert!(failure.what.contains("Attempted to kill init"), "{failure}");
    assert!(failure.evidence.console.iter().any(|line| line == "bye"), "{:?}", failure.evidence);
}

#[test]
fn a_power_off_before_what_was_waited_for() {
    let Some(world) = World::new() else { return };
    let failure = failure_of(&world, "echo bye; busybox poweroff -f", &a_word(), Run::default());
    assert_eq!(failure.class, FailureClass::PowerOff);
    assert!(failure.evidence.events.iter().any(|line| line.contains("guest-shutdown")), "{:?}", failure.evidence);
    assert_eq!(failure.evidence.exit.as_deref(), Some("exit status 0"), "QEMU itself sees nothing wrong");
}

#[test]
fn a_restart() {
    let Some(world) = World::new() else { return };
    let failure = failure_of(&world, "busybox reboot -f", &a_word(), Run::default());
    assert_eq!(failure.class, FailureClass::Reset, "{failure}");
}

#[test]
fn a_guest_that_does_nothing_is_stalled_and_one_that_works_is_not() {
    let Some(world) = World::new() else { return };
    let place = tempfile::tempdir().unwrap();
    let stall = a_word().unless_stalled(Duration::from_secs(3), Accelerator::Tcg);
    let mut guest = world.guest("echo asleep; busybox sleep 1000000");
    guest.spec.display = true;
    let picture = place.path().join("stall.png");
    let run = Run { screenshot: Some(picture.clone()), ..Run::default() };
    let mut machine = guest.start_with(&world, run);
    line(&mut machine, "asleep");
    let failure = fails(&mut machine, &stall);
    assert_eq!(failure.class, FailureClass::Stalled);
    assert_eq!(failure.evidence.screenshot.as_ref(), Some(&picture));
    assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG"));

    let busy = Wait { limit: Duration::from_secs(8), ..stall };
    let guest = world.guest("echo busy; while :; do :; done");
    let mut machine = guest.start(&world);
    line(&mut machine, "busy");
    let failure = fails(&mut machine, &busy);
    assert_eq!(failure.class, FailureClass::Deadline);
    assert!(failure.what.contains("within 8.0 s"), "{failure}");
}

#[test]
fn qemu_killed() {
    let Some(world) = World::new() else { return };
    let guest = world.guest("echo up; busybox sleep 1000000");
    for (signal, evidence) in [("-KILL", "signal 9"), ("-TERM", "exit status 0")] {
        let mut machine = guest.start(&world);
        line(&mut machine, "up");
        let process = machine.process_id().to_string();
        assert!(Command::new("kill").args([signal, &process]).status().unwrap().success());
        let failure = fails(&mut machine, &a_word());
        assert_eq!(failure.class, FailureClass::QemuKilled, "{failure}");
        assert_eq!(failure.evidence.exit.as_deref(), Some(evidence));
    }
}

#[test]
fn a_flood_on_the_console_is_cut() {
    let Some(world) = World::new() else { return };
    let guest = world.guest("busybox yes flood");
    let log = guest.path("log");
    let run = Run { console_limit: 100_000, console_log: Some(log.clone()), ..Run::default() };
    let mut machine = guest.start_with(&world, run);
    let process = machine.process_id();
    let failure = fails(&mut machine, &a_word());
    assert_eq!(failure.class, FailureClass::ConsoleFlood);
    assert!(!is_alive(process));
    assert_eq!(std::fs::metadata(log).unwrap().len(), 100_000);
}

#[test]
fn an_initramfs_over_half_of_memory_is_refused_and_seen() {
    let Some(world) = World::new() else { return };
    let guest = world.guest_with("echo up; busybox sleep 1000000", 70 << 20);
    let failure = Machine::start(&world.qemu, &guest.spec, Run::default()).unwrap_err();
    assert_eq!(failure.class, FailureClass::InitramfsTooLarge);
    assert!(failure.what.contains("may take half of the memory, 64 MiB"), "{failure}");
    // Archives one behind another, compressed: the file does not say how large they become. Linux says it, and goes on.
    let guest = world.guest("echo up; busybox sleep 1000000");
    let Boot::Kernel { initramfs, .. } = &guest.spec.boot else { unreachable!() };
    let mut file = std::fs::File::options().append(true).open(initramfs).unwrap();
    let mut ballast = Initramfs::new();
    ballast.file("/ballast", 0o644, vec![0; 80 << 20]).unwrap();
    ballast.write_gzip(&mut file).unwrap();
    Initramfs::new().write_gzip(&mut file).unwrap();
    let mut machine = guest.start(&world);
    let failure = fails(&mut machine, &a_word());
    assert_eq!(failure.class, FailureClass::InitramfsTooLarge, "{failure}");
    // Just below half on paper, and more than Linux has left beside it.
    let mut machine = world.guest_with("echo up; busybox sleep 1000000", 60 << 20).start(&world);
    assert_eq!(fails(&mut machine, &a_word()).class, FailureClass::InitramfsTooLarge);
}

#[test]
fn what_a_machine_starts_from_is_missing() {
    let Some(world) = World::new() else { return };
    let mut guest = world.guest("echo up");
    if let Boot::Kernel { kernel, .. } = &mut guest.spec.boot {
        *kernel = "/nowhere/vmlinux".into();
    }
    let failure = Machine::start(&world.qemu, &guest.spec, Run::default()).unwrap_err();
    assert_eq!(failure.class, FailureClass::NoKernel);
    assert!(failure.to_string().contains("/nowhere/vmlinux"), "{failure}");
}

#[test]
fn what_qemu_refuses_is_told_in_its_words() {
    let Some(world) = World::new() else { return };
    let mut guest = world.guest("echo up");
    guest.spec.cpu = "no-such-cpu".into();
    let failure = Machine::start(&world.qemu, &guest.spec, Run::default()).unwrap_err();
    assert_eq!(failure.class, FailureClass::QemuRefused);
    assert!(failure.evidence.qemu.iter().any(|line| line.contains("no-such-cpu")), "{:?}", failure.evidence);
}

#[test]
fn a_module_that_a_kernel_has_not_got_is_named() {
    let Some(world) = World::new() else { return };
    let place = tempfile::tempdir().unwrap();
    for file in ["modules.dep", "modules.softdep", "modules.alias", "modules.builtin"] {
        let text = std::fs::read_to_string(world.kernel.modules.join(file)).unwrap_or_default();
        let without: String =
            text.lines().filter(|line| !line.contains("9p")).map(|line| format!("{line}\n")).collect();
        std::fs::write(place.path().join(file), without).unwrap();
    }
    let poor = Kernel { modules: place.path().to_owned(), ..world.kernel.clone() };
    let made = linux::prepare(
        &poor,
        "/proc/self/exe".as_ref(),
        (&View::default(), &[]),
        512,
        world.elf.parent().unwrap(),
        &place.path().join("initramfs"),
    );
    let failure = Failure::from(made.unwrap_err());
    assert_eq!(failure.class, FailureClass::KernelLacksModule, "{failure}");
    assert!(failure.what.contains("9pnet"), "{failure}");
}

/// A Linux machine that reads a directory by this program in place of a virtiofsd; how that goes.
fn with_server(world: &World, program: &str) -> Failure {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    std::fs::create_dir_all(path("store/aaa-input")).unwrap();
    // By another process: whoever starts a script that this one has open for writing is refused.
    let write = format!("printf '#!/bin/sh\\n%s\\n' \"$1\" >{0}; chmod 755 {0}", path("server").display());
    assert!(Command::new("sh").args(["-c", &write, "sh", program]).status().unwrap().success());
    // It is never reached: whatever is there will do.
    std::fs::write(path("initramfs"), "none").unwrap();
    let directory = linux::Directory { outside: path("store"), inside: "/nix/store".into(), writable: true };
    let job = linux::Job {
        name: "guest".into(),
        kernel: world.elf.clone(),
        initramfs: path("initramfs"),
        qemu: Some(world.qemu.program.clone()),
        accelerator: Accelerator::Tcg,
        cpu: "max".into(),
        memory: 128,
        cores: 1,
        view: View { directories: vec![directory], ..View::default() },
        inputs: Some(linux::Inputs {
            directory: "/nix/store".into(),
            names: vec!["aaa-input".into()],
            way: linux::Way::Virtiofs {
                program: path("server"),
                socket: path("inputs.sock"),
                caching: anchorhold_vmm::shares::virtiofs::Caching::Always,
            },
            cache: anchorhold_vmm::shares::Cache::Loose,
            or_nine_p: false,
        }),
        disk: None,
        terminal: false,
        user: (0, 0),
        streams_apart: true,
        boot_limit: 60_000,
        boot_stall: 60_000,
        limit: None,
        console_limit: 1 << 20,
        clock: Clock::Virtual,
    };
    let visitors = anchorhold_vmm::visitors::Visitors::at(&path("visitors")).unwrap();
    let command = anchorhold_vmm::exchange::Command::new("/bin/true");
    let failure = linux::run(&job, command, &path("console"), visitors, &mut |_, _| Ok(()), &mut |_| ()).unwrap_err();
    println!("{failure}: {:?}", failure.evidence);
    failure
}

#[test]
fn a_server_of_a_directory_that_ends_before_the_machine_stands_is_told_and_not_qemus_complaint() {
    let Some(world) = World::new() else { return };
    // Ended when QEMU has connected already, which is in the list of sockets as one that nobody has accepted yet.
    let connected = "until grep -q ' 0[23] .*/inputs.sock$' /proc/net/unix; do :; done; exit";
    for (program, words) in [
        (&*format!("{connected} 4"), "(exit status 4; it said nothing)"),
        (&*format!("{connected} 0"), "(exit status 0; it said nothing)"),
        ("echo cannot serve >&2; exit 3", "(exit status 3; it last said “cannot serve”)"),
        ("exit 0", "(exit status 0; it said nothing)"),
        ("kill -SEGV $$", "(signal 11; it said nothing)"),
    ] {
        let failure = with_server(&world, program);
        assert_eq!(failure.class, FailureClass::NoShare, "{program}: {failure}");
        assert!(failure.what.contains("ended before the machine stood") && failure.what.contains(words), "{failure}");
    }
}
