//! What a builder sees of the world around it. What each layer of a room is has a suite of its own (`room`); here is what the executor
//! asks of it for a build.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use anchorhold_tests::host::is_root;
use anchorhold_tests::{PATIENCE, skip};

use crate::recipe::Recipe;
use crate::world::World;

#[test]
fn a_builder_is_an_ordinary_user_of_a_host_of_its_own() {
    let world = World::new();
    let seen =
        world.seen("{ id -u; id -g; id -G; hostname; pwd; echo $HOME; cat /etc/passwd; cat /etc/group; } > $out");
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..6], ["1000", "100", "100", "localhost", "/build", "/homeless-shelter"], "{seen}");
    let passwd: Vec<&str> = lines.iter().copied().filter(|line| line.matches(':').count() == 6).collect();
    assert_eq!(
        passwd,
        [
            "root:x:0:0:Nix build user:/build:/noshell",
            "nixbld:x:1000:100:Nix build user:/build:/noshell",
            "nobody:x:65534:65534:Nobody:/:/noshell"
        ],
        "{seen}"
    );
    for group in ["root:x:0:", "nixbld:!:100:", "nogroup:x:65534:"] {
        assert!(lines.contains(&group), "{seen}");
    }
}

#[test]
fn a_builder_sees_its_inputs_and_nothing_else_of_the_store() {
    let world = World::new();
    let text = world.add_file("text", "text");
    let middle = world.derivation(&Recipe::new(&world, "middle", "echo $text > $out").source("text", &text));
    let unrelated = world.add_file("unrelated", "secret");
    let other = world.built(&Recipe::new(&world, "other", "echo > $out"));
    let script = r#"
        { for path in /nix/store/*; do echo $path; done
          ls -A / | sort | tr '\n' ' '; echo
          cat "$unrelated" "$other" 2>&1
          for path in $middle $text $tools; do touch $path 2>/dev/null && echo "$path can be touched"; done
          echo x 2>/dev/null > $text && echo "$text can be written"
          rm -rf $text 2>/dev/null; test -e $text || echo "$text can be removed"
          mv $middle /nix/store/x 2>/dev/null && echo "$middle can be moved"
          echo evil 2>/dev/null > $tools/bin/new && echo "$tools can be added to"
          mkdir /nix/store/own && echo "its own directory is writable"; rmdir /nix/store/own; } > /build/seen 2>&1
        cp /build/seen $out"#;
    let recipe = Recipe::new(&world, "seen", script)
        .needs(&world, "middle", &middle, "out")
        .env("text", &text)
        .env("unrelated", &unrelated)
        .env("other", &other)
        .env("tools", &world.tools);
    // Variables alone make nothing an input.
    let seen = world.read(&world.built(&recipe));
    let mut inputs = [world.output(&middle, "out"), text.clone(), world.tools.clone()];
    inputs.sort();
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..3], inputs, "{seen}");
    assert_eq!(lines[3].trim(), "bin build dev etc nix proc tmp", "{seen}");
    let absent = |path: &str| format!("cat: can't open '{path}': No such file or directory");
    assert_eq!(lines[4..], [&absent(&unrelated), &absent(&other), "its own directory is writable"], "{seen}");
    assert_eq!(world.read(&text), "text");
    world.is_whole();
}

#[test]
fn a_builder_gets_the_variables_of_its_derivation_and_none_of_the_callers() {
    let world = World::new();
    let recipe =
        Recipe::new(&world, "environment", "x").env("MINE", "m").run_by(&format!("{}/bin/env", world.tools), &[]);
    let derivation = world.derivation(&recipe);
    let ended = world
        .command(["build", "--cores", "5", &derivation])
        .envs([("SECRET", "of the caller"), ("LD_PRELOAD", ""), ("LANG", "C.UTF-8")])
        .output()
        .unwrap();
    // It makes no output: what it says is in its log.
    assert!(!ended.status.success());
    let said = crate::world::text(&ended.stderr);
    let mut got: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("environment> ")).collect();
    got.sort_unstable();
    let mut expected = vec![
        "HOME=/homeless-shelter".to_owned(),
        "MINE=m".to_owned(),
        "NIX_BUILD_CORES=5".to_owned(),
        "NIX_BUILD_TOP=/build".to_owned(),
        "NIX_LOG_FD=2".to_owned(),
        "NIX_STORE=/nix/store".to_owned(),
        format!("PATH={}/bin", world.tools),
        "PWD=/build".to_owned(),
        "TEMP=/build".to_owned(),
        "TEMPDIR=/build".to_owned(),
        "TERM=xterm-256color".to_owned(),
        "TMP=/build".to_owned(),
        "TMPDIR=/build".to_owned(),
        format!("out={}", world.output(&derivation, "out")),
    ];
    expected.sort();
    assert_eq!(got, expected, "{said}");
}

#[test]
fn a_builder_has_few_devices_and_a_masked_proc() {
    let world = World::new();
    let seen = world.seen(
        r#"{ ls -A /dev | tr '\n' ' '; echo; ls -A /dev/shm /dev/mqueue 2>/dev/null | tr '\n' ' '; echo
             for file in /proc/kcore /proc/sysrq-trigger /proc/sys/kernel/core_pattern; do
               cat $file > /dev/null 2>&1 && test -s $file && head -c 1 $file | wc -c | sed "s|^|$file can be read: |"
               echo 1 2>/dev/null > $file && test $file != /proc/kcore && echo "$file can be written"; done
             echo "ids: $(cd /proc; ls -d [0-9]* | wc -l)"
             test -e /sys/kernel && echo sys; test -e /proc/1/root/etc/shadow && echo shadow; } > $out 2>/dev/null; true"#,
    );
    let lines: Vec<&str> = seen.lines().collect();
    let devices: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(
        devices,
        ["fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"]
    );
    assert!(!seen.contains("can be written"), "{seen}");
    assert!(!seen.contains("kcore can be read"), "{seen}");
    assert!(!seen.contains("\nsys\n") && !seen.contains("shadow"), "{seen}");
    let ids: usize = lines.iter().find_map(|line| line.strip_prefix("ids: ")).unwrap().parse().unwrap();
    assert!(ids < 10, "it sees processes of others: {seen}");
}

/// A server of the host's on loopback that hears one word of everybody.
struct Server {
    port: u16,
    heard: Receiver<String>,
}

impl Server {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, heard) = channel();
        std::thread::spawn(move || {
            for guest in listener.incoming().flatten() {
                let mut word = String::new();
                // Who comes and says nothing is nobody of this test's.
                let _ = guest.set_read_timeout(Some(PATIENCE)).and_then(|()| (&guest).read_to_string(&mut word));
                if tell.send(word).is_err() {
                    return;
                }
            }
        });
        Self { port, heard }
    }

    /// Whether the build came since this was asked last: the test comes itself, and looks who was there before it.
    fn was_reached(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).and_then(|mut own| own.write_all(b"test")).unwrap();
        let before = std::iter::from_fn(|| self.heard.recv_timeout(PATIENCE).ok()).take_while(|word| word != "test");
        // All are taken, so that none is left for the next question.
        before.filter(|word| word == "build\n").count() > 0
    }
}

/// The host's loopback, with a room and without one.
#[test]
fn only_a_build_without_a_room_reaches_the_host() {
    let world = World::new();
    let server = Server::new();
    let port = server.port;
    let script = format!("echo build | nc -w 5 127.0.0.1 {port}; ifconfig -a > $out");
    let recipe = Recipe::new(&world, "network", &script);
    world.built(&recipe);
    assert!(!server.was_reached(), "a build reached the host");
    // Its own loopback is up, as programs' tests need it, and there is no other interface.
    let own = world.seen("(nc -l -p 7777 -e echo hello &); while ! nc 127.0.0.1 7777 < /dev/null; do :; done > $out; ls /proc/sys/net/ipv4/conf >> $out");
    assert_eq!(own, "hello\nall\ndefault\nlo\n");
    // A fixed output without a network: the same.
    let fixed = Recipe::new(&world, "fixed", &format!("echo build | nc -w 5 127.0.0.1 {port}; printf hello > $out"))
        .fixed("flat", "sha256", "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=");
    world.built(&fixed);
    assert!(!server.was_reached());

    let open = recipe.env("__noChroot", "1");
    world.built_with(&open, &["--option", "sandbox", "relaxed"]);
    assert!(server.was_reached(), "the test sees who comes");
}

#[test]
fn only_a_fixed_output_has_a_network_and_only_as_it_is_configured() {
    let world = World::new();
    if !std::process::Command::new("pasta").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skip("pasta is not installed");
    }
    let hello = "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";
    let count = "ls /proc/sys/net/ipv4/conf | grep -vc -e lo -e all -e default";
    let fixed = |name: &str, script: &str| Recipe::new(&world, name, script).fixed("flat", "sha256", hello);
    let with = fixed("with", &format!("test $({count}) = 1 && printf hello > $out"));
    let derivation = world.derivation(&with);
    let ended = world.build(&[&derivation], &["--option", "network", "pasta"]);
    if ended.status(&derivation) == "MiscFailure" {
        let why = ended.err.split_once("could not be run: ").map(|(_, why)| why.lines().next().unwrap_or_default());
        return skip(why.unwrap_or_else(|| panic!("{}", ended.err)));
    }
    assert_eq!(ended.code, 0, "{}", ended.err);
    let without = fixed("without", &format!("test $({count}) = 0 && printf hello > $out"));
    world.built(&without);
    let ordinary = Recipe::new(&world, "ordinary", &format!("test $({count}) = 0 && printf hello > $out"));
    world.built_with(&ordinary, &["--option", "network", "pasta"]);
}

/// Root's builds of one call have users of their own; those of anybody else are theirs.
#[test]
fn two_builds_of_root_at_once_are_different_users() {
    if !is_root() {
        return skip("only root has other users for builders");
    }
    let world = World::new();
    // Each waits until both run.
    let gate = world.gate();
    let script = "echo here; while ! test -e /gate/open; do :; done; echo > $out";
    let builds: Vec<String> =
        (0..2).map(|number| world.derivation(&Recipe::new(&world, &format!("who-{number}"), script))).collect();
    let arguments =
        [&["build", "--jobs", "2", "--option", "extra-sandbox-paths", &gate.option][..], &[&builds[0], &builds[1]]];
    let mut running = world.start(&arguments.concat());
    for _ in 0..2 {
        running.line_with("> here");
    }
    let mut users: Vec<u32> = running
        .0
        .processes()
        .iter()
        .filter(|process| process.command_line().contains("echo here"))
        .map(|process| process.uids[0])
        .collect();
    users.dedup();
    gate.open();
    let ended = running.ended();
    assert_eq!(ended.status, 0, "{}", ended.stdout);
    assert!(users.len() == 2 && !users.contains(&0), "{users:?}");
}

/// What is shown of the host is what the settings say.
#[test]
fn paths_of_the_host_are_shown_only_if_they_are_named() {
    let world = World::new();
    let shown = world.file("shown", "of the host");
    let script = "cat /of-the-host > $out 2>&1; (echo x > /of-the-host) 2>/dev/null && echo writable >> $out; true";
    let recipe = |name: &str| Recipe::new(&world, name, script);
    let seen = world.read(&world.built(&recipe("hidden")));
    assert!(seen.contains("No such file"), "{seen}");
    let option = format!("/of-the-host={}", shown.display());
    let seen = world.read(&world.built_with(&recipe("shown"), &["--option", "extra-sandbox-paths", &option]));
    assert_eq!(seen, "of the host");
    let missing = format!("/of-the-host={}", world.path("absent").display());
    let ended = world.build(&[world.derivation(&recipe("missing"))], &["--option", "extra-sandbox-paths", &missing]);
    assert_eq!(ended.code, 1);
    ended.says(&["absent", "No such file"]);
    let seen = world
        .read(&world.built_with(&recipe("optional"), &["--option", "extra-sandbox-paths", &format!("{missing}?")]));
    assert!(seen.contains("No such file"), "{seen}");
}

/// What a builder is told to use is one thing; what its room lets it use is another.
#[test]
fn limits_hold_for_a_build() {
    let world = World::new();
    let script = "i=0; while [ $i -lt 50 ]; do sleep 100 & i=$((i + 1)); done; wait";
    let forks = world.derivation(&Recipe::new(&world, "forks", script));
    let ended = world.build(&[&forks], &["--pids", "20", "--timeout", "30s"]);
    let hungry = "dd if=/dev/zero of=/dev/null bs=300M count=1; echo > $out";
    let hungry = world.derivation(&Recipe::new(&world, "hungry", hungry));
    assert_eq!(ended.status(&forks), "PermanentFailure", "{}", ended.err);
    ended.says(&["can't fork"]);
    let ended = world.build(&[&hungry], &["--memory", "64M"]);
    if ended.status(&hungry) == "MiscFailure" {
        // What cannot be held is not promised.
        ended.says(&["could not be run: cgroup: the controller memory"]);
        return skip("this user has no control group to hold a limit of memory with");
    }
    assert_eq!(ended.status(&hungry), "PermanentFailure", "{}", ended.err);
    ended.says(&["ran out of memory: it used more than its limit of 64M", "--memory"]);
    assert_eq!(world.build(&[&hungry], &["--memory", "1G"]).code, 0);
}
