//! Bad input, bad stores, bad luck: a clear line, the right class, nothing lost.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anchorhold_tests::host::is_root;
use anchorhold_tests::room::anchorhold;
use anchorhold_tests::skip;
use serde_json::json;

use crate::recipe::Recipe;
use crate::world::{Ended, World, text};

/// What is said of a text that is put into the store as if it were a derivation, and then built if the store takes it.
fn built_by_hand(world: &World, name: &str, aterm: &str) -> Ended {
    let file = world.file("by-hand", aterm);
    let added = world.ask(&["store", "add", "--text", "--name", &format!("{name}.drv"), file.to_str().unwrap()]);
    let ended = if added.status.success() {
        world.build(&[text(&added.stdout).trim()], &[])
    } else {
        assert!(!world.valid().iter().any(|path| path.contains(name)), "{name} is refused, and valid");
        Ended::of(&added)
    };
    assert_ne!(ended.code, 0, "{name} was built");
    assert!(ended.err.contains(name), "it is not named: {}", ended.err);
    assert!(!ended.err.contains("panicked"), "{}", ended.err);
    ended
}

/// The text of a derivation with one output.
fn aterm(outputs: &str, system: &str, builder: &str, env: &str) -> String {
    format!(r#"Derive([{outputs}],[],[],"{system}","{builder}",["-c","true"],[{env}])"#)
}

#[test]
fn derivations_that_are_none_are_refused_where_they_are_wrong() {
    let world = World::new();
    let good = Recipe::new(&world, "good", "echo > $out").json().to_string();
    for cut in (0..good.len()).step_by(7) {
        let refused = world.fed(&["derivation", "add"], &good.as_bytes()[..cut]);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "cut at {cut}: {said}");
        assert!(said.starts_with("anchorhold: -: ") && !said.contains("panicked"), "{said}");
    }
    let recipe = |name: &str| Recipe::new(&world, name, "echo > $out");
    let path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a";
    for (recipe, words) in [
        (recipe("a").set("outputs", json!({ "out": { "path": "/etc/passwd" } })), vec!["output ‘out’", "/etc/passwd"]),
        (recipe("a").set("outputs", json!({ "out": { "path": "/nix/store/../../etc/passwd" } })), vec!["output ‘out’"]),
        (recipe("a").set("outputs", json!({ "out": { "path": path } })), vec![path]),
        (recipe("a").set("outputs", json!({ "../out": {} })), vec!["../out"]),
        (recipe("a").set("outputs", json!({})), vec!["output"]),
        (recipe("a/../../b"), vec!["a/../../b"]),
        (recipe("a").set("inputSrcs", json!(["/etc/passwd"])), vec!["/etc/passwd"]),
        (recipe("a").set("inputSrcs", json!([path])), vec![path]),
        (recipe("a").set("inputDrvs", json!({ path: ["out"] })), vec![path]),
        (recipe("a").set("unknown", 1), vec!["the key ‘unknown’ is not known here"]),
        (recipe("a").set("args", "text"), vec!["key ‘args’", "a list of strings"]),
    ] {
        let refused = world.fed(&["derivation", "add"], recipe.json().to_string().as_bytes());
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{words:?}: {said}{}", text(&refused.stdout));
        for word in words {
            assert!(said.contains(word.trim_start_matches("/nix/store/")), "‘{word}’ is not said: {said}");
        }
    }
    let twice = good.replacen("\"name\":", "\"name\":\"other\",\"name\":", 1);
    assert!(text(&world.fed(&["derivation", "add"], twice.as_bytes()).stderr).contains("name"), "a key twice");
    assert!(!world.valid().iter().any(|path| path.ends_with(".drv")), "{:?}", world.valid());
}

#[test]
fn derivations_in_the_store_are_taken_as_an_enemys_as_well() {
    let world = World::new();
    let (system, sh) = (format!("{}-linux", std::env::consts::ARCH), format!("{}/bin/sh", world.tools));
    let path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la";
    let good = aterm(&format!(r#"("out","{path}-good","","")"#), &system, &sh, &format!(r#"("out","{path}-good")"#));
    for cut in (0..good.len()).step_by(23) {
        built_by_hand(&world, &format!("cut-{cut}"), &good[..cut]);
    }
    built_by_hand(&world, "trailing", &format!("{good} "));
    built_by_hand(&world, "outside", &aterm(r#"("out","/etc/passwd","","")"#, &system, &sh, "")).says(&["/etc/passwd"]);
    let twice = format!(r#"("out","{path}-a","",""),("out","{path}-b","","")"#);
    built_by_hand(&world, "twice", &aterm(&twice, &system, &sh, "")).says(&["out"]);
    let same = format!(r#"("dev","{path}-same","",""),("out","{path}-same","","")"#);
    built_by_hand(&world, "same", &aterm(&same, &system, &sh, ""));
    for (name, output) in [("floating", r#"("out","","r:sha256","")"#), ("impure", r#"("out","","r:sha256","impure")"#)]
    {
        let ended = built_by_hand(&world, name, &aterm(output, &system, &sh, ""));
        assert_eq!(ended.results[0]["status"], "InputRejected", "{}", ended.err);
        ended.says(&["was not started: ", "does not build these yet"]);
    }
    // Well written, but its output is not the one that follows from it: it could be anybody's.
    let victim = world.add_file("victim", "good");
    let wrong = aterm(&format!(r#"("out","{path}-wrong","","")"#), &system, &sh, &format!(r#"("out","{path}-wrong")"#));
    let ended = built_by_hand(&world, "wrong", &wrong);
    assert!(ended.results.is_empty(), "the store has taken it: {}", ended.err);
    ended.says(&["cannot register", "has the path", "which should be"]);
    assert_eq!(world.read(&victim), "good");
    world.is_whole();
}

#[test]
fn a_circle_and_a_missing_input_are_named() {
    let world = World::new();
    let (one, two) =
        ("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-one.drv", "/nix/store/11bgd045z0d4icpbc2yyz4gx48ak44la-two.drv");
    let mut all = json!({});
    for (own, other) in [(one, two), (two, one)] {
        let mut value = Recipe::new(&world, "x", "true").set("inputDrvs", json!({ other: ["out"] })).json().clone();
        value.as_object_mut().unwrap().remove("name");
        all[own] = value;
    }
    let refused = world.fed(&["derivation", "add"], all.to_string().as_bytes());
    let said = text(&refused.stderr);
    assert!(said.contains("need one another") && said.contains("one.drv") && said.contains("two.drv"), "{said}");

    // The derivation went from one store to another without what it needs.
    let source = world.add_file("source", "text");
    let below = world.derivation(&Recipe::new(&world, "below", "echo > $out").source("source", &source));
    let above = world.derivation(&Recipe::new(&world, "above", "echo > $out").needs(&world, "below", &below, "out"));
    let other = World::new();
    let refused = other.fed(&["store", "import"], &world.ask(&["store", "export", &above]).stdout);
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("below.drv") && said.contains("above.drv"), "{said}");
    let ended = other.build(&[&above], &[]);
    assert_eq!(ended.code, 1);
    ended.says(&[&above[11..], "not in the store"]);

    // Its files are gone, though the database knows it.
    let real = world.real(&source);
    fs::remove_file(&real).unwrap();
    let ended = world.build(&[&above], &[]);
    assert_eq!((ended.status(&below), ended.status(&above)), ("MiscFailure", "DependencyFailed"), "{}", ended.err);
    assert_eq!(ended.code, 1);
    ended.says(&[&source, "No such file"]);
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn outputs_and_derivations_that_are_not_there_are_told() {
    let world = World::new();
    let derivation =
        world.derivation(&Recipe::new(&world, "some", "echo > $out; echo > $dev").outputs(&["out", "dev"]));
    let ended = world.build(&[format!("{derivation}^doc")], &[]);
    ended.says(&["has no output ‘doc’: it has dev, out"]);
    assert_eq!(ended.code, 1);
    for (wrong, words) in [("/etc/passwd", "/etc/passwd"), ("nonsense", "nonsense"), (world.tools.as_str(), "tools")] {
        let ended = world.build(&[wrong], &[]);
        assert_ne!(ended.code, 0);
        ended.says(&[words]);
    }
    let out = world.said(&["build", "--option", "timeout", "60", &format!("{derivation}^dev")]);
    assert_eq!(out.trim(), world.output(&derivation, "dev"), "what was asked for is what is printed");
}

#[test]
fn a_builder_that_cannot_be_started_is_told_with_the_reason() {
    let world = World::new();
    let text = world.add_file("text", "no program");
    let script = world.path("script");
    fs::write(&script, "#!/nix/store/nowhere/sh\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let script = world.add(&script);
    let garbage = world.path("garbage");
    fs::write(&garbage, [0x7f, b'E', b'L', b'F', 9, 9, 9]).unwrap();
    fs::set_permissions(&garbage, fs::Permissions::from_mode(0o755)).unwrap();
    let garbage = world.add(&garbage);
    let absent = format!("{}/bin/absent", world.tools);
    for (builder, words) in [
        (absent.as_str(), "No such file"),
        ("/bin/bash", "No such file"),
        (text.as_str(), "Permission denied"),
        (world.tools.as_str(), "Permission denied"),
        (script.as_str(), "No such file"),
        (garbage.as_str(), "Exec format error"),
    ] {
        let recipe = Recipe::new(&world, "unstarted", "true").run_by(builder, &[]);
        let recipe = [("text", &text), ("script", &script), ("garbage", &garbage)]
            .into_iter()
            .fold(recipe, |recipe, (name, path)| recipe.source(name, path));
        let ended = world.fails(&recipe, "PermanentFailure");
        ended.says(&["could not be started", builder, words]);
    }
}

#[test]
fn a_failed_build_explains_itself() {
    let world = World::new();
    let script = "i=0; while [ $i -lt 30 ]; do i=$((i + 1)); echo line $i; done; exit 7";
    let recipe = Recipe::new(&world, "explains", script);
    let derivation = world.derivation(&recipe);
    let ended = world.fails(&recipe, "PermanentFailure");
    ended.says(&[
        "failed with exit code 7",
        "last 10 log lines",
        "> line 21\n",
        "> line 30\n",
        "store log",
        &derivation,
        "to try again: anchorhold build",
        "--keep-failed",
        "it took",
    ]);
    assert_eq!(ended.err.matches("> line 20\n").count(), 1, "older lines are said once, as they come: {}", ended.err);
    let result = ended.result(&derivation);
    assert_eq!((&result["success"], &result["errorMsg"]), (&json!(false), &json!("failed with exit code 7")));
    assert!(result["account"]["wall_seconds"].as_f64().unwrap() > 0.0, "{result}");
    assert!(!result["seal"]["layers"].as_array().unwrap().is_empty(), "{result}");
    let ended = world.fails_with(&recipe, "PermanentFailure", &["--option", "log-lines", "2"]);
    ended.says(&["last 2 log lines"]);

    let said = |script: &str| world.fails(&Recipe::new(&world, "hints", script), "PermanentFailure");
    said("sh -c 'kill -SEGV $$'; exit $?").says(&["failed with exit code 139"]);
    said("wget http://example.org/x 2>&1; echo 'curl: (6) Could not resolve host: example.org'; exit 1")
        .says(&["only a fixed-output derivation has", "outputHash"]);
    said("unshare -r true").says(&["‘nested-sandbox’"]);
    said("chmod 4755 .").says(&["the room refused: chmod 04755", "set-id"]);
    // A failure of what depends on the network need not be one the next time.
    let fixed = Recipe::new(&world, "fixed", "exit 1").fixed(
        "flat",
        "sha256",
        "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=",
    );
    world.fails(&fixed, "TransientFailure");
}

#[test]
fn builds_end_at_their_limits_and_say_at_which() {
    let world = World::new();
    let recipe = |script: &str| Recipe::new(&world, "limits", script);
    let ended = world.fails_with(&recipe("while :; do :; done"), "TimedOut", &["--timeout", "500ms"]);
    ended.says(&["timed out: it ran longer than 500ms"]);
    let ended = world.fails_with(&recipe("echo first; sleep 1000"), "TimedOut", &["--max-silent-time", "300ms"]);
    ended.says(&["timed out: it wrote nothing for 300ms", "> first"]);
    let ended = world.fails_with(&recipe("yes"), "LogLimitExceeded", &["--max-build-log-size", "10K"]);
    ended.says(&["wrote more than its limit of 10K of log"]);
    let log = world.root().join("nix/var/log/nix/drvs");
    let mut sizes = Vec::new();
    let mut left = vec![log];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let found = entry.metadata().unwrap();
            if found.is_dir() { left.push(entry.path()) } else { sizes.push(found.len()) }
        }
    }
    assert!(!sizes.is_empty() && sizes.iter().all(|size| *size < 20_000), "{sizes:?}");
    // Who writes now and then is not silent, and who ends in time is not ended.
    world.built_with(
        &recipe("for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done; echo > $out"),
        &["--max-silent-time", "5s", "--timeout", "60s"],
    );
}

/// The second call waits for the first, and finds what that has built.
#[test]
fn two_calls_for_the_same_derivation_build_it_once() {
    let world = World::new();
    let gate = world.gate();
    let script = "echo here; while ! test -e /gate/open; do :; done; cat /proc/sys/kernel/random/uuid > $out";
    let derivation = world.derivation(&Recipe::new(&world, "once", script));
    let arguments =
        ["build", "--option", "timeout", "60", "--option", "extra-sandbox-paths", &gate.option, &derivation];
    let mut first = world.start(&arguments);
    first.line_with("> here");
    let mut second = world.start(&arguments);
    second.line_with("waiting for");
    gate.open();
    let (first, second) = (first.ended(), second.ended());
    assert_eq!((first.status, second.status), (0, 0), "{} {}", first.stdout, second.stdout);
    assert!(!second.stdout.contains("> here"), "the builder ran twice: {}", second.stdout);
    let out = world.output(&derivation, "out");
    assert!(first.stdout.ends_with(&format!("{out}\n")) && second.stdout.ends_with(&format!("{out}\n")));
    world.is_whole();
}

/// The one that waits builds it when the first has failed.
#[test]
fn who_waited_for_a_failure_tries_itself() {
    let world = World::new();
    let gate = world.gate();
    let script = "echo here; while ! test -e /gate/open; do :; done; exit 1";
    let derivation = world.derivation(&Recipe::new(&world, "fails", script));
    let arguments =
        ["build", "--option", "timeout", "60", "--option", "extra-sandbox-paths", &gate.option, &derivation];
    let mut first = world.start(&arguments);
    first.line_with("> here");
    let mut second = world.start(&arguments);
    second.line_with("waiting for");
    gate.open();
    let (first, second) = (first.ended(), second.ended());
    assert_eq!((first.status, second.status), (100, 100), "{} {}", first.stdout, second.stdout);
    assert!(second.stdout.contains("> here"), "{}", second.stdout);
}

#[test]
fn a_store_that_is_not_ours_to_write_is_left_alone() {
    let world = World::new();
    let derivation = world.derivation(&Recipe::new(&world, "some", "echo > $out"));
    let database = world.root().join("nix/var/nix/db/db.sqlite");
    let schema = world.root().join("nix/var/nix/db/schema");
    let before = fs::read(&database).unwrap();
    fs::write(&schema, "11").unwrap();
    let ended = world.build(&[&derivation], &[]);
    assert_eq!(ended.code, 1);
    ended.says(&["schema 11"]);
    assert_eq!((fs::read(&database).unwrap(), fs::read_to_string(&schema).unwrap()), (before.clone(), "11".to_owned()));

    fs::write(&schema, "10").unwrap();
    fs::write(&database, "no database at all").unwrap();
    let ended = world.build(&[&derivation], &[]);
    assert_eq!(ended.code, 1);
    ended.says(&["is damaged", ".recover"]);
    assert_eq!(fs::read(&database).unwrap(), b"no database at all");
    // Damage in the middle: whatever is found of it, it is told.
    let mut damaged = before.clone();
    for byte in damaged.iter_mut().skip(4096).step_by(3) {
        *byte ^= 0x55;
    }
    fs::write(&database, &damaged).unwrap();
    let ended = world.build(&[&derivation], &[]);
    assert_eq!(ended.code, 1, "{}", ended.err);
    assert!(!ended.err.contains("panicked"), "{}", ended.err);
    ended.says(&["is damaged"]);
    fs::write(&database, &before).unwrap();
    assert_eq!(world.build(&[&derivation], &[]).code, 0);
    world.is_whole();
}

/// Runs a line of shell where it may mount, and `$BUILD` as the caller again; nothing if it may not.
fn where_one_may_mount(world: &World, script: &str, derivations: &[(&str, &str)]) -> Option<(i32, String)> {
    let (unshare, build): (&[&str], &str) = if is_root() {
        (&["--mount"], r#""$BIN" build --option timeout 60"#)
    } else {
        (
            &["--user", "--map-root-user", "--mount"],
            r#"unshare --user --map-user=1000 --map-group=100 "$BIN" build --option timeout 60"#,
        )
    };
    let script = script.replace("BUILD", build);
    let output = Command::new("unshare")
        .args(unshare)
        .args(["sh", "-c", &format!("exec 2>&1; {script}")])
        .envs([
            ("ROOT", world.root()),
            ("BIN", anchorhold()),
            ("ANCHORHOLD_STORE", world.root()),
            ("SAVED", world.path("saved")),
        ])
        .envs([("HOME", world.directory.path()), ("TMPDIR", &world.path("tmp"))])
        .envs(derivations.iter().copied())
        .output()
        .ok()?;
    let said = text(&output.stdout);
    if !said.starts_with("mounted") {
        skip("no file system can be mounted in a user namespace here");
        return None;
    }
    Some((output.status.code().unwrap_or(-1), said))
}

#[test]
fn a_read_only_store_says_what_is_there_and_builds_nothing() {
    let world = World::new();
    let there = world.derivation(&Recipe::new(&world, "there", "echo > $out"));
    assert_eq!(world.build(&[&there], &[]).code, 0);
    let absent = world.derivation(&Recipe::new(&world, "absent", "echo > $out"));
    let script = r#"mount --bind "$ROOT" "$ROOT" && mount -o remount,bind,ro "$ROOT" && echo mounted || exit 9
        BUILD "$ABSENT"; echo "status $?""#;
    let Some((_, said)) = where_one_may_mount(&world, script, &[("ABSENT", &absent), ("THERE", &there)]) else {
        return;
    };
    assert!(said.contains("status 1") && said.contains("can only be read here"), "{said}");
    world.is_whole();
}

/// In a file system of 40 MiB, of which the store's own reserve takes 8: with outputs that fill it, and some that nearly do, so that there
/// is no room for their registration.
#[test]
fn a_full_disk_fails_the_build_and_nothing_else() {
    let world = World::new();
    let sizes = [60, 31, 30, 29, 28, 27, 26, 24];
    let filling: Vec<String> = sizes
        .iter()
        .map(|size| {
            world.derivation(&Recipe::new(&world, "large", &format!("head -c {size}000000 /dev/urandom > $out")))
        })
        .collect();
    let small = world.derivation(&Recipe::new(&world, "small", "echo > $out"));
    for derivation in filling.iter().chain([&small]) {
        let name = derivation.rsplit('/').next().unwrap();
        std::os::unix::fs::symlink(derivation, world.root().join("nix/var/nix/gcroots").join(name)).unwrap();
    }
    let script = r#"cp -a "$ROOT" "$SAVED" && mount -t tmpfs -o size=40m,mode=755 tmpfs "$ROOT" && cp -a "$SAVED/." "$ROOT" && echo mounted || exit 9
        for drv in $FILLING; do
            BUILD "$drv"; echo "status $?"
            "$BIN" store verify --check-contents || echo broken
            "$BIN" store gc > /dev/null || echo stuck
        done
        BUILD "$SMALL" && echo "small is there"
        ls "$ROOT/nix/var/nix/anchorhold/builds" | wc -l"#;
    let given = [("FILLING", filling.join(" ")), ("SMALL", small)];
    let given: Vec<(&str, &str)> = given.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let Some((_, said)) = where_one_may_mount(&world, script, &given) else { return };
    let statuses: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("status ")).collect();
    assert_eq!((statuses.first(), statuses.last()), (Some(&"1"), Some(&"0")), "{said}");
    assert!(statuses.iter().all(|status| ["0", "1"].contains(status)), "{said}");
    assert!(said.contains("No space left on device") && said.contains("the disk is full"), "{said}");
    assert!(!said.contains("broken") && !said.contains("stuck") && !said.contains("panicked"), "{said}");
    assert!(said.contains("small is there"), "{said}");
    assert_eq!(said.lines().last(), Some("0"), "{said}");
}

/// Whoever comes first builds; nothing is built twice, and everybody has everything in the end.
#[test]
fn calls_at_once_share_the_work() {
    let world = World::new();
    let mut above = Recipe::new(&world, "above", "echo > $out");
    let mut all = Vec::new();
    for number in 0..12 {
        let name = format!("part-{number}");
        let part = world.derivation(&Recipe::new(&world, &name, "cat /proc/sys/kernel/random/uuid > $out"));
        above = above.needs(&world, &format!("part_{number}"), &part, "out");
        all.push(part);
    }
    all.push(world.derivation(&above));
    let top = all.last().unwrap();
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let mut command = world.command(["build", "--json", "--jobs", "2", "--option", "timeout", "60", top]);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let ended: Vec<Ended> = calls.into_iter().map(|call| Ended::of(&call.wait_with_output().unwrap())).collect();
    for one in &ended {
        assert_eq!(one.code, 0, "{}", one.err);
    }
    for derivation in &all {
        let built = ended.iter().filter(|one| one.status(derivation) == "Built").count();
        assert_eq!(built, 1, "{derivation} was built {built} times");
    }
    world.is_whole();
}

/// What a running build needs and what it will make is no garbage.
#[test]
fn the_collector_takes_nothing_from_a_running_build() {
    let world = World::new();
    let gate = world.gate();
    let text = world.add_file("text", "text");
    let script = "echo here; while ! test -e /gate/open; do :; done; cat $text > $out; echo $text >> $out";
    let derivation = world.derivation(&Recipe::new(&world, "builds", script).source("text", &text));
    let garbage = world.add_file("garbage", "garbage");
    let arguments =
        ["build", "--option", "timeout", "60", "--option", "extra-sandbox-paths", &gate.option, &derivation];
    let mut running = world.start(&arguments);
    running.line_with("> here");
    world.said(&["store", "gc"]);
    let valid = world.valid();
    assert!(!valid.contains(&garbage), "the collector did its work");
    for path in [&text, &world.tools, &derivation] {
        assert!(valid.contains(path), "{path} was taken");
    }
    gate.open();
    let ended = running.ended();
    assert_eq!(ended.status, 0, "{}", ended.stdout);
    assert_eq!(world.read(ended.stdout.lines().last().unwrap()), format!("text{text}\n"));
    world.is_whole();
}
