//! How a room ended.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::layers::seccomp::Refused;
use crate::seal::Seal;

/// What ended the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// It exited with this status.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
    /// It ran longer than it was allowed to.
    Time,
    /// It wrote nothing for longer than it was allowed to.
    Silence,
    /// It wrote more than it was allowed to.
    Output,
    /// The kernel ended it because the room used more memory than it was allowed to.
    Memory,
}

/// Exit statuses of our own, beside those of the payload. 125 to 127 follow docker(1) and env(1), 124 timeout(1).
pub mod exit_status {
    /// A machine failed before the status of the command in it came.
    pub const MACHINE: i32 = 120;
    /// The room wrote nothing for too long.
    pub const SILENCE: i32 = 121;
    /// The room wrote too much.
    pub const OUTPUT: i32 = 122;
    /// The room used too much memory.
    pub const MEMORY: i32 = 123;
    /// The room ran for too long.
    pub const TIME: i32 = 124;
    /// The room was refused or could not be made; the command never ran.
    pub const NOT_STARTED: i32 = 125;
    /// The command cannot be executed.
    pub const NOT_EXECUTABLE: i32 = 126;
    /// The command is not there.
    pub const NOT_FOUND: i32 = 127;
}

impl End {
    /// The exit status that a command line returns for it.
    pub fn exit_status(self) -> i32 {
        match self {
            Self::Exited(status) => status,
            Self::Signaled(signal) => 128 + signal,
            Self::Time => exit_status::TIME,
            Self::Silence => exit_status::SILENCE,
            Self::Output => exit_status::OUTPUT,
            Self::Memory => exit_status::MEMORY,
        }
    }
}

/// What the room used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// From the first step to the last process's end, in seconds.
    pub wall_seconds: f64,
    /// Processor time outside the kernel, in seconds.
    pub user_seconds: f64,
    /// Processor time in the kernel, in seconds.
    pub system_seconds: f64,
    /// The largest resident set of one process, in bytes.
    pub largest_process_bytes: u64,
    /// The room's peak of memory, in bytes, where a cgroup counted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// The room's peak of processes and threads, where a cgroup counted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_processes: Option<u64>,
    /// Bytes read from disks, where a cgroup counted them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_read_bytes: Option<u64>,
    /// Bytes written to disks, where a cgroup counted them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_written_bytes: Option<u64>,
    /// Bytes of output that passed through the supervisor.
    pub output_bytes: u64,
}

/// How long one part of making the room took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Timing {
    /// Which part.
    pub what: String,
    /// How long.
    pub microseconds: u64,
}

/// How a room ended, and what is known of its life.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What ended it.
    pub end: End,
    /// What it used.
    pub account: Account,
    /// What its system call filter refused, most frequent first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
    /// Refusals beyond those that are told apart.
    #[serde(skip_serializing_if = "is_zero")]
    pub refused_others: u64,
    /// What was proved of it before the payload ran.
    pub seal: Seal,
    /// Where the time of making it went, when asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timings: Vec<Timing>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A wait status in words.
pub(crate) fn status_in_words(status: i32) -> String {
    if libc::WIFEXITED(status) {
        format!("exit status {}", libc::WEXITSTATUS(status))
    } else {
        format!("signal {}", libc::WTERMSIG(status))
    }
}

/// Seconds of a timeval.
pub(crate) fn seconds(time: libc::timeval) -> f64 {
    Duration::from_secs(time.tv_sec as u64).as_secs_f64() + time.tv_usec as f64 / 1e6
}
