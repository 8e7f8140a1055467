//! How the process stands: privileges, filters, layers.

use anchorhold_probe::verdict::{Finding, name_of};

use crate::calls;
use crate::filter::{self, Entry};
use crate::probe::{Control, Order, Probe, Severity};
use crate::probes::resources::size;

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "pos.no_new_privs",
        title: "Executing a program can give privileges",
        severity: Severity::Medium,
        reference: "prctl(2), PR_SET_NO_NEW_PRIVS",
        tries: "Asks whether no_new_privs is set.",
        safe: "it is",
        meaning: "A set-id program that is found anywhere then runs with its owner's rights.",
        controls: &[Control::Capabilities, Control::Host],
        order: Order::Any,
        root: false,
        run: |_| match calls::prctl(libc::PR_GET_NO_NEW_PRIVS, &[]) {
            Ok(0) => Finding::reached("it is not set"),
            Ok(_) => Finding::refused(libc::EPERM).with("it is set"),
            Err(errno) => Finding::refused(errno),
        },
    },
    capabilities(
        "pos.caps.effective",
        "The payload has capabilities",
        Severity::High,
        "CapEff",
        "It administers whatever its user namespace owns: mounts, network, names. In the host's user namespace, the host.",
        |_| set("CapEff"),
    ),
    capabilities(
        "pos.caps.bounding",
        "The payload can gain capabilities",
        Severity::Medium,
        "CapBnd",
        "A program with file capabilities, or a set-id one, gets them where no_new_privs is not set.",
        |_| set("CapBnd"),
    ),
    Probe::fact("pos.caps", "Capability sets", "Reads all five sets.", "What the kernel would let it do.", |_| {
        let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
        Finding::info(sets.map(|name| format!("{name} {}", field(name).unwrap_or_default())).join(", "))
    }),
    Probe::fact(
        "pos.securebits",
        "Secure bits",
        "Asks for them.",
        "They decide whether uid 0 means capabilities.",
        |_| number(calls::prctl(libc::PR_GET_SECUREBITS, &[])),
    ),
    Probe::fact(
        "pos.dumpable",
        "Whether it can be dumped",
        "Asks for the dumpable flag.",
        "A dumpable process can be traced by others of its user.",
        |_| number(calls::prctl(libc::PR_GET_DUMPABLE, &[])),
    ),
    Probe::fact("pos.seccomp", "System call filters", "Reads mode and number of filters.", "2 is filtered.", |_| {
        let read = |name| field(name).unwrap_or_else(|| "?".to_owned());
        Finding::info(format!("mode {}, {} filters", read("Seccomp"), read("Seccomp_filters")))
    }),
    Probe::fact(
        "pos.calls.native",
        "System calls that come through",
        "Asks of every number to 520, without making the call, whether a filter refuses it.",
        "The surface of the kernel that is left. All arguments are zero: a call that is refused for those alone counts as refused, \
         one that is refused for others as let through.",
        |_| surface(Entry::Native),
    ),
    Probe::fact(
        "pos.calls.i386",
        "System calls that come through by the 32-bit entry",
        "Asks of every number to 520, without making the call, whether a filter refuses it.",
        "The same surface for 32-bit programs.",
        |_| surface(Entry::I386),
    ),
    Probe::fact(
        "pos.calls.x32",
        "System calls that come through with the x32 bit",
        "Asks of every number to 520, with the bit set, whether a filter refuses it.",
        "Where the kernel has x32, a filter that lets them through is none.",
        |_| surface(Entry::X32),
    ),
    Probe::fact("pos.limits", "Limits of a process", "Reads all of getrlimit(2).", "Soft and hard, where set.", |_| {
        const NAMES: [&str; 16] = [
            "cpu",
            "fsize",
            "data",
            "stack",
            "core",
            "rss",
            "nproc",
            "nofile",
            "memlock",
            "as",
            "locks",
            "sigpending",
            "msgqueue",
            "nice",
            "rtprio",
            "rttime",
        ];
        let limits = NAMES.iter().enumerate().map(|(place, name)| match calls::limit(place as u32) {
            Ok((soft, hard)) if soft == hard => format!("{name} {}", size(hard)),
            Ok((soft, hard)) => format!("{name} {}/{}", size(soft), size(hard)),
            Err(errno) => format!("{name} {}", name_of(errno)),
        });
        Finding::info(limits.collect::<Vec<_>>().join(", "))
    }),
    Probe::fact(
        "pos.speculation",
        "Mitigations of speculation",
        "Reads what the kernel does for this process.",
        "Filters used to switch them on, which costs speed; a process without them reads more of its neighbours.",
        |_| {
            let read = |name| field(name).unwrap_or_else(|| "?".to_owned());
            Finding::info(format!(
                "{}; indirect branches {}",
                read("Speculation_Store_Bypass"),
                read("SpeculationIndirectBranch")
            ))
        },
    ),
    Probe::fact(
        "pos.lsm",
        "Label of the security module",
        "Reads /proc/self/attr/current.",
        "AppArmor's profile or SELinux's context, if any.",
        |_| match calls::contents("/proc/self/attr/current", 4096) {
            Ok(text) => Finding::info(String::from_utf8_lossy(&text).trim_matches(['\0', '\n']).to_owned()),
            Err(errno) => Finding::info(name_of(errno)),
        },
    ),
    Probe::fact(
        "pos.landlock",
        "Landlock layers in force",
        "Adds layers to itself until the kernel, which allows 16, refuses.",
        "The second layer on files and sockets: 0 is none.",
        |_| match layers() {
            Ok(in_force) => Finding::info(format!("{in_force} layers")),
            Err(errno) => Finding::info(name_of(errno)),
        },
    ),
];

/// The most layers of Landlock that a process can have, landlock(7).
const MOST_LAYERS: usize = 16;

/// The probe of one capability set.
const fn capabilities(
    id: &'static str,
    title: &'static str,
    severity: Severity,
    tries: &'static str,
    meaning: &'static str,
    run: fn(&anchorhold_probe::world::World) -> Finding,
) -> Probe {
    Probe {
        id,
        title,
        severity,
        reference: "capabilities(7); nix-sandbox.md H20",
        tries,
        safe: "empty",
        meaning,
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: false,
        run,
    }
}

/// A line of /proc/self/status.
fn field(name: &str) -> Option<String> {
    let text = calls::contents("/proc/self/status", 16384).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

/// A set of capabilities: open if anything is in it. Without /proc the bounding set can be asked bit by bit.
fn set(name: &str) -> Finding {
    let bits = match field(name).and_then(|text| u64::from_str_radix(&text, 16).ok()) {
        Some(bits) => bits,
        None if name == "CapBnd" => (0..41)
            .filter(|bit| calls::prctl(libc::PR_CAPBSET_READ, &[*bit]) == Ok(1))
            .fold(0, |bits, bit| bits | 1 << bit),
        None => return Finding::inconclusive("there is no /proc/self/status"),
    };
    match bits {
        0 => Finding::refused(libc::EPERM).with("empty"),
        bits => Finding::reached(format!("{bits:016x}")),
    }
}

fn number(result: Result<i64, i32>) -> Finding {
    Finding::info(result.map_or_else(name_of, |value| value.to_string()))
}

fn surface(entry: Entry) -> Finding {
    let numbers: Vec<u32> = (0..520).filter(|number| !left_out(entry).contains(number)).collect();
    match filter::passages(entry, &numbers) {
        Err(reason) => Finding::info(reason),
        Ok(passages) => {
            let open = filter::open(&numbers, &passages);
            Finding::info(format!("{} of {}: {}", open.len(), numbers.len(), filter::ranges(&open)))
        }
    }
}

/// Numbers that are not asked about: vhangup, which would be made where a supervisor answers for it and lets it go on;
/// and natively the kernel's own trampolines, which pass every filter and kill whoever calls them from elsewhere.
fn left_out(entry: Entry) -> &'static [u32] {
    match entry {
        Entry::Native | Entry::X32 => &[153, 335, 336],
        Entry::I386 => &[111],
    }
}

fn layers() -> Result<usize, i32> {
    let attributes = [1_u64];
    let rules = calls::raw(libc::SYS_landlock_create_ruleset, &[attributes.as_ptr() as usize, 8, 0])?;
    calls::prctl(libc::PR_SET_NO_NEW_PRIVS, &[1])?;
    let fitted = (0..MOST_LAYERS)
        .take_while(|_| calls::raw(libc::SYS_landlock_restrict_self, &[rules as usize, 0]).is_ok())
        .count();
    Ok(MOST_LAYERS - fitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_landlock_are_counted() {
        // In a child, because the layers stay.
        let counted = calls::in_child(|| match layers() {
            Err(_) => 100,
            // All that there is room for was used up by counting.
            Ok(before) if before < MOST_LAYERS => i32::from(layers() != Ok(MOST_LAYERS)),
            Ok(_) => 100,
        });
        match counted {
            Ok(Some(100)) => println!("SKIP: there is no Landlock here, or no room in it"),
            counted => assert_eq!(counted, Ok(Some(0))),
        }
    }
}
