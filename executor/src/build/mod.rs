//! A build, from a request to registered outputs.

pub mod checks;
pub mod environment;
pub mod graph;
pub mod launcher;
pub mod reference_graph;
pub mod result;
pub mod room;
pub mod scheduler;
pub mod structured_attributes;

#[cfg(test)]
mod real_build;
