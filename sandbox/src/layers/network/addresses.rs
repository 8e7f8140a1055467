//! The addresses of a room, the same in every room on every host, and the ones of the host that it must not reach.
//!
//! The room lives in networks that documentation owns (RFC 5737's third, and a /64 of RFC 3849 whose last groups spell
//! "anch"), so they hide nothing real, and their scope is global: programs that prefer an address by its scope (RFC 6724)
//! treat the room like a machine on the internet.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::policy::{HostAddress, Policy};

/// The room's own IPv4 address.
pub const ROOM_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// Where the room sends IPv4 packets; pasta plays it, and the policy lets nobody talk to it.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The name server as the room sees it over IPv4; pasta hands its questions to the host's first one.
pub const DNS_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
/// The room's own IPv6 address.
pub const ROOM_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x616e, 0x6368, 0, 0, 0, 2);
/// Where the room sends IPv6 packets.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x616e, 0x6368, 0, 0, 0, 1);
/// The name server as the room sees it over IPv6.
pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x616e, 0x6368, 0, 0, 0, 0x53);
/// Hardware address of the room's interface: locally administered, spells "anch" and a 2 for the room.
pub const ROOM_MAC: [u8; 6] = [0x02, 0x61, 0x6e, 0x63, 0x68, 0x02];
/// Hardware address under which pasta answers.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x61, 0x6e, 0x63, 0x68, 0x01];
/// Name of the room's outer interface.
pub const INTERFACE: &std::ffi::CStr = c"eth0";
/// Largest packet between room and pasta, in bytes: 65535 less the Ethernet header, in words of four (pasta(1), `--mtu`).
/// Nothing of this size travels further, because pasta ends every connection and opens it again on the host.
pub const MTU: u32 = 65520;

/// Which versions of IP a room has: those for which the host has a default route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    /// Reads the routing tables of the calling process's network namespace.
    ///
    /// A host without any default route answers with both off: then pasta has nothing to hand on.
    pub fn of_host() -> std::io::Result<Self> {
        let v4 = default_route_v4(&std::fs::read_to_string("/proc/self/net/route")?);
        let v6 = match std::fs::read_to_string("/proc/self/net/ipv6_route") {
            Ok(table) => default_route_v6(&table),
            // The file is missing on a kernel without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        Ok(Self { v4, v6 })
    }
}

/// `/proc/net/route`: interface, destination, gateway, flags, …, mask in columns 0, 1, 2, 3, 7, all hexadecimal.
fn default_route_v4(table: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        let usable = flags(&columns, 3).is_some_and(|flags| flags & RTF_UP != 0 && flags & RTF_REJECT == 0);
        usable
            && columns.first() != Some(&"lo")
            && columns.get(1) == Some(&"00000000")
            && columns.get(7) == Some(&"00000000")
    })
}

/// `/proc/net/ipv6_route`: destination, its length, source, its length, next hop, metric, …, flags, interface in columns
/// 0, 1, 2, 3, 4, 5, 8, 9.
fn default_route_v6(table: &str) -> bool {
    table.lines().any(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        let usable = flags(&columns, 8).is_some_and(|flags| flags & RTF_UP != 0 && flags & RTF_REJECT == 0);
        // The kernel's own unreachable default route sits on the loopback interface.
        usable && columns.get(1) == Some(&"00") && columns.get(9).is_some_and(|name| *name != "lo")
    })
}

/// Route is usable; route is a refusal (linux/route.h).
const RTF_UP: u32 = 0x0001;
const RTF_REJECT: u32 = 0x0200;

fn flags(columns: &[&str], column: usize) -> Option<u32> {
    u32::from_str_radix(columns.get(column)?, 16).ok()
}

/// Every address on every interface of the host, as it is now, in the calling process's network namespace.
pub fn of_host() -> Result<Vec<HostAddress>, Errno> {
    let mut found: Vec<HostAddress> = nix::ifaddrs::getifaddrs()?
        .filter_map(|interface| {
            let address = address_of(interface.address.as_ref()?)?;
            let prefix_length = match interface.netmask.as_ref().and_then(address_of) {
                Some(IpAddr::V4(mask)) => mask.to_bits().leading_ones(),
                Some(IpAddr::V6(mask)) => mask.to_bits().leading_ones(),
                None if address.is_ipv4() => 32,
                None => 128,
            };
            Some(HostAddress { address, prefix_length: u8::try_from(prefix_length).ok()? })
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn address_of(socket: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = socket.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| socket.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// The room's `/etc/resolv.conf`. Empty but for a comment when the policy has no name server.
///
/// One server only, and IPv4 first: pasta forwards each family to the host's first server of that family, and a second
/// line would only make programs wait for a server that may not exist. `host_resolv_conf` is the host's own file.
pub fn resolv_conf(policy: &Policy, families: Families, host_resolv_conf: &str) -> String {
    let mut text = String::from("# Written by anchorhold.\n");
    if !policy.has_dns() {
        return text;
    }
    let servers = name_servers(host_resolv_conf);
    let has = |v4: bool| servers.iter().any(|server| server.is_ipv4() == v4);
    // pasta knows both families only where the host has both.
    let server = match (families.v4 && has(true), families.v6 && has(false)) {
        (true, _) => Some(IpAddr::V4(DNS_V4)),
        (false, true) => Some(IpAddr::V6(DNS_V6)),
        (false, false) => None,
    };
    if let Some(server) = server {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

/// Most lines of the host's file that are read; glibc itself stops at three servers.
const MAX_RESOLV_LINES: usize = 256;

fn name_servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .take(MAX_RESOLV_LINES)
        .filter_map(|line| line.strip_prefix("nameserver")?.split_ascii_whitespace().next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Families = Families { v4: true, v6: true };

    #[test]
    fn default_routes_are_told_from_others() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let default = "eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        let local = "eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert!(default_route_v4(&format!("{head}{local}{default}")));
        assert!(!default_route_v4(&format!("{head}{local}")));
        assert!(!default_route_v4(head));
        assert!(!default_route_v4(""));
        let zero = "0".repeat(32);
        let v6 =
            |flags: &str, name: &str| format!("{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 {flags} {name}\n");
        assert!(default_route_v6(&v6("00000003", "eth0")));
        assert!(!default_route_v6(&v6("00200200", "lo")));
        assert!(!default_route_v6(&format!("{zero} 40 broken")));
    }

    #[test]
    fn resolv_conf_names_one_fixed_server() {
        let policy = Policy::default();
        let v4 = "# Written by anchorhold.\nnameserver 203.0.113.53\n";
        assert_eq!(resolv_conf(&policy, BOTH, "search a\nnameserver 127.0.0.53\nnameserver ::1\n"), v4);
        let v6 = "# Written by anchorhold.\nnameserver 2001:db8:616e:6368::53\n";
        assert_eq!(resolv_conf(&policy, BOTH, "nameserver 2001:db8::1\n"), v6);
        let none = "# Written by anchorhold.\n";
        assert_eq!(resolv_conf(&policy, BOTH, ""), none);
        assert_eq!(resolv_conf(&policy, Families { v4: true, v6: false }, "nameserver ::1\n"), none);
        assert_eq!(resolv_conf(&Policy { only: true, ..policy }, BOTH, "nameserver 192.0.2.1\n"), none);
    }

    #[test]
    fn the_host_has_its_loopback_address() {
        // True in every network namespace whose loopback is up; where it is down the list is empty, not an error.
        let found = of_host().unwrap();
        assert!(found.is_empty() || found.iter().any(|own| own.address.is_loopback()), "{found:?}");
    }
}
