//! `anchorhold store-server`, with real Nixes as its clients: this machine's, and a newer one.

mod building;
mod copying;
mod newer;
mod trust;
mod world;
mod wrong;
