//! Controls that did not fire: a probe that nothing makes reach proves nothing, so each needs a reason why that is so here.

use std::fs;
use std::path::Path;

use anchorhold_probe::verdict::Verdict;
use anchorhold_probe::vocabulary::{Control, Severity};
use serde::{Deserialize, Serialize};

use crate::report::Report;
use crate::{user, verdicts};

/// A probe that did not reach under any weakening of a control that it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silent {
    /// The probe.
    pub probe: String,
    /// The control.
    pub control: Control,
    /// Why it cannot fire on this kernel; without a reason the control or the probe is broken.
    pub reason: Option<String>,
}

/// Those of a report whose controls have run. With `every`, each control of a probe must fire, else one is enough.
pub fn silent(report: &Report, every: bool) -> Vec<Silent> {
    let counted = report.catalogue.0.iter().filter(|probe| probe.severity != Severity::Fact && probe.program.is_none());
    let mut found = Vec::new();
    for probe in counted {
        if !every && verdicts::proof(report, probe).is_some() {
            continue;
        }
        for control in &probe.controls {
            let mut runs = report.controls.iter().filter(|run| run.control == *control);
            if runs.any(|run| run.fired.contains(&probe.id)) {
                continue;
            }
            let reason = reason(report, &probe.id, *control);
            let reason = reason.or_else(|| if every { None } else { not_installed(report, *control) });
            found.push(Silent { probe: probe.id.clone(), control: *control, reason });
        }
    }
    found
}

/// What the control needs and this machine has not got. Who asks for every control asks for that as well.
fn not_installed(report: &Report, control: Control) -> Option<String> {
    let mut problems =
        report.controls.iter().filter(|run| run.control == control).filter_map(|run| run.problem.as_ref());
    problems.find(|problem| problem.starts_with("not installed")).cloned()
}

/// Why this control cannot make this probe reach, here.
fn reason(report: &Report, id: &str, control: Control) -> Option<String> {
    if !user::is_root() && takes_root(control) {
        return Some("it takes root".into());
    }
    let mut rows = report.runs.iter().filter(|run| run.baseline).filter_map(|run| run.battery.row(id)).peekable();
    if rows.peek().is_some() && rows.all(|row| row.finding.verdict == Verdict::Absent) {
        return Some("this kernel does not have it".into());
    }
    let cannot = CONDITIONS.iter().filter(|(known, of, _, _)| *known == id && of.is_none_or(|of| of == control));
    cannot.filter(|(_, _, holds, _)| holds()).map(|(_, _, _, reason)| (*reason).to_owned()).next()
}

/// Whether only root can make it.
fn takes_root(control: Control) -> bool {
    matches!(
        control,
        Control::HostRoot
            | Control::KernelRoot
            | Control::Btrfs
            | Control::LinkLocal
            | Control::NameServer
            | Control::Daemon
            | Control::SharedMounts
    )
}

/// Probe, control if it is not any, the condition under which it cannot fire, and that condition in words.
type Condition = (&'static str, Option<Control>, fn() -> bool, &'static str);

const CONDITIONS: &[Condition] = &[
    ("attr.subvolume", None, without_btrfs, "this host cannot make a file system of btrfs"),
    ("attr.subvolume.int80", None, without_btrfs, "this host cannot make a file system of btrfs"),
    ("fs.oldroot.cwd", Some(Control::Mounts), is_ordinary, "chroot(2) takes root"),
    ("fs.chroot.breakout", Some(Control::Mounts), is_ordinary, "chroot(2) takes root"),
    ("fs.etc.shadow", Some(Control::Mounts), is_ordinary, "it takes root to read it"),
    ("fs.builddir.outside", None, is_ordinary, "it takes root to be somebody else"),
    ("proc.init.exe.write", None, is_ordinary, "the program of a first process is root's"),
    ("res.fds", None, few_descriptors, "this host's hard limit on descriptors is lower than what the probe opens"),
];

fn is_ordinary() -> bool {
    !user::is_root()
}

fn without_btrfs() -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has_maker =
        ["/sbin", "/usr/sbin", "/usr/bin"].iter().any(|folder| Path::new(folder).join("mkfs.btrfs").exists());
    !known.lines().any(|line| line.trim() == "btrfs") || !has_maker || !Path::new("/dev/loop-control").exists()
}

/// Whether the limit is low and cannot be raised.
fn few_descriptors() -> bool {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let raisable = {
        const RESOURCE: u64 = 1 << 24;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
        effective & RESOURCE != 0
    };
    limit.is_some_and(|limit| limit < 70_000) && !raisable
}
