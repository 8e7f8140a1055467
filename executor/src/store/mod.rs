//! The embedded store: Nix's layout and database under a root of our own.
