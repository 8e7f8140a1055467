//! The door for Nix's `external-builders` (Nix 2.32 and later): Nix keeps all work on its store, and hands one build after
//! the other to a program that runs it.
//!
//! ```text
//! build.json ──► request ──► kind: what it is, what it asks for ──► policy
//!                            carry_out: room ──► nobody alive ──► the walk ──► scratch paths
//! Nix ◄── voice: a line with byte 1 and an error, or byte 2 and the build's log
//! ```
//!
//! Source: `src/libstore/unix/build/external-derivation-builder.cc` of Nix, and what was seen of Nix 2.34.8: the JSON has
//! neither the derivation's path nor its kind, and the program is started with the environment, the descriptors and the
//! supplementary groups of the daemon.

pub mod carry_out;
pub mod kind;
pub mod request;
pub mod voice;

pub use carry_out::{Attachment, End, Stopped};
pub use request::{Request, RequestError};
