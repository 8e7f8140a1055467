//! The half of the outside that needs raw calls, or the launcher's own user, session and keyrings.
//!
//! `anchorhold-probe observe` is the parent of the sandbox's launcher. Its standard input is a socket that it shares with the
//! runner, and the conversation on it is four lines of JSON:
//!
//! 1. runner: [`Order`], what to set up;
//! 2. we: [`SetUp`], what is there now, in the words of the world that the probes get;
//! 3. runner: [`Launch`], the command;
//! 4. we: [`Seen`], how the command ended and what was to be seen afterwards.
//!
//! When the runner goes away, for whatever reason, its end of the socket closes: the command is then ended and everything
//! that was set up is taken away. So nothing stays behind, even when the runner was killed.

mod keys;
mod launch;
mod memory;
mod survivors;
mod victim;
mod vsock;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

pub use victim::sleep;

use crate::calls;
use crate::verdict::name_of;

/// What to set up.
#[derive(Debug, Deserialize)]
pub struct Order {
    /// Random text that is in the name and the contents of everything.
    pub nonce: String,
    /// The folder that the command inherits a descriptor of.
    pub folder: PathBuf,
    /// The variable of the environment that holds the nonce.
    pub variable: String,
    /// The vsock port to bind.
    pub port: u32,
}

/// What is there now: fields of the world.
#[derive(Debug, Default, Serialize)]
pub struct SetUp {
    victim: Option<i32>,
    inherited_descriptor: Option<i32>,
    shared_memory_key: Option<i32>,
    message_queue: Option<String>,
    shared_memory_file: Option<String>,
    session_key: Option<String>,
    user_key: Option<String>,
    vsock_port: Option<u32>,
    terminal: bool,
    /// What could not be set up, and what the kernel said.
    missing: Vec<String>,
}

/// The command.
#[derive(Debug, Deserialize)]
pub struct Launch {
    /// Program and arguments.
    pub words: Vec<String>,
    /// Variables to set besides those that are inherited.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Where it starts.
    pub directory: PathBuf,
}

/// What was to be seen.
#[derive(Debug, Default, Serialize)]
pub struct Seen {
    /// The exit status; 128 and the signal's number when a signal ended it. None when it could not be started.
    status: Option<i32>,
    /// Why it could not be started.
    problem: Option<String>,
    /// Processes that were still there after the grace period; they have been ended.
    survivors: Vec<survivors::Survivor>,
    /// Descriptions of foreign keys in the session and the user keyring that hold the nonce.
    keys: Vec<String>,
}

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
    drop(lines);
    let mut seen = Seen::default();
    match launch::start(&launch, &order, terminal.as_ref()) {
        Ok(child) => {
            seen.status = launch::wait(child, socket);
            let own: Vec<i32> = [Some(std::process::id() as i32), victim.as_ref().map(victim::Victim::pid)]
                .into_iter()
                .flatten()
                .collect();
            seen.survivors = survivors::after_grace(&order.nonce, &own);
        }
        Err(problem) => seen.problem = Some(problem),
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

impl SetUp {
    fn miss(&mut self, what: &str, errno: i32) {
        self.missing.push(format!("{what}: {}", name_of(errno)));
    }
}
