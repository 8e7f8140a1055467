//! The room's outer interface: hardware address, addresses, the way out (rtnetlink(7)).
//!
//! pasta could do this itself (`--config-net`), but what it then copies from the host differs between its versions, and
//! two hosts must look the same from inside. The gateway's hardware address is fixed as a permanent neighbour, so that no
//! neighbour discovery is needed, and the policy can refuse every multicast and link-local packet without exception.

use std::net::IpAddr;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::addresses::{self, Families};
use super::netlink::{self, Builder, Connection};
use super::policy::HostAddress;
use crate::sys;

/// Numbers of linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h and linux/neighbour.h.
mod number {
    pub const NEW_LINK: u16 = 16;
    pub const NEW_ADDRESS: u16 = 20;
    pub const NEW_ROUTE: u16 = 24;
    pub const NEW_NEIGHBOUR: u16 = 28;
    pub const IFLA_ADDRESS: u16 = 1;
    pub const IFLA_MTU: u16 = 4;
    pub const IFLA_AF_SPEC: u16 = 26;
    pub const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    /// `IN6_ADDR_GEN_MODE_NONE`: no link-local address comes by itself.
    pub const GENERATE_NONE: u8 = 1;
    pub const IFA_ADDRESS: u16 = 1;
    pub const IFA_LOCAL: u16 = 2;
    /// `IFA_F_NODAD`: the address is usable at once, nobody else is on this link.
    pub const NO_DUPLICATE_DETECTION: u8 = 2;
    pub const NDA_DESTINATION: u16 = 1;
    pub const NDA_HARDWARE: u16 = 2;
    pub const NUD_PERMANENT: u16 = 0x80;
    pub const RTA_OUT_INTERFACE: u16 = 4;
    pub const RTA_GATEWAY: u16 = 5;
    pub const TABLE_MAIN: u8 = 254;
    pub const PROTOCOL_STATIC: u8 = 4;
    pub const SCOPE_UNIVERSE: u8 = 0;
    pub const UNICAST: u8 = 1;
    /// `RTNH_F_ONLINK`: the gateway is on the link although no route says so.
    pub const ON_LINK: u32 = 4;
    pub const LOCAL: u8 = 2;
    /// The group of `RTNLGRP_IPV6_ROUTE` (11) as a bit.
    pub const GROUP_ROUTES_V6: u32 = 1 << 10;
    pub const RTA_DESTINATION: u16 = 1;
    pub const AF_INET: u8 = 2;
    pub const AF_INET6: u8 = 10;
    pub const IFF_UP: u32 = 1;
}

/// Why the room's interface could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceNotReady {
    /// The kernel refused a step.
    #[error("network interface {}: {step}: {errno}; {fix}", addresses::INTERFACE.to_string_lossy())]
    Refused {
        /// What was being done.
        step: &'static str,
        /// The kernel's word.
        errno: Errno,
        /// What to do.
        fix: &'static str,
    },
    /// The namespace holds other addresses than it was given.
    #[error(
        "network interface: the room has the addresses {found:?} instead of {expected:?}; it is not started, please report this"
    )]
    Different {
        /// What is there.
        found: Vec<IpAddr>,
        /// What was asked for.
        expected: Vec<IpAddr>,
    },
}

/// Gives the interface that pasta made its fixed addresses and routes, brings it up, and reads the addresses back.
///
/// Called by pid 1 of the room, after [`super::nftables::install`] and after pasta is ready. Needs `CAP_NET_ADMIN` over the
/// namespace. Loopback must be up already.
pub fn configure(families: Families) -> Result<(), InterfaceNotReady> {
    let refused = |step| {
        move |errno| {
            let fix = match errno {
                Errno::ENODEV => "pasta made no such interface; its own words are in the log",
                Errno::EPERM => "this is done before the room gives up CAP_NET_ADMIN over its own network namespace",
                _ => "use network none, or report this",
            };
            InterfaceNotReady::Refused { step, errno, fix }
        }
    };
    let index = sys::network::interface_index(addresses::INTERFACE).map_err(refused("looking for it"))?;
    let mut connection = Connection::open(SockProtocol::NetlinkRoute).map_err(refused("opening rtnetlink"))?;
    let events = Connection::listen(SockProtocol::NetlinkRoute, number::GROUP_ROUTES_V6);
    let events = events.map_err(refused("opening rtnetlink"))?;
    for (step, request) in requests(index, families) {
        let sequence = connection.next_sequence();
        let mut builder = Builder::default();
        builder.message(request.kind, netlink::ACK | request.flags, sequence, &request.fixed, |builder| {
            (request.attributes)(builder);
        });
        connection.confirm(&builder.finish(), sequence).map_err(|(_, errno)| refused(step)(errno))?;
    }
    if families.v6 {
        // The kernel confirms the address at once, but begins to receive for it a moment later, from a work queue. An
        // answer that pasta gives in that moment would be lost, and the first connection take two seconds.
        events.await_event(receives).map_err(refused("waiting for its IPv6 address"))?;
    }
    verify(families)
}

/// Compares the namespace's addresses with the fixed ones: these and loopback, no others.
pub fn verify(families: Families) -> Result<(), InterfaceNotReady> {
    let found = addresses::of_host().map_err(|errno| InterfaceNotReady::Refused {
        step: "reading back its addresses",
        errno,
        fix: "report this",
    })?;
    let found: Vec<HostAddress> = found.into_iter().filter(|own| !own.address.is_loopback()).collect();
    let mut expected = Vec::new();
    if families.v4 {
        expected.push(HostAddress { address: IpAddr::V4(addresses::ROOM_V4), prefix_length: 32 });
    }
    if families.v6 {
        expected.push(HostAddress { address: IpAddr::V6(addresses::ROOM_V6), prefix_length: 128 });
    }
    if found == expected {
        return Ok(());
    }
    let plain = |list: Vec<HostAddress>| list.into_iter().map(|own| own.address).collect();
    Err(InterfaceNotReady::Different { found: plain(found), expected: plain(expected) })
}

/// Whether this tells of the route by which the room receives what is sent to its own IPv6 address.
fn receives(event: netlink::Message<'_>) -> bool {
    let Some((route, attributes)) = event.body.split_at_checked(12) else { return false };
    let own = addresses::ROOM_V6.octets();
    event.kind == number::NEW_ROUTE
        && route[0] == number::AF_INET6
        && route[7] == number::LOCAL
        && netlink::find(attributes, number::RTA_DESTINATION) == Some(own.as_slice())
}

/// One message without its header.
struct Request {
    kind: u16,
    flags: u16,
    fixed: Vec<u8>,
    attributes: Box<dyn Fn(&mut Builder)>,
}

/// All steps, in order.
fn requests(index: u32, families: Families) -> Vec<(&'static str, Request)> {
    let mut list = vec![(
        "setting its hardware address and packet size",
        link(index, 0, 0, move |builder| {
            builder.attribute(number::IFLA_ADDRESS, &addresses::ROOM_MAC);
            builder.attribute(number::IFLA_MTU, &addresses::MTU.to_ne_bytes());
        }),
    )];
    if families.v6 {
        list.push((
            "turning off automatic IPv6 addresses",
            link(index, 0, 0, |builder| {
                builder.nested(number::IFLA_AF_SPEC, |builder| {
                    builder.nested(u16::from(number::AF_INET6), |builder| {
                        builder.attribute(number::IFLA_INET6_ADDR_GEN_MODE, &[number::GENERATE_NONE]);
                    });
                });
            }),
        ));
    }
    list.push(("bringing it up", link(index, number::IFF_UP, number::IFF_UP, |_| {})));
    let v4 = (IpAddr::V4(addresses::ROOM_V4), IpAddr::V4(addresses::GATEWAY_V4));
    let v6 = (IpAddr::V6(addresses::ROOM_V6), IpAddr::V6(addresses::GATEWAY_V6));
    for (own, gateway) in [families.v4.then_some(v4), families.v6.then_some(v6)].into_iter().flatten() {
        list.push(("giving it its address", address(index, own)));
        list.push(("naming its neighbour", neighbour(index, gateway)));
        list.push(("adding the default route", default_route(index, gateway)));
    }
    list
}

/// `struct ifinfomsg`: family, pad, type, index, flags, changed flags.
fn link(index: u32, flags: u32, change: u32, attributes: impl Fn(&mut Builder) + 'static) -> Request {
    let mut fixed = vec![0; 4];
    for field in [index, flags, change] {
        fixed.extend_from_slice(&field.to_ne_bytes());
    }
    Request { kind: number::NEW_LINK, flags: 0, fixed, attributes: Box::new(attributes) }
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index.
fn address(index: u32, own: IpAddr) -> Request {
    let (family, bytes) = parts(own);
    let flags = if own.is_ipv6() { number::NO_DUPLICATE_DETECTION } else { 0 };
    let width = if own.is_ipv4() { 32 } else { 128 };
    let mut fixed = vec![family, width, flags, number::SCOPE_UNIVERSE];
    fixed.extend_from_slice(&index.to_ne_bytes());
    Request {
        kind: number::NEW_ADDRESS,
        flags: netlink::CREATE | netlink::EXCLUSIVE,
        fixed,
        attributes: Box::new(move |builder| {
            builder.attribute(number::IFA_LOCAL, &bytes);
            builder.attribute(number::IFA_ADDRESS, &bytes);
        }),
    }
}

/// `struct ndmsg`: family, three bytes of padding, index, state, flags, type.
fn neighbour(index: u32, gateway: IpAddr) -> Request {
    let (family, bytes) = parts(gateway);
    let mut fixed = vec![family, 0, 0, 0];
    fixed.extend_from_slice(&index.to_ne_bytes());
    fixed.extend_from_slice(&number::NUD_PERMANENT.to_ne_bytes());
    fixed.extend_from_slice(&[0, 0]);
    Request {
        kind: number::NEW_NEIGHBOUR,
        flags: netlink::CREATE | netlink::EXCLUSIVE,
        fixed,
        attributes: Box::new(move |builder| {
            builder.attribute(number::NDA_DESTINATION, &bytes);
            builder.attribute(number::NDA_HARDWARE, &addresses::GATEWAY_MAC);
        }),
    }
}

/// `struct rtmsg`: family, destination and source lengths, type of service, table, protocol, scope, type, flags.
fn default_route(index: u32, gateway: IpAddr) -> Request {
    let (family, bytes) = parts(gateway);
    let mut fixed = vec![family, 0, 0, 0];
    fixed.extend_from_slice(&[number::TABLE_MAIN, number::PROTOCOL_STATIC, number::SCOPE_UNIVERSE, number::UNICAST]);
    fixed.extend_from_slice(&number::ON_LINK.to_ne_bytes());
    Request {
        kind: number::NEW_ROUTE,
        flags: netlink::CREATE | netlink::EXCLUSIVE,
        fixed,
        attributes: Box::new(move |builder| {
            builder.attribute(number::RTA_OUT_INTERFACE, &index.to_ne_bytes());
            builder.attribute(number::RTA_GATEWAY, &bytes);
        }),
    }
}

fn parts(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (number::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (number::AF_INET6, address.octets().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(request: &Request) -> Vec<u8> {
        let mut builder = Builder::default();
        builder.message(request.kind, request.flags, 1, &request.fixed, |builder| (request.attributes)(builder));
        builder.finish()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn messages_byte_for_byte() {
        let route: &[u8] = &[
            44, 0, 0, 0, 24, 0, 1, 6, 1, 0, 0, 0, 0, 0, 0, 0, // RTM_NEWROUTE, request create exclusive
            2, 0, 0, 0, 254, 4, 0, 1, 4, 0, 0, 0, // IPv4 default, main table, static, unicast, on link
            8, 0, 4, 0, 2, 0, 0, 0, // by interface 2
            8, 0, 5, 0, 203, 0, 113, 1, // to the gateway
        ];
        assert_eq!(bytes(&default_route(2, IpAddr::V4(addresses::GATEWAY_V4))), route);
        let neighbour_bytes: &[u8] = &[
            48, 0, 0, 0, 28, 0, 1, 6, 1, 0, 0, 0, 0, 0, 0, 0, // RTM_NEWNEIGH
            2, 0, 0, 0, 2, 0, 0, 0, 0x80, 0, 0, 0, // IPv4, interface 2, permanent
            8, 0, 1, 0, 203, 0, 113, 1, // who
            10, 0, 2, 0, 2, 0x61, 0x6e, 0x63, 0x68, 1, 0, 0, // hardware address, padded
        ];
        assert_eq!(bytes(&neighbour(2, IpAddr::V4(addresses::GATEWAY_V4))), neighbour_bytes);
        let up: &[u8] = &[
            32, 0, 0, 0, 16, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, // RTM_NEWLINK
            0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, // interface 2, up
        ];
        assert_eq!(bytes(&link(2, 1, 1, |_| {})), up);
        let own = bytes(&address(2, IpAddr::V6(addresses::ROOM_V6)));
        assert_eq!(own[16..24], [10, 128, 2, 0, 2, 0, 0, 0]);
        assert_eq!(own.len(), 16 + 8 + 20 + 20);
    }

    #[test]
    fn the_local_route_is_recognised() {
        let event = |kind: u8, to: IpAddr| {
            let mut fixed = [0; 12];
            (fixed[0], fixed[7]) = (number::AF_INET6, kind);
            let mut builder = Builder::default();
            let to = parts(to).1;
            builder.message(number::NEW_ROUTE, 0, 0, &fixed, |builder| builder.attribute(number::RTA_DESTINATION, &to));
            let bytes = builder.finish();
            netlink::messages(&bytes).all(|message| message.is_some_and(receives))
        };
        assert!(event(number::LOCAL, IpAddr::V6(addresses::ROOM_V6)));
        assert!(!event(number::UNICAST, IpAddr::V6(addresses::ROOM_V6)));
        assert!(!event(number::LOCAL, IpAddr::V6(addresses::GATEWAY_V6)));
        assert!(!receives(netlink::Message { kind: number::NEW_ROUTE, sequence: 0, body: &[] }));
    }

    #[test]
    fn only_the_asked_families_are_configured() {
        let count = |v4, v6| requests(2, Families { v4, v6 }).len();
        assert_eq!((count(true, true), count(true, false), count(false, true)), (9, 5, 6));
    }
}
