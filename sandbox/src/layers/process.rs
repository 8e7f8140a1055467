//! What runs: umask, personality, current directory. Not a protection, but the same kind of steps.

use std::fmt;
use std::path::PathBuf;

use nix::errno::Errno;
use serde::Serialize;

use super::Layer;
use crate::error::Refusal;
use crate::host::Host;
use crate::plan::{Draft, Stage};
use crate::room::{Personality, Room};
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site, Trouble, check_room_path};

/// The steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// `PR_SET_PDEATHSIG`: the first of two ends of the leash.
    DieWithSupervisor,
    /// umask(2).
    Umask(u32),
    /// personality(2).
    Personality {
        /// 32-bit machine.
        linux32: bool,
        /// `ADDR_NO_RANDOMIZE`.
        fixed_addresses: bool,
    },
    /// chdir(2).
    Directory(PathBuf),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DieWithSupervisor => f.write_str("die when the supervisor dies"),
            Self::Umask(mask) => write!(f, "set the umask to {mask:03o}"),
            Self::Personality { linux32, fixed_addresses } => {
                let machine = if *linux32 { "32-bit" } else { "native" };
                let addresses = if *fixed_addresses { "fixed" } else { "randomised" };
                write!(f, "set the personality: {machine}, {addresses} addresses")
            }
            Self::Directory(path) => write!(f, "enter {}", path.display()),
        }
    }
}

pub(super) fn plan(room: &Room, _: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    let refuse = |what: String, why: &str, fix: &str| Err(Refusal::new(Layer::Process, what, why, fix));
    let process = &room.process;
    let has_nul = |text: &std::ffi::OsStr| std::os::unix::ffi::OsStrExt::as_bytes(text).contains(&0);
    if process.program.as_os_str().is_empty() {
        return refuse("no command".into(), "a room runs one", "give it after --, or as process.program");
    }
    let texts = std::iter::once(&process.program).chain(&process.argv0).chain(&process.arguments);
    for text in texts.chain(process.environment.values()) {
        if has_nul(text.as_os_str()) {
            return refuse(format!("{text:.60}"), "the kernel ends arguments and variables at a NUL", "remove it");
        }
    }
    for name in process.environment.keys() {
        let bytes = std::os::unix::ffi::OsStrExt::as_bytes(name.as_os_str());
        if bytes.is_empty() || bytes.contains(&b'=') || bytes.contains(&0) {
            return refuse(
                format!("variable name {name}"),
                "a name is not empty and has neither `=` nor NUL",
                "correct the name",
            );
        }
    }
    if let Err(why) = check_room_path(&process.directory) {
        return refuse(format!("current directory {:?}", process.directory), why, "give an absolute path of the room");
    }
    if process.umask > 0o777 {
        return refuse(format!("umask {:o}", process.umask), "it is more than 777", "correct it");
    }
    draft.add(Stage::Birth, Action::DieWithSupervisor);
    // Mount points and generated files are made under a known mask.
    draft.add(Stage::Birth, Action::Umask(0o022));
    draft.add(
        Stage::Session,
        Action::Personality {
            linux32: process.personality == Personality::Linux32,
            fixed_addresses: !process.randomize_addresses,
        },
    );
    if process.umask != 0o022 {
        draft.add(Stage::Session, Action::Umask(process.umask));
    }
    draft.add(Stage::Session, Action::Directory(process.directory.clone()));
    // Changing ids and entering user namespaces clears it.
    draft.add(Stage::Session, Action::DieWithSupervisor);
    Ok(())
}

pub(super) fn apply(action: &Action, site: &mut Site<'_>) -> Outcome {
    match action {
        Action::DieWithSupervisor => site.sys.die_with_parent()?,
        Action::Umask(mask) => site.sys.set_umask(*mask)?,
        Action::Personality { linux32, fixed_addresses } => {
            const PER_LINUX32: u64 = 0x0008;
            const ADDR_NO_RANDOMIZE: u64 = 0x0004_0000;
            let machine = if *linux32 { PER_LINUX32 } else { 0 };
            site.sys.set_personality(machine | if *fixed_addresses { ADDR_NO_RANDOMIZE } else { 0 })?;
        }
        Action::Directory(path) => site.sys.chdir(path).map_err(|errno| match errno {
            Errno::ENOENT => Trouble::new(errno, "there is no such directory in the room"),
            errno => errno.into(),
        })?,
    }
    Ok(())
}

pub(super) fn verify(_: &Room, _: &View<'_>) -> Finding {
    Finding::new()
}
