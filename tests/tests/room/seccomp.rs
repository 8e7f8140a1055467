//! The system call filter.

use crate::{footprint, room, room_of};

/// All ways to make a set-id file that take no privilege.
const SET_ID: [&[&str]; 5] = [
    &["chmod", "/tmp", "4755"],
    &["chmod", "/tmp", "2755"],
    &["create", "/tmp/file", "4755"],
    &["create", "/tmp/file", "2755"],
    &["mknod-regular", "/tmp/file", "4755"],
];

#[test]
fn a_set_id_file_cannot_be_made_in_any_way() {
    for profile in ["build", "nested"] {
        for words in SET_ID {
            assert_eq!(room_of(profile).probe(words).line(), "EPERM", "{profile} {words:?}");
        }
    }
}

#[test]
fn without_the_layer_a_set_id_file_can_be_made() {
    for words in SET_ID {
        assert_eq!(room().without("seccomp").probe(words).line(), "done", "{words:?}");
    }
}

#[test]
fn other_modes_are_nobodys_business() {
    for words in [["chmod", "/tmp", "1777"], ["create", "/tmp/file", "0755"], ["mknod-regular", "/tmp/file", "0600"]] {
        assert_eq!(room().probe(words).line(), "done", "{words:?}");
    }
}

/// The overlay's whiteout is the one device node that takes no privilege, and the one that a rename makes too.
const WHITEOUT: [&[&str]; 2] = [&["mknod", "/tmp/node", "0", "0"], &["rename-whiteout", "/tmp/old", "/tmp/new"]];

#[test]
fn a_whiteout_cannot_be_made_in_any_way() {
    for profile in ["build", "nested"] {
        for words in WHITEOUT {
            assert_eq!(room_of(profile).probe(words).line(), "EPERM", "{profile} {words:?}");
        }
    }
}

#[test]
fn without_the_layer_a_whiteout_can_be_made() {
    for words in WHITEOUT {
        assert_eq!(room().without("seccomp").probe(words).line(), "done", "{words:?}");
    }
}

/// Commands that leave something which cannot be removed: inode flags, project ids, subvolumes of btrfs and their flags.
const STICKING: [&str; 8] =
    ["40086602", "40046602", "401c5820", "5000940e", "50009418", "50009401", "50009417", "4008941a"];

#[test]
fn nothing_can_be_made_that_cannot_be_removed() {
    for profile in ["build", "nested"] {
        for command in STICKING {
            assert_eq!(room_of(profile).probe(["command-of-nothing", command]).line(), "ENOTTY", "{profile} {command}");
        }
    }
}

#[test]
fn without_the_layer_such_commands_reach_the_kernel() {
    for command in STICKING {
        assert_eq!(room().without("seccomp").probe(["command-of-nothing", command]).line(), "EBADF", "{command}");
    }
}

#[test]
fn sockets_that_reach_around_network_namespaces_are_not_there() {
    // AF_ALG, AF_VSOCK.
    for (family, kind) in [("38", "5"), ("40", "1")] {
        assert_eq!(room().probe(["socket", family, kind, "0"]).line(), "EAFNOSUPPORT", "{family}");
    }
    // AF_UNIX, AF_INET, AF_INET6, netlink's routes.
    for (family, kind, protocol) in [("1", "1", "0"), ("2", "1", "0"), ("2", "2", "0"), ("16", "3", "0")] {
        assert_eq!(room().probe(["socket", family, kind, protocol]).line(), "done", "{family}");
    }
}

#[test]
fn the_kernels_keys_are_out_of_reach() {
    assert_eq!(room().probe(["session-keyring"]).line(), "ENOSYS");
    assert_eq!(room().probe(["add-key", "any"]).line(), "ENOSYS");
}

#[test]
fn nothing_can_be_typed_even_into_a_terminal_of_the_rooms_own() {
    assert_eq!(room().probe(["type-into", "new-terminal"]).line(), "EPERM");
}

/// A room has one user; that giving a file to another succeeds and does nothing is for machines, and asked for by name.
#[test]
fn a_file_is_given_to_nobody_whether_or_not_that_is_told() {
    let ids: [&[&str]; 3] = [&["0", "0"], &["4711", "815"], &["1000", "0"]];
    for profile in ["build", "nested", "machines"] {
        for to in ids {
            let words = [&["give", "/tmp"], to].concat();
            assert_eq!(room_of(profile).probe(words).line(), "EINVAL", "{profile} {to:?}");
        }
    }
    let footprint = footprint();
    let file = footprint.path("room.toml");
    let text = "[seccomp]\nignore-chown = true\n[[mount]]\nkind = \"tmpfs\"\ninside = \"/tmp\"\n";
    std::fs::write(&file, text).expect("a room file");
    let result = footprint.path("result.json");
    let ignoring = || room().with(["--room", file.to_str().expect("a plain path")]);
    let whose = ignoring().probe(["stat", "/tmp"]).line().to_owned();
    assert!(whose.ends_with(" 1000:100"), "{whose}");
    for to in ids {
        let words = [&["give", "/tmp"], to].concat();
        assert_eq!(ignoring().probe(words).line(), whose, "{to:?}");
    }
    // And whoever reads the seal sees it.
    let sealed = ignoring().with(["--result", result.to_str().expect("a plain path")]);
    assert_eq!(sealed.probe(["chmod", "/tmp", "4755"]).line(), "EPERM");
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&result).expect("a result")).expect("JSON");
    assert!(told["seal"].to_string().contains("does nothing"), "{told}");
}

#[test]
fn the_filter_is_in_force_for_every_payload() {
    for kind in [&[][..], &["--profile", "nested"], &["--init"], &["--linux32"]] {
        assert_eq!(room().with(kind).probe(["status", "Seccomp"]).line(), "2", "{kind:?}");
    }
    assert_eq!(room().without("seccomp").probe(["status", "Seccomp"]).line(), "0");
}

#[test]
fn what_was_refused_is_told_with_a_hint() {
    let footprint = footprint();
    let file = footprint.path("result.json");
    let room = footprint.room().with(["--result", file.to_str().expect("a plain path")]);
    assert_eq!(room.probe(["chmod", "/tmp", "4755"]).line(), "EPERM");
    let result: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).expect("a result")).expect("JSON");
    let refused = &result["refused"][0];
    assert!(refused["call"].as_str().is_some_and(|call| call.contains("chmod")), "{refused}");
    assert_eq!(
        (refused["argument"].as_str(), refused["program"].as_str()),
        (Some("04755"), Some("probe")),
        "{refused}"
    );
    assert!(refused["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{refused}");
}
