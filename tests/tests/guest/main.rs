//! Our agent, kernels and images in real QEMU machines, started by command lines of these tests' own.
//!
//! Always under emulation: a host's /dev/kvm may answer and be of no use. What they need beyond Debian packages is a
//! kernel, from `scripts/guest-kernel`, and the agent, which lies beside the program that is tested.

mod agent;
mod isolation;
mod machine;
mod pair;
