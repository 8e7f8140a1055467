//! Completions and manual pages, made from the command line's own description.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use super::{Subcommand, command, complain, options};

pub const SUBCOMMAND: Subcommand = Subcommand { name: "generate", command: hidden, run };

fn hidden() -> Command {
    command::<GenerateOptions>("generate", "Write completions and manual pages into a directory").hide(true)
}

#[derive(Debug, Args)]
struct GenerateOptions {
    /// Where to; made if it is missing
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    let options: GenerateOptions = options(matches);
    match generate(&options.directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("cannot write to {}: {error}", options.directory.display()));
            ExitCode::FAILURE
        }
    }
}

fn generate(directory: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut super::whole(), "anchorhold", directory)?;
    }
    clap_mangen::generate_to(super::whole(), directory)
}
