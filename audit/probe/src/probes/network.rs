//! What can be reached over sockets and networks: the observer's, the host's, its own.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anchorhold_probe::verdict::{Finding, Verdict, name_of};
use anchorhold_probe::world::World;

use crate::calls;
use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "net.abs.out",
        title: "A host's abstract socket can be reached",
        severity: Severity::Critical,
        reference: "CVE-2024-27297, CVE-2025-46416",
        tries: "Connects to the abstract stream socket that the observer listens on.",
        safe: "ECONNREFUSED (own network namespace) or EPERM (Landlock's scope)",
        meaning: "Abstract sockets belong to the network namespace, not to files. Over one, descriptors go out of the \
                  sandbox to a helper that changes outputs after they were checked, or into another build.",
        controls: &[Control::Network, Control::Host],
        order: Order::Any,
        root: false,
        run: |world| match &world.abstract_socket {
            Some(name) => Finding::of(connected(&abstract_address(name.as_bytes())).map(i64::from)),
            None => Finding::inconclusive("no abstract socket was set up"),
        },
    },
    Probe {
        id: "net.abs.in",
        title: "A host process can connect into the sandbox",
        severity: Severity::Critical,
        reference: "CVE-2025-46416; landlock-lsm issue 57",
        tries: "Listens on the abstract name that the observer keeps dialling, for one and a half seconds.",
        safe: "nobody arrives",
        meaning: "Whoever can dial in can hand over descriptors, and so turn a sandbox inside out. Landlock's scope does \
                  not stop this direction; only a network namespace of its own does.",
        controls: &[Control::Network, Control::Host],
        order: Order::Any,
        root: false,
        run: dialled,
    },
    Probe {
        id: "net.scm.out",
        title: "A directory descriptor can be handed to a host process",
        severity: Severity::Critical,
        reference: "CVE-2024-27297, CVE-2025-46416",
        tries: "Sends a descriptor of its current folder to the observer's abstract socket.",
        safe: "no connection, or the message is refused",
        meaning: "The receiver keeps write access to the build's folder and outputs after they were checked and \
                  registered: the store can be changed for everybody.",
        controls: &[Control::Network, Control::Host],
        order: Order::Any,
        root: false,
        run: |world| match &world.abstract_socket {
            Some(name) => Finding::of(connected(&abstract_address(name.as_bytes())).and_then(hand_over)),
            None => Finding::inconclusive("no abstract socket was set up"),
        },
    },
    Probe {
        id: "net.loopback.host",
        title: "A server on the host's loopback address can be reached",
        severity: Severity::High,
        reference: "NixOS/nix issues 2414 and 2270",
        tries: "Connects by TCP to the observer's port of 127.0.0.1.",
        safe: "ECONNREFUSED on an own loopback, or unreachable",
        meaning: "Databases, browsers' debuggers, package proxies and cloud agents trust whoever comes from the same \
                  machine.",
        controls: &[Control::Network, Control::Host],
        order: Order::Any,
        root: false,
        run: |world| match world.tcp_port {
            Some(port) => Finding::of(connected(&internet_address([127, 0, 0, 1], port)).map(i64::from)),
            None => Finding::inconclusive("no TCP listener was set up"),
        },
    },
    Probe {
        id: "net.loopback.six",
        title: "A server on the host's loopback address of version 6 can be reached",
        severity: Severity::High,
        reference: "nix-sandbox.md H8",
        tries: "Connects by TCP to the observer's port of ::1.",
        safe: "ECONNREFUSED on an own loopback, or unreachable",
        meaning: "Who keeps a sandbox from 127.0.0.1 alone keeps it from half of the servers.",
        controls: &[Control::Network, Control::Host],
        order: Order::Any,
        root: false,
        run: |world| match world.tcp6_port {
            Some(port) => {
                let mut address = [0; 16];
                address[15] = 1;
                Finding::of(connected(&internet6_address(address, port)).map(i64::from))
            }
            None => Finding::inconclusive("no TCP listener was set up"),
        },
    },
    Probe {
        id: "net.loopback.fastopen",
        title: "TCP fast open reaches the host's loopback past a filter on connect",
        severity: Severity::High,
        reference: "security-probes.md 0, number 8 (Landlock, measured on Linux 6.18)",
        tries: "Sends the observer's TCP port of 127.0.0.1 one byte with MSG_FASTOPEN instead of connect(2).",
        safe: "refused or unreachable",
        meaning: "Landlock's rule on TCP connect is not asked on this way: a sandbox that builds on it alone is open.",
        controls: &[Control::Network, Control::Host],
        order: Order::Any,
        root: false,
        run: |world| match world.tcp_port {
            Some(port) => Finding::of(fast_open(port)),
            None => Finding::inconclusive("no TCP listener was set up"),
        },
    },
    Probe::fact(
        "net.loopback.own",
        "The own loopback works",
        "Listens on a port of 127.0.0.1 and connects to it.",
        "Test suites need it. A sandbox without it breaks builds.",
        |_| match own_loopback() {
            Ok(()) => Finding::info("works"),
            Err(errno) => Finding::info(format!("does not work: {}", name_of(errno))),
        },
    ),
    Probe {
        id: "net.route",
        title: "There is a route to the outside world",
        severity: Severity::High,
        reference: "RFC 5737 (documentation addresses)",
        tries: "Connects a UDP socket to 192.0.2.1 and one to 2001:db8::1, which asks for a route and sends nothing.",
        safe: "ENETUNREACH",
        meaning: "What is built depends on servers elsewhere, and what is seen inside can be sent away.",
        controls: &[Control::Network, Control::Host],
        order: Order::Any,
        root: false,
        run: |world| {
            let documentation = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            Finding::worst([
                ("IPv4".to_owned(), Finding::of(routed(libc::AF_INET, &internet_address([192, 0, 2, 1], 9)))),
                ("IPv6".to_owned(), Finding::of(routed(libc::AF_INET6, &internet6_address(documentation, 9)))),
            ])
            .granted(world.network_granted)
        },
    },
    Probe {
        id: "net.metadata",
        title: "There is a route to link-local addresses, where clouds keep credentials",
        severity: Severity::High,
        reference: "security-probes.md 3.6",
        tries: "Connects a UDP socket to 169.254.169.254, which asks for a route and sends nothing.",
        safe: "ENETUNREACH; where a network was granted only its packet filter can tell, and the probe is inconclusive",
        meaning: "On most clouds whoever reaches that address gets the machine's own credentials.",
        controls: &[Control::LinkLocal],
        order: Order::Any,
        root: false,
        run: |world| match Finding::of(routed(libc::AF_INET, &internet_address([169, 254, 169, 254], 80))) {
            Finding { verdict: Verdict::Reached, .. } if world.network_granted => {
                Finding::inconclusive("a network was granted; whether its filter drops the packets is not tried")
            }
            finding => finding,
        },
    },
    Probe::fact(
        "net.ifaces",
        "Network interfaces and their hardware addresses",
        "Reads /proc/net/dev, and for each interface its hardware address by ioctl(2).",
        "Names and addresses tell machines apart; anything but `lo` is a network.",
        |_| Finding::info(interfaces().join(", ")),
    ),
    Probe {
        id: "net.dns",
        title: "Names can be looked up",
        severity: Severity::Medium,
        reference: "CVE-2024-47174 is its TLS sibling",
        tries: "Looks for a name server in /etc/resolv.conf to which there is a route, and connects to the sockets of the \
                name service cache and of the system's resolver.",
        safe: "absent, unless a network was granted",
        meaning: "A name service is a way out for data even where no packet is, and results depend on what it answers.",
        controls: &[Control::NameServer],
        order: Order::Any,
        root: false,
        run: |world| names_looked_up().granted(world.network_granted),
    },
];

/// `sockaddr_un` of an abstract name.
pub fn abstract_address(name: &[u8]) -> Vec<u8> {
    [&(libc::AF_UNIX as u16).to_ne_bytes()[..], &[0], name].concat()
}

/// `sockaddr_un` of a path.
pub fn path_address(path: &[u8]) -> Vec<u8> {
    [&(libc::AF_UNIX as u16).to_ne_bytes()[..], path, &[0]].concat()
}

/// `sockaddr_in`.
pub fn internet_address(address: [u8; 4], port: u16) -> Vec<u8> {
    [&(libc::AF_INET as u16).to_ne_bytes()[..], &port.to_be_bytes(), &address, &[0; 8]].concat()
}

/// `sockaddr_in6`.
pub fn internet6_address(address: [u8; 16], port: u16) -> Vec<u8> {
    [&(libc::AF_INET6 as u16).to_ne_bytes()[..], &port.to_be_bytes(), &[0; 4], &address, &[0; 4]].concat()
}

/// A stream socket that is connected to the address within a second: its descriptor.
pub fn connected(address: &[u8]) -> Result<i32, i32> {
    let family = i32::from(u16::from_ne_bytes([address[0], address[1]]));
    let socket = calls::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    match calls::connect(socket, address) {
        Ok(_) => Ok(socket),
        Err(libc::EINPROGRESS) => finished(socket).map(|()| socket),
        Err(errno) => {
            calls::close(socket);
            Err(errno)
        }
    }
}

/// Waits for a connection that was begun.
fn finished(socket: i32) -> Result<(), i32> {
    if !calls::ready(socket, libc::POLLOUT, 1000) {
        return Err(libc::ETIMEDOUT);
    }
    let (mut error, mut length) = ([0_i32], [4_u32]);
    calls::raw(
        libc::SYS_getsockopt,
        &[
            socket as usize,
            libc::SOL_SOCKET as usize,
            libc::SO_ERROR as usize,
            error.as_mut_ptr() as usize,
            length.as_mut_ptr() as usize,
        ],
    )?;
    if error[0] == 0 { Ok(()) } else { Err(error[0]) }
}

/// Whether the kernel knows a route to the address.
pub fn routed(family: i32, address: &[u8]) -> Result<i64, i32> {
    let socket = calls::socket(family, libc::SOCK_DGRAM, 0)?;
    let result = calls::connect(socket, address);
    calls::close(socket);
    result
}

fn dialled(world: &World) -> Finding {
    let Some(name) = &world.dialled_socket else {
        return Finding::inconclusive("nobody dials from outside");
    };
    let listen = || {
        let socket = calls::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
        calls::bind(socket, &abstract_address(name.as_bytes()))?;
        calls::raw(libc::SYS_listen, &[socket as usize, 4]).map(|_| socket)
    };
    let socket = match listen() {
        Ok(socket) => socket,
        Err(errno) => return Finding::refused(errno),
    };
    if !calls::readable(socket, 1500) {
        return Finding::absent("nobody arrived");
    }
    let guest = match calls::raw(libc::SYS_accept4, &[socket as usize, 0, 0, libc::SOCK_CLOEXEC as usize]) {
        Ok(guest) => guest as i32,
        Err(errno) => return Finding::refused(errno),
    };
    let mut bytes = [0; 256];
    let heard = match calls::readable(guest, 500) {
        true => calls::read(guest, &mut bytes).unwrap_or(0),
        false => 0,
    };
    match String::from_utf8_lossy(&bytes[..heard]).contains(&world.nonce) {
        true => Finding::reached("the observer arrived"),
        false => Finding::reached("somebody arrived, without the nonce"),
    }
}

/// Sends a descriptor of the current folder over a connected socket.
fn hand_over(socket: i32) -> Result<i64, i32> {
    let folder = calls::open(".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    calls::send_descriptor(socket, folder)
}

/// Sends one byte by fast open, and waits until the connection stands.
fn fast_open(port: u16) -> Result<i64, i32> {
    let socket = calls::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    let address = internet_address([127, 0, 0, 1], port);
    let sent = calls::raw(
        libc::SYS_sendto,
        &[
            socket as usize,
            b"\n".as_ptr() as usize,
            1,
            libc::MSG_FASTOPEN as usize,
            address.as_ptr() as usize,
            address.len(),
        ],
    );
    match sent {
        Ok(_) | Err(libc::EINPROGRESS) => finished(socket).map(|()| 0),
        Err(errno) => Err(errno),
    }
}

fn own_loopback() -> Result<(), i32> {
    let socket = calls::socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    calls::bind(socket, &internet_address([127, 0, 0, 1], 0))?;
    calls::raw(libc::SYS_listen, &[socket as usize, 4])?;
    let (mut address, mut length) = ([0_u8; 16], [16_u32]);
    calls::raw(libc::SYS_getsockname, &[socket as usize, address.as_mut_ptr() as usize, length.as_mut_ptr() as usize])?;
    connected(&address).map(|_| ())
}

/// Names and hardware addresses.
pub fn interfaces() -> Vec<String> {
    let text = calls::contents("/proc/net/dev", 65536).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let socket = calls::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    interface_names(&text)
        .map(|name| match &socket {
            Ok(socket) => format!("{name} {}", hardware_address(*socket, name).unwrap_or_else(name_of)),
            Err(_) => name.to_owned(),
        })
        .collect()
}

/// The names in /proc/net/dev, behind its two lines of headings.
fn interface_names(text: &str) -> impl Iterator<Item = &str> {
    text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim()))
}

/// `SIOCGIFHWADDR`.
fn hardware_address(socket: i32, name: &str) -> Result<String, i32> {
    let mut request = [0_u8; 40];
    let name = OsStr::new(name).as_bytes();
    let length = name.len().min(15);
    request[..length].copy_from_slice(&name[..length]);
    calls::raw(libc::SYS_ioctl, &[socket as usize, libc::SIOCGIFHWADDR as usize, request.as_mut_ptr() as usize])?;
    Ok(request[18..24].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
}

fn names_looked_up() -> Finding {
    let text = calls::contents("/etc/resolv.conf", 16384).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let servers = name_servers(&text).map(|server| {
        let result = match server.parse() {
            Ok(std::net::IpAddr::V4(address)) => routed(libc::AF_INET, &internet_address(address.octets(), 53)),
            Ok(std::net::IpAddr::V6(address)) => routed(libc::AF_INET6, &internet6_address(address.octets(), 53)),
            Err(_) => Err(libc::EINVAL),
        };
        // An own loopback always has a route; who listens there is the sandbox's own.
        let own = server.starts_with("127.") || server == "::1";
        (format!("name server {server}"), if own { Finding::absent("loopback") } else { Finding::of(result) })
    });
    let sockets = ["/run/nscd/socket", "/var/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve"].map(|path| {
        let result = connected(&path_address(path.as_bytes())).map(i64::from);
        (path.to_owned(), Finding::of(result))
    });
    Finding::worst(servers.chain(sockets).collect::<Vec<_>>())
}

/// The addresses of the name servers in a resolv.conf(5).
fn name_servers(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_kernels_own_form() {
        assert_eq!(abstract_address(b"ab"), [1, 0, 0, b'a', b'b']);
        assert_eq!(path_address(b"/a"), [1, 0, b'/', b'a', 0]);
        assert_eq!(internet_address([127, 0, 0, 1], 258), [2, 0, 1, 2, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(internet6_address([7; 16], 1).len(), 28);
    }

    #[test]
    fn name_servers_are_found_whatever_else_is_there() {
        let text = "# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.1\nnameserver\t::1 x\n";
        assert_eq!(name_servers(text).collect::<Vec<_>>(), ["192.0.2.1", "::1"]);
    }

    #[test]
    fn interfaces_are_named_without_their_headings() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 2\n  eth0:3 4\n";
        assert_eq!(interface_names(text).collect::<Vec<_>>(), ["lo", "eth0"]);
    }

    #[test]
    fn a_listener_on_the_own_loopback_is_reached_and_a_closed_port_is_not() {
        own_loopback().expect("tests run where a loopback is");
        let socket = calls::socket(libc::AF_INET, libc::SOCK_STREAM, 0).expect("so they have sockets");
        calls::bind(socket, &internet_address([127, 0, 0, 1], 0)).expect("any port");
        let (mut address, mut length) = ([0_u8; 16], [16_u32]);
        let pointers = [address.as_mut_ptr() as usize, length.as_mut_ptr() as usize];
        calls::raw(libc::SYS_getsockname, &[socket as usize, pointers[0], pointers[1]]).expect("it is bound");
        // Bound but not listening: nobody else can take the port meanwhile.
        assert_eq!(connected(&address), Err(libc::ECONNREFUSED));
    }
}
