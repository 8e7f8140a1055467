//! What observers set up is gone afterwards, however the audit ends.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anchorhold_tests::PATIENCE;
use anchorhold_tests::host::Process;
use nix::sys::signal::Signal;

use crate::{AUDITS, start};

/// Everything of ours that lies about on this host.
fn traces() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in ["/var/tmp", "/tmp", "/dev/shm"] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("anchorhold-audit-") || (folder == "/dev/shm" && name.starts_with("anchorhold-")) {
                found.insert(format!("{folder}/{name}"));
            }
        }
    }
    let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    found.extend(segments.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.len() > 3 && words[2] == "666" && words[3] == "4096").then(|| format!("segment {}", words[0]))
    }));
    found.extend(observers().into_iter().map(|pid| format!("process {pid}")));
    found
}

/// Launchers' parents and victims.
fn observers() -> Vec<i32> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(Process::read)
        .filter(|process| {
            let line = process.command_line();
            let mut words = line.split('\0');
            words.next().is_some_and(|program| program.ends_with("/observer"))
                && matches!(words.next(), Some("observe" | "sleep"))
        })
        .map(|process| process.pid)
        .collect()
}

#[track_caller]
fn wait_for(what: &str, mut until: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !until() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn nothing_is_left_behind() {
    let _alone = AUDITS.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    let before = traces();
    let words = [
        "--no-baseline",
        "--controls",
        "none",
        "--in",
        "room",
        "--in",
        "build",
        "--only",
        "ipc",
        "--only",
        "key",
        "--only",
        "net",
    ];
    start(&words).to_the_end().expect_success();
    // The control leaves an output that is read-only, as a store's are.
    start(&["--no-baseline", "--in", "build", "--only", "out.modes"]).to_the_end().expect_success();
    assert_eq!(traces(), before);
}

#[test]
fn nothing_is_left_behind_by_an_audit_that_is_interrupted_or_killed() {
    let _alone = AUDITS.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    let before = traces();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let folder = tempfile::tempdir().expect("a folder");
        // An ordinary user may have to write here.
        let ready = folder.path().join("ready");
        let line = format!("touch {}; trap '' HUP; sleep 4711 # {{}}", ready.display());
        let running = start(&["--no-baseline", "--controls", "none", "--in", &line]);
        wait_for("the sandbox was never started", || ready.exists());
        running.signal(signal);
        let ended = running.to_the_end();
        match signal {
            Signal::SIGKILL => {
                wait_for("observers outlived a killed audit", || observers().is_empty());
                // Its folder is what nobody could take away.
                for trace in traces().difference(&before) {
                    let folder = std::path::Path::new(trace);
                    assert!(trace.starts_with("/var/tmp/anchorhold-audit-"), "{trace}");
                    fs::remove_dir_all(folder).expect("ours");
                }
            }
            _ => assert_eq!(ended.status, 130, "{ended:?}"),
        }
        assert_eq!(traces(), before, "{signal}");
    }
}
