//! A failed build explains itself: what it said last, what it used, what its room refused and what that suggests, how to do
//! it again and how to look inside.

use super::policy::Policy;
use super::result::BuildResult;
use crate::store::Store;

/// The most refusals that are told.
const REFUSALS: usize = 5;

/// What to know and to do about a failed build, a line each.
pub fn advice(result: &BuildResult, store: &Store, policy: &Policy) -> Vec<String> {
    let mut lines = Vec::new();
    let root = store.root().display();
    let drv = store.dir().display(&result.derivation);
    lines.push(format!("for the full log: anchorhold store log --store {root} {drv}"));
    for refused in result.refused.iter().take(REFUSALS) {
        let hint = refused.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
        lines.push(format!("the room refused: {refused}{hint}"));
    }
    lines.extend(suggestion(result).map(str::to_owned));
    if let Some(account) = &result.account {
        let processor = account.user_seconds + account.system_seconds;
        let memory = account
            .peak_memory_bytes
            .map_or_else(String::new, |bytes| format!(", {} MiB of memory at its most", bytes >> 20));
        lines.push(format!("it took {:.1} s, {processor:.1} s of the processor{memory}", account.wall_seconds));
    }
    lines.extend(policy.again.as_ref().map(|command| format!("to try again: {command} {drv}")));
    match &result.kept {
        Some(kept) => {
            let machine = kept.join(super::keep::RUN);
            let kept = kept.display();
            lines.push(format!("its build directory is kept in {kept}; to enter its room: anchorhold shell {kept}"));
            if machine.exists() {
                lines.push(format!("to enter its machine: {}", machine.display()));
            }
        }
        None if !policy.keep_failed => lines.push("to look inside: add --keep-failed".to_owned()),
        None => {}
    }
    lines
}

/// The same about a build that made something else than the last time.
pub fn advice_on_difference(result: &BuildResult, store: &Store, policy: &Policy) -> Vec<String> {
    let mut lines = Vec::new();
    let root = store.root().display();
    let drv = store.dir().display(&result.derivation);
    lines.push(format!("for the log of the second build: anchorhold store log --store {root} {drv}"));
    lines.push(
        "what often differs: the time, the order of a directory or of threads, random numbers, the number of processors"
            .to_owned(),
    );
    lines.extend(policy.again.as_ref().map(|command| format!("to try again: {command} {drv}")));
    if !policy.keep_failed {
        lines.push("to keep what differs and compare the files: add --keep-failed".to_owned());
    }
    lines
}

/// What the last lines of a log suggest about the room.
fn suggestion(result: &BuildResult) -> Option<&'static str> {
    let said = |words: &[&str]| {
        result.last_lines.iter().any(|line| {
            let line = String::from_utf8_lossy(line).to_lowercase();
            words.iter().any(|word| line.contains(word))
        })
    };
    if said(&[
        "could not resolve host",
        "name resolution",
        "network is unreachable",
        "name or service not known",
        "bad address '",
    ]) {
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
