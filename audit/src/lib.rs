//! The battery's outer half: starts the probe program in a sandbox, watches from outside, and tells what is open.
#![forbid(unsafe_code)]
