//! Where each asked controller will be set up: decided from the layout and from what the kernel lets us write, without
//! creating anything.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat, getpid};
use serde::Serialize;

use super::error::errno_of;
use super::layout::{Hidden, Hierarchy, Layout, Version};
use super::setting::Setting;
use super::{Asked, Controller, Error, Unusable, files, v1, v2};

/// One group that will be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Site {
    /// The generation of its tree.
    pub version: Version,
    /// The group it is made in.
    pub parent: PathBuf,
    /// The controllers it is made for; none for a v2 group that only kills, freezes and measures CPU time.
    pub controllers: Vec<Controller>,
    /// The controllers that `parent` has and does not hand to its children yet (v2).
    pub enable: Vec<Controller>,
    /// Whether this process has to leave `parent` for a leaf first, because a v2 group that hands out controllers may
    /// hold no processes.
    pub vacate: bool,
    pub(super) settings: Vec<Setting>,
}

/// All groups that a room will have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// The groups, v2 first. Empty when nothing was asked.
    pub sites: Vec<Site>,
    /// What would have been used had it been there, and nobody insisted on: accounting, and killing by `cgroup.kill`.
    pub absent: Vec<Unusable>,
}

impl Site {
    /// The limits that will be written, each as a file's name and its text.
    pub fn limits(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.settings.iter().map(|s| (s.file, s.value.as_str()))
    }
}

impl Placement {
    /// The site that has a controller.
    #[must_use]
    pub fn site(&self, controller: Controller) -> Option<&Site> {
        self.sites.iter().find(|s| s.controllers.contains(&controller))
    }

    fn v2(&self) -> Option<&Site> {
        self.sites.iter().find(|s| s.version == Version::V2)
    }

    fn add_v1(&mut self, parent: PathBuf, controller: Controller) {
        // `cpu,cpuacct` and `net_cls,net_prio` are usually one tree: one group then serves both.
        match self.sites.iter_mut().find(|s| s.version == Version::V1 && s.parent == parent) {
            Some(site) if site.controllers.contains(&controller) => {}
            Some(site) => site.controllers.push(controller),
            None => self.sites.push(Site {
                version: Version::V1,
                parent,
                controllers: vec![controller],
                enable: Vec::new(),
                vacate: false,
                settings: Vec::new(),
            }),
        }
    }
}

/// Decides where each asked controller will be set up, for the current effective user.
///
/// Nothing is created or changed; whether the groups can be made is asked of the kernel by `faccessat(AT_EACCESS)`.
///
/// # Errors
/// The first controller that was asked for and cannot be had.
pub fn place(layout: &Layout, asked: &Asked) -> Result<Placement, Unusable> {
    let mut placement = Placement::default();
    if asked.is_nothing() {
        return Ok(placement);
    }
    sensible(asked)?;
    let (in_v1, in_v2): (Vec<_>, Vec<_>) = asked.required().into_iter().partition(|c| layout.legacy_tree(*c).is_some());

    if let Some(site) = place_v2(layout, asked, &in_v2, &mut placement.absent)? {
        placement.sites.push(site);
    }
    for controller in in_v1 {
        if controller == Controller::Memory && asked.memory_max.is_none() {
            return Err(Unusable {
                controller,
                why: "cgroup v1 limits only the sum of memory and swap, and no memory limit is asked".to_owned(),
                fix: "ask for a memory limit beside the swap limit".to_owned(),
            });
        }
        let parent = v1_parent(layout, controller)?;
        placement.add_v1(parent, controller);
    }
    if placement.v2().is_none() && asked.freezer {
        let parent = v1_parent(layout, Controller::Freezer)?;
        placement.add_v1(parent, Controller::Freezer);
    }
    if asked.account {
        // v2 measures CPU time in every group, so v1's controller for it is worth a group only where there is no v2.
        let cpu = placement.v2().is_none().then_some(Controller::Cpuacct);
        for controller in cpu.into_iter().chain([Controller::Memory, Controller::Pids]) {
            if layout.legacy_tree(controller).is_some() {
                match v1_parent(layout, controller) {
                    Ok(parent) => placement.add_v1(parent, controller),
                    Err(unusable) => placement.absent.push(unusable),
                }
            }
        }
    }
    for site in &mut placement.sites {
        site.settings = match site.version {
            Version::V1 => v1::settings(asked, &site.controllers),
            Version::V2 => v2::settings(asked, &site.controllers),
        };
    }
    Ok(placement)
}

/// Refuses figures that no kernel takes, before they fail as a bare `EINVAL` or are silently bent into range.
fn sensible(asked: &Asked) -> Result<(), Unusable> {
    let within = |controller, what: &str, value: Option<u64>, range: std::ops::RangeInclusive<u64>| match value {
        Some(value) if !range.contains(&value) => Err(Unusable {
            controller,
            why: format!("{what} {value} is not between {} and {}", range.start(), range.end()),
            fix: "ask for a figure in that range".to_owned(),
        }),
        _ => Ok(()),
    };
    within(Controller::Cpu, "CPU weight", asked.cpu_weight.map(u64::from), 1..=10_000)?;
    within(Controller::Io, "I/O weight", asked.io_weight.map(u64::from), 1..=10_000)?;
    within(Controller::Cpu, "CPU period (µs)", asked.cpu_max.map(|m| m.period_us), 1_000..=1_000_000)?;
    within(Controller::Cpu, "CPU quota (µs)", asked.cpu_max.map(|m| m.quota_us), 1_000..=u64::MAX / 1_000)?;
    // PID_MAX_LIMIT on 64-bit machines (include/linux/threads.h); a room without a single process is no room.
    within(Controller::Pids, "number of processes", asked.pids_max, 1..=4_194_304)
}

fn v1_parent(layout: &Layout, controller: Controller) -> Result<PathBuf, Unusable> {
    let tree = layout.legacy_tree(controller).ok_or_else(|| no_tree(controller))?;
    let own = directory(tree, controller)?;
    writable(own, controller, Version::V1)?;
    Ok(own.clone())
}

/// The v2 group: with the controllers that only v2 has here, else without any, for killing, freezing and CPU time.
fn place_v2(
    layout: &Layout,
    asked: &Asked,
    required: &[Controller],
    absent: &mut Vec<Unusable>,
) -> Result<Option<Site>, Unusable> {
    let blame = required.first().copied().unwrap_or(Controller::Kill);
    let Some(tree) = &layout.unified else {
        if required.is_empty() {
            absent.push(no_tree(blame));
            return Ok(None);
        }
        return Err(no_tree(blame));
    };
    let own = match directory(tree, blame) {
        Ok(own) => own,
        Err(unusable) if required.is_empty() => {
            absent.push(unusable);
            return Ok(None);
        }
        Err(unusable) => return Err(unusable),
    };
    let wished = if asked.account { measurable(layout, tree, own, required) } else { Vec::new() };
    let all: Vec<Controller> = required.iter().chain(&wished).copied().collect();
    if !all.is_empty() {
        match v2_site(tree, own, &all) {
            Ok(site) => return Ok(Some(site)),
            Err(_) if !required.is_empty() && !wished.is_empty() => {
                // Perhaps only a wish stood in the way.
                let site = v2_site(tree, own, required)?;
                absent.extend(wished.iter().map(|c| Unusable {
                    controller: *c,
                    why: format!("{} does not hand it to its children", site.parent.display()),
                    fix: delegate_fix(*c),
                }));
                return Ok(Some(site));
            }
            Err(unusable) if !required.is_empty() => return Err(unusable),
            Err(unusable) => absent.push(unusable),
        }
    }
    match writable(own, blame, Version::V2) {
        Ok(()) => Ok(Some(Site {
            version: Version::V2,
            parent: own.clone(),
            controllers: Vec::new(),
            enable: Vec::new(),
            vacate: false,
            settings: Vec::new(),
        })),
        Err(unusable) => {
            absent.push(unusable);
            Ok(None)
        }
    }
}

/// Controllers that would measure something, are not limited anyway, and are there.
fn measurable(layout: &Layout, tree: &Hierarchy, own: &Path, required: &[Controller]) -> Vec<Controller> {
    // A leaf inside a delegated group lists only what is handed down to it; the group above has more.
    let above = tree.parent_directory().filter(|parent| is_leaf_of_delegated(own, parent));
    let there = v2::controllers(above.as_deref().unwrap_or(own), "cgroup.controllers").unwrap_or_default();
    [Controller::Memory, Controller::Pids, Controller::Io]
        .into_iter()
        .filter(|c| !required.contains(c) && layout.legacy_tree(*c).is_none() && there.contains(c.name()))
        .collect()
}

/// A v2 group with controllers: finds the group that may hand them out.
fn v2_site(tree: &Hierarchy, own: &Path, controllers: &[Controller]) -> Result<Site, Unusable> {
    let blame = controllers[0];
    let (parent, vacate) = v2_parent(tree, own, blame)?;
    let read = |file: &str| v2::controllers(&parent, file).map_err(|e| unreadable(blame, &e));
    let there = read("cgroup.controllers")?;
    if let Some(missing) = controllers.iter().find(|c| !there.contains(c.name())) {
        return Err(Unusable {
            controller: *missing,
            why: format!("{} has the controllers '{}'", parent.display(), join(there.iter().map(String::as_str))),
            fix: delegate_fix(*missing),
        });
    }
    let handed = read("cgroup.subtree_control")?;
    let enable: Vec<Controller> = controllers.iter().copied().filter(|c| !handed.contains(c.name())).collect();
    writable(&parent, blame, Version::V2)?;
    if !enable.is_empty() {
        access(&parent.join("cgroup.subtree_control"), enable[0], Version::V2)?;
    }
    // Leaving is needed only for handing out: a group that already does cannot hold processes.
    let vacate = vacate && !enable.is_empty();
    Ok(Site { version: Version::V2, parent, controllers: controllers.to_vec(), enable, vacate, settings: Vec::new() })
}

/// The group in which v2 groups with controllers may be made, and whether we have to leave it first.
fn v2_parent(tree: &Hierarchy, own: &Path, blame: Controller) -> Result<(PathBuf, bool), Unusable> {
    if v2::is_root(own) {
        return Ok((own.to_owned(), false));
    }
    let kind = files::read(&own.join("cgroup.type")).map_err(|e| unreadable(blame, &e))?;
    if kind.trim() != "domain" {
        return Err(Unusable {
            controller: blame,
            why: format!("{} is of type '{}'", own.display(), kind.trim()),
            fix: "start anchorhold in a domain group; threaded groups have no memory or I/O control".to_owned(),
        });
    }
    if let Some(parent) = tree.parent_directory()
        && is_leaf_of_delegated(own, &parent)
    {
        return Ok((parent, false));
    }
    let members = files::processes(own).map_err(|e| unreadable(blame, &e))?;
    let me = getpid().as_raw();
    let others = members.iter().filter(|&&pid| pid != me).count();
    if others > 0 {
        return Err(Unusable {
            controller: blame,
            why: format!(
                "{} holds {others} other process{} and would have to be empty to hand out controllers",
                own.display(),
                if others == 1 { "" } else { "es" }
            ),
            fix: START_ALONE.to_owned(),
        });
    }
    Ok((own.to_owned(), members.contains(&me)))
}

const START_ALONE: &str = "give anchorhold a delegated group of its own: 'systemd-run --user --scope -p Delegate=yes \
    anchorhold …', or 'Delegate=yes' in the service; in a container make it the first process";

/// Whether our group is a leaf inside a group that was delegated: one that we (or a supervisor before us) made, or a
/// subgroup of a systemd service or scope, which only its delegate may make. Units themselves lie below slices, and slices
/// belong to systemd (systemd's CGROUP_DELEGATION document, "two key design rules").
fn is_leaf_of_delegated(own: &Path, parent: &Path) -> bool {
    let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let ends = |n: &str, suffixes: &[&str]| suffixes.iter().any(|s| n.ends_with(s));
    let (own, parent) = (name(own), name(parent));
    own == v2::SUPERVISOR
        || (!ends(&own, &[".service", ".scope", ".slice", ".socket", ".mount", ".swap"])
            && ends(&parent, &[".service", ".scope"]))
}

fn directory(tree: &Hierarchy, controller: Controller) -> Result<&PathBuf, Unusable> {
    tree.directory.as_ref().map_err(|hidden| match hidden {
        Hidden::NotMounted => Unusable {
            controller,
            why: "its tree is not mounted here".to_owned(),
            fix: "mount /sys/fs/cgroup into the container or the mount namespace".to_owned(),
        },
        Hidden::OutsideMount { own, root } => Unusable {
            controller,
            why: format!("our group '{own}' is not in the mounted part '{root}' of its tree"),
            fix: "mount cgroups from within this cgroup namespace (docker run --cgroupns=private), or start from the \
                  namespace they were mounted in"
                .to_owned(),
        },
    })
}

fn no_tree(controller: Controller) -> Unusable {
    Unusable {
        controller,
        why: "the kernel lists no tree for it in /proc/self/cgroup".to_owned(),
        fix: match controller {
            Controller::Kill => "mount a cgroup2 file system; until then a room is ended by its pid namespace alone",
            _ => "boot a kernel with this controller (CONFIG_CGROUPS, and cgroup_enable= on the command line)",
        }
        .to_owned(),
    }
}

fn unreadable(controller: Controller, error: &Error) -> Unusable {
    Unusable {
        controller,
        why: error.to_string(),
        fix: "make /sys/fs/cgroup readable for the user that runs anchorhold".to_owned(),
    }
}

/// Whether groups can be made in `parent` and processes moved into them.
fn writable(parent: &Path, controller: Controller, version: Version) -> Result<(), Unusable> {
    access(parent, controller, version)?;
    if version == Version::V2 {
        // v2 asks for write permission on the nearest common ancestor's list too (cgroup-v2.rst, "Delegation
        // Containment").
        access(&parent.join("cgroup.procs"), controller, version)?;
    }
    Ok(())
}

fn access(path: &Path, controller: Controller, version: Version) -> Result<(), Unusable> {
    let directory = std::fs::metadata(path).map_err(|e| denied(path, errno_of(&e), controller, version))?.is_dir();
    let wanted = if directory { AccessFlags::W_OK | AccessFlags::X_OK } else { AccessFlags::W_OK };
    faccessat(AT_FDCWD, path, wanted, AtFlags::AT_EACCESS).map_err(|e| denied(path, e, controller, version))
}

fn denied(path: &Path, errno: Errno, controller: Controller, version: Version) -> Unusable {
    let fix = match (errno, version) {
        (Errno::EROFS, _) => {
            "the container's cgroup mount is read-only: mount it writable (podman --security-opt unmask=/sys/fs/cgroup, \
             docker run --cgroupns=private --security-opt writable-cgroups=true), or leave the limit to the container"
        }
        (_, Version::V1) => {
            "run as root, or boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), which can be delegated to a user"
        }
        (_, Version::V2) => START_ALONE,
    };
    Unusable { controller, why: format!("writing {}: {errno}", path.display()), fix: fix.to_owned() }
}

fn delegate_fix(controller: Controller) -> String {
    format!(
        "have it delegated: 'Delegate=cpu io memory pids' in the service, for a user's session in \
         /etc/systemd/system/user@.service.d/delegate.conf; or write '+{controller}' to cgroup.subtree_control of the \
         groups above"
    )
}

fn join<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
