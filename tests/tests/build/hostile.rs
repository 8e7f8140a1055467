//! Outputs as an enemy's work: what is stripped, what is refused, each in words of its own, and what nobody outside ever follows.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anchorhold_tests::host::{is_root, processes_that_name};
use anchorhold_tests::skip;
use serde_json::json;

use crate::judge::Judge;
use crate::recipe::Recipe;
use crate::world::World;

/// Refused in these words: a file of this kind in an output, and as the output.
#[test]
fn what_no_store_can_hold_is_refused_by_its_kind() {
    let world = World::new();
    let probe = world.add_probe();
    let cases = [("mkfifo $path", "is a FIFO"), ("$probe leave-a-socket $path", "is a socket")];
    for (make, words) in cases {
        let inside = Recipe::new(&world, "inside", &format!("mkdir -p $out/a/b; path=$out/a/b/bad; {make}"));
        world.fails(&inside.source("probe", &probe), "OutputRejected").says(&[
            "made an output that is refused",
            words,
            "a/b/bad",
            "only regular files, directories and symlinks",
        ]);
        let whole = Recipe::new(&world, "whole", &format!("path=$out; {make}"));
        world.fails(&whole.source("probe", &probe), "OutputRejected").says(&["made an output that is refused", words]);
    }
    // Devices cannot be made in the first place.
    let device =
        Recipe::new(&world, "device", "mknod $out c 1 3; mknod $out b 8 0; test -e $out || echo none; echo > $out");
    let said = world.build(&[world.derivation(&device)], &[]);
    assert_eq!(said.code, 0, "{}", said.err);
    said.says(&["none", "Operation not permitted"]);
    world.is_whole();
}

#[test]
fn rights_that_nobody_may_give_are_not_in_an_output() {
    let world = World::new();
    let script = r#"
        mkdir $out; cd $out
        for file in chmod install group; do echo x > $file; chmod 755 $file; done
        chmod 4755 chmod; chmod 6755 install; chmod 2755 group; chmod u+s chmod
        $probe create $out/created 6755; $probe mknod-regular $out/node 6755
        mkdir sticky; chmod 1777 sticky; chmod 2777 sticky; echo x > sticky/writable; chmod 666 sticky/writable
        echo x > secret; chmod 000 secret; mkdir shut; echo x > shut/inside; chmod 000 shut
        chmod 755 $out"#;
    let out = world.built(&Recipe::new(&world, "rights", script).source("probe", &world.add_probe()));
    let mut modes = Vec::new();
    let mut left = vec![world.real(&out)];
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        assert_eq!((found.uid(), found.mtime()), (nix::unistd::geteuid().as_raw(), 1), "{}", path.display());
        modes.push((path.file_name().unwrap().to_string_lossy().into_owned(), found.mode() & 0o7777));
        if found.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    let mode =
        |name: &str| modes.iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("{name}: {modes:?}")).1;
    for name in ["chmod", "install", "group", "sticky", "shut"] {
        assert_eq!(mode(name), 0o555, "{name}");
    }
    for name in ["writable", "secret", "inside"] {
        assert_eq!(mode(name), 0o444, "{name}");
    }
    assert!(modes.iter().all(|(_, mode)| matches!(mode, 0o444 | 0o555)), "{modes:?}");
    world.is_whole();
}

#[test]
fn an_output_that_others_may_write_is_refused_as_nix_does() {
    let world = World::new();
    for make in ["mkdir $out; chmod 775 $out", "echo > $out; chmod 666 $out"] {
        let ended = world.fails(&Recipe::new(&world, "open", make), "OutputRejected");
        ended.says(&["suspicious ownership or permission", "lets group or others write", "chmod go-w"]);
    }
    let Some(judge) = Judge::beside(&world) else { return };
    let derivation = world.derivation(&Recipe::new(&world, "open", "mkdir $out; chmod 775 $out"));
    judge.give(std::slice::from_ref(&derivation));
    assert!(!judge.realise(&[derivation]).status.success());
}

#[test]
fn attributes_and_access_control_lists_are_no_part_of_an_output() {
    let world = World::new();
    let probe = world.add_probe();
    // Refused in the room: an attribute of the user's, an access control list, capabilities of a file.
    let names = ["user.hidden", "system.posix_acl_access", "security.capability"];
    let script = format!("echo x > $out; for name in {}; do $probe set-attribute $out $name; done", names.join(" "));
    let derivation = world.derivation(&Recipe::new(&world, "attribute", &script).source("probe", &probe));
    let ended = world.build(&[&derivation], &[]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    let refused =
        ended.err.lines().filter(|line| ["> EOPNOTSUPP", "> EPERM"].iter().any(|answer| line.ends_with(answer)));
    assert_eq!(refused.count(), names.len(), "{}", ended.err);
    assert_eq!(attributes(&world, &world.output(&derivation, "out")), Vec::<String>::new());
}

fn attributes(world: &World, path: &str) -> Vec<String> {
    let mut names = vec![0_u8; 4096];
    let path = std::ffi::CString::new(world.real(path).as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends in a zero, and the buffer is as long as is said.
    let length = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).unwrap_or(0));
    names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(crate::world::text).collect()
}

/// A link in place of an output is an output that is a link. It is neither followed nor is what it leads to touched.
#[test]
fn links_are_kept_as_links_and_nobody_follows_them() {
    let world = World::new();
    let secret = world.file("secret", "of the host");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::metadata(&secret).unwrap();
    let text = world.add_file("text", "text");
    for (name, target) in [
        ("host", secret.to_str().unwrap()),
        ("shadow", "/etc/shadow"),
        ("up", "../../../../secret"),
        ("store", text.as_str()),
        ("self", "self"),
    ] {
        let recipe = Recipe::new(&world, name, "ln -s $target $out").env("target", target);
        let recipe = if name == "store" { recipe.source("text", &text) } else { recipe };
        let out = world.built(&recipe);
        assert_eq!(fs::read_link(world.real(&out)).unwrap().to_str(), Some(target));
        let references = world.facts(&out)["references"].clone();
        assert_eq!(references, if name == "store" { json!([text]) } else { json!([]) });
    }
    let tree = world.built(
        &Recipe::new(&world, "tree", "mkdir -p $out/d; ln -s $target $out/d/l; ln -s / $out/root; ln -s .. $out/d/up")
            .env("target", secret.to_str().unwrap()),
    );
    assert!(fs::symlink_metadata(world.real(&tree).join("root")).unwrap().is_symlink());
    let after = fs::metadata(&secret).unwrap();
    assert_eq!(
        (after.mode(), after.mtime(), after.uid(), after.len()),
        (before.mode(), before.mtime(), before.uid(), before.len())
    );
    world.is_whole();

    // A fixed output that is a link to a file with the right contents is none.
    let fixed = Recipe::new(&world, "fixed", "printf hello > /build/hello; ln -s /build/hello $out").fixed(
        "flat",
        "sha256",
        "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=",
    );
    let ended = world.fails(&fixed, "OutputRejected");
    ended.says(&["declared as a file"]);
}

/// One output is exchanged for a link to the other, or for what belongs to another derivation.
#[test]
fn an_output_in_anothers_place_changes_nothing() {
    let world = World::new();
    let victim = world.built(&Recipe::new(&world, "victim", "echo good > $out"));
    let attack = r#"
        echo evil > $dev; rm -f $victim; mkdir -p $victim 2>/dev/null; echo evil > $victim/x; ln -s $dev $out
        echo evil > /nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-planted; mkdir /nix/store/.links; echo evil > /nix/store/.links/x; true"#;
    let recipe = Recipe::new(&world, "attack", attack).outputs(&["out", "dev"]).env("victim", &victim);
    let derivation = world.derivation(&recipe);
    let ended = world.build(&[&derivation], &[]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(world.read(&victim), "good\n");
    assert!(!world.real("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-planted").exists(), "only outputs leave the room");
    assert!(!world.real("/nix/store/.links/x").exists());
    let (out, dev) = (world.output(&derivation, "out"), world.output(&derivation, "dev"));
    assert_eq!(world.facts(&out)["references"], json!([dev]));
    world.is_whole();
}

/// Its own: within one output, between two. Others': of its inputs, which it may read.
#[test]
fn hard_links_lead_to_nobody_elses_files() {
    let world = World::new();
    let text = world.add_file("text", "text");
    let script = "mkdir $out $dev; echo one > $out/a; ln $out/a $out/b; ln $out/a $dev/c; echo $text > $dev/d";
    let derivation =
        world.derivation(&Recipe::new(&world, "own", script).outputs(&["out", "dev"]).source("text", &text));
    assert_eq!(world.build(&[&derivation], &[]).code, 0);
    assert_eq!(world.read(&format!("{}/c", world.output(&derivation, "dev"))), "one\n");
    world.is_whole();

    let link = Recipe::new(&world, "input", "ln $text $out 2>&1 || echo copied > $out").source("text", &text);
    let out = world.built(&link);
    let (ours, theirs) = (fs::metadata(world.real(&out)).unwrap(), fs::metadata(world.real(&text)).unwrap());
    assert_ne!(ours.ino(), theirs.ino(), "an input became an output");

    // One that stays behind, beside the outputs. Where the builder has a user of its own it is only litter; where it is the caller, the file
    // could be any of the caller's.
    let outside = Recipe::new(&world, "outside", "mkdir $out; echo x > /nix/store/aside; ln /nix/store/aside $out/x");
    if is_root() {
        world.built(&outside);
        assert!(!world.real("/nix/store/aside").exists());
    } else {
        world.fails(&outside, "OutputRejected").says(&["has hard links outside the outputs (1)", "copy it instead"]);
    }
    // From where else it may write, none can be made.
    let seen = world.seen("{ for place in /build /tmp; do echo x > $place/x; ln $place/x $out-$place 2>&1; ln $place/x /nix/store/y 2>&1; done; true; } > $out");
    assert_eq!(seen.matches("Invalid cross-device link").count(), 2, "{seen}");
    world.is_whole();
}

/// It goes on writing for as long as it lives, from a session of its own, and is nobody's child.
#[test]
fn what_outlives_its_builder_is_dead_before_the_output_is_looked_at() {
    let world = World::new();
    let marker = format!("survivor-{}", std::process::id());
    let writer = format!(
        "trap '' HUP TERM; mkdir -p $out; while :; do echo {marker} >> $out/grows; echo x > $out/more; rm $out/more; done"
    );
    let script = format!(
        "setsid sh -c \"{writer}\" < /dev/null > /dev/null 2>&1 & while ! test -s $out/grows; do :; done; exit 0"
    );
    for round in 0..5 {
        let recipe = Recipe::new(&world, &format!("outlived-{round}"), &script);
        let out = world.built(&recipe);
        assert_eq!(processes_that_name(&marker), Vec::<i32>::new(), "a process outlived its build");
        let size = fs::metadata(world.real(&out).join("grows")).unwrap().len();
        assert!(size > 0);
        world.is_whole();
    }
}

/// One with the pipe of the log: the build is over when its builder is.
#[test]
fn what_holds_the_log_open_does_not_hold_up_the_build() {
    let world = World::new();
    let script = "(trap '' HUP TERM; while :; do sleep 1000; done) & echo > $out; exit 0";
    let derivation = world.derivation(&Recipe::new(&world, "holds", script));
    let ended = world.build(&[&derivation], &["--timeout", "30s"]);
    assert_eq!((ended.code, ended.status(&derivation)), (0, "Built"), "{}", ended.err);
}

#[test]
fn deep_trees_and_strange_names_are_only_names() {
    let world = World::new();
    let script = r#"
        mkdir $out; cd $out
        i=0; while [ $i -lt 1000 ]; do mkdir d && cd d || exit 1; i=$((i + 1)); done; echo bottom > f; ln -s ../../../../../../../etc/passwd l
        cd $out
        echo 1 > "$(printf 'new\nline')"; echo 2 > "$(printf 'not\377\376utf8')"; echo 3 > "$(printf 'escape\033[2J')"
        echo 4 > 'a~nix~case~hack~1'; echo 5 > A; echo 6 > a; echo 7 > ' '; echo 8 > '-rf'; echo 9 > '...'; echo 10 > '$(id)'
        echo 11 > "$(head -c 255 /dev/zero | tr '\0' n)"; mkdir 'x.drv' '*' '"'; : > '*/\'"#;
    let out = world.built(&Recipe::new(&world, "strange", script));
    let names: Vec<Vec<u8>> =
        fs::read_dir(world.real(&out)).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
    for name in [
        &b"new\nline"[..],
        b"not\xff\xfeutf8",
        b"escape\x1b[2J",
        b"a~nix~case~hack~1",
        b"A",
        b"a",
        b" ",
        b"-rf",
        b"...",
    ] {
        assert!(names.iter().any(|found| found == name), "{name:?} is lost");
    }
    world.is_whole();
    if let Some(judge) = Judge::beside(&world) {
        judge.accepts("nix-store", &["--verify", "--check-contents"]);
    }
    // It comes apart again: nothing of a thousand directories is left.
    world.said(&["store", "gc"]);
    assert!(fs::symlink_metadata(world.real(&out)).is_err());
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// What a name says is no command to a terminal, neither in an error nor in a log.
#[test]
fn a_terminal_is_told_nothing_by_a_builder() {
    let world = World::new();
    let script =
        "mkdir $out; mkfifo \"$out/$(printf 'evil\\033[2J\\nerror: fine')\"; printf 'log\\033]0;title\\007line\\n'";
    let derivation = world.derivation(&Recipe::new(&world, "escapes", script));
    let ended = world.build(&[&derivation], &[]);
    assert_eq!(ended.status(&derivation), "OutputRejected", "{}", ended.err);
    assert!(!ended.err.contains('\x1b') && !ended.err.contains('\x07'), "{:?}", ended.err);
    assert!(!ended.err.lines().any(|line| line.starts_with("error: fine")), "{}", ended.err);
    ended.says(&["logline"]);
}

/// Its scratch directories are its user's, and shut to everybody else.
#[test]
fn nobody_walks_into_a_running_build() {
    if !is_root() {
        return skip("only root can look as somebody else");
    }
    let world = World::new();
    // Otherwise nobody could walk to the store in the first place.
    fs::set_permissions(world.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let gate = world.gate();
    let script = "chmod 777 /build; mkdir -m 777 $out; echo x > $out/x; echo here; while ! test -e /gate/open; do :; done; chmod 755 $out";
    let derivation = world.derivation(&Recipe::new(&world, "walked", script));
    let mut running = world.start(&["build", "--option", "extra-sandbox-paths", &gate.option, &derivation]);
    running.line_with("> here");
    let builds = world.root().join("nix/var/nix/anchorhold/builds");
    let name = world.leftovers().pop().expect("a running build has a directory");
    for inner in ["room", "room/build", "room/store", "room/tmp"] {
        let place = builds.join(&name).join(inner);
        assert!(place.is_dir());
        let looked = std::process::Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "ls"])
            .arg(&place)
            .output()
            .unwrap();
        let said = crate::world::text(&looked.stderr);
        assert!(
            said.contains("Permission denied"),
            "{}: {said}{}",
            place.display(),
            crate::world::text(&looked.stdout)
        );
    }
    gate.open();
    let ended = running.ended();
    assert_eq!(ended.status, 0, "{}", ended.stdout);
}
