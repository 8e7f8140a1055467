//! `anchorhold stage`: the payload of the room of a stage of machines. Not for people.

use anchorhold::machines::stages::{inside, making};
use clap::Command;

use super::{Subcommand, exit_code};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: inside::SUBCOMMAND,
    command: || {
        Command::new(inside::SUBCOMMAND)
            .about("Make a stage of machines in the room around us")
            .hide(true)
            .subcommand(Command::new(making::MAKE).about("Make those that the standard input wants, each in a room"))
    },
    run: |matches| match matches.subcommand() {
        Some(_) => exit_code(making::serve()),
        None => exit_code(inside::serve()),
    },
};
