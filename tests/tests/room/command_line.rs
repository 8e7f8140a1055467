//! `anchorhold run` and `anchorhold explain` as a person meets them.

use std::process::Command;

use anchorhold_tests::room::{Room, anchorhold};

use crate::{footprint, room};

/// A report of a room, as JSON.
fn report(option: &str, room: impl FnOnce(Room) -> Room) -> (serde_json::Value, i32) {
    let footprint = footprint();
    let file = footprint.path("report.json");
    let ended = room(footprint.room()).with([option, file.to_str().expect("a plain path")]).shell("echo 12345; exit 3");
    let text = std::fs::read(&file).unwrap_or_else(|error| panic!("no report ({error}): {ended:?}"));
    (serde_json::from_slice(&text).expect("JSON"), ended.status)
}

const LAYERS: [&str; 14] = [
    "namespaces",
    "identity",
    "root",
    "devices",
    "proc",
    "etc",
    "network",
    "keyring",
    "descriptors",
    "limits",
    "cgroup",
    "capabilities",
    "landlock",
    "seccomp",
];

#[test]
fn the_seal_names_every_layer_as_verified() {
    let (seal, status) = report("--seal", |room| room);
    assert_eq!(status, 3);
    assert_eq!(seal["version"], 1);
    assert_eq!(seal["profile"], "build");
    let layers = seal["layers"].as_array().expect("layers");
    let names: Vec<_> = layers.iter().map(|layer| layer["layer"].as_str().expect("a name")).collect();
    assert_eq!(names, LAYERS);
    for layer in layers {
        assert_eq!(layer["state"], "verified", "{layer}");
    }
}

#[test]
fn a_layer_that_is_left_out_is_named_in_the_seal_and_on_standard_error() {
    for layer in LAYERS {
        let ended = room().without(layer).run(["/bin/true"]);
        assert_eq!(ended.status, 0, "{layer}: {ended:?}");
        assert!(
            ended.stderr.contains(&format!("anchorhold: warning: without {layer}: open is ")),
            "{layer}: {ended:?}"
        );
        let (seal, _) = report("--seal", |room| room.without(layer));
        let found = seal["layers"].as_array().expect("layers").iter().find(|one| one["layer"] == layer);
        let found = found.unwrap_or_else(|| panic!("{layer} is not in {seal}"));
        assert_eq!(found["state"], "left-out", "{layer}");
        assert!(found["open"].as_array().is_some_and(|open| !open.is_empty()), "{found}");
    }
}

#[test]
fn a_whole_room_says_nothing_of_its_own() {
    let ended = room().run(["/bin/true"]);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""));
}

#[test]
fn the_result_tells_how_it_ended_and_what_it_used() {
    let (result, status) = report("--result", |room| room);
    assert_eq!(status, 3);
    assert_eq!(result["end"], serde_json::json!({ "exited": 3 }));
    assert_eq!(result["account"]["output_bytes"], 6);
    assert!(result["account"]["wall_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{result}");
    assert!(result["account"]["largest_process_bytes"].as_u64().is_some_and(|bytes| bytes > 4096), "{result}");
    assert_eq!(result["seal"]["layers"].as_array().map(Vec::len), Some(LAYERS.len()));
}

#[test]
fn the_result_names_a_limit() {
    let footprint = footprint();
    let file = footprint.path("report.json");
    let options = ["--timeout", "200ms", "--result", file.to_str().expect("a plain path")];
    assert_eq!(footprint.room().with(options).probe(["hold"]).status, 124);
    let result: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).expect("a report")).expect("JSON");
    assert_eq!(result["end"], "time");
}

#[test]
fn explain_runs_nothing_and_shows_each_step_with_its_layer() {
    let footprint = footprint();
    let words = footprint.room().explained_in_words();
    for part in
        ["The supervisor", "The warden", "The room's first process:", "pivot_root", "set no_new_privs", "/bin/true"]
    {
        assert!(words.contains(part), "{part} is not in {words}");
    }
    let plan = footprint.room().explained();
    let steps = plan["steps"].as_array().expect("steps");
    // One line each in words.
    let numbered =
        words.lines().filter(|line| line.trim_start().starts_with(|first: char| first.is_ascii_digit())).count();
    assert_eq!(steps.len(), numbered);
    for step in steps {
        assert!(step["stage"].is_string() && step["place"].is_string() && step["action"].is_object(), "{step}");
    }
}

#[test]
fn explain_says_the_same_twice() {
    assert_eq!(room().explained_in_words(), room().explained_in_words());
}

#[test]
fn explain_names_what_is_left_out() {
    assert!(room().without("landlock").explained_in_words().contains("Without landlock: open is "));
}

#[test]
fn a_room_file_that_was_explained_makes_the_same_room() {
    // The description within the plan is the room file, in JSON; TOML is what a person writes.
    let plan = room().with(["--no-usr", "--hold-nothing"]).explain();
    assert_eq!(plan.status, 125, "an option that is not there is not ignored: {plan:?}");
    let footprint = footprint();
    let file = footprint.path("room.toml");
    std::fs::write(&file, "profile = \"nested\"\n[identity]\nuid = 7\n").expect("a room file");
    let plan = room().with(["--room", file.to_str().expect("a plain path")]).explained();
    assert_eq!((plan["room"]["profile"].as_str(), plan["room"]["identity"]["uid"].as_u64()), (Some("nested"), Some(7)));
}

fn anchorhold_says(words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(anchorhold()).args(words).output().expect("the program starts");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn help_and_version_are_answers_on_standard_output() {
    for words in [&["--help"][..], &["run", "--help"], &["explain", "--help"]] {
        let (status, text) = anchorhold_says(words);
        assert_eq!(status, Some(0), "{words:?}");
        assert!(text.contains("Usage: anchorhold"), "{words:?}: {text}");
    }
    let (status, text) = anchorhold_says(&["--version"]);
    assert_eq!(status, Some(0));
    assert!(text.starts_with("anchorhold "), "{text}");
}

#[test]
fn the_help_of_run_names_what_a_bubblewrap_user_looks_for() {
    let (_, text) = anchorhold_says(&["run", "--help"]);
    for option in
        ["--ro", "--rw", "--tmpfs", "--cwd", "--env", "--uid", "--gid", "--network", "--argv0", "--init", "--tty"]
    {
        assert!(text.contains(option), "{option} is not in {text}");
    }
    assert!(!text.contains("inject-fault"), "{text}");
}

#[test]
fn words_after_two_dashes_are_the_commands_own() {
    assert_eq!(room().run(["/bin/echo", "--ro", "--", "-x"]).line(), "--ro -- -x");
}
