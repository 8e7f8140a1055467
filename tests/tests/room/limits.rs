//! Limits of each process; time, silence and output; each with its own exit status and one clear line.

use std::fs;

use anchorhold_tests::room::Room;

use crate::{footprint, room};

/// Status and the one line on standard error.
fn ended(room: Room, words: &[&str]) -> (i32, String) {
    let ended = room.probe(words);
    (ended.status, ended.stderr)
}

#[test]
fn a_room_that_runs_too_long_is_ended_with_124() {
    let line = "anchorhold: the command was ended: it ran longer than 300ms\n";
    assert_eq!(ended(room().with(["--timeout", "300ms"]), &["hold"]), (124, line.into()));
}

#[test]
fn a_room_that_is_silent_too_long_is_ended_with_121() {
    let line = "anchorhold: the command was ended: it wrote nothing for 300ms\n";
    assert_eq!(ended(room().with(["--silence", "300ms"]), &["hold"]), (121, line.into()));
}

#[test]
fn a_room_that_speaks_now_and_then_is_not_silent() {
    let talker = room().with(["--silence", "2s"]).shell("for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done");
    assert_eq!(talker.lines().len(), 6);
}

#[test]
fn a_room_that_writes_too_much_is_ended_with_122_and_shows_as_much_as_it_may() {
    let ended = room().with(["--max-output", "1K"]).probe(["write-lines", "1000000"]);
    assert_eq!(ended.status, 122, "{ended:?}");
    assert_eq!(ended.stdout.len(), 1024);
    assert_eq!(ended.stderr, "anchorhold: the command was ended: it wrote more than 1K of output\n");
}

#[test]
fn a_room_that_writes_exactly_as_much_as_it_may_is_not_ended() {
    // 15 lines of 64 bytes and `written` with its newline.
    let ended = room().with(["--max-output", "968"]).probe(["write-lines", "15"]);
    assert_eq!((ended.status, ended.stdout.len()), (0, 968), "{ended:?}");
}

#[test]
fn processes_are_bounded_when_asked() {
    let answer = room().with(["--pids", "20"]).probe(["start-until-refused", "60"]).line();
    assert_eq!(answer, "EAGAIN after 19");
}

#[test]
fn without_limits_and_cgroup_processes_are_not_bounded() {
    let answer = room().without("limits").probe(["start-until-refused", "60"]).line();
    assert_eq!(answer, "none refused of 60");
}

#[test]
fn processes_of_two_rooms_are_counted_apart() {
    let rooms: Vec<_> =
        (0..3).map(|_| room().with(["--pids", "20"]).start_probe(["start-until-refused", "60"])).collect();
    for running in rooms {
        assert_eq!(running.to_the_end().line(), "EAGAIN after 19");
    }
}

#[test]
fn no_core_file_is_written() {
    let limits = room().probe(["read", "/proc/self/limits"]).lines();
    let core = limits.iter().find(|line| line.starts_with("Max core file size")).expect("a line for it");
    assert_eq!(core.split_ascii_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
}

/// A room with limits that only a room file names.
fn limited(text: &str) -> (anchorhold_tests::host::Footprint, Room) {
    let footprint = footprint();
    let file = footprint.path("room.toml");
    let whole = format!("[limits]\n{text}\n[[mount]]\nkind = \"tmpfs\"\ninside = \"/tmp\"\n");
    fs::write(&file, whole).expect("a room file");
    let room = room().with(["--room", file.to_str().expect("a plain path")]);
    (footprint, room)
}

#[test]
fn the_size_of_a_file_is_bounded() {
    let (_footprint, room) = limited("file-size = \"1M\"");
    assert_eq!(room.probe(["fill", "/tmp/file", "4000000"]).line(), "EFBIG after 1048576");
}

#[test]
fn the_address_space_is_bounded() {
    let (_footprint, room) = limited("address-space = \"256M\"");
    assert_eq!(room.clone().probe(["allocate", "300000000"]).line(), "ENOMEM");
    assert_eq!(room.probe(["allocate", "4096"]).line(), "done, 1");
}

#[test]
fn processor_time_is_bounded() {
    // Behind --init, as the kernel's signal for it does not end a first process; the hard limit is SIGKILL's.
    let (_footprint, room) = limited("process-time = \"1s\"");
    let ended = room.with(["--init"]).probe(["spin"]);
    assert!([128 + 24, 128 + 9].contains(&ended.status), "{ended:?}");
}

#[test]
fn open_files_are_bounded() {
    let (_footprint, room) = limited("open-files = 32");
    let limits = room.probe(["read", "/proc/self/limits"]).lines();
    let files = limits.iter().find(|line| line.starts_with("Max open files")).expect("a line for it");
    assert_eq!(files.split_ascii_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["32", "32"], "{files}");
}
