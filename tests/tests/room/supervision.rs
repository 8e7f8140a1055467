//! How rooms end, and what is left of them: nothing, whatever way it goes.

use std::time::{Duration, Instant};

use anchorhold_tests::host::{self, Footprint};
use anchorhold_tests::running::Running;
use anchorhold_tests::{probe, skip};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::{footprint, room};

/// A room dies with its supervisor within this: nothing in it ends by itself, and a busy host takes its time.
const AT_ONCE: Duration = Duration::from_secs(20);

#[test]
fn everything_in_a_room_is_dead_before_the_command_line_returns() {
    for kind in [&[][..], &["--init"], &["--tty"], &["--id-range"], &["--profile", "nested"], &["--timeout", "60"]] {
        let footprint = footprint();
        let running = footprint.room().with(kind).start_probe(["daemon", &footprint.marker]);
        let supervisor = running.pid();
        let ended = running.to_the_end();
        if ended.status == 125 && kind == ["--id-range"] {
            skip("this user has no range of ids that reaches the directory for temporary files");
            continue;
        }
        assert!(ended.stdout.contains("ready") && ended.stdout.contains("left it alone"), "{kind:?}: {ended:?}");
        footprint.assert_nothing_left(supervisor);
    }
}

#[test]
fn without_namespaces_a_process_can_outlive_its_room() {
    let footprint = footprint();
    let ended = footprint.room().without("namespaces").probe(["daemon", &footprint.marker]);
    assert!(ended.stdout.contains("left it alone"), "{ended:?}");
    let left = host::processes_that_name(&footprint.marker);
    for pid in &left {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    assert!(!left.is_empty(), "then this test does not show what the layer is for");
}

#[test]
fn nothing_is_left_after_any_kind_of_end() {
    let ends: [(&[&str], &[&str], i32); 8] = [
        (&[], &["exit", "0"], 0),
        (&[], &["exit", "9"], 9),
        (&["--init"], &["die", "9"], 137),
        (&["--timeout", "300ms"], &["hold"], 124),
        (&["--silence", "300ms"], &["hold"], 121),
        (&["--max-output", "100"], &["write-lines", "100000"], 122),
        (&["--cwd", "/nowhere"], &["hold"], 125),
        (&["--argv0", "x", "--no-usr", "--network", "none"], &["exit", "1"], 1),
    ];
    for (options, command, status) in ends {
        let footprint = footprint();
        let running = footprint.room().with(options).start_probe(command);
        let supervisor = running.pid();
        assert_eq!(running.to_the_end().status, status, "{options:?} {command:?}");
        footprint.assert_nothing_left(supervisor);
    }
}

/// A room whose payload does all it can so as not to die: it and the descendant that it started, as the host sees them.
fn defiant(footprint: &Footprint, options: &[&str], started_by: &[&str]) -> (Running, Vec<host::Process>) {
    let room = footprint.room().with(options).started_by(started_by);
    let mut running = room.start_probe(["defy", &footprint.marker]);
    // A terminal ends its lines with a carriage return, too.
    assert_eq!(running.line().trim_end(), "ready");
    let processes = running.processes();
    let in_room = |process: &&host::Process| process.command_line().starts_with(probe::INSIDE);
    assert!(processes.iter().filter(in_room).count() >= 2, "{processes:?}");
    (running, processes)
}

fn all_end_at_once(processes: &[host::Process]) {
    let begun = Instant::now();
    for process in processes {
        let left = AT_ONCE.saturating_sub(begun.elapsed());
        assert!(host::wait_for_end(process.pid, left), "still alive after {:?}: {process:?}", begun.elapsed());
    }
}

#[test]
fn a_room_dies_with_its_killed_supervisor_whatever_its_payload_does() {
    for kind in [&[][..], &["--init"], &["--profile", "nested"], &["--tty"]] {
        let footprint = footprint();
        let (running, processes) = defiant(&footprint, kind, &[]);
        let supervisor = running.pid();
        running.signal(Signal::SIGKILL);
        all_end_at_once(&processes);
        drop(running);
        footprint.assert_nothing_left(supervisor);
    }
}

#[test]
fn a_room_dies_with_the_killed_process_group_of_its_supervisor() {
    let footprint = footprint();
    let (running, processes) = defiant(&footprint, &[], &["setsid"]);
    killpg(Pid::from_raw(running.pid()), Signal::SIGKILL).expect("setsid made the supervisor a leader");
    all_end_at_once(&processes);
}

#[test]
fn a_room_in_the_making_dies_with_its_killed_supervisor() {
    // Somewhere between the first step and the payload: nobody can tell where, so there are many.
    for microseconds in (0..30_000).step_by(1000) {
        let footprint = footprint();
        let running = footprint.room().start_probe(["hold", &footprint.marker]);
        std::thread::sleep(Duration::from_micros(microseconds));
        let supervisor = running.pid();
        running.signal(Signal::SIGKILL);
        assert_eq!(running.to_the_end().status, 137);
        let gone = || host::processes_that_name(&footprint.marker).is_empty();
        assert!(
            host::poll_until(AT_ONCE, gone),
            "killed after {microseconds} µs: {:?}",
            host::processes_that_name(&footprint.marker)
        );
        footprint.assert_nothing_left(supervisor);
    }
}

#[test]
fn a_room_whose_payload_ignores_everything_is_ended_by_its_time_limit() {
    let footprint = footprint();
    let running = footprint.room().with(["--timeout", "500ms"]).start_probe(["defy", &footprint.marker]);
    let supervisor = running.pid();
    assert_eq!(running.to_the_end().status, 124);
    footprint.assert_nothing_left(supervisor);
}

const FORWARDED: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM];

#[test]
fn signals_reach_a_payload_that_takes_them() {
    for way in ["catch", "catch-waiting"] {
        let mut running = room().start_probe([way]);
        assert_eq!(running.line(), "ready");
        for signal in FORWARDED {
            running.signal(signal);
            assert_eq!(running.line(), signal.as_str(), "{way}");
        }
        let ended = running.to_the_end();
        assert_eq!(ended.status, 0, "{way} {ended:?}");
    }
}

#[test]
fn a_signal_ends_a_payload_that_does_not_take_it() {
    for signal in FORWARDED {
        for kind in [&[][..], &["--init"]] {
            let footprint = footprint();
            let mut running = footprint.room().with(kind).start_probe(["hold", &footprint.marker]);
            assert_eq!(running.line(), "ready");
            let supervisor = running.pid();
            running.signal(signal);
            assert_eq!(running.to_the_end().status, 128 + signal as i32, "{signal} {kind:?}");
            footprint.assert_nothing_left(supervisor);
        }
    }
}

#[test]
fn a_payload_may_ignore_a_signal() {
    let mut running = room().start_probe(["defy"]);
    assert_eq!(running.line(), "ready");
    for signal in FORWARDED {
        running.signal(signal);
    }
    // The signals were taken in order; this one makes the supervisor look, and it is still there.
    assert!(!host::wait_for_end(running.pid(), Duration::from_millis(300)));
}

#[test]
fn a_supervisor_whose_reader_has_gone_ends_the_room_as_in_any_pipeline() {
    let footprint = footprint();
    let script = r#"set -o pipefail; "$@" | head -1"#;
    let running =
        footprint.room().started_by(&["bash", "-c", script, "bash"]).start_probe(["write-lines", "100000000"]);
    let shell = running.pid();
    let ended = running.to_the_end();
    assert_eq!((ended.status, ended.stderr.as_str()), (128 + 13, ""), "{ended:?}");
    footprint.assert_nothing_left(shell);
}

#[test]
fn what_was_written_before_the_end_arrives_whole_though_an_orphan_holds_the_pipe() {
    let lines = room().shell("(sleep 1000 &); seq 100000").lines();
    assert_eq!((lines.len(), lines.last().map(String::as_str)), (100_000, Some("100000")));
}

#[test]
fn a_room_leaves_no_zombie_to_whoever_is_the_supervisors_parent() {
    let footprint = footprint();
    // The shell lives on after the room and lists its children.
    let script = r#""$@"; ps -o pid= --ppid $$ | wc -l"#;
    let running =
        footprint.room().started_by(&["/bin/sh", "-c", script, "sh"]).start_probe(["daemon", &footprint.marker]);
    let lines = running.to_the_end().lines();
    // ps itself, and the subshell of the pipe on shells that fork for it.
    let children: u32 = lines.last().and_then(|line| line.trim().parse().ok()).expect("a number");
    assert!(children <= 2, "{lines:?}");
}
