//! Network interfaces, by rtnetlink(7).

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use crate::{Doing, Failure};

// From linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h and linux/if.h.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;

/// Gives an interface its address, and takes it up.
pub fn bring_up(interface: &str, address: Option<(Ipv4Addr, u8)>) -> Result<(), Failure> {
    let doing = || format!("bringing {interface} up");
    if interface.is_empty() || interface.contains('/') || interface.starts_with('.') {
        return Err(Failure::new(doing(), "this is no interface's name"));
    }
    let index = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex")).doing(doing)?;
    let index: u32 = index.trim_end().parse().doing(doing)?;
    if let Some((address, prefix)) = address {
        let mut message = vec![AF_INET, prefix, 0, 0];
        message.extend(index.to_ne_bytes());
        for attribute in [IFA_LOCAL, IFA_ADDRESS] {
            message.extend(8_u16.to_ne_bytes());
            message.extend(attribute.to_ne_bytes());
            message.extend(address.octets());
        }
        ask(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &message)
            .doing(|| format!("giving {interface} the address {address}/{prefix}"))?;
    }
    let mut message = vec![0; 4];
    message.extend(index.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    // Which flags are meant: this one alone.
    message.extend(IFF_UP.to_ne_bytes());
    ask(RTM_NEWLINK, 0, &message).doing(doing)
}

/// One request and the kernel's answer to it.
fn ask(kind: u16, flags: u16, content: &[u8]) -> io::Result<()> {
    // Protocol 0 of this family is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let mut message = Vec::new();
    message.extend((16 + content.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // Sequence number and port, which the kernel fills in.
    message.extend([0; 8]);
    message.extend(content);
    sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 4096];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    let answer = &answer[..length.min(4096)];
    let number =
        |at: usize| answer.get(at..at + 4).map(|four| i32::from_ne_bytes([four[0], four[1], four[2], four[3]]));
    let is_answer = answer.get(4..6) == Some(&NLMSG_ERROR.to_ne_bytes());
    match number(16).filter(|_| is_answer) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        None => Err(io::Error::other("the kernel's answer is none")),
    }
}
