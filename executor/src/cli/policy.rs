//! What the settings let builds do, for every door.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anchorhold::build::hooks::Hooks;
use anchorhold::build::policy::{KVM, LINUX_VM, Policy, WINDOWS_VM};
use anchorhold::build::room::SandboxPath;
use anchorhold::build::upkeep::{Space, Upkeep};
use anchorhold::cache::SecretKey;
use anchorhold::config::settings::{Network, Sandbox, Settings};
use anchorhold::machines::Machines;
use anchorhold::store::{GcPolicy, Store};
use anchorhold_sandbox::quantity::{Duration, Size};
use anchorhold_sandbox::room::{Network as RoomNetwork, NetworkMode};

use super::store_root::Failure;

/// The policy of builds in a store, whose outputs are signed.
///
/// # Errors
/// A secret key cannot be read, or is none.
pub fn of_store(settings: &Settings, store: &Store) -> Result<Policy, Failure> {
    let mut policy = by_settings(settings, builds(settings, store));
    policy.upkeep.keys = secret_keys(settings)?;
    Ok(policy)
}

/// The machines that the settings allow and that may be there; takes the words of the others out of the features.
fn machines(settings: &Settings, features: &mut BTreeSet<String>) -> Option<Machines> {
    let wants = |word: &str| settings.system_features.iter().any(|feature| feature == word);
    let machines = (wants(LINUX_VM) || wants(WINDOWS_VM)).then(|| Machines::of(settings));
    let machines = machines.filter(Machines::may_be_there);
    if machines.is_none() {
        features.remove(LINUX_VM);
    }
    if !machines.as_ref().is_some_and(Machines::has_guest) {
        features.remove(WINDOWS_VM);
    }
    machines
}

/// Where the directories of a store's running builds are made.
pub fn builds(settings: &Settings, store: &Store) -> PathBuf {
    settings.build_dir.clone().unwrap_or_else(|| store.state_dir().join("anchorhold/builds"))
}

/// The policy that the settings say; directories of running builds are made below `builds`.
pub fn by_settings(settings: &Settings, builds: PathBuf) -> Policy {
    let time = |time: std::time::Duration| Duration(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let mut features: BTreeSet<String> = settings.system_features.iter().cloned().collect();
    // A word alone gives nobody a device: a build that requires it would find out in the middle of its work.
    if features.contains(KVM) && anchorhold_sandbox::kvm::probe(rustix::process::geteuid().is_root()).is_err() {
        features.remove(KVM);
    }
    let machines = machines(settings, &mut features);
    Policy {
        system: settings.system.clone(),
        extra_platforms: settings.extra_platforms.iter().cloned().collect(),
        features,
        relaxed: settings.sandbox == Sandbox::Relaxed,
        sandbox_paths: settings.sandbox_paths.iter().map(|text| SandboxPath::parse(text)).collect(),
        build_dir: settings.sandbox_build_dir.display().to_string(),
        builds,
        shm_size: settings.sandbox_dev_shm_size,
        cores: u32::try_from(settings.cores).unwrap_or(u32::MAX),
        timeout: settings.timeout.map(time),
        max_silent_time: settings.max_silent_time.map(time),
        max_log_size: settings.max_build_log_size.map(Size::Bytes),
        memory: settings.memory,
        pids: settings.pids,
        cpu: settings.cpu,
        fetch: RoomNetwork {
            mode: Some(match settings.network {
                Network::Pasta => NetworkMode::Pasta,
                Network::None => NetworkMode::None,
            }),
            allow: settings.network_allow.clone(),
            refuse: settings.network_refuse.clone(),
            only_allowed: settings.network_only_allowed,
            dns: None,
        },
        impure_environment: settings.impure_env.clone(),
        keep_failed: settings.keep_failed,
        log_lines: settings.log_lines,
        again: None,
        build_users_group: settings.build_users_group.clone(),
        hooks: Hooks { pre_build: settings.pre_build_hook.clone(), post_build: settings.post_build_hook.clone() },
        upkeep: Upkeep {
            keys: Vec::new(),
            optimise: settings.auto_optimise_store,
            min_free: settings.min_free,
            max_free: settings.max_free,
            collect: GcPolicy {
                keep_derivations: settings.keep_derivations,
                keep_outputs: settings.keep_outputs,
                runtime_roots: true,
            },
            space: Space::default(),
        },
        machines,
    }
}

/// The keys that sign what is built. Not part of every policy: not every door signs, or may read them.
fn secret_keys(settings: &Settings) -> Result<Vec<SecretKey>, Failure> {
    settings.secret_key_files.iter().map(|file| secret_key(file)).collect()
}

fn secret_key(file: &Path) -> Result<SecretKey, Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure(format!("the secret key {}: {why}", file.display()));
    std::fs::read_to_string(file).map_err(|error| failed(&error))?.parse().map_err(|error| failed(&error))
}
