//! Whose ids a room gets: one, and when asked a whole range.

use super::trial::{self, Attempt};
use super::{Diagnosis, Facts, Group, Verdict};
use crate::layers::Layer;

/// Judges both.
pub fn judge(facts: &Facts, range: &Attempt) -> Vec<Diagnosis> {
    vec![one(facts), many(facts, range)]
}

fn one(facts: &Facts) -> Diagnosis {
    let row = |verdict, found: String| Diagnosis::new(Group::Host, "room-ids", Layer::Identity, verdict, found);
    let host = &facts.host;
    match &host.ids {
        Ok(pool) if host.privileged => row(
            Verdict::Works,
            format!("{} rooms at a time, each under an id of its own from {} on", pool.slots, pool.first),
        ),
        _ if host.uid != host.kernel_root.uid && host.gid != host.kernel_root.gid => {
            row(Verdict::Works, format!("rooms run under your own kernel ids, called uid {}, gid {} here", host.uid, host.gid))
        }
        // The map was read, so there are capabilities enough, and no ids.
        Err(why) if host.uid == 0 && facts.around.mapped_uids < u64::from(u32::MAX) => row(
            Verdict::Missing,
            format!("we are the kernel's root, where there are no other ids to give a room ({why}); no room ever runs as root"),
        )
        .fix(
            "start anchorhold as an ordinary user; or map more ids into this user namespace \
             (podman run --userns=auto:size=65536, unshare --map-auto)",
        ),
        _ => row(
            Verdict::Missing,
            "we are the kernel's root by uid or gid, without CAP_SETUID, CAP_SETGID and CAP_SYS_ADMIN: no room ever runs as root, and \
             no other id can be taken"
                .into(),
        )
        .fix("start anchorhold as an ordinary user, or as root with these capabilities (--cap-add in a container)"),
    }
}

fn many(facts: &Facts, attempt: &Attempt) -> Diagnosis {
    let found = trial::option("id-range", Layer::Identity, attempt, "--id-range: 65,536 ids for one room", || {
        "see the failing step".into()
    });
    if found.verdict != Verdict::Missing || facts.host.privileged {
        return found;
    }
    let because = |why: String, fix: &str| Diagnosis { found: why, ..found.clone() }.fix(fix);
    match (&facts.map_helper, &facts.host.subordinate) {
        (None, _) => because(
            "newuidmap(1) is not installed".into(),
            "install it: Debian's package uidmap, elsewhere shadow-utils",
        ),
        (Some((path, false)), _) => because(
            format!(
                "{} gives no privilege here: neither the set-uid bit of a root that exists here, nor a file capability",
                path.display()
            ),
            "reinstall the package that it came with: copies and container images often lose this; in a user namespace, leave it",
        ),
        (_, Err(why)) => because(
            why.clone(),
            "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER, as root, with ids that nobody else has",
        ),
        (Some(_), Ok(_)) if facts.around.no_new_privileges => because(
            "we may not gain privileges (no_new_privs), so newuidmap(1) cannot help".into(),
            "leave NoNewPrivileges= out of the service, or --security-opt no-new-privileges of the container",
        ),
        _ => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::trial::tests::{failed, made};

    #[test]
    fn a_root_with_one_id_is_told_so() {
        let mut facts = Facts::healthy();
        facts.host.uid = 0;
        facts.around.mapped_uids = 1;
        facts.host.ids = Err("this user namespace maps only 1 ids".into());
        let row = one(&facts);
        assert_eq!(row.verdict, Verdict::Missing);
        assert!(row.found.contains("only 1 ids"), "{}", row.found);
        // A root that is nobody outside is an ordinary user.
        facts.host.kernel_root.uid = 65534;
        facts.host.kernel_root.gid = 65534;
        assert_eq!(one(&facts).verdict, Verdict::Works);
    }

    #[test]
    fn a_root_without_capabilities_is_told_so() {
        let mut facts = Facts::healthy();
        facts.host.uid = 0;
        assert!(one(&facts).found.contains("CAP_SETUID"));
    }

    #[test]
    fn each_reason_for_having_no_range_has_a_fix_of_its_own() {
        let no = failed(Layer::Identity);
        let mut facts = Facts::healthy();
        facts.around.no_new_privileges = true;
        assert!(many(&facts, &no).found.contains("no_new_privs"));
        facts.host.subordinate = Err("/etc/subuid has no line with 65,536 ids for alice (uid 1000)".into());
        assert!(many(&facts, &no).fix.unwrap().contains("--add-subuids"));
        facts.map_helper = Some(("/usr/bin/newuidmap".into(), false));
        assert!(many(&facts, &no).found.contains("set-uid"));
        facts.map_helper = None;
        assert!(many(&facts, &no).fix.unwrap().contains("uidmap"));
        assert_eq!(many(&facts, &made()).verdict, Verdict::Works);
    }
}
