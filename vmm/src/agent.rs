//! The image of our own agent (`anchorhold-agent`, the crate beside this one): its program, the modules that it loads and
//! what it does before it is ready.
//!
//! Where these lie in the image is said here, once, for both.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::initramfs::{Initramfs, InitramfsError};
use crate::kernel::{Module, ModulesError};
use crate::report::{FrameError, Request, What};

/// The agent's file name, on the host.
pub const FILE_NAME: &str = "anchorhold-agent";
/// The agent, in its image. It is what a kernel starts.
pub const INIT: &str = "/init";
/// The folder of the modules.
pub const MODULES: &str = "/anchorhold/modules";
/// Their file names, one on a line, in the order in which they are loaded.
pub const MODULES_LIST: &str = "/anchorhold/modules.list";
/// What is done before the agent is ready: requests in frames, as they would come over the port.
pub const START: &str = "/anchorhold/start";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The program is not there, or cannot be read.
    #[error("the agent {path}: {source}; it is built with the program itself (cargo build --workspace)")]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A kernel could not start it.
    #[error("the agent {path} {why}: in its image there is nothing else, so it must be a static program")]
    NotStatic {
        /// The program.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// A module could not be read.
    #[error(transparent)]
    Module(#[from] ModulesError),
    /// Something has no place in the image.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// What is to be done at the start cannot be said.
    #[error("what the guest is to do at its start: {0}")]
    Start(#[from] FrameError),
}

/// The image with which a machine starts: `agent`, these modules in this order, and what is done before it is ready.
///
/// Its caller may add files, must see that it fits ([`Initramfs::check_fits`]), and writes it.
///
/// # Errors
/// If the agent cannot be started by a kernel, or a module cannot be read.
pub fn image(agent: &Path, modules: &[Module], start: &[What]) -> Result<Initramfs, AgentError> {
    check_static(agent)?;
    let mut tree = Initramfs::new();
    tree.copy(INIT, 0o755, agent)?;
    // The kernel opens it for the first process, before anything is mounted.
    tree.device("/dev/console", 0o600, (5, 1))?;
    tree.directory(MODULES, 0o755)?;
    let mut list = String::new();
    for module in modules {
        let name = format!("{}.ko", module.name);
        tree.file(Path::new(MODULES).join(&name), 0o644, module.read()?)?;
        list.push_str(&name);
        list.push('\n');
    }
    tree.file(MODULES_LIST, 0o644, list)?;
    let mut frames = Vec::new();
    for (number, what) in (1..).zip(start) {
        frames.extend(Request { number, what: what.clone() }.encode()?);
    }
    tree.file(START, 0o600, frames)?;
    Ok(tree)
}

/// That it is an ELF program without an interpreter. A kernel says of any other only that there is no init.
fn check_static(path: &Path) -> Result<(), AgentError> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4096).read_to_end(&mut head))
        .map_err(|source| AgentError::Missing { path: path.to_owned(), source })?;
    let not = |why| Err(AgentError::NotStatic { path: path.to_owned(), why });
    // The 64-bit ELF header and its program headers (elf(5)), which linkers put right behind it.
    let half = |at: usize| head.get(at..at + 2).map(|two| usize::from(u16::from_le_bytes([two[0], two[1]])));
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return not("is no 64-bit ELF program");
    }
    let (Some(first), Some(size), Some(number)) = (half(0x20), half(0x36), half(0x38)) else {
        return not("is cut off");
    };
    const PT_INTERP: u32 = 3;
    let kinds = (0..number).filter_map(|one| head.get(first + one * size..)?.first_chunk::<4>());
    if kinds.map(|kind| u32::from_le_bytes(*kind)).any(|kind| kind == PT_INTERP) {
        return not("is linked dynamically");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_no_kernel_could_start_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        let told = |path: &Path| image(path, &[], &[]).unwrap_err().to_string();
        assert!(told(&script).contains("no 64-bit ELF program"));
        assert!(told(&folder.path().join("missing")).contains("cargo build"));
        // This test's own program is static, what a distribution has is not.
        image(Path::new("/proc/self/exe"), &[], &[What::Ping]).unwrap();
        if Path::new("/usr/bin/env").exists() {
            assert!(told(Path::new("/usr/bin/env")).contains("linked dynamically"));
        }
    }
}
