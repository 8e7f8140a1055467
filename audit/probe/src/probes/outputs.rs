//! Outputs, where the sandbox registers any: what a builder makes of them, and what whoever takes them over makes of that. The
//! battery's own look ends with the builder, so all of these are judged from outside.

use anchorhold_probe::verdict::Finding;

use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "out.modes",
        title: "Outputs keep modes, times, owners or attributes",
        severity: Severity::High,
        reference: "CVE-2024-52867; nix-sandbox.md H1, H17",
        tries: "Makes files of many modes, set-id bits and the sticky bit among them, a hard link, an attribute. The observer reads \
                all of the output when it is registered.",
        safe: "modes 0444 and 0555, the time 1, the owner of the store, no attributes",
        meaning: "A set-id program in a store is one for everybody on the host, and a writable file in it changes what others build \
                  with.",
        ..OUTSIDE
    },
    Probe {
        id: "out.fifo",
        title: "A FIFO is registered",
        tries: "Makes an output with a FIFO in it.",
        meaning: "Whoever reads the output waits for ever, root's own backup among them.",
        ..SPECIAL
    },
    Probe {
        id: "out.socket",
        title: "A socket file is registered",
        tries: "Makes an output with a socket file in it.",
        meaning: "No archive holds it, and while its maker lives it is a way past every network namespace.",
        ..SPECIAL
    },
    Probe {
        id: "out.device",
        title: "A device file is registered",
        tries: "Makes an output with the device 0:0 in it, the whiteout of overlay file systems, which takes no capability.",
        meaning: "In a lower layer of an overlay a whiteout hides what is below it; no archive holds it.",
        ..SPECIAL
    },
    Probe {
        id: "out.symlink",
        title: "Taking an output over follows a link of the builder's",
        reference: "CVE-2026-39860, CVE-2024-45593; nix-sandbox.md H14",
        tries: "Makes its output a link to the canary outside, and lays such links under the names that may be used beside it: \
                .tmp, .lock, .check, .chroot and their like. The observer looks at the canary and at what is registered.",
        safe: "the canary is as it was, and none of it is registered",
        meaning: "Whoever takes the output over is root on most hosts: it then reads, writes or gives away any file of the host.",
        ..OUTSIDE
    },
    Probe {
        id: "out.race",
        title: "An output changes while it is taken over",
        reference: "CVE-2025-46415; nix-sandbox.md H10",
        tries: "Leaves a process behind that exchanges a folder of the output for a link to the canary's folder, for six seconds. \
                The observer looks at the canary, at what is registered, and whether that process was still there.",
        safe: "every process is gone before the output is looked at",
        meaning: "A walk that has just seen a folder goes through the link: files of the host are changed or deleted.",
        ..OUTSIDE
    },
    Probe {
        id: "out.fd.late",
        title: "An output can be written to after it was registered",
        reference: "CVE-2024-27297; nix-sandbox.md H6",
        tries: "Keeps its output open for writing in a process that it leaves behind, and hands the descriptor to the observer by an \
                abstract socket. Both write when the build is over.",
        safe: "the output stays as it was",
        meaning: "What was hashed and signed is not what others build with.",
        ..OUTSIDE
    },
];

/// What all share.
const OUTSIDE: Probe = Probe {
    id: "",
    title: "",
    severity: Severity::Critical,
    reference: "",
    tries: "",
    safe: "",
    meaning: "",
    controls: &[Control::Outputs],
    order: Order::Any,
    root: false,
    run: |_| Finding::info("a sandbox that registers no output"),
};

/// What files share that no archive can hold.
const SPECIAL: Probe = Probe {
    severity: Severity::Medium,
    reference: "CVE-2021-27851; nix-sandbox.md H16",
    safe: "the kernel does not make it, or the output is refused with a reason",
    ..OUTSIDE
};
