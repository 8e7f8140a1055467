//! `anchorhold attach` from outside: with requests that the tests write themselves, and as the external builder of a real Nix.

mod machine;
mod nix;
mod request;
mod world;
