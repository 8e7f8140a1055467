//! System calls for which no safe wrapper exists. The only place of this crate that may hold `unsafe`.

pub mod network;
