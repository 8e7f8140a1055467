//! Where the control group trees are, and where in them this process is.
//!
//! Two texts say it: `/proc/self/cgroup` names our group in each tree, relative to the root of our cgroup namespace;
//! `/proc/self/mountinfo` names where each tree, or which part of it, can be seen (cgroups(7), cgroup_namespaces(7),
//! proc_pid_mountinfo(5)). Neither suffices alone, and in containers they often do not meet.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Controller, Error};

/// The generation of a tree's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// One tree per set of controllers.
    V1,
    /// The unified tree.
    V2,
}

/// The kind of a machine's whole layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Only v2.
    Unified,
    /// Only v1.
    Legacy,
    /// Controllers in v1 trees and a v2 tree beside them.
    Hybrid,
    /// No tree at all: the kernel has none, or nothing is mounted.
    None,
}

/// Why a group cannot be reached through the file system although the process is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hidden {
    /// The tree is not mounted in this mount namespace, or another mount covers it.
    NotMounted,
    /// It is mounted, but only a part of the tree that does not contain our group.
    OutsideMount {
        /// Our group, as `/proc/self/cgroup` names it.
        own: String,
        /// The root of the mounted part, as `/proc/self/mountinfo` names it.
        root: String,
    },
}

/// One tree, and this process's place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// The generation.
    pub version: Version,
    /// The controllers of a v1 tree by the kernel's names, empty for a named tree (`name=systemd`) and for v2, whose
    /// controllers differ from group to group (`cgroup.controllers`).
    pub controllers: BTreeSet<String>,
    /// Our group as `/proc/self/cgroup` names it: relative to our cgroup namespace, so possibly with `..`.
    pub own: String,
    /// The same group as a directory of this mount namespace, or why there is none.
    pub directory: Result<PathBuf, Hidden>,
    /// The directory the tree is mounted at, when it is: nothing above it is a group.
    pub mount_point: Option<PathBuf>,
}

impl Hierarchy {
    /// The group above our own, when it can be seen.
    #[must_use]
    pub fn parent_directory(&self) -> Option<PathBuf> {
        let own = self.directory.as_ref().ok()?;
        let above = own.parent()?;
        above.starts_with(self.mount_point.as_ref()?).then(|| above.to_owned())
    }
}

/// All trees that matter to us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The v2 tree, when this process has a place in one.
    pub unified: Option<Hierarchy>,
    /// The v1 trees that have controllers.
    pub legacy: Vec<Hierarchy>,
}

impl Layout {
    /// Reads the layout of this process from `/proc`.
    ///
    /// # Errors
    /// When `/proc/self/cgroup` or `/proc/self/mountinfo` cannot be read. A kernel without control groups has no
    /// `/proc/self/cgroup`; that is an empty layout, not an error.
    pub fn detect() -> Result<Layout, Error> {
        let read = |path: &str| match fs::read(path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(e) => Err(Error::kernel("reading", Path::new(path), &e)),
        };
        let cgroup = match read("/proc/self/cgroup") {
            Err(e) if e.errno() == Some(nix::errno::Errno::ENOENT) => return Ok(Layout::default()),
            other => other?,
        };
        Ok(Layout::parse(&cgroup, &read("/proc/self/mountinfo")?))
    }

    /// The layout that two such texts describe. Lines that are not understood are passed over: both formats grow fields
    /// at places where readers are told to ignore them.
    #[must_use]
    pub fn parse(proc_self_cgroup: &str, mountinfo: &str) -> Layout {
        let mounts = Mount::parse_all(mountinfo);
        let mut layout = Layout::default();
        for line in proc_self_cgroup.lines() {
            // hierarchy-ID:controller-list:cgroup-path; the path may contain colons.
            let mut fields = line.splitn(3, ':');
            let (Some(id), Some(list), Some(own)) = (fields.next(), fields.next(), fields.next()) else { continue };
            let version = if id == "0" && list.is_empty() { Version::V2 } else { Version::V1 };
            let controllers: BTreeSet<String> =
                list.split(',').filter(|c| !c.is_empty() && !c.starts_with("name=")).map(str::to_owned).collect();
            if version == Version::V1 && controllers.is_empty() {
                continue;
            }
            // A process of a group that was removed under it (a zombie's view) is marked so; there is nothing to use.
            let own = own.strip_suffix(" (deleted)").unwrap_or(own).to_owned();
            let (directory, mount_point) = locate(&mounts, version, &controllers, &own);
            let hierarchy = Hierarchy { version, controllers, own, directory, mount_point };
            match version {
                Version::V2 => layout.unified = Some(hierarchy),
                Version::V1 => layout.legacy.push(hierarchy),
            }
        }
        layout
    }

    /// The kind of the layout, judged by the trees that are mounted.
    #[must_use]
    pub fn kind(&self) -> Kind {
        let v2 = self.unified.as_ref().is_some_and(|h| h.mount_point.is_some());
        let v1 = self.legacy.iter().any(|h| h.mount_point.is_some());
        match (v2, v1) {
            (true, true) => Kind::Hybrid,
            (true, false) => Kind::Unified,
            (false, true) => Kind::Legacy,
            (false, false) => Kind::None,
        }
    }

    /// The v1 tree that has a controller. A controller is in one tree at a time, so when it is here, v2 does not have it.
    #[must_use]
    pub fn legacy_tree(&self, controller: Controller) -> Option<&Hierarchy> {
        self.legacy.iter().find(|h| h.controllers.contains(controller.v1_name()))
    }
}

/// The directory of a group, tried through every visible mount of its tree.
fn locate(
    mounts: &[Mount],
    version: Version,
    controllers: &BTreeSet<String>,
    own: &str,
) -> (Result<PathBuf, Hidden>, Option<PathBuf>) {
    let mut found = (Err(Hidden::NotMounted), None);
    for mount in mounts.iter().filter(|m| m.is_tree(version, controllers)) {
        if covering(mounts, &mount.point) != Some(mount.id) {
            continue;
        }
        match below(own, &mount.root) {
            Some(rest) => {
                // A trailing slash would make the parent of the path the path itself.
                let directory = if rest.is_empty() { mount.point.clone() } else { mount.point.join(rest) };
                return (Ok(directory), Some(mount.point.clone()));
            }
            None => {
                found = (
                    Err(Hidden::OutsideMount { own: own.to_owned(), root: mount.root.clone() }),
                    Some(mount.point.clone()),
                );
            }
        }
    }
    found
}

/// What is left of `path` below `root`, both relative to the same cgroup namespace. `None` when it is not below, or
/// when naming it would need the name of a group outside the namespace (`..` that is left over).
fn below(path: &str, root: &str) -> Option<String> {
    let parts = |p: &str| p.split('/').filter(|c| !c.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let (path, root) = (parts(path), parts(root));
    let rest = path.strip_prefix(root.as_slice())?;
    (!rest.iter().any(|c| c == "..")).then(|| rest.join("/"))
}

/// One line of mountinfo, as far as it is needed here.
#[derive(Debug)]
struct Mount {
    id: u32,
    parent: u32,
    root: String,
    point: PathBuf,
    kind: String,
    super_options: String,
}

impl Mount {
    fn parse_all(mountinfo: &str) -> Vec<Mount> {
        mountinfo.lines().filter_map(Mount::parse).collect()
    }

    fn parse(line: &str) -> Option<Mount> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        let id = left.next()?.parse().ok()?;
        let parent = left.next()?.parse().ok()?;
        let _device = left.next()?;
        let root = unescape(left.next()?);
        let point = PathBuf::from(unescape(left.next()?));
        let mut right = right.split(' ');
        let kind = right.next()?.to_owned();
        let _source = right.next()?;
        let super_options = right.next().unwrap_or_default().to_owned();
        Some(Mount { id, parent, root, point, kind, super_options })
    }

    fn is_tree(&self, version: Version, controllers: &BTreeSet<String>) -> bool {
        match version {
            Version::V2 => self.kind == "cgroup2",
            // The mount options of a v1 tree list its controllers, all of them, among other options.
            Version::V1 => {
                let options: BTreeSet<&str> = self.super_options.split(',').collect();
                self.kind == "cgroup" && controllers.iter().all(|c| options.contains(c.as_str()))
            }
        }
    }
}

/// The mount that a path walk ends in: the kernel goes from the root mount into the first mount it meets on the path, and
/// again from there. Mounts that are listed but covered (a bind over `/sys/fs/cgroup` hides all below it) are not met.
fn covering(mounts: &[Mount], path: &Path) -> Option<u32> {
    let ids: BTreeSet<u32> = mounts.iter().map(|m| m.id).collect();
    // After chroot(2) or in a container the parent of the topmost mount is not listed; the initial root is its own parent.
    let is_top = |m: &Mount| m.parent == m.id || !ids.contains(&m.parent);
    let mut at: Option<u32> = None;
    // No walk passes a mount twice; the bound guards against a list that is not a tree.
    for _ in 0..=mounts.len() {
        let next = mounts
            .iter()
            .filter(|m| match at {
                None => is_top(m),
                Some(id) => m.parent == id && m.id != id,
            })
            .filter(|m| path.starts_with(&m.point))
            .min_by_key(|m| m.point.components().count());
        match next {
            Some(mount) => at = Some(mount.id),
            None => return at,
        }
    }
    at
}

/// Undoes the octal escapes of blanks, tabs, newlines and backslashes (proc_pid_mountinfo(5)).
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) if byte.is_ascii() => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            _ => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
