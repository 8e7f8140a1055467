//! What differs between one room's system call policy and another's.

/// The few switches of the policy. Every combination is compiled when this crate is built, and tested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// Refusals of the EPERM kind are reported to the supervisor, which answers them, and which makes the sockets that
    /// i386's `socketcall` asks for. Needs a listener, of which the kernel allows one per tree of filters: not together
    /// with `nested`, where the build wants its own. Without it `socketcall` makes no sockets.
    pub record: bool,
    /// The build makes sandboxes itself: `setns` is allowed.
    pub nested: bool,
    /// 32-bit programs of the same machine (i386 on x86_64, arm on aarch64) may run, under the same policy. Without it
    /// their first system call kills them.
    pub compat: bool,
    /// Changing a file's owner answers success and does nothing. For QEMU, which does it in a guest's name: what a guest's
    /// root may do to its files, the one user of the room may not.
    pub ignore_chown: bool,
}

/// How many combinations of [`Choices`] there are.
pub const COMBINATIONS: usize = 16;

impl Choices {
    /// The combination at a place of the table of programs: one bit per choice.
    pub fn at(place: usize) -> Self {
        Self { record: place & 1 != 0, nested: place & 2 != 0, compat: place & 4 != 0, ignore_chown: place & 8 != 0 }
    }
}
