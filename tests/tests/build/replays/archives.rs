//! Archives from strangers.

use std::fs;
use std::path::PathBuf;

use crate::world::{World, text};

/// One word of an archive: its length, its bytes, zeros up to a multiple of eight.
fn word(nar: &mut Vec<u8>, bytes: &[u8]) {
    nar.extend((bytes.len() as u64).to_le_bytes());
    nar.extend(bytes);
    nar.resize(nar.len().next_multiple_of(8), 0);
}

fn words(nar: &mut Vec<u8>, all: &[&str]) {
    all.iter().for_each(|one| word(nar, one.as_bytes()));
}

/// A directory with these entries, each given as its name and what it is.
fn directory(entries: &[(&str, &[&str])]) -> Vec<u8> {
    let mut nar = Vec::new();
    words(&mut nar, &["nix-archive-1", "(", "type", "directory"]);
    for (name, node) in entries {
        words(&mut nar, &["entry", "(", "name", name, "node", "("]);
        words(&mut nar, node);
        words(&mut nar, &[")", ")"]);
    }
    words(&mut nar, &[")"]);
    nar
}

/// As many directories in each other.
fn nested(depth: usize) -> Vec<u8> {
    let mut nar = Vec::new();
    words(&mut nar, &["nix-archive-1"]);
    for _ in 0..depth {
        words(&mut nar, &["(", "type", "directory", "entry", "(", "name", "d", "node"]);
    }
    words(&mut nar, &["(", "type", "regular", "contents", "x", ")"]);
    for _ in 0..depth {
        words(&mut nar, &[")", ")"]);
    }
    nar
}

/// Unpacks it as `tree` in a yard of its own: whether that went well, what was said, and the yard. A program that was ended by a
/// signal has no part in this.
#[track_caller]
fn restore(world: &World, nar: &[u8]) -> (bool, String, PathBuf) {
    let mut number = 0;
    let yard = loop {
        number += 1;
        // What was unpacked is read-only, and stays until the end.
        let yard = world.path(&format!("yard-{number}"));
        if fs::create_dir(&yard).is_ok() {
            break yard;
        }
    };
    let ended = world.fed(&["store", "restore", yard.join("tree").to_str().unwrap()], nar);
    assert!(ended.status.code().is_some(), "{:?}", ended.status);
    (ended.status.success(), text(&ended.stderr), yard)
}

const FILE: &[&str] = &["type", "regular", "contents", "owned"];
const TREE: &[&str] =
    &["type", "directory", "entry", "(", "name", "file", "node", "(", "type", "regular", "contents", "owned", ")", ")"];

/// A name that is both a link and a directory, or no single name at all: what is unpacked lands elsewhere. Nix 2.24.0 to 2.24.5.
#[test]
fn cve_2024_45593_an_archive_is_unpacked_nowhere_else() {
    let world = World::new();
    let elsewhere = world.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let target = elsewhere.to_str().unwrap().to_owned();
    let link: &[&str] = &["type", "symlink", "target", &target];

    // The same archive without the trick is unpacked: it is the trick that is refused.
    let (unpacked, said, yard) = restore(&world, &directory(&[("a", link), ("b", TREE)]));
    assert!(unpacked, "{said}");
    assert_eq!(fs::read_to_string(yard.join("tree/b/file")).unwrap(), "owned");

    let up = format!("../../elsewhere/{}", "file");
    let absolute = format!("{target}/file");
    for (trick, nar) in [
        ("a link and a directory", directory(&[("a", link), ("a", TREE)])),
        ("a directory and a link", directory(&[("a", TREE), ("a", link)])),
        ("out of order", directory(&[("b", TREE), ("a", link), ("b", TREE)])),
        ("the parent", directory(&[("..", TREE)])),
        ("itself", directory(&[(".", TREE)])),
        ("no name", directory(&[("", FILE)])),
        ("a path up", directory(&[(&up, FILE)])),
        ("a path down", directory(&[("a", link), ("a/file", FILE)])),
        ("an absolute path", directory(&[(&absolute, FILE)])),
        ("a zero byte", directory(&[("a\0b", FILE)])),
    ] {
        let (unpacked, said, yard) = restore(&world, &nar);
        assert!(!unpacked, "{trick} was unpacked");
        assert!(said.starts_with("anchorhold: "), "{trick}: {said}");
        for place in [&elsewhere, &yard] {
            let made: Vec<_> = fs::read_dir(place).unwrap().flatten().map(|entry| entry.file_name()).collect();
            assert!(made.is_empty(), "{trick} left {made:?} in {}", place.display());
        }
    }
}

/// Directories in directories until the reader's stack is used up. Nix before 2.34.7.
#[test]
fn cve_2026_44028_depth_is_refused_in_words() {
    let world = World::new();
    let (unpacked, said, _) = restore(&world, &nested(40));
    assert!(unpacked, "the same archive, less deep: {said}");
    for depth in [100_000, 1_000_000] {
        let (unpacked, said, _) = restore(&world, &nested(depth));
        assert!(!unpacked);
        assert!(said.contains("directories inside each other"), "{said}");
    }
}
