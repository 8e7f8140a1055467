//! Probes of a reviewer's own: executables in a folder that speak the same lines as the battery's own program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::catalogue::{Catalogue, Probe};
use crate::error::Error;
use crate::program;

/// A reviewer's program, and what it lists.
#[derive(Clone, Debug)]
pub struct External {
    /// The program.
    pub program: PathBuf,
    /// Its probes.
    pub probes: Vec<Probe>,
}

/// Everything executable in these folders, in the order of names.
///
/// # Errors
/// A folder that cannot be read, a program that lists nothing that is understood, an id that is already taken.
pub fn find(folders: &[PathBuf], own: &Catalogue) -> Result<Vec<External>, Error> {
    let mut found: Vec<External> = Vec::new();
    for folder in folders {
        let mut files: Vec<PathBuf> = fs::read_dir(folder)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>())
            .map_err(Error::file("reading the folder of probes", folder))?;
        files.sort();
        for file in files.into_iter().filter(|file| is_executable(file)) {
            let listed = program::list(&file)?;
            for probe in &listed.0 {
                let is_taken = own.find(&probe.id).is_some()
                    || found.iter().any(|other| other.probes.iter().any(|other| other.id == probe.id));
                if is_taken {
                    return Err(Error::Program {
                        program: file,
                        what: "list",
                        why: format!("the id {} is taken", probe.id),
                    });
                }
            }
            let probes = listed.0.into_iter().map(|probe| Probe { program: Some(file.clone()), ..probe }).collect();
            found.push(External { program: file, probes });
        }
    }
    Ok(found)
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}
