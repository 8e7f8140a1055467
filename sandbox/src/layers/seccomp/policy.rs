//! The policy table as data: `policy.toml` read and checked. Used while this crate is built, and by its tests; the
//! shipped binary holds only what was compiled from it.

use super::choices::Choices;
use super::show::Show;
use serde::Deserialize;

/// The whole table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// First system call number that nobody has reviewed.
    pub ceiling: u32,
    /// Decisions in the order in which they are asked.
    #[serde(rename = "row")]
    pub rows: Vec<Row>,
}

/// One decision about some calls.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Names of the calls, as in the kernel's tables.
    pub calls: Vec<String>,
    /// What the row decides.
    pub verdict: Verdict,
    /// Whether the supervisor counts what this row refuses.
    #[serde(default)]
    pub record: bool,
    /// Whether the supervisor looks closer at what this row stops, and does itself what the policy allows.
    #[serde(default)]
    pub made: bool,
    /// The choice under which the row exists; always, if none.
    pub only: Option<Only>,
    /// The row decides when any of these alternatives holds.
    #[serde(default)]
    pub when: Vec<Vec<Condition>>,
    /// The row decides when none of these alternatives holds.
    #[serde(default)]
    pub unless: Vec<Vec<Condition>>,
    /// The argument that tells a person what was refused.
    pub show: Option<Show>,
    /// What the person can do about the refusal.
    pub hint: Option<String>,
    /// Why the row exists.
    pub reason: String,
}

impl Row {
    /// Whether the row exists under these choices.
    pub fn exists(&self, choices: Choices) -> bool {
        match self.only {
            None => true,
            Some(Only::Record) => choices.record,
            Some(Only::Nested) => choices.nested,
            Some(Only::IgnoreChown) => choices.ignore_chown,
        }
    }

    /// What a recorded row needs and an unrecorded one must not have; one alternative list, not two; known arguments.
    fn check(&self) -> Result<(), String> {
        let about = |what: &str| Err(format!("row of {}: {what}", self.calls.join(", ")));
        if self.calls.is_empty() || self.reason.trim().is_empty() {
            return about("needs calls and a reason");
        }
        if !self.when.is_empty() && !self.unless.is_empty() {
            return about("has both `when` and `unless`");
        }
        if self.record != self.hint.is_some() || (self.show.is_some() && !self.record) {
            return about("`hint` belongs to every recorded row, `show` to no other");
        }
        if self.made && !self.record {
            return about("what the supervisor does itself is handed to it as what it records is");
        }
        if self.record && matches!(self.verdict, Verdict::Allow | Verdict::Nothing | Verdict::Enosys) {
            return about("only refusals other than ENOSYS are recorded");
        }
        for condition in self.when.iter().chain(&self.unless).flatten() {
            if condition.arg > 5 || condition.is.is_some() == condition.not.is_some() {
                return about("a condition has one argument of six and either `is` or `not`");
            }
            if condition.mask.is_some()
                && (condition.not.is_some() || condition.is.unwrap_or(0) & !condition.mask.unwrap_or(0) != 0)
            {
                return about("a masked condition has `is`, within the mask");
            }
        }
        match self.when.iter().chain(&self.unless).any(Vec::is_empty) {
            true => about("has an empty alternative"),
            false => Ok(()),
        }
    }
}

/// What a row decides: that the call is allowed, or what it answers instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// The call goes to the kernel.
    Allow,
    /// Success, though nothing is done.
    Nothing,
    /// Not permitted.
    Eperm,
    /// Busy.
    Ebusy,
    /// Not a terminal: the object does not know this request.
    Enotty,
    /// No such system call.
    Enosys,
    /// The socket protocol is not supported.
    Eprotonosupport,
    /// The object does not support the operation.
    Eopnotsupp,
    /// The socket family is not supported.
    Eafnosupport,
}

impl Verdict {
    /// The errno, 0 for success without the call, or `None` for an allowed call. The numbers are the same on every architecture here (asm-generic/errno.h).
    pub fn errno(self) -> Option<u16> {
        match self {
            Verdict::Allow => None,
            Verdict::Nothing => Some(0),
            Verdict::Eperm => Some(1),
            Verdict::Ebusy => Some(16),
            Verdict::Enotty => Some(25),
            Verdict::Enosys => Some(38),
            Verdict::Eprotonosupport => Some(93),
            Verdict::Eopnotsupp => Some(95),
            Verdict::Eafnosupport => Some(97),
        }
    }
}

/// The choice that a row depends on.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Only {
    /// [`Choices::record`]
    Record,
    /// [`Choices::nested`]
    Nested,
    /// [`Choices::ignore_chown`]
    IgnoreChown,
}

/// A comparison of the low half of one argument.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Index of the argument.
    pub arg: u8,
    /// Bits to look at; all 32, if none.
    pub mask: Option<u32>,
    /// The value it must have.
    pub is: Option<u32>,
    /// The value it must not have.
    pub not: Option<u32>,
}

/// One architecture's numbers.
pub struct Architecture {
    /// Its name in messages.
    pub name: &'static str,
    /// Its `AUDIT_ARCH_*` number, as the kernel shows it to filters (linux/audit.h).
    pub audit: u32,
    /// Call names and numbers.
    pub calls: Vec<(&'static str, u32)>,
}

impl Architecture {
    /// Reads a table of `name<TAB>number` lines.
    fn read(name: &'static str, audit: u32, table: &'static str) -> Self {
        let entry = |line: &'static str| {
            let (call, number) = line.split_once('\t').unwrap_or_else(|| panic!("{name}.tsv: no tab in {line:?}"));
            (call, number.parse().unwrap_or_else(|_| panic!("{name}.tsv: no number in {line:?}")))
        };
        Self { name, audit, calls: table.lines().map(entry).collect() }
    }
}

/// A processor that runs two architectures' programs: its own and its 32-bit ancestor's.
pub struct Machine {
    /// The name Rust gives to the native architecture.
    pub name: &'static str,
    /// What a native program uses. On x86_64 this is also where x32 calls appear, with bit 30 set in the number.
    pub native: Architecture,
    /// What a 32-bit program uses.
    pub compat: Architecture,
}

/// The machines that the policy is written for.
pub fn machines() -> [Machine; 2] {
    [
        Machine {
            name: "x86_64",
            native: Architecture::read("x86_64", 0xC000_003E, include_str!("syscalls/x86_64.tsv")),
            compat: Architecture::read("i386", 0x4000_0003, include_str!("syscalls/i386.tsv")),
        },
        Machine {
            name: "aarch64",
            native: Architecture::read("aarch64", 0xC000_00B7, include_str!("syscalls/aarch64.tsv")),
            compat: Architecture::read("arm", 0x4000_0028, include_str!("syscalls/arm.tsv")),
        },
    ]
}

/// Prefix of arm's private calls, far above every ceiling: without cacheflush and set_tls no arm program runs.
const PRIVATE: &str = "ARM_";

/// The shipped policy. Panics on a table that contradicts itself: that is a build failure.
pub fn policy() -> Policy {
    let policy: Policy =
        toml::from_str(include_str!("policy.toml")).unwrap_or_else(|error| panic!("policy.toml: {error}"));
    let machines = machines();
    let architectures = || machines.iter().flat_map(|machine| [&machine.native, &machine.compat]);
    for row in &policy.rows {
        row.check().unwrap_or_else(|error| panic!("policy.toml: {error}"));
        for call in &row.calls {
            let known = architectures().any(|architecture| architecture.calls.iter().any(|(name, _)| name == call));
            assert!(known, "policy.toml: no architecture has a call {call}");
        }
    }
    for architecture in architectures() {
        for (call, number) in &architecture.calls {
            let reviewed = *number < policy.ceiling || call.starts_with(PRIVATE);
            assert!(reviewed, "{}.tsv: {call} ({number}) is not below the ceiling of policy.toml", architecture.name);
        }
    }
    policy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(row: &str) -> Result<(), String> {
        let row: Row =
            toml::from_str(&format!("calls = ['chmod']\nreason = 'a'\n{row}")).map_err(|error| error.to_string())?;
        row.check()
    }

    #[test]
    fn a_row_that_contradicts_itself_stops_the_build() {
        assert_eq!(check("verdict = 'EPERM'"), Ok(()));
        assert_eq!(
            check("verdict = 'EPERM'\nrecord = true\nhint = 'h'\nwhen = [[{ arg = 0, mask = 6, is = 2 }]]"),
            Ok(())
        );
        for wrong in [
            "verdict = 'EPREM'",
            "verdict = 'EPERM'\nwehn = []",
            "verdict = 'EPERM'\nonly = 'sometimes'",
            "verdict = 'EPERM'\nrecord = true",
            "verdict = 'EPERM'\nhint = 'h'",
            "verdict = 'EPERM'\nshow = { arg = 0, as = 'hex' }",
            "verdict = 'ENOSYS'\nrecord = true\nhint = 'h'",
            "verdict = 'ALLOW'\nrecord = true\nhint = 'h'",
            "verdict = 'NOTHING'\nrecord = true\nhint = 'h'",
            "verdict = 'EPERM'\nwhen = [[]]",
            "verdict = 'EPERM'\nwhen = [[{ arg = 6, is = 1 }]]",
            "verdict = 'EPERM'\nwhen = [[{ arg = 0 }]]",
            "verdict = 'EPERM'\nwhen = [[{ arg = 0, is = 1, not = 2 }]]",
            "verdict = 'EPERM'\nwhen = [[{ arg = 0, mask = 6, not = 2 }]]",
            "verdict = 'EPERM'\nwhen = [[{ arg = 0, mask = 6, is = 1 }]]",
            "verdict = 'EPERM'\nwhen = [[{ arg = 0, is = 1 }]]\nunless = [[{ arg = 0, is = 2 }]]",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_and_names_are_unique_and_sorted() {
        for machine in machines() {
            for architecture in [machine.native, machine.compat] {
                assert!(architecture.calls.is_sorted_by(|one, next| one.1 < next.1), "{}", architecture.name);
                let names: std::collections::BTreeSet<&str> =
                    architecture.calls.iter().map(|(name, _)| *name).collect();
                assert_eq!(names.len(), architecture.calls.len(), "{}", architecture.name);
            }
        }
    }

    /// The calls that are numbered alike everywhere since Linux 5.1, and a few that every architecture numbers its own way.
    #[test]
    fn the_tables_agree_with_what_is_known() {
        let number = |architecture: &Architecture, call: &str| {
            architecture.calls.iter().find(|(name, _)| *name == call).map(|(_, number)| *number)
        };
        let [x86, arm] = machines();
        for architecture in [&x86.native, &x86.compat, &arm.native, &arm.compat] {
            for (call, unified) in [("io_uring_setup", 425), ("openat2", 437), ("fchmodat2", 452), ("listns", 470)] {
                assert_eq!(number(architecture, call), Some(unified), "{} {call}", architecture.name);
            }
        }
        let own = |call| [&x86.native, &x86.compat, &arm.native, &arm.compat].map(|table| number(table, call));
        assert_eq!(own("chmod"), [Some(90), Some(15), None, Some(15)]);
        assert_eq!(own("openat"), [Some(257), Some(295), Some(56), Some(322)]);
        assert_eq!(own("socket"), [Some(41), Some(359), Some(198), Some(281)]);
        assert_eq!(own("socketcall"), [None, Some(102), None, None]);
        assert_eq!(own("ARM_cacheflush"), [None, None, None, Some(0xf_0002)]);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_native_table_agrees_with_the_c_library() {
        let [x86, _] = machines();
        for (call, number) in [
            ("read", libc::SYS_read),
            ("seccomp", libc::SYS_seccomp),
            ("fchmodat", libc::SYS_fchmodat),
            ("bpf", libc::SYS_bpf),
        ] {
            assert!(x86.native.calls.contains(&(call, number as u32)), "{call}");
        }
    }
}
