//! What a person, or a program, is told while builds run.

pub mod escapes;
pub mod lines;
