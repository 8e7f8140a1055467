//! Reports that machines read.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::audit;

const ONE: [&str; 9] =
    ["--no-baseline", "--controls", "none", "--in", "room", "--without", "seccomp", "--only", "mode.chmod"];

#[test]
fn sarif_junit_and_html_say_what_is_open() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (sarif, junit, html) = (at("a.sarif"), at("a.xml"), at("a.html"));
    let ended = audit(&[&ONE[..], &["--sarif", &sarif, "--junit", &junit, "--html", &html]].concat());
    assert_eq!(ended.status, 1, "{ended:?}");

    let sarif: Value = serde_json::from_str(&fs::read_to_string(sarif).expect("written")).expect("JSON");
    assert_eq!(sarif["version"], "2.1.0");
    let result = &sarif["runs"][0]["results"][0];
    assert_eq!((&result["ruleId"], &result["level"]), (&"mode.chmod".into(), &"error".into()), "{sarif}");
    let rule = &sarif["runs"][0]["tool"]["driver"]["rules"][result["ruleIndex"].as_u64().expect("an index") as usize];
    assert_eq!(rule["id"], "mode.chmod");

    // The judge is somebody else's parser.
    let script = "import sys, xml.etree.ElementTree as t\n\
                  s = t.parse(sys.argv[1]).getroot()[0]\n\
                  print(s.get('failures'), s.get('tests'), s.find('testcase/failure').get('type'))";
    let judged = Command::new("python3").args(["-c", script, &junit]).output().expect("python3");
    assert_eq!(String::from_utf8_lossy(&judged.stdout).trim(), "1 1 high", "{judged:?}");

    let html = fs::read_to_string(html).expect("written");
    assert!(html.contains("mode.chmod") && html.contains("--without seccomp"), "the command line is part of it");
    for foreign in ["http://", "https://", "<script", "src="] {
        assert!(!html.contains(foreign), "it needs nothing else: {foreign}");
    }
}

#[test]
fn two_collections_of_facts_differ_only_where_it_is_explained() {
    let folder = tempfile::tempdir().expect("a folder");
    let files: Vec<String> = ["a", "b"].map(|name| folder.path().join(name).to_str().expect("UTF-8").to_owned()).into();
    for file in &files {
        let facts = audit(&["--facts", "--no-baseline", "--in", "room"]).expect_success();
        assert!(facts.stdout.contains("det.hostname"), "{facts:?}");
        fs::write(file, &facts.stdout).expect("written");
    }
    let compared = audit(&["--compare", &files[0], &files[1]]);
    assert_eq!(compared.status, 0, "{compared:?}");
    let other = fs::read_to_string(&files[1]).expect("read").replace("localhost", "elsewhere");
    fs::write(&files[1], other).expect("written");
    let compared = audit(&["--compare", &files[0], &files[1]]);
    assert_eq!(compared.status, 1, "{compared:?}");
    assert!(compared.stdout.contains("NOT EXPLAINED"), "{compared:?}");
}

#[test]
fn a_probe_tells_its_story() {
    let listed = audit(&["--list"]).lines();
    assert!(listed.iter().any(|line| line.starts_with("sc.io_uring ")), "{listed:?}");
    let story = audit(&["--explain", "sc.io_uring"]).expect_success().stdout;
    for part in ["What is tried", "What is safe", "--without seccomp"] {
        assert!(story.contains(part), "{story}");
    }
}
