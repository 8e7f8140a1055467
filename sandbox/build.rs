//! Compiles the system call policy, so that the shipped binary holds finished BPF programs and no compiler.

use std::fmt::Write as _;

#[path = "src/layers/seccomp/assemble.rs"]
mod assemble;
#[path = "src/layers/seccomp/choices.rs"]
mod choices;
#[path = "src/layers/seccomp/compile.rs"]
mod compile;
#[path = "src/layers/seccomp/policy.rs"]
mod policy;
#[path = "src/layers/seccomp/show.rs"]
mod show;

fn main() {
    // Table and compiler are parts of this script: when one changes, the script does.
    println!("cargo::rerun-if-changed=build.rs");
    let target = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo names the target");
    let source = match policy::machines().iter().find(|machine| machine.name == target) {
        Some(machine) => generate(machine),
        None => {
            format!("compile_error!(\"anchorhold has no system call policy for {target}: x86_64 and aarch64 only\");")
        }
    };
    let directory = std::env::var_os("OUT_DIR").expect("cargo names the output directory");
    let file = std::path::Path::new(&directory).join("seccomp_programs.rs");
    std::fs::write(&file, source).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// The Rust source of every program of a machine, and of what the supervisor has to know about a recorded refusal.
fn generate(machine: &policy::Machine) -> String {
    let policy = policy::policy();
    let mut source = String::new();
    let mut write = |text: std::fmt::Arguments<'_>| source.write_fmt(text).expect("a string takes everything");

    write(format_args!("static PROGRAMS: [&[libc::sock_filter]; {}] = [\n", choices::COMBINATIONS));
    for place in 0..choices::COMBINATIONS {
        write(format_args!("&["));
        for seccompiler::sock_filter { code, jt, jf, k } in
            compile::compile(&policy, machine, choices::Choices::at(place))
        {
            write(format_args!("libc::sock_filter{{code:{code},jt:{jt},jf:{jf},k:{k}}},"));
        }
        write(format_args!("],\n"));
    }
    write(format_args!("];\n"));

    write(format_args!("static ROWS: [Option<Recorded>; {}] = [\n", policy.rows.len()));
    for row in &policy.rows {
        match (row.record, &row.hint, row.verdict.errno()) {
            (true, Some(hint), Some(errno)) => {
                let show = match row.show {
                    None => "None".to_owned(),
                    Some(show::Show { arg, notation }) => {
                        format!("Some(Show {{ arg: {arg}, notation: Notation::{notation:?} }})")
                    }
                };
                write(format_args!(
                    "Some(Recorded {{ errno: {errno}, show: {show}, hint: {hint:?}, made: {} }}),\n",
                    row.made
                ));
            }
            _ => write(format_args!("None,\n")),
        }
    }
    write(format_args!("];\n"));

    let mut names = std::collections::BTreeMap::new();
    for architecture in [&machine.native, &machine.compat] {
        for (name, number) in &architecture.calls {
            if policy.rows.iter().any(|row| row.record && row.calls.iter().any(|call| call == name)) {
                names.insert((architecture.audit, *number), *name);
            }
        }
    }
    write(format_args!("static NAMES: [((u32, u32), &str); {}] = [\n", names.len()));
    for (key, name) in &names {
        write(format_args!("({key:?}, {name:?}),\n"));
    }
    write(format_args!("];\n"));
    write(format_args!("pub(super) const NATIVE: u32 = {:?};\n", machine.native.audit));
    source
}
