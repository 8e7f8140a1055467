//! What the layers root, keyring and limits need of the kernel itself.

use nix::errno::Errno;

use super::namespaces::container_fix;
use super::probe::say;
use super::{Diagnosis, Facts, Group, Verdict};
use crate::layers::Layer;

/// Judges the three.
pub fn judge(facts: &Facts) -> Vec<Diagnosis> {
    vec![mounts(facts), keyring(facts), processes(facts)]
}

fn mounts(facts: &Facts) -> Diagnosis {
    let row = |verdict, found: String| Diagnosis::new(Group::Host, "mount-calls", Layer::Root, verdict, found);
    if facts.host.mount_setattr {
        return row(Verdict::Works, "mount_setattr(2) is there (Linux 5.12)".into());
    }
    let fix = if facts.around.filters > 0 {
        container_fix(facts)
    } else {
        "use Linux 5.12 or newer: before, a tree could not be made read-only before anybody saw it".into()
    };
    let answer = format!("mount_setattr(2) answers {}, the kernel is {}", say(Errno::ENOSYS), facts.host.release);
    row(Verdict::Missing, answer).fix(fix)
}

fn keyring(facts: &Facts) -> Diagnosis {
    let row = |verdict, found: String| Diagnosis::new(Group::Host, "keyrings", Layer::Keyring, verdict, found);
    match facts.keyring {
        Ok(()) => row(Verdict::Works, "keyctl(2) answers".into()),
        Err(Errno::ENOSYS) => row(
            Verdict::Info,
            "keyctl(2) answers ENOSYS: no keyrings here, so none that a room could be given or leave keys in".into(),
        ),
        Err(errno) => row(Verdict::Missing, format!("keyctl(2) answers {}", say(errno)))
            .fix(format!("{}; or leave the layer out by name: --without keyring", container_fix(facts))),
    }
}

fn processes(facts: &Facts) -> Diagnosis {
    let row = |verdict, found: String| Diagnosis::new(Group::Host, "process-limit", Layer::Limits, verdict, found);
    if facts.host.counts_processes_per_namespace {
        return row(Verdict::Works, "RLIMIT_NPROC is counted in each room (Linux 5.14)".into());
    }
    row(
        Verdict::Weaker,
        format!(
            "Linux {} counts RLIMIT_NPROC over all processes of a user, inside rooms and outside (each room since 5.14)",
            facts.host.release
        ),
    )
    .fix("use Linux 5.14 or newer, or have the controller pids (see cgroup-pids)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_before_5_12_cannot_hold_a_room() {
        let mut facts = Facts::healthy();
        facts.host.mount_setattr = false;
        facts.host.release = "5.10.0".into();
        let row = mounts(&facts);
        assert_eq!(row.verdict, Verdict::Missing);
        assert!(row.found.contains("ENOSYS") && row.found.contains("5.10.0"), "{}", row.found);
        assert!(row.fix.unwrap().contains("5.12"));
        // The same answer may be a filter's.
        facts.around.filters = 1;
        assert!(mounts(&facts).fix.unwrap().contains("filter"));
    }

    #[test]
    fn a_kernel_before_5_14_counts_processes_of_all_rooms_together() {
        let mut facts = Facts::healthy();
        facts.host.counts_processes_per_namespace = false;
        assert_eq!(processes(&facts).verdict, Verdict::Weaker);
    }

    #[test]
    fn a_kernel_without_keyrings_has_none_to_leak_and_a_filter_hides_them() {
        assert_eq!(keyring(&Facts { keyring: Err(Errno::ENOSYS), ..Facts::healthy() }).verdict, Verdict::Info);
        let row = keyring(&Facts { keyring: Err(Errno::EPERM), ..Facts::healthy() });
        assert_eq!(row.verdict, Verdict::Missing);
        assert!(row.fix.unwrap().contains("--without keyring"));
    }
}
