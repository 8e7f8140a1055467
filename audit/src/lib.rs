//! The battery's outer half: starts the probe program in sandboxes, watches from outside, and tells what is open.
//!
//! The way of the data: [`program`] finds the probe program, which lists the [`catalogue`]; the [`runner`] sets up [`observers`],
//! describes them in a [world](anchorhold_probe::world), starts one of the [`sandboxes`] with the program in it, and reads the [`battery`] that comes out;
//! what one look from inside cannot
//! tell is tried in runs of its own; [`audit`] does all of it for the baselines, the sandboxes that were asked for and the [`controls`] that are needed for proofs;
//! [`verdicts`] says what is open, and [`report`] says it to people and machines. [`facts`] compares what no hole is but
//! tells hosts apart; [`external`] finds a reviewer's own probes.
#![forbid(unsafe_code)]

pub mod audit;
pub mod battery;
pub mod catalogue;
pub mod controls;
pub mod error;
pub mod external;
pub mod facts;
mod interrupt;
pub mod observers;
mod outputs;
pub mod program;
pub mod report;
pub mod runner;
pub mod sandboxes;
pub mod silent;
mod trials;
pub mod user;
pub mod verdicts;

pub use anchorhold_probe::vocabulary;
pub use error::Error;
