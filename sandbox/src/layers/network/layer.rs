//! The layer's three parts, over the mechanics of its neighbours.
//!
//! A network namespace takes a third of the time of making all of a room. The warden makes it, on its own processor, while the
//! room's first process builds the tree; that one joins it before it locks itself up.

use std::fmt;

use nix::errno::Errno;
use serde::Serialize;

use super::addresses::{self, Families};
use super::pasta::{Missing, Pasta, PastaFound};
use super::policy::{self, HostAddress, Policy, Rules};
use super::{interface_names, nftables, rtnetlink};
use crate::error::Refusal;
use crate::host::Host;
use crate::layers::Layer;
use crate::layers::namespaces::Kind;
use crate::plan::{Draft, Stage};
use crate::room::{NetworkMode, Room};
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site, Trouble};

/// What a host offers to a room with a way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayOut {
    /// pasta(1).
    pub pasta: PastaFound,
    /// The versions of IP for which the host has a route.
    pub families: Families,
    /// The host's own addresses, which are refused.
    pub addresses: Vec<HostAddress>,
    /// The host's `/etc/resolv.conf`.
    pub resolv_conf: String,
}

impl WayOut {
    /// Asks the running system.
    ///
    /// # Errors
    /// What is missing, why, and what to do.
    pub fn probe(run_as: super::pasta::RunAs) -> Result<Self, Missing> {
        let missing =
            |what: &str, why: String| Missing { what: what.to_owned(), why, fix: "see `anchorhold doctor`".to_owned() };
        let pasta = super::pasta::check(None, run_as)?;
        let families = Families::of_host().map_err(|error| missing("the host's routes", error.to_string()))?;
        if !families.v4 && !families.v6 {
            return Err(Missing {
                what: "a way out".into(),
                why: "the host has no default route".into(),
                fix: "connect the host, or ask for --network none".into(),
            });
        }
        let addresses = addresses::of_host().map_err(|errno| missing("the host's addresses", errno.to_string()))?;
        // A host without the file has no resolver, and so has the room.
        let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        Ok(Self { pasta, families, addresses, resolv_conf })
    }

    /// A made-up one, see [`Host::made_up`]: both versions of IP, one address, a resolver, today's pasta.
    pub(crate) fn made_up(privileged: bool) -> Self {
        use super::pasta::{RunAs, TunAccess};
        Self {
            pasta: PastaFound {
                program: "/usr/bin/pasta".into(),
                version: "pasta 2025_09_19".into(),
                options: ["--map-host-loopback", "--map-guest-addr"].map(str::to_owned).into(),
                tun: TunAccess::Host,
                run_as: if privileged { RunAs::User { uid: 65534, gid: 65534 } } else { RunAs::Myself },
            },
            families: Families { v4: true, v6: true },
            addresses: vec![HostAddress {
                address: std::net::Ipv4Addr::new(198, 51, 100, 7).into(),
                prefix_length: 24,
            }],
            resolv_conf: "nameserver 198.51.100.1\n".into(),
        }
    }
}

/// The steps.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// unshare(2) of a network namespace, by the warden.
    Make,
    /// Loopback up, by the warden.
    LoopbackUp,
    /// The policy of destinations as nf_tables rules, by the warden.
    InstallPolicy(Rules),
    /// setns(2) into it, by the room's first process.
    Join,
    /// Starts pasta, by the supervisor.
    StartPasta(Box<WayOut>, bool),
    /// Addresses and routes of the interface that pasta made.
    Configure(Families),
}

impl Serialize for Action {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Make => serializer.serialize_str("make"),
            Self::LoopbackUp => serializer.serialize_str("loopback-up"),
            Self::InstallPolicy(rules) => serializer.collect_map([("install-policy", rules.in_words())]),
            Self::Join => serializer.serialize_str("join"),
            Self::StartPasta(way_out, _) => {
                serializer.collect_map([("start-pasta", way_out.pasta.program.display().to_string())])
            }
            Self::Configure(families) => serializer.collect_map([("configure", families)]),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Make => f.write_str("unshare the network namespace"),
            Self::LoopbackUp => f.write_str("bring loopback up"),
            Self::InstallPolicy(rules) => {
                write!(f, "let nothing out but by these rules, in order: {}", rules.in_words().join("; "))
            }
            Self::Join => f.write_str("join the network namespace that the warden has made"),
            Self::StartPasta(way_out, _) => write!(f, "start {} for the room", way_out.pasta.program.display()),
            Self::Configure(families) => {
                let versions = match (families.v4, families.v6) {
                    (true, true) => "IPv4 and IPv6",
                    (true, false) => "IPv4",
                    (false, _) => "IPv6",
                };
                write!(f, "give the room's interface its fixed addresses and routes, {versions}")
            }
        }
    }
}

/// The network that a room really has: a room without the layer has the host's.
pub fn mode(room: &Room) -> NetworkMode {
    if room.has(Layer::Network) { room.network_mode() } else { NetworkMode::Host }
}

fn policy_of(room: &Room) -> Policy {
    let network = &room.network;
    Policy {
        allow: network.allow.clone(),
        refuse: network.refuse.clone(),
        only: network.only_allowed,
        dns: network.dns,
    }
}

/// The text of the room's `/etc/resolv.conf`, for a room with a way out.
pub(in crate::layers) fn resolv_conf(room: &Room, host: &Host) -> Option<String> {
    let way_out = host.way_out.as_ref().ok()?;
    (mode(room) == NetworkMode::Pasta)
        .then(|| addresses::resolv_conf(&policy_of(room), way_out.families, &way_out.resolv_conf))
}

pub(in crate::layers) fn plan(room: &Room, host: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    let network = &room.network;
    let asks_for_policy =
        !network.allow.is_empty() || !network.refuse.is_empty() || network.only_allowed || network.dns.is_some();
    let mode = mode(room);
    if asks_for_policy && mode != NetworkMode::Pasta {
        return Err(Refusal::new(
            Layer::Network,
            format!("a policy of destinations with the network {}", mode.name()),
            "only pasta asks a policy",
            "ask for --network pasta, or leave the policy out",
        ));
    }
    if mode == NetworkMode::Host {
        if room.has(Layer::Network) {
            draft.weaken(Layer::Network, "the host's network, by request");
        }
        return Ok(());
    }
    draft.add(Stage::Network, Action::Make);
    draft.add(Stage::Network, Action::LoopbackUp);
    if mode == NetworkMode::Pasta {
        let way_out = host
            .way_out
            .as_ref()
            .map_err(|missing| Refusal::new(Layer::Network, &missing.what, &missing.why, &missing.fix))?;
        let policy = policy_of(room);
        let refuse = |error: policy::PolicyError| {
            Refusal::new(Layer::Network, error.entry.clone(), error.problem.clone(), "correct the policy")
        };
        policy.check().map_err(refuse)?;
        let rules = policy::compile(&policy, &way_out.addresses, way_out.pasta.has_dns_over_tcp()).map_err(refuse)?;
        draft.add(Stage::Network, Action::InstallPolicy(rules));
        draft.add(Stage::JoinNetwork, Action::Join);
        draft.add(Stage::JoinNetwork, Action::StartPasta(Box::new(way_out.clone()), policy.has_dns()));
        draft.add(Stage::JoinNetwork, Action::Configure(way_out.families));
    } else {
        draft.add(Stage::JoinNetwork, Action::Join);
    }
    Ok(())
}

pub(in crate::layers) fn apply(action: &Action, site: &mut Site<'_>) -> Outcome {
    match action {
        Action::Make => site.sys.unshare(Kind::Net.flag())?,
        Action::LoopbackUp => site.sys.loopback_up()?,
        Action::InstallPolicy(rules) => {
            nftables::install(rules).map_err(|error| Trouble::new(Errno::EPERM, error.to_string()))?;
        }
        Action::Join => {
            let namespace = site.receive_network()?;
            site.sys.join_namespace(std::os::fd::AsFd::as_fd(&namespace), Kind::Net.flag())?;
        }
        Action::StartPasta(way_out, dns) => {
            let room = site.child.ok_or(Errno::ESRCH)?;
            let mut found = way_out.pasta.clone();
            if let (super::pasta::RunAs::User { .. }, Some((uid, gid))) = (found.run_as, site.room_ids()) {
                found.run_as = super::pasta::RunAs::User { uid, gid };
            }
            let pasta = Pasta::start(&found, room.as_raw() as u32, way_out.families, *dns).map_err(|failed| {
                Trouble::new(Errno::EIO, format!("{}: {}: {}", failed.what, failed.why, failed.fix))
            })?;
            site.pasta = Some(pasta);
        }
        Action::Configure(families) => {
            rtnetlink::configure(*families).map_err(|error| Trouble::new(Errno::EIO, error.to_string()))?;
        }
    }
    Ok(())
}

pub(in crate::layers) fn verify(room: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    let mode = mode(room);
    finding.fact("mode", mode.name());
    if mode == NetworkMode::Host {
        return finding;
    }
    match view.namespace(Kind::Net) {
        Ok((inside, outside)) if inside != outside => finding.fact("net", inside),
        Ok(_) => finding.wrong("the network namespace is the launcher's own"),
        Err(why) => finding.wrong(why),
    }
    let mut wanted = vec!["lo".to_owned()];
    if mode == NetworkMode::Pasta {
        wanted.push("eth0".to_owned());
    }
    match view.standing_file("net/dev").map(interface_names) {
        Ok(mut found) => {
            found.sort();
            wanted.sort();
            if found == wanted {
                finding.fact("interfaces", found.join(" "));
            } else {
                finding.wrong(format!("the interfaces are {found:?}, not {wanted:?}"));
            }
        }
        Err(why) => finding.wrong(why),
    }
    finding
}
