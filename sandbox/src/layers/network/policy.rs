//! Where a room may connect to: the description that a person writes, and the ordered rules that it becomes.
//!
//! Everything here is pure. [`Policy`] is what configuration holds; [`compile`] turns it, with the host's own addresses,
//! into [`Rules`]; [`Rules::decide`] says what these rules mean, so that tests and `explain` need no kernel. The kernel's
//! copy of the same rules is made by [`super::nftables`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::addresses;

/// Most entries that one list of a policy may have. Rules are tried one by one for every new packet, and a list of this
/// length already costs microseconds; longer ones are a mistake in a generated configuration.
pub const MAX_ENTRIES: usize = 1024;

/// Most addresses of the host that are taken into account; a host with more is refused, never half covered.
pub const MAX_HOST_ADDRESSES: usize = 4096;

/// Longest text of one entry; the longest valid one has 80 characters.
const MAX_ENTRY_LENGTH: usize = 96;

/// What a room with a network may reach. Default: the public internet and the name server, nothing private.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Destinations that are open although they are private (or, with `only`, the only ones that are open).
    pub allow: Vec<Allow>,
    /// Networks that are refused besides the built-in ones; `allow` wins over them.
    pub refuse: Vec<Prefix>,
    /// Nothing but the allow-list is open.
    pub only: bool,
    /// Whether the room may ask the host's name server. Not stated: yes, but no with `only`, because a name server
    /// carries messages to anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<bool>,
}

impl Policy {
    /// Whether names can be looked up in the room.
    pub fn has_dns(&self) -> bool {
        self.dns.unwrap_or(!self.only)
    }

    /// Refuses lists that are too long. Single entries are checked when they are parsed.
    pub fn check(&self) -> Result<(), PolicyError> {
        for (list, count) in [("allow", self.allow.len()), ("refuse", self.refuse.len())] {
            if count > MAX_ENTRIES {
                return Err(PolicyError {
                    entry: list.to_owned(),
                    problem: format!("the list has {count} entries, {MAX_ENTRIES} are the most; join neighbours"),
                });
            }
        }
        Ok(())
    }
}

/// Why an entry of a policy cannot be used. One line: the entry, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("network policy entry {entry:?}: {problem}")]
pub struct PolicyError {
    /// The entry as it was written, shortened when it is very long.
    pub entry: String,
    /// What is wrong with it and what to do.
    pub problem: String,
}

/// A transport protocol that leaves a room. Nothing else does: pasta carries no other, and ICMP is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission Control Protocol, number 6.
    Tcp,
    /// User Datagram Protocol, number 17.
    Udp,
}

impl Protocol {
    /// Both, in the order in which rules are written.
    pub const ALL: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

    /// The number in the IP header (IANA protocol numbers).
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A network: an address and how many of its leading bits count. No bit after the prefix is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// A network, or a refusal when the length is too large or bits after it are set.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, String> {
        let most = width(address);
        if length > most {
            return Err(format!("a prefix of this family has at most {most} bits"));
        }
        let network = masked(address, length);
        if network != address {
            return Err(format!("bits after the prefix are set: write {network}/{length} or {address}/{most}"));
        }
        Ok(Self { address, length })
    }

    /// The network with this many leading bits that holds `address`.
    pub fn around(address: IpAddr, length: u8) -> Self {
        let length = length.min(width(address));
        Self { address: masked(address, length), length }
    }

    /// Exactly one address.
    pub fn host(address: IpAddr) -> Self {
        Self { address, length: width(address) }
    }

    const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), length }
    }

    const fn v6(segments: [u16; 8], length: u8) -> Self {
        let [a, b, c, d, e, f, g, h] = segments;
        Self { address: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), length }
    }

    /// First address of the network.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Number of leading bits that count.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether this is one address.
    pub fn is_host(self) -> bool {
        self.length == width(self.address)
    }

    /// Whether `address` lies in the network. Never across families.
    pub fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && masked(address, self.length) == self.address
    }

    /// Whether two networks share an address.
    pub fn overlaps(self, other: Prefix) -> bool {
        if self.length <= other.length { self.contains(other.address) } else { other.contains(self.address) }
    }

    /// The mask in network byte order: 4 or 16 bytes.
    pub fn mask(self) -> Vec<u8> {
        match self.address {
            IpAddr::V4(_) => mask4(self.length).to_be_bytes().to_vec(),
            IpAddr::V6(_) => mask6(self.length).to_be_bytes().to_vec(),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}")?,
            IpAddr::V6(address) => write!(f, "[{address}]")?,
        }
        if self.is_host() { Ok(()) } else { write!(f, "/{}", self.length) }
    }
}

impl FromStr for Prefix {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let fail = |problem: String| PolicyError { entry: shortened(text), problem };
        let (prefix, rest) = take_prefix(text).map_err(fail)?;
        if rest.is_empty() { Ok(prefix) } else { Err(fail("only ADDR[/PREFIX] may stand here".to_owned())) }
    }
}

impl TryFrom<String> for Prefix {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> String {
        prefix.to_string()
    }
}

/// Ports from `first` to `last`, both included. Port 0 is no destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    /// Lowest port.
    pub first: u16,
    /// Highest port.
    pub last: u16,
}

impl Ports {
    /// One port.
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// One entry of the allow-list: `ADDR[/PREFIX][:PORT[-PORT]][/tcp|/udp]`, an IPv6 address in brackets.
///
/// Without a port every port is meant, without a protocol both. Names are refused: what they stand for is decided by
/// whoever answers the question, at a time that nobody chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Allow {
    /// Which addresses.
    pub destination: Prefix,
    /// Which ports; none stated means all.
    pub ports: Option<Ports>,
    /// Which protocol; none stated means both.
    pub protocol: Option<Protocol>,
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(ports) = self.ports {
            write!(f, ":{ports}")?;
        }
        match self.protocol {
            Some(protocol) => write!(f, "/{protocol}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Allow {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let fail = |problem: String| PolicyError { entry: shortened(text), problem };
        let (destination, rest) = take_prefix(text).map_err(fail)?;
        let (rest, protocol) = match rest.rsplit_once('/') {
            None => (rest, None),
            Some((before, "tcp")) => (before, Some(Protocol::Tcp)),
            Some((before, "udp")) => (before, Some(Protocol::Udp)),
            Some((_, other)) => {
                return Err(fail(format!(
                    "{:?} is no protocol that leaves a room: write tcp or udp",
                    shortened(other)
                )));
            }
        };
        let ports = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            None => return Err(fail("after the address comes :PORT, :PORT-PORT, /tcp or /udp".to_owned())),
            Some(range) => Some(parse_ports(range).map_err(fail)?),
        };
        if let Some((network, reason)) = NEVER.iter().find(|(network, _)| network.overlaps(destination)) {
            return Err(fail(format!(
                "it reaches into {network} ({reason}), which cannot be opened: write it narrower"
            )));
        }
        Ok(Allow { destination, ports, protocol })
    }
}

impl TryFrom<String> for Allow {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<Allow> for String {
    fn from(allow: Allow) -> String {
        allow.to_string()
    }
}

/// Reads `ADDR[/PREFIX]` from the start of `text`; a slash that no digit follows is left for the protocol.
fn take_prefix(text: &str) -> Result<(Prefix, &str), String> {
    if text.len() > MAX_ENTRY_LENGTH {
        return Err(format!("longer than {MAX_ENTRY_LENGTH} characters"));
    }
    let (address, rest) = if let Some(inner) = text.strip_prefix('[') {
        let (inside, rest) = inner.split_once(']').ok_or("the bracket is not closed")?;
        let address: Ipv6Addr = inside.parse().map_err(|_| "no IPv6 address in the brackets".to_owned())?;
        (IpAddr::V6(address), rest)
    } else {
        let end = text.find(['/', ':']).unwrap_or(text.len());
        let (head, rest) = text.split_at(end);
        match head.parse::<Ipv4Addr>() {
            Ok(address) => (IpAddr::V4(address), rest),
            Err(_) if text.matches(':').count() > 1 => {
                return Err("an IPv6 address stands in brackets: [2001:db8::1]:443".to_owned());
            }
            Err(_) if head.bytes().any(|byte| byte.is_ascii_alphabetic()) => {
                return Err("names are refused, because their addresses change: write the address".to_owned());
            }
            Err(_) => return Err("no address: write 192.0.2.1, 192.0.2.0/24 or [2001:db8::1]".to_owned()),
        }
    };
    let digits = match rest.strip_prefix('/') {
        Some(after) => after.bytes().take_while(u8::is_ascii_digit).count(),
        None => 0,
    };
    if digits == 0 {
        return Ok((Prefix::host(address), rest));
    }
    let (number, rest) = rest[1..].split_at(digits);
    let length = plain_number(number).and_then(|value| u8::try_from(value).ok()).ok_or("the prefix is no number")?;
    Ok((Prefix::new(address, length)?, rest))
}

fn parse_ports(text: &str) -> Result<Ports, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |part: &str| {
        plain_number(part)
            .and_then(|value| u16::try_from(value).ok())
            .filter(|value| *value != 0)
            .ok_or_else(|| format!("{:?} is no port from 1 to 65535", shortened(part)))
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("the range {first}-{last} runs backwards"));
    }
    Ok(Ports { first, last })
}

/// Digits only: no sign, no leading zero that someone could read as octal.
fn plain_number(text: &str) -> Option<u32> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = text == "0" || !text.starts_with('0');
    (digits && plain).then(|| text.parse().ok()).flatten()
}

/// An entry as it may stand in an error line.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_ENTRY_LENGTH) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn mask4(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

fn mask6(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask4(length))),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask6(length))),
    }
}

/// Networks that no entry of an allow-list may touch, because opening them has no meaning or would reach the host.
const NEVER: [(Prefix, &str); 9] = [
    (Prefix::v4(0, 0, 0, 0, 8), "this host, RFC 791"),
    (Prefix::v4(127, 0, 0, 0, 8), "loopback; a room always has its own and never the host's"),
    (Prefix::v4(203, 0, 113, 0, 24), "the room's own network"),
    (Prefix::v4(224, 0, 0, 0, 3), "multicast, reserved and broadcast"),
    (Prefix::v6([0; 8], 32), "loopback, unspecified and IPv4 in IPv6; write the IPv4 address itself"),
    (Prefix::v6([0x2001, 0xdb8, 0x616e, 0x6368, 0, 0, 0, 0], 64), "the room's own network"),
    (Prefix::v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local, needs an interface of the host"),
    (Prefix::v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "site-local, deprecated by RFC 3879"),
    (Prefix::v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
];

/// IPv4 networks that are not the public internet (IANA special-purpose registry, and 224.0.0.0/3).
///
/// The documentation networks 192.0.2.0/24 and 198.51.100.0/24 are left out: nothing private lives there.
pub const REFUSED_V4: [(Prefix, &str); 12] = [
    (Prefix::v4(0, 0, 0, 0, 8), "this host, RFC 791"),
    (Prefix::v4(10, 0, 0, 0, 8), "private, RFC 1918"),
    (Prefix::v4(100, 64, 0, 0, 10), "shared address space of carriers, RFC 6598"),
    (Prefix::v4(127, 0, 0, 0, 8), "loopback"),
    (Prefix::v4(169, 254, 0, 0, 16), "link-local, RFC 3927; where clouds answer with credentials"),
    (Prefix::v4(172, 16, 0, 0, 12), "private, RFC 1918"),
    (Prefix::v4(192, 0, 0, 0, 24), "IETF protocol assignments, RFC 6890"),
    (Prefix::v4(192, 88, 99, 0, 24), "6to4 relays, RFC 7526"),
    (Prefix::v4(192, 168, 0, 0, 16), "private, RFC 1918"),
    (Prefix::v4(198, 18, 0, 0, 15), "benchmarking, RFC 2544"),
    (Prefix::v4(203, 0, 113, 0, 24), "the room's own network"),
    (Prefix::v4(224, 0, 0, 0, 3), "multicast, reserved and broadcast"),
];

/// IPv6 networks that are not the public internet. Only 2000::/3 is global unicast (RFC 4291), so what lies outside is
/// refused as a whole; NAT64's well-known prefix is treated before these, see [`compile`].
pub const REFUSED_V6: [(Prefix, &str); 6] = [
    (Prefix::v6([0; 8], 3), "unspecified, loopback, IPv4 in IPv6, discard"),
    (Prefix::v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "IETF protocol assignments with Teredo and ORCHID, RFC 2928"),
    (Prefix::v6([0x2001, 0xdb8, 0x616e, 0x6368, 0, 0, 0, 0], 64), "the room's own network"),
    (Prefix::v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "6to4, RFC 7526"),
    (Prefix::v6([0x4000, 0, 0, 0, 0, 0, 0, 0], 2), "not global unicast"),
    (Prefix::v6([0x8000, 0, 0, 0, 0, 0, 0, 0], 1), "unique local, link-local, site-local, multicast, reserved"),
];

/// NAT64's well-known prefix (RFC 6052): the way of a host without IPv4 to public IPv4 servers.
const NAT64: Prefix = Prefix::v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);

/// An address of the host on one of its interfaces, and the network that it shares with its neighbours there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostAddress {
    /// The address.
    pub address: IpAddr,
    /// Leading bits of the directly attached network.
    pub prefix_length: u8,
}

impl HostAddress {
    /// The attached IPv6 network when it is one. IPv6 neighbours have public addresses, so the local network can only be
    /// told by this; IPv4's local networks are private already, and a public one holds strangers, not neighbours.
    fn neighbours(self) -> Option<Prefix> {
        // A point-to-point or tunnel device that claims more than a site (/48) claims routes, not neighbours.
        let attached = self.address.is_ipv6() && (48..128).contains(&self.prefix_length);
        attached.then(|| Prefix::around(self.address, self.prefix_length))
    }
}

/// What becomes of a packet that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It leaves.
    Accept,
    /// It leaves when it is TCP or UDP.
    Public,
    /// It is answered with a refusal at once: a reset for TCP, "administratively prohibited" for everything else.
    Refuse,
}

/// One rule. All stated conditions must hold; none stated matches everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The packet leaves by the room's own loopback.
    pub loopback: bool,
    /// Its destination lies here.
    pub destination: Option<Prefix>,
    /// It is of this protocol.
    pub protocol: Option<Protocol>,
    /// Its destination port lies here; only with a protocol.
    pub ports: Option<Ports>,
    /// What then.
    pub verdict: Verdict,
}

impl Rule {
    fn to(destination: Prefix, verdict: Verdict) -> Self {
        Self { loopback: false, destination: Some(destination), protocol: None, ports: None, verdict }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.verdict {
            Verdict::Accept => "accept",
            Verdict::Public => "accept tcp and udp",
            Verdict::Refuse => "refuse",
        })?;
        if self.loopback {
            f.write_str(" loopback")?;
        }
        match self.destination {
            Some(destination) => write!(f, " {destination}")?,
            None if !self.loopback => f.write_str(" everything")?,
            None => {}
        }
        if let Some(ports) = self.ports {
            write!(f, ":{ports}")?;
        }
        match self.protocol {
            Some(protocol) => write!(f, "/{protocol}"),
            None => Ok(()),
        }
    }
}

/// The rules of both families, in the order in which they are tried: the first match decides, the last matches all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// For IPv4.
    pub v4: Vec<Rule>,
    /// For IPv6.
    pub v6: Vec<Rule>,
}

impl Rules {
    /// Each rule in words, IPv4 first.
    pub fn in_words(&self) -> Vec<String> {
        self.v4
            .iter()
            .map(|rule| format!("ipv4 {rule}"))
            .chain(self.v6.iter().map(|rule| format!("ipv6 {rule}")))
            .collect()
    }

    /// What these rules say of a packet that would leave by the outer interface.
    pub fn decide(&self, destination: IpAddr, protocol: Protocol, port: u16) -> Verdict {
        let rules = if destination.is_ipv4() { &self.v4 } else { &self.v6 };
        let matching = rules.iter().find(|rule| {
            !rule.loopback
                && rule.destination.is_none_or(|network| network.contains(destination))
                && rule.protocol.is_none_or(|wanted| wanted == protocol)
                && rule.ports.is_none_or(|ports| ports.contains(port))
        });
        match matching.map(|rule| rule.verdict) {
            Some(Verdict::Accept | Verdict::Public) => Verdict::Accept,
            Some(Verdict::Refuse) | None => Verdict::Refuse,
        }
    }
}

/// Turns a policy into rules.
///
/// Order, for each family: loopback; the name server; allowed single addresses; the host's own addresses; allowed
/// networks; then, unless `only`, the refused networks and the rest of the internet; at last a refusal of everything. So
/// the host itself opens only when its very address was written down, never because it lies in an allowed network.
///
/// `dns_over_tcp` says whether pasta also forwards TCP questions: without it they would leave for an address where
/// nobody lives, and the asker would wait instead of being told.
pub fn compile(policy: &Policy, host: &[HostAddress], dns_over_tcp: bool) -> Result<Rules, PolicyError> {
    policy.check()?;
    if host.len() > MAX_HOST_ADDRESSES {
        return Err(PolicyError {
            entry: "host addresses".to_owned(),
            problem: format!(
                "this host has {} addresses, {MAX_HOST_ADDRESSES} are the most that can be kept apart; use network none",
                host.len()
            ),
        });
    }
    Ok(Rules {
        v4: compile_family(policy, host, true, dns_over_tcp),
        v6: compile_family(policy, host, false, dns_over_tcp),
    })
}

fn compile_family(policy: &Policy, host: &[HostAddress], v4: bool, dns_over_tcp: bool) -> Vec<Rule> {
    let family = |prefix: &Prefix| prefix.address.is_ipv4() == v4;
    let mut rules =
        vec![Rule { loopback: true, destination: None, protocol: None, ports: None, verdict: Verdict::Accept }];

    if policy.has_dns() {
        let server = if v4 { IpAddr::V4(addresses::DNS_V4) } else { IpAddr::V6(addresses::DNS_V6) };
        for protocol in Protocol::ALL {
            if protocol == Protocol::Udp || dns_over_tcp {
                rules.push(Rule {
                    protocol: Some(protocol),
                    ports: Some(Ports::one(53)),
                    ..Rule::to(Prefix::host(server), Verdict::Accept)
                });
            }
        }
    }

    let allowed: Vec<Allow> = policy.allow.iter().copied().filter(|allow| family(&allow.destination)).collect();
    let mut own: Vec<Prefix> = host.iter().map(|own| Prefix::host(own.address)).filter(family).collect();
    own.sort_unstable();
    own.dedup();
    rules.extend(allowed.iter().filter(|allow| allow.destination.is_host()).flat_map(allow_rules));
    rules.extend(own.iter().map(|own| Rule::to(*own, Verdict::Refuse)));
    if !v4 {
        // The host's own IPv4 addresses are also reached through a NAT64 that sends them back.
        rules.extend(
            host.iter().filter_map(|own| wrapped(Prefix::host(own.address))).map(|own| Rule::to(own, Verdict::Refuse)),
        );
    }
    rules.extend(allowed.iter().filter(|allow| !allow.destination.is_host()).flat_map(allow_rules));

    if !policy.only {
        let refused = policy.refuse.iter().copied();
        let built_in = if v4 { REFUSED_V4.as_slice() } else { REFUSED_V6.as_slice() };
        let mut neighbours: Vec<Prefix> = host.iter().filter_map(|own| own.neighbours()).filter(family).collect();
        neighbours.sort_unstable();
        neighbours.dedup();
        if !v4 {
            let private = REFUSED_V4.iter().map(|(network, _)| *network).chain(refused.clone());
            rules.extend(private.filter_map(wrapped).map(|network| Rule::to(network, Verdict::Refuse)));
        }
        rules.extend(refused.filter(family).chain(neighbours).map(|network| Rule::to(network, Verdict::Refuse)));
        if !v4 {
            rules.push(Rule::to(NAT64, Verdict::Public));
        }
        rules.extend(built_in.iter().map(|(network, _)| Rule::to(*network, Verdict::Refuse)));
        rules.push(Rule { loopback: false, destination: None, protocol: None, ports: None, verdict: Verdict::Public });
    }
    rules.push(Rule { loopback: false, destination: None, protocol: None, ports: None, verdict: Verdict::Refuse });
    rules
}

/// The rules of one allow entry: one per protocol, because a port can only be read once the protocol is known.
fn allow_rules(allow: &Allow) -> impl Iterator<Item = Rule> {
    let Allow { destination, ports, protocol } = *allow;
    Protocol::ALL.into_iter().filter(move |one| protocol.is_none_or(|wanted| wanted == *one)).map(move |one| Rule {
        protocol: Some(one),
        ports,
        ..Rule::to(destination, Verdict::Accept)
    })
}

/// An IPv4 network as NAT64 writes it.
fn wrapped(network: Prefix) -> Option<Prefix> {
    let (IpAddr::V4(inner), IpAddr::V6(outer)) = (network.address, NAT64.address) else { return None };
    let address = Ipv6Addr::from_bits(outer.to_bits() | u128::from(inner.to_bits()));
    Some(Prefix { address: IpAddr::V6(address), length: NAT64.length + network.length })
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
