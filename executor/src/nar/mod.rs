//! The Nix archive: a canonical stream of a tree, written, read and restored.
