//! Replays of known escapes, by name: what was done to other executors, done to this one.
//!
//! Each hole needs more than one party: two builds, a process of the host's, an archive from a stranger. Each replay first
//! shows that it can fire, against a room or a program that is weakened in just this respect; only then does its failing
//! against the whole one say anything.

mod archives;
mod leftovers;
mod planted;
mod scratch;
mod smuggled;
