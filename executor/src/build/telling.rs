//! Tells a reporter of the builds of one call, which it knows by numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use super::result::{BuildResult, Status};
use super::scheduler::Order;
use crate::progress::{Build, BuildId, Ending, Event, Failure, Level, Reporter};
use crate::store_path::{StoreDir, StorePath};

/// The builds of one call, and who is told of them.
pub struct Telling<'a> {
    reporter: &'a dyn Reporter,
    builds: BTreeMap<StorePath, Build>,
}

impl<'a> Telling<'a> {
    /// Tells `reporter` what is going to be built.
    pub fn of(
        order: &Order,
        outputs: impl Fn(&StorePath) -> Vec<String>,
        dir: &StoreDir,
        reporter: &'a dyn Reporter,
    ) -> Self {
        let ids: BTreeMap<&StorePath, BuildId> =
            order.iter().enumerate().map(|(number, (path, _))| (path, BuildId(number as u64))).collect();
        let builds: BTreeMap<StorePath, Build> = order
            .iter()
            .map(|(path, needs)| {
                let build = Build {
                    id: ids[path],
                    drv_path: dir.display(path),
                    name: path.name().strip_suffix(".drv").unwrap_or(path.name()).to_owned(),
                    outputs: outputs(path),
                    needs: needs.iter().filter_map(|need| ids.get(need).copied()).collect(),
                };
                (path.clone(), build)
            })
            .collect();
        let all: Vec<Build> = builds.values().cloned().collect();
        if !all.is_empty() {
            reporter.report(Event::GraphKnown { builds: &all });
        }
        Self { reporter, builds }
    }

    /// A builder is about to be started.
    pub fn started(&self, path: &StorePath) {
        if let Some(build) = self.builds.get(path) {
            self.reporter.report(Event::Started(build));
        }
    }

    /// A builder wrote this.
    pub fn log(&self, path: &StorePath, bytes: &[u8]) {
        if let Some(build) = self.builds.get(path) {
            self.reporter.report(Event::Log { id: build.id, bytes });
        }
    }

    /// A build waits for somebody else.
    pub fn waiting(&self, locked: &str) {
        self.reporter.report(Event::WaitingForLock { path: locked });
    }

    /// A build has ended.
    pub fn finished(&self, result: &BuildResult, took: Duration) {
        let Some(build) = self.builds.get(&result.derivation) else { return };
        let ending = match result.status {
            status if status.is_success() => Ending::Done,
            Status::DependencyFailed => Ending::DependencyFailed,
            status => Ending::Failed(Failure {
                class: status.name().to_owned(),
                reason: result.message.clone(),
                log_tail: result.last_lines.clone(),
                advice: result.advice.clone(),
            }),
        };
        self.reporter.report(Event::Finished { id: build.id, ending: &ending, duration: took });
    }

    /// Something that a person may want to read.
    pub fn notice(&self, text: &str) {
        self.reporter.report(Event::Message { level: Level::Notice, text });
    }

    /// Something that a person should know.
    pub fn warn(&self, text: &str) {
        self.reporter.report(Event::Message { level: Level::Warn, text });
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.reporter.report(Event::AllDone);
    }
}
