//! What a person, or a program, is told while builds run.

pub mod escapes;
mod plain;

use std::str::FromStr;

pub use plain::Plain;

use crate::build::result::BuildResult;
use crate::build::scheduler::Order;
use crate::derivation::Derivation;
use crate::store_path::{StoreDir, StorePath};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Plain lines.
    Raw,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            _ => Err("there are bar, raw and internal-json".to_owned()),
        }
    }
}

impl LogFormat {
    /// What was asked for, or what suits standard error.
    pub fn choose(asked: Option<Self>) -> Self {
        asked.unwrap_or(Self::Raw)
    }

    /// The reporter of this format.
    pub fn reporter(self, store_dir: &StoreDir) -> Box<dyn Reporter> {
        match self {
            Self::Raw => Box::new(Plain::new(store_dir.clone())),
        }
    }
}

/// Who is told of builds. Several threads tell at once.
pub trait Reporter: Sync {
    /// These builds will be done, unless one fails.
    fn planned(&self, order: &Order);
    /// A build has begun.
    fn started(&self, path: &StorePath, derivation: &Derivation);
    /// A build waits for something; `notice` says for what.
    fn waiting(&self, path: &StorePath, notice: &str);
    /// A builder wrote this, in pieces that end anywhere.
    fn output(&self, path: &StorePath, bytes: &[u8]);
    /// A build has ended.
    fn finished(&self, result: &BuildResult);
    /// Something that a person should know.
    fn warn(&self, line: &str);
}
