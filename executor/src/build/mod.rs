//! A build, from a request to registered outputs.

pub mod graph;
pub mod launcher;
pub mod result;
pub mod room;
pub mod scheduler;
