//! A sandbox while it runs: one of its processes, and what the control groups say of its memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anchorhold_probe::observation::{Bound, ORPHAN, Standing};

use super::survivors;
use crate::calls;
use crate::files::{self, Mount};

/// How long a sandbox may take to stand: the first start of some takes many seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the battery's own process stands in the sandbox, at most until the command ends.
pub fn wait_for(child: i32, nonce: &str) -> Standing {
    let ended = survivors::pidfd(child);
    let until = Instant::now() + PATIENCE;
    let pid = loop {
        let over = calls::readable(ended.unwrap_or(-1), 20) || Instant::now() > until;
        if let Some(pid) = orphan(nonce) {
            break Some(pid);
        }
        if over {
            break None;
        }
    };
    if let Some(ended) = ended {
        calls::close(ended);
    }
    Standing { pid, memory: pid.and_then(memory) }
}

fn orphan(nonce: &str) -> Option<i32> {
    let names = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse::<i32>().ok()).find(|pid| {
        let has = |file: &str, text: &str| {
            let found = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            found.windows(text.len().max(1)).any(|window| window == text.as_bytes())
        };
        has("comm", ORPHAN) && has("cmdline", nonce)
    })
}

/// The least limit of memory between the process's own control group and the one that we are in ourselves: what is above both was
/// there before.
fn memory(pid: i32) -> Option<Bound> {
    let theirs = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let ours = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = files::mounts().ok()?;
    let mut bound = None;
    for (version, folder) in hierarchies(&mounts) {
        let (Some(theirs), Some(ours)) = (group(&theirs, version), group(&ours, version)) else { continue };
        bound.get_or_insert(Bound::None);
        let file = if version == Version::One { "memory.limit_in_bytes" } else { "memory.max" };
        for group in Path::new(theirs).ancestors().take_while(|group| *group != Path::new(ours) && !ours.is_empty()) {
            let path = folder.join(group.strip_prefix("/").unwrap_or(group)).join(file);
            // The first version says the greatest number of pages where there is no limit.
            let limit = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
            if let Some(limit) = limit.filter(|limit| *limit < 1 << 60) {
                bound = Some(match bound {
                    Some(Bound::Of(other)) => Bound::Of(limit.min(other)),
                    _ => Bound::Of(limit),
                });
            }
        }
    }
    bound
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where the hierarchies are mounted that may have the controller of memory.
fn hierarchies(mounts: &[Mount]) -> Vec<(Version, PathBuf)> {
    let version = |mount: &Mount| match mount.kind.as_str() {
        "cgroup2" => Some(Version::Two),
        "cgroup" if mount.super_options.iter().any(|option| option == "memory") => Some(Version::One),
        _ => None,
    };
    mounts.iter().filter_map(|mount| Some((version(mount)?, mount.point.clone().into()))).collect()
}

/// The group of a process in such a hierarchy. cgroups(7), /proc/PID/cgroup.
fn group(text: &str, version: Version) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut words = line.splitn(3, ':').skip(1);
        let (controllers, path) = (words.next()?, words.next()?);
        let wanted = match version {
            Version::One => controllers.split(',').any(|name| name == "memory"),
            Version::Two => controllers.is_empty(),
        };
        wanted.then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_each_version_is_found() {
        let text = "9:name=systemd:/\n4:memory:/a/b\n2:cpu,cpuacct:/c\n0::/d:e\n";
        assert_eq!(group(text, Version::One), Some("/a/b"));
        assert_eq!(group(text, Version::Two), Some("/d:e"));
        assert_eq!(group("2:cpu:/\n", Version::Two), None);
    }
}
