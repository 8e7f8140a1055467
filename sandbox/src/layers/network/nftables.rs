//! The policy inside the kernel: nf_tables rules at the output hook of the room's network namespace.
//!
//! Why not routing rules, which need no netfilter: a routing lookup that fails is not the end for IPv4. When the socket
//! names its interface (`SO_BINDTODEVICE`, which needs no privilege since Linux 5.7, `IP_UNICAST_IF`, `IP_PKTINFO`), the
//! kernel takes the destination to be on the link and sends (`ip_route_output_key_hash_rcu`, "apparently, routing tables
//! are wrong"); pasta answers every ARP request, so the packet arrives. All three ways were seen to pass `prohibit` rules
//! and `prohibit` routes on Linux 6.18. The output hook sees every packet whatever its socket says.
//!
//! One table for each version of IP, each with three chains: `output` (the hook, whose own verdict is to drop), `public`
//! (TCP and UDP leave) and `refuse` (a reset for TCP, "administratively prohibited" otherwise, so that a program is told
//! at once and does not wait). No state is tracked: answers to the outside world are not needed in a room that nothing can
//! reach.

use std::net::IpAddr;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::netlink::{self, Builder, Connection};
use super::policy::{Ports, Protocol, Rule, Rules, Verdict};

/// Name of both tables.
const TABLE: &str = "anchorhold";
const OUTPUT: &str = "output";
const PUBLIC: &str = "public";
const REFUSE: &str = "refuse";

/// A socket's send buffer takes about 200 KiB in one message; rules go in batches of at most this many bytes.
const BATCH: usize = 48 * 1024;

/// Numbers of linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h, which the kernel never changes.
mod number {
    pub const SUBSYSTEM: u16 = 10;
    pub const BATCH_BEGIN: u16 = 0x10;
    pub const BATCH_END: u16 = 0x11;
    pub const NEW_TABLE: u16 = SUBSYSTEM << 8;
    pub const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
    pub const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
    pub const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
    pub const GET_RULE: u16 = SUBSYSTEM << 8 | 7;

    pub const TABLE_NAME: u16 = 1;
    pub const CHAIN_TABLE: u16 = 1;
    pub const CHAIN_NAME: u16 = 3;
    pub const CHAIN_HOOK: u16 = 4;
    pub const CHAIN_POLICY: u16 = 5;
    pub const CHAIN_TYPE: u16 = 7;
    pub const HOOK_NUMBER: u16 = 1;
    pub const HOOK_PRIORITY: u16 = 2;
    pub const RULE_TABLE: u16 = 1;
    pub const RULE_CHAIN: u16 = 2;
    pub const RULE_EXPRESSIONS: u16 = 4;
    pub const LIST_ELEMENT: u16 = 1;
    pub const EXPRESSION_NAME: u16 = 1;
    pub const EXPRESSION_DATA: u16 = 2;
    pub const DATA_VALUE: u16 = 1;
    pub const DATA_VERDICT: u16 = 2;
    pub const VERDICT_CODE: u16 = 1;
    pub const VERDICT_CHAIN: u16 = 2;

    /// `NF_INET_LOCAL_OUT`.
    pub const LOCAL_OUT: u32 = 3;
    /// `NF_DROP` as a chain's policy.
    pub const DROP: u32 = 0;
    /// `NF_ACCEPT`, `NFT_GOTO`.
    pub const ACCEPT: i32 = 1;
    pub const GOTO: i32 = -4;
    /// `NFT_REG_1`, sixteen bytes wide, and the register of verdicts.
    pub const REGISTER: u32 = 1;
    pub const REGISTER_VERDICT: u32 = 0;
    /// `NFT_META_OIF`, `NFT_META_L4PROTO`.
    pub const META_OUT_INTERFACE: u32 = 5;
    pub const META_PROTOCOL: u32 = 16;
    /// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
    pub const NETWORK: u32 = 1;
    pub const TRANSPORT: u32 = 2;
    /// `NFT_CMP_EQ`, `NFT_CMP_LTE`, `NFT_CMP_GTE`.
    pub const EQUAL: u32 = 0;
    pub const AT_MOST: u32 = 3;
    pub const AT_LEAST: u32 = 5;
    /// `NFT_REJECT_ICMP_UNREACH`, `NFT_REJECT_TCP_RST`.
    pub const REJECT_ICMP: u32 = 0;
    pub const REJECT_RESET: u32 = 1;
    /// "Communication administratively prohibited": RFC 1812 5.2.7.1 and RFC 4443 3.1.
    pub const PROHIBITED_V4: u8 = 13;
    pub const PROHIBITED_V6: u8 = 1;
}

/// One step of a rule, on one register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Load a fact about the packet.
    Meta(u32),
    /// Load bytes of a header: which header, offset, length.
    Payload(u32, u32, u32),
    /// Keep the bits of this mask.
    Mask(Vec<u8>),
    /// Go on only when the register compares so with these bytes.
    Compare(u32, Vec<u8>),
    /// End with this verdict, or go to this chain.
    Verdict(i32, Option<String>),
    /// Refuse: how, and with which ICMP code.
    Reject(u32, u8),
}

/// Which table: the two versions of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
    fn number(self) -> u8 {
        match self {
            Family::V4 => 2,
            Family::V6 => 10,
        }
    }

    /// Where the destination address stands in the IP header, and its length (RFC 791, RFC 8200).
    fn destination(self) -> (u32, u32) {
        match self {
            Family::V4 => (16, 4),
            Family::V6 => (24, 16),
        }
    }

    fn prohibited(self) -> u8 {
        match self {
            Family::V4 => number::PROHIBITED_V4,
            Family::V6 => number::PROHIBITED_V6,
        }
    }
}

/// Why the policy could not be put in force. One line: what, the kernel's word, what to do.
#[derive(Debug, thiserror::Error)]
pub enum PolicyNotInForce {
    /// The kernel refused.
    #[error("network policy: {step}: {errno}; {fix}")]
    Refused {
        /// What was being done.
        step: String,
        /// The kernel's word.
        errno: Errno,
        /// What to do.
        fix: &'static str,
    },
    /// The kernel holds something else than it was given.
    #[error("network policy: reading back {place}: {difference}; the room is not started, please report this")]
    Different {
        /// Which table and chain.
        place: String,
        /// The first difference.
        difference: String,
    },
}

fn refused(step: impl Into<String>, errno: Errno) -> PolicyNotInForce {
    let fix = match errno {
        Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::ENOENT | Errno::EINVAL => {
            "this kernel lacks nf_tables or its reject expression: load nf_tables, nft_reject_ipv4 and nft_reject_ipv6, \
             or use network none"
        }
        Errno::EPERM => "the policy is installed before the room gives up CAP_NET_ADMIN over its own network namespace",
        _ => "use network none, or report this",
    };
    PolicyNotInForce::Refused { step: step.into(), errno, fix }
}

/// Puts the rules in force in the calling thread's network namespace and reads them back.
///
/// Needs `CAP_NET_ADMIN` over that namespace and no interface: call it before pasta makes one, so that there is no moment
/// without a policy. The tables must not exist yet. Chains come first and drop by default, so that a half-made policy
/// lets nothing out.
pub fn install(rules: &Rules) -> Result<(), PolicyNotInForce> {
    let families = families()?;
    let mut connection = Connection::open(SockProtocol::NetlinkNetFilter)
        .map_err(|errno| refused("opening netfilter netlink", errno))?;
    let mut open = Batch::new(&mut connection);
    for family in &families {
        open.table(*family);
    }
    open.send("making the tables")?;
    for family in families {
        let mut batch = Batch::new(&mut connection);
        for (chain, expressions) in content(family, rules) {
            if batch.builder.length() > BATCH {
                batch.send("adding rules")?;
                batch = Batch::new(&mut connection);
            }
            batch.rule(family, chain, &expressions);
        }
        batch.send("adding rules")?;
    }
    verify(rules)
}

/// Compares what the kernel holds with what these rules mean: the hook, its default verdict, every rule and their order.
///
/// Needs the same privilege as [`install`].
pub fn verify(rules: &Rules) -> Result<(), PolicyNotInForce> {
    let mut connection = Connection::open(SockProtocol::NetlinkNetFilter)
        .map_err(|errno| refused("opening netfilter netlink", errno))?;
    for family in families()? {
        let place = |chain: &str| format!("{family:?} chain {chain}");
        let hooks = read_hooks(&mut connection, family).map_err(|errno| refused("reading chains", errno))?;
        let wanted = Hook { number: number::LOCAL_OUT, priority: 0, policy: number::DROP };
        if hooks != [wanted] {
            let difference = format!("hooks are {hooks:?}, not {wanted:?}");
            return Err(PolicyNotInForce::Different { place: place(OUTPUT), difference });
        }
        let all = content(family, rules);
        for chain in [OUTPUT, PUBLIC, REFUSE] {
            let expected: Vec<_> =
                all.iter().filter(|(name, _)| *name == chain).map(|(_, rule)| rule.clone()).collect();
            let found = read_rules(&mut connection, family, chain).map_err(|errno| refused("reading rules", errno))?;
            if found != expected {
                let first = expected.iter().zip(&found).position(|(expected, found)| expected != found);
                let first = first.unwrap_or(expected.len().min(found.len()));
                let difference = format!(
                    "{} rules instead of {}, rule {first} is {:?} instead of {:?}",
                    found.len(),
                    expected.len(),
                    found.get(first),
                    expected.get(first)
                );
                return Err(PolicyNotInForce::Different { place: place(chain), difference });
            }
        }
    }
    Ok(())
}

/// IPv4 always; IPv6 unless the kernel has none, and then there is nothing to hold back.
fn families() -> Result<Vec<Family>, PolicyNotInForce> {
    match socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None) {
        Ok(_) => Ok(vec![Family::V4, Family::V6]),
        Err(Errno::EAFNOSUPPORT) => Ok(vec![Family::V4]),
        Err(errno) => Err(refused("asking for IPv6", errno)),
    }
}

/// Every rule of a table with the chain that it stands in, in order.
fn content(family: Family, rules: &Rules) -> Vec<(&'static str, Vec<Expression>)> {
    use Expression::{Compare, Meta, Reject, Verdict as End};
    let is = |protocol: Protocol| [Meta(number::META_PROTOCOL), Compare(number::EQUAL, vec![protocol.number()])];
    let mut all = Vec::new();
    let list = match family {
        Family::V4 => &rules.v4,
        Family::V6 => &rules.v6,
    };
    all.extend(list.iter().map(|rule| (OUTPUT, expressions(family, rule))));
    for protocol in Protocol::ALL {
        all.push((PUBLIC, is(protocol).into_iter().chain([End(number::ACCEPT, None)]).collect()));
    }
    all.push((PUBLIC, vec![End(number::GOTO, Some(REFUSE.to_owned()))]));
    all.push((REFUSE, is(Protocol::Tcp).into_iter().chain([Reject(number::REJECT_RESET, 0)]).collect()));
    all.push((REFUSE, vec![Reject(number::REJECT_ICMP, family.prohibited())]));
    all
}

fn expressions(family: Family, rule: &Rule) -> Vec<Expression> {
    use Expression::{Compare, Mask, Meta, Payload, Verdict as End};
    let mut list = Vec::new();
    if rule.loopback {
        // Loopback is the first interface of every network namespace and can be no other (net/core/dev.c).
        list.extend([Meta(number::META_OUT_INTERFACE), Compare(number::EQUAL, 1_u32.to_ne_bytes().to_vec())]);
    }
    if let Some(destination) = rule.destination {
        let (offset, length) = family.destination();
        list.push(Payload(number::NETWORK, offset, length));
        if !destination.is_host() {
            list.push(Mask(destination.mask()));
        }
        list.push(Compare(number::EQUAL, octets(destination.address())));
    }
    if let Some(protocol) = rule.protocol {
        list.extend([Meta(number::META_PROTOCOL), Compare(number::EQUAL, vec![protocol.number()])]);
    }
    if let Some(Ports { first, last }) = rule.ports {
        // TCP and UDP both keep the destination port in the second pair of bytes.
        list.push(Payload(number::TRANSPORT, 2, 2));
        if first == last {
            list.push(Compare(number::EQUAL, first.to_be_bytes().to_vec()));
        } else {
            list.push(Compare(number::AT_LEAST, first.to_be_bytes().to_vec()));
            list.push(Compare(number::AT_MOST, last.to_be_bytes().to_vec()));
        }
    }
    list.push(match rule.verdict {
        Verdict::Accept => End(number::ACCEPT, None),
        Verdict::Public => End(number::GOTO, Some(PUBLIC.to_owned())),
        Verdict::Refuse => End(number::GOTO, Some(REFUSE.to_owned())),
    });
    list
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Messages that take effect together or not at all.
struct Batch<'a> {
    connection: &'a mut Connection,
    builder: Builder,
    last: u32,
}

impl<'a> Batch<'a> {
    fn new(connection: &'a mut Connection) -> Self {
        let mut builder = Builder::default();
        let sequence = connection.next_sequence();
        builder.message(number::BATCH_BEGIN, 0, sequence, &batch_header(), |_| {});
        Self { connection, builder, last: sequence }
    }

    fn add(&mut self, kind: u16, flags: u16, family: Family, attributes: impl FnOnce(&mut Builder)) {
        self.last = self.connection.next_sequence();
        let flags = netlink::CREATE | netlink::ACK | flags;
        self.builder.message(kind, flags, self.last, &header(family), attributes);
    }

    fn table(&mut self, family: Family) {
        self.add(number::NEW_TABLE, netlink::EXCLUSIVE, family, |builder| builder.name(number::TABLE_NAME, TABLE));
        for chain in [REFUSE, PUBLIC, OUTPUT] {
            self.add(number::NEW_CHAIN, netlink::EXCLUSIVE, family, |builder| {
                builder.name(number::CHAIN_TABLE, TABLE);
                builder.name(number::CHAIN_NAME, chain);
                if chain == OUTPUT {
                    builder.nested(number::CHAIN_HOOK, |builder| {
                        builder.number(number::HOOK_NUMBER, number::LOCAL_OUT);
                        builder.number(number::HOOK_PRIORITY, 0);
                    });
                    builder.number(number::CHAIN_POLICY, number::DROP);
                    builder.name(number::CHAIN_TYPE, "filter");
                }
            });
        }
    }

    fn rule(&mut self, family: Family, chain: &str, expressions: &[Expression]) {
        self.add(number::NEW_RULE, netlink::APPEND, family, |builder| {
            builder.name(number::RULE_TABLE, TABLE);
            builder.name(number::RULE_CHAIN, chain);
            builder.nested(number::RULE_EXPRESSIONS, |builder| {
                for expression in expressions {
                    builder.nested(number::LIST_ELEMENT, |builder| encode(builder, expression));
                }
            });
        });
    }

    fn send(mut self, step: &str) -> Result<(), PolicyNotInForce> {
        let sequence = self.connection.next_sequence();
        self.builder.message(number::BATCH_END, 0, sequence, &batch_header(), |_| {});
        self.connection.confirm(&self.builder.finish(), self.last).map_err(|(_, errno)| refused(step, errno))
    }
}

/// `struct nfgenmsg`: family, version 0, resource 0.
fn header(family: Family) -> [u8; 4] {
    [family.number(), 0, 0, 0]
}

/// The same for a batch: its resource is the subsystem, in network order.
fn batch_header() -> [u8; 4] {
    let [high, low] = number::SUBSYSTEM.to_be_bytes();
    [0, 0, high, low]
}

fn encode(builder: &mut Builder, expression: &Expression) {
    let name = match expression {
        Expression::Meta(_) => "meta",
        Expression::Payload(..) => "payload",
        Expression::Mask(_) => "bitwise",
        Expression::Compare(..) => "cmp",
        Expression::Verdict(..) => "immediate",
        Expression::Reject(..) => "reject",
    };
    builder.name(number::EXPRESSION_NAME, name);
    builder.nested(number::EXPRESSION_DATA, |builder| match expression {
        Expression::Meta(key) => {
            builder.number(2, *key);
            builder.number(1, number::REGISTER);
        }
        Expression::Payload(base, offset, length) => {
            builder.number(1, number::REGISTER);
            builder.number(2, *base);
            builder.number(3, *offset);
            builder.number(4, *length);
        }
        Expression::Mask(mask) => {
            builder.number(1, number::REGISTER);
            builder.number(2, number::REGISTER);
            builder.number(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
            builder.nested(4, |builder| builder.attribute(number::DATA_VALUE, mask));
            builder.nested(5, |builder| builder.attribute(number::DATA_VALUE, &vec![0; mask.len()]));
        }
        Expression::Compare(operator, value) => {
            builder.number(1, number::REGISTER);
            builder.number(2, *operator);
            builder.nested(3, |builder| builder.attribute(number::DATA_VALUE, value));
        }
        Expression::Verdict(code, chain) => {
            builder.number(1, number::REGISTER_VERDICT);
            builder.nested(2, |builder| {
                builder.nested(number::DATA_VERDICT, |builder| {
                    builder.attribute(number::VERDICT_CODE, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        builder.name(number::VERDICT_CHAIN, chain);
                    }
                });
            });
        }
        Expression::Reject(kind, code) => {
            builder.number(1, *kind);
            builder.attribute(2, &[*code]);
        }
    });
}

/// Reads one element of a rule's list as the kernel writes it; `None` for everything that [`encode`] does not write.
fn decode(element: &[u8]) -> Option<Expression> {
    let name = text(netlink::find(element, number::EXPRESSION_NAME)?)?;
    let data = netlink::find(element, number::EXPRESSION_DATA)?;
    let value = |kind| netlink::find(data, kind).and_then(read_number);
    let register = |kind| (value(kind)? == number::REGISTER).then_some(());
    let bytes = |kind| netlink::find(netlink::find(data, kind)?, number::DATA_VALUE).map(<[u8]>::to_vec);
    match name {
        "meta" => {
            register(1)?;
            Some(Expression::Meta(value(2)?))
        }
        "payload" => {
            register(1)?;
            Some(Expression::Payload(value(2)?, value(3)?, value(4)?))
        }
        "bitwise" => {
            register(1)?;
            register(2)?;
            // The kernel also states which operation (attribute 6); 0 is mask and xor, the only one of old kernels.
            let plain = value(6).is_none_or(|operation| operation == 0);
            let mask = bytes(4)?;
            let no_xor = bytes(5)?.iter().all(|byte| *byte == 0);
            let length = value(3)? as usize == mask.len();
            (plain && no_xor && length).then_some(Expression::Mask(mask))
        }
        "cmp" => {
            register(1)?;
            Some(Expression::Compare(value(2)?, bytes(3)?))
        }
        "immediate" => {
            (value(1)? == number::REGISTER_VERDICT).then_some(())?;
            let verdict = netlink::find(netlink::find(data, 2)?, number::DATA_VERDICT)?;
            let code = netlink::find(verdict, number::VERDICT_CODE)?.try_into().ok().map(i32::from_be_bytes)?;
            let chain = match netlink::find(verdict, number::VERDICT_CHAIN) {
                Some(name) => Some(text(name)?.to_owned()),
                None => None,
            };
            Some(Expression::Verdict(code, chain))
        }
        "reject" => {
            let kind = value(1)?;
            // A reset has no code, and the kernel does not give one back.
            let code = netlink::find(data, 2).and_then(|code| code.first().copied());
            let code = if kind == number::REJECT_RESET { 0 } else { code? };
            Some(Expression::Reject(kind, code))
        }
        _ => None,
    }
}

fn read_number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::ffi::CStr::from_bytes_with_nul(bytes).ok()?.to_str().ok()
}

/// What makes a chain a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hook {
    number: u32,
    priority: u32,
    policy: u32,
}

/// The hooks of our table.
fn read_hooks(connection: &mut Connection, family: Family) -> Result<Vec<Hook>, Errno> {
    let mut builder = Builder::default();
    let sequence = connection.next_sequence();
    builder.message(number::GET_CHAIN, netlink::DUMP, sequence, &header(family), |_| {});
    let mut hooks = Vec::new();
    for body in connection.dump(&builder.finish())? {
        let attributes = body.get(4..).ok_or(Errno::EBADMSG)?;
        let ours = netlink::find(attributes, number::CHAIN_TABLE).and_then(text) == Some(TABLE);
        if let (true, Some(hook)) = (ours, netlink::find(attributes, number::CHAIN_HOOK)) {
            let field = |bytes, kind| netlink::find(bytes, kind).and_then(read_number).ok_or(Errno::EBADMSG);
            hooks.push(Hook {
                number: field(hook, number::HOOK_NUMBER)?,
                priority: field(hook, number::HOOK_PRIORITY)?,
                policy: field(attributes, number::CHAIN_POLICY)?,
            });
        }
    }
    Ok(hooks)
}

/// The rules of one chain, in order.
fn read_rules(connection: &mut Connection, family: Family, chain: &str) -> Result<Vec<Vec<Expression>>, Errno> {
    let mut builder = Builder::default();
    let sequence = connection.next_sequence();
    builder.message(number::GET_RULE, netlink::DUMP, sequence, &header(family), |builder| {
        builder.name(number::RULE_TABLE, TABLE);
        builder.name(number::RULE_CHAIN, chain);
    });
    let mut rules = Vec::new();
    for body in connection.dump(&builder.finish())? {
        let attributes = body.get(4..).ok_or(Errno::EBADMSG)?;
        let is = |kind, name| netlink::find(attributes, kind).and_then(text) == Some(name);
        if !is(number::RULE_TABLE, TABLE) || !is(number::RULE_CHAIN, chain) {
            continue;
        }
        let list = netlink::find(attributes, number::RULE_EXPRESSIONS).ok_or(Errno::EBADMSG)?;
        let rule: Option<Vec<Expression>> = netlink::attributes(list).map(|element| decode(element?.1)).collect();
        rules.push(rule.ok_or(Errno::EBADMSG)?);
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::network::policy::{Policy, compile};
    use proptest::prelude::*;

    fn encoded(expression: &Expression) -> Vec<u8> {
        let mut builder = Builder::default();
        encode(&mut builder, expression);
        builder.finish()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_comparison_byte_for_byte() {
        let expected: &[u8] = &[
            8, 0, 1, 0, b'c', b'm', b'p', 0, // name
            32, 0, 2, 0x80, // data
            8, 0, 1, 0, 0, 0, 0, 1, // register 1
            8, 0, 2, 0, 0, 0, 0, 0, // equals
            12, 0, 3, 0x80, 6, 0, 1, 0, 0, 53, 0, 0, // the bytes 0 53, padded
        ];
        assert_eq!(encoded(&Expression::Compare(number::EQUAL, vec![0, 53])), expected);
    }

    #[test]
    fn every_expression_of_a_full_policy_reads_back() {
        let policy = Policy {
            allow: ["10.1.2.3:80-90/tcp", "[fd00::1]:53", "10.0.0.0/8"].map(|text| text.parse().unwrap()).to_vec(),
            ..Policy::default()
        };
        let rules = compile(&policy, &[], true).unwrap();
        for family in [Family::V4, Family::V6] {
            for (_, expressions) in content(family, &rules) {
                for expression in expressions {
                    assert_eq!(decode(&encoded(&expression)), Some(expression));
                }
            }
        }
    }

    #[test]
    fn a_port_is_read_only_after_its_protocol() {
        let policy = Policy { allow: vec!["192.0.2.1:443".parse().unwrap()], only: true, ..Policy::default() };
        let rules = compile(&policy, &[], false).unwrap();
        let ported: Vec<_> = rules.v4.iter().filter(|rule| rule.ports.is_some()).collect();
        assert_eq!(ported.len(), 2);
        assert!(ported.iter().all(|rule| rule.protocol.is_some()));
        use Expression::{Compare, Meta, Payload, Verdict as End};
        assert_eq!(
            expressions(Family::V4, ported[0]),
            [
                Payload(1, 16, 4),
                Compare(0, vec![192, 0, 2, 1]),
                Meta(16),
                Compare(0, vec![6]),
                Payload(2, 2, 2),
                Compare(0, vec![1, 187]),
                End(1, None),
            ]
        );
    }

    proptest! {
        #[test]
        fn foreign_elements_are_refused_not_feared(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = decode(&bytes);
        }
    }
}
