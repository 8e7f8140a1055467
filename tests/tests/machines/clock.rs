//! What the clocks of machines show to a build: the setting `vm-clock`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::builds::Store;
use crate::pairs::store_with;

/// How far a guest's clock may be from the host's: it is read in whole seconds, and a busy host emulates slowly.
const NEAR: u64 = 120;

/// What configure looks at before anything else: whether a file that it makes is newer than the source, which has a time of its
/// own. The source here is of the year 2020.
const SCRIPT: &str = "echo old >source; $b touch -d '2020-02-02 02:02:02' source
    echo new >made; if test made -nt source; then echo newer; else echo older; fi >$out
    $b date -u +%s >>$out";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// What the builder found: whether its file is newer, and the seconds of its clock.
fn found(store: &Store) -> (String, u64) {
    // Another derivation with other settings: what is built already is not built again.
    let text = store.built(SCRIPT, json!({ "settings": format!("{:?}", store.settings) }));
    let (newer, seconds) = text.trim().split_once('\n').unwrap();
    (newer.to_owned(), seconds.parse().unwrap())
}

fn shows_now(store: &Store) {
    let before = now();
    let (newer, seconds) = found(store);
    assert_eq!(newer, "newer");
    assert!((before - NEAR..=now() + NEAR).contains(&seconds), "{seconds}, at {before}");
}

fn shows_2010(mut store: Store) -> String {
    store.settings.push(("vm-clock", "2010".into()));
    let (newer, seconds) = found(&store);
    let begun = 1_262_304_000;
    assert!((begun..begun + 24 * 3600).contains(&seconds), "{seconds}");
    newer
}

#[test]
fn a_linux_machine_has_the_hosts_time_or_that_of_2010() {
    let Some(store) = Store::new() else { return };
    shows_now(&store);
    shows_2010(store);
}

#[test]
fn a_guest_has_the_time_of_what_it_writes() {
    let Some(store) = store_with("direct") else { return };
    shows_now(&store);
    // With a clock of its own it finds what it makes older than what it was given.
    assert_eq!(shows_2010(store), "older");
}

#[test]
fn a_pair_has_the_hosts_time() {
    if std::env::var_os("ANCHORHOLD_HEAVY_TESTS").is_none() {
        return anchorhold_tests::skip(
            "ANCHORHOLD_HEAVY_TESTS is not set: a pair takes a processor for each of its machines",
        );
    }
    let Some(store) = store_with("pair") else { return };
    shows_now(&store);
}
