//! `anchorhold store copy` and `log` from outside. A real Nix reads what we write, and writes what we read.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anchorhold_tests::skip;
use anchorhold_tests::world::{World, text};

const BASE: &str = "/nix/store/10000000000000000000000000000000-base";
const TOP: &str = "/nix/store/20000000000000000000000000000000-top";
const DRV: &str = "/nix/store/30000000000000000000000000000000-top.drv";

/// An export, as a Nix writes it, of files at paths that nothing but a signature vouches for.
fn export(paths: &[(&str, &[u8], &[&str], &str)]) -> Vec<u8> {
    let number = |stream: &mut Vec<u8>, number: u64| stream.extend(number.to_le_bytes());
    let string = |stream: &mut Vec<u8>, text: &[u8]| {
        stream.extend((text.len() as u64).to_le_bytes());
        stream.extend(text);
        stream.resize(stream.len().next_multiple_of(8), 0);
    };
    let mut stream = Vec::new();
    for (path, contents, references, deriver) in paths {
        number(&mut stream, 1);
        for word in [&b"nix-archive-1"[..], b"(", b"type", b"regular", b"contents", contents, b")"] {
            string(&mut stream, word);
        }
        number(&mut stream, 0x4558_494e);
        string(&mut stream, path.as_bytes());
        number(&mut stream, references.len() as u64);
        for reference in *references {
            string(&mut stream, reference.as_bytes());
        }
        string(&mut stream, deriver.as_bytes());
        number(&mut stream, 0);
    }
    number(&mut stream, 0);
    stream
}

/// A store in which the last path needs the first.
fn built() -> World {
    let world = World::new();
    let contents = "contents\n".repeat(100_000);
    let stream = export(&[(BASE, contents.as_bytes(), &[], ""), (TOP, TOP.as_bytes(), &[BASE, TOP], DRV)]);
    let imported = world.fed(&["import"], &stream);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    world
}

/// What a Nix says without a store of its own; nothing if there is none here.
fn nix(world: &World, arguments: &[&str], settings: &str) -> Option<Output> {
    let config = format!("substituters =\nexperimental-features = nix-command\nbuild-users-group =\n{settings}");
    let output = Command::new("nix")
        .args(arguments)
        .env("NIX_CONFIG", config)
        .env("HOME", world.directory.path())
        .stdin(Stdio::null())
        .output();
    if output.is_err() {
        skip("no Nix is installed");
    }
    output.ok()
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

/// A key of Nix's own making: the file of the secret half, and the public half.
fn key(world: &World, name: &str) -> Option<(String, String)> {
    let secret = done(&nix(world, &["key", "generate-secret", "--key-name", name], "")?);
    let file = world.file(name, &secret);
    let output = Command::new("sh")
        .args(["-c", "nix key convert-secret-to-public <\"$0\""])
        .arg(&file)
        .env("NIX_CONFIG", "experimental-features = nix-command")
        .env("HOME", world.directory.path())
        .output()
        .unwrap();
    Some((file.to_str().unwrap().to_owned(), done(&output)))
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_cache_of_ours_is_read_by_nix() {
    let world = built();
    let Some((secret, public)) = key(&world, "ours-1") else { return };
    for compression in ["xz", "zstd", "none"] {
        let cache = format!("file://{}/{compression}?compression={compression}", world.directory.path().display());
        let plain = cache.split('?').next().unwrap();
        assert_eq!(world.said(&["copy", "--to", &cache, "--sign-key", &secret, TOP]), format!("{BASE}\n{TOP}\n"));
        assert_eq!(world.said(&["copy", "--to", &cache, TOP]), "", "what is there is not copied");
        let there = World::new();
        let root = there.root();
        let copy = ["copy", "--from", plain, "--to", root.to_str().unwrap(), TOP];
        let refused = nix(&world, &copy, "require-sigs = true\n").unwrap();
        assert!(!refused.status.success(), "Nix trusts a key that it was not told of");
        done(&nix(&world, &copy, &format!("require-sigs = true\ntrusted-public-keys = {public}\n")).unwrap());
        there.is_whole();
        let (ours, theirs) =
            (world.said(&["path-info", "--json", "-r", TOP]), there.said(&["path-info", "--json", "-r", TOP]));
        let (ours, theirs): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(&ours).unwrap(), serde_json::from_str(&theirs).unwrap());
        for (ours, theirs) in ours.as_array().unwrap().iter().zip(theirs.as_array().unwrap()) {
            for field in ["path", "narHash", "narSize", "references", "deriver"] {
                assert_eq!(ours[field], theirs[field], "{field}");
            }
        }
        // Ours again, from what Nix now has, with the signature that came along.
        let back = World::new();
        let from = root.to_str().unwrap();
        assert_eq!(back.said(&["copy", "--from", from, "--trusted-key", &public, TOP]), format!("{BASE}\n{TOP}\n"));
        back.is_whole();
    }
}

#[test]
fn a_cache_of_nix_is_read_by_us() {
    let world = built();
    let Some((secret, public)) = key(&world, "theirs-1") else { return };
    let (_, stranger) = key(&world, "stranger-1").unwrap();
    let root = world.root();
    for compression in ["xz", "zstd", "none", "bzip2"] {
        let cache = format!("file://{}/{compression}", world.directory.path().display());
        let to = format!("{cache}?compression={compression}&secret-key={secret}");
        done(&nix(&world, &["copy", "--store", root.to_str().unwrap(), "--to", &to, TOP], "").unwrap());
        let there = World::new();
        let refused = there.refused(&["copy", "--from", &cache, "--trusted-key", &stranger, TOP]);
        assert!(refused.contains("is signed by ‘theirs-1’ only") && refused.contains("--trusted-key"), "{refused}");
        assert_eq!(there.said(&["query", "--all"]), "");
        let account = there.said(&["copy", "--from", &cache, "--trusted-key", &public, "--json", TOP]);
        let account: serde_json::Value = serde_json::from_str(&account).unwrap();
        assert_eq!(account["copied"][1]["path"], TOP);
        assert_eq!(account["copied"][1]["vouchedBy"], "theirs-1");
        assert!(account["narBytes"].as_u64().unwrap() > 900_000);
        there.is_whole();
        let info: serde_json::Value = serde_json::from_str(&there.said(&["path-info", "--json", TOP])).unwrap();
        assert!(info[0]["signatures"][0].as_str().unwrap().starts_with("theirs-1:"), "{info}");
        let account = there.said(&["copy", "--from", &cache, "--trusted-key", &public, "--json", TOP]);
        assert!(account.contains("\"copied\": []") && account.contains(TOP), "{account}");
    }
}

#[test]
fn stores_give_to_stores_what_their_owner_lets_them() {
    let (from, to) = (built(), World::new());
    let root = from.root();
    let refused = to.refused(&["copy", "--from", root.to_str().unwrap(), TOP]);
    assert!(refused.contains("has no signature") && refused.contains("--no-check-sigs"), "{refused}");
    // A link to the path means the path.
    let link = from.directory.path().join("result");
    std::os::unix::fs::symlink(TOP, &link).unwrap();
    let copied = to.said(&["copy", "--from", root.to_str().unwrap(), "--no-check-sigs", link.to_str().unwrap()]);
    assert_eq!(copied, format!("{BASE}\n{TOP}\n"));
    to.is_whole();
    for (place, words) in [
        ("https://cache.example", "file:///DIRECTORY"),
        ("file:///nowhere/at/all", "nix-cache-info"),
        ("/nowhere/at/all", "there is no store at"),
    ] {
        let refused = to.refused(&["copy", "--from", place, TOP]);
        assert!(refused.contains(words) || refused.contains("cannot open the binary cache"), "{place}: {refused}");
    }
}

#[test]
fn a_cache_that_lies_gives_nothing() {
    let world = built();
    let cache = world.directory.path().join("cache");
    let url = format!("file://{}", cache.display());
    world.said(&["copy", "--to", &url, TOP]);
    let narinfo = cache.join("20000000000000000000000000000000.narinfo");
    let good = fs::read_to_string(&narinfo).unwrap();
    for (from, to, words) in [
        ("NarSize: ", "NarSize: 1", "cannot copy ‘20000000"),
        ("URL: nar/", "URL: ../../../../etc/", "cannot open the archive"),
        ("NarHash: sha256:", "NarHash: sha256:0", "its field NarHash"),
        ("References: 1", "References: 4", "which is needed by ‘2000"),
        ("StorePath: /nix/store/2", "StorePath: /nix/store/4", "describes another path"),
        ("Compression: xz", "Compression: zstd", "cannot read"),
    ] {
        assert!(good.contains(from), "{from}: {good}");
        fs::write(&narinfo, good.replacen(from, to, 1)).unwrap();
        let there = World::new();
        let refused = there.refused(&["copy", "--from", &url, "--no-check-sigs", TOP]);
        assert!(refused.contains(words), "{to}: {refused}");
        assert_eq!(there.said(&["query", "--all"]), "", "{to}");
        assert_eq!(names(&there.root().join("nix/store")), [".links".to_owned()].into(), "{to}");
    }
}

#[test]
fn derivations_are_known_by_their_outputs_however_they_came() {
    let world = World::new();
    let expression = r#"let d = derivation { name = "low"; system = "x86_64-linux"; builder = "/bin/sh"; };
        in derivation { name = "high"; system = "x86_64-linux"; builder = "/bin/sh"; outputs = [ "out" "dev" ]; low = d; }"#;
    let Some(drv) = world.nix("nix-instantiate", &["--expr", expression]) else { return };
    let drv = text(&drv.stdout).trim().trim_end_matches("!out").to_owned();
    let outputs = world.lines(&["query", "--outputs", &drv]);
    assert_eq!(outputs.len(), 2);
    let (imported, copied) = (World::new(), World::new());
    assert!(imported.fed(&["import"], &world.ask(&["export", "-r", &drv]).stdout).status.success());
    copied.said(&["copy", "--from", world.root().to_str().unwrap(), &drv]);
    for world in [&imported, &copied] {
        world.is_whole();
        assert_eq!(world.lines(&["query", "--outputs", &drv]), outputs);
        let theirs = world.nix("nix-store", &["--query", "--outputs", &drv]).unwrap();
        assert_eq!(text(&theirs.stdout).lines().map(str::to_owned).collect::<BTreeSet<_>>(), outputs);
    }
}

#[test]
fn logs_are_shown_without_what_a_terminal_would_obey() {
    let world = built();
    let directory = world.root().join("nix/var/log/nix/drvs/30");
    fs::create_dir_all(&directory).unwrap();
    let bytes = b"\x1b]0;a title\x07\x1b[31mred\x1b[0m\x1b[2J and\rplain\xff\n";
    fs::write(directory.join(DRV.rsplit_once("/30").unwrap().1), bytes).unwrap();
    for path in [DRV, TOP] {
        assert_eq!(world.said(&["log", path]), "red and\nplain\u{fffd}\n", "{path}");
        assert_eq!(world.ask(&["log", "--raw", path]).stdout, bytes, "{path}");
    }
    if let Some(theirs) = world.nix("nix", &["log", TOP]) {
        assert!(theirs.stdout.windows(5).any(|window| window == b"plain"), "{}", text(&theirs.stdout));
    }
    let refused = world.refused(&["log", BASE]);
    assert!(refused.contains("was not built"), "{refused}");
    let refused = world.refused(&["log", "/nix/store/40000000000000000000000000000000-x.drv"]);
    assert!(refused.contains("there is no log of"), "{refused}");

    let cache = world.directory.path().join("cache");
    let url = format!("file://{}", cache.display());
    world.said(&["copy", "--to", &url, TOP]);
    let refused = world.refused(&["log", "--from", &url, TOP]);
    assert!(refused.contains("has no log of"), "{refused}");
    fs::create_dir(cache.join("log")).unwrap();
    let in_cache = cache.join("log").join(DRV.rsplit_once('/').unwrap().1);
    fs::write(&in_cache, bytes).unwrap();
    assert_eq!(world.said(&["log", "--from", &url, TOP]), "red and\nplain\u{fffd}\n");
    let compressed = Command::new("xz").arg("--keep").arg("--stdout").arg(&in_cache).output();
    match compressed {
        Ok(compressed) if compressed.status.success() => {
            fs::write(&in_cache, compressed.stdout).unwrap();
            assert_eq!(world.ask(&["log", "--from", &url, "--raw", DRV]).stdout, bytes);
        }
        _ => skip("no xz is installed"),
    }
}

/// Each copy is killed at another instant in each round.
#[test]
fn a_kill_at_any_instant_leaves_nothing_half() {
    let from = World::new();
    let paths: Vec<_> =
        (0..40).map(|number| from.add(&format!("n{number}"), &format!("{number} ").repeat(5_000))).collect();
    let root = from.root();
    let to = World::new();
    let cache = to.directory.path().join("cache");
    let url = format!("file://{}", cache.display());
    let into_store: Vec<_> =
        ["copy", "--from", root.to_str().unwrap()].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let into_cache: Vec<_> = ["copy", "--to", &url].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let killed = |world: &World, arguments: &[&str], instant: std::time::Duration| {
        let mut child = world.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Not to wait for anything: the instant itself is what is tried.
        std::thread::sleep(instant);
        child.kill().unwrap();
        child.wait().unwrap();
    };
    for round in 0..10_u32 {
        let instant = std::time::Duration::from_micros(1_500) * (round * round % 31);
        killed(&to, &into_store, instant);
        if to.root().join("nix/var/nix/db/schema").exists() {
            to.said(&["verify", "--check-contents"]);
        }
        killed(&from, &into_cache, instant);
        let Ok(entries) = fs::read_dir(&cache) else { continue };
        for narinfo in entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "narinfo"))
        {
            let said = fs::read_to_string(&narinfo).unwrap();
            let archive = said.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
            assert!(cache.join(archive).exists(), "{said}");
        }
    }
    to.said(&into_store);
    from.said(&into_cache);
    assert_eq!(to.lines(&["query", "--all"]), paths.iter().cloned().collect());
    to.is_whole();
    to.said(&["gc"]);
    assert_eq!(names(&to.root().join("nix/store")), [".links".to_owned()].into(), "what was left behind goes");
}

#[test]
fn all_of_a_place_goes_over_with_its_logs_if_that_is_wanted() {
    let world = built();
    let log = world.root().join("nix/var/log/nix/drvs/30");
    fs::create_dir_all(&log).unwrap();
    fs::write(log.join(&DRV["/nix/store/30".len()..]), "what it said\n").unwrap();
    let (there, back) = (World::new(), World::new());
    let cache = format!("file://{}", world.directory.path().join("cache").display());
    let both = format!("{BASE}\n{TOP}\n");
    assert_eq!(world.said(&["copy", "--all", "--to", &cache]), both);
    assert!(!world.ask(&["log", "--from", &cache, DRV]).status.success(), "nobody asked for logs");
    let further = format!("file://{}", world.directory.path().join("further").display());
    assert_eq!(world.said(&["copy", "--all", "--logs", "--to", &further]), both);
    assert_eq!(world.said(&["log", "--from", &further, DRV]), "what it said\n");
    assert_eq!(there.said(&["copy", "--all", "--logs", "--no-check-sigs", "--from", &further]), both);
    assert_eq!(there.said(&["log", DRV]), "what it said\n");
    let root = there.root();
    let root = root.to_str().unwrap();
    assert_eq!(back.said(&["copy", "--all", "--logs", "--no-check-sigs", "--from", root]), both);
    assert_eq!(back.said(&["log", DRV]), "what it said\n");
    back.is_whole();
}
