//! `anchorhold-probe`: tries to get out of whatever sandbox it was started in, and says how far it got.
//!
//! One static file without needs at run time. It reads nothing but its arguments, because environment, files and
//! descriptors are what sandboxes take away, and it writes one line of JSON for each probe:
//!
//! ```text
//! anchorhold-probe list                        what there is: one line for each probe
//! anchorhold-probe run [--world JSON] [--only ID]... [--output FILE]
//! ```
//!
//! What lies outside and watches (sockets, a victim process, canaries) is set up by whoever starts it, and described by
//! `--world`. A probe whose observer is not described is inconclusive, never safe.
//!
//! Where what lies:
//! * the library of this package has the words that the runner of the audit uses, too: what a probe can find, what it may
//!   know of the outside; `probe` is what a probe is;
//! * `calls` are the raw system calls, the only unsafe code;
//! * `probes/` holds the probes, one file for each layer; a new file there is found by itself;
//! * `observe` is the outside's half, for the runner of the audit;
//! * `files` has what probes of files share: a folder to work in, tables of mounts;
//! * `filter` tells whether a system call would come through, `ring` performs operations through io_uring;
//! * `held`, `outputs` and `look` are what the runner starts besides the battery, where one look from inside is not enough;
//! * `child` runs one probe in a process of its own, `battery` all of them in order.

#![deny(unsafe_code)]

mod arguments;
mod battery;
#[allow(unsafe_code, reason = "raw system calls are what this program is for")]
mod calls;
mod child;
mod files;
mod filter;
mod held;
mod look;
#[allow(unsafe_code, reason = "what the command inherits is arranged between fork and exec")]
mod observe;
mod outputs;
mod probe;
mod probes {
    //! The probes, a file for each layer.
    include!(concat!(env!("OUT_DIR"), "/probes.rs"));
}
mod ring;

use std::process::ExitCode;

fn main() -> ExitCode {
    match arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments::Command::List) => battery::list(),
        Ok(arguments::Command::Run(run)) => battery::run(&run),
        Ok(arguments::Command::Hold(run)) => held::hold(&run),
        Ok(arguments::Command::Output(kind, run)) => outputs::make(&kind, &run),
        Ok(arguments::Command::Look { name, process, folders }) => look::look(&name, process, &folders),
        Ok(arguments::Command::Observe) => observe::main(),
        Ok(arguments::Command::Sleep) => observe::sleep(),
        Err(problem) => {
            eprintln!("anchorhold-probe: {problem}");
            ExitCode::from(2)
        }
    }
}
