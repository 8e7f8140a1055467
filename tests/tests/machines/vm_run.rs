//! `anchorhold vm run`: a command in a machine of its own.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use anchorhold_tests::room::anchorhold;
use anchorhold_tests::running::Running;
use anchorhold_tests::terminal::Terminal;
use anchorhold_tests::{PATIENCE, host};
use serde_json::Value;

use crate::world::has_machines;

fn vm_run<T: AsRef<OsStr>>(options: &[&str], words: impl IntoIterator<Item = T>) -> Command {
    let mut command = Command::new(anchorhold());
    command.args(["vm", "run", "--option", "accel", "tcg"]).args(options).arg("--").args(words).stdin(Stdio::null());
    command
}

fn shell(options: &[&str], script: &str) -> Output {
    vm_run(options, ["/bin/sh", "-c", script]).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_status_and_both_streams_are_the_commands_own() {
    if !has_machines() {
        return;
    }
    let output = shell(&[], "echo out; echo err >&2; cat /proc/sys/kernel/osrelease; exit 37");
    assert_eq!(output.status.code(), Some(37), "{}", text(&output.stderr));
    let out = text(&output.stdout);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!((lines[0], lines.len(), text(&output.stderr).as_str()), ("out", 2, "err\n"));
    // Statuses that mean something elsewhere are statuses like all others.
    for status in [0, 120, 255] {
        assert_eq!(shell(&[], &format!("exit {status}")).status.code(), Some(status));
    }
}

#[test]
fn without_a_command_it_is_a_shell_on_the_callers_terminal() {
    let Some(kernel) = anchorhold_tests::machines::guest_kernel() else { return };
    let mut command = Command::new(anchorhold());
    command.args(["vm", "run", "--option", "accel", "tcg"]);
    let mut terminal = Terminal::start(&command);
    terminal.shows("# ");
    // Each is typed only when somebody waits for it: a shell changes the terminal between its prompts and its programs, and what
    // is typed meanwhile may get another meaning or none.
    terminal.types("uname -r\r");
    let version = format!("\r{}\r\n", kernel.version);
    terminal.shows_behind(&version, "# ");
    // What is typed reaches programs, and keys mean there what they mean everywhere.
    terminal.types("echo ready; cat\r");
    terminal.shows("\rready\r\n");
    terminal.types("word\r");
    terminal.shows("word\r\nword\r\n");
    terminal.types("\x03");
    terminal.shows_behind("^C", "# ");
    terminal.types("echo status $?; exit 7\r");
    terminal.shows("status 130");
    let (shown, status) = terminal.to_the_end();
    assert_eq!(status, 7, "{shown}");
}

#[test]
fn without_a_command_and_without_a_terminal_it_says_so() {
    let output = Command::new(anchorhold()).args(["vm", "run"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("give a command behind --"), "{}", text(&output.stderr));
}

#[test]
fn a_disk_that_is_asked_for_is_there_and_blank() {
    if !has_machines() {
        return;
    }
    let output = shell(&["--disk", "8M"], "cat /sys/block/vda/size; cmp -n 8388608 /dev/vda /dev/zero && echo blank");
    assert_eq!(text(&output.stdout), "16384\nblank\n", "{}", text(&output.stderr));
}

#[test]
fn odd_arguments_and_variables_arrive_as_they_are() {
    if !has_machines() {
        return;
    }
    let odd = OsString::from_vec(b" two\nlines 'quoted' \"twice\" 100% $HOME \\ \xff\xfe `x` ".to_vec());
    let long = "x".repeat(100_000);
    let mut assignment = OsString::from("ODD=");
    assignment.push(&odd);
    let mut command = Command::new(anchorhold());
    command.args(["vm", "run", "--option", "accel", "tcg", "--env"]).arg(&assignment);
    command.args(["--", "/bin/sh", "-c", "printf %s \"$1\" \"$ODD\" ${#2}", "name"]).arg(&odd).arg(&long);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let odd = odd.into_vec();
    assert!(output.stdout == [&odd[..], &odd, b"100000"].concat(), "{:?}", text(&output.stdout));
}

#[test]
fn a_guest_sees_what_it_is_shown_and_no_network() {
    if !has_machines() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(place.path().join("in"), "hello").unwrap();
    let (ro, rw) = (format!("/ro={}", place.path().display()), format!("/rw={}", place.path().display()));
    let script = "cat /ro/in; echo; ls /sys/class/net; echo x >/ro/no 2>/dev/null || echo kept; echo new >/rw/new; ls /home 2>&1 | head -1";
    let output = shell(&["--ro", &ro, "--rw", &rw], script);
    let out = text(&output.stdout);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[..3], ["hello", "lo", "kept"], "{out}{}", text(&output.stderr));
    assert!(lines[3].contains("No such file"), "{out}");
    assert_eq!(std::fs::read_to_string(place.path().join("new")).unwrap(), "new\n");
    // Without it, it is not there.
    let output = shell(&[], "cat /ro/in");
    assert_ne!(output.status.code(), Some(0));
}

#[test]
fn a_machine_that_ends_before_the_status_gives_none() {
    if !has_machines() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let result = place.path().join("result.json");
    // The kernel's own way out, behind the back of everything in user space; meanwhile the shell does not end.
    for (key, class, words) in [("o", "power-off", "the guest was powered off"), ("c", "panic", "kernel panicked")] {
        let script = format!("echo bye; echo {key} >/proc/sysrq-trigger; while :; do :; done");
        let output = shell(&["--result", result.to_str().unwrap()], &script);
        assert_eq!(
            (output.status.code(), text(&output.stdout).as_str()),
            (Some(120), "bye\n"),
            "{}",
            text(&output.stderr)
        );
        let told: Value = serde_json::from_slice(&std::fs::read(&result).unwrap()).unwrap();
        assert_eq!((told["result"].as_str(), told["class"].as_str()), (Some("failed"), Some(class)), "{told}");
        assert!(text(&output.stderr).contains(words), "{}", text(&output.stderr));
    }
}

#[test]
fn what_cannot_be_started_is_refused_with_words() {
    if !has_machines() {
        return;
    }
    let refused = |options: &[&str], words: &str| {
        let output = vm_run(options, ["/bin/true"]).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(words), "{}", text(&output.stderr));
    };
    refused(&["--option", "vm-qemu", "/nowhere/qemu"], "(no-qemu)");
    refused(&["--option", "vm-kernel", "/nowhere/kernel"], "(no-kernel)");
    refused(&["--option", "vm-agent", "/nowhere/agent"], "/nowhere/agent");
    refused(&["--memory", "16M"], "(initramfs-too-large)");
    // Where KVM is of use, there is nothing to refuse.
    if anchorhold_sandbox::kvm::probe(true).is_err() {
        refused(&["--option", "accel", "kvm"], "(accelerator-unusable)");
    }
    refused(&["--ro", "/etc/passwd"], "only directories");
    let output = vm_run(&[], ["/no/such/program"]).output().unwrap();
    assert_eq!(output.status.code(), Some(126));
    assert!(text(&output.stderr).contains("/no/such/program"), "{}", text(&output.stderr));
}

#[test]
fn a_machine_without_an_ssh_server_says_how_to_look_at_it() {
    if !has_machines() {
        return;
    }
    let mut command = vm_run(&[], ["/bin/sh", "-c", "echo up; sleep 1000000"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start(command);
    assert_eq!(running.line(), "up");
    let name = format!("linux-{}", running.pid());
    let output = Command::new(anchorhold()).args(["vm", "ssh", &name, "--", "true"]).output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert!(told.contains("no SSH server") && told.contains(&format!("`anchorhold vm console {name}`")), "{told}");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.to_the_end();
}

#[test]
fn nothing_is_left_of_a_machine_whose_caller_is_killed() {
    if !has_machines() {
        return;
    }
    // One that is killed cannot take its files away.
    let place = tempfile::tempdir().unwrap();
    let mut command = vm_run(&[], ["/bin/sh", "-c", "echo up; sleep 1000000"]);
    command.env("TMPDIR", place.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start(command);
    assert_eq!(running.line(), "up");
    let processes = running.processes();
    let is_qemu = |process: &host::Process| process.command_line().contains("qemu-system");
    assert!(processes.iter().any(is_qemu), "{processes:?}");
    running.signal(nix::sys::signal::Signal::SIGKILL);
    for process in processes {
        assert!(host::wait_for_end(process.pid, PATIENCE), "{process:?} is left");
    }
}
