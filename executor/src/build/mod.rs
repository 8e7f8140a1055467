//! A build, from a request to registered outputs.
//!
//! ```text
//! call ──► graph ──► scheduler ──► realise: policy, hooks, scratch, environment, room ──► launcher
//!                                           outputs, checks ──► the store, upkeep, hooks; log, record, failure
//! ```
//!
//! Beside the line, for a person who looks inside: keep, visit (a failed build's room once more), running (which builds are at
//! work), tools (what a visitor brings).

pub mod build_users;
pub mod builtin;
pub mod call;
pub mod checks;
pub mod environment;
pub mod failure;
pub mod graph;
pub mod hooks;
pub mod keep;
pub mod launcher;
pub mod log;
pub mod outputs;
pub mod policy;
pub mod realise;
pub mod record;
pub mod reference_graph;
pub mod result;
pub mod rewriting;
pub mod room;
pub mod running;
pub mod scheduler;
pub mod scratch;
pub mod stored;
pub mod structured_attributes;
pub mod telling;
pub mod tools;
pub mod upkeep;
pub mod visit;

#[cfg(test)]
mod real_build;
