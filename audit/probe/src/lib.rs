//! The words that the probe program and the runner of the audit share: what is written inside is read outside.
//!
//! * [`vocabulary`]: how bad a hole is, how one is opened on purpose, the lines of a report;
//! * [`verdict`]: what a probe can find;
//! * [`world`]: what a probe may know of the outside;
//! * [`observation`]: the conversation between the runner and `anchorhold-probe observe`.
#![forbid(unsafe_code)]

pub mod observation;
pub mod verdict;
pub mod vocabulary;
pub mod world;
