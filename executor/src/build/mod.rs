//! A build, from a request to registered outputs.
//!
//! [`environment`] says what a builder gets; [`checks`] what its outputs must not be.

pub mod checks;
pub mod environment;
pub mod reference_graph;
pub mod rewriting;
pub mod structured_attributes;

#[cfg(test)]
mod real_build;
