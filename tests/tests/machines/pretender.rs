//! What a QEMU, or a guest that has taken it over, may say and do: a program that only pretends to be one. It needs no kernel.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anchorhold_vmm::exchange::Command;
use anchorhold_vmm::failure::{Failure, FailureClass};
use anchorhold_vmm::linux::{Agent, End};
use anchorhold_vmm::machine::{Machine, Run};
use anchorhold_vmm::qemu::Installed;
use anchorhold_vmm::readiness::{Verdict, Wait, wait};
use anchorhold_vmm::report::{Ending, PORT_NAME, Report, RunRequest, Streams};
use anchorhold_vmm::spec::MachineSpec;

use crate::world::PATIENCE;

/// A pretender that greets and does `on_go` when it is told to go. `$c` is its control socket, `$p` its port, `$d` its folder.
struct Pretender {
    place: tempfile::TempDir,
    qemu: Installed,
}

const GREETING: &str =
    r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}"#;

impl Pretender {
    fn new(on_go: &str) -> Self {
        Self::greeting(GREETING, on_go)
    }

    fn greeting(greeting: &str, on_go: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let script = format!(
            r#"#!/bin/bash
case $1 in
--version) echo "QEMU emulator version 7.2.0"; exit;;
-machine) printf 'Supported machines are:\npc-i440fx-7.2 x\n'; exit;;
esac
d={place}
for a in "$@"; do case $a in
socket,id=control,fd=*) c=${{a##*=}};;
socket,id=port0,fd=*) p=${{a##*=}};;
esac; done
say() {{ echo "$1" >&$c; }}
tell() {{ cat "$1" >&$p; }}
hear() {{ IFS= read -r line <&$c; }}
say '{greeting}'
n=0
while hear; do
  n=$((n + 1))
  say "{{\"return\": {{}}, \"id\": $n}}"
  case $line in *'"cont"'*) {on_go} ;; esac
done
"#,
            place = place.path().display()
        );
        let path = place.path().join("qemu");
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path).unwrap();
        file.write_all(script.as_bytes()).unwrap();
        drop(file);
        std::fs::write(place.path().join("kernel"), "kernel").unwrap();
        // Another test's child may have been born while the script was open for writing, and holds it until it has become a
        // program of its own: no event tells of that.
        let qemu = loop {
            match Installed::find(Some(&path), None) {
                Err(failure) if failure.what.contains("Text file busy") => std::thread::yield_now(),
                found => break found.unwrap(),
            }
        };
        Self { place, qemu }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// A file of these reports, for `tell`.
    fn reports(&self, name: &str, reports: &[Report]) {
        let bytes: Vec<u8> = reports.iter().flat_map(|report| report.encode().unwrap()).collect();
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn try_start(&self, patience: Duration) -> Result<Machine, Failure> {
        let file: &Path = &self.path("kernel");
        let mut spec = MachineSpec::linux("guest", file, file, 64);
        spec.ports.push(PORT_NAME.into());
        Machine::start(&self.qemu, &spec, Run { control_patience: patience, ..Run::default() })
    }

    fn start(&self) -> Machine {
        let mut machine = self.try_start(PATIENCE).unwrap();
        machine.go().unwrap();
        machine
    }
}

fn soon() -> Wait {
    Wait::new("what never comes", PATIENCE)
}

/// It may fail as soon as it is told to go, or later.
#[track_caller]
fn fails(pretender: &Pretender, class: FailureClass, words: &str) {
    let mut machine = pretender.try_start(PATIENCE).unwrap();
    let later = |machine: &mut Machine| wait(machine, &soon(), |_, _| Verdict::<()>::GoOn).unwrap_err();
    let failure = machine.go().err().unwrap_or_else(|| later(&mut machine));
    assert_eq!(failure.class, class, "{failure}");
    assert!(failure.to_string().contains(words), "{failure}");
}

fn a_run() -> RunRequest {
    RunRequest { command: Ok(Command::new("/bin/true")), user: None, streams: Streams::Together, alone: true }
}

#[test]
fn a_qemu_that_says_nothing_is_silent_and_one_that_says_nonsense_has_failed() {
    let silent = Pretender::greeting(GREETING, "");
    std::fs::write(silent.path("qemu"), "#!/bin/sh\nwhile :; do read line; done </dev/zero\n").unwrap();
    let failure = silent.try_start(Duration::from_millis(300)).unwrap_err();
    assert_eq!(failure.class, FailureClass::QemuSilent, "{failure}");

    let failure = Pretender::greeting("{\"QMP\": 1}", "").try_start(PATIENCE).unwrap_err();
    assert_eq!(failure.class, FailureClass::QemuFailed);
    assert!(failure.what.contains("no QMP"), "{failure}");

    fails(&Pretender::new("say nonsense"), FailureClass::QemuFailed, "not JSON");
}

#[test]
fn a_qemu_that_ends_with_an_error_has_failed_in_its_own_words() {
    fails(
        &Pretender::new("echo 'virtio: zero sized buffers' >&2; exit 1"),
        FailureClass::QemuFailed,
        "zero sized buffers",
    );
    // And with 0, without a word of why, there is no status either.
    fails(&Pretender::new("exit 0"), FailureClass::QemuFailed, "exit status 0");
}

#[test]
fn a_disk_that_fails_under_a_machine_is_told() {
    let event = r#"{"event": "BLOCK_IO_ERROR", "data": {"device": "d", "operation": "write", "action": "ACTION", "nospace": FULL, "reason": "No space left on device"}}"#;
    let say = |action: &str, full: &str| format!("say '{}'", event.replace("ACTION", action).replace("FULL", full));
    fails(
        &Pretender::new(&say("stop", "true")),
        FailureClass::DiskError,
        "write of a disk failed: No space left on device",
    );
    // What the guest is told of, it may know what to do with.
    let mut machine = Pretender::new(&say("report", "false")).start();
    let waited = Wait::new("nothing", Duration::from_millis(300));
    assert_eq!(wait(&mut machine, &waited, |_, _| Verdict::<()>::GoOn).unwrap_err().class, FailureClass::Deadline);
}

#[test]
fn an_agent_that_gives_up_is_heard() {
    let pretender = Pretender::new("tell $d/said");
    pretender.reports("said", &[Report::Died { why: "no store".into() }]);
    let failure = Agent::default().ready(&mut pretender.start(), &soon()).unwrap_err();
    assert_eq!(failure.class, FailureClass::GuestRefused);
    assert!(failure.what.contains("no store"), "{failure}");
}

#[test]
fn output_is_no_status_and_without_one_there_is_none() {
    let ended = |status| Report::Ended { number: 1, ending: Ending::Exited(status) };
    let fake = Report::Output { number: 1, error: false, bytes: ended(0).encode().unwrap() };
    // What ends a run that never told its status, and what that is called.
    let ends = [
        ("tell $d/said", Some(Report::Died { why: "cut".into() }), FailureClass::NoStatus),
        ("cat $d/said - <<<garbage >$d/g; tell $d/g", None, FailureClass::BadReport),
        ("tell $d/said; exit 0", None, FailureClass::QemuFailed),
        ("tell $d/said; kill -9 $$", None, FailureClass::QemuKilled),
    ];
    for (does, last, class) in ends {
        let pretender = Pretender::new(does);
        let said: Vec<Report> = std::iter::once(fake.clone()).chain(last).collect();
        pretender.reports("said", &said);
        let mut heard = Vec::new();
        let mut take = |_: bool, bytes: &[u8]| {
            heard.extend_from_slice(bytes);
            Ok(())
        };
        let failure = Agent::default().run(&mut pretender.start(), a_run(), &soon(), &mut take).unwrap_err();
        assert_eq!(failure.class, class, "{failure}");
        assert!(heard == ended(0).encode().unwrap());
    }
    // With one, it is the one that the agent told.
    let pretender = Pretender::new("tell $d/said");
    pretender.reports("said", &[fake, ended(7)]);
    let end = Agent::default().run(&mut pretender.start(), a_run(), &soon(), &mut |_, _| Ok(())).unwrap();
    assert_eq!(end, End::Status(7));
}
