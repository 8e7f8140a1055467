//! Descriptors 0, 1 and 2 and no other; a session of its own; the caller's terminal out of reach.

use anchorhold_tests::room::Room;
use anchorhold_tests::terminal::Terminal;

use crate::room;

/// Started by somebody who has a directory open as number 57.
fn started_with_57(room: Room) -> Room {
    room.started_by(&["bash", "-c", r#"exec 57</; exec "$@""#, "bash"])
}

#[test]
fn the_payload_has_descriptors_0_1_and_2_and_no_other() {
    let lines = started_with_57(room()).probe(["descriptors"]).lines();
    assert_eq!(lines, ["0 /dev/null", "1 pipe", "2 pipe"]);
}

#[test]
fn without_the_layer_a_descriptor_of_the_caller_is_there() {
    let lines = started_with_57(room()).without("descriptors").probe(["descriptors"]).lines();
    assert!(lines.iter().any(|line| line.starts_with("57 ")), "{lines:?}");
}

#[test]
fn what_is_piped_in_is_read_and_the_two_streams_stay_apart() {
    let ended = room().fed(b"word\n").shell("cat; echo other >&2").expect_success();
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("word\n", "other\n"));
}

#[test]
fn the_streams_can_be_opened_by_name() {
    // As `tee /dev/stderr` does. The pipes are made by another user than the room's, when root starts it.
    let ended = room().shell("echo one > /dev/stdout; echo two | tee /dev/stderr").expect_success();
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("one\ntwo\n", "two\n"));
}

#[test]
fn bytes_pass_unchanged_in_both_directions() {
    let all: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let ended = room().fed(&all).shell("cksum").expect_success();
    let expected =
        Room::new().fed(&all).started_by(&["/bin/sh", "-c", "cksum", "sh"]).run(["ignored"]).expect_success();
    assert_eq!(ended.stdout, expected.stdout);
}

#[test]
fn the_payload_has_no_controlling_terminal() {
    assert_eq!(room().probe(["controlling-terminal"]).line(), "ENXIO");
}

/// What a payload answers whose caller sits at a terminal.
fn at_a_terminal(room: Room, words: &[&str]) -> String {
    let mut line = room.with_probe().command_line();
    line.arg("--").arg(anchorhold_tests::probe::INSIDE).args(words);
    let (shown, status) = Terminal::start(&line).to_the_end();
    assert_eq!(status, 0, "{shown}");
    shown.lines().last().unwrap_or_default().trim().to_owned()
}

#[test]
fn nothing_can_be_typed_into_the_callers_terminal() {
    // The terminal is neither handed over as a stream nor to be had by name.
    assert_eq!(at_a_terminal(room(), &["are-terminals"]), "false false false");
    assert_eq!(at_a_terminal(room(), &["controlling-terminal"]), "ENXIO");
    let typed = at_a_terminal(room(), &["type-into", "stdin"]);
    assert!(["ENOTTY", "EPERM"].contains(&typed.as_str()), "{typed}");
}

#[test]
fn with_tty_the_terminal_is_the_rooms_own() {
    assert_eq!(at_a_terminal(room().with(["--tty"]), &["are-terminals"]), "true true true");
    assert_eq!(at_a_terminal(room().with(["--tty"]), &["controlling-terminal"]), "done");
    // It has a name in there, so ttyname(3) finds it.
    let (shown, status) = Terminal::start(room().with(["--tty"]).command_line().args(["--", "tty"])).to_the_end();
    assert_eq!((shown.trim(), status), ("/dev/pts/0", 0));
}

#[test]
fn with_tty_what_is_typed_reaches_the_payload_and_the_interrupt_key_too() {
    let mut line = room().with(["--tty"]).command_line();
    line.args([
        "--",
        "/bin/sh",
        "-c",
        "trap 'echo interrupted; exit 7' INT; echo ready; read word; echo got $word; while :; do sleep 1; done",
    ]);
    let mut terminal = Terminal::start(&line);
    terminal.shows("ready");
    terminal.types("hello\r");
    terminal.shows("got hello");
    terminal.types("\u{3}");
    terminal.shows("interrupted");
    assert_eq!(terminal.to_the_end().1, 7);
}
