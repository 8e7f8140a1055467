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
    let mut program = std::fs::read(agent).map_err(|source| AgentError::Missing { path: agent.to_owned(), source })?;
    keep_loadable(&mut program);
    tree.file(INIT, 0o755, program)?;
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

/// Cuts off what no kernel loads: a debug build is seventy megabytes about itself, more than a small guest has room for.
fn keep_loadable(program: &mut Vec<u8>) {
    // Of the 64-bit ELF header (elf(5)): where the program headers are, their size and number; what is about sections.
    let number = |at: usize, size: usize| {
        let bytes = program.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    let headers = || Some((number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?));
    let Some((first, size, count)) = headers() else { return };
    let mut end = first + size * count;
    for header in (0..count).filter_map(|one| usize::try_from(first + one * size).ok()) {
        // Where a segment lies in the file, and how long it is there.
        let (Some(offset), Some(length)) = (number(header + 8, 8), number(header + 32, 8)) else { return };
        end = end.max(offset.saturating_add(length));
    }
    let Ok(end) = usize::try_from(end) else { return };
    if end < program.len() {
        program.truncate(end);
        // e_shoff; e_shentsize, e_shnum, e_shstrndx: there are no sections any more.
        program[0x28..0x30].fill(0);
        program[0x3a..0x40].fill(0);
    }
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
    fn what_is_loaded_is_kept_and_runs() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let whole = std::fs::read("/proc/self/exe").unwrap();
        let mut cut = whole.clone();
        keep_loadable(&mut cut);
        assert!(cut.len() < whole.len(), "{} bytes", cut.len());
        let (data, file) = (folder.path().join("data"), folder.path().join("cut"));
        std::fs::write(&data, &cut).unwrap();
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
        // Through a process of its own: while another test forks, a descriptor open for writing makes execve(2) say ETXTBSY.
        assert!(std::process::Command::new("cp").arg(&data).arg(&file).status().unwrap().success());
        let output = std::process::Command::new(&file).args(["--list", "what_is_loaded"]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("what_is_loaded_is_kept_and_runs"), "{output:?}");
        for broken in [vec![], vec![0x7f; 70], whole[..0x39].to_vec()] {
            let mut cut = broken.clone();
            keep_loadable(&mut cut);
            assert_eq!(cut, broken);
        }
    }

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
