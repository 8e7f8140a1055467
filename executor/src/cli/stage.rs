//! `anchorhold stage`: the payload of the room of a stage of machines. Not for people.

use anchorhold::machines::stages::inside;
use clap::Command;

use super::{Subcommand, exit_code};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: inside::SUBCOMMAND,
    command: || Command::new(inside::SUBCOMMAND).about("Make a stage of machines in the room around us").hide(true),
    run: |_| exit_code(inside::serve()),
};
