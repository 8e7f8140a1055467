//! The protections of a room, one module per layer.

pub mod cgroup;
