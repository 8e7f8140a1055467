//! What probes are told of the outside. The probe program has the same fields, and refuses any other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The observers of one run, all made anew for it. What is missing was not set up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct World {
    /// Random text of this run; in the names and contents of everything below.
    pub nonce: String,
    /// A world-writable folder outside, with a file `canary` in it that holds the nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<PathBuf>,
    /// A file below a read-only input, as its path is inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<PathBuf>,
    /// A folder inside where probes may write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch: Option<PathBuf>,
    /// Name of an abstract stream socket that is listened on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abstract_socket: Option<String>,
    /// Name of an abstract stream socket that is dialled again and again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dialled_socket: Option<String>,
    /// A socket file outside that is listened on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_socket: Option<PathBuf>,
    /// A port of 127.0.0.1 outside that is listened on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_port: Option<u16>,
    /// A vsock port that is taken outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_port: Option<u32>,
    /// A sleeping process outside, of the launcher's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub victim: Option<i32>,
    /// The number of an inherited descriptor of the canary's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inherited_descriptor: Option<i32>,
    /// The variable of the launcher's environment whose value is the nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment_variable: Option<String>,
    /// Key of a System V segment that begins with the nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_memory_key: Option<i32>,
    /// Name of a POSIX message queue, with the leading slash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_queue: Option<String>,
    /// Name of a file in the outer /dev/shm that holds the nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_memory_file: Option<String>,
    /// Description of a key in the launcher's session keyring.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
    /// Description of a key in the launcher's user keyring.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_key: Option<String>,
    /// That the launcher's controlling terminal is its standard input.
    pub terminal: bool,
    /// Variables that the sandbox was told to set, when the environment is declared exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Vec<String>>,
    /// That /dev/kvm was granted.
    pub kvm_granted: bool,
    /// That a network was granted.
    pub network_granted: bool,
    /// That user and mount namespaces were granted.
    pub namespaces_granted: bool,
    /// The starter's namespaces, as `/proc/self/ns` shows them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub namespaces: BTreeMap<String, String>,
    /// That processes that outlive the sandbox are looked for.
    pub survivors: bool,
    /// The processes that the sandbox was limited to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process_limit: Option<u32>,
    /// The bytes of memory that it was limited to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    /// The bytes that fit into the scratch folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_limit: Option<u64>,
    /// The files that fit into the scratch folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inode_limit: Option<u64>,
    /// The seconds that the sandbox may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_limit: Option<u64>,
}
