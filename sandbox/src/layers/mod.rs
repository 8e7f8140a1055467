//! The layers: one protection each, in one file each, with the same three parts.
//!
//! * `plan(room, host, draft)` adds the layer's steps, or refuses. Pure.
//! * `apply(action, site)` does one step. The only part with effects, and those go through [`crate::sys::Sys`].
//! * `verify(plan, view)` reads back from the kernel, from outside, that the layer holds.

pub mod capabilities;
pub mod cgroup;
pub mod descriptors;
pub mod devices;
pub mod etc;
pub mod identity;
pub mod keyring;
pub mod landlock;
pub mod limits;
pub mod namespaces;
pub mod network;
pub mod proc;
pub mod process;
pub mod root;
pub mod seccomp;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Refusal;
use crate::host::Host;
use crate::plan::Draft;
use crate::room::Room;
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site};

/// One protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// Own pid, IPC, UTS, cgroup and, when asked, time namespaces; limits on making more.
    Namespaces,
    /// Unprivileged kernel ids, and the second user namespace that locks what was set up.
    Identity,
    /// The tree: restrictions of each mount, pivot_root, the old root gone.
    Root,
    /// The fixed `/dev`.
    Devices,
    /// Covers and stand-ins in `/proc`, `/proc/sys` read-only.
    Proc,
    /// The generated `/etc`.
    Etc,
    /// A network of its own.
    Network,
    /// A session keyring of its own.
    Keyring,
    /// Descriptors, session, terminal.
    Descriptors,
    /// Resource limits of processes, time, silence and output.
    Limits,
    /// Resource control of the whole room.
    Cgroup,
    /// No capability in any set, secure bits locked, no new privileges.
    Capabilities,
    /// File and scope rules.
    Landlock,
    /// The system call filter.
    Seccomp,
    /// What runs: not a protection, and the one part that cannot be left out.
    Process,
}

impl Layer {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 15] = [
        Self::Namespaces,
        Self::Identity,
        Self::Root,
        Self::Devices,
        Self::Proc,
        Self::Etc,
        Self::Network,
        Self::Keyring,
        Self::Descriptors,
        Self::Limits,
        Self::Cgroup,
        Self::Capabilities,
        Self::Landlock,
        Self::Seccomp,
        Self::Process,
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Identity => "identity",
            Self::Root => "root",
            Self::Devices => "devices",
            Self::Proc => "proc",
            Self::Etc => "etc",
            Self::Network => "network",
            Self::Keyring => "keyring",
            Self::Descriptors => "descriptors",
            Self::Limits => "limits",
            Self::Cgroup => "cgroup",
            Self::Capabilities => "capabilities",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Process => "process",
        }
    }

    /// What is open when the layer is left out, in a few words.
    pub fn left_open(self) -> &'static str {
        match self {
            Self::Namespaces => {
                "the host's processes, IPC objects and names; what the command leaves running outlives the room"
            }
            Self::Identity => "the user namespace that owns the room's mounts",
            Self::Root => "writing, set-id programs and device nodes on every mount",
            Self::Devices => "the host's /dev",
            Self::Proc => "all of /proc, /proc/sys for writing as far as ids allow",
            Self::Etc => "the host's /etc",
            Self::Network => "the host's network",
            Self::Keyring => "the caller's session keyring",
            Self::Descriptors => "every descriptor of the caller, and its terminal",
            Self::Limits => "resource use of each process, and time",
            Self::Cgroup => "resource use of the room",
            Self::Capabilities => "all capabilities over the room's own user namespace",
            Self::Landlock => "what the mounts alone leave open",
            Self::Seccomp => "every system call",
            Self::Process => "nothing",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Layer {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|layer| layer.name() == word && *layer != Self::Process).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().filter(|layer| **layer != Self::Process).map(|l| l.name()).collect();
            format!("no layer `{word}`; there are {}", names.join(", "))
        })
    }
}

macro_rules! layers {
    ($($variant:ident => $module:ident),* $(,)?) => {
        /// What one step does, by layer.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Action {
            $(
                #[doc = concat!("A step of the layer `", stringify!($module), "`.")]
                $variant($module::Action),
            )*
        }

        impl Action {
            /// The layer that the step belongs to.
            pub fn layer(&self) -> Layer {
                match self { $(Self::$variant(_) => Layer::$variant,)* }
            }

            /// Does it.
            pub(crate) fn apply(&self, site: &mut Site<'_>) -> Outcome {
                match self { $(Self::$variant(action) => $module::apply(action, site),)* }
            }
        }

        impl fmt::Display for Action {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self { $(Self::$variant(action) => action.fmt(f),)* }
            }
        }

        $(
            impl From<$module::Action> for Action {
                fn from(action: $module::Action) -> Self {
                    Self::$variant(action)
                }
            }
        )*

        /// Has every layer add its steps.
        pub(crate) fn plan(room: &Room, host: &Host, draft: &mut Draft) -> Result<(), Refusal> {
            $($module::plan(room, host, draft)?;)*
            Ok(())
        }

        /// Has every layer read back what holds.
        pub(crate) fn verify(room: &Room, view: &View<'_>) -> Vec<(Layer, Finding)> {
            vec![$((Layer::$variant, $module::verify(room, view)),)*]
        }
    };
}

layers! {
    Namespaces => namespaces,
    Identity => identity,
    Root => root,
    Devices => devices,
    Proc => proc,
    Etc => etc,
    Network => network,
    Keyring => keyring,
    Descriptors => descriptors,
    Limits => limits,
    Cgroup => cgroup,
    Capabilities => capabilities,
    Landlock => landlock,
    Seccomp => seccomp,
    Process => process,
}
