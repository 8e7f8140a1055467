//! The room suite: what a room is, as its payload and the host notice it.
//!
//! One file per layer, each with the same two sides where the host can show them: the hole open with `--without LAYER`, and shut
//! without it. Then what spans layers: supervision, refusals, faults, the command line. The names of the tests are the specification.

mod capabilities;
mod cgroup;
mod command_line;
mod descriptors;
mod devices;
mod etc;
mod faults;
mod identity;
mod keyring;
mod landlock;
mod limits;
mod namespaces;
mod network;
mod proc;
mod process;
mod refusals;
mod root;
mod seccomp;
mod sockets32;
mod supervision;

use anchorhold_tests::host::Footprint;
use anchorhold_tests::room::Room;

/// The room of `anchorhold run` without options.
fn room() -> Room {
    Room::new()
}

/// A room of a profile.
fn room_of(profile: &str) -> Room {
    Room::of_profile(profile)
}

/// Rooms that can be told from all others.
fn footprint() -> Footprint {
    Footprint::new()
}
