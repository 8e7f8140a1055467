//! How a guest and its host talk: typed messages in bounded frames over a virtio-serial port.
//!
//! * [`frame`]: where a message begins and ends.
//! * [`message`]: what can be said, [`Request`]s into the guest and [`Report`]s out of it.
//! * [`conversation`]: the host's end, with a deadline for every wait.
//!
//! A command's output is a message of its own kind and its status another: nothing that a build prints can look like a
//! status, and a status that never came is not a number but [`Ending::NoStatus`].

use std::time::Duration;

pub mod conversation;
pub mod frame;
pub mod message;

pub use conversation::{Conversation, ConversationError};
pub use frame::{FrameError, Frames, MAX_MESSAGE};
pub use message::{Ending, MountRequest, Report, Request, RunRequest, Streams, What};

/// The name of the virtio-serial port, for QEMU's `-device virtserialport,name=…` and in the guest's
/// `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "org.anchorhold.report";

/// A guest whose agent is ready. Times are the guest's own, since its kernel began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The release of the kernel.
    pub kernel: String,
    /// When the agent began: the kernel's own start.
    pub began: Duration,
    /// When what the image asks for was done.
    pub up: Duration,
}

impl Started {
    pub(crate) fn of(kernel: String, began: u64, up: u64) -> Self {
        Self { kernel, began: Duration::from_nanos(began), up: Duration::from_nanos(up) }
    }
}
