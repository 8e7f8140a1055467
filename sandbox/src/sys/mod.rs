//! Raw system calls that no crate wraps: the only place in the workspace with unsafe code.

pub mod seccomp;
