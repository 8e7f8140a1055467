//! A build, from a request to registered outputs.

pub mod log;
