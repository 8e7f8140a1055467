//! The surface of system calls: what a filter takes away, by the native and by the foreign entry.

use crate::calls;
use crate::probe::{Control, Order, Probe, Severity};
use crate::verdict::Finding;

/// The probes of this layer.
pub const PROBES: &[Probe] = &[IO_URING, CEILING];

const IO_URING: Probe = Probe {
    id: "sc.io_uring",
    title: "io_uring can be set up",
    severity: Severity::High,
    reference: "io_uring(7); CVE-2022-29582, CVE-2023-2598",
    tries: "Asks for a ring of one entry.",
    safe: "ENOSYS, as on a kernel without it, so that programs fall back",
    meaning: "Operations of a ring pass no system call filter: files are created with set-id bits, attributes are set and \
              sockets made past every rule. It has also been the richest source of privilege escalations for years.",
    controls: &[Control::Seccomp],
    order: Order::Any,
    root: false,
    run: |_| {
        let mut parameters = [0_u8; 120];
        Finding::of(calls::raw(libc::SYS_io_uring_setup, &[1, parameters.as_mut_ptr() as usize]))
    },
};

const CEILING: Probe = Probe {
    id: "sc.ceiling",
    title: "System calls newer than any reviewed one reach the kernel",
    severity: Severity::High,
    reference: "NixOS/nix issue 10424 (a deny-list without a ceiling)",
    tries: "Calls a number that no kernel has yet, in a way that tells whether a filter answered.",
    safe: "ENOSYS",
    meaning: "A filter that only names what is bad lets through every call that a future kernel adds.",
    controls: &[Control::Seccomp],
    order: Order::Any,
    root: false,
    run: |_| Finding::inconclusive("not written yet"),
};
