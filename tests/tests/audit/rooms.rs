//! Our own rooms: nothing is open that is not known to be, and what is called closed was seen to be open elsewhere.

use serde_json::Value;

use crate::{in_state, report, run, severity};
use anchorhold_tests::host::is_root;
use anchorhold_tests::newer_nix::NewerNix;

/// What cannot be tried in a plain room, and why.
const UNTRIED: [(&str, &str); 2] =
    [("res.cpu", "it was given no limit of time"), ("res.log", "it was given no limit of output")];

#[track_caller]
fn nothing_bad_is_open(report: &Value, run: &Value) {
    let title = format!("{} as {}", run["sandbox"], run["user"]);
    assert_eq!(run["problem"], Value::Null, "{title}");
    assert_eq!(run["battery"]["complete"], true, "{title}: {run}");
    let bad: Vec<String> = in_state(report, run, "open")
        .into_iter()
        .filter(|id| matches!(severity(report, id), "critical" | "high"))
        .map(|id| {
            let rows = run["battery"]["rows"].as_array().expect("rows");
            rows.iter().find(|row| row["id"] == id).map_or(id.to_owned(), ToString::to_string)
        })
        .collect();
    assert!(bad.is_empty(), "{title}: {bad:#?}");
    assert!(in_state(report, run, "lost").is_empty(), "{title}");
}

#[test]
fn nothing_bad_is_open_in_a_room_and_the_host_shows_that_it_could_be() {
    let report = report(&["--in", "room", "--controls", "all"]);
    let room = run(&report, "room");
    nothing_bad_is_open(&report, room);
    let host = run(&report, "host");
    let open = |run: &Value| run["open"].as_u64().expect("a count");
    assert!(open(host) > 50, "the bare host is open: {}", open(host));
    // Every control fires, or this host gives a reason why it cannot: an ordinary user's often is that it takes root.
    let silent = report["silent"].as_array().expect("a list");
    let unexplained: Vec<_> = silent.iter().filter(|silent| silent["reason"].is_null()).collect();
    assert!(unexplained.is_empty(), "nothing made these reach, and no reason is known: {unexplained:#?}");
    let unproven = in_state(&report, room, "unproven");
    let reasons: Vec<&str> = silent.iter().filter_map(|silent| silent["probe"].as_str()).collect();
    assert!(unproven.iter().all(|id| reasons.contains(id)), "{unproven:?}: {silent:?}");
    let untried: Vec<&str> = in_state(&report, room, "inconclusive")
        .into_iter()
        .filter(|id| UNTRIED.iter().all(|(known, _)| known != id) && !reasons.contains(id))
        .collect();
    assert!(untried.is_empty(), "{untried:?}");
}

#[test]
fn nothing_bad_is_open_in_the_other_profiles_and_in_a_build() {
    let sandboxes = ["room:nested", "room:limited", "room:machines", "build", "attach"];
    let words = sandboxes.iter().flat_map(|sandbox| ["--in", *sandbox]);
    let words: Vec<&str> = ["--no-baseline", "--controls", "none"].into_iter().chain(words).collect();
    let report = report(&words);
    for sandbox in sandboxes {
        nothing_bad_is_open(&report, run(&report, sandbox));
    }
}

#[test]
fn nothing_bad_is_open_in_rooms_and_builds_of_an_ordinary_user() {
    if !is_root() {
        // Then the other tests are that already.
        return;
    }
    let words =
        ["--no-baseline", "--controls", "none", "--in", "user:room", "--in", "user:attach", "--in", "user:build"];
    let report = report(&words);
    for sandbox in ["room", "attach", "build"] {
        let run = run(&report, sandbox);
        assert_ne!(run["user"], "root");
        nothing_bad_is_open(&report, run);
    }
}

#[test]
fn nothing_bad_is_open_in_a_build_that_a_real_nix_hands_over() {
    // The audit's own Nix is then the one of that root, which its settings make ask anchorhold for every build.
    let script = "for folder in /var/tmp /var/lib; do busybox mount -t tmpfs -o mode=755 tmpfs $folder; done; status=0; /tmp/anchorhold audit --no-baseline --controls none --in nix --json >/tmp/report || status=$?; \
                  [ $status = 0 ] || [ $status = 1 ]; cat /tmp/report";
    let settings = r#"external-builders = [{"systems":["x86_64-linux","aarch64-linux"],"program":"/tmp/anchorhold","args":["attach"]}]"#;
    let nix = match NewerNix::new("", "external-builders", settings) {
        Ok(nix) => nix,
        Err(reason) => return anchorhold_tests::skip(&reason),
    };
    let report: Value = serde_json::from_str(&nix.run(script)).expect("a report");
    let run = run(&report, "nix");
    nothing_bad_is_open(&report, run);
    // Nix's own sandbox leaves this open, so it was ours.
    assert!(!in_state(&report, run, "open").contains(&"mode.openat"), "{run}");
}
