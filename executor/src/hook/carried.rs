//! What the shim knows of Nix's settings and the protocol of the endpoint does not say.
//!
//! It goes by the environment, from the shim through Nix's helper to the endpoint: the three are one user's.

use std::path::PathBuf;

use anchorhold_sandbox::quantity::{Duration, Size};
use serde::{Deserialize, Serialize};

use super::Settings;
use crate::build::policy::{KVM, Policy};
use crate::build::result::Status;
use crate::build::room::SandboxPath;

/// The variable of the environment.
pub const VARIABLE: &str = "ANCHORHOLD_HOOK";

/// Words that Nix keeps for things that no room here gives, whatever its settings say.
const NEVER: [&str; 4] = [KVM, "ca-derivations", "recursive-nix", "uid-range"];

/// What Nix's settings say of builds. Where Nix has no value, or 0, nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    /// The store, as Nix names it.
    pub store: String,
    /// `timeout`, in seconds.
    pub timeout: Option<u64>,
    /// `max-silent-time`, in seconds.
    pub max_silent_time: Option<u64>,
    /// `max-build-log-size`, in bytes. Nix counts only what comes over a pipe that is not used here.
    pub max_build_log_size: Option<u64>,
    /// `cores`; 0 lets the builder find out.
    pub cores: Option<u32>,
    /// `keep-failed`.
    pub keep_failed: bool,
    /// `log-lines`.
    pub log_lines: Option<usize>,
    /// `extra-platforms`: the operator of Nix says that their programs run here.
    pub platforms: Vec<String>,
    /// `system-features`.
    pub features: Vec<String>,
    /// `sandbox-paths`.
    pub sandbox_paths: Vec<String>,
    /// `pre-build-hook`. The other one is run by Nix itself.
    pub pre_build_hook: Option<PathBuf>,
    /// A file in which the endpoint says how a build failed, as [`exit_status`] has it.
    pub report: Option<PathBuf>,
    /// Files of settings of ours that the shim was given.
    pub config: Vec<PathBuf>,
    /// Settings of ours that the shim was given.
    pub options: Vec<(String, String)>,
}

impl Carried {
    /// What `settings` say.
    pub fn of(settings: &Settings) -> Self {
        let text = |name| settings.get(name).unwrap_or_default().trim();
        let number = |name| text(name).parse::<u64>().ok();
        let limit = |name| number(name).filter(|limit| *limit > 0);
        let words = |name| text(name).split_ascii_whitespace().map(str::to_owned).collect();
        Self {
            store: text("store").to_owned(),
            timeout: limit("timeout"),
            max_silent_time: limit("max-silent-time"),
            max_build_log_size: limit("max-build-log-size"),
            cores: number("cores").map(|cores| u32::try_from(cores).unwrap_or(u32::MAX)),
            keep_failed: text("keep-failed") == "true",
            log_lines: limit("log-lines").and_then(|lines| usize::try_from(lines).ok()),
            platforms: words("extra-platforms"),
            features: words("system-features"),
            sandbox_paths: words("sandbox-paths"),
            pre_build_hook: Some(PathBuf::from(text("pre-build-hook"))).filter(|hook| hook.is_absolute()),
            report: None,
            config: Vec::new(),
            options: Vec::new(),
        }
    }

    /// A policy with what Nix's settings say. A user whom nobody trusts may have said the limits: each may become tighter
    /// than ours, and none wider. All else only Nix's operator can say; it adds to ours.
    pub fn applied_to(&self, mut policy: Policy) -> Policy {
        let time = |seconds: Option<u64>| seconds.map(|seconds| Duration(seconds.saturating_mul(1000)));
        policy.timeout = tighter(time(self.timeout), policy.timeout, |time| time.0);
        policy.max_silent_time = tighter(time(self.max_silent_time), policy.max_silent_time, |time| time.0);
        let size = self.max_build_log_size.map(Size::Bytes);
        policy.max_log_size = tighter(size, policy.max_log_size, |size| size.bytes(0));
        policy.cores = self.cores.unwrap_or(policy.cores);
        policy.keep_failed |= self.keep_failed;
        policy.log_lines = self.log_lines.unwrap_or(policy.log_lines);
        policy.extra_platforms.extend(self.platforms.iter().cloned());
        policy.features.extend(self.features.iter().filter(|word| !NEVER.contains(&word.as_str())).cloned());
        for text in &self.sandbox_paths {
            let path = SandboxPath::parse(text);
            if !policy.sandbox_paths.iter().any(|known| known.inside == path.inside) {
                policy.sandbox_paths.push(path);
            }
        }
        if policy.hooks.pre_build.is_none() {
            policy.hooks.pre_build.clone_from(&self.pre_build_hook);
        }
        policy
    }
}

/// The exit status by which a hook tells Nix of a failure. Up to 2.28, Nix tells these from others, and Nix's own helper never
/// uses them; later Nixes take every failure of a hook for the same.
pub fn exit_status(status: Status) -> Option<u8> {
    match status {
        Status::TimedOut => Some(101),
        Status::PermanentFailure | Status::InputRejected | Status::HashMismatch => Some(100),
        _ => None,
    }
}

fn tighter<T: Copy>(asked: Option<T>, own: Option<T>, measure: impl Fn(&T) -> u64) -> Option<T> {
    asked.into_iter().chain(own).min_by_key(measure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let features = ["kvm".to_owned()].into();
        Policy { features, ..Policy::granting_nothing("x86_64-linux", "/nowhere".as_ref()) }
    }

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::default();
        pairs.iter().for_each(|(name, value)| settings.set(name, value));
        settings
    }

    #[test]
    fn limits_become_tighter_and_never_wider() {
        let own = Policy { timeout: Some(Duration(5_000)), ..policy() };
        let timeout = |text| Carried::of(&settings(&[("timeout", text)])).applied_to(own.clone()).timeout;
        assert_eq!(timeout("3"), Some(Duration(3_000)));
        assert_eq!(timeout("9"), Some(Duration(5_000)));
        assert_eq!(timeout("0"), Some(Duration(5_000)), "0 is no limit for Nix");
        let none = Carried::of(&settings(&[])).applied_to(policy());
        assert_eq!((none.max_silent_time, none.max_log_size), (None, None));
    }

    #[test]
    fn a_word_alone_gives_nobody_a_device() {
        let all = settings(&[("system-features", "big-parallel kvm uid-range ca-derivations mine")]);
        let policy = Carried::of(&all).applied_to(Policy { features: [].into(), ..policy() });
        assert_eq!(policy.features.into_iter().collect::<Vec<_>>(), ["big-parallel", "mine"]);
    }

    #[test]
    fn what_nix_shows_every_build_is_shown_here() {
        let all = settings(&[("sandbox-paths", "/bin/sh=/usr/bin/busybox /dev/nothing?"), ("keep-failed", "true")]);
        let policy = Carried::of(&all).applied_to(policy());
        let shown: Vec<_> = policy.sandbox_paths.iter().map(|path| path.inside.to_str().unwrap()).collect();
        assert_eq!(shown, ["/bin/sh", "/dev/nothing"]);
        assert!(policy.keep_failed);
    }

    #[test]
    fn it_comes_through_the_environment_whole() {
        let all = settings(&[("store", "/a root"), ("cores", "4"), ("pre-build-hook", "/hook")]);
        let mut carried = Carried::of(&all);
        carried.options.push(("network".into(), "none".into()));
        let text = serde_json::to_string(&carried).unwrap();
        assert_eq!(serde_json::from_str::<Carried>(&text).unwrap(), carried);
    }
}
