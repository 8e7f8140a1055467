//! What the room tries: to whom, by which trick, and whether it must get through.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use anchorhold_sandbox::sys;
use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};
use nix::sys::time::TimeVal;

/// What a probe does differently from a plain program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trick {
    Plain,
    /// UDP: connect before sending.
    Connected,
    /// `SO_BINDTODEVICE`: passes routing rules over IPv4.
    Device,
    /// `IP_PKTINFO` with the interface: the same.
    PacketInfo,
    /// `SO_DONTROUTE`.
    DontRoute,
    /// `IP_FREEBIND` and a source address that is not ours.
    Freebind,
    /// `MSG_FASTOPEN`: passes Landlock's connect rule.
    FastOpen,
    /// `SO_BROADCAST`.
    Broadcast,
}

#[derive(Clone, Debug)]
pub struct Probe {
    pub udp: bool,
    pub to: SocketAddr,
    pub trick: Trick,
    /// Nobody would answer anyway, or the refusal cannot be told to the socket.
    pub may_be_silent: bool,
}

impl Probe {
    pub fn new(udp: bool, to: &str, trick: Trick) -> Self {
        let to: SocketAddr = to.parse().unwrap_or_else(|_| panic!("{to} is no address"));
        let ip = to.ip().to_canonical();
        // A closed port of the room's own loopback is not told to an unconnected socket, and a refusal that goes to an
        // address that is not ours does not arrive.
        let own = udp && (ip.is_loopback() || ip.is_unspecified());
        Self { udp, to, trick, may_be_silent: own || trick == Trick::Freebind }
    }

    pub fn tcp(to: &str) -> Self {
        Self::new(false, to, Trick::Plain)
    }

    pub fn udp(to: &str) -> Self {
        Self::new(true, to, Trick::Plain)
    }
}

/// Sends, and wants an answer.
pub fn attempt(wanted: &Probe) -> nix::Result<()> {
    let Probe { udp, to, trick, .. } = *wanted;
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = if udp { SockType::Datagram } else { SockType::Stream };
    let fd: OwnedFd = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // What reaches somebody does so within a millisecond, and a refusal is as quick; a loaded machine gets five seconds.
    let patience = if wanted.may_be_silent { TimeVal::new(0, 400_000) } else { TimeVal::new(5, 0) };
    setsockopt(&fd, sockopt::SendTimeout, &patience)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
    let target = SockaddrStorage::from(to);
    match trick {
        Trick::Device => setsockopt(&fd, sockopt::BindToDevice, &"eth0".into())?,
        Trick::DontRoute => setsockopt(&fd, sockopt::DontRoute, &true)?,
        Trick::Broadcast => setsockopt(&fd, sockopt::Broadcast, &true)?,
        Trick::Freebind => {
            setsockopt(&fd, sockopt::IpFreebind, &true)?;
            let source = if to.is_ipv4() { "192.0.2.77:0" } else { "[2001:db8::77]:0" };
            let source: SocketAddr = source.parse().map_err(|_| Errno::EINVAL)?;
            socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(source))?;
        }
        Trick::Plain | Trick::Connected | Trick::PacketInfo | Trick::FastOpen => {}
    }
    let raw = fd.as_raw_fd();
    let none = MsgFlags::empty();
    match (udp, trick) {
        (true, Trick::Connected) => {
            socket::connect(raw, &target)?;
            socket::send(raw, b"question", none)?;
        }
        (true, Trick::PacketInfo) => {
            let index = i32::try_from(sys::network::interface_index(c"eth0")?).map_err(|_| Errno::EINVAL)?;
            let zero = libc::in_addr { s_addr: 0 };
            let info = libc::in_pktinfo { ipi_ifindex: index, ipi_spec_dst: zero, ipi_addr: zero };
            let data = [io::IoSlice::new(b"question")];
            socket::sendmsg(raw, &data, &[ControlMessage::Ipv4PacketInfo(&info)], none, Some(&target))?;
        }
        (true, _) => {
            socket::sendto(raw, b"question", &target, none)?;
        }
        (false, Trick::FastOpen) => {
            socket::sendto(raw, b"x", &target, MsgFlags::from_bits_retain(libc::MSG_FASTOPEN))?;
        }
        (false, _) => socket::connect(raw, &target)?,
    }
    let mut buffer = [0; 64];
    if socket::recv(raw, &mut buffer, none)? == 0 { Err(Errno::ECONNRESET) } else { Ok(()) }
}

/// Every probe of a scenario, and whether it shall reach somebody.
pub fn probes(scenario: &str, dns_over_tcp: bool) -> Vec<(Probe, bool)> {
    let mut list: Vec<(Probe, bool)> = Vec::new();
    let public = ["192.0.2.10:8080", "[2001:db8:1::10]:8080"];
    match scenario {
        "default" => {
            for to in public {
                list.push((Probe::tcp(to), true));
                list.push((Probe::udp(to), true));
                list.push((Probe::new(true, to, Trick::Connected), true));
                list.push((Probe::new(false, to, Trick::Device), true));
            }
            list.push((Probe::new(false, public[0], Trick::FastOpen), true));
            // The name server, and that alone at that address.
            list.push((Probe::udp("203.0.113.53:53"), true));
            list.push((Probe::tcp("203.0.113.53:53"), dns_over_tcp));
            list.push((Probe::udp("203.0.113.53:5353"), false));
            // Loopback is the room's own; the gateway could be mapped to the host; the host's own addresses; private and
            // carrier networks and where clouds give credentials; the host's neighbour; IPv4 dressed as IPv6.
            for to in [
                "127.0.0.1:9090",
                "[::1]:9090",
                "127.8.8.8:9090",
                "0.0.0.0:9090",
                "[::]:9090",
                "203.0.113.1:9090",
                "[2001:db8:616e:6368::1]:9090",
                "198.51.100.2:9090",
                "10.7.7.7:9090",
                "[2001:db8:99::2]:9090",
                "10.9.9.9:8080",
                "169.254.169.254:8080",
                "100.64.0.9:8080",
                "[fd00:9::9]:8080",
                "[2001:db8:99::1]:8080",
                "[::ffff:10.9.9.9]:8080",
                "[::ffff:127.0.0.1]:9090",
                "[64:ff9b::a09:909]:8080",
                "[2002:a09:909::1]:8080",
                "[::10.9.9.9]:8080",
                "[fe80::1%2]:8080",
            ] {
                list.push((Probe::tcp(to), false));
                list.push((Probe::udp(to), false));
            }
            for trick in [Trick::Device, Trick::DontRoute, Trick::Freebind, Trick::FastOpen] {
                for to in ["10.9.9.9:8080", "169.254.169.254:8080", "[fd00:9::9]:8080", "10.7.7.7:9090"] {
                    list.push((Probe::new(false, to, trick), false));
                }
            }
            for trick in [Trick::Device, Trick::DontRoute, Trick::Freebind, Trick::Connected] {
                list.push((Probe::new(true, "10.9.9.9:5353", trick), false));
                list.push((Probe::new(true, "[fd00:9::9]:5353", trick), false));
            }
            list.push((Probe::new(true, "10.9.9.9:5353", Trick::PacketInfo), false));
            for to in
                ["224.0.0.251:5353", "239.1.1.1:5353", "255.255.255.255:5353", "[ff02::fb%2]:5353", "[ff0e::1]:5353"]
            {
                list.push((Probe::new(true, to, Trick::Broadcast), false));
                list.push((Probe::new(true, to, Trick::Device), false));
            }
        }
        "allow" => {
            list.extend(public.map(|to| (Probe::tcp(to), true)));
            // The host opens by its very address and port, not by a network that it lies in.
            for (to, reach) in [
                ("10.9.9.9:8080", true),
                ("10.9.9.9:8081", false),
                ("10.9.9.8:8080", false),
                ("10.7.7.7:9090", true),
                ("10.7.7.7:9091", false),
                ("198.51.100.2:9090", false),
                ("198.51.100.1:8080", true),
                ("[fd00:9::9]:8080", false),
            ] {
                list.push((Probe::tcp(to), reach));
            }
            for (to, reach) in [
                ("10.9.9.9:5353", false),
                ("10.9.9.9:8080", false),
                ("[fd00:9::9]:5353", true),
                ("198.51.100.1:5353", true),
            ] {
                list.push((Probe::udp(to), reach));
            }
            list.push((Probe::new(false, "10.9.9.9:8081", Trick::Device), false));
            list.push((Probe::new(false, "10.9.9.9:8080", Trick::FastOpen), true));
        }
        "only" => {
            list.extend(public.map(|to| (Probe::tcp(to), true)));
            list.push((Probe::udp(public[1]), true));
            for to in
                ["192.0.2.10:8081", "198.51.100.1:8080", "10.9.9.9:8080", "10.7.7.7:9090", "[2001:db8:1::10]:8081"]
            {
                for trick in [Trick::Plain, Trick::Device, Trick::FastOpen] {
                    list.push((Probe::new(false, to, trick), false));
                }
            }
            for to in ["192.0.2.10:5353", "192.0.2.10:8080", "203.0.113.53:53", "[2001:db8:1::10]:5353"] {
                list.push((Probe::udp(to), false));
            }
        }
        "local resolver" => {
            list.push((Probe::udp("203.0.113.53:53"), true));
            list.push((Probe::udp("127.0.0.53:53"), false));
            list.push((Probe::udp("203.0.113.1:53"), false));
        }
        "large" => {
            // 10.0.0.0/24 to 10.3.255.0/24 are open by the list.
            list.push((Probe::tcp(public[0]), true));
            list.push((Probe::tcp("10.9.9.9:8080"), false));
            list.push((Probe::udp("10.9.9.9:8080"), false));
        }
        // Without the policy pasta reaches what the host reaches: so it is the policy that closes the doors above. What
        // pasta's own options close stays closed.
        _ => {
            for to in ["192.0.2.10:8080", "10.9.9.9:8080", "169.254.169.254:8080", "10.7.7.7:9090", "[fd00:9::9]:8080"]
            {
                list.push((Probe::tcp(to), true));
            }
            list.push((Probe::udp("10.9.9.9:5353"), true));
            list.push((Probe::tcp("127.0.0.1:9090"), false));
            list.push((Probe { may_be_silent: true, ..Probe::tcp("203.0.113.1:9090") }, false));
        }
    }
    list
}
