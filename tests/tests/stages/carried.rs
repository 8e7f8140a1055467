//! Saved machines as one file.

use std::fs;
use std::path::Path;

use crate::world::{World, text};

#[test]
fn saved_machines_are_carried_as_one_file_and_revived_elsewhere() {
    let Some(mut world) = World::new() else { return };
    for topology in ["pair", "direct"] {
        let Some(served) = world.with(topology) else { return };
        world = served;
        let directory = world.must(&["suspend", "--memory", "256M"]);
        let name = Path::new(&directory).file_name().unwrap().to_str().unwrap();
        let [one, two] = ["one.gz", "two.gz"].map(|name| world.place.path().join(name));
        for file in [&one, &two] {
            assert_eq!(world.must(&["export", name, file.to_str().unwrap()]), name);
        }
        let whole = fs::read(&one).unwrap();
        assert!(whole == fs::read(&two).unwrap(), "the same machines are the same file");

        let other = World::of(&world.place.path().join(topology)).unwrap().with(topology).unwrap();
        let import = |bytes: &[u8]| {
            fs::write(&two, bytes).unwrap();
            other.run(&["import", two.to_str().unwrap()])
        };
        // In gzip's own sum of it all: within a run of zeroes a flip may say the same in other words.
        let mut flipped = whole.clone();
        flipped[whole.len() - 6] ^= 1;
        for damaged in [&flipped[..], &whole[..whole.len() - 9], b"something else"] {
            let output = import(damaged);
            let told = text(&output.stderr);
            assert_eq!(output.status.code(), Some(120), "{told}");
            assert!(told.contains("two.gz: ") && told.contains("(corrupt-state)"), "{told}");
            assert!(other.list()["stages"].as_array().unwrap().is_empty());
        }
        let output = import(&whole);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(other.list()["stages"].as_array().unwrap().len(), 2);
        let said = other.must(&["revive", "--only-saved", "--memory", "256M", "--", "/bin/echo", "here"]);
        assert_eq!(said, "here");
    }
}
