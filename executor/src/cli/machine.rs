//! `anchorhold machine`: the payload of a machine's room. Not for people.

use anchorhold::machines::{self, supervisor};
use clap::Command;

use super::{Subcommand, exit_code};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: machines::SUBCOMMAND,
    command: || Command::new(machines::SUBCOMMAND).about("Run a virtual machine in the room around us").hide(true),
    run: |_| exit_code(supervisor::serve()),
};
