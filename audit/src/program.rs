//! Where the probe program is, and what it lists.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::catalogue::Catalogue;
use crate::error::Error;

/// Its name.
pub const NAME: &str = "anchorhold-probe";

/// The program that was named, or the one beside `anchorhold`.
///
/// # Errors
/// That it is not there.
pub fn find(named: Option<&Path>, anchorhold: &Path) -> Result<PathBuf, Error> {
    let path = named.map_or_else(|| anchorhold.with_file_name(NAME), Path::to_owned);
    let path = std::path::absolute(&path).unwrap_or(path);
    if path.is_file() { Ok(path) } else { Err(Error::NoProbeProgram(path)) }
}

/// What a probe program lists.
///
/// # Errors
/// That it does not run, or lists what is not understood.
pub fn list(program: &Path) -> Result<Catalogue, Error> {
    let wrong = |why: String| Error::Program { program: program.to_owned(), what: "list", why };
    let said =
        Command::new(program).arg("list").stdin(Stdio::null()).output().map_err(|error| wrong(error.to_string()))?;
    if !said.status.success() {
        return Err(wrong(format!("{}: {}", said.status, String::from_utf8_lossy(&said.stderr).trim())));
    }
    Catalogue::parse(&String::from_utf8_lossy(&said.stdout)).map_err(|error| wrong(error.to_string()))
}
