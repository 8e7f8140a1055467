//! What a probe may know of the outside: where the observers are. Whoever starts the program gives it as JSON, because
//! an argument is the one thing that every sandbox hands on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The observers of one run, all made anew for it. What is missing was not set up, and probes that need it say so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct World {
    /// Random text of this run; in the names and contents of everything below.
    pub nonce: String,
    /// A world-writable folder outside, with a world-readable and -writable file `canary` in it that holds the nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<PathBuf>,
    /// A file below a read-only input, as its path is inside the sandbox. It is expected not to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<PathBuf>,
    /// A folder inside where the probe may write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch: Option<PathBuf>,
    /// Name (without the leading zero byte) of an abstract stream socket that the observer listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abstract_socket: Option<String>,
    /// Name of an abstract stream socket that the observer keeps dialling: whoever listens there hears the nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dialled_socket: Option<String>,
    /// A socket file outside, world-writable, that the observer listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_socket: Option<PathBuf>,
    /// A port of 127.0.0.1 outside that the observer listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_port: Option<u16>,
    /// A port of ::1 outside that the observer listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp6_port: Option<u16>,
    /// A vsock port that the observer has bound on any address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_port: Option<u32>,
    /// A sleeping process outside, of the user who started the sandbox. Its environment holds the nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub victim: Option<i32>,
    /// The number of an inherited descriptor, without close-on-exec, of the canary's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inherited_descriptor: Option<i32>,
    /// The name of a variable of the starter's environment whose value is the nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment_variable: Option<String>,
    /// Key of a System V shared memory segment of mode 0666 that begins with the nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_memory_key: Option<i32>,
    /// Name of a POSIX message queue of mode 0666, with the leading slash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_queue: Option<String>,
    /// Name of a file of mode 0666 in the outer /dev/shm that holds the nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_memory_file: Option<String>,
    /// Description of a `user` key in the starter's session keyring whose payload is the nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
    /// Description of such a key in the starter's user keyring.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_key: Option<String>,
    /// Set when the starter's controlling terminal is standard input.
    pub terminal: bool,
    /// Variables that the sandbox was told to set, `NAME=value`, when the environment is declared exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Vec<String>>,
    /// That /dev/kvm was granted.
    pub kvm_granted: bool,
    /// That a network was granted, as to fixed-output builds.
    pub network_granted: bool,
    /// That user and mount namespaces were granted, as by the profile `nested`.
    pub namespaces_granted: bool,
    /// The starter's namespaces: names of `/proc/self/ns` with what the links say, for example `net:[4026531840]`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub namespaces: BTreeMap<String, String>,
    /// That the observer looks for processes that outlive the sandbox; without it none are left behind on purpose.
    pub survivors: bool,
    /// The number of processes that the sandbox was limited to, for a run whose sandbox was given a small limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process_limit: Option<u32>,
    /// The bytes of memory that the sandbox was limited to. The probe that goes beyond may be killed with all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    /// The bytes that fit into the scratch folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_limit: Option<u64>,
    /// The files that fit into the scratch folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inode_limit: Option<u64>,
    /// The bytes that the sandbox may write to its standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_limit: Option<u64>,
    /// The seconds that the sandbox may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_limit: Option<u64>,
}

impl World {
    /// The name of the file that the battery leaves for somebody outside to find.
    pub fn mark(&self) -> String {
        format!("anchor-mark-{}", self.nonce)
    }
}
