//! Settings and surroundings that no room depends on, and that a reviewer wants to see.

use super::{Diagnosis, Facts};

/// How a setting's value is put into words.
type Words = fn(&str) -> &'static str;

/// The settings below `/proc/sys` that are shown, with what their values mean (Documentation/admin-guide/sysctl).
pub const SHOWN: [(&str, Words); 7] = [
    ("kernel/dmesg_restrict", |value| match value {
        "0" => {
            "anybody on the host may read the kernel log; what keeps a room from it is its filter of system calls alone"
        }
        _ => "the kernel log is root's",
    }),
    ("dev/tty/legacy_tiocsti", |value| match value {
        "0" => "nobody can push input into a terminal",
        _ => "whoever holds a terminal can push input into it; rooms never hold the caller's",
    }),
    ("kernel/unprivileged_bpf_disabled", |value| match value {
        "0" => "anybody on the host may load BPF programs; 2 would be better",
        _ => "BPF is root's",
    }),
    ("kernel/perf_event_paranoid", |value| match value.parse::<i32>() {
        Ok(..=1) => "anybody on the host may measure the kernel; 2 or more would be better",
        _ => "measuring the kernel is root's",
    }),
    ("kernel/kptr_restrict", |value| match value {
        "0" => "addresses of the kernel are printed as hashes; rooms see an empty /proc/kallsyms",
        _ => "addresses of the kernel are hidden",
    }),
    ("kernel/yama/ptrace_scope", |value| match value {
        "0" => "processes of one user may trace each other; a room's cannot reach out",
        _ => "processes of one user may not trace each other at will",
    }),
    ("user/max_user_namespaces", |_| "user namespaces below this one; each room takes two"),
];

/// Names of settings as sysctl(8) writes them, in the order of [`SHOWN`].
const NAMES: [&str; SHOWN.len()] = [
    "kernel.dmesg_restrict",
    "dev.tty.legacy_tiocsti",
    "kernel.unprivileged_bpf_disabled",
    "kernel.perf_event_paranoid",
    "kernel.kptr_restrict",
    "kernel.yama.ptrace_scope",
    "user.max_user_namespaces",
];

/// Shows them; judges nothing.
pub fn judge(facts: &Facts) -> Vec<Diagnosis> {
    let mut all = vec![surroundings(facts)];
    for ((name, (_, words)), (_, value)) in NAMES.iter().zip(SHOWN).zip(&facts.settings) {
        all.push(match value {
            Some(value) => Diagnosis::info(name, format!("{value}: {}", words(value))),
            None => Diagnosis::info(name, "this kernel does not have it, or /proc/sys does not show it"),
        });
    }
    all
}

fn surroundings(facts: &Facts) -> Diagnosis {
    let around = &facts.around;
    let mut found = vec![match &around.container {
        Some(name) => format!("in a container ({name})"),
        None => "in no container that leaves a mark".to_owned(),
    }];
    found.push(match around.filters {
        0 => "under no filter of system calls".to_owned(),
        count => format!("under {count} filter(s) of system calls"),
    });
    if around.no_new_privileges {
        found.push("kept from gaining privileges".to_owned());
    }
    // The initial user namespace maps all ids but one.
    if around.mapped_uids < u64::from(u32::MAX) {
        found.push(format!("in a user namespace with {} uid(s)", around.mapped_uids));
    }
    Diagnosis::info("surroundings", found.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::Verdict;

    #[test]
    fn settings_are_information_only() {
        let mut facts = Facts::healthy();
        for (_, value) in &mut facts.settings {
            *value = Some("0".into());
        }
        facts.settings[0].1 = None;
        let rows = judge(&facts);
        assert!(rows.iter().all(|row| row.verdict == Verdict::Info && row.fix.is_none()));
        assert_eq!(rows.len(), SHOWN.len() + 1);
    }

    #[test]
    fn names_and_paths_belong_together() {
        for (name, (path, _)) in NAMES.iter().zip(SHOWN) {
            assert_eq!(*name, path.replace('/', "."));
        }
    }

    #[test]
    fn surroundings_are_told() {
        let mut facts = Facts::healthy();
        facts.around.filters = 2;
        facts.around.no_new_privileges = true;
        facts.around.mapped_uids = 1;
        let found = surroundings(&facts).found;
        assert!(found.contains("2 filter") && found.contains("gaining") && found.contains("1 uid"), "{found}");
    }
}
