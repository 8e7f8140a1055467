//! No capability in any set; no new privileges.

use crate::room;

const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

#[test]
fn every_capability_set_is_empty_whoever_the_payload_is() {
    for kind in [&[][..], &["--uid", "0", "--gid", "0"], &["--profile", "nested"], &["--init"]] {
        for set in SETS {
            assert_eq!(room().with(kind).probe(["status", set]).line(), "0000000000000000", "{kind:?} {set}");
        }
    }
}

#[test]
fn no_new_privileges_can_be_gained() {
    assert_eq!(room().probe(["status", "NoNewPrivs"]).line(), "1");
}

#[test]
fn what_takes_a_capability_is_refused() {
    assert_eq!(room().probe(["unshare", "mnt"]).line(), "EPERM");
    assert_eq!(room().probe(["mount", "tmpfs", "/tmp"]).line(), "EPERM");
}

#[test]
fn without_the_layer_the_payload_is_mighty_in_its_own_user_namespace() {
    let weak = || room().without("capabilities").without("seccomp");
    // A program that is executed keeps capabilities only as uid 0.
    assert_ne!(weak().with(["--uid", "0", "--gid", "0"]).probe(["status", "CapEff"]).line(), "0000000000000000");
    assert_eq!(weak().with(["--uid", "0", "--gid", "0"]).probe(["unshare", "mnt"]).line(), "done");
}
