//! One sealed room of namespaces: described, planned, entered, proved.
//!
//! ```text
//! Room ──► Plan ──► Launcher ──► Outcome, with its seal
//! what     how      does it      how it ended, and what the kernel said of it
//! ```
//!
//! * [`room::Room`] is plain data: what is wanted.
//! * [`host::Host`] is what this kernel and this user may do.
//! * [`plan::Plan`] is an ordered list of typed steps, compiled from the two by pure functions; what is printed is what is done.
//! * [`launcher::Launcher`] interprets the plan, watches the room and ends it.
//! * [`seal::Seal`] is what the kernel showed of each layer before the payload ran.
//!
//! The crate knows nothing of Nix and nothing of virtual machines.
#![deny(unsafe_code)]

mod advice;
pub mod diagnosis;
pub mod error;
pub mod host;
pub mod ids;
pub mod kvm;
pub mod launcher;
pub mod layers;
pub mod outcome;
pub mod plan;
pub mod quantity;
pub mod room;
pub mod seal;
pub mod site;
#[allow(unsafe_code)]
pub mod sys;
pub mod text;

pub use error::{Error, Refusal};
pub use host::Host;
pub use launcher::Launcher;
pub use layers::Layer;
pub use outcome::Outcome;
pub use plan::Plan;
pub use room::Room;
pub use seal::Seal;
