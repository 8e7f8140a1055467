//! The command line: each subcommand in a file of its own.

mod attach;
mod audit;
mod build;
mod completion;
mod config;
mod derivation;
mod doctor;
mod explain;
mod hook;
mod launch;
mod machine;
mod policy;
mod room_options;
mod run;
mod shell;
mod stage;
mod store;
mod store_root;
mod store_server;
mod vm;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Command, FromArgMatches};

use anchorhold_sandbox::outcome::exit_status;

/// A subcommand: how it is parsed, and what it does.
struct Subcommand {
    name: &'static str,
    command: fn() -> Command,
    run: fn(&clap::ArgMatches) -> ExitCode,
}

/// All of them, in the order of `--help`.
const SUBCOMMANDS: [Subcommand; 17] = [
    build::SUBCOMMAND,
    shell::SUBCOMMAND,
    attach::SUBCOMMAND,
    hook::SUBCOMMAND,
    derivation::SUBCOMMAND,
    store::SUBCOMMAND,
    store_server::SUBCOMMAND,
    run::SUBCOMMAND,
    vm::SUBCOMMAND,
    explain::SUBCOMMAND,
    doctor::SUBCOMMAND,
    audit::SUBCOMMAND,
    config::SUBCOMMAND,
    completion::SUBCOMMAND,
    launch::SUBCOMMAND,
    machine::SUBCOMMAND,
    stage::SUBCOMMAND,
];

/// The whole command line.
fn whole() -> Command {
    let top = Command::new("anchorhold")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A sandboxed build executor for Linux: never weaker than asked")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true);
    SUBCOMMANDS.iter().fold(top, |top, subcommand| top.subcommand((subcommand.command)()))
}

/// Parses and does.
pub fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    hook::by_name(&mut arguments);
    // A room is entered thousands of times: only the subcommand that is named is built. Anything else goes the long way round.
    let named = arguments.get(1).and_then(|word| SUBCOMMANDS.iter().find(|subcommand| word == subcommand.name));
    let parsed = match named {
        Some(subcommand) => {
            let command = (subcommand.command)().bin_name(format!("anchorhold {}", subcommand.name));
            command.try_get_matches_from(&arguments[1..]).map(|matches| (subcommand, matches))
        }
        None => whole().try_get_matches_from(&arguments).map(|matches| {
            let (name, matches) = matches.subcommand().expect("clap requires a subcommand");
            let subcommand = SUBCOMMANDS.iter().find(|one| one.name == name).expect("clap knows only these");
            (subcommand, matches.clone())
        }),
    };
    match parsed {
        Ok((subcommand, matches)) => (subcommand.run)(&matches),
        Err(error) => {
            // `--help` and `--version` are answers, not errors. A command line that is not understood starts no command.
            if error.use_stderr() && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                complain(one_line(&error));
            } else {
                let _ = error.print();
            }
            if error.use_stderr() { ExitCode::from(exit_status::NOT_STARTED as u8) } else { ExitCode::SUCCESS }
        }
    }
}

/// What clap says in paragraphs, as one line: the first of them, and its tips.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let first: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let tips = text.lines().filter_map(|line| line.trim_start().strip_prefix("tip: "));
    let mut line = first.join(" ");
    for tip in tips {
        line.push_str("; ");
        line.push_str(tip);
    }
    line.push_str("; --help shows the options");
    line.strip_prefix("error: ").map_or(line.clone(), str::to_owned)
}

/// The typed options of a subcommand.
fn options<T: FromArgMatches>(matches: &clap::ArgMatches) -> T {
    T::from_arg_matches(matches).unwrap_or_else(|error| error.exit())
}

/// A subcommand's command from its typed options.
fn command<T: Args>(name: &'static str, about: &'static str) -> Command {
    // The options' own description is for readers of the code; the subcommand's is for those of --help.
    T::augment_args(Command::new(name)).about(about).long_about(None)
}

/// One line on standard error, in the form of all that this program says of itself.
fn complain(what: impl std::fmt::Display) {
    eprintln!("anchorhold: {what}");
}

/// The process's exit status, for statuses that are the payload's or our own.
fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(status.clamp(0, 255) as u8)
}
