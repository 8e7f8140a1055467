//! Facts that tell hosts, boots and runs apart, and what differs between two collections of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anchorhold_probe::vocabulary::{Row, Severity};
use serde::{Deserialize, Serialize};

use crate::report::Report;

/// The facts of each sandbox of an audit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The kernel's release.
    pub kernel: String,
    /// Sandbox, fact, what was found.
    pub facts: BTreeMap<String, BTreeMap<String, String>>,
}

/// Facts that differ between runs, boots or hosts in our own room, and why they are left so.
const EXPLAINED: &[(&str, &str)] = &[
    ("det.kernel", "builds choose code by the kernel's release; hiding it would break them"),
    ("det.cpus", "make -j and test suites count processors"),
    ("det.cpuinfo", "programs choose instructions by it, and CPUID tells it in any case"),
    ("det.memory", "/proc/meminfo: builds choose how much to do at once by it"),
    ("det.load", "/proc/stat and the like: a side channel that is not promised to be closed"),
    ("det.uptime", "clocks tell it to every program; --time-namespace starts them anew"),
    ("det.btime", "clocks tell it to every program; --time-namespace starts them anew"),
    ("det.clock", "clocks run"),
    ("det.statfs", "free space is the host's"),
    ("det.inode", "numbers of inodes are the file system's"),
    ("det.auxiliary", "processor features and random bytes that the kernel gives every program"),
    ("proc.mountinfo.src", "where on the host lies what is shown: whoever asked for the room chose that"),
    ("pos.speculation", "mitigations are the kernel's"),
];

impl Facts {
    /// Those of a report.
    pub fn of(report: &Report) -> Self {
        let mut facts: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for run in &report.runs {
            for probe in report.catalogue.0.iter().filter(|probe| probe.severity == Severity::Fact) {
                if let Some(row) = run.battery.row(&probe.id) {
                    facts.entry(run.title()).or_default().insert(probe.id.clone(), Row::answer(row));
                }
            }
        }
        Self { kernel: report.kernel.clone(), facts }
    }

    /// As a file for [`compare`].
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain data has a JSON form");
        text.push('\n');
        text
    }
}

/// What differs between two collections: text for a person, and how many differences nothing explains.
pub fn compare(first: &Facts, second: &Facts) -> (String, usize) {
    let mut text = String::new();
    let mut unexplained = 0;
    let sandboxes: BTreeSet<&String> = first.facts.keys().chain(second.facts.keys()).collect();
    for sandbox in sandboxes {
        let (Some(one), Some(other)) = (first.facts.get(sandbox), second.facts.get(sandbox)) else {
            let _ = writeln!(text, "{sandbox}: only in one of the two");
            continue;
        };
        let ids: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
        let equal = ids.iter().filter(|id| one.get(**id) == other.get(**id)).count();
        let _ = writeln!(text, "{sandbox}: {equal} facts are equal, {} differ", ids.len() - equal);
        for id in ids.into_iter().filter(|id| one.get(*id) != other.get(*id)) {
            let why = EXPLAINED.iter().find(|(known, _)| known == id).map(|(_, why)| *why);
            unexplained += usize::from(why.is_none());
            let _ = writeln!(text, "  {id}: {}", why.unwrap_or("NOT EXPLAINED"));
            for side in [one, other] {
                let _ = writeln!(text, "      {}", side.get(id).map_or("(not collected)", String::as_str));
            }
        }
    }
    (text, unexplained)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(value: &str, boot: &str) -> Facts {
        let row =
            BTreeMap::from([("det.kernel".to_owned(), value.to_owned()), ("det.boot_id".to_owned(), boot.to_owned())]);
        Facts { kernel: String::new(), facts: BTreeMap::from([("room".to_owned(), row)]) }
    }

    #[test]
    fn only_differences_without_a_reason_count() {
        assert_eq!(compare(&facts("6.1", "a"), &facts("6.1", "a")).1, 0);
        let (text, unexplained) = compare(&facts("6.1", "a"), &facts("6.2", "b"));
        assert_eq!(unexplained, 1, "{text}");
        assert!(text.contains("det.boot_id: NOT EXPLAINED"), "{text}");
    }
}
