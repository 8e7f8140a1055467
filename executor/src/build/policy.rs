//! What this machine builds, and what it lets a build do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anchorhold_sandbox::quantity::{Duration, Size};
use anchorhold_sandbox::room::{Limits, Network};

use super::environment;
use super::hooks::Hooks;
use super::room::{Grants, SandboxPath};
use super::upkeep::Upkeep;
use crate::derivation::Derivation;
use crate::derivation::options::Options;
use crate::machines::Machines;

/// The feature that grants `/dev/kvm`.
pub const KVM: &str = "kvm";
/// The feature of builds that make sandboxes themselves.
pub const NESTED: &str = "nested-sandbox";

/// The feature of builds whose builder runs in a Linux machine of its own.
pub const LINUX_VM: &str = "linux-vm";
/// The feature of builds whose builder runs in a guest beside a controller: Windows, or what plays it.
pub const WINDOWS_VM: &str = "windows-vm";

/// Policy for all builds of one call.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The system that is built for, such as `x86_64-linux`.
    pub system: String,
    /// Further systems whose programs run here.
    pub extra_platforms: BTreeSet<String>,
    /// Words that a derivation may require.
    pub features: BTreeSet<String>,
    /// Whether a derivation may do without its room by `__noChroot`.
    pub relaxed: bool,
    /// Paths that every builder sees.
    pub sandbox_paths: Vec<SandboxPath>,
    /// The build directory as builders name it.
    pub build_dir: String,
    /// Where the directories of running builds are made. On the store's file system, outputs are moved; elsewhere, copied.
    pub builds: PathBuf,
    /// The bound of `/dev/shm`.
    pub shm_size: Size,
    /// `NIX_BUILD_CORES`; 0 lets the builder find out.
    pub cores: u32,
    /// Longest time of one build.
    pub timeout: Option<Duration>,
    /// Longest time without a byte of output.
    pub max_silent_time: Option<Duration>,
    /// Most bytes of output.
    pub max_log_size: Option<Size>,
    /// Memory of one build.
    pub memory: Option<Size>,
    /// Processes and threads of one build.
    pub pids: Option<u64>,
    /// Processors' worth of time of one build.
    pub cpu: Option<f64>,
    /// The network of a build whose output is known beforehand.
    pub fetch: Network,
    /// Values for `impureEnvVars`.
    pub impure_environment: BTreeMap<String, String>,
    /// Whether a failed build is kept.
    pub keep_failed: bool,
    /// How many lines of a failed build's log are repeated.
    pub log_lines: usize,
    /// The command that does a build again, but for the derivation: what a failure advises. Nothing where no person can do it.
    pub again: Option<String>,
    /// The group whose members builds run as; without one each build of root's has an id of its own.
    pub build_users_group: Option<String>,
    /// The operator's programs around a build.
    pub hooks: Hooks,
    /// What is done to the store around builds.
    pub upkeep: Upkeep,
    /// What virtual machines are made of, where there are any.
    pub machines: Option<Machines>,
}

/// Why this machine does not do a build.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It is for another machine.
    #[error(
        "it is for ‘{wanted}’, and this machine builds for {here}: build it on another machine, or add the system to `extra-platforms` if its programs run here"
    )]
    System {
        /// What the derivation says.
        wanted: String,
        /// What is built here.
        here: String,
    },
    /// It requires a feature that is not given.
    #[error("it requires the feature ‘{feature}’, and this machine has {here}: {advice}")]
    Feature {
        /// The word.
        feature: String,
        /// The words there are.
        here: String,
        /// What to do.
        advice: &'static str,
    },
    /// It wants two kinds of machine.
    #[error(
        "it requires both ‘linux-vm’ and ‘windows-vm’, and a builder runs in one guest: split the derivation in two"
    )]
    TwoMachines,
    /// It wants to be built outside a room.
    #[error(
        "it sets ‘__noChroot’, and builds without a room are refused: take the attribute out, or set `sandbox = \"relaxed\"` if this one may see the host's files and network"
    )]
    NoRoom,
    /// It names files of the host.
    #[error(
        "it asks for the host's ‘{0}’ by ‘__impureHostDeps’: no host path is given to builds by their own wish; name it in `sandbox-paths`"
    )]
    HostPath(String),
}

impl Policy {
    /// One for builds for `system` below `builds`, that grants them nothing and limits nothing.
    pub fn granting_nothing(system: &str, builds: &Path) -> Self {
        Self {
            system: system.to_owned(),
            extra_platforms: BTreeSet::new(),
            features: BTreeSet::new(),
            relaxed: false,
            sandbox_paths: Vec::new(),
            build_dir: "/build".to_owned(),
            builds: builds.to_owned(),
            shm_size: Size::Share(50),
            cores: 1,
            timeout: None,
            max_silent_time: None,
            max_log_size: None,
            memory: None,
            pids: None,
            cpu: None,
            fetch: Network::default(),
            impure_environment: BTreeMap::new(),
            keep_failed: false,
            log_lines: 10,
            again: None,
            build_users_group: None,
            hooks: Hooks::default(),
            upkeep: Upkeep::default(),
            machines: None,
        }
    }

    /// What a builder's environment takes from policy.
    pub fn environment(&self) -> environment::Settings {
        let bytes = |(name, value): (&String, &String)| (name.clone(), value.clone().into_bytes());
        environment::Settings {
            cores: self.cores,
            build_directory: self.build_dir.clone(),
            impure_environment: self.impure_environment.iter().map(bytes).collect(),
        }
    }

    /// What a derivation is granted, or why it is not built here.
    pub fn grants(&self, derivation: &Derivation, options: &Options) -> Result<Grants, Rejection> {
        let systems = || std::iter::once(&self.system).chain(&self.extra_platforms);
        if !derivation.is_builtin() && !systems().any(|system| *system == derivation.system) {
            return Err(Rejection::System {
                wanted: derivation.system.clone(),
                here: systems().map(|system| format!("‘{system}’")).collect::<Vec<_>>().join(", "),
            });
        }
        // A word that a person wrote into the features makes no machine: without one, a room would be less than was asked for.
        let is_given = |word: &String| {
            let is_possible = match word.as_str() {
                LINUX_VM => self.machines.as_ref().is_some_and(Machines::are_there),
                WINDOWS_VM => {
                    self.machines.as_ref().is_some_and(|machines| machines.are_there() && machines.has_guest())
                }
                _ => true,
            };
            is_possible && self.features.contains(word)
        };
        if let Some(feature) = options.required_system_features.iter().find(|word| !is_given(word)) {
            let here = self
                .features
                .iter()
                .filter(|word| is_given(word))
                .map(|word| format!("‘{word}’"))
                .collect::<Vec<_>>()
                .join(", ");
            return Err(Rejection::Feature {
                feature: feature.clone(),
                here: if here.is_empty() { "none".to_owned() } else { here },
                advice: match feature.as_str() {
                    KVM => "`anchorhold doctor` says why /dev/kvm is unusable",
                    LINUX_VM => {
                        "`anchorhold vm run -- true` says what is missing: QEMU, a kernel (scripts/guest-kernel makes one) or the agent"
                    }
                    WINDOWS_VM => {
                        "the setting `vm-guest` names the guest, whose images `scripts/guest-images` makes; QEMU, a kernel (scripts/guest-kernel) and the agent must be there too"
                    }
                    "uid-range" | "recursive-nix" => "no version of this program gives it yet",
                    _ => "add it to `system-features` if the machine has what it stands for",
                },
            });
        }
        if options.no_chroot && !self.relaxed {
            return Err(Rejection::NoRoom);
        }
        if let Some(path) = options.impure_host_deps.first() {
            return Err(Rejection::HostPath(path.clone()));
        }
        let requires = |word: &str| options.required_system_features.contains(word);
        if requires(LINUX_VM) && requires(WINDOWS_VM) {
            return Err(Rejection::TwoMachines);
        }
        Ok(Grants {
            kvm: requires(KVM),
            nested: requires(NESTED),
            linux_vm: requires(LINUX_VM),
            windows_vm: requires(WINDOWS_VM),
            fetch: derivation.fixed_output().is_some(),
            no_room: options.no_chroot,
            linux32: self.system == "x86_64-linux" && derivation.system == "i686-linux",
        })
    }

    /// The limits of one build's room.
    pub fn limits(&self) -> Limits {
        Limits {
            memory: self.memory,
            pids: self.pids,
            cpu: self.cpu,
            time: self.timeout,
            silence: self.max_silent_time,
            output: self.max_log_size,
            ..Limits::default()
        }
    }
}

/// The system that this program runs on, as Nix names it.
pub fn native_system() -> String {
    format!("{}-linux", std::env::consts::ARCH)
}
