//! `anchorhold launch`: enters rooms for the executor that started it. Not for people.

use std::process::ExitCode;

use anchorhold::build::launcher;
use anchorhold_sandbox::outcome::exit_status;
use clap::Command;

use super::{Subcommand, complain, exit_code};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: launcher::SUBCOMMAND,
    command: || Command::new(launcher::SUBCOMMAND).about("Enter rooms for the executor that started it").hide(true),
    run: |_| match launcher::serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("launch: {error}"));
            exit_code(exit_status::NOT_STARTED)
        }
    },
};
