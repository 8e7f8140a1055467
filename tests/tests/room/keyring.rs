//! A session keyring of the room's own.

use anchorhold_tests::probe;
use anchorhold_tests::room::Room;
use anchorhold_tests::skip;

use crate::room;

/// Rooms that are started by somebody who holds a key. The filter would answer before the keyring does, so it is left out.
fn started_by_the_holder_of(key: &str) -> Room {
    let path = probe::path();
    room().with_probe().without("seccomp").started_by(&[&path.to_string_lossy(), "with-key", key])
}

fn kernel_has_keyrings() -> bool {
    let has = std::fs::metadata("/proc/keys").is_ok();
    if !has {
        skip("this kernel has no keyrings");
    }
    has
}

#[test]
fn the_callers_keys_are_not_found() {
    if kernel_has_keyrings() {
        assert_eq!(started_by_the_holder_of("found").probe(["find-key", "found"]).line(), "ENOKEY");
    }
}

#[test]
fn without_the_layer_the_callers_keys_are_found() {
    if kernel_has_keyrings() {
        assert_eq!(started_by_the_holder_of("lost").without("keyring").probe(["find-key", "lost"]).line(), "done");
    }
}

/// Plants a key from a room and looks for it in the caller's session afterwards.
fn planting(room: Room) -> String {
    let path = probe::path().to_string_lossy();
    // The session is the shell's; the room is started by it, and after the room's end the same session is searched.
    let script = r#"probe=$1; shift; "$@" >/dev/null; exec "$probe" find-key planted"#;
    room.started_by(&[&path, "with-key", "any", "/bin/sh", "-c", script, "sh", &path])
        .probe(["add-key", "planted"])
        .line()
}

#[test]
fn a_key_that_a_payload_leaves_is_not_there_for_the_next() {
    if kernel_has_keyrings() {
        assert_eq!(planting(room().without("seccomp")), "ENOKEY");
    }
}

#[test]
fn without_the_layer_a_key_that_a_payload_leaves_is_there_for_the_next() {
    if kernel_has_keyrings() {
        assert_eq!(planting(room().without("seccomp").without("keyring")), "done");
    }
}
