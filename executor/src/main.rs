//! The `anchorhold` command.
#![forbid(unsafe_code)]
fn main() {}
