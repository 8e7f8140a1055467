//! A failed build explains itself: what it said last, what it used, what its room refused and what that suggests, how to do
//! it again and how to look inside.

use std::fmt::Write;

use super::policy::Policy;
use super::result::BuildResult;
use crate::progress::escapes;
use crate::store::Store;

/// The most refusals that are told.
const REFUSALS: usize = 5;

/// The whole story of a failure, from its first line.
pub fn story(first: &str, result: &BuildResult, store: &Store, policy: &Policy) -> String {
    let mut story = first.to_owned();
    let drv = store.dir().display(&result.derivation);
    if !result.last_lines.is_empty() {
        let _ = write!(story, ";\nlast {} log lines:", result.last_lines.len());
        for line in &result.last_lines {
            let _ = write!(story, "\n> {}", escapes::plain(line));
        }
        let _ = write!(story, "\nfor the full log, run `anchorhold store log {drv}`");
    }
    for refused in result.refused.iter().take(REFUSALS) {
        let _ = write!(story, "\nthe room refused: {refused}");
        if let Some(hint) = &refused.hint {
            let _ = write!(story, " ({hint})");
        }
    }
    if let Some(advice) = advice(result) {
        let _ = write!(story, "\n{advice}");
    }
    if let Some(account) = &result.account {
        let _ = write!(
            story,
            "\nit took {:.1} s, and {:.1} s of the processor",
            account.wall_seconds,
            account.user_seconds + account.system_seconds
        );
        if let Some(bytes) = account.peak_memory_bytes {
            let _ = write!(story, ", and {} MiB of memory", bytes >> 20);
        }
    }
    let _ = write!(story, "\nto try again: anchorhold build --store {} {drv}", store.root().display());
    match &result.kept {
        Some(kept) => {
            let _ = write!(
                story,
                "\nits build directory is kept in {}; to enter its room: anchorhold shell {}",
                kept.display(),
                kept.display()
            );
        }
        None if !policy.keep_failed => story.push_str("\nto look inside: add --keep-failed"),
        None => {}
    }
    story
}

/// What the last lines of a log suggest about the room.
fn advice(result: &BuildResult) -> Option<&'static str> {
    let said = |words: &[&str]| {
        result.last_lines.iter().any(|line| {
            let line = String::from_utf8_lossy(line).to_lowercase();
            words.iter().any(|word| line.contains(word))
        })
    };
    if said(&["could not resolve host", "name resolution", "network is unreachable", "name or service not known"]) {
        return Some(
            "it seems to want the network, which only a fixed-output derivation has: declare its hash (outputHash, outputHashAlgo, outputHashMode), or fetch in a derivation of its own",
        );
    }
    if said(&["unshare", "clone_newuser", "user namespace", "creating new namespace", "bwrap:"]) {
        return Some(
            "it seems to make a sandbox of its own: let the derivation require the feature ‘nested-sandbox’ (requiredSystemFeatures)",
        );
    }
    None
}
