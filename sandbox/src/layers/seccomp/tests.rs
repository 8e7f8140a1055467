//! The compiled programs against the table: every row, every architecture, every combination of choices.

use super::choices::{COMBINATIONS, Choices};
use super::compile::compile;
use super::interpret::run;
use super::policy::{Architecture, Condition, Machine, Policy, Row, Verdict, machines, policy};
use libc::{SECCOMP_RET_ALLOW as ALLOW, SECCOMP_RET_KILL_PROCESS as KILL, SECCOMP_RET_USER_NOTIF as NOTIFY};
use proptest::prelude::*;
use std::sync::LazyLock;

const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;

type Program = Vec<libc::sock_filter>;

/// The table, the machines, and every program of both.
static COMPILED: LazyLock<(Policy, [Machine; 2], Vec<Vec<Program>>)> = LazyLock::new(|| {
    let (policy, machines) = (policy(), machines());
    let programs = machines
        .iter()
        .map(|machine| (0..COMBINATIONS).map(|place| program(&policy, machine, Choices::at(place))).collect())
        .collect();
    (policy, machines, programs)
});

fn program(policy: &Policy, machine: &Machine, choices: Choices) -> Program {
    compile(policy, machine, choices)
        .into_iter()
        .map(|seccompiler::sock_filter { code, jt, jf, k }| libc::sock_filter { code, jt, jf, k })
        .collect()
}

fn call(arch: u32, number: u32, args: [u64; 6]) -> libc::seccomp_data {
    libc::seccomp_data { nr: number as i32, arch, instruction_pointer: 0xdead_beef_dead_beef, args }
}

/// Calls `check` with every architecture of every machine under every combination of choices.
fn everywhere(mut check: impl FnMut(&Machine, &Architecture, Choices, &Program)) {
    let (_, machines, programs) = &*COMPILED;
    for (machine, programs) in machines.iter().zip(programs) {
        for (place, program) in programs.iter().enumerate() {
            let choices = Choices::at(place);
            check(machine, &machine.native, choices, program);
            if choices.compat {
                check(machine, &machine.compat, choices, program);
            }
        }
    }
}

fn number(architecture: &Architecture, name: &str) -> Option<u32> {
    architecture.calls.iter().find(|(call, _)| *call == name).map(|(_, number)| *number)
}

/// The table read as plainly as it is written.
fn expected(policy: &Policy, machine: &Machine, choices: Choices, asked: &libc::seccomp_data) -> u32 {
    let architecture = match asked.arch {
        arch if arch == machine.native.audit => &machine.native,
        arch if arch == machine.compat.audit && choices.compat => &machine.compat,
        _ => return KILL,
    };
    let number = asked.nr as u32;
    if number == u32::MAX {
        return ALLOW;
    }
    let Some((name, _)) = architecture.calls.iter().find(|(_, named)| *named == number) else { return ENOSYS };
    let holds = |condition: &Condition| {
        let value = asked.args[usize::from(condition.arg)] as u32 & condition.mask.unwrap_or(u32::MAX);
        condition.is.is_none_or(|is| value == is) && condition.not.is_none_or(|not| value != not)
    };
    let any = |alternatives: &[Vec<Condition>]| alternatives.iter().any(|all| all.iter().all(holds));
    for (place, row) in policy.rows.iter().enumerate() {
        let decides = (row.when.is_empty() || any(&row.when)) && (row.unless.is_empty() || !any(&row.unless));
        if row.exists(choices) && row.calls.iter().any(|call| call == name) && decides {
            return match row.verdict.errno() {
                None => ALLOW,
                Some(_) if row.record && choices.record => NOTIFY | place as u32,
                Some(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
            };
        }
    }
    ALLOW
}

/// Arguments at and around every value that the table compares with.
fn interesting() -> Vec<u64> {
    let (policy, ..) = &*COMPILED;
    let mut values = vec![0, 1, u64::MAX, 0o644, 0o100, 0o20200000];
    for condition in policy.rows.iter().flat_map(|row| row.when.iter().chain(&row.unless)).flatten() {
        for value in [condition.is, condition.not, condition.mask].into_iter().flatten().map(u64::from) {
            values.extend([value, value ^ 1, value + 1, value << 32, value | 1 << 32, value | 0xffff_ffff_0000_0000]);
        }
        if let Some(mask) = condition.mask {
            values.extend((0..32).map(|bit| 1 << bit).filter(|bit| mask & bit != 0).map(u64::from));
        }
    }
    values.sort_unstable();
    values.dedup();
    values
}

#[test]
fn every_row_is_decided_as_written_for_every_architecture() {
    let (policy, ..) = &*COMPILED;
    let interesting = interesting();
    let mut asked = 0_u64;
    everywhere(|machine, architecture, choices, program| {
        for row in policy.rows.iter() {
            for number in row.calls.iter().filter_map(|name| number(architecture, name)) {
                let mut used: Vec<usize> =
                    row.when.iter().chain(&row.unless).flatten().map(|condition| usize::from(condition.arg)).collect();
                used.sort_unstable();
                used.dedup();
                let mut check = |args: [u64; 6]| {
                    let asked_call = call(architecture.audit, number, args);
                    let want = expected(policy, machine, choices, &asked_call);
                    let got = run(program, &asked_call);
                    assert_eq!(got, Some(want), "{} {:?} {choices:?} {args:x?}", architecture.name, row.calls);
                    asked += 1;
                };
                check([0; 6]);
                check([u64::MAX; 6]);
                for &one in &used {
                    for &value in &interesting {
                        let mut args = [0; 6];
                        args[one] = value;
                        check(args);
                        // What the filter must not look at holds rubbish.
                        check(std::array::from_fn(|place| if place == one { value } else { 0x5a5a_5a5a_5a5a_5a5a }));
                        for &other in used.iter().filter(|other| **other != one) {
                            for set in [0o100, 0o20000000, 0o6000, 16, 1, 8, 9] {
                                args[other] = set;
                                check(args);
                            }
                            args[other] = 0;
                        }
                    }
                }
            }
        }
    });
    assert!(asked > 100_000, "only {asked} calls were checked");
}

#[test]
fn every_number_without_a_row_is_allowed_if_known_and_unknown_to_the_room_if_not() {
    let (policy, ..) = &*COMPILED;
    everywhere(|_, architecture, _, program| {
        for number in (0..2000).chain(0x000f_0000..0x000f_0010) {
            let answer = run(program, &call(architecture.audit, number, [0; 6])).expect("an answer");
            match architecture.calls.iter().find(|(_, named)| *named == number) {
                None => assert_eq!(answer, ENOSYS, "{} {number}", architecture.name),
                Some((name, _)) if !policy.rows.iter().any(|row| row.calls.iter().any(|call| call == name)) => {
                    assert_eq!(answer, ALLOW, "{} {name}", architecture.name);
                }
                Some(_) => {}
            }
        }
    });
}

#[test]
fn the_ceiling_stands() {
    let (policy, ..) = &*COMPILED;
    everywhere(|_, architecture, _, program| {
        for number in [policy.ceiling, policy.ceiling + 1, 512, 547, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1] {
            let answer = run(program, &call(architecture.audit, number, [0; 6]));
            assert_eq!(answer, Some(ENOSYS), "{} {number:#x}", architecture.name);
        }
        let skipped_by_a_tracer = run(program, &call(architecture.audit, u32::MAX, [0; 6]));
        assert_eq!(skipped_by_a_tracer, Some(ALLOW), "{}", architecture.name);
        // Nothing above the ceiling is named but arm's private calls (cacheflush, set_tls), without which nothing runs.
        for (name, number) in &architecture.calls {
            assert!(*number < policy.ceiling || (architecture.name == "arm" && name.starts_with("ARM_")), "{name}");
        }
    });
}

#[test]
fn x32_numbers_are_unknown_whatever_they_name() {
    everywhere(|machine, architecture, _, program| {
        for (name, number) in &architecture.calls {
            let answer = run(program, &call(architecture.audit, number | 1 << 30, [0; 6]));
            assert_eq!(answer, Some(ENOSYS), "{} {name}", machine.name);
        }
    });
}

#[test]
fn foreign_architectures_are_killed() {
    const RISCV64: u32 = 0xC000_00F3;
    everywhere(|machine, _, choices, program| {
        let others = COMPILED.1.iter().filter(|other| other.name != machine.name);
        let mut foreign: Vec<u32> = others.flat_map(|other| [other.native.audit, other.compat.audit]).collect();
        foreign.extend([0, u32::MAX, RISCV64]);
        foreign.extend((!choices.compat).then_some(machine.compat.audit));
        for arch in foreign {
            assert_eq!(run(program, &call(arch, 0, [0; 6])), Some(KILL), "{} {arch:#x}", machine.name);
        }
    });
}

#[test]
fn the_upper_half_of_an_ioctl_request_is_ignored() {
    everywhere(|_, architecture, choices, program| {
        let ioctl = number(architecture, "ioctl").expect("every architecture has ioctl");
        for request in [0x5412_u64, 0x541c] {
            for upper in [0, 1, 0xffff_ffff] {
                let answer =
                    run(program, &call(architecture.audit, ioctl, [0, request | upper << 32, 0, 0, 0, 0])).unwrap();
                match choices.record {
                    true => assert_eq!(answer & libc::SECCOMP_RET_ACTION_FULL, NOTIFY),
                    false => assert_eq!(answer, EPERM),
                }
            }
        }
    });
}

#[test]
fn an_open_that_creates_nothing_may_hold_any_mode() {
    everywhere(|_, architecture, choices, program| {
        for (name, flags) in [("open", 1), ("openat", 2)] {
            let Some(number) = number(architecture, name) else { continue };
            let ask = |flag: u64, mode: u64| {
                let mut args = [0; 6];
                (args[flags], args[flags + 1]) = (flag, mode);
                run(program, &call(architecture.audit, number, args)).unwrap()
            };
            assert_eq!(ask(0, u64::MAX), ALLOW);
            assert_eq!(ask(libc::O_DIRECTORY as u64 | libc::O_CLOEXEC as u64, 0o6777), ALLOW);
            assert_eq!(ask(0o100, 0o1777), ALLOW);
            for creating in [0o100, 0o101, 0o20200000, 0o20040002] {
                for mode in [0o4755, 0o2755, 0o6755] {
                    assert_ne!(ask(creating, mode), ALLOW, "{name} {creating:o} {mode:o} {choices:?}");
                }
            }
        }
    });
}

#[test]
fn a_listener_of_the_builds_own_is_refused_only_while_we_record() {
    everywhere(|_, architecture, choices, program| {
        let seccomp = number(architecture, "seccomp").expect("every architecture has seccomp");
        let ask = |flags| run(program, &call(architecture.audit, seccomp, [1, flags, 0, 0, 0, 0]));
        for flags in [0, 1, 2, 4, 16] {
            assert_eq!(ask(flags), Some(ALLOW));
        }
        for flags in [8, 9, 0x28, 0xffff_ffff_0000_0008] {
            assert_eq!(ask(flags), Some(if choices.record { libc::SECCOMP_RET_ERRNO | 16 } else { ALLOW }));
        }
    });
}

#[test]
fn choices_open_what_they_say_and_nothing_else() {
    everywhere(|_, architecture, choices, program| {
        let ask =
            |name, args| run(program, &call(architecture.audit, number(architecture, name).unwrap(), args)).unwrap();
        assert_ne!(ask("socket", [40, 1, 0, 0, 0, 0]), ALLOW);
        assert_eq!(ask("setns", [3, 0, 0, 0, 0, 0]) == ALLOW, choices.nested);
        assert_ne!(ask("socket", [38, 5, 0, 0, 0, 0]), ALLOW);
        assert_eq!(ask("io_uring_setup", [1, 0, 0, 0, 0, 0]), ENOSYS);
        assert_eq!(ask("fchownat", [0, 0, 0, 0, 0, 0]) == ALLOW, !choices.ignore_chown);
    });
}

/// Every name that an architecture has for it, so that none of them is a way to the kernel where the others are not.
#[test]
fn no_change_of_owner_reaches_the_kernel_where_they_are_ignored() {
    everywhere(|_, architecture, choices, program| {
        let names: Vec<_> = architecture.calls.iter().filter(|(name, _)| name.contains("chown")).collect();
        assert!(names.len() >= 2, "{}", architecture.name);
        for (name, number) in names {
            for args in [[0; 6], [u64::MAX; 6]] {
                let answer = run(program, &call(architecture.audit, *number, args)).unwrap();
                let want = if choices.ignore_chown { libc::SECCOMP_RET_ERRNO } else { ALLOW };
                assert_eq!(answer, want, "{} {name} {choices:?}", architecture.name);
            }
        }
    });
}

#[test]
fn without_recording_nothing_is_notified() {
    everywhere(|_, _, choices, program| {
        let notified = program.iter().any(|step| step.code == 0x06 && step.k & 0xffff_0000 == NOTIFY);
        assert_eq!(notified, choices.record);
    });
}

#[test]
fn recorded_rows_refuse_with_an_errno_that_is_not_enosys() {
    let (policy, ..) = &*COMPILED;
    assert!(policy.rows.iter().any(|row| row.record));
    for row in policy.rows.iter().filter(|row| row.record) {
        assert!(!matches!(row.verdict, Verdict::Allow | Verdict::Nothing | Verdict::Enosys), "{:?}", row.calls);
    }
}

#[test]
fn the_shipped_programs_are_those_of_the_table() {
    let (_, machines, programs) = &*COMPILED;
    let here = machines.iter().position(|machine| machine.name == std::env::consts::ARCH).expect("a machine we know");
    for (place, compiled) in programs[here].iter().enumerate() {
        let plain = |step: &libc::sock_filter| (step.code, step.jt, step.jf, step.k);
        let shipped = super::program(Choices::at(place));
        assert!(shipped.iter().map(plain).eq(compiled.iter().map(plain)), "{:?}", Choices::at(place));
    }
}

/// Length of the longest path from every instruction; panics at a jump out of the program.
fn depth(program: &Program) -> usize {
    let mut depths = vec![0; program.len()];
    for (place, step) in program.iter().enumerate().rev() {
        depths[place] = 1 + match step.code {
            0x06 => 0,
            0x05 => depths[place + 1 + step.k as usize],
            0x15 | 0x35 => depths[place + 1 + usize::from(step.jt)].max(depths[place + 1 + usize::from(step.jf)]),
            _ => depths[place + 1],
        };
    }
    depths[0]
}

/// Instructions that run until a call that needs no look at its arguments is decided.
fn steps(program: &Program, asked: &libc::seccomp_data) -> usize {
    let (mut next, mut steps, mut accumulator) = (0, 0, 0);
    loop {
        let step = program[next];
        (next, steps) = (next + 1, steps + 1);
        match step.code {
            0x20 if step.k == 0 => accumulator = asked.nr as u32,
            0x20 if step.k == 4 => accumulator = asked.arch,
            0x05 => next += step.k as usize,
            0x15 => next += usize::from(if accumulator == step.k { step.jt } else { step.jf }),
            0x35 => next += usize::from(if accumulator >= step.k { step.jt } else { step.jf }),
            _ => return steps,
        }
    }
}

#[test]
fn programs_are_small_and_shallow() {
    let (_, machines, programs) = &*COMPILED;
    for (machine, programs) in machines.iter().zip(programs) {
        for (place, program) in programs.iter().enumerate() {
            let choices = Choices::at(place);
            let depth = depth(program);
            let mut worst = 0;
            for architecture in [&machine.native, &machine.compat] {
                for number in 0..500 {
                    worst = worst.max(steps(program, &call(architecture.audit, number, [0; 6])));
                }
            }
            println!(
                "{} {choices:?}: {} instructions, longest path {depth}, by number alone {worst}",
                machine.name,
                program.len()
            );
            assert!(program.len() <= 1000, "{} instructions", program.len());
            assert!(depth <= 48, "longest path {depth}");
            assert!(worst <= 24, "{worst} instructions to find a number");
        }
    }
}

/// A policy that gives each of the numbers one of five verdicts, with conditions of very different length.
fn patchwork(prefix: &str, verdicts: &[u8]) -> (Policy, Architecture) {
    let condition = |arg, is| vec![Condition { arg, mask: None, is: Some(is), not: None }];
    let row = |verdict, conditions: u32| Row {
        calls: Vec::new(),
        verdict,
        record: false,
        made: false,
        only: None,
        when: (0..conditions).map(|value| condition((value % 6) as u8, value)).collect(),
        unless: Vec::new(),
        show: None,
        hint: None,
        reason: String::new(),
    };
    let mut rows = vec![
        row(Verdict::Eperm, 0),
        row(Verdict::Enosys, 0),
        row(Verdict::Eperm, 1),
        row(Verdict::Eopnotsupp, 40),
        row(Verdict::Ebusy, 120),
    ];
    let mut calls = Vec::new();
    for (number, verdict) in verdicts.iter().enumerate() {
        let name: &'static str = Box::leak(format!("{prefix}{number}").into_boxed_str());
        calls.push((name, number as u32));
        if let Some(row) = rows.get_mut(usize::from(*verdict)) {
            row.calls.push(name.to_owned());
        }
    }
    let ceiling = verdicts.len() as u32;
    (Policy { ceiling, rows }, Architecture { name: "patchwork", audit: 1, calls })
}

#[test]
fn the_interpreter_refuses_what_is_not_ours() {
    let asked = call(0, 0, [0; 6]);
    let step = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    assert_eq!(run(&[], &asked), None);
    assert_eq!(run(&[step(0x20, 0)], &asked), None, "falls off the end");
    assert_eq!(run(&[step(0x20, 64), step(0x06, 0)], &asked), None, "reads behind the call");
    assert_eq!(run(&[step(0x20, 2), step(0x06, 0)], &asked), None, "reads across words");
    assert_eq!(run(&[step(0x05, u32::MAX)], &asked), None, "jumps away");
    assert_eq!(run(&[step(0x02, 0)], &asked), None, "an instruction that is never generated");
}

#[test]
fn the_interpreter_reads_both_halves_of_every_word() {
    let asked = libc::seccomp_data {
        nr: 7,
        arch: 8,
        instruction_pointer: 0x0000_0002_0000_0001,
        args: std::array::from_fn(|place| (place as u64 + 100) << 32 | (place as u64 + 10)),
    };
    let load = |offset| {
        let step = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
        (0..200).find(|value| {
            let equal = libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: *value };
            run(&[step(0x20, offset), equal, step(0x06, 1), step(0x06, 0)], &asked) == Some(1)
        })
    };
    let words: Vec<Option<u32>> = (0..16).map(|word| load(word * 4)).collect();
    let want = [7, 8, 1, 2, 10, 100, 11, 101, 12, 102, 13, 103, 14, 104, 15, 105];
    assert_eq!(words, want.map(Some));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    /// Trees much larger and more torn than ours still reach everything that they share.
    #[test]
    fn a_program_of_any_size_is_its_table(
        native in proptest::collection::vec(0..6_u8, 1..700),
        compat in proptest::collection::vec(0..6_u8, 1..700),
        argument in 0..130_u64,
    ) {
        let (mut policy, native) = patchwork("native", &native);
        let (others, compat) = patchwork("compat", &compat);
        policy.rows.extend(others.rows);
        let compat = Architecture { audit: 2, ..compat };
        let machine = Machine { name: "patchwork", native, compat };
        let choices = Choices { compat: true, ..Choices::default() };
        let program = program(&policy, &machine, choices);
        for arch in [1, 2, 3] {
            for number in 0..710 {
                let asked = call(arch, number, [argument; 6]);
                prop_assert_eq!(run(&program, &asked), Some(expected(&policy, &machine, choices, &asked)));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    /// The compiled program answers like the table, whatever is asked.
    #[test]
    fn a_program_is_its_table(
        machine in 0..2_usize,
        place in 0..COMBINATIONS,
        arch in prop_oneof![4 => 0..2_usize, 1 => Just(2)],
        number in prop_oneof![8 => 0..480_u32, 1 => any::<u32>(), 1 => (0..480_u32).prop_map(|n| n | 1 << 30)],
        args in proptest::array::uniform6(prop_oneof![
            3 => proptest::sample::select(interesting()),
            1 => any::<u64>(),
            1 => 0..64_u64,
        ]),
    ) {
        let (policy, machines, programs) = &*COMPILED;
        let arch = [machines[machine].native.audit, machines[machine].compat.audit, number][arch];
        let asked = call(arch, number, args);
        let want = expected(policy, &machines[machine], Choices::at(place), &asked);
        prop_assert_eq!(run(&programs[machine][place], &asked), Some(want));
    }
}
