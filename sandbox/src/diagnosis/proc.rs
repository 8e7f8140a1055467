//! Whether a room can be given a procfs of its own, and the weaker tier where it cannot.

use super::trial::{self, Attempt};
use super::{Diagnosis, Facts, Group, Verdict};
use crate::layers::Layer;

const UNMASK: &str = "run anchorhold outside the container, or give the container an unmasked /proc (podman: --security-opt unmask=ALL; \
                      docker: --security-opt systempaths=unconfined; Kubernetes: securityContext.procMount: Unmasked)";

/// What to do about a masked `/proc`: the tier is advice only where it was made and not merely hoped for.
pub fn way_out_of_a_mask(outer_proc: &Attempt) -> String {
    match outer_proc {
        Attempt::Made { .. } => {
            format!("{UNMASK}; or ask for the weaker tier: --proc outer, which was tried and works here")
        }
        Attempt::Failed(_) => format!("{UNMASK}; the weaker tier, --proc outer, was tried and fails here too"),
    }
}

/// Judges both.
pub fn judge(facts: &Facts, outer_proc: &Attempt) -> Vec<Diagnosis> {
    let row = |verdict, found: String| Diagnosis::new(Group::Host, "procfs", Layer::Proc, verdict, found);
    let masks = &facts.proc_masks;
    let whole = if masks.is_empty() {
        row(Verdict::Works, "the visible /proc is whole, so a room may have a new one".into())
    } else {
        let more = if masks.len() > 3 { format!(" and {} more", masks.len() - 3) } else { String::new() };
        let named = masks.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
        let found =
            format!("the visible /proc is masked on {named}{more}; the kernel refuses a new procfs there (EPERM)");
        row(Verdict::Missing, found).fix(way_out_of_a_mask(outer_proc))
    };
    let gives = "--proc outer: the weaker tier for containers that mask /proc, never taken without being asked for";
    let needed = !masks.is_empty();
    let tier = trial::option("outer-proc", Layer::Proc, outer_proc, gives, String::new);
    // The way out of a masked /proc is not the tier that is asked for already.
    let tier = match tier.verdict {
        Verdict::Missing if needed => tier.fix(UNMASK),
        Verdict::Missing => tier.fix("none is needed: /proc is whole here, and a room has one of its own"),
        _ => tier,
    };
    // What is less about this tier is its point, not something to mend.
    let tier = match (tier.verdict, outer_proc) {
        (Verdict::Weaker, Attempt::Made { .. }) => Diagnosis { verdict: Verdict::Works, fix: None, ..tier },
        _ => tier,
    };
    vec![whole, tier]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::trial::tests::{failed, made};

    #[test]
    fn a_masked_proc_is_said_with_its_tier() {
        let mut facts = Facts::healthy();
        facts.proc_masks = ["keys", "kcore", "asound", "scsi"].map(|name| format!("/proc/{name}")).to_vec();
        let rows = judge(&facts, &made());
        assert_eq!((rows[0].verdict, rows[1].verdict), (Verdict::Missing, Verdict::Works));
        assert!(rows[0].found.contains("/proc/kcore"));
        assert!(rows[1].found.contains("--proc outer") && rows[1].found.contains("weaker tier"));
        assert!(rows[0].fix.as_ref().is_some_and(|fix| fix.contains("works here")));
        assert!(way_out_of_a_mask(&failed(Layer::Proc)).contains("fails here"));
        let refused = judge(&facts, &failed(Layer::Proc)).remove(1);
        assert_eq!(refused.verdict, Verdict::Missing);
        // The tier is no way out of itself.
        assert!(refused.fix.is_some_and(|fix| !fix.contains("outer")));
    }
}
