//! `anchorhold doctor`: what this machine offers, layer by layer.

use std::process::ExitCode;

use clap::Args;

use super::{Subcommand, command, options};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: "doctor",
    command: || command::<DoctorOptions>("doctor", "Say what this machine offers, layer by layer, and what to mend"),
    run,
};

#[derive(Debug, Args)]
struct DoctorOptions {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    let _options: DoctorOptions = options(matches);
    ExitCode::SUCCESS
}
