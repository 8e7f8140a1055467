//! From the policy table to finished BPF programs: pure functions, run when this crate is built.
//!
//! The shape of a program, and why:
//! ```text
//! load architecture ── native ──► load number ──► tree ──► a return, or the conditions on the arguments
//!                   ── 32-bit ──► load number ──► tree ──► …
//!                   ── other ───► kill
//! ```
//! The tree is a balanced binary search over *ranges of numbers with the same verdict*. The kernel runs a new filter once
//! for every number when it is loaded, to learn which are always allowed, so the length of the paths is what a start
//! costs: 350 calls asked one after the other take 720 µs to load, as a tree 90.
//!
//! `seccompiler` compiles the conditions on arguments. It cannot do the rest: its programs kill foreign architectures,
//! know one action each, ask one number after the other and do not see x32.

use super::assemble::{Assembler, Place};
use super::choices::Choices;
use super::policy::{Architecture, Condition, Machine, Policy, Row};
use seccompiler::{BpfProgram, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule, sock_filter};
use std::collections::{BTreeMap, BTreeSet};

/// Longest program that the kernel takes (`BPF_MAXINSNS`, linux/bpf_common.h).
const LONGEST: usize = 4096;

/// The number that a tracer writes to skip a call. The filter is asked after the tracer, the kernel has no code behind
/// the number, and an errno from here would overwrite the result that the tracer chose.
const SKIPPED: u32 = u32::MAX;

// Instruction codes, linux/bpf_common.h.
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// Offsets in struct seccomp_data, linux/seccomp.h.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

// Actions, linux/seccomp.h.
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ENOSYS: u32 = 38;

fn instruction(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// A jump over `length` instructions.
fn skip(length: usize) -> sock_filter {
    instruction(JUMP, u32::try_from(length).expect("a program is shorter than 2^32"))
}

/// The program for one machine under these choices.
///
/// Panics when the table cannot be compiled: at build time that is the build's failure.
pub fn compile(policy: &Policy, machine: &Machine, choices: Choices) -> BpfProgram {
    let mut program = Assembler::default();
    let mut otherwise = program.block(vec![instruction(RETURN, KILL_PROCESS)]);
    if choices.compat {
        otherwise = half(&mut program, policy, &machine.compat, choices, otherwise);
    }
    half(&mut program, policy, &machine.native, choices, otherwise);
    program.push(instruction(LOAD, ARCHITECTURE));
    let program = program.finish();
    assert!(program.len() <= LONGEST, "{}: {} instructions", machine.name, program.len());
    program
}

/// One architecture's part, entered with the architecture loaded: decides everything if it is this one.
fn half(
    program: &mut Assembler,
    policy: &Policy,
    architecture: &Architecture,
    choices: Choices,
    otherwise: Place,
) -> Place {
    // More than one range: the tree begins with a branch, which is the first instruction now.
    tree(program, &ranges(policy, architecture, choices));
    let this = program.push(instruction(LOAD, NUMBER));
    program.branch(JUMP_IF_EQUAL, architecture.audit, this, otherwise)
}

/// Code that decides a range of numbers, and the first number of the range. The last range ends at 2^32.
type Range = (u32, BpfProgram);

/// All numbers, cut into ranges that are decided alike.
fn ranges(policy: &Policy, architecture: &Architecture, choices: Choices) -> Vec<Range> {
    let refuse = vec![instruction(RETURN, ERRNO | ENOSYS)];
    let mut decided: BTreeMap<u32, BpfProgram> =
        architecture.calls.iter().map(|(name, number)| (*number, decide(policy, name, choices))).collect();
    decided.insert(SKIPPED, vec![instruction(RETURN, ALLOW)]);
    // A range can only begin at 0, at a named number, or just behind one.
    let starts: BTreeSet<u32> =
        decided.keys().flat_map(|number| [Some(*number), number.checked_add(1)]).flatten().chain([0]).collect();
    let mut ranges: Vec<Range> = Vec::new();
    for start in starts {
        let code = decided.get(&start).unwrap_or(&refuse);
        if ranges.last().is_none_or(|(_, last)| last != code) {
            ranges.push((start, code.clone()));
        }
    }
    ranges
}

/// Balanced binary search for the range of the loaded number.
fn tree(program: &mut Assembler, ranges: &[Range]) -> Place {
    if let [(_, code)] = ranges {
        return program.block(code.clone());
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let first_high = high[0].0;
    let high = tree(program, high);
    let low = tree(program, low);
    program.branch(JUMP_IF_AT_LEAST, first_high, high, low)
}

/// What the rows decide about one call. The accumulator holds the number on entry, and nothing of worth after it.
fn decide(policy: &Policy, call: &str, choices: Choices) -> BpfProgram {
    let mut program = Vec::new();
    for (place, row) in policy.rows.iter().enumerate() {
        if !row.exists(choices) || !row.calls.iter().any(|name| name == call) {
            continue;
        }
        let verdict = instruction(RETURN, action(row, place, choices));
        if row.when.is_empty() && row.unless.is_empty() {
            program.push(verdict);
            return program;
        }
        for alternative in &row.when {
            program.extend(holds(alternative));
            program.push(verdict.clone());
        }
        if !row.unless.is_empty() {
            program.extend(none_of(&row.unless));
            program.push(verdict);
        }
    }
    program.push(instruction(RETURN, ALLOW));
    program
}

/// The action of a row that decides. The sixteen data bits of a notification mean nothing to the kernel: they carry the
/// row's place, by which the supervisor finds the errno, the argument to show and the hint.
fn action(row: &Row, place: usize, choices: Choices) -> u32 {
    match row.verdict.errno() {
        None => ALLOW,
        Some(_) if row.record && choices.record => {
            NOTIFY | u32::from(u16::try_from(place).expect("fewer rows than 2^16"))
        }
        Some(errno) => ERRNO | u32::from(errno),
    }
}

/// Code that jumps behind the instruction after its end as soon as one of the alternatives holds.
fn none_of(alternatives: &[Vec<Condition>]) -> BpfProgram {
    let mut program = BpfProgram::new();
    // Built backwards: each "holds" must jump over everything that comes later, and over the verdict.
    for alternative in alternatives.iter().rev() {
        let mut code = holds(alternative);
        code.push(skip(program.len() + 1));
        code.extend(program);
        program = code;
    }
    program
}

/// Code that goes on behind its end when all conditions hold, and skips one more instruction when one does not.
///
/// This is what `seccompiler` makes of a rule, after two jumps that link rules into its chains and that are cut off here.
fn holds(alternative: &[Condition]) -> BpfProgram {
    let conditions = alternative
        .iter()
        .map(|condition| {
            let (operator, value) = match (condition.mask, condition.is, condition.not) {
                (Some(mask), Some(value), None) => (SeccompCmpOp::MaskedEq(u64::from(mask)), value),
                (None, Some(value), None) => (SeccompCmpOp::Eq, value),
                (None, None, Some(value)) => (SeccompCmpOp::Ne, value),
                _ => panic!("the table was checked: {condition:?}"),
            };
            SeccompCondition::new(condition.arg, SeccompCmpArgLen::Dword, operator, u64::from(value))
                .expect("the table was checked: six arguments")
        })
        .collect();
    let mut program =
        BpfProgram::from(SeccompRule::new(conditions).expect("the table was checked: no empty alternative"));
    let links: Vec<sock_filter> = program.drain(..2).collect();
    let expected = [skip(1), skip(program.len() + 2)];
    assert_eq!(links, expected, "seccompiler's rules no longer begin with the two jumps that are cut off here");
    program
}
