//! Virtual machines inside a sealed room: the Windows guest, its Linux controller, their wire and their stages.
// Denied instead of forbidden for one module alone: `accelerator/kvm.rs`.
#![deny(unsafe_code)]

pub mod accelerator;
pub mod agent;
pub mod controller;
pub mod encoding;
pub mod exchange;
pub mod initramfs;
pub mod kernel;
pub mod profile;
pub mod report;
pub mod shares;
pub mod wire;
