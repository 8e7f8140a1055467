//! `anchorhold machine`: the payload of a machine's room. Not for people.

use std::path::PathBuf;
use std::process::ExitCode;

use anchorhold::machines::{self, supervisor};
use anchorhold_vmm::pair::handover;
use clap::{Arg, Command, value_parser};

use super::{Subcommand, complain, exit_code};

/// Gives the standard input to whoever listens at this socket, and ends: what a QEMU in the room starts for a connection.
const CONNECTION: &str = machines::CONNECTION;

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: machines::SUBCOMMAND,
    command: || {
        Command::new(machines::SUBCOMMAND).about("Run a virtual machine in the room around us").hide(true).subcommand(
            Command::new(CONNECTION).arg(Arg::new("socket").value_parser(value_parser!(PathBuf)).required(true)),
        )
    },
    run: |matches| match matches.subcommand() {
        Some((_, matches)) => match matches.get_one::<PathBuf>("socket").map(|socket| handover::give(socket)) {
            Some(Ok(())) => ExitCode::SUCCESS,
            given => {
                complain(format_args!("handing a connection over: {given:?}"));
                ExitCode::FAILURE
            }
        },
        None => exit_code(supervisor::serve()),
    },
};
