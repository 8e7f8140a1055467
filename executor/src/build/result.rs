//! How a build ended, in Nix's own classes and ours.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use anchorhold_sandbox::layers::seccomp::Refused;
use anchorhold_sandbox::outcome::Account;
use serde::{Deserialize, Serialize};

use crate::store_path::StorePath;

/// The class of a result. Source: `src/libstore/include/nix/store/build-result.hh`; the numbers are those of the protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// The builder ran, and its outputs are registered.
    Built,
    /// All outputs were there.
    AlreadyValid,
    /// The builder failed, and would again.
    PermanentFailure,
    /// The derivation is wrong, or asks for what this machine does not give.
    InputRejected,
    /// An output is missing, or is not what it may be.
    OutputRejected,
    /// The builder failed, but need not fail the next time: it depends on the network, or the disk was full.
    TransientFailure,
    /// It took too long, or was silent for too long.
    TimedOut,
    /// Something else than the builder failed: the room could not be made, a hook failed.
    MiscFailure,
    /// Something that it needs failed.
    DependencyFailed,
    /// It wrote more than it was allowed to.
    LogLimitExceeded,
    /// A second build gave something else.
    NotDeterministic,
    /// The output is not the one that was declared. On the wire it is an `OutputRejected`.
    HashMismatch,
}

impl Status {
    /// Whether the outputs are there.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Built | Self::AlreadyValid)
    }

    /// The number in the worker and serve protocols.
    pub fn wire(self) -> u64 {
        match self {
            Self::Built => 0,
            Self::AlreadyValid => 2,
            Self::PermanentFailure => 3,
            Self::InputRejected => 4,
            Self::OutputRejected | Self::HashMismatch => 5,
            Self::TransientFailure => 6,
            Self::TimedOut => 8,
            Self::MiscFailure => 9,
            Self::DependencyFailed => 10,
            Self::LogLimitExceeded => 11,
            Self::NotDeterministic => 12,
        }
    }

    /// The name as Nix spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Built => "Built",
            Self::AlreadyValid => "AlreadyValid",
            Self::PermanentFailure => "PermanentFailure",
            Self::InputRejected => "InputRejected",
            Self::OutputRejected => "OutputRejected",
            Self::TransientFailure => "TransientFailure",
            Self::TimedOut => "TimedOut",
            Self::MiscFailure => "MiscFailure",
            Self::DependencyFailed => "DependencyFailed",
            Self::LogLimitExceeded => "LogLimitExceeded",
            Self::NotDeterministic => "NotDeterministic",
            Self::HashMismatch => "HashMismatch",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// The exit code of a command whose builds ended like this: Nix's 96 plus a bit for each class that it tells apart, and 1
/// for failures that have none.
///
/// Source: `doc/manual/source/command-ref/status-build-failure.md`, `Worker::failingExitStatus`.
pub fn exit_code(results: impl IntoIterator<Item = Status>) -> u8 {
    let (mut bits, mut failed) = (0, false);
    for status in results {
        failed |= !status.is_success();
        bits |= match status {
            Status::PermanentFailure | Status::InputRejected => 4,
            // A time-out is a failed build as well: 101.
            Status::TimedOut => 1 | 4,
            Status::HashMismatch => 2 | 4,
            Status::NotDeterministic => 8,
            _ => 0,
        };
    }
    match (failed, bits) {
        (false, _) => 0,
        (true, 0) => 1,
        // A mismatch alone is 102, without the bit of a failed build: it joins the others only.
        (true, 6) => 96 + 6,
        (true, bits) => 96 + bits,
    }
}

/// The result of one derivation.
#[derive(Debug, Clone)]
pub struct BuildResult {
    /// The derivation.
    pub derivation: StorePath,
    /// The class.
    pub status: Status,
    /// What happened, to be read after "builder for '…'"; empty for a success.
    pub message: String,
    /// The outputs that are valid now.
    pub outputs: BTreeMap<String, StorePath>,
    /// When the builder was started and when its outputs were there.
    pub times: Option<(SystemTime, Duration)>,
    /// What the room used, where there was one.
    pub account: Option<Account>,
    /// What the room refused.
    pub refused: Vec<Refused>,
    /// What was proved of the room.
    pub seal: Option<serde_json::Value>,
    /// What to know and to do about a failure, a line each.
    pub advice: Vec<String>,
    /// The last lines that the builder wrote, for a failure.
    pub last_lines: Vec<Vec<u8>>,
    /// Where a failed build was kept.
    pub kept: Option<std::path::PathBuf>,
}

impl BuildResult {
    /// A result with nothing but its class and a message.
    pub fn new(derivation: StorePath, status: Status, message: impl Into<String>) -> Self {
        Self {
            derivation,
            status,
            message: message.into(),
            outputs: BTreeMap::new(),
            times: None,
            account: None,
            refused: Vec::new(),
            seal: None,
            advice: Vec::new(),
            last_lines: Vec::new(),
            kept: None,
        }
    }

    /// As a line of `--json`.
    pub fn to_json(&self, store_dir: &crate::store_path::StoreDir) -> serde_json::Value {
        let outputs: BTreeMap<_, _> =
            self.outputs.iter().map(|(name, path)| (name.clone(), store_dir.display(path))).collect();
        let seconds =
            |time: &SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        serde_json::json!({
            "drvPath": store_dir.display(&self.derivation),
            "status": self.status.name(),
            "success": self.status.is_success(),
            "errorMsg": self.message,
            "advice": self.advice,
            "outputs": outputs,
            "startTime": self.times.as_ref().map(|(start, _)| seconds(start)),
            "stopTime": self.times.as_ref().map(|(start, took)| seconds(&(*start + *took))),
            "account": self.account,
            "refused": self.refused,
            "seal": self.seal,
            "kept": self.kept,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_nix() {
        for (results, code) in [
            (&[Status::Built, Status::AlreadyValid][..], 0),
            (&[Status::PermanentFailure], 100),
            (&[Status::InputRejected], 100),
            (&[Status::TimedOut], 101),
            (&[Status::HashMismatch], 102),
            (&[Status::NotDeterministic], 104),
            (&[Status::PermanentFailure, Status::HashMismatch, Status::NotDeterministic], 110),
            (&[Status::OutputRejected], 1),
            (&[Status::TransientFailure, Status::DependencyFailed], 1),
            (&[Status::DependencyFailed, Status::PermanentFailure], 100),
        ] {
            assert_eq!(exit_code(results.iter().copied()), code, "{results:?}");
        }
    }
}
