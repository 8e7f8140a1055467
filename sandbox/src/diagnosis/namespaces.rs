//! Whether user namespaces, and the others in them, can be made and used; if not, who stands in the way.

use nix::errno::Errno;

use super::probe::say;
use super::{Diagnosis, Facts, Group, Verdict};
use crate::layers::Layer;

/// Judges both.
pub fn judge(facts: &Facts) -> Vec<Diagnosis> {
    vec![user(facts), others(facts)]
}

fn row(aspect: &'static str, verdict: Verdict, found: impl Into<String>) -> Diagnosis {
    Diagnosis::new(Group::Host, aspect, Layer::Namespaces, verdict, found)
}

fn user(facts: &Facts) -> Diagnosis {
    let answers = &facts.answers;
    let missing = |found: String, fix: String| row("user-namespaces", Verdict::Missing, found).fix(fix);
    // A setting explains more than the errno that it leads to.
    if let Some((_, Some(0))) = facts.most.iter().find(|(kind, _)| kind.name() == "user") {
        return missing(
            format!("user.max_user_namespaces is 0; unshare(2) answers {}", answer(answers.user)),
            "sysctl -w user.max_user_namespaces=15000, and the same line in /etc/sysctl.d".into(),
        );
    }
    if facts.debian_clone == Some(0) && !facts.host.privileged {
        return missing(
            format!("kernel.unprivileged_userns_clone is 0; unshare(2) answers {}", answer(answers.user)),
            "sysctl -w kernel.unprivileged_userns_clone=1, and the same line in /etc/sysctl.d; or start anchorhold as root"
                .into(),
        );
    }
    match (answers.user, answers.maps) {
        (Ok(()), Ok(())) => row("user-namespaces", Verdict::Works, "made, and mapped"),
        (Err(errno), _) => {
            let (found, fix) = refused(facts, errno);
            missing(format!("unshare(2) answers {}{found}", say(errno)), fix)
        }
        (Ok(()), Err(Errno::EPERM)) if facts.host.uid == 0 && !facts.around.file_capabilities => missing(
            "made, but writing its maps answers Operation not permitted (EPERM): a map with root in it needs CAP_SETFCAP, \
             which we lack, and no other id is to be had"
                .into(),
            "start anchorhold with this capability (--cap-add SETFCAP in a container, CapabilityBoundingSet= in a service), or \
             as an ordinary user"
                .into(),
        ),
        (Ok(()), Err(errno)) => {
            let (found, fix) = powerless(facts);
            missing(format!("made, but writing its maps answers {}{found}", say(errno)), fix)
        }
    }
}

fn others(facts: &Facts) -> Diagnosis {
    let aspect = "other-namespaces";
    let answers = &facts.answers;
    let names = |wanted: &dyn Fn(&super::probe::Answer) -> bool| {
        let found = answers.others.iter().filter(|(_, answer)| wanted(answer));
        found.map(|(kind, _)| kind.name()).collect::<Vec<_>>().join(", ")
    };
    if answers.user.and(answers.maps).is_err() {
        return row(aspect, Verdict::Missing, "not tried: they need a user namespace").fix("see user-namespaces");
    }
    let Some((first, Err(errno))) = answers.others.iter().find(|(_, answer)| answer.is_err()) else {
        return row(aspect, Verdict::Works, names(&|_| true));
    };
    let found = format!("{}: unshare(2) answers {}", names(&|answer| answer.is_err()), say(*errno));
    let limit = facts.most.iter().find(|(kind, most)| *most == Some(0) && kind == first);
    let fix = match (limit, errno) {
        (Some((kind, _)), _) => format!("sysctl -w user.max_{}_namespaces=15000", kind.name()),
        (None, Errno::EPERM | Errno::EACCES) => {
            let (why, fix) = powerless(facts);
            return row(aspect, Verdict::Missing, format!("{found}{why}")).fix(fix);
        }
        (None, Errno::ENOSPC | Errno::EUSERS) => {
            "raise the user.max_*_namespaces, here and around the container".into()
        }
        _ => "use a kernel with CONFIG_NAMESPACES and all of its kinds, or let the container's filter pass unshare(2)"
            .into(),
    };
    row(aspect, Verdict::Missing, found).fix(fix)
}

fn answer(answer: super::probe::Answer) -> String {
    answer.map_or_else(say, |()| "success".into())
}

/// Why a user namespace may not be made, beyond the errno, and what to do.
fn refused(facts: &Facts, errno: Errno) -> (String, String) {
    match errno {
        Errno::ENOSPC | Errno::EUSERS => (
            ": the limit of user namespaces is reached, or 32 are nested already".into(),
            "raise user.max_user_namespaces here and in every user namespace around us, or leave one of those".into(),
        ),
        Errno::EPERM | Errno::EACCES if facts.apparmor_restricts == Some(1) => powerless(facts),
        Errno::EPERM | Errno::EACCES | Errno::ENOSYS if filtered(facts) => {
            (format!(": a filter of system calls is around us{}", container(facts)), container_fix(facts))
        }
        Errno::ENOSYS | Errno::EINVAL => {
            (": the kernel has no user namespaces".into(), "use a kernel with CONFIG_USER_NS=y".into())
        }
        Errno::EPERM => (
            ": a security module forbids it, or we are in a chroot(2)".into(),
            "leave the chroot, or allow user namespaces in the policy of the security module (the kernel log names it)"
                .into(),
        ),
        _ => (String::new(), "the kernel log (dmesg) may say more".into()),
    }
}

/// Why a user namespace was made and gives no power: AppArmor takes the capabilities in it away.
fn powerless(facts: &Facts) -> (String, String) {
    if facts.apparmor_restricts == Some(1) {
        let program = facts.program.display();
        return (
            ": AppArmor takes all power in it (kernel.apparmor_restrict_unprivileged_userns is 1)".into(),
            format!(
                "give this program a profile: put `abi <abi/4.0>, profile anchorhold {program} flags=(unconfined) {{ userns, }}` \
                 into /etc/apparmor.d/anchorhold and load it by apparmor_parser -r /etc/apparmor.d/anchorhold; or start \
                 anchorhold as root; or open it for every program: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
            ),
        );
    }
    if filtered(facts) || facts.around.container.is_some() {
        return (format!(": the container's policy stands in the way{}", container(facts)), container_fix(facts));
    }
    (
        ": a security module stands in the way".into(),
        "allow it in the policy of the security module; the kernel log names the one that refused".into(),
    )
}

fn filtered(facts: &Facts) -> bool {
    facts.around.filters > 0
}

fn container(facts: &Facts) -> String {
    facts.around.container.as_ref().map(|name| format!(" ({name})")).unwrap_or_default()
}

/// The flags of the engine that let rooms be made in its container.
pub fn container_fix(facts: &Facts) -> String {
    match facts.around.container.as_deref() {
        Some("docker") => "docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined \
                           --security-opt apparmor=unconfined"
            .into(),
        Some("podman" | "oci") => "podman run --security-opt seccomp=unconfined --security-opt unmask=ALL".into(),
        Some("kubernetes" | "kube") => {
            "in the pod: hostUsers: false, securityContext.procMount: Unmasked, seccompProfile.type: Unconfined".into()
        }
        Some("systemd-nspawn") => "in the .nspawn file: PrivateUsers=, SystemCallFilter=@mount @keyring".into(),
        Some("flatpak" | "snap") => "start anchorhold outside: this sandbox lets nobody make another".into(),
        _ => "let the filter of system calls around us pass unshare, clone, mount, fsopen, move_mount, mount_setattr, pivot_root, \
              keyctl and setns (SystemCallFilter= in a systemd service, --security-opt seccomp= in a container)"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::probe::Answers;
    use crate::layers::namespaces::Kind;

    fn refusing(errno: Errno) -> Facts {
        Facts { answers: Answers { user: Err(errno), ..Answers::none(Errno::ECANCELED) }, ..Facts::healthy() }
    }

    fn user_row(facts: &Facts) -> (Verdict, String, String) {
        let row = user(facts);
        (row.verdict, row.found, row.fix.unwrap_or_default())
    }

    #[test]
    fn a_limit_of_zero_is_named_with_its_sysctl() {
        let mut facts = refusing(Errno::ENOSPC);
        facts.most[0] = (Kind::User, Some(0));
        let (verdict, found, fix) = user_row(&facts);
        assert_eq!(verdict, Verdict::Missing);
        assert!(found.contains("user.max_user_namespaces is 0") && found.contains("ENOSPC"), "{found}");
        assert!(fix.contains("sysctl -w user.max_user_namespaces="), "{fix}");
    }

    #[test]
    fn debians_switch_stops_users_and_not_root() {
        let mut facts = refusing(Errno::EPERM);
        facts.debian_clone = Some(0);
        assert!(user_row(&facts).2.contains("kernel.unprivileged_userns_clone=1"));
        let mut root = Facts { debian_clone: Some(0), ..Facts::healthy() };
        root.host.privileged = true;
        assert_eq!(user(&root).verdict, Verdict::Works);
    }

    #[test]
    fn ubuntus_apparmor_lets_them_be_made_and_takes_their_power() {
        let mut facts = Facts { apparmor_restricts: Some(1), ..Facts::healthy() };
        facts.answers.maps = Err(Errno::EACCES);
        let (verdict, found, fix) = user_row(&facts);
        assert_eq!(verdict, Verdict::Missing);
        assert!(found.contains("AppArmor") && found.contains("EACCES"), "{found}");
        assert!(fix.contains("/usr/bin/anchorhold") && fix.contains("userns,"), "{fix}");

        // Where the maps are let through, the next namespace is not.
        let mut later = Facts { apparmor_restricts: Some(1), ..Facts::healthy() };
        later.answers.others[0].1 = Err(Errno::EPERM);
        let row = others(&later);
        assert_eq!(row.verdict, Verdict::Missing);
        assert!(row.found.contains("AppArmor") && row.found.contains("mnt"), "{}", row.found);

        // The setting alone is no harm: the program may have its profile.
        assert_eq!(user(&Facts { apparmor_restricts: Some(1), ..Facts::healthy() }).verdict, Verdict::Works);
    }

    #[test]
    fn the_filter_of_a_container_is_named_with_its_flag() {
        for errno in [Errno::EPERM, Errno::ENOSYS] {
            let mut facts = refusing(errno);
            facts.around.filters = 1;
            facts.around.container = Some("docker".into());
            let (_, found, fix) = user_row(&facts);
            assert!(found.contains("filter of system calls") && found.contains("docker"), "{found}");
            assert!(fix.contains("--security-opt seccomp=unconfined"), "{fix}");
        }
    }

    #[test]
    fn a_root_without_cap_setfcap_is_told_so_and_no_container_blamed() {
        let mut facts = Facts::healthy();
        facts.host.uid = 0;
        facts.answers.maps = Err(Errno::EPERM);
        facts.around.container = Some("docker".into());
        let (verdict, found, fix) = user_row(&facts);
        assert_eq!(verdict, Verdict::Missing);
        assert!(found.contains("CAP_SETFCAP") && !found.contains("docker"), "{found}");
        assert!(fix.contains("--cap-add SETFCAP"), "{fix}");
        facts.around.file_capabilities = true;
        assert!(user_row(&facts).1.contains("docker"));
    }

    #[test]
    fn a_kernel_without_them_is_told_from_a_filter() {
        assert!(user_row(&refusing(Errno::EINVAL)).2.contains("CONFIG_USER_NS"));
        assert!(user_row(&refusing(Errno::ENOSYS)).2.contains("CONFIG_USER_NS"));
    }

    #[test]
    fn a_chroot_and_nesting_too_deep_are_thought_of() {
        assert!(user_row(&refusing(Errno::EPERM)).1.contains("chroot"));
        assert!(user_row(&refusing(Errno::ENOSPC)).1.contains("nested"));
    }

    #[test]
    fn another_kind_with_a_limit_of_zero_is_named() {
        let mut facts = Facts::healthy();
        let net = facts.answers.others.iter_mut().find(|(kind, _)| *kind == Kind::Net).unwrap();
        net.1 = Err(Errno::ENOSPC);
        facts.most.iter_mut().find(|(kind, _)| *kind == Kind::Net).unwrap().1 = Some(0);
        let row = others(&facts);
        assert_eq!(row.verdict, Verdict::Missing);
        assert!(row.fix.unwrap().contains("user.max_net_namespaces"));
    }
}
