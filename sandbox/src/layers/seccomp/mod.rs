//! The system call filter: what a room may ask of the kernel.
//!
//! `policy.toml` is the policy, one row per decision with its reason. `build.rs` compiles it (with
//! `compile.rs`) into constants; [`program`] hands them out; [`Recorder`] is the supervisor's half, which answers and
//! counts what was refused.

mod choices;
mod interpret;
mod program;
mod record;
mod show;

#[cfg(test)]
mod compile;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod tests;

pub use choices::Choices;
pub use program::program;
pub use record::{Recorder, Refused};
