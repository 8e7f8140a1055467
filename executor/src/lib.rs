//! The build executor: a derivation in, registered outputs out.
//!
//! The way of the data is a straight line. A door (today the command line) makes a [`build`] request of a
//! [`derivation`]; its room is planned and entered by the crate `anchorhold-sandbox`; what it leaves behind is taken as an
//! enemy's work ([`tree`], [`nar`]) and registered in a [`store`].
#![forbid(unsafe_code)]

pub mod attach;
pub mod build;
pub mod cache;
pub mod config;
pub mod derivation;
pub mod hash;
pub mod hook;
pub mod machines;
pub mod nar;
pub mod nix_config;
pub mod progress;
pub mod server;
pub mod store;
pub mod store_path;
pub mod transfer;
pub mod tree;
pub mod wire;
