//! For pipes and files: lines, each whole.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use super::{Reporter, escapes};
use crate::build::result::BuildResult;
use crate::build::scheduler::Order;
use crate::derivation::Derivation;
use crate::store_path::{StoreDir, StorePath};

/// The longest line that is held back until it ends.
const LONGEST_LINE: usize = 64 << 10;

/// Writes plain lines to standard error: `name> what the builder said`.
#[derive(Debug, Default)]
pub struct Plain {
    store_dir: StoreDir,
    open: Mutex<HashMap<StorePath, Vec<u8>>>,
}

impl Plain {
    /// For a store of this directory.
    pub fn new(store_dir: StoreDir) -> Self {
        Self { store_dir, open: Mutex::default() }
    }

    fn say(line: &str) {
        // One write, so that lines of several builds stay whole. Nobody is left to be told when it fails.
        let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
    }

    fn log(path: &StorePath, line: &[u8]) {
        let name = path.name().strip_suffix(".drv").unwrap_or(path.name());
        Self::say(&format!("{name}> {}", escapes::plain(line)));
    }
}

impl Reporter for Plain {
    fn planned(&self, order: &Order) {
        match order.len() {
            0 => {}
            1 => Self::say("this derivation will be built:"),
            many => Self::say(&format!("these {many} derivations will be built:")),
        }
        for (path, _) in order.iter() {
            Self::say(&format!("  {}", self.store_dir.display(path)));
        }
    }

    fn started(&self, path: &StorePath, _: &Derivation) {
        Self::say(&format!("building '{}'...", self.store_dir.display(path)));
    }

    fn waiting(&self, _: &StorePath, notice: &str) {
        Self::say(notice);
    }

    fn output(&self, path: &StorePath, bytes: &[u8]) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let line = open.entry(path.clone()).or_default();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(piece.strip_suffix(b"\n").unwrap_or(piece));
            if piece.ends_with(b"\n") || line.len() > LONGEST_LINE {
                Self::log(path, line);
                line.clear();
            }
        }
    }

    fn finished(&self, result: &BuildResult) {
        let rest = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&result.derivation);
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            Self::log(&result.derivation, &rest);
        }
        if !result.status.is_success() {
            Self::say(&format!("error: {}", result.message));
        }
    }

    fn warn(&self, line: &str) {
        Self::say(&format!("warning: {line}"));
    }
}
