//! The values as the rest of the program reads them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anchorhold_sandbox::layers::network::policy::{Allow, Prefix};
use anchorhold_sandbox::quantity::{self, Size};
use toml::Value;

use super::Config;

/// How many builds run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxJobs {
    /// One for each processor.
    Auto,
    /// So many.
    Count(usize),
}

/// Which builds are in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandbox {
    /// All.
    Strict,
    /// All but those with `__noChroot`.
    Relaxed,
}

/// How fixed-output builds reach the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Through pasta.
    Pasta,
    /// Not at all.
    None,
}

/// All settings, typed. What each means is said in [`super::table::SETTINGS`], where each has the same name; here `None` is
/// “no limit” or “not given”.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the table of settings describes each")]
pub struct Settings {
    pub store: Option<PathBuf>,
    pub max_jobs: MaxJobs,
    /// 0 is all processors.
    pub cores: u64,
    pub keep_going: bool,
    pub keep_failed: bool,
    pub timeout: Option<Duration>,
    pub max_silent_time: Option<Duration>,
    /// In bytes.
    pub max_build_log_size: Option<u64>,
    pub log_lines: usize,
    pub system: String,
    pub extra_platforms: Vec<String>,
    pub system_features: Vec<String>,
    pub sandbox: Sandbox,
    /// Those of `extra-sandbox-paths` too.
    pub sandbox_paths: Vec<String>,
    pub sandbox_build_dir: PathBuf,
    pub sandbox_dev_shm_size: Size,
    pub build_dir: Option<PathBuf>,
    pub build_users_group: Option<String>,
    pub memory: Option<Size>,
    pub pids: Option<u64>,
    pub cpu: Option<f64>,
    pub network: Network,
    pub network_allow: Vec<Allow>,
    pub network_refuse: Vec<Prefix>,
    pub network_only_allowed: bool,
    pub impure_env: BTreeMap<String, String>,
    pub pre_build_hook: Option<PathBuf>,
    pub post_build_hook: Option<PathBuf>,
    pub require_sigs: bool,
    pub trusted_public_keys: Vec<String>,
    pub trusted_users: Vec<String>,
    pub allowed_users: Vec<String>,
    pub stalled_client_timeout: Option<Duration>,
    pub secret_key_files: Vec<PathBuf>,
    pub auto_optimise_store: bool,
    /// In bytes.
    pub min_free: Option<u64>,
    /// In bytes.
    pub max_free: Option<u64>,
    pub keep_derivations: bool,
    pub keep_outputs: bool,
    pub accel: String,
    pub vm_qemu: Option<PathBuf>,
    pub vm_kernel: Option<PathBuf>,
    pub vm_agent: Option<PathBuf>,
    /// In bytes.
    pub vm_memory: u64,
    pub vm_cache: Option<PathBuf>,
    pub vm_guest: Option<String>,
    pub vm_images: Option<PathBuf>,
    pub vm_topology: String,
    pub vm_wire: String,
    pub vm_store: String,
    pub vm_store_cache: String,
    pub vm_clock: String,
    pub vm_save: bool,
    /// In bytes.
    pub vm_exchange: u64,
}

impl Settings {
    pub(super) fn new(config: &Config) -> Self {
        let read = Reader(config);
        let mut sandbox_paths = read.list("sandbox-paths");
        sandbox_paths.extend(read.list("extra-sandbox-paths"));
        Self {
            store: read.path("store"),
            max_jobs: match read.count("max-jobs") {
                0 => MaxJobs::Auto,
                count => MaxJobs::Count(usize::try_from(count).unwrap_or(usize::MAX)),
            },
            cores: read.count("cores"),
            keep_going: read.truth("keep-going"),
            keep_failed: read.truth("keep-failed"),
            timeout: read.time("timeout"),
            max_silent_time: read.time("max-silent-time"),
            max_build_log_size: read.bytes("max-build-log-size"),
            log_lines: usize::try_from(read.count("log-lines")).unwrap_or(usize::MAX),
            system: read.text("system"),
            extra_platforms: read.list("extra-platforms"),
            system_features: read.list("system-features"),
            sandbox: if read.text("sandbox") == "relaxed" { Sandbox::Relaxed } else { Sandbox::Strict },
            sandbox_paths,
            sandbox_build_dir: read.path("sandbox-build-dir").unwrap_or_else(|| "/build".into()),
            sandbox_dev_shm_size: read.size("sandbox-dev-shm-size").unwrap_or(Size::Share(50)),
            build_dir: read.path("build-dir"),
            build_users_group: Some(read.text("build-users-group")).filter(|group| !group.is_empty()),
            memory: read.size("memory"),
            pids: Some(read.count("pids")).filter(|count| *count > 0),
            cpu: read.number("cpu"),
            network: if read.text("network") == "pasta" { Network::Pasta } else { Network::None },
            network_allow: read.list("network-allow").iter().filter_map(|text| text.parse().ok()).collect(),
            network_refuse: read.list("network-refuse").iter().filter_map(|text| text.parse().ok()).collect(),
            network_only_allowed: read.truth("network-only-allowed"),
            impure_env: read.map("impure-env"),
            pre_build_hook: read.path("pre-build-hook"),
            post_build_hook: read.path("post-build-hook"),
            require_sigs: read.truth("require-sigs"),
            trusted_public_keys: read.list("trusted-public-keys"),
            trusted_users: read.list("trusted-users"),
            allowed_users: read.list("allowed-users"),
            stalled_client_timeout: read.time("stalled-client-timeout"),
            secret_key_files: read.list("secret-key-files").into_iter().map(PathBuf::from).collect(),
            auto_optimise_store: read.truth("auto-optimise-store"),
            min_free: read.bytes("min-free"),
            max_free: read.bytes("max-free"),
            keep_derivations: read.truth("keep-derivations"),
            keep_outputs: read.truth("keep-outputs"),
            accel: read.text("accel"),
            vm_qemu: read.path("vm-qemu"),
            vm_kernel: read.path("vm-kernel"),
            vm_agent: read.path("vm-agent"),
            vm_memory: read.bytes("vm-memory").unwrap_or(1 << 30),
            vm_cache: read.path("vm-cache"),
            vm_guest: Some(read.text("vm-guest")).filter(|name| !name.is_empty()),
            vm_images: read.path("vm-images"),
            vm_topology: read.text("vm-topology"),
            vm_wire: read.text("vm-wire"),
            vm_store: read.text("vm-store"),
            vm_store_cache: read.text("vm-store-cache"),
            vm_clock: read.text("vm-clock"),
            vm_save: read.truth("vm-save"),
            vm_exchange: read.bytes("vm-exchange").unwrap_or(1 << 30),
        }
    }
}

/// Reads values that their kinds have accepted: what a kind does not allow cannot be met here.
struct Reader<'a>(&'a Config);

impl Reader<'_> {
    fn value(&self, name: &str) -> &Value {
        let value = self.0.value(name);
        debug_assert!(value.is_some(), "{name} is in no table");
        value.unwrap_or(&Value::Boolean(true))
    }

    fn truth(&self, name: &str) -> bool {
        self.value(name).as_bool().unwrap_or(true)
    }

    fn text(&self, name: &str) -> String {
        self.value(name).as_str().unwrap_or_default().to_owned()
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.value(name).as_str().filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    /// Words are 0.
    fn count(&self, name: &str) -> u64 {
        self.value(name).as_integer().and_then(|number| number.try_into().ok()).unwrap_or(0)
    }

    fn number(&self, name: &str) -> Option<f64> {
        let number = match self.value(name) {
            Value::Float(number) => *number,
            Value::Integer(number) => *number as f64,
            _ => 0.0,
        };
        (number > 0.0).then_some(number)
    }

    fn size(&self, name: &str) -> Option<Size> {
        let size = match self.value(name) {
            Value::String(text) => text.parse().ok()?,
            _ => Size::Bytes(self.count(name)),
        };
        (size != Size::Bytes(0)).then_some(size)
    }

    fn bytes(&self, name: &str) -> Option<u64> {
        self.size(name).map(|size| size.bytes(0))
    }

    fn time(&self, name: &str) -> Option<Duration> {
        let time = match self.value(name) {
            Value::String(text) => text.parse::<quantity::Duration>().ok()?.std(),
            _ => Duration::from_secs(self.count(name)),
        };
        (!time.is_zero()).then_some(time)
    }

    fn list(&self, name: &str) -> Vec<String> {
        let items = self.value(name).as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    }

    fn map(&self, name: &str) -> BTreeMap<String, String> {
        let entries = self.value(name).as_table().into_iter().flatten();
        entries.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
    }
}
