//! What runs: its environment, directory, umask, addresses, machine, and how it ends.

use crate::{footprint, room};

#[test]
fn the_environment_is_exactly_this() {
    let lines = room().called_with("CANARY", "of the caller").probe(["environment"]).lines();
    let expected = [
        "HOME=/home/nixbld",
        "LANG=C.UTF-8",
        "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        "TMPDIR=/tmp",
        "USER=nixbld",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_variable_can_be_set_or_copied_from_the_caller() {
    let lines = room()
        .called_with("COPIED", "from the caller")
        .with(["--env", "SET=to = this", "--env", "COPIED", "--env", "EMPTY="])
        .probe(["environment"])
        .lines();
    for line in ["SET=to = this", "COPIED=from the caller", "EMPTY="] {
        assert!(lines.iter().any(|one| one == line), "{line} is not among {lines:?}");
    }
}

#[test]
fn the_umask_is_022_whatever_the_callers() {
    let strict = room().started_by(&["/bin/sh", "-c", r#"umask 077; exec "$@""#, "sh"]);
    assert_eq!(strict.probe(["umask"]).line(), "0022");
}

#[test]
fn signals_are_neither_blocked_nor_ignored_whatever_the_callers() {
    let deaf = room().started_by(&["/bin/sh", "-c", r#"trap '' INT TERM PIPE USR1; exec "$@""#, "sh"]);
    // Rust's runtime in the probe ignores SIGPIPE, which is bit 12.
    assert_eq!(deaf.probe(["signal-masks"]).line(), "blocked 0000000000000000 ignored 0000000000001000");
}

#[test]
fn it_starts_in_the_home_directory_or_where_it_is_told() {
    assert_eq!(room().probe(["directory"]).line(), "/home/nixbld");
    assert_eq!(room().with(["--cwd", "/tmp"]).probe(["directory"]).line(), "/tmp");
}

#[test]
fn it_starts_in_the_callers_directory_if_the_room_shows_it() {
    let footprint = footprint();
    let lent = footprint.path("lent");
    let path = lent.to_str().expect("a plain path");
    let there = footprint.room().with(["--ro", path]).started_by(&["env", "--chdir", path]);
    assert_eq!(there.probe(["directory"]).line(), path);
}

#[test]
fn the_first_argument_can_be_chosen() {
    assert_eq!(room().with(["--argv0", "other"]).probe(["arguments", "more"]).line(), "other arguments more");
}

#[test]
fn addresses_are_the_same_in_two_runs() {
    let address = || room().probe(["address-of-stack"]).line();
    assert_eq!(address(), address());
}

#[test]
fn a_room_with_random_addresses_shows_that_the_others_are_fixed() {
    let footprint = footprint();
    let file = footprint.path("room.toml");
    std::fs::write(&file, "[process]\nrandomize-addresses = true\n").expect("a room file");
    let address = || room().with(["--room", file.to_str().expect("a plain path")]).probe(["address-of-stack"]).line();
    let found: Vec<_> = (0..8).map(|_| address()).collect();
    assert!(found.iter().any(|one| *one != found[0]), "{found:?}");
}

#[test]
fn linux32_names_a_32_bit_machine() {
    let machine = |room: anchorhold_tests::room::Room| room.shell("uname -m").line();
    let native = machine(room());
    let expected = match native.as_str() {
        "x86_64" => "i686",
        "aarch64" => "armv8l",
        _ => return anchorhold_tests::skip("this machine has no 32-bit name"),
    };
    assert_eq!(machine(room().with(["--linux32"])), expected);
}

#[test]
fn the_exit_status_is_the_commands() {
    for status in ["0", "1", "3", "42", "125", "255"] {
        assert_eq!(room().probe(["exit", status]).status.to_string(), status);
    }
}

#[test]
fn a_command_that_a_signal_ended_gives_128_and_the_signal() {
    // A first process is deaf to its own signals, as in every pid namespace; behind --init it is an ordinary one.
    for signal in [6, 9, 11, 15] {
        let ended = room().with(["--init"]).probe(["die", &signal.to_string()]);
        assert_eq!(ended.status, 128 + signal, "{ended:?}");
    }
}

#[test]
fn a_program_is_looked_for_in_the_payloads_own_path() {
    assert_eq!(room().run(["true"]).status, 0);
    assert_eq!(room().with(["--env", "PATH=/nowhere"]).run(["true"]).status, 127);
}

#[test]
fn a_command_that_is_not_there_gives_127_and_one_line() {
    for command in ["/no/such/program", "no-such-program"] {
        let ended = room().run([command]);
        assert_eq!(ended.status, 127, "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        assert!(ended.stderr.starts_with(&format!("anchorhold: cannot execute {command}: ")), "{ended:?}");
    }
}

#[test]
fn a_command_that_cannot_be_executed_gives_126_and_one_line() {
    for command in ["/etc/passwd", "/tmp"] {
        let ended = room().run([command]);
        assert_eq!(ended.status, 126, "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
}

#[test]
fn with_init_orphans_are_reaped_and_signals_handed_on() {
    assert_eq!(room().with(["--init"]).probe(["orphan"]).line(), "all reaped");
    let mut running = room().with(["--init"]).start_probe(["catch"]);
    assert_eq!(running.line(), "ready");
    for signal in [nix::sys::signal::Signal::SIGUSR1, nix::sys::signal::Signal::SIGTERM] {
        running.signal(signal);
        assert_eq!(running.line(), signal.as_str());
    }
    assert_eq!(running.to_the_end().status, 0);
}

#[test]
fn without_init_a_command_that_does_not_wait_keeps_its_orphans_and_ends_all_the_same() {
    assert_eq!(room().shell("(sleep 1000 & ) ; exit 5").status, 5);
}
