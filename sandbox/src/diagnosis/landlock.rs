//! Landlock: which interface, and what each one costs that is not there. landlock(7).

use nix::errno::Errno;

use super::probe::say;
use super::{Diagnosis, Facts, Group, Verdict};
use crate::layers::Layer;
use crate::layers::landlock::SCOPES_FROM;

/// What an interface added that a room uses, and the first kernel that had it. 7 (audit flags) and 8 (restricting all
/// threads at once) add nothing to a room.
const GAINS: [(u32, &str, &str); 7] = [
    (1, "5.13", "no file rules at all"),
    (2, "5.19", "files cannot be renamed or linked from one directory to another"),
    (3, "6.2", "truncating a file is not ruled"),
    (4, "6.7", "TCP ports are not ruled (the network namespace does that)"),
    (5, "6.10", "ioctls on devices are not ruled (the fixed /dev does that)"),
    (SCOPES_FROM, "6.12", "signals and abstract sockets are not kept in (the pid and network namespaces do that)"),
    (9, "7.1", "sockets by path are not ruled (the mounts do that)"),
];

/// Judges it.
pub fn judge(facts: &Facts) -> Vec<Diagnosis> {
    let row = |verdict, found: String| Diagnosis::new(Group::Host, "landlock", Layer::Landlock, verdict, found);
    let without = "or leave the layer out by name: --without landlock";
    let one = match facts.landlock {
        Err(Errno::EOPNOTSUPP) => {
            let list = facts.security_modules.as_deref().unwrap_or("not visible here");
            row(
                Verdict::Missing,
                format!("built in, and not active: {} (active modules: {list})", say(Errno::EOPNOTSUPP)),
            )
            .fix(format!("boot with lsm=landlock,… on the kernel's command line; {without}"))
        }
        Err(errno) => {
            let fix = match errno {
                Errno::EPERM => "let the filter of system calls around us pass the calls landlock_*",
                _ => "use Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK=y",
            };
            row(Verdict::Missing, format!("landlock_create_ruleset(2) answers {}", say(errno)))
                .fix(format!("{fix}; {without}"))
        }
        Ok(version) => {
            let used = facts.host.landlock;
            let newer = if version > used { format!(" (the kernel has {version})") } else { String::new() };
            let lost: Vec<_> = GAINS
                .iter()
                .filter(|(since, ..)| *since > used)
                .map(|(since, kernel, cost)| format!("without {since} (Linux {kernel}) {cost}"))
                .collect();
            let found = std::iter::once(format!("interface {used}{newer}")).chain(lost).collect::<Vec<_>>().join("; ");
            // From the scopes on, what is missing repeats what another layer does anyway.
            match used {
                SCOPES_FROM.. => row(Verdict::Works, found),
                _ => {
                    row(Verdict::Weaker, found).fix("use a newer kernel; the version in front of each loss says which")
                }
            }
        }
    };
    vec![one]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(version: u32) -> Diagnosis {
        let mut facts = Facts { landlock: Ok(version), ..Facts::healthy() };
        facts.host.landlock = version.min(9);
        judge(&facts).remove(0)
    }

    #[test]
    fn an_old_interface_says_what_each_missing_one_costs() {
        let old = with(3);
        assert_eq!(old.verdict, Verdict::Weaker);
        for cost in ["6.7", "6.10", "6.12", "7.1", "signals"] {
            assert!(old.found.contains(cost), "{cost}: {}", old.found);
        }
        assert!(!old.found.contains("renamed"), "{}", old.found);
    }

    #[test]
    fn a_newer_kernel_than_this_program_is_said() {
        let new = with(10);
        assert_eq!(new.verdict, Verdict::Works);
        assert_eq!(new.found, "interface 9 (the kernel has 10)");
        assert!(with(7).found.contains("7.1"));
    }

    #[test]
    fn not_built_and_not_active_are_told_apart() {
        let judged = |errno| judge(&Facts { landlock: Err(errno), ..Facts::healthy() }).remove(0);
        assert!(judged(Errno::ENOSYS).fix.unwrap().contains("CONFIG_SECURITY_LANDLOCK"));
        assert!(judged(Errno::EOPNOTSUPP).fix.unwrap().contains("lsm=landlock"));
    }
}
