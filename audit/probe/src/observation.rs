//! The conversation between the runner of the audit and `anchorhold-probe observe`, the parent of a sandbox's launcher: lines
//! of JSON, in this order.
//!
//! 1. runner: [`Order`], what to set up;
//! 2. observer: [`SetUp`], what is there now;
//! 3. runner: [`Launch`], the command;
//! 4. if the command is to be held: observer: [`Standing`], what is to be seen while it runs; runner: any line, when it has looked
//!    as well; the command is then killed;
//! 5. observer: [`Seen`], how the command ended and what was to be seen afterwards.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::verdict::name_of;

/// What to set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Random text that is in the name and the contents of everything.
    pub nonce: String,
    /// The folder that the command inherits a descriptor of.
    pub folder: PathBuf,
    /// The variable of the environment that holds the nonce.
    pub variable: String,
    /// The vsock port to bind.
    pub port: u32,
}

/// What is there now: fields of the [world](crate::world::World).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the world says what they are")]
pub struct SetUp {
    pub victim: Option<i32>,
    pub inherited_descriptor: Option<i32>,
    pub shared_memory_key: Option<i32>,
    pub message_queue: Option<String>,
    pub shared_memory_file: Option<String>,
    pub session_key: Option<String>,
    pub user_key: Option<String>,
    pub vsock_port: Option<u32>,
    pub terminal: bool,
    /// What could not be set up, and what the kernel said.
    pub missing: Vec<String>,
}

impl SetUp {
    /// Takes note of what could not be set up.
    pub fn miss(&mut self, what: &str, errno: i32) {
        self.missing.push(format!("{what}: {}", name_of(errno)));
    }
}

/// How the command is started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Program and arguments.
    pub words: Vec<String>,
    /// Variables to set besides those that are inherited.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Where it starts.
    pub directory: PathBuf,
    /// That it is looked at while it runs, and then killed: the process that was started, and no other.
    #[serde(default)]
    pub held: bool,
}

/// The name of the process that shows that a held sandbox stands: the last thing that the battery starts in it.
pub const ORPHAN: &str = "anchor-orphan";

/// What is to be seen of a sandbox while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// A process of the sandbox, as it is numbered outside; none if none was seen.
    pub pid: Option<i32>,
    /// What bounds its memory, if anything could be read: the limit of the control groups that are the sandbox's own, in bytes,
    /// and none where there is no such limit.
    pub memory: Option<Bound>,
}

/// What a control group says of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// There is none.
    None,
    /// So much.
    Of(u64),
}

/// What a builder makes that whoever takes its output over should not take as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// Files of all modes, and attributes.
    Modes,
    /// A FIFO.
    Fifo,
    /// A socket file.
    Socket,
    /// A device file.
    Device,
    /// Links to the canary.
    Link,
    /// A folder that goes on being exchanged for a link.
    Race,
    /// A file that goes on being written.
    Late,
}

impl OutputKind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Modes, Self::Fifo, Self::Socket, Self::Device, Self::Link, Self::Race, Self::Late];

    /// The word for the command line.
    pub fn name(self) -> &'static str {
        self.probe().rsplit('.').next().unwrap_or_default()
    }

    /// The probe that is judged by it.
    pub fn probe(self) -> &'static str {
        match self {
            Self::Modes => "out.modes",
            Self::Fifo => "out.fifo",
            Self::Socket => "out.socket",
            Self::Device => "out.device",
            Self::Link => "out.symlink",
            Self::Race => "out.race",
            Self::Late => "out.fd.late",
        }
    }
}

/// What the output says that is written to too late, and what it says if that worked.
pub const AGREED: &str = "agreed\n";

/// What was to be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The exit status; 128 and the signal's number when a signal ended it. None when it could not be started.
    pub status: Option<i32>,
    /// Why it could not be started.
    pub problem: Option<String>,
    /// Processes that were still there after the grace period; they have been ended.
    pub survivors: Vec<Survivor>,
    /// Descriptions of foreign keys in the session and the user keyring that hold the nonce.
    pub keys: Vec<String>,
}

/// A process that outlived its sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivor {
    /// Its id, outside.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// Its command line, without what the probes were told of the world.
    pub command: String,
}
