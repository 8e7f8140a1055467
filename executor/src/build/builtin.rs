//! The one builder that is part of the executor: `builtin:fetchurl`, for files of this machine.
//!
//! It runs outside a room, so it does no more than copy the bytes of one regular file: nothing of a derivation's is
//! parsed, unpacked or executed out here, and nothing is fetched from a network.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use super::scratch::Scratch;
use crate::derivation::Derivation;

/// Does what a derivation with a built-in builder says.
///
/// # Errors
/// One line that says why not.
pub fn run(derivation: &Derivation, scratch: &Scratch) -> Result<(), String> {
    match derivation.builder.as_slice() {
        b"builtin:fetchurl" => fetch(derivation, scratch),
        other => Err(format!(
            "the builder ‘{}’ is unknown: of Nix's built-in builders, only builtin:fetchurl is there, for file:// URLs",
            String::from_utf8_lossy(other)
        )),
    }
}

fn fetch(derivation: &Derivation, scratch: &Scratch) -> Result<(), String> {
    let variable =
        |name: &str| derivation.variable(name).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or("");
    let url = variable("url");
    let Some(path) = url.strip_prefix("file://") else {
        return Err(format!(
            "builtin:fetchurl fetches ‘file://’ URLs only, and this one is ‘{url}’: nothing is fetched from a network outside a room; fetch it with a fixed-output derivation whose builder does (its room has a network), or add the file with `anchorhold store add-fixed`"
        ));
    };
    if derivation.fixed_output().is_none() {
        return Err("builtin:fetchurl takes a derivation whose output hash is declared".to_owned());
    }
    if variable("unpack") == "1" {
        return Err("builtin:fetchurl does not unpack here: unpack in the derivation that uses the file".to_owned());
    }
    let output = derivation.outputs.values().find_map(|output| output.path()).ok_or("it has no output path")?;
    copy(Path::new(path), scratch, output.as_str(), variable("executable") == "1")
        .map_err(|error| format!("copying {path}: {error}"))
}

fn copy(from: &Path, scratch: &Scratch, name: &str, executable: bool) -> io::Result<()> {
    // A fifo or a device must not make us wait, or give us what is no file's contents.
    let mut source = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(from)?;
    if !source.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    scratch.create_output(name, executable, &mut source)
}
