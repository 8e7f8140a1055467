//! Which door is in force, and who can walk around it.
//!
//! What is known here of Nix was found by trying it, 2.8.0 and 2.34.8: a build hook is not asked for a derivation with `preferLocalBuild` that
//! this Nix could build itself; a client that is not trusted sets `max-jobs` for its own builds, and can empty `builders`. An external builder is
//! asked inside the local build, behind all of these.

use std::collections::BTreeSet;
use std::path::Path;

use anchorhold_sandbox::diagnosis::Verdict;
use serde::{Deserialize, Serialize};

use super::{NixSettings, Version, machines};

/// How Nix's builds come to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Door {
    /// By `external-builders`.
    Attach,
    /// By `build-hook`.
    Hook,
    /// By `builders`.
    StoreServer,
}

impl Door {
    fn setting(self) -> &'static str {
        match self {
            Self::Attach => "external-builders",
            Self::Hook => "build-hook",
            Self::StoreServer => "builders",
        }
    }
}

/// How it stands with one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name, which does not change between versions.
    pub aspect: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it: there whenever something is weaker or missing.
    pub fix: Option<String>,
}

impl Finding {
    pub(super) fn new(aspect: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        // Settings are shown on terminals, and hold what somebody wrote.
        let found = found.into().chars().filter(|c| !c.is_control()).collect();
        Self { aspect, verdict, found, fix: None }
    }

    pub(super) fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }
}

/// What the judgement is made of.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The settings.
    pub settings: &'a NixSettings,
    /// Which Nix; `None` where there is none to ask.
    pub version: Option<Version>,
    /// The machines of `builders`, with the files that it names, or why they cannot be told.
    pub machines: Result<Vec<String>, String>,
    /// Whether a program can be executed.
    pub is_executable: fn(&Path) -> bool,
}

/// Judges them: the doors in force, the strongest first, and the findings.
pub fn judge(facts: &Facts<'_>) -> (Vec<Door>, Vec<Finding>) {
    let (attach, covered) = attach(facts);
    let found = [(Door::Attach, attach), (Door::Hook, hook(facts)), (Door::StoreServer, store_server(facts))];
    let open = |finding: &Option<Finding>| finding.as_ref().is_some_and(|one| one.verdict != Verdict::Missing);
    let doors: Vec<Door> = found.iter().filter(|(_, finding)| open(finding)).map(|(door, _)| *door).collect();
    let mut all = vec![in_force(&doors)];
    all.extend(found.into_iter().filter_map(|(_, finding)| finding));
    all.extend(other_machines(facts));
    if !doors.is_empty() {
        let uncovered = uncovered(facts.settings, &covered);
        all.push(local_builds(facts.settings, &doors, &uncovered));
        all.push(trusted_users(facts.settings));
        all.push(own_sandbox(facts.settings, !uncovered.is_empty()));
    }
    (doors, all)
}

fn in_force(doors: &[Door]) -> Finding {
    let names: Vec<&str> = doors.iter().map(|door| door.setting()).collect();
    match names[..] {
        [] => Finding::new("door", Verdict::Missing, "none: this Nix builds without anchorhold")
            .fix("choose one (docs/doors.md): external-builders for Nix 2.32 or later, else build-hook"),
        _ => Finding::new("door", Verdict::Works, format!("builds come here by {}", names.join(" and "))),
    }
}

/// One entry of `external-builders`. Nix wants all three.
#[derive(Debug, Deserialize)]
struct ExternalBuilder {
    systems: Vec<String>,
    program: String,
    args: Vec<String>,
}

/// `external-builders`, if it is about us; and the systems that are built by us through it.
fn attach(facts: &Facts<'_>) -> (Option<Finding>, BTreeSet<String>) {
    const ASPECT: &str = "external-builders";
    let none = BTreeSet::new();
    let value = facts.settings.get(ASPECT);
    if !value.contains("anchorhold") {
        return (None, none);
    }
    let missing = |found: String, fix: String| Some(Finding::new(ASPECT, Verdict::Missing, found).fix(fix));
    let entries: Vec<ExternalBuilder> = match serde_json::from_str(value) {
        Ok(entries) => entries,
        Err(error) => {
            let found = format!("not a list of entries with systems, program and args, so Nix drops it: {error}");
            return (missing(found, "write it as docs/attach.md has it, on one line".into()), none);
        }
    };
    if let Some((major, minor)) = facts.version
        && (major, minor) < (2, 32)
    {
        let found = format!("Nix {major}.{minor} does not know it");
        return (missing(found, "take Nix 2.32 or later, or the setting build-hook (docs/hook.md)".into()), none);
    }
    if !facts.settings.words("experimental-features").any(|word| word == ASPECT) {
        let found = "named, but the experimental feature is off".to_owned();
        return (missing(found, "extra-experimental-features = external-builders".into()), none);
    }
    // The first entry with a system has it.
    let (mut seen, mut ours) = (BTreeSet::new(), BTreeSet::new());
    for entry in &entries {
        let first = entry.systems.iter().filter(|system| seen.insert((*system).clone()));
        if !entry.program.contains("anchorhold") {
            first.for_each(drop);
            continue;
        }
        if !(facts.is_executable)(Path::new(&entry.program)) {
            let found = format!("‘{}’ is no program here: every build for its systems fails", entry.program);
            return (missing(found, "name the program by its absolute path".into()), none);
        }
        if base_name(&entry.program) == "anchorhold" && entry.args.first().map(String::as_str) != Some("attach") {
            let found = format!("args are {:?}: every build for its systems fails", entry.args);
            return (missing(found, r#"let args begin with "attach""#.into()), none);
        }
        ours.extend(first.cloned());
    }
    if facts.settings.get("max-jobs") == "0" {
        let found = "named, but max-jobs is 0: for Nix these are local builds, and it does none".to_owned();
        return (missing(found, "max-jobs = 1 or more".into()), none);
    }
    if ours.is_empty() {
        let found = "no system comes here: another entry before ours has each".to_owned();
        return (missing(found, "put our entry first".into()), none);
    }
    let systems: Vec<&str> = ours.iter().map(String::as_str).collect();
    let finding = Finding::new(ASPECT, Verdict::Works, format!("for {}", systems.join(", ")));
    (Some(finding), ours)
}

/// `build-hook`, if it is ours.
fn hook(facts: &Facts<'_>) -> Option<Finding> {
    const ASPECT: &str = "build-hook";
    let words: Vec<&str> = facts.settings.words(ASPECT).collect();
    let (program, arguments) = words.split_first()?;
    if !program.contains("anchorhold") {
        return None;
    }
    let missing = |found: String, fix: &str| Some(Finding::new(ASPECT, Verdict::Missing, found).fix(fix));
    if let Some((major, minor)) = facts.version
        && (major, minor) < (2, 10)
        && !arguments.is_empty()
    {
        let found = format!("Nix {major}.{minor} takes the whole value for one path, and no program is there");
        return missing(found, "name a link to anchorhold that is called anchorhold-hook, with nothing behind it");
    }
    if !(facts.is_executable)(Path::new(program)) {
        return missing(
            format!("‘{program}’ is no program here: builds that are handed to it fail"),
            "name the program by its absolute path",
        );
    }
    if base_name(program) == "anchorhold" && arguments.first() != Some(&"hook") {
        return missing(format!("it is ‘{}’", words.join(" ")), "build-hook = /…/anchorhold hook");
    }
    Some(Finding::new(ASPECT, Verdict::Works, words.join(" ")))
}

/// Whether the hook is ours, which names itself as the only machine that there is.
fn is_our_hook(settings: &NixSettings) -> bool {
    settings.words("build-hook").next().is_some_and(|program| program.contains("anchorhold"))
}

/// `builders`, if one of them is ours.
fn store_server(facts: &Facts<'_>) -> Option<Finding> {
    if is_our_hook(facts.settings) {
        return None;
    }
    let machines = facts.machines.as_ref().ok()?;
    let ours: Vec<&str> = machines.iter().map(String::as_str).filter(|one| machines::is_ours(one)).collect();
    if ours.is_empty() {
        return None;
    }
    if facts.settings.get("build-hook").is_empty() {
        let found = format!("{}, but build-hook is empty: no machine is asked", ours.join(", "));
        return Some(Finding::new("builders", Verdict::Missing, found).fix("leave build-hook out, or name the hook"));
    }
    Some(Finding::new("builders", Verdict::Works, ours.join(", ")))
}

/// Machines that are not ours build as they like.
fn other_machines(facts: &Facts<'_>) -> Option<Finding> {
    const ASPECT: &str = "other-machines";
    if facts.settings.get("build-hook").is_empty() || is_our_hook(facts.settings) {
        return None;
    }
    let machines = match &facts.machines {
        Ok(machines) => machines,
        Err(why) => {
            let found = format!("the setting builders cannot be followed: {why}");
            return Some(Finding::new(ASPECT, Verdict::Weaker, found).fix("make the file readable, or builders ="));
        }
    };
    let others: Vec<&str> = machines.iter().map(String::as_str).filter(|one| !machines::is_ours(one)).collect();
    if others.is_empty() {
        return None;
    }
    let found = format!("{} of builders may build too, each in the sandbox that it has", others.join(", "));
    Some(Finding::new(ASPECT, Verdict::Weaker, found).fix("builders =, or have anchorhold on each of them"))
}

/// The systems that this Nix builds for by itself and that do not come here by `external-builders`.
fn uncovered<'a>(settings: &'a NixSettings, covered: &BTreeSet<String>) -> Vec<&'a str> {
    let mut systems: Vec<&str> = vec![settings.get("system")];
    systems.extend(settings.words("extra-platforms"));
    systems.retain(|system| in_use(system) && !covered.contains(*system));
    systems
}

/// Whether a derivation could name this system: the names that the field uses are `PROCESSOR-KERNEL`.
fn in_use(system: &str) -> bool {
    const KERNELS: [&str; 14] = [
        "linux",
        "darwin",
        "freebsd",
        "netbsd",
        "openbsd",
        "dragonfly",
        "cygwin",
        "windows",
        "solaris",
        "none",
        "wasi",
        "redox",
        "genode",
        "uefi",
    ];
    system == "builtin" || system.rsplit_once('-').is_some_and(|(_, kernel)| KERNELS.contains(&kernel))
}

/// What is built past every door.
fn local_builds(settings: &NixSettings, doors: &[Door], uncovered: &[&str]) -> Finding {
    const ASPECT: &str = "local-builds";
    if uncovered.is_empty() {
        let found = match doors.first() {
            Some(Door::Attach) => {
                "every system that this Nix builds for comes here, whatever a client or a derivation asks for"
                    .to_owned()
            }
            _ => format!("none: the system ‘{}’ is that of no derivation", settings.get("system")),
        };
        return Finding::new(ASPECT, Verdict::Works, found);
    }
    let systems = uncovered.join(", ");
    if doors.contains(&Door::Attach) {
        return Finding::new(ASPECT, Verdict::Weaker, format!("Nix builds for {systems} in its own sandbox"))
            .fix("name them in `systems` of external-builders too, or build for none of them: extra-platforms =");
    }
    let emptied =
        if doors.contains(&Door::Hook) { "" } else { ", and so is everything for a client that empties builders" };
    let found = format!(
        "Nix builds for {systems} itself: a derivation with preferLocalBuild is built in Nix's own sandbox{emptied}; max-jobs = 0 does not help, \
         because every client may set it"
    );
    Finding::new(ASPECT, Verdict::Weaker, found).fix(
        "in the environment of the daemon's service alone, NIX_CONFIG with the two lines `system = hook-only` and `extra-platforms =`; or take \
         external-builders (Nix 2.32 or later)",
    )
}

/// Who may change every setting for their own builds.
fn trusted_users(settings: &NixSettings) -> Finding {
    const ASPECT: &str = "trusted-users";
    let users: Vec<&str> = settings.words(ASPECT).collect();
    if users.contains(&"*") {
        return Finding::new(
            ASPECT,
            Verdict::Weaker,
            "everybody may set any setting for their builds, so nobody has to use the door",
        )
        .fix("trusted-users = root");
    }
    let groups = users.iter().filter(|user| user.starts_with('@')).count();
    let others = users.iter().filter(|user| **user != "root").count();
    if others > 0 {
        let of_groups = if groups > 0 { ", groups among them" } else { "" };
        let found = format!("{}{of_groups}: each of them can do without the door, as root can", users.join(", "));
        return Finding::new(ASPECT, Verdict::Info, found);
    }
    Finding::new(ASPECT, Verdict::Works, "only root, who can change the configuration anyway")
}

/// Nix's own sandbox, which has whatever does not come here.
fn own_sandbox(settings: &NixSettings, matters: bool) -> Finding {
    const ASPECT: &str = "nix-sandbox";
    let sandbox = settings.get("sandbox");
    let fallback = settings.get("sandbox-fallback") == "true";
    let found = match (sandbox, fallback) {
        ("true", false) => {
            return Finding::new(
                ASPECT,
                Verdict::Works,
                "what is not built here has Nix's own sandbox, or is not built",
            );
        }
        ("true", true) => {
            "sandbox-fallback is true: where it cannot make its sandbox, Nix builds without one and says nothing"
                .to_owned()
        }
        ("relaxed", _) => "sandbox is relaxed: derivations with __noChroot have none".to_owned(),
        _ => format!("sandbox is {sandbox}: what Nix builds itself has none"),
    };
    if !matters {
        return Finding::new(
            ASPECT,
            Verdict::Info,
            format!("{found}; of no account, because Nix builds nothing itself"),
        );
    }
    let verdict = if matches!(sandbox, "true" | "relaxed") { Verdict::Weaker } else { Verdict::Missing };
    Finding::new(ASPECT, verdict, found).fix("sandbox = true and sandbox-fallback = false")
}

fn base_name(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

#[cfg(test)]
mod tests;
