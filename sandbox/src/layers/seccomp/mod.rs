//! The system call filter: what a room may ask of the kernel.
//!
//! `policy.toml` is the policy, one row per decision with its reason. `build.rs` compiles it, with `compile.rs`, into
//! constants; [`program`] hands them out and [`load`] loads them; [`Recorder`] is the supervisor's half, which answers
//! and counts what was refused.
//!
//! What the filter does not do, because it cannot: see through pointers. Calls whose meaning lies behind one are refused
//! where programs have a fallback (`openat2`, `io_uring`), left to another layer (`clone3`: the limits on namespaces), or
//! done by the supervisor on a copy of what lies there (`socketcall`).

mod choices;
mod interpret;
mod layer;
mod program;
mod record;
mod show;
mod socketcall;

#[cfg(test)]
mod assemble;
#[cfg(test)]
mod compile;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod tests;

pub use choices::Choices;
pub use layer::Action;
pub(super) use layer::{apply, plan, verify};
pub use program::{load, program};
pub use record::{Recorder, Refused};
pub use socketcall::{SocketMaker, Wanted};
