//! Loopback, which every room has; and the way out of a room with a network: pasta(1), its device, and rules for packets.

use super::probe::say;
use super::trial::{self, Attempt};
use super::{Diagnosis, Facts, Group, Verdict};
use crate::layers::Layer;
use crate::layers::network::pasta::TunAccess;

/// Judges the three.
pub fn judge(facts: &Facts, fetch: &Attempt) -> Vec<Diagnosis> {
    vec![loopback(facts), rules(facts), way_out(facts, fetch)]
}

fn loopback(facts: &Facts) -> Diagnosis {
    let row = |verdict, found: String| Diagnosis::new(Group::Host, "loopback", Layer::Network, verdict, found);
    match facts.answers.loopback {
        Ok(()) => row(Verdict::Works, "raised in a network namespace of its own".into()),
        Err(_) if no_network_namespace(facts) => row(Verdict::Missing, NOT_TRIED.into()).fix("see other-namespaces"),
        Err(errno) => row(Verdict::Missing, format!("raising it in a network namespace answers {}", say(errno))).fix(
            "use a kernel with CONFIG_NET_NS and CONFIG_INET, or let the filter around us pass ioctl(2) on sockets",
        ),
    }
}

fn rules(facts: &Facts) -> Diagnosis {
    let row = |verdict, found: String| Diagnosis::new(Group::Option, "nf-tables", Layer::Network, verdict, found);
    match facts.answers.rules {
        Ok(()) => row(Verdict::Works, "--network pasta: rules were put into a network namespace and read back".into()),
        Err(_) if no_network_namespace(facts) => row(Verdict::Missing, NOT_TRIED.into()).fix("see other-namespaces"),
        Err(errno) => row(
            Verdict::Missing,
            format!("--network pasta: nf_tables answers {} to the rules of a room", say(errno)),
        )
        .fix("load the modules nf_tables, nft_reject_ipv4 and nft_reject_ipv6 (modprobe, as root, outside of containers)"),
    }
}

const NOT_TRIED: &str = "not tried: it needs a network namespace";

fn no_network_namespace(facts: &Facts) -> bool {
    let is_net = |kind: &crate::layers::namespaces::Kind| kind.name() == "net";
    facts.answers.others.iter().any(|(kind, answer)| is_net(kind) && answer.is_err())
}

fn way_out(facts: &Facts, fetch: &Attempt) -> Diagnosis {
    let found = match &facts.host.way_out {
        Ok(found) => found,
        Err(missing) => {
            let found = format!("--network pasta: {}: {}", missing.what, missing.why);
            return Diagnosis::new(Group::Option, "pasta", Layer::Network, Verdict::Missing, found).fix(&missing.fix);
        }
    };
    let device = match found.pasta.tun {
        TunAccess::Host | TunAccess::Bound => "/dev/net/tun can be opened",
        TunAccess::Made => "/dev/net/tun is closed to its user, so a node of its own is made",
    };
    let families = match (found.families.v4, found.families.v6) {
        (true, true) => "IPv4 and IPv6",
        (true, false) => "IPv4 only",
        (false, _) => "IPv6 only",
    };
    let (program, version) = (found.pasta.program.display(), &found.pasta.version);
    let gives = format!("--network pasta: a room had it, by {program} ({version}), with {families}; {device}");
    trial::option("pasta", Layer::Network, fetch, &gives, || "see the failing step".into())
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::diagnosis::trial::tests::{failed, made};
    use crate::layers::network::pasta;

    #[test]
    fn what_pasta_misses_is_handed_on_with_its_fix() {
        let missing = pasta::Missing {
            what: "the device /dev/net/tun".into(),
            why: "Permission denied (mode 0600, owner 0)".into(),
            fix: "chmod 0666 /dev/net/tun".into(),
        };
        let mut facts = Facts::healthy();
        facts.host.way_out = Err(missing);
        let row = way_out(&facts, &failed(Layer::Network));
        assert_eq!(row.verdict, Verdict::Missing);
        assert!(row.found.contains("0600") && row.fix.unwrap().contains("0666"));
    }

    #[test]
    fn a_kernel_without_nf_tables_costs_the_way_out_and_not_the_room() {
        let mut facts = Facts::healthy();
        facts.answers.rules = Err(Errno::EPROTONOSUPPORT);
        let rows = judge(&facts, &made());
        assert_eq!(rows[0].verdict, Verdict::Works);
        assert_eq!((rows[1].group, rows[1].verdict), (Group::Option, Verdict::Missing));
        assert!(rows[1].fix.as_ref().unwrap().contains("nf_tables"));
    }
}
