//! All probes in their order, one line of JSON for each.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anchorhold_probe::vocabulary::{End, Head, Row};

use crate::arguments::Run;
use crate::probe::{Order, Probe};
use crate::{calls, child, probes};

/// Every probe, in the order in which they run: those that change their surroundings come last.
pub fn catalogue() -> Vec<&'static Probe> {
    let all = || probes::FILES.iter().copied().flatten();
    all().filter(|probe| probe.order == Order::Any).chain(all().filter(|probe| probe.order == Order::Last)).collect()
}

/// Prints what there is.
pub fn list() -> ExitCode {
    for probe in catalogue() {
        println!("{}", serde_json::to_string(probe).expect("plain data has a JSON form"));
    }
    ExitCode::SUCCESS
}

/// Runs what was asked for. The status is 0 whatever was found: the verdicts are in the lines.
pub fn run(run: &Run) -> ExitCode {
    let mut copy = match run.output.as_ref().map(File::create).transpose() {
        Ok(copy) => copy,
        Err(error) => {
            eprintln!("anchorhold-probe: creating {}: {error}", run.output.as_deref().unwrap_or("".as_ref()).display());
            return ExitCode::from(2);
        }
    };
    let mut say = |line: String| {
        // Nobody may be reading any more; the copy is then what counts.
        let _ = writeln!(std::io::stdout(), "{line}");
        if let Some(copy) = &mut copy {
            let _ = writeln!(copy, "{line}");
        }
    };
    let chosen: Vec<&Probe> = catalogue().into_iter().filter(|probe| run.wants(probe.id)).collect();
    let (kernel, machine) = calls::uname();
    let head = Head {
        battery: env!("CARGO_PKG_VERSION").to_owned(),
        kernel,
        machine,
        uid: calls::geteuid(),
        gid: calls::getegid(),
        probes: chosen.len(),
    };
    say(serde_json::to_string(&head).expect("plain data has a JSON form"));
    let mut verdicts: BTreeMap<String, usize> = BTreeMap::new();
    for probe in &chosen {
        let started = Instant::now();
        let finding = child::attempt(probe, &run.world);
        *verdicts.entry(format!("{:?}", finding.verdict).to_lowercase()).or_default() += 1;
        let milliseconds = started.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        let row = Row { id: probe.id.to_owned(), finding, milliseconds };
        say(serde_json::to_string(&row).expect("plain data has a JSON form"));
    }
    say(serde_json::to_string(&End { end: chosen.len(), verdicts }).expect("plain data has a JSON form"));
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::probe::Severity;

    #[test]
    fn ids_are_unique_and_every_attempt_has_a_control() {
        let mut seen = HashSet::new();
        for probe in catalogue() {
            assert!(seen.insert(probe.id), "{} is there twice", probe.id);
            assert!(
                probe.severity == Severity::Fact || !probe.controls.is_empty(),
                "{} has no weakening under which it must reach",
                probe.id
            );
            assert!(!probe.title.is_empty() && !probe.tries.is_empty() && !probe.safe.is_empty(), "{}", probe.id);
            assert!(probe.layer() != probe.id, "{} has no layer before a dot", probe.id);
        }
        assert!(!seen.is_empty());
    }
}
