//! The tree: exactly what the room was given, each mount with its restrictions, nothing else of the host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anchorhold_tests::host::{Footprint, is_root, open_to_all};
use anchorhold_tests::room::Room;
use anchorhold_tests::{probe, skip};

use crate::{footprint, room};

#[test]
fn the_root_holds_exactly_this() {
    let names: Vec<String> = room()
        .with(["--no-usr"])
        .probe(["list", "/"])
        .lines()
        .iter()
        .map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" "))
        .collect();
    let mut expected = [
        "dev directory 0755",
        "etc directory 0755",
        "home directory 0755",
        "proc directory 0555",
        "tmp directory 1777",
    ]
    .map(str::to_owned)
    .to_vec();
    expected.insert(3, "probe file 0755".to_owned());
    assert_eq!(names, expected);
}

#[test]
fn nothing_of_the_host_is_seen_that_was_not_given() {
    let footprint = footprint();
    fs::write(footprint.path("canary"), "seen").expect("a file");
    let canary = footprint.path("canary");
    assert_eq!(room().probe(["open-to-read", canary.to_str().expect("a plain path")]).line(), "ENOENT");
    for path in ["/root", "/var", "/run", "/boot", "/mnt", "/srv", "/etc/shadow", "/etc/hostname"] {
        assert_eq!(room().probe(["stat", path]).line(), "ENOENT", "{path}");
    }
}

#[test]
fn tmp_and_home_are_empty_and_the_rooms_own() {
    let _canary = tempfile::Builder::new().prefix("canary").tempfile_in("/tmp").expect("a file in the host's /tmp");
    for path in ["/tmp", "/home/nixbld"] {
        assert_eq!(room().probe(["list", path]).line(), "", "{path}");
        assert_eq!(room().probe(["create", &format!("{path}/file")]).line(), "done", "{path}");
    }
    assert_eq!(room().probe(["stat", "/tmp"]).line(), "directory 1777 1000:100");
    assert_eq!(room().probe(["stat", "/home/nixbld"]).line(), "directory 0700 1000:100");
}

#[test]
fn the_root_and_usr_are_read_only() {
    for path in ["/new", "/home/new", "/usr/new"] {
        assert_eq!(room().probe(["create", path]).line(), "EROFS", "{path}");
    }
}

#[test]
fn without_the_layer_and_landlock_behind_it_the_root_can_be_written() {
    assert_eq!(room().without("root").without("landlock").probe(["create", "/new"]).line(), "done");
    // Landlock alone holds, too.
    assert_eq!(room().without("root").probe(["create", "/new"]).line(), "EACCES");
}

/// A tree that anybody may write, with a file in it.
fn input(footprint: &Footprint) -> std::path::PathBuf {
    let tree = footprint.path("input");
    fs::create_dir(&tree).expect("a directory");
    open_to_all(&tree);
    fs::write(tree.join("file"), "text").expect("a file");
    fs::set_permissions(tree.join("file"), fs::Permissions::from_mode(0o666)).expect("our own file");
    tree
}

/// All that would change an input.
const CHANGES: [&[&str]; 9] = [
    &["open-to-write", "/input/file"],
    &["create", "/input/new"],
    &["chmod", "/input/file", "0600"],
    &["chmod", "/input", "0700"],
    &["set-times", "/input/file"],
    &["unlink", "/input/file"],
    &["rename", "/input/file", "/input/other"],
    &["mkdir", "/input/directory"],
    &["symlink", "target", "/input/link"],
];

#[test]
fn an_input_cannot_be_changed_in_any_way() {
    let footprint = footprint();
    let tree = input(&footprint);
    for change in CHANGES {
        assert_eq!(room().showing("/input", &tree).probe(change).line(), "EROFS", "{change:?}");
    }
    let link = room().showing("/input", &tree).probe(["link", "/input/file", "/tmp/file"]).line();
    assert_eq!(link, "EXDEV");
    assert_eq!(fs::read_to_string(tree.join("file")).expect("our own file"), "text");
}

#[test]
fn without_the_layer_and_landlock_behind_it_an_input_can_be_changed() {
    let footprint = footprint();
    let tree = input(&footprint);
    let weak = || room().without("root").without("landlock").showing("/input", &tree);
    assert_eq!(weak().probe(["open-to-write", "/input/file"]).line(), "done");
    assert_eq!(weak().probe(["create", "/input/new"]).line(), "done");
    assert!(tree.join("new").exists());
}

/// The same input, with a file system of its own mounted in it. The mount lives in a namespace of the caller that ends with it.
fn room_with_a_mount_in_its_input(footprint: &Footprint) -> Room {
    let tree = input(footprint);
    let below = tree.join("below");
    fs::create_dir(&below).expect("a directory");
    let script = r#"probe=$1; below=$2; shift 2
        test "$("$probe" mount tmpfs "$below")" = done || exit 99
        echo text >"$below/file"; chmod 666 "$below/file"; exec "$@""#;
    let unshare: &[&str] = if is_root() {
        &["unshare", "--mount"]
    } else {
        &["unshare", "--user", "--map-current-user", "--mount", "--keep-caps"]
    };
    let (path, below) = (probe::path().to_string_lossy(), below.to_string_lossy());
    let words = [unshare, &["/bin/sh", "-c", script, "sh", &path, &below]].concat();
    room().with_probe().showing("/input", &tree).started_by(&words)
}

#[test]
fn a_mount_inside_an_input_is_read_only_as_well() {
    let footprint = footprint();
    let room = room_with_a_mount_in_its_input(&footprint);
    assert_eq!(room.clone().probe(["read", "/input/below/file"]).line(), "text");
    for change in
        [["open-to-write", "/input/below/file"], ["unlink", "/input/below/file"], ["create", "/input/below/new"]]
    {
        assert_eq!(room.clone().probe(change).line(), "EROFS", "{change:?}");
    }
}

#[test]
fn without_the_layer_a_mount_inside_an_input_can_be_written() {
    let footprint = footprint();
    let room = room_with_a_mount_in_its_input(&footprint).without("root").without("landlock");
    assert_eq!(room.probe(["open-to-write", "/input/below/file"]).line(), "done");
}

/// Mount point, options and propagation of every mount.
fn mount_table(room: Room) -> Vec<(String, Vec<String>, String)> {
    let table = room.probe(["read", "/proc/self/mountinfo"]).lines();
    let read = |line: &String| {
        let mut fields = line.split(' ').skip(4);
        let point = fields.next()?.to_owned();
        let options = fields.next()?.split(',').map(str::to_owned).collect();
        Some((point, options, fields.take_while(|field| *field != "-").collect::<Vec<_>>().join(" ")))
    };
    table.iter().filter_map(read).collect()
}

#[test]
fn every_mount_is_nosuid_and_every_one_but_the_device_nodes_is_nodev() {
    let footprint = footprint();
    for (point, options, _) in mount_table(footprint.room().with(["--tmpfs", "/more"])) {
        let has = |option: &str| options.iter().any(|one| one == option);
        assert!(has("nosuid"), "{point}: {options:?}");
        assert!(has("nodev") || Path::new(&point).parent() == Some(Path::new("/dev")), "{point}: {options:?}");
    }
}

#[test]
fn no_mount_takes_part_in_what_the_host_mounts_later() {
    for (point, _, propagation) in mount_table(room()) {
        assert_eq!(propagation, "", "{point}");
    }
}

#[test]
fn the_old_root_is_gone() {
    let roots: Vec<_> = mount_table(room()).into_iter().filter(|(point, ..)| point == "/").collect();
    assert_eq!(roots.len(), 1, "{roots:?}");
    assert_eq!(room().probe(["list", "/.."]).lines(), room().probe(["list", "/"]).lines());
}

#[test]
fn a_device_node_in_an_input_does_not_work() {
    let footprint = footprint();
    let Some(tree) = input_with_a_device_node(&footprint) else { return };
    assert_eq!(room().showing("/input", &tree).probe(["open-to-read", "/input/zero"]).line(), "EACCES");
}

#[test]
fn without_the_layer_a_device_node_in_an_input_works() {
    let footprint = footprint();
    let Some(tree) = input_with_a_device_node(&footprint) else { return };
    assert_eq!(room().without("root").showing("/input", &tree).probe(["open-to-read", "/input/zero"]).line(), "done");
}

fn input_with_a_device_node(footprint: &Footprint) -> Option<std::path::PathBuf> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let tree = input(footprint);
    let node = tree.join("zero");
    if mknod(&node, SFlag::S_IFCHR, Mode::from_bits_retain(0o666), makedev(1, 5)).is_err() {
        skip("only root can make a device node");
        return None;
    }
    if fs::File::open(&node).is_err() {
        skip("device nodes do not work in the directory for temporary files");
        return None;
    }
    fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).expect("our own node");
    Some(tree)
}

#[test]
fn a_path_can_be_shown_at_another_place() {
    let footprint = footprint();
    let tree = input(&footprint);
    assert_eq!(room().showing("/deep/down/input", &tree).probe(["read", "/deep/down/input/file"]).line(), "text");
}

#[test]
fn a_single_file_can_be_shown() {
    let footprint = footprint();
    let file = input(&footprint).join("file");
    let room = || room().showing("/deep/file", &file);
    assert_eq!(room().probe(["read", "/deep/file"]).line(), "text");
    assert_eq!(room().probe(["open-to-write", "/deep/file"]).line(), "EROFS");
}

#[test]
fn a_link_is_shown_as_that_link_and_not_followed_on_the_host() {
    let footprint = footprint();
    let tree = input(&footprint);
    let link = footprint.path("link");
    std::os::unix::fs::symlink(&tree, &link).expect("a link");
    let room = || room().showing("/link", &link);
    let described = room().probe(["stat", "/link"]).line();
    assert!(described.starts_with("link ") && described.ends_with(&format!(" {}", tree.display())), "{described}");
    assert_eq!(room().probe(["list", "/link/"]).line(), "ENOENT");
}

#[test]
fn a_path_with_a_question_mark_may_be_missing() {
    assert_eq!(room().with(["--ro", "/no/such/path?"]).probe(["stat", "/no"]).line(), "ENOENT");
    assert_eq!(room().with(["--ro", "/here=/no/such/path?"]).probe(["stat", "/here"]).line(), "ENOENT");
    assert_eq!(room().with(["--ro", "/usr/bin?"]).run(["/usr/bin/true"]).status, 0);
}

#[test]
fn what_is_lent_can_be_written_and_what_stands_beside_it_cannot() {
    let footprint = footprint();
    assert_eq!(footprint.room().probe(["create", "/lent/file"]).line(), "done");
    assert!(footprint.has_lent("file"));
    assert_eq!(footprint.room().probe(["create", "/beside"]).line(), "EROFS");
}

#[test]
fn an_inner_mount_stands_in_an_outer_one_whatever_their_order() {
    let footprint = footprint();
    let tree = input(&footprint);
    fs::create_dir(tree.join("inner")).expect("a directory");
    let room = room().with(["--tmpfs", "/input/inner"]).showing("/input", &tree);
    assert_eq!(room.clone().probe(["create", "/input/inner/file"]).line(), "done");
    assert_eq!(room.probe(["create", "/input/file2"]).line(), "EROFS");
}

#[test]
fn a_mount_point_that_is_missing_in_a_read_only_input_is_not_made_in_the_host() {
    let footprint = footprint();
    let tree = input(&footprint);
    let refusal = room().showing("/input", &tree).with(["--tmpfs", "/input/missing"]).probe(["hold"]).refusal();
    assert!(refusal.starts_with("root: cannot mount a tmpfs") && refusal.contains("/input/missing"), "{refusal}");
    assert!(!tree.join("missing").exists());
}

#[test]
fn a_link_in_an_input_does_not_lead_a_mount_out_of_the_room() {
    let footprint = footprint();
    let tree = input(&footprint);
    let outside = footprint.path("outside");
    fs::create_dir(&outside).expect("a directory");
    open_to_all(&outside);
    std::os::unix::fs::symlink(&outside, tree.join("link")).expect("a link");
    std::os::unix::fs::symlink("/etc", tree.join("etc")).expect("a link");
    std::os::unix::fs::symlink("/proc/1/root", tree.join("root")).expect("a link");
    for point in ["/input/link", "/input/link/deep", "/input/etc/deep", "/input/root/deep", "/input/file/deep"] {
        for shown in ["--ro", "--rw"] {
            let mut source = std::ffi::OsString::from("/input=");
            source.push(&tree);
            let room = room().with([shown.as_ref(), source.as_os_str()]).with(["--tmpfs", point]);
            let refusal = room.run(["/bin/true"]).refusal();
            assert!(refusal.starts_with("root: cannot mount a tmpfs"), "{point}: {refusal}");
        }
    }
    assert_eq!(fs::read_dir(&outside).expect("our own directory").count(), 0);
}

#[test]
fn a_tmpfs_is_bounded() {
    let bounded = || room().with(["--tmpfs", "/more", "--tmpfs-size", "1M"]);
    for path in ["/tmp/file", "/home/nixbld/file", "/more/file"] {
        assert_eq!(bounded().probe(["fill", path, "4000000"]).line(), "ENOSPC after 1048576", "{path}");
    }
}

#[test]
fn a_tmpfs_holds_a_number_of_empty_files_that_its_size_stands_for() {
    let sown = |size| {
        let room = room().with(["--tmpfs", "/more", "--tmpfs-size", size]);
        room.shell("cd /more && seq 20000 | xargs touch 2>/dev/null; ls -U | wc -l").line()
    };
    // One for each page of 4 KiB and 16,384 more, of which the top directory has one.
    assert_eq!(sown("1M"), (256 + 16_384 - 1).to_string());
    assert_eq!(sown("64M"), "20000");
}
