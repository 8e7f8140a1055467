//! What bad input gets: one line that says what, why and what to do; status 125; nothing left behind; the command never started.

use std::ffi::OsStr;
use std::fs;

use anchorhold_tests::host::is_root;
use anchorhold_tests::room::Room;
use anchorhold_tests::{probe, skip};

use crate::footprint;

/// Refused, with each of these in its one line.
#[track_caller]
fn refused(bad: impl FnOnce(Room) -> Room, says: &[&str]) {
    let footprint = footprint();
    let running = bad(footprint.room()).start_probe(["create", "/lent/started"]);
    let supervisor = running.pid();
    let line = running.to_the_end().refusal();
    for part in says {
        assert!(line.contains(part), "{part:?} is not in: {line}");
    }
    assert!(!footprint.has_lent("started"), "the command was started: {line}");
    footprint.assert_nothing_left(supervisor);
}

#[track_caller]
fn refused_with<T: AsRef<OsStr>>(options: impl IntoIterator<Item = T>, says: &[&str]) {
    refused(|room| room.with(options), says);
}

/// A room file with these lines.
#[track_caller]
fn refused_file(text: &str, says: &[&str]) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("room.toml");
    fs::write(&file, text).expect("a room file");
    refused_with([OsStr::new("--room"), file.as_os_str()], says);
}

#[test]
fn a_missing_path() {
    let says =
        ["root: cannot", "/no/such/path", "No such file or directory (ENOENT)", "mark it optional with a trailing `?`"];
    refused_with(["--ro", "/no/such/path"], &says);
    refused_with(["--rw", "/no/such/path"], &says);
    refused_with(["--ro", "/here=/no/such/path"], &says);
}

#[test]
fn a_relative_path_where_an_absolute_one_is_needed() {
    for option in ["--ro", "--rw", "--tmpfs"] {
        refused_with([option, "some/path"], &["root: mount point \"some/path\"", "it must be absolute"]);
    }
    refused_with(["--ro", "/here=some/path"], &["root: source \"some/path\"", "it must be absolute"]);
    refused_with(["--ro", ""], &["root: mount point \"\"", "it must be absolute"]);
    refused_with(["--cwd", "some/path"], &["process: current directory \"some/path\"", "it must be absolute"]);
}

#[test]
fn a_path_that_climbs() {
    refused_with(["--ro", "/usr/../etc"], &["`..` cannot be in a path of a room"]);
    refused_with(["--ro", "/here=/usr/../etc"], &["`..` cannot be in a path of a room"]);
    refused_with(["--cwd", "/tmp/../tmp"], &["`..` cannot be in a path of a room"]);
}

#[test]
fn an_unknown_layer_profile_network_or_option() {
    refused_with(["--without", "walls"], &["no layer `walls`; there are namespaces, identity, root,"]);
    refused_with(["--without", "process"], &["no layer `process`"]);
    refused_with(["--profile", "palace"], &["no profile `palace`; there are build, nested, fetch, machines"]);
    refused_with(["--network", "lan"], &["no network `lan`; there are none, pasta, host"]);
    refused_with(["--proc", "half"], &["no source `half`; there are new, outer"]);
    refused_with(["--no-such-option"], &["unexpected argument '--no-such-option'"]);
}

#[test]
fn a_size_time_or_number_that_is_none() {
    refused_with(["--tmpfs-size", "big"], &["`big` is no size: write"]);
    refused_with(["--memory", "-1"], &["-1"]);
    refused_with(["--timeout", "soon"], &["`soon` is no length of time: write"]);
    refused_with(["--timeout", "0"], &["`0` is no length of time"]);
    refused_with(["--pids", "0"], &["limits: pids = 0", "allow at least 1"]);
    refused_with(["--cpu", "0"], &["cgroup: cpu = 0"]);
    refused_with(["--uid", "many"], &["many"]);
}

#[test]
fn two_mounts_at_one_place() {
    for other in ["/place", "/place/", "//place", "/./place"] {
        refused_with(
            ["--tmpfs", "/place", "--tmpfs", other],
            &["twice", "one would cover the other", "leave one of them out"],
        );
    }
    refused_with(["--tmpfs", "/tmp"], &["root: /tmp twice"]);
}

#[test]
fn a_mount_over_what_the_room_makes_itself() {
    for place in ["/proc", "/proc/sys", "/proc/1", "/dev", "/dev/null", "/dev/new"] {
        refused_with(["--tmpfs", place], &[&format!("root: mount point {place}"), "is made by the room"]);
        refused_with([format!("--ro={place}=/usr")], &["is made by the room", "choose another place"]);
    }
    refused_with(["--tmpfs", "/"], &["root: a mount over /", "mount below it"]);
    refused_with(["--tmpfs", "/etc"], &["root: mount point /etc", "--without etc"]);
}

#[test]
fn a_newline_or_a_nul_in_a_name() {
    refused_with(
        ["--tmpfs", "/two\nlines"],
        &["mount point \"/two\\nlines\"", "a NUL or a newline cannot be in a path"],
    );
    refused_with(["--ro", "/here=/two\nlines"], &["source \"/two\\nlines\""]);
    refused_file(
        "[[mount]]\nkind = \"tmpfs\"\ninside = \"/nul\\u0000\"\n",
        &["a NUL or a newline cannot be in a path"],
    );
    refused_file("[identity]\nuser = \"two\\nlines\"\n", &["etc: user name", "choose another name"]);
    refused_file("[process.environment]\nNAME = \"nul\\u0000\"\n", &["process: ", "at a NUL", "remove it"]);
}

#[test]
fn a_source_that_the_caller_may_not_reach() {
    if is_root() {
        return skip("root reaches everything");
    }
    let directory = ["/root", "/var/lib/private", "/lost+found"]
        .into_iter()
        .find(|path| fs::read_dir(path).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied));
    let Some(directory) = directory else { return skip("there is no directory here that is shut to this user") };
    refused_with([format!("--ro=/here={directory}/file")], &["root: cannot bind", "Permission denied (EACCES)"]);
}

#[test]
fn a_source_that_is_a_device() {
    refused_with(["--ro", "/here=/dev/null"], &["root: cannot bind /dev/null", "is a device node"]);
}

#[test]
fn a_full_root() {
    let text = "[root]\nsize = \"4K\"\n\n[[mount]]\nkind = \"file\"\ninside = \"/large\"\ntext = \"\"\"\n";
    let large = format!("{text}{}\n\"\"\"\n", "x".repeat(20_000));
    refused_file(&large, &["No space left on device (ENOSPC)", "raise root.size"]);
}

#[test]
fn a_command_that_is_none() {
    let footprint = footprint();
    let ended = footprint.room().run(Vec::<&str>::new()).refusal();
    assert!(ended.starts_with("process: no command"), "{ended}");
}

#[test]
fn a_current_directory_that_is_not_in_the_room() {
    refused_with(["--cwd", "/no/such"], &["process: cannot enter /no/such", "there is no such directory in the room"]);
}

#[test]
fn a_variable_without_a_name_or_a_value() {
    refused_with(["--env", "=value"], &["process: variable name", "correct the name"]);
    refused_with(["--env", "NO_SUCH_VARIABLE"], &["the caller has no such variable; write NAME=VALUE"]);
}

#[test]
fn a_room_file_that_is_missing_or_wrong() {
    refused_with(["--room", "/no/such/file"], &["cannot read the room file /no/such/file"]);
    refused_file("[identity]\nuid = \"many\"\n", &["the room file"]);
    refused_file("[identity]\nshoe-size = 44\n", &["the room file", "shoe-size"]);
}

#[test]
fn the_kernels_root_as_the_rooms_user() {
    refused_with(["--build-user", "0"], &["identity: ", "uid 0"]);
    refused_with(["--build-user", "root"], &["identity: ", "uid 0"]);
    refused_with(["--build-user", "no-such-user"], &["there is no user no-such-user"]);
    refused_with(["--id-range", "--uid", "65536"], &["identity: "]);
    if !is_root() {
        refused_with(["--build-user", "65533"], &["identity: running as another user", "as root"]);
    }
}

#[test]
fn a_policy_without_the_network_that_asks_it() {
    refused_with(["--allow", "192.0.2.1"], &["network: ", "ask for --network pasta"]);
    refused_with(["--network", "pasta", "--allow", "a name"], &["a name"]);
}

#[test]
fn a_report_that_cannot_be_written() {
    for option in ["--seal", "--result"] {
        refused_with(
            [option, "/no/such/directory/report"],
            &["/no/such/directory/report", "No such file or directory"],
        );
    }
}

/// Started in a mount namespace of the caller's own, after this command of the probe in it.
fn in_a_mount_namespace(room: Room, words: &[&str]) -> Room {
    let script = r#"probe=$1; words=$2; shift 2; test "$("$probe" $words)" = done || exit 99; exec "$@""#;
    let unshare: &[&str] = if is_root() {
        &["unshare", "--mount"]
    } else {
        &["unshare", "--user", "--map-current-user", "--mount", "--keep-caps"]
    };
    let (probe, words) = (probe::path().to_string_lossy(), words.join(" "));
    room.started_by(&[unshare, &["/bin/sh", "-c", script, "sh", &probe, &words]].concat())
}

/// Started in a user namespace of the caller's own, after this line of shell in it.
fn in_a_user_namespace(room: Room, line: &str) -> Room {
    let script = format!("{line} || exit 99; exec \"$@\"");
    room.started_by(&["unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c", &script, "sh"])
}

#[test]
fn a_host_without_user_namespaces() {
    refused(
        |room| in_a_user_namespace(room, "echo 0 >/proc/sys/user/max_user_namespaces"),
        &["namespaces: user namespace (user.max_user_namespaces is 0)", "sysctl -w user.max_user_namespaces="],
    );
}

#[test]
fn a_container_that_masks_its_proc() {
    // Of what containers mask, something that this kernel has.
    let mask = ["/proc/kcore", "/proc/keys", "/proc/timer_list"].into_iter().find(|path| fs::metadata(path).is_ok());
    let Some(mask) = mask else { return skip("this /proc has nothing that containers mask") };
    let says = format!("proc: a new procfs (the visible /proc is masked: something is mounted on {mask})");
    refused(|room| in_a_mount_namespace(room, &["bind", "/dev/null", mask]), &[&says, "--proc outer"]);
}

#[test]
fn a_user_namespace_that_has_no_ids_to_give() {
    if !is_root() {
        return skip("a user's room runs as that user and takes no ids");
    }
    refused(|room| in_a_user_namespace(room, "true"), &["identity: ", "start anchorhold as an ordinary user"]);
}

#[test]
fn a_security_module_that_forbids_user_namespaces() {
    // As AppArmor's restriction answers.
    let plan = footprint().room().with_probe().explained();
    let steps = plan["steps"].as_array().expect("steps");
    let number = steps.iter().position(|step| step["stage"] == "unshare").expect("a step that unshares");
    let says = ["namespaces: cannot unshare", "(EPERM)", "AppArmor", "anchorhold doctor"];
    refused_with(["--inject-fault", &format!("{number}:1")], &says);
}

#[test]
fn a_pasta_that_is_not_there_or_fails() {
    let plan = footprint().room().with_probe().with(["--network", "pasta"]).explain();
    if plan.status != 0 {
        // Which is a refusal of its own, and already what this is about.
        assert!(plan.refusal().starts_with("network: "));
        return skip("pasta cannot be used here");
    }
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).expect("JSON");
    let steps = plan["steps"].as_array().expect("steps");
    for (number, _) in steps.iter().enumerate().filter(|(_, step)| step["action"].get("network").is_some()) {
        let fault = format!("{number}:5");
        refused(|room| room.with(["--network", "pasta", "--inject-fault", &fault]), &["network: cannot", "(EIO)"]);
    }
}
