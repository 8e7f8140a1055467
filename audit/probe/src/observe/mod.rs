//! The half of the outside that needs raw calls, or the launcher's own user, session and keyrings.
//!
//! `anchorhold-probe observe` is the parent of the sandbox's launcher. Its standard input is a socket that it shares with the
//! runner, and [`anchorhold_probe::observation`] is the conversation on it.
//!
//! When the runner goes away, for whatever reason, its end of the socket closes: the command is then ended and everything
//! that was set up is taken away. So nothing stays behind, even when the runner was killed.

mod keys;
mod launch;
mod memory;
mod standing;
mod survivors;
mod victim;
mod vsock;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anchorhold_probe::observation::{Launch, Order, Seen, SetUp, Standing};
use serde::Serialize;
pub use victim::sleep;

use crate::calls;

/// The number that the inherited descriptor has in the command.
pub const INHERITED: i32 = 57;

/// Has the conversation.
pub fn main() -> ExitCode {
    let socket = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => UnixStream::from(socket),
        Err(problem) => {
            eprintln!("anchorhold-probe: observe: {problem}");
            return ExitCode::from(2);
        }
    };
    match converse(&socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("anchorhold-probe: observe is for the runner of the audit: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn converse(socket: &UnixStream) -> Result<(), String> {
    // What the command leaves behind becomes our child, so that nothing gets away unseen.
    let _ = calls::raw(libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER as usize, 1]);
    let mut lines = BufReader::new(socket).lines();
    let order: Order = read(&mut lines)?;
    let mut set_up = SetUp::default();
    // Objects of mode 0666 are to be so.
    let _ = calls::raw(libc::SYS_umask, &[0]);
    let keys = keys::Keys::add(&order.nonce, &mut set_up);
    let memory = memory::Memory::make(&order.nonce, &mut set_up);
    let _ = calls::raw(libc::SYS_umask, &[0o022]);
    let _port = vsock::Port::bind(order.port, &mut set_up);
    let victim = victim::Victim::start(&order, &mut set_up);
    let terminal = launch::Terminal::open(&mut set_up);
    set_up.inherited_descriptor = Some(INHERITED);
    say(socket, &set_up)?;
    let launch: Launch = read(&mut lines)?;
    let mut seen = Seen::default();
    match launch::start(&launch, &order, terminal.as_ref()) {
        Ok(child) => {
            if launch.held {
                say(socket, &standing::wait_for(child, &order.nonce))?;
                // Whether it has looked or has gone, the end is the same.
                let _ = lines.next();
                let _ = calls::kill(child, libc::SIGKILL);
            }
            drop(lines);
            seen.status = launch::wait(child, socket);
            let own: Vec<i32> = [Some(std::process::id() as i32), victim.as_ref().map(victim::Victim::pid)]
                .into_iter()
                .flatten()
                .collect();
            seen.survivors = survivors::after_grace(&order.nonce, &own);
        }
        Err(problem) => {
            // Who holds it waits for its standing first.
            if launch.held {
                say(socket, &Standing::default())?;
            }
            seen.problem = Some(problem);
        }
    }
    seen.keys = keys.foreign();
    drop((keys, memory, victim, terminal));
    say(socket, &seen)
}

fn read<T: serde::de::DeserializeOwned>(
    lines: &mut impl Iterator<Item = std::io::Result<String>>,
) -> Result<T, String> {
    let line = lines.next().ok_or("the runner has gone")?.map_err(|error| error.to_string())?;
    serde_json::from_str(&line).map_err(|error| error.to_string())
}

fn say(mut socket: &UnixStream, what: &impl Serialize) -> Result<(), String> {
    let mut line = serde_json::to_vec(what).map_err(|error| error.to_string())?;
    line.push(b'\n');
    socket.write_all(&line).map_err(|error| error.to_string())
}
