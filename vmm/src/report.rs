//! How a guest and its host talk: typed messages in bounded frames over a virtio-serial port.
//!
//! * [`frame`]: where a message begins and ends.
//! * [`message`]: what can be said, [`Request`]s into the guest and [`Report`]s out of it.
//! * [`conversation`]: the host's end, with a deadline for every wait.
//!
//! A command's output is a message of its own kind and its status another: nothing that a build prints can look like a
//! status, and a status that never came is not a number but [`Ending::NoStatus`].

pub mod conversation;
pub mod frame;
pub mod message;

pub use conversation::{Conversation, ConversationError};
pub use frame::{FrameError, Frames, MAX_MESSAGE};
pub use message::{Ending, MountRequest, Report, Request, RunRequest, Streams, What};

/// The name of the virtio-serial port, for QEMU's `-device virtserialport,name=…` and in the guest's
/// `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "org.anchorhold.report";
