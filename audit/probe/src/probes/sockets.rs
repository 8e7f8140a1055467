//! Families and protocols of sockets: what the kernel offers beyond files and the internet.

use anchorhold_probe::verdict::Finding;
use anchorhold_probe::world::World;

use crate::calls::{self, LowMemory};
use crate::probe::{Control, Order, Probe, Severity};
use crate::ring::Operation;

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "sock.vsock",
        title: "A vsock socket can be made",
        severity: Severity::High,
        reference: "vsock(7)",
        tries: "Makes a stream socket of the family AF_VSOCK.",
        safe: "EAFNOSUPPORT",
        meaning: "Before Linux 7.0 vsock knows no network namespaces: a sandbox without network talks to the hypervisor, \
                  to virtual machines and to every other sandbox of the host.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| Finding::of(made(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    },
    Probe {
        id: "net.vsock.shared",
        title: "The vsock ports are those of the host",
        severity: Severity::High,
        reference: "vsock(7); security-probes.md 0, number 5",
        tries: "Binds the vsock port that the observer has bound. That it is in use shows one space of ports.",
        safe: "EAFNOSUPPORT, or the port is free",
        meaning: "Two builds, or a build and the host, can talk over a port that both see, past every network namespace.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |world| vsock_shared(world, |family| calls::socket(family, libc::SOCK_STREAM, 0)),
    },
    Probe {
        id: "sock.alg",
        title: "The kernel's ciphers can be used over a socket",
        severity: Severity::High,
        reference: "CVE-2026-31431",
        tries: "Makes a socket of the family AF_ALG.",
        safe: "EAFNOSUPPORT",
        meaning: "Through it the page cache was written, which read-only mounts share with the host: inputs of all builds \
                  could be changed.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| Finding::of(made(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    },
    Probe {
        id: "sock.socketcall",
        title: "The 32-bit multiplexer makes sockets that the filter refuses",
        severity: Severity::High,
        reference: "socketcall(2); moby, May 2026",
        tries: "Makes AF_VSOCK and AF_ALG sockets by the i386 call socketcall, whose arguments lie behind a pointer.",
        safe: "any refusal",
        meaning: "A filter sees numbers, not what pointers lead to: on this way every family goes past it.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| {
            Finding::worst([
                ("AF_VSOCK".to_owned(), Finding::of(by_socketcall(libc::AF_VSOCK, libc::SOCK_STREAM))),
                ("AF_ALG".to_owned(), Finding::of(by_socketcall(libc::AF_ALG, libc::SOCK_SEQPACKET))),
            ])
        },
    },
    Probe {
        id: "sock.int80",
        title: "The 32-bit call socket makes sockets that the native one refuses",
        severity: Severity::High,
        reference: "nix-sandbox.md H1 (foreign entries)",
        tries: "Makes AF_VSOCK and AF_ALG sockets by the i386 call socket.",
        safe: "EAFNOSUPPORT",
        meaning: "A filter for the native entry alone leaves the other one open to every program.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| {
            let by_socket = |family: i32, kind: i32| calls::int80(359, [family as u32, kind as u32, 0, 0, 0]);
            Finding::worst([
                ("AF_VSOCK".to_owned(), Finding::of(by_socket(libc::AF_VSOCK, libc::SOCK_STREAM))),
                ("AF_ALG".to_owned(), Finding::of(by_socket(libc::AF_ALG, libc::SOCK_SEQPACKET))),
            ])
        },
    },
    Probe {
        id: "sock.uring",
        title: "io_uring makes sockets that the filter refuses",
        severity: Severity::Medium,
        reference: "io_uring_enter(2), IORING_OP_SOCKET",
        tries: "Makes an AF_VSOCK socket, and where there is none an AF_UNIX one, as an operation of a ring.",
        safe: "ENOSYS",
        meaning: "Operations of a ring pass no filter.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| {
            let made = |family: i32| {
                let operation = Operation {
                    opcode: 45,
                    descriptor: family,
                    offset: libc::SOCK_STREAM as u64,
                    ..Operation::default()
                };
                Finding::of(operation.perform())
            };
            Finding::worst([("AF_VSOCK".to_owned(), made(libc::AF_VSOCK)), ("AF_UNIX".to_owned(), made(libc::AF_UNIX))])
        },
    },
    Probe {
        id: "sock.packet",
        title: "Raw link-layer sockets can be made",
        severity: Severity::Medium,
        reference: "packet(7); CVE-2020-14386",
        tries: "Makes a socket of the family AF_PACKET.",
        safe: "EPERM",
        meaning: "Everything on the wire is read and forged, and the family's code has a long record of escalations.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |_| Finding::of(made(libc::AF_PACKET, libc::SOCK_RAW, 0x0300)),
    },
    Probe {
        id: "sock.raw",
        title: "Raw internet sockets can be made",
        severity: Severity::Medium,
        reference: "raw(7)",
        tries: "Makes a raw socket for ICMP.",
        safe: "EPERM",
        meaning: "Packets of every protocol can be forged in the sandbox's network.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |_| Finding::of(made(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    },
    Probe {
        id: "sock.xdp",
        title: "Express data path sockets can be made",
        severity: Severity::Medium,
        reference: "Linux Documentation/networking/af_xdp.rst",
        tries: "Makes a socket of the family AF_XDP.",
        safe: "EPERM or EAFNOSUPPORT",
        meaning: "Memory is shared with network drivers: surface that no build needs.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |_| Finding::of(made(libc::AF_XDP, libc::SOCK_RAW, 0)),
    },
    Probe {
        id: "sock.key",
        title: "IPsec key sockets can be made",
        severity: Severity::Medium,
        reference: "RFC 2367",
        tries: "Makes a socket of the family AF_KEY.",
        safe: "EPERM or EAFNOSUPPORT",
        meaning: "It administers the kernel's IPsec, and its code is old.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |_| Finding::of(made(libc::AF_KEY, libc::SOCK_RAW, 2)),
    },
    netlink("sock.netlink.audit", 9, "The kernel's audit", "A build could listen to, or fill, the host's audit log."),
    netlink("sock.netlink.xfrm", 6, "IPsec policy", "Its parser has been a way to kernel memory (CVE-2017-16939)."),
    netlink("sock.netlink.netfilter", 12, "The packet filter", "nf_tables is the most used escalation of late years."),
    netlink("sock.netlink.connector", 11, "Process events", "It tells of every process that starts on the host."),
    netlink("sock.netlink.selinux", 7, "SELinux events", "It tells of the host's policy."),
    netlink("sock.netlink.iscsi", 8, "Network disks", "Any user could administer disks (CVE-2021-27364)."),
    netlink("sock.netlink.fib", 10, "Route look-ups", "It shows routes, and nothing but tools of the host uses it."),
    netlink("sock.netlink.scsi", 18, "SCSI events", "It shows the host's disks."),
    netlink("sock.netlink.rdma", 20, "Remote memory", "It administers network cards that write memory."),
    netlink("sock.netlink.crypto", 21, "Ciphers", "It loads modules of the kernel's ciphers on demand."),
    Probe {
        id: "sock.rare",
        title: "Sockets of rare families can be made",
        severity: Severity::Medium,
        reference: "CVE-2021-43267 (TIPC), CVE-2010-3904 (RDS), CVE-2023-51779 (Bluetooth)",
        tries: "Makes sockets of the families AX25, IPX, AppleTalk, X.25, RDS, SNA, CAN, TIPC, Bluetooth, IUCV, Phonet, \
                IEEE 802.15.4, CAIF, NFC, KCM, Qualcomm IPC, SMC and MCTP.",
        safe: "EAFNOSUPPORT for each",
        meaning: "Asking for a family loads its module: code that hardly anybody reads is then reachable for every build.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| {
            Finding::worst(RARE.iter().map(|&(name, family)| {
                let kinds = [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET, libc::SOCK_STREAM, libc::SOCK_RAW];
                let result = kinds.iter().map(|&kind| made(family, kind, 0)).find(Result::is_ok);
                let answer = result.unwrap_or_else(|| made(family, libc::SOCK_DGRAM, 0));
                (
                    name.to_owned(),
                    match answer {
                        // The family is there, without this type or protocol by default.
                        Err(errno @ (libc::ESOCKTNOSUPPORT | libc::EPROTONOSUPPORT | libc::EPROTOTYPE)) => {
                            Finding::past(Err(errno), &[errno])
                        }
                        result => Finding::of(result),
                    },
                )
            }))
        },
    },
];

/// Families that no build needs, linux/socket.h.
const RARE: &[(&str, i32)] = &[
    ("AF_AX25", 3),
    ("AF_IPX", 4),
    ("AF_APPLETALK", 5),
    ("AF_X25", 9),
    ("AF_RDS", 21),
    ("AF_SNA", 22),
    ("AF_CAN", 29),
    ("AF_TIPC", 30),
    ("AF_BLUETOOTH", 31),
    ("AF_IUCV", 32),
    ("AF_PHONET", 35),
    ("AF_IEEE802154", 36),
    ("AF_CAIF", 37),
    ("AF_NFC", 39),
    ("AF_KCM", 41),
    ("AF_QIPCRTR", 42),
    ("AF_SMC", 43),
    ("AF_MCTP", 45),
];

/// The probe of one netlink protocol.
const fn netlink(id: &'static str, protocol: i32, title: &'static str, meaning: &'static str) -> Probe {
    /// A function for each protocol, because a probe's function cannot carry a number with it.
    macro_rules! tries {
        ($($number:literal),*) => {
            match protocol {
                $($number => |_: &World| Finding::of(made(libc::AF_NETLINK, libc::SOCK_RAW, $number)),)*
                _ => panic!("no function for this protocol"),
            }
        };
    }
    Probe {
        id,
        title,
        severity: Severity::Medium,
        reference: "netlink(7)",
        tries: "Makes a netlink socket of this protocol.",
        safe: "EPROTONOSUPPORT: only route, sock_diag, uevent and generic are for everybody",
        meaning,
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: tries!(6, 7, 8, 9, 10, 11, 12, 18, 20, 21),
    }
}

/// Makes a socket and closes it.
pub fn made(family: i32, kind: i32, protocol: i32) -> Result<i64, i32> {
    calls::socket(family, kind, protocol).map(|socket| {
        calls::close(socket);
        0
    })
}

/// `socketcall(SYS_SOCKET, [family, type, protocol])` by the i386 entry: the descriptor.
fn by_socketcall(family: i32, kind: i32) -> Result<i64, i32> {
    let arguments: Vec<u8> = [family, kind, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let arguments = LowMemory::holding(&arguments)?;
    calls::int80(102, [1, arguments.pointer(), 0, 0, 0])
}

fn vsock_shared(world: &World, socket: impl Fn(i32) -> Result<i32, i32>) -> Finding {
    let Some(port) = world.vsock_port else {
        return Finding::inconclusive("no vsock port was bound outside");
    };
    match socket(libc::AF_VSOCK).and_then(|socket| calls::bind(socket, &vsock_address(port))) {
        Err(libc::EADDRINUSE) => Finding::reached("the observer's port is in use here"),
        Ok(_) => Finding::absent("the observer's port is free here"),
        Err(errno) => Finding::refused(errno),
    }
}

/// `sockaddr_vm` of a port on any address (VMADDR_CID_ANY).
fn vsock_address(port: u32) -> Vec<u8> {
    [&(libc::AF_VSOCK as u16).to_ne_bytes()[..], &[0; 2], &port.to_ne_bytes(), &u32::MAX.to_ne_bytes(), &[0; 4]]
        .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vsock_address_has_the_kernels_own_form() {
        assert_eq!(vsock_address(0x0102_0304), [40, 0, 0, 0, 4, 3, 2, 1, 255, 255, 255, 255, 0, 0, 0, 0]);
    }
}
