//! Virtual machines inside a sealed room: the Windows guest, its Linux controller, their wire and their stages.
#![forbid(unsafe_code)]

pub mod agent;
pub mod encoding;
pub mod exchange;
pub mod initramfs;
pub mod kernel;
pub mod report;
