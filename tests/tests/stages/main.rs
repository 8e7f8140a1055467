//! Stages of guests under a real QEMU, by emulation: the stand-in installed from its media, saved with its controller, revived.
//!
//! Two machines under emulation want a processor each: these tests run when somebody asks for them (ANCHORHOLD_HEAVY_TESTS).
//! Stages are kept from run to run, in a directory of the user's own: their keys tell when they are to be made anew.

mod carried;
mod killed;
mod people;
mod pruned;
mod revived;
mod sessions;
mod wine;
mod world;
