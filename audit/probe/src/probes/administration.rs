//! Calls that administer the machine. Each is made with an argument that fails, or changes nothing, after the permission
//! check.

use anchorhold_probe::verdict::{Finding, Verdict};
use anchorhold_probe::world::World;

use crate::calls;
use crate::probe::{Control, Order, Probe, Severity};
use crate::probes::namespaces::is_starters;

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    privileged(
        "sc.privileged.reboot",
        "The machine can be rebooted",
        Severity::Critical,
        "Calls reboot(2) with a wrong magic number: EINVAL comes after the permission check.",
        "In the host's pid namespace it ends the host. In one of its own it ends only that, and is a fact.",
        |world| {
            let finding = Finding::past(calls::raw(libc::SYS_reboot, &[0, 0, 0, 0]), &[libc::EINVAL]);
            only_its_own(finding, world, "pid")
        },
    ),
    privileged(
        "sc.privileged.init_module",
        "Kernel modules can be loaded",
        Severity::Critical,
        "Loads an empty module, one from a descriptor that is not open, and unloads one without a name.",
        "A module is code in the kernel: the host is the attacker's.",
        |_| {
            let empty = calls::c_path("");
            let text = empty.as_ptr() as usize;
            let after = [libc::ENOEXEC, libc::EBADF, libc::EFAULT, libc::EINVAL, libc::ENOENT];
            Finding::worst([
                ("init_module".to_owned(), Finding::past(calls::raw(libc::SYS_init_module, &[text, 0, text]), &after)),
                (
                    "finit_module".to_owned(),
                    Finding::past(calls::raw(libc::SYS_finit_module, &[usize::MAX, text, 0]), &after),
                ),
                ("delete_module".to_owned(), Finding::past(calls::raw(libc::SYS_delete_module, &[0, 0]), &after)),
            ])
        },
    ),
    privileged(
        "sc.privileged.swapon",
        "Swap can be switched on and off",
        Severity::Critical,
        "Switches on and off a file that does not exist: ENOENT comes after the permission check.",
        "Swapping to a file of the build's own gives it the memory of every process.",
        |_| {
            let path = calls::c_path("/nonexistent-anchorhold-probe");
            let path = [path.as_ptr() as usize, 0];
            Finding::worst([
                ("swapon".to_owned(), Finding::past(calls::raw(libc::SYS_swapon, &path), &[libc::ENOENT])),
                ("swapoff".to_owned(), Finding::past(calls::raw(libc::SYS_swapoff, &path[..1]), &[libc::ENOENT])),
            ])
        },
    ),
    privileged(
        "sc.privileged.acct",
        "Process accounting can be switched",
        Severity::Critical,
        "Switches it to a file that does not exist: ENOENT comes after the permission check.",
        "Records of all processes of the host are written to a file of the attacker's choice.",
        |_| {
            let path = calls::c_path("/nonexistent-anchorhold-probe");
            Finding::past(calls::raw(libc::SYS_acct, &[path.as_ptr() as usize]), &[libc::ENOENT])
        },
    ),
    privileged(
        "sc.privileged.clock",
        "The clock can be set",
        Severity::Critical,
        "Calls settimeofday(2) with nothing to set, and shifts the clock by zero (adjtimex).",
        "The time is the whole host's: certificates, logs and other builds go wrong.",
        |_| {
            // struct timex: the first word is what to change; ADJ_SETOFFSET by a time of zero.
            let mut change = [0_u64; 26];
            change[0] = 0x0100;
            Finding::worst([
                ("settimeofday".to_owned(), Finding::of(calls::raw(libc::SYS_settimeofday, &[0, 0]))),
                ("adjtimex".to_owned(), Finding::of(calls::raw(libc::SYS_adjtimex, &[change.as_mut_ptr() as usize]))),
            ])
        },
    ),
    privileged(
        "sc.privileged.hostname",
        "The machine can be renamed",
        Severity::Medium,
        "Sets the host name and the domain name that are there.",
        "In the host's UTS namespace the host is renamed. In one of its own only the sandbox is, and that is a fact.",
        |world| {
            let set = |number, path: &str| {
                let name = calls::contents(path, 64).unwrap_or_default();
                let name = name.strip_suffix(b"\n").unwrap_or(&name);
                Finding::of(calls::raw(number, &[name.as_ptr() as usize, name.len()]))
            };
            let finding = Finding::worst([
                ("sethostname".to_owned(), set(libc::SYS_sethostname, "/proc/sys/kernel/hostname")),
                ("setdomainname".to_owned(), set(libc::SYS_setdomainname, "/proc/sys/kernel/domainname")),
            ]);
            only_its_own(finding, world, "uts")
        },
    ),
    privileged(
        "sc.privileged.syslog",
        "The kernel's log can be read",
        Severity::High,
        "Reads a little of it, and asks for its size (NixOS/nix issue 8802).",
        "It shows addresses of the kernel, names of devices and crashes of other programs.",
        |_| {
            let mut text = [0_u8; 256];
            let words = [3, text.as_mut_ptr() as usize, text.len()];
            Finding::worst([
                ("read".to_owned(), Finding::of(calls::raw(libc::SYS_syslog, &words))),
                ("size".to_owned(), Finding::of(calls::raw(libc::SYS_syslog, &[10]))),
            ])
        },
    ),
    privileged(
        "sc.privileged.quotactl",
        "Disk quotas are reached",
        Severity::Medium,
        "Asks for the quota of a device that does not exist: ENOENT and ENODEV are the kernel's own answers, not a filter's.",
        "Administration that no build needs. The kernel looks for the device before it asks for permission, so this shows \
         surface, not power.",
        |_| {
            const GETINFO: usize = 0x80_0005 << 8;
            let device = calls::c_path("/nonexistent-anchorhold-probe");
            let mut answer = [0_u64; 16];
            let words = [GETINFO, device.as_ptr() as usize, 0, answer.as_mut_ptr() as usize];
            Finding::past(calls::raw(libc::SYS_quotactl, &words), &[libc::ENOENT, libc::ENODEV, libc::ENOTBLK])
        },
    ),
    privileged(
        "sc.privileged.kexec",
        "Another kernel can be loaded",
        Severity::Critical,
        "Calls kexec_load and kexec_file_load with flags that do not exist: EINVAL comes after the permission check.",
        "The next kernel is the attacker's.",
        |_| {
            let unknown = 0xff00;
            let (load, file) = ([0, 0, 0, unknown], [usize::MAX, usize::MAX, 0, 0, unknown]);
            let after = [libc::EINVAL, libc::EBADF];
            Finding::worst([
                ("kexec_load".to_owned(), Finding::past(calls::raw(libc::SYS_kexec_load, &load), &after)),
                ("kexec_file_load".to_owned(), Finding::past(calls::raw(libc::SYS_kexec_file_load, &file), &after)),
            ])
        },
    ),
    #[cfg(target_arch = "x86_64")]
    privileged(
        "sc.privileged.iopl",
        "Input and output ports can be opened",
        Severity::Critical,
        "Raises its own input and output privilege, which ends with its process.",
        "Ports are the hardware itself: disks, memory controllers, the processor's management.",
        |_| Finding::of(calls::raw(libc::SYS_iopl, &[3])),
    ),
    #[cfg(target_arch = "x86_64")]
    privileged(
        "sc.privileged.ioperm",
        "Single input and output ports can be opened",
        Severity::Critical,
        "Opens port 0x80, which is for diagnosis, for its own process, and touches nothing.",
        "Ports are the hardware itself: disks, memory controllers, the processor's management.",
        |_| Finding::of(calls::raw(libc::SYS_ioperm, &[0x80, 1, 1])),
    ),
    privileged(
        "sc.privileged.vhangup",
        "Terminals can be hung up",
        Severity::Medium,
        "Hangs up the terminal of a session that has none.",
        "The starter's session loses its terminal.",
        |_| {
            if calls::raw(libc::SYS_setsid, &[]).is_err() {
                return Finding::inconclusive("no session of its own, and a terminal might be hung up");
            }
            Finding::of(calls::raw(libc::SYS_vhangup, &[]))
        },
    ),
];

/// What is permitted over a namespace of its own does nothing to the host: a fact.
fn only_its_own(finding: Finding, world: &World, namespace: &str) -> Finding {
    match finding.verdict {
        Verdict::Reached if !is_starters(world, namespace) => {
            Finding::info(format!("permitted, over a {namespace} namespace of its own; {}", finding.detail))
        }
        _ => finding,
    }
}

/// The probe of one call for administrators.
const fn privileged(
    id: &'static str,
    title: &'static str,
    severity: Severity,
    tries: &'static str,
    meaning: &'static str,
    run: fn(&World) -> Finding,
) -> Probe {
    Probe {
        id,
        title,
        severity,
        reference: "capabilities(7); nix-sandbox.md P3",
        tries,
        safe: "EPERM or ENOSYS",
        meaning,
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run,
    }
}
