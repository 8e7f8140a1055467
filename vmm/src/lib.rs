//! Virtual machines inside a sealed room: the Windows guest, its Linux controller, their wire and their stages.
//!
//! ```text
//! MachineSpec ──► arguments ──► Machine ──► readiness ──► what was waited for, or a Failure of a known class
//! what            how           runs        waits
//! ```
//!
//! * [`spec::MachineSpec`] is plain data: what machine is wanted.
//! * [`qemu`] knows which QEMU there is, and writes its command line by a pure function.
//! * [`machine::Machine`] is one that runs: control socket, console, ports and process as one stream of events.
//! * [`readiness`] waits for events with deadlines, and says why something did not come.
//! * [`failure`] is the table of everything that goes wrong.
//! * [`linux`] is the Linux machine: a kernel, an agent, directories of the host, one program.
//! * [`memory`] saves a machine, and revives it many times; [`stages`] keeps what takes long: installed disks, saved pairs.
//! * [`visitors`] are people who look at a machine while it runs, and [`sessions`] are theirs in its guest.
//! * [`pair`] is a guest that is reached by the network, and the controller beside it.
//! * [`accelerator`] chooses between KVM and emulation; [`kernel`], [`initramfs`] and [`agent`] are what a guest boots from.
//! * [`profile`] describes guests as data; [`exchange`], [`shares`] and [`wire`] are what passes between them, and [`report`] what they say.
//!
//! The crate knows nothing of Nix.
// Denied instead of forbidden for one module alone: `accelerator/kvm.rs`.
#![deny(unsafe_code)]

pub mod accelerator;
pub mod agent;
pub mod answers;
pub mod channel;
pub mod console;
pub mod controller;
pub mod disk;
pub mod encoding;
pub mod exchange;
pub mod failure;
pub mod initramfs;
pub mod kernel;
pub mod lines;
pub mod linux;
pub mod machine;
pub mod memory;
pub mod pair;
pub mod process;
pub mod profile;
pub mod qemu;
pub mod qmp;
pub mod readiness;
pub mod report;
pub mod sessions;
pub mod shares;
pub mod spec;
pub mod stages;
pub mod visitors;
pub mod wire;
