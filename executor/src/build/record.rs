//! What is kept of each build beside its log: its result, its account and its seal.

use std::io;
use std::path::{Path, PathBuf};

use crate::store_path::StorePath;

/// Where the record of a derivation's last build lies.
pub fn path(state_dir: &Path, derivation: &StorePath) -> PathBuf {
    state_dir.join("anchorhold/records").join(format!("{derivation}.json"))
}

/// Writes a record, whole or not at all.
///
/// # Errors
/// What the file system says.
pub fn write(state_dir: &Path, derivation: &StorePath, record: &serde_json::Value) -> io::Result<()> {
    let path = path(state_dir, derivation);
    let directory = path.parent().unwrap_or(state_dir);
    std::fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    let mut text = serde_json::to_vec_pretty(record)?;
    text.push(b'\n');
    io::Write::write_all(&mut file, &text)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Reads a record.
///
/// # Errors
/// When there is none, or it is damaged.
pub fn read(state_dir: &Path, derivation: &StorePath) -> io::Result<serde_json::Value> {
    let text = std::fs::read(path(state_dir, derivation))?;
    Ok(serde_json::from_slice(&text)?)
}

/// The derivations whose last build failed and was kept, by their names in the store, and where. What cannot be read is passed over.
///
/// # Errors
/// When the records cannot be listed.
pub fn kept(state_dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let listed = match std::fs::read_dir(state_dir.join("anchorhold/records")) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".json")) else { continue };
        let Ok(text) = std::fs::read(entry.path()) else { continue };
        let Ok(record) = serde_json::from_slice::<serde_json::Value>(&text) else { continue };
        if let Some(kept) = record["kept"].as_str() {
            found.push((name.to_owned(), kept.into()));
        }
    }
    Ok(found)
}
