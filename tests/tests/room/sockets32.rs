//! Sockets of 32-bit programs, which the filter cannot see into.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use anchorhold_tests::room::Room;

use crate::{footprint, room, room_of};

/// The program, built once for this run; none where there is no 32-bit tool chain.
static PROGRAM: LazyLock<Option<(tempfile::TempDir, PathBuf)>> = LazyLock::new(|| {
    let directory = tempfile::Builder::new().prefix("anchorhold-sockets32.").tempdir_in("/tmp").expect("a directory");
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), readable).expect("a directory that others may read");
    let (source, program) = (directory.path().join("sockets32.c"), directory.path().join("sockets32"));
    std::fs::write(&source, include_str!("sockets32.c")).expect("the source");
    let built =
        Command::new("gcc").args(["-m32", "-static", "-D_GNU_SOURCE", "-o"]).arg(&program).arg(&source).output();
    let built = built.ok()?;
    if !built.status.success() {
        println!("SKIP: no 32-bit tool chain: {}", String::from_utf8_lossy(&built.stderr));
        return None;
    }
    Some((directory, program))
});

/// What the program prints in this room, on one line.
fn said(room: Room, words: &[&str]) -> Option<String> {
    let (directory, program) = PROGRAM.as_ref()?;
    let command = std::iter::once(program.to_str().expect("a plain path")).chain(words.iter().copied());
    Some(room.showing(directory.path().to_str().expect("a plain path"), directory.path()).run(command).line())
}

/// What it prints on the host.
fn said_outside(words: &[&str]) -> Option<String> {
    let (_, program) = PROGRAM.as_ref()?;
    let ended = Command::new(program).args(words).output().expect("the program runs here");
    Some(String::from_utf8_lossy(&ended.stdout).trim().to_owned())
}

macro_rules! in_32_bits {
    ($said:expr) => {
        match $said {
            Some(line) => line,
            None => {
                println!("SKIP: no 32-bit tool chain");
                return;
            }
        }
    };
}

#[test]
fn they_work_as_for_others() {
    assert_eq!(in_32_bits!(said(room(), &["loopback"])), "word");
    assert_eq!(in_32_bits!(said(room(), &["pair"])), "word");
    for (family, kind, protocol) in [("1", "1", "0"), ("2", "2", "0"), ("10", "1", "0"), ("16", "3", "0")] {
        assert_eq!(in_32_bits!(said(room(), &[family, kind, protocol])), "done", "{family}");
    }
}

#[test]
fn they_belong_to_the_rooms_network() {
    assert_eq!(in_32_bits!(said(room(), &["interfaces"])).trim_end(), "lo");
}

#[test]
fn families_that_reach_out_of_the_room_are_not_there() {
    for (family, name) in [("40", "AF_VSOCK"), ("38", "AF_ALG"), ("17", "AF_PACKET")] {
        let footprint = footprint();
        let file = footprint.path("result.json");
        let watched = footprint.room().with(["--result", file.to_str().expect("a plain path")]);
        assert_eq!(in_32_bits!(said(watched, &[family, "1", "0"])), "EAFNOSUPPORT", "{family}");
        let result: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).expect("a result")).expect("JSON");
        let refused = &result["refused"][0];
        assert_eq!(
            (refused["call"].as_str(), refused["argument"].as_str(), refused["program"].as_str()),
            (Some("socket"), Some(name), Some("sockets32")),
            "{refused}"
        );
        for (words, what) in
            [(["--profile", "nested"], "where nobody listens"), (["--profile", "machines"], "machines")]
        {
            assert_eq!(in_32_bits!(said(room().with(words), &[family, "1", "0"])), "EAFNOSUPPORT", "{what}");
        }
    }
}

#[test]
fn without_the_layer_they_are() {
    for (family, kind) in [("40", "1"), ("38", "5")] {
        if in_32_bits!(said_outside(&[family, kind, "0"])) == "EAFNOSUPPORT" {
            println!("SKIP: this kernel has no family {family}");
            continue;
        }
        assert_eq!(in_32_bits!(said(room().without("seccomp"), &[family, kind, "0"])), "done", "{family}");
    }
}

#[test]
fn where_nobody_listens_there_are_none() {
    assert_eq!(in_32_bits!(said(room_of("nested"), &["1", "1", "0"])), "EAFNOSUPPORT");
}
