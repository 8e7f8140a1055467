//! /sys and the file systems of control groups in it.

use std::path::Path;

use anchorhold_probe::verdict::{Finding, name_of};
use anchorhold_probe::world::World;

use crate::calls;
use crate::files::{self, Descend, Mount};
use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "sys.present",
        title: "/sys is there",
        severity: Severity::Low,
        reference: "sysfs(5)",
        tries: "Lists /sys.",
        safe: "absent or empty",
        meaning: "It shows the host's hardware, and nothing in a build needs it.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |_| listed("/sys"),
    },
    Probe {
        id: "sys.write.count",
        title: "Files in /sys may be written",
        severity: Severity::Critical,
        reference: "sysfs(5); cgroups(7)",
        tries: "Asks of files in /sys whether they may be written.",
        safe: "none",
        meaning: "Devices, power, firmware and control groups of the host are set there. uevent_helper alone names a program that the \
                  kernel starts as root.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |_| super::proc::counted("/sys", |_| Descend::Yes),
    },
    Probe {
        id: "sys.uevent_helper",
        title: "The kernel's program for events of devices can be replaced",
        severity: Severity::Critical,
        reference: "Documentation/ABI/testing/sysfs-uevent; a public escape of 2020",
        tries: "Opens /sys/kernel/uevent_helper for writing, and writes nothing.",
        safe: "ENOENT, EACCES or EROFS",
        meaning: "The kernel starts that program as root in the host's namespaces at the next event.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |_| Finding::of(files::opens("/sys/kernel/uevent_helper", libc::O_WRONLY)),
    },
    Probe {
        id: "sys.cgroup.release_agent",
        title: "The release agent of control groups can be replaced",
        severity: Severity::Critical,
        reference: "CVE-2022-0492",
        tries: "Asks of the release agent of every hierarchy of the first version whether it may be written.",
        safe: "ENOENT, EROFS or EACCES",
        meaning: "The kernel starts the agent as root, outside all namespaces, when a group has become empty.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |_| {
            each_hierarchy(&["cgroup"], |mount| Finding::of(files::writable(format!("{}/release_agent", mount.point))))
        },
    },
    Probe {
        id: "sys.cgroup.procs",
        title: "Processes can leave their control group",
        severity: Severity::High,
        reference: "cgroups(7)",
        tries: "Moves its own process to the group above, or, in the topmost one, to where it is.",
        safe: "EROFS, EACCES or absent",
        meaning: "A process outside its group has no limits, and is not found when the group is ended.",
        controls: &[Control::HostRoot],
        order: Order::Last,
        root: false,
        run: leave_group,
    },
    inside(
        "sys.debug",
        "debugfs can be listed",
        "debugfs reads and writes the insides of drivers and of the kernel.",
        |_| listed("/sys/kernel/debug"),
    ),
    inside(
        "sys.tracing",
        "tracefs can be listed",
        "Tracing records what all processes of the host do, and runs probes in the kernel.",
        |_| listed("/sys/kernel/tracing"),
    ),
    inside(
        "sys.firmware",
        "Tables of the firmware can be listed",
        "Firmware's tables and variables tell the machine apart; writing to EFI variables can make it unbootable.",
        |_| listed("/sys/firmware"),
    ),
    inside(
        "sys.kernel",
        "/sys/kernel can be listed",
        "Notes, addresses and settings of the kernel and its security modules are below it.",
        |_| listed("/sys/kernel"),
    ),
];

/// A folder of /sys that should not be there.
const fn inside(id: &'static str, title: &'static str, meaning: &'static str, run: fn(&World) -> Finding) -> Probe {
    Probe {
        id,
        title,
        severity: Severity::Medium,
        reference: "sysfs(5)",
        tries: "Lists the folder.",
        safe: "absent, empty or EACCES",
        meaning,
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run,
    }
}

fn listed(folder: &str) -> Finding {
    match files::names(folder) {
        Ok(names) if names.is_empty() => Finding::absent("empty"),
        Ok(names) => Finding::reached(format!("{} names", names.len())),
        Err(errno) => Finding::refused(errno),
    }
}

/// Runs the attempt on every mount of these kinds of file system.
fn each_hierarchy(kinds: &[&str], attempt: impl Fn(&Mount) -> Finding) -> Finding {
    let mounts = match files::mounts() {
        Ok(mounts) => mounts,
        Err(errno) => return Finding::inconclusive(format!("no table of mounts: {}", name_of(errno))),
    };
    let wanted: Vec<&Mount> = mounts.iter().filter(|mount| kinds.contains(&mount.kind.as_str())).collect();
    if wanted.is_empty() {
        return Finding::absent("not mounted");
    }
    Finding::worst(wanted.into_iter().map(|mount| (mount.point.clone(), attempt(mount))))
}

fn leave_group(_: &World) -> Finding {
    let Ok(text) = calls::contents("/proc/self/cgroup", 1 << 16) else {
        return Finding::inconclusive("no /proc/self/cgroup");
    };
    let groups = String::from_utf8_lossy(&text).into_owned();
    let namespace = std::fs::read_link("/proc/self/ns/cgroup").map(|link| link.display().to_string());
    // PROC_CGROUP_INIT_INO, include/linux/proc_ns.h.
    let outermost = namespace.as_deref().ok() == Some("cgroup:[4026531835]");
    each_hierarchy(&["cgroup", "cgroup2"], |mount| {
        let Some(group) = group_in(&groups, mount) else { return Finding::inconclusive("not in its hierarchy") };
        // What the namespace hides is above what the mount shows.
        let below = group.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or(group);
        let above = match Path::new(below).parent() {
            Some(above) => above.to_owned(),
            None if outermost => "/".into(),
            None => return Finding::held("nothing is above its group"),
        };
        let tasks = format!("{}{}/cgroup.procs", mount.point, above.display().to_string().trim_end_matches('/'));
        Finding::of(
            calls::open(&tasks, libc::O_WRONLY, 0)
                .and_then(|file| calls::write(file, b"0"))
                .map(|length| length as i64),
        )
    })
}

/// The path of the group of this process in a mounted hierarchy, from `/proc/self/cgroup`.
fn group_in<'a>(groups: &'a str, mount: &Mount) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let here = match mount.kind.as_str() {
            "cgroup2" => number == "0",
            _ => {
                number != "0"
                    && controllers.split(',').all(|name| mount.super_options.iter().any(|option| option == name))
            }
        };
        here.then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_in_each_hierarchy_is_found() {
        let groups = "9:name=systemd:/init\n4:memory:/a/b\n3:cpu,cpuacct:/c\n0::/d\n";
        let mount = |kind: &str, options: &str| {
            files::mount(&format!("1 0 0:9 / /sys/fs/cgroup/x rw - {kind} cgroup rw,{options}")).expect("whole")
        };
        assert_eq!(group_in(groups, &mount("cgroup", "memory")), Some("/a/b"));
        assert_eq!(group_in(groups, &mount("cgroup", "cpu,cpuacct")), Some("/c"));
        assert_eq!(group_in(groups, &mount("cgroup", "name=systemd")), Some("/init"));
        assert_eq!(group_in(groups, &mount("cgroup", "freezer")), None);
        assert_eq!(group_in(groups, &mount("cgroup2", "nsdelegate")), Some("/d"));
    }
}
