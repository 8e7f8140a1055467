//! Machines under a real QEMU, by emulation: `/dev/kvm` is never used here, for there are hosts where it is a trap.

mod builds;
mod clock;
mod control;
mod failures;
mod hostile;
mod inputs;
mod memory;
mod owners;
mod pairs;
mod pretender;
mod vm_run;

mod wine;
mod world;
