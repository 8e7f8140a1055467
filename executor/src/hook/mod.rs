//! The door for Nix's `build-hook` (Nix 2.4 and later): Nix's own helper for remote builds, with us as the remote machine.
//!
//! ```text
//! Nix ── settings, requests ──► shim ── the same, `builders` replaced ──► build-remote of the installed Nix
//!  ▲                                                                        │ worker protocol
//!  └──────────── replies, log, exit status; outputs are registered ─────────┤
//!                                                                           ▼
//!               the host's store, read only ──► endpoint ──► room ──► outputs in a scratch directory, until they are fetched
//! ```
//!
//! A hook cannot register outputs by itself: the Nix that waits for it holds their locks. So locks, registration and the
//! counting of slots are left to the helper of the very Nix that is installed. It takes us for a machine that has every path
//! of the host's store already, and copies nothing there but what was built.
//!
//! Source: `src/libstore/build/hook-instance.cc`, `derivation-goal.cc` and `src/build-remote/build-remote.cc` of Nix 2.8 (later
//! `src/nix/build-remote/build-remote.cc`).

mod building;
pub mod carried;
pub mod child;
mod endpoint;
pub mod machine;
mod place;
pub mod settings;

pub use carried::Carried;
pub use child::{BuildRemote, ChildError};
pub use endpoint::Endpoint;
pub use place::{PlaceError, store_root};
pub use settings::Settings;
