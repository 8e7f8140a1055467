//! One module per protection of a room.

pub mod seccomp;
