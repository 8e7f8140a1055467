//! What the end-to-end suites share: starting the command, and looking at the host from outside.
//!
//! * [`room`] starts `anchorhold run` and catches what comes out of it; [`running`] is one that is still at work.
//! * [`probe`] finds the program `room-probe`, which rooms run: it attempts one thing and prints how that went.
//! * [`descriptor`] takes a descriptor that comes over a socket.
//! * [`host`] looks at processes, locks, mounts, files and control groups from outside.
//! * [`newer_nix`] is a newer Nix than this machine's, and [`recipe`] what it and others are given to build.
//! * [`terminal`] is a pseudo-terminal for a caller that has one.
//! * [`world`] is a store of a test's own, which a real Nix judges.

pub mod descriptor;
pub mod host;
pub mod machines;
pub mod newer_nix;
pub mod probe;
pub mod recipe;
pub mod room;
pub mod running;
pub mod terminal;
pub mod world;

/// How long anything in these suites may take before it counts as hung. Machines that run tests are slow and shared.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Says that a test cannot run here, in the form that `scripts/test` counts. The test returns right after.
pub fn skip(reason: &str) {
    println!("SKIP: {reason}");
}
