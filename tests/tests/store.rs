//! `anchorhold store` from outside, with a real Nix as the judge of what it makes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use anchorhold_tests::room::anchorhold;
use anchorhold_tests::skip;
use anchorhold_tests::world::{World, text};

#[test]
fn what_is_added_is_what_nix_knows_of_it() {
    let world = World::new();
    let tree = world.directory.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("sub/run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("sub/run", tree.join("link")).unwrap();
    let result = world.directory.path().join("result");
    let added = world.said(&["add", tree.to_str().unwrap(), "--root", result.to_str().unwrap()]);
    let added = added.trim();
    assert_eq!(fs::read_link(&result).unwrap().to_str(), Some(added));
    assert_eq!(world.said(&["query", "--roots", added]).trim(), format!("{} -> {added}", result.display()));
    let flat = world.said(&["add", "--flat", "--name", "flat", world.file("f", "flat").to_str().unwrap()]);
    world.said(&["add", "--text", world.file("t", "text").to_str().unwrap()]);
    world.is_whole();

    let ours: serde_json::Value = serde_json::from_str(&world.said(&["path-info", "--json", "--all"])).unwrap();
    assert_eq!(ours.as_array().unwrap().len(), 3);
    assert!(world.lines(&["query", "--all"]).contains(flat.trim()));
    // The whole path, what lies in it, its name, a link to it, and where it really is all mean the same.
    let link = world.directory.path().join("to-it");
    symlink(added, &link).unwrap();
    let name = added.rsplit_once('/').unwrap().1;
    for form in [added, &format!("{added}/sub/run"), name, link.to_str().unwrap(), world.real(added).to_str().unwrap()]
    {
        assert_eq!(world.said(&["path-info", form]).trim(), added, "{form}");
    }
    let Some(theirs) = world.nix("nix", &["path-info", "--json", "--all"]) else { return };
    let mut theirs: serde_json::Value = serde_json::from_slice(&theirs.stdout).unwrap();
    theirs.as_array_mut().unwrap().sort_by_key(|object| object["path"].to_string());
    assert_eq!(ours, theirs);
    let dumped = world.nix("nix-store", &["--dump", tree.to_str().unwrap()]).unwrap();
    assert!(world.ask(&["dump", added]).stdout == dumped.stdout);
    assert!(world.ask(&["dump", tree.to_str().unwrap()]).stdout == dumped.stdout);
}

#[test]
fn closures_go_from_store_to_store() {
    let (from, to) = (World::new(), World::new());
    let one = from.add("one", "1");
    let two = from.add("two", "2");
    let exported = from.ask(&["export", "-r", &one, &two]);
    assert!(exported.status.success());
    let imported = to.fed(&["import"], &exported.stdout);
    assert_eq!(text(&imported.stdout).lines().collect::<BTreeSet<_>>(), [one.as_str(), two.as_str()].into());
    to.is_whole();
    let cut = World::new();
    let refused = cut.fed(&["import"], &exported.stdout[..exported.stdout.len() - 20]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("cut off"), "{}", text(&refused.stderr));
    cut.is_whole();

    let archive = from.ask(&["dump", &one]).stdout;
    let place = from.directory.path().join("restored");
    assert!(from.fed(&["restore", place.to_str().unwrap()], &archive).status.success());
    assert_eq!(fs::read(&place).unwrap(), b"1");
    let again = from.fed(&["restore", place.to_str().unwrap()], &archive);
    assert!(text(&again.stderr).contains("exists"), "{}", text(&again.stderr));
}

#[test]
fn the_collector_takes_what_no_root_needs() {
    let world = World::new();
    let (keep, take) = (world.add("keep", "k"), world.add("take", "t"));
    let root = world.root().join("nix/var/nix/gcroots/mine");
    symlink(&keep, &root).unwrap();
    assert_eq!(world.lines(&["gc", "--print-live"]), [keep.clone()].into());
    assert_eq!(world.lines(&["gc", "--print-dead"]), [take.clone()].into());
    assert_eq!(world.said(&["roots"]).trim(), format!("{} -> {keep}", root.display()));
    let refused = world.refused(&["gc", "--delete", &keep]);
    assert!(refused.contains("is kept by") && refused.contains("gcroots/mine"), "{refused}");
    let account: serde_json::Value = serde_json::from_str(&world.said(&["gc", "--json"])).unwrap();
    assert_eq!(account["deleted"], serde_json::json!([take]));
    assert!(account["bytesFreed"].as_u64().unwrap() > 0);
    assert!(!world.real(&take).exists() && world.real(&keep).exists());
    assert_eq!(world.lines(&["query", "--all"]), [keep].into());
    world.is_whole();
}

#[test]
fn a_damaged_store_is_told_and_mended_as_far_as_it_goes() {
    let world = World::new();
    let (gone, changed) = (world.add("gone", "g"), world.add("changed", "c"));
    fs::remove_file(world.real(&gone)).unwrap();
    fs::remove_file(world.real(&changed)).unwrap();
    fs::write(world.real(&changed), "other").unwrap();
    let findings = world.refused(&["verify", "--check-contents"]);
    assert!(findings.contains("has no files") && findings.contains("has changed"), "{findings}");
    let repaired = world.refused(&["verify", "--check-contents", "--repair"]);
    assert!(repaired.contains("repaired: ") && repaired.contains("build those paths again"), "{repaired}");
    assert_eq!(world.lines(&["query", "--all"]), [changed.clone()].into());
    let refused = world.refused(&["export", &changed]);
    assert!(refused.contains("has changed since it was registered"), "{refused}");
    world.said(&["gc"]);
    world.is_whole();

    let database = world.root().join("nix/var/nix/db/db.sqlite");
    fs::write(&database, "no database").unwrap();
    for arguments in [&["query", "--all"][..], &["gc"]] {
        let refused = world.refused(arguments);
        assert!(refused.contains("is damaged") && refused.contains(".recover"), "{refused}");
    }
    fs::write(world.root().join("nix/var/nix/db/schema"), "11").unwrap();
    assert!(world.refused(&["gc"]).contains("schema 11"));
    assert_eq!(fs::read(&database).unwrap(), b"no database");
}

#[test]
fn equal_files_become_one() {
    let world = World::new();
    let contents = "x".repeat(100_000);
    for name in ["a", "b", "c"] {
        world.add(name, &contents);
    }
    let account: serde_json::Value = serde_json::from_str(&world.said(&["optimise", "--json"])).unwrap();
    assert_eq!((&account["linked"], &account["warnings"]), (&2.into(), &serde_json::json!([])));
    assert!(account["bytesSaved"].as_u64().unwrap() >= 200_000);
    let again = world.said(&["optimise"]);
    assert!(again.contains("3 were one with another already, 0 are now: 0 bytes saved"), "{again}");
    world.is_whole();
}

#[test]
fn questions_without_an_answer_say_so() {
    let world = World::new();
    let nothing = world.refused(&["query", "--all"]);
    assert!(nothing.contains("there is no store at"), "{nothing}");
    assert!(!world.root().exists(), "looking makes nothing");
    world.add("a", "a");
    let absent = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-absent";
    for arguments in [["query", absent], ["path-info", absent], ["export", absent], ["dump", absent]] {
        let refused = world.refused(&arguments);
        assert!(refused.contains("is not valid in this store"), "{refused}");
    }
    let refused = world.refused(&["query", "/etc/passwd"]);
    assert!(refused.contains("is not in the store"), "{refused}");
}

/// In a file system of 24 MiB that only the command sees. The store's own reserve takes 8 of them.
#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    let world = World::new();
    let (small, large) = (world.file("small", "small"), world.file("large", &"x".repeat(32 << 20)));
    let script = r#"
        set -e
        mkdir -p "$ROOT"
        mount -t tmpfs -o size=24m tmpfs "$ROOT"
        echo mounted
        "$BIN" store --store "$ROOT" add "$SMALL"
        if "$BIN" store --store "$ROOT" add "$LARGE"; then exit 3; fi
        "$BIN" store --store "$ROOT" verify --check-contents
        "$BIN" store --store "$ROOT" query --all
        "$BIN" store --store "$ROOT" gc
        ls -A "$ROOT/nix/store"
    "#;
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .envs([("ROOT", world.root()), ("BIN", anchorhold()), ("SMALL", small), ("LARGE", large)])
        .output();
    let Some(output) = output.ok().filter(|output| text(&output.stdout).starts_with("mounted")) else {
        return skip("no file system can be mounted in a user namespace here");
    };
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(err.contains("is full: free some space"), "{err}");
    assert!(err.contains("1 paths checked") || err.contains(" 0 findings left"), "{err}");
    assert_eq!(out.lines().last(), Some(".links"), "{out}");
}

/// On a file system that only the command sees as read-only.
#[test]
fn a_read_only_store_answers_questions() {
    let world = World::new();
    let added = world.add("a", "a");
    let script = r#"
        set -e
        mount --bind "$ROOT" "$ROOT"
        mount -o remount,bind,ro "$ROOT"
        echo mounted
        "$BIN" store --store "$ROOT" query --all
        "$BIN" store --store "$ROOT" verify --check-contents
        "$BIN" store --store "$ROOT" gc --print-dead
        if "$BIN" store --store "$ROOT" gc; then exit 3; fi
    "#;
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .envs([("ROOT", world.root()), ("BIN", anchorhold())])
        .output();
    let Some(output) = output.ok().filter(|output| text(&output.stdout).starts_with("mounted")) else {
        return skip("no file system can be mounted in a user namespace here");
    };
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert_eq!(out, format!("mounted\n{added}\n{added}\n"));
    assert!(err.contains("can only be read here"), "{err}");
}

/// Each command is killed at another instant in each round.
#[test]
fn a_kill_at_any_instant_loses_nothing() {
    let source = World::new();
    let tree = |number: usize| {
        let tree = source.directory.path().join(format!("tree-{number}"));
        fs::create_dir_all(tree.join("sub")).unwrap();
        for file in 0..10 {
            fs::write(tree.join(format!("sub/{file}")), vec![file; 5_000]).unwrap();
        }
        fs::write(tree.join("own"), number.to_string()).unwrap();
        source.said(&["add", tree.to_str().unwrap()]).trim().to_owned()
    };
    let paths: Vec<_> = (0..30).map(tree).collect();
    let arguments: Vec<_> = ["export"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let stream = source.directory.path().join("stream");
    fs::write(&stream, source.ask(&arguments).stdout).unwrap();

    let killed = |world: &World, arguments: &[&str], instant: std::time::Duration| {
        let mut child = world
            .command(arguments)
            .stdin(fs::File::open(&stream).unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Not to wait for anything: the instant itself is what is tried.
        std::thread::sleep(instant);
        child.kill().unwrap();
        child.wait().unwrap();
    };
    let world = World::new();
    for round in 0..12_u32 {
        let instant = std::time::Duration::from_micros(700) * (round * round % 41);
        killed(&world, &["import"], instant);
        killed(&world, &["optimise"], instant);
        if world.root().join("nix/var/nix/db/schema").exists() {
            world.said(&["verify", "--check-contents"]);
        }
        assert!(world.fed(&["import"], &fs::read(&stream).unwrap()).status.success());
        world.said(&["optimise"]);
        killed(&world, &["gc"], instant);
        world.said(&["verify", "--check-contents"]);
    }
    world.is_whole();
    // What was left behind is found and taken; what is kept stays.
    symlink(&paths[0], world.root().join("nix/var/nix/gcroots/one")).unwrap();
    assert!(world.fed(&["import"], &fs::read(&stream).unwrap()).status.success());
    world.said(&["gc"]);
    let left: BTreeSet<_> = fs::read_dir(world.root().join("nix/store"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        left,
        [".links".to_owned(), Path::new(&paths[0]).file_name().unwrap().to_str().unwrap().to_owned()].into()
    );
    world.is_whole();
}
