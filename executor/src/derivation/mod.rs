//! Derivations: read, checked, written, and what they ask of a build.
