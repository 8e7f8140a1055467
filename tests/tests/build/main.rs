//! The build suite: `anchorhold build` from outside, on derivations whose builder is a static busybox.
//!
//! What derivations mean is judged by a real Nix where one is installed: the same derivations, the same paths, the same hashes. The
//! rest is what a user notices: what builders see, what outputs are refused and in which words, how failures explain
//! themselves, and that nothing is lost when everything is killed. Known escapes from other executors are in `replays`.

mod failures;
mod hostile;
mod judge;
mod kill;
mod operator;
mod recipe;
mod replays;
mod room;
mod semantics;
mod world;
