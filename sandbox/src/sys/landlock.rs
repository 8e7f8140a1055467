//! Landlock through its crate.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};
use nix::errno::Errno;

use super::Result;
use crate::layers::landlock::{Allowed, SCOPES_FROM};

/// The newest interface that crate `landlock` knows here. An interface is used in full or not at all, so it must be one that was
/// reviewed.
const NEWEST_REVIEWED: u32 = 9;

/// The version of the kernel's interface, at most the newest reviewed; 0 when there is none.
pub fn version() -> u32 {
    super::feature::landlock_interface().unwrap_or(0).min(NEWEST_REVIEWED)
}

/// Enforces a ruleset on the calling process, in full.
///
/// # Errors
/// The kernel's answer; ENOENT for a rule about a path that is not there is no error, there is nothing to allow.
pub(super) fn restrict(abi: u32, files: &[(PathBuf, Allowed)], queues: Option<OwnedFd>) -> Result<String> {
    let abi_known = ABI::from(abi as i32);
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    if !files.is_empty() {
        ruleset = ruleset.handle_access(AccessFs::from_all(abi_known)).map_err(errno)?;
    }
    if abi >= SCOPES_FROM {
        ruleset = ruleset.scope(Scope::from_all(abi_known)).map_err(errno)?;
    }
    let mut created = ruleset.create().map_err(errno)?;
    for (path, allowed) in files {
        let Ok(opened) = PathFd::new(path) else { continue };
        let is_directory = std::fs::metadata(path).is_ok_and(|found| found.is_dir());
        let of_everything = match allowed {
            Allowed::Read => AccessFs::from_read(abi_known),
            Allowed::WriteExisting => AccessFs::from_read(abi_known) | AccessFs::from_file(abi_known),
            Allowed::All => AccessFs::from_all(abi_known),
        };
        let access = if is_directory { of_everything } else { of_everything & AccessFs::from_file(abi_known) };
        created = created.add_rule(PathBeneath::new(opened, access)).map_err(errno)?;
    }
    if let (Some(queues), false) = (queues, files.is_empty()) {
        created = created.add_rule(PathBeneath::new(queues, AccessFs::from_all(abi_known))).map_err(errno)?;
    }
    // no_new_privs is a layer's own step, and a room without that layer has the capability that is needed instead.
    let status = created.no_new_privs(false).restrict_self().map_err(errno)?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => "enforced in full",
        RulesetStatus::PartiallyEnforced => "enforced in part",
        RulesetStatus::NotEnforced => "not enforced",
    }
    .to_owned())
}

fn errno(_: landlock::RulesetError) -> Errno {
    match Errno::last() {
        Errno::UnknownErrno => Errno::EOPNOTSUPP,
        errno => errno,
    }
}
