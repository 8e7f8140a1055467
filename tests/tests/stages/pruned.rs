//! What is removed, and what stays because somebody uses it.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anchorhold_tests::room::anchorhold;
use anchorhold_vmm::stages::{Cache, DISK, Entry, Fields, InUse, Record, Stage};

use crate::world::text;

/// A stage of the shape of a real one, in a moment.
fn made(cache: &Cache, stage: Stage, memory: &str, stands_on: Option<&Entry>) -> Entry {
    let making = cache.begin(stage, &key(memory)).unwrap().unwrap_err();
    std::fs::write(making.directory().join(DISK), "content").unwrap();
    let mut record = Record::new(stage, "standin", key(memory), Duration::ZERO);
    record.stands_on = stands_on.map(Entry::name);
    making.finish(record, &[DISK]).unwrap().0
}

fn key(memory: &str) -> Fields {
    [("memory", memory)].into_iter().collect()
}

fn held(cache: &Cache, stage: Stage, memory: &str) -> InUse {
    cache.hold(stage, &key(memory)).unwrap().unwrap().1
}

fn prune(cache: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(anchorhold());
    command.args(["vm", "prune", "--option", "vm-cache"]).arg(cache).args(words).stdin(Stdio::null());
    command.output().unwrap()
}

#[test]
fn what_is_in_use_stays_with_what_it_stands_on_until_it_is_not() {
    let place = tempfile::tempdir().unwrap();
    let cache = Cache::open(&place.path().join("cache")).unwrap();
    let install = made(&cache, Stage::Install, "1", None);
    let suspend = made(&cache, Stage::Suspend, "2", Some(&install));
    let other = made(&cache, Stage::Suspend, "3", Some(&install));
    // Somebody revives one of them, and another process wants all of them gone.
    let in_use = held(&cache, Stage::Suspend, "2");
    let pruned = prune(cache.root(), &["--all"]);
    let told = text(&pruned.stderr);
    assert!(pruned.status.success(), "{told}");
    assert!(told.contains(&format!("{} is in use, and stays", suspend.name())), "{told}");
    assert!(told.contains(&format!("{} stays: a stage that is in use stands on it", install.name())), "{told}");
    assert_eq!(text(&pruned.stdout).trim(), other.name());
    suspend.verify_again().unwrap();
    install.verify_again().unwrap();
    // To name it does not help, and is told by the status too.
    for name in [&suspend, &install] {
        let pruned = prune(cache.root(), &[&name.name()]);
        assert_eq!(pruned.status.code(), Some(1), "{}", text(&pruned.stderr));
        suspend.verify_again().unwrap();
        install.verify_again().unwrap();
    }
    drop(in_use);
    let pruned = prune(cache.root(), &["--all"]);
    assert!(pruned.status.success(), "{}", text(&pruned.stderr));
    assert!(cache.list().unwrap().is_empty());
    assert!(cache.hold(Stage::Suspend, &key("2")).unwrap().is_none());
}
