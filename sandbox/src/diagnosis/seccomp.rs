//! The filter of system calls, and its listener, by which refusals are recorded.

use nix::errno::Errno;

use super::probe::say;
use super::{Diagnosis, Facts, Group, Verdict};
use crate::layers::Layer;

/// Judges both.
pub fn judge(facts: &Facts) -> Vec<Diagnosis> {
    vec![filter(facts), listener(facts)]
}

fn row(aspect: &'static str, verdict: Verdict, found: impl Into<String>) -> Diagnosis {
    Diagnosis::new(Group::Host, aspect, Layer::Seccomp, verdict, found)
}

fn filter(facts: &Facts) -> Diagnosis {
    match facts.filters {
        Ok(()) => row("seccomp-filter", Verdict::Works, "seccomp(2) takes filters"),
        Err(errno) => row("seccomp-filter", Verdict::Missing, format!("seccomp(2) answers {}", say(errno)))
            .fix("use Linux 4.14 or newer with CONFIG_SECCOMP_FILTER=y, or let the container's filter pass seccomp(2)"),
    }
}

fn listener(facts: &Facts) -> Diagnosis {
    let aspect = "seccomp-listener";
    let weaker = |found: String, fix: &str| row(aspect, Verdict::Weaker, found).fix(fix);
    match facts.answers.listener {
        Ok(()) => {
            row(aspect, Verdict::Works, "a filter with a listener was made: refused system calls can be recorded")
        }
        Err(Errno::EBUSY) => weaker(
            "a filter around us has the one listener that a process may have (EBUSY): refusals cannot be recorded"
                .into(),
            "start anchorhold outside of what listens (systemd-nspawn, LXD and some container engines do)",
        ),
        Err(errno) => weaker(
            format!("seccomp(2) answers {} to a filter with a listener: refusals cannot be recorded", say(errno)),
            "use Linux 5.0 or newer, or let the container's filter pass seccomp(2)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_is_taken_is_told_from_one_that_is_unknown() {
        let with = |errno| {
            let mut facts = Facts::healthy();
            facts.answers.listener = Err(errno);
            listener(&facts)
        };
        assert!(with(Errno::EBUSY).found.contains("around us"));
        let old = with(Errno::EINVAL);
        assert_eq!(old.verdict, Verdict::Weaker);
        assert!(old.fix.unwrap().contains("Linux 5.0"));
    }

    #[test]
    fn a_kernel_without_filters_is_missing_a_layer() {
        assert_eq!(filter(&Facts { filters: Err(Errno::EINVAL), ..Facts::healthy() }).verdict, Verdict::Missing);
    }
}
