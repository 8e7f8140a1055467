//! Nix's two store protocols, from the server's side: the worker protocol (`ssh-ng://`, `unix://`, `nix-daemon --stdio`) and the
//! older serve protocol (`ssh://`, `nix-copy-closure`, `nix-store --serve`).
//!
//! One process attends to one connection, reads one request at a time and answers it. So what a client does wrong, or what is
//! wrong with us, ends no other client's connection; a build ends with the process that was asked for it; and roots and locks are
//! given back by the kernel however the process ends. Between connections there is nothing but the store.
//!
//! ```text
//! listener ──► (a process for each connection) ──► session ──► worker: queries, adding, building, upkeep ──► store, build
//!    trust                                            └──────► serve:                                              │
//!                                                                          activities ◄── progress ◄───────────────┘
//! ```

pub(crate) mod activities;
mod adding;
pub(crate) mod building;
pub(crate) mod channel;
mod client_settings;
mod content_address;
pub mod listener;
pub(crate) mod operation;
mod queries;
mod serve;
#[cfg(test)]
mod tests;
pub mod trust;
mod upkeep;
pub mod watch;
pub(crate) mod worker;
#[cfg(test)]
mod wrong_tests;

use std::io::{BufRead, Write};

use crate::build::policy::Policy;
use crate::cache::PublicKey;
use crate::store::{GcPolicy, Store, StoreError};
use crate::wire::{Source, WireError};
use channel::Channel;
use watch::Watch;

/// What all requests of one connection share.
pub struct Server<'a> {
    /// The store that is served.
    pub store: &'a Store,
    /// What is built here, and how.
    pub policy: Policy,
    /// How many builds run at once for this client.
    pub jobs: usize,
    /// Whether builds are begun after one has failed, unless the client says otherwise.
    pub keep_going: bool,
    /// Whether the client is believed: it may say what a path holds without a signature, and how something was built.
    pub trusted: bool,
    /// Whether paths need a signature even from a client who is believed, unless it asks for none.
    pub require_signatures: bool,
    /// Whose signatures count.
    pub keys: Vec<PublicKey>,
    /// What the collector keeps.
    pub collector: GcPolicy,
    /// What tells that the client has gone.
    pub watch: &'a Watch,
}

/// Which protocol is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The one whose magic number the client sends first.
    ByMagic,
    /// The worker protocol alone.
    Worker,
    /// The serve protocol alone.
    Serve,
}

/// The first number of a client of the worker protocol.
pub(crate) const WORKER_MAGIC: u64 = 0x6e69_7863;
/// The first number of a client of the serve protocol.
pub(crate) const SERVE_MAGIC: u64 = 0x390c_9deb;

/// Why a connection ended before the client ended it. The client was told, as far as its protocol has words for it.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// What came over the connection.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The client speaks something else.
    #[error("the client's first number is {0:#x}: it speaks neither the worker protocol nor the serve protocol of Nix")]
    Magic(u64),
    /// The client is too old.
    #[error("the client speaks version {major}.{minor} of {protocol}, and the oldest that is spoken here is {oldest}")]
    TooOld {
        /// Its version's first number.
        major: u64,
        /// And the second.
        minor: u64,
        /// Of what.
        protocol: &'static str,
        /// What would do.
        oldest: &'static str,
    },
    /// A request that could not be answered, in a protocol that has no words for it.
    #[error("{0}")]
    Request(String),
    /// Somebody who may not connect.
    #[error("user ‘{0}’ is not allowed to connect: `allowed-users` does not name it")]
    NotAllowed(String),
}

/// Answers the requests of one connection until the client ends it.
///
/// # Errors
/// See [`ServerError`].
pub fn attend(
    server: &Server<'_>,
    protocol: Protocol,
    may_write: bool,
    input: impl BufRead,
    output: impl Write + Send + 'static,
) -> Result<(), ServerError> {
    let mut source = Source::new(input);
    // Nobody who goes away before saying anything has done wrong.
    let Some(magic) = source.number_or_end("the magic number")? else { return Ok(()) };
    let channel = Channel::new(output);
    match (magic, protocol) {
        (WORKER_MAGIC, Protocol::Worker | Protocol::ByMagic) => worker::attend(server, source, &channel),
        (SERVE_MAGIC, Protocol::Serve | Protocol::ByMagic) => serve::attend(server, may_write, source, &channel),
        (other, _) => Err(ServerError::Magic(other)),
    }
}

/// Tells a client of the worker protocol that it may not connect, after the greeting: before, it would not understand.
///
/// # Errors
/// What the connection says.
pub fn refuse(user: &str, input: impl BufRead, output: impl Write + Send + 'static) -> Result<(), ServerError> {
    let refused = ServerError::NotAllowed(user.to_owned());
    worker::refuse(&refused.to_string(), Source::new(input), &Channel::new(output))?;
    Err(refused)
}

/// Why a request was not done.
#[derive(Debug)]
enum Fault {
    /// The stream is out of step, or gone: the connection ends.
    Wire(WireError),
    /// The request was understood and not done: the next may come.
    Refused(String),
}

impl Fault {
    fn refused(why: impl ToString) -> Self {
        Self::Refused(why.to_string())
    }
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::refused(error)
    }
}

impl From<crate::store_path::StorePathError> for Fault {
    fn from(error: crate::store_path::StorePathError) -> Self {
        Self::refused(error)
    }
}
