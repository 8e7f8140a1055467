//! What both of Nix's protocols are spelled with: numbers, padded strings, frames, and the shapes made of them.
//!
//! A number is eight bytes, little end first. A string is its length, its bytes, and zeros up to a multiple of eight. A list is
//! how many there are, and then they. Everything that is read comes from somebody who may be an enemy: each string has a bound,
//! each request has a budget, and nothing is set aside for what has only been announced.
//!
//! Source: `src/libutil/serialise.cc`, `src/libstore/worker-protocol.cc` and `serve-protocol.cc` of Nix.

mod framed;
mod message;
mod shapes;
mod source;
#[cfg(test)]
mod tests;

use std::io;

pub use framed::{Framed, Hashed};
pub use message::Message;
pub use shapes::{
    Asked, BasicDerivation, ReadInfo, ResultForm, basic_derivation, build_result, unkeyed_info, wanted, write_info,
    write_unkeyed_info,
};
pub use source::{LONGEST_PATH, LONGEST_STRING, REQUEST_BUDGET, Source};

/// Why something was not read from, or written to, a connection.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side went away in the middle.
    #[error("the connection ended where {0} should follow")]
    Ended(&'static str),
    /// The system would not read.
    #[error("cannot read {what} from the connection: {source}")]
    Read {
        /// What should follow.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The system would not write.
    #[error("cannot write to the connection: {0}")]
    Write(#[source] io::Error),
    /// More was announced than anybody needs.
    #[error("{what} is said to have a length of {length}, and at most {most} is taken")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// What was announced.
        length: u64,
        /// What would be taken.
        most: u64,
    },
    /// One request has more in it than a request may have.
    #[error("the request is larger than {} MiB in all, which is the most that is taken", REQUEST_BUDGET >> 20)]
    Budget,
    /// What came is nothing that could stand there.
    #[error("{what} is not valid: {why}")]
    Invalid {
        /// What it is.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl WireError {
    /// What came is no `what`.
    pub fn invalid(what: &'static str, why: impl ToString) -> Self {
        Self::Invalid { what, why: why.to_string() }
    }

    pub(crate) fn read(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Self::Ended(what),
            _ => Self::Read { what, source },
        }
    }
}
