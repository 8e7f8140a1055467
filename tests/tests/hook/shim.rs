//! The shim alone, between a Nix and a helper that are both ours.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anchorhold_tests::room::anchorhold;

use crate::world::write_program;

/// What a Nix sends: settings, then anything.
fn input(settings: &[(&str, &str)], rest: &[u8]) -> Vec<u8> {
    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    let mut bytes = Vec::new();
    for (name, value) in settings {
        bytes.extend(1u64.to_le_bytes());
        text(&mut bytes, name);
        text(&mut bytes, value);
    }
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(rest);
    bytes
}

/// Runs the shim with this script as the helper.
fn shim(directory: &Path, script: &str, input: &[u8]) -> Output {
    let helper = directory.join("helper");
    write_program(&helper, &format!("#!/bin/sh\ncd {}\n{script}\n", directory.display()));
    // As Nix has it: 4 is the pipe of the log, and 5 is its other end.
    let line = format!("exec \"$0\" hook --build-remote {} 3 4>{}", helper.display(), directory.join("log").display());
    let mut child = Command::new("sh")
        .args(["-c", &line])
        .arg(anchorhold())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A helper that does not read is no failure of this test.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[test]
fn settings_are_sent_on_with_the_builders_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let settings = [("cores", "3"), ("builders", "@/etc/nix/machines"), ("timeout", "9"), ("store", "auto")];
    let rest = [7u8; 100_000];
    let script =
        "cat > got; echo \"$ANCHORHOLD_HOOK\" > carried; echo \"$@\" > arguments; echo of the build >&4; exit 9";
    let output = shim(directory.path(), script, &input(&settings, &rest));
    assert_eq!(output.status.code(), Some(9), "the helper's own: {}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| fs::read(directory.path().join(name)).unwrap();
    assert_eq!(read("arguments"), b"3\n");
    assert_eq!(read("log"), b"of the build\n");
    let carried: serde_json::Value = serde_json::from_slice(&read("carried")).unwrap();
    assert_eq!((&carried["timeout"], &carried["cores"], &carried["store"]), (&9.into(), &3.into(), &"auto".into()));

    let got = read("got");
    let system = format!("{}-linux", std::env::consts::ARCH);
    let at = got.windows(9).position(|window| window == b"ssh-ng://").expect("our machine is named");
    let length = usize::try_from(u64::from_le_bytes(got[at - 8..at].try_into().unwrap())).unwrap();
    let machine = std::str::from_utf8(&got[at..at + length]).unwrap();
    let fields: Vec<&str> = machine.split(' ').collect();
    let program = fs::canonicalize(anchorhold()).unwrap();
    assert_eq!(fields[0], format!("ssh-ng://localhost?remote-program={}%20hook", program.display()));
    assert!(fields[1].split(',').any(|one| one == system), "{machine}");
    assert_eq!(fields.len(), 7, "{machine}");
    let mut expected = settings;
    expected[1].1 = machine;
    assert!(got == input(&expected, &rest), "nothing else is changed");
}

#[test]
fn what_a_helper_does_not_read_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    let output = shim(directory.path(), "exit 0", &input(&[("store", "auto")], &[7; 1_000_000]));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_is_no_list_of_settings_starts_no_helper() {
    let directory = tempfile::tempdir().unwrap();
    for (bytes, words) in [
        (&b"GET / HTTP/1.1\r\n"[..], "is this a build hook's input?"),
        (b"\x01\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f", "length"),
        (b"\x01\0\0\0\0\0\0\0\x04\0", "ended"),
    ] {
        let output = shim(directory.path(), "echo > started", bytes);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("anchorhold: ") && said.contains(words), "{said}");
        assert!(!directory.path().join("started").exists());
    }
}

#[test]
fn a_nix_that_goes_away_at_once_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    let output = shim(directory.path(), "echo > started", b"");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!directory.path().join("started").exists());
}

#[test]
fn the_machine_is_not_for_anybody() {
    let output = Command::new(anchorhold())
        .args(["hook", "--stdio"])
        .env_remove("ANCHORHOLD_HOOK")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("ANCHORHOLD_HOOK is not set"));
}
