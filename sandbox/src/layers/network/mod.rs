//! The network of a room.
//!
//! * `none`: an own network namespace with loopback up ([`loopback_up`]). Nothing else.
//! * `pasta`: the same, and an interface whose other end is pasta(1), an ordinary program on the host that opens every
//!   connection again with ordinary sockets. Where it may go is decided inside the room's own namespace by nf_tables rules
//!   ([`policy`], [`nftables`]) that the kernel keeps when the room's first process has given up its capabilities.
//!
//! # Who calls what, and when
//!
//! The supervisor stands outside; pid 1 is the first process of the room and holds `CAP_NET_ADMIN` over its namespace.
//!
//! | supervisor | pid 1 |
//! |---|---|
//! | [`pasta::check`], [`addresses::Families::of_host`], [`addresses::of_host`], [`policy::compile`] before it forks | |
//! | | unshare, maps written, [`loopback_up`] |
//! | | [`nftables::install`]: the policy is in force and read back; there is no interface yet |
//! | [`pasta::Pasta::start`] after pid 1's word; returns when the interface exists | |
//! | | [`rtnetlink::configure`] after the supervisor's word: addresses, routes, read back |
//! | `/proc/PID/net/dev` for the seal | drops everything, exec |
//! | [`pasta::Pasta::ended`] beside the other things that it waits for; [`pasta::Pasta::stop`] at the end | |
//!
//! The interface appears after the policy, stays down until pid 1 raises it, and has no route before that: there is no
//! moment in which a packet could leave unjudged.

pub mod addresses;
mod layer;
pub mod netlink;
pub mod nftables;
pub mod pasta;
pub mod policy;
pub mod rtnetlink;

pub use layer::{Action, WayOut, mode};
pub(super) use layer::{apply, plan, resolv_conf, verify};

use nix::errno::Errno;

/// Brings loopback up in the calling thread's network namespace: 127.0.0.1 and, where the kernel has it, `::1`.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` over the namespace.
pub fn loopback_up() -> Result<(), Errno> {
    crate::sys::network::loopback_flags_up()
}

/// Most interfaces that are listed; a room has two.
const MAX_INTERFACES: usize = 64;

/// Names of the interfaces in `/proc/PID/net/dev` (proc_pid_net(5)): two lines of headings, then `name: counters`. One more than a room
/// can have is enough to tell that they are too many.
fn interface_names(table: &str) -> Vec<String> {
    let names = table.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned());
    names.take(MAX_INTERFACES + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_stand_before_the_colon() {
        let table = "Inter-|   Receive\n face |bytes\n    lo:       0       0\n  eth0: 12 1\n";
        assert_eq!(interface_names(table), ["lo", "eth0"]);
        assert!(interface_names("").is_empty());
        assert_eq!(interface_names(&"a\n".repeat(2)).len(), 0);
    }
}
