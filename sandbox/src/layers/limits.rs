//! Limits of each process (setrlimit(2)). Time, silence and output are the supervisor's, the whole room's use is the layer `cgroup`'s.

use std::fmt;

use serde::Serialize;

use super::Layer;
use crate::error::Refusal;
use crate::host::Host;
use crate::plan::{Draft, Stage};
use crate::room::{Limits, Room};
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site};

/// A resource of setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// Address space in bytes.
    AddressSpace,
    /// Core file in bytes.
    Core,
    /// Processor time in seconds.
    Cpu,
    /// Largest file in bytes.
    FileSize,
    /// Open files.
    OpenFiles,
    /// Processes and threads of the room's user in the room's user namespace.
    Processes,
}

impl Resource {
    fn number(self) -> u32 {
        match self {
            Self::AddressSpace => libc::RLIMIT_AS,
            Self::Core => libc::RLIMIT_CORE,
            Self::Cpu => libc::RLIMIT_CPU,
            Self::FileSize => libc::RLIMIT_FSIZE,
            Self::OpenFiles => libc::RLIMIT_NOFILE,
            Self::Processes => libc::RLIMIT_NPROC,
        }
    }

    /// Its line in `/proc/<pid>/limits`.
    fn line(self) -> &'static str {
        match self {
            Self::AddressSpace => "Max address space",
            Self::Core => "Max core file size",
            Self::Cpu => "Max cpu time",
            Self::FileSize => "Max file size",
            Self::OpenFiles => "Max open files",
            Self::Processes => "Max processes",
        }
    }
}

/// The steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// setrlimit(2), soft and hard alike.
    Set {
        /// What is limited.
        resource: Resource,
        /// In the resource's unit.
        most: u64,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Set { resource, most } = self;
        write!(f, "limit {} to {most}", resource.line().trim_start_matches("Max "))
    }
}

fn wanted(limits: &Limits, memory: u64) -> Vec<(Resource, u64)> {
    let mut wanted = vec![
        (Resource::Core, 0),
        // Exact where the kernel counts per user namespace (5.14), where there is a cgroup it is only the outer of two bounds.
        (Resource::Processes, limits.pids.unwrap_or(Limits::DEFAULT_PIDS)),
    ];
    wanted.extend(limits.address_space.map(|size| (Resource::AddressSpace, size.bytes(memory))));
    wanted.extend(limits.process_time.map(|time| (Resource::Cpu, time.0.div_ceil(1000))));
    wanted.extend(limits.file_size.map(|size| (Resource::FileSize, size.bytes(memory))));
    wanted.extend(limits.open_files.map(|most| (Resource::OpenFiles, most)));
    wanted
}

pub(super) fn plan(room: &Room, host: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    let limits = &room.limits;
    let asked_of_processes = limits.open_files.is_some()
        || limits.file_size.is_some()
        || limits.address_space.is_some()
        || limits.process_time.is_some();
    if !room.has(Layer::Limits) {
        if asked_of_processes {
            return Err(Refusal::new(
                Layer::Limits,
                "limits in a room without the layer limits",
                "these exclude each other",
                "leave out one of them",
            ));
        }
        return Ok(());
    }
    if limits.pids == Some(0) {
        return Err(Refusal::new(Layer::Limits, "pids = 0", "the command itself is a process", "allow at least 1"));
    }
    if let Some(most) = limits.open_files {
        if most < 3 {
            return Err(Refusal::new(
                Layer::Limits,
                format!("open-files = {most}"),
                "three descriptors are open already",
                "allow at least 3",
            ));
        }
        if host.open_files_hard.is_some_and(|hard| most > hard) {
            return Err(Refusal::new(
                Layer::Limits,
                format!("open-files = {most}"),
                format!("the hard limit here is {}", host.open_files_hard.unwrap_or_default()),
                "ask for less, or raise the limit of the process that starts anchorhold",
            ));
        }
    }
    for (resource, most) in wanted(limits, host.memory) {
        draft.add(Stage::Limits, Action::Set { resource, most });
    }
    Ok(())
}

pub(super) fn apply(Action::Set { resource, most }: &Action, site: &mut Site<'_>) -> Outcome {
    // A hard limit cannot be raised: where the caller's own is lower already, that is the stricter one and stays.
    let (_, hard) = crate::sys::process::get_rlimit(resource.number())?;
    let most = hard.map_or(*most, |hard| hard.min(*most));
    site.sys.set_rlimit(resource.number(), Some(most), Some(most))?;
    Ok(())
}

pub(super) fn verify(room: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    let text = match view.limits() {
        Ok(text) => text,
        Err(error) => {
            finding.wrong(format!("/proc/PID/limits: {error}"));
            return finding;
        }
    };
    for (resource, most) in wanted(&room.limits, view.memory) {
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix(resource.line()))
            .and_then(|rest| rest.split_ascii_whitespace().nth(1));
        match found.and_then(|hard| hard.parse::<u64>().ok()) {
            Some(hard) if hard <= most => finding.fact(resource.line().trim_start_matches("Max "), hard.to_string()),
            _ => finding.wrong(format!("{} is {}, not at most {most}", resource.line(), found.unwrap_or("absent"))),
        }
    }
    finding
}
