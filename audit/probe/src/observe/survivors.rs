//! Processes of a sandbox that outlive it.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anchorhold_probe::observation::Survivor;

use crate::calls;

/// How long a sandbox may take to be gone after its launcher has ended: bubblewrap's ends before its first process does.
const GRACE: Duration = Duration::from_millis(800);

/// How long those that are ended by us may take to be gone.
const END: Duration = Duration::from_secs(5);

/// Waits until all processes of the sandbox are gone, at most for the grace period. Who is left is told, and ended.
pub fn after_grace(nonce: &str, own: &[i32]) -> Vec<Survivor> {
    let left = wait_until_gone(nonce, own, GRACE);
    let survivors = left.iter().map(|pid| Survivor { pid: *pid, name: name(*pid), command: command(*pid) }).collect();
    for pid in &left {
        let _ = calls::raw(libc::SYS_kill, &[*pid as usize, libc::SIGKILL as usize]);
    }
    if !left.is_empty() {
        wait_until_gone(nonce, own, END);
    }
    survivors
}

fn wait_until_gone(nonce: &str, own: &[i32], limit: Duration) -> BTreeSet<i32> {
    let until = Instant::now() + limit;
    loop {
        reap(own);
        let left = left(nonce, own);
        let remaining = until.saturating_duration_since(Instant::now());
        let Some(first) = left.first() else { return left };
        if remaining.is_zero() {
            return left;
        }
        if let Some(ended) = pidfd(*first) {
            calls::readable(ended, remaining.as_millis().try_into().unwrap_or(i32::MAX));
            calls::close(ended);
        }
    }
}

/// Our children, whom we got as the reaper of orphans, and whoever has the nonce on their command line.
fn left(nonce: &str, own: &[i32]) -> BTreeSet<i32> {
    let me = std::process::id() as i32;
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if own.contains(&pid) {
            continue;
        }
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let (state, parent) = (fields.next(), fields.next().and_then(|word| word.parse::<i32>().ok()));
        if matches!(state, None | Some("Z" | "X")) {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if parent == Some(me) || line.windows(nonce.len().max(1)).any(|window| window == nonce.as_bytes()) {
            found.insert(pid);
        }
    }
    found
}

/// Takes note of the dead whom we inherited, but for our own: they have somebody who waits for them.
fn reap(own: &[i32]) {
    let me = std::process::id();
    let children = fs::read_to_string(format!("/proc/{me}/task/{me}/children")).unwrap_or_default();
    for pid in children.split_whitespace().filter_map(|word| word.parse::<i32>().ok()) {
        if !own.contains(&pid) {
            let _ = calls::raw(libc::SYS_wait4, &[pid as usize, 0, libc::WNOHANG as usize, 0]);
        }
    }
}

fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn command(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    words.filter(|word| !word.is_empty() && !word.starts_with('{')).take(6).collect::<Vec<_>>().join(" ")
}

/// A descriptor that can be read once this process has ended.
pub fn pidfd(pid: i32) -> Option<i32> {
    calls::raw(libc::SYS_pidfd_open, &[pid as usize, 0]).ok().map(|descriptor| descriptor as i32)
}
