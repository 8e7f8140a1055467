//! What an operator has done around builds: hooks, signatures, roots, space, build users.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use anchorhold_tests::host::is_root;
use anchorhold_tests::skip;

use crate::judge::Judge;
use crate::recipe::Recipe;
use crate::world::{Ended, World};

/// A program of the operator's. Written by a process of its own: a descriptor open for writing that another test's child inherits
/// for a moment makes execve(2) say ETXTBSY.
fn hook(world: &World, text: &str) -> PathBuf {
    let (draft, hook) = (world.file("hook.draft", text), world.path("hook"));
    let installed = Command::new("install").arg("-m755").args([&draft, &hook]).status().unwrap();
    assert!(installed.success());
    hook
}

#[test]
fn a_hook_before_a_build_shows_it_further_paths() {
    let world = World::new();
    let extra = world.file("extra", "shown by the hook\n");
    let recipe = Recipe::new(&world, "shown", "cat /shown > $out || echo nothing > $out");
    let derivation = world.derivation(&recipe);
    let text =
        format!("#!/bin/sh\necho \"about $1\" >&2\necho extra-sandbox-paths\necho /shown={}\necho\n", extra.display());
    let hook = hook(&world, &text);
    let ended = world.build(&[&derivation], &["--option", "pre-build-hook", hook.to_str().unwrap()]);
    assert_eq!(ended.status(&derivation), "Built", "{}", ended.err);
    assert!(ended.err.contains(&format!("pre-build-hook: about {derivation}")), "{}", ended.err);
    assert_eq!(world.read(&world.output(&derivation, "out")), "shown by the hook\n");
    // And it is the hook that did it.
    let other = Recipe::new(&world, "not-shown", "cat /shown > $out || echo nothing > $out");
    assert_eq!(world.read(&world.built(&other)), "nothing\n");
}

#[test]
fn a_hook_that_fails_or_says_what_is_not_understood_stops_the_build() {
    let world = World::new();
    for (text, words) in [
        ("#!/bin/sh\necho no >&2; exit 3\n", "failed: exit status: 3"),
        ("#!/bin/sh\necho sandbox = false\n", "no word that is known"),
        ("#!/bin/sh\necho extra-sandbox-paths\necho /nix=/\n", "the whole store"),
    ] {
        let hook = hook(&world, text);
        let options = ["--option", "pre-build-hook", hook.to_str().unwrap()];
        let ended = world.fails_with(&Recipe::new(&world, "stopped", "echo > $out"), "MiscFailure", &options);
        assert!(ended.err.contains(words), "{}", ended.err);
    }
}

#[test]
fn a_hook_after_a_build_is_told_what_was_built() {
    let world = World::new();
    let recipe = Recipe::new(&world, "told", "echo > $out; echo > $dev").outputs(&["out", "dev"]);
    let derivation = world.derivation(&recipe);
    let hook = hook(
        &world,
        "#!/bin/sh\necho \"$DRV_PATH made $OUT_PATHS\"\nls -d $ANCHORHOLD_STORE/nix/store\nexit $(cat \"$HOME/status\")\n",
    );
    world.file("status", "0");
    let options = ["--option", "post-build-hook", hook.to_str().unwrap()];
    let ended = world.build(&[&derivation], &options);
    assert_eq!((ended.code, ended.status(&derivation)), (0, "Built"), "{}", ended.err);
    let (dev, out) = (world.output(&derivation, "dev"), world.output(&derivation, "out"));
    assert!(ended.err.contains(&format!("post-build-hook: {derivation} made {dev} {out}")), "{}", ended.err);
    assert!(ended.err.contains(&format!("post-build-hook: {}/nix/store", world.root().display())), "{}", ended.err);

    world.file("status", "9");
    let derivation = world.derivation(&Recipe::new(&world, "unwelcome", "echo > $out"));
    let ended = world.build(&[&derivation], &options);
    assert_eq!((ended.code, ended.status(&derivation)), (1, "MiscFailure"), "{}", ended.err);
    assert!(ended.err.contains("its outputs are valid") && ended.err.contains("exit status: 9"), "{}", ended.err);
    assert!(world.valid().contains(&world.output(&derivation, "out")), "a hook takes nothing back");
}

#[test]
fn what_is_built_is_signed_and_nix_believes_it() {
    let world = World::new();
    let Some(judge) = Judge::beside(&world) else { return };
    let (secret, public) = (world.path("secret"), world.path("public"));
    let names = ["key-1", secret.to_str().unwrap(), public.to_str().unwrap()];
    judge.said("nix-store", &["--generate-binary-cache-key", names[0], names[1], names[2]]);
    let recipe = Recipe::new(&world, "signed", "echo $out > $out");
    let path = world.built_with(&recipe, &["--option", "secret-key-files", names[1]]);
    let key = fs::read_to_string(&public).unwrap();
    let verify = |path: &str| {
        let arguments =
            ["store", "verify", "--no-contents", "--sigs-needed", "1", "--option", "trusted-public-keys", &key, path];
        judge.on(world.root(), "nix", &arguments).output().unwrap()
    };
    let said = verify(&path);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let unsigned = world.built(&Recipe::new(&world, "unsigned", "echo $out > $out"));
    assert!(!verify(&unsigned).status.success(), "a path that nobody signed is believed as well");
}

#[test]
fn a_key_that_cannot_be_read_stops_everything() {
    let world = World::new();
    let derivation = world.derivation(&Recipe::new(&world, "unsigned", "echo > $out"));
    let key = world.file("key", "key-1:short");
    let ended = world.build(&[&derivation], &["--option", "secret-key-files", key.to_str().unwrap()]);
    assert_eq!((ended.code, ended.results.len()), (1, 0), "{}", ended.err);
    assert!(ended.err.contains("the secret key") && ended.err.contains("key-1"), "{}", ended.err);
}

#[test]
fn a_root_keeps_what_is_built_from_the_collector() {
    let world = World::new();
    let recipe = Recipe::new(&world, "kept", "echo > $out; echo > $dev").outputs(&["out", "dev"]);
    let derivation = world.derivation(&recipe);
    let link = world.path("result");
    let ended = world.build(&[&derivation], &["--root", link.to_str().unwrap()]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    let lost = world.built(&Recipe::new(&world, "lost", "echo > $out"));
    world.said(&["store", "gc"]);
    let valid = world.valid();
    for (link, output) in [("result", "out"), ("result-dev", "dev")] {
        let path = fs::read_link(world.path(link)).unwrap();
        assert_eq!(path.to_str().unwrap(), world.output(&derivation, output));
        assert!(valid.iter().any(|valid| path.as_os_str() == valid.as_str()), "{link} did not keep {}", path.display());
    }
    assert!(!valid.contains(&lost), "nothing kept it, and it is still there");
}

#[test]
fn equal_files_of_new_outputs_become_one() {
    let world = World::new();
    let script = "mkdir $out; echo the same > $out/a; cp $out/a $out/b";
    let inodes = |path: &str| ["a", "b"].map(|name| fs::metadata(world.real(path).join(name)).unwrap().ino());
    let options = ["--option", "auto-optimise-store", "true"];
    let [a, b] = inodes(&world.built_with(&Recipe::new(&world, "linked", script), &options));
    assert_eq!(a, b);
    let [a, b] = inodes(&world.built(&Recipe::new(&world, "left-alone", script)));
    assert_ne!(a, b);
}

#[test]
fn garbage_goes_when_space_is_short_and_only_then() {
    let world = World::new();
    let dead = world.built(&Recipe::new(&world, "dead", "echo > $out"));
    world.built_with(&Recipe::new(&world, "with-space", "echo > $out"), &["--option", "min-free", "1"]);
    assert!(world.valid().contains(&dead), "there was space");
    // More than any disk has: what is needed for the build itself stays.
    let recipe = Recipe::new(&world, "without-space", "echo > $out");
    let path = world.built_with(&recipe, &["--option", "min-free", "8000000T"]);
    let valid = world.valid();
    assert!(!valid.contains(&dead), "nothing was collected");
    assert!(valid.contains(&path) && valid.contains(&world.tools));
}

#[test]
fn a_failure_repeats_the_options_that_it_was_built_with() {
    let world = World::new();
    let derivation = world.derivation(&Recipe::new(&world, "fails", "exit 1"));
    let options = ["--max-silent-time", "50s", "--option", "impure-env", "a=b c=$x"];
    let ended = world.build(&[&derivation], &options);
    let advice = ended.err.lines().find_map(|line| line.trim().strip_prefix("to try again: ")).expect("an advice");
    for words in ["--max-silent-time 50", "--option impure-env 'a=b c=$x'", "--option network none", &derivation] {
        assert!(advice.contains(words), "{advice}");
    }
    let again = advice.strip_prefix("anchorhold ").expect("a command of ours");
    let again = Command::new("/bin/sh")
        .args(["-c", &format!("exec \"$0\" {again}")])
        .arg(anchorhold_tests::room::anchorhold())
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(100), "it does not fail in the same way: {again:?}");
}

#[test]
fn builds_of_roots_run_as_members_of_the_build_users_group() {
    if !is_root() {
        return skip("only root has builds run as somebody else");
    }
    let world = World::new();
    // A host of its own, as far as its users go.
    let group = world.file("group", "root:x:0:\nahbuild:x:29000:ahbuild1\nahnone:x:29001:\n");
    let passwd = world.file("passwd", "root:x:0:0::/root:/bin/sh\nahbuild1:x:29100:29000::/:/bin/false\n");
    let build = |derivation: &str, group_name: &str| {
        let inner = world.command(["build", "--json", "--option", "build-users-group", group_name, derivation]);
        let mut command = Command::new("unshare");
        let script = r#"mount --bind "$1" /etc/group && mount --bind "$2" /etc/passwd && shift 2 && exec "$@""#;
        command.args(["--mount", "sh", "-c", script, "sh"]).args([&group, &passwd]);
        command.arg(inner.get_program()).args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Ended::of(&command.output().unwrap())
    };
    let derivation = world.derivation(&Recipe::new(&world, "who", "id -u > $out"));
    let ended = build(&derivation, "ahbuild");
    assert_eq!(ended.status(&derivation), "Built", "{}", ended.err);
    assert_eq!(world.read(&world.output(&derivation, "out")), "1000\n", "inside it is nixbld like everywhere");
    let seal = ended.result(&derivation)["seal"].to_string();
    assert!(seal.contains(r#""kernel-uids":"29100""#), "{seal}");

    for (group, words) in [("ahnone", "without a member"), ("nobody-has-this", "groupadd")] {
        let derivation = world.derivation(&Recipe::new(&world, group, "echo > $out"));
        let ended = build(&derivation, group);
        assert_eq!(ended.status(&derivation), "MiscFailure", "{}", ended.err);
        assert!(ended.err.contains(words), "{}", ended.err);
    }
}
