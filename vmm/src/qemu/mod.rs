//! QEMU: which one there is, and how it is told what machine to be.

pub mod arguments;
pub mod installed;

pub use arguments::{Wiring, arguments};
pub use installed::{Installed, Version};
