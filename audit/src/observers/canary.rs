//! A file outside that everybody may read and write, in a folder that everybody may change: what keeps a sandbox from it is the
//! sandbox alone.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The file and its folder. Who made the folder takes it away.
#[derive(Debug)]
pub struct Canary {
    folder: PathBuf,
    contents: String,
    mode: u32,
}

impl Canary {
    /// Puts it there.
    pub fn lay(nonce: &str, folder: &Path) -> io::Result<Self> {
        let file = folder.join("canary");
        let contents = format!("{nonce}\n");
        fs::write(&file, &contents)?;
        fs::set_permissions(&file, Permissions::from_mode(0o666))?;
        fs::set_permissions(folder, Permissions::from_mode(0o777))?;
        let mode = fs::metadata(&file)?.permissions().mode();
        Ok(Self { folder: folder.to_owned(), contents, mode })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it is not as it was laid.
    pub fn changed(&self) -> Option<String> {
        match fs::read(self.folder.join("canary")) {
            Ok(bytes) if bytes == self.contents.as_bytes() => self.attributes_changed(),
            Ok(_) => Some("the canary outside was changed".to_owned()),
            Err(error) => Some(format!("the canary outside is gone: {error}")),
        }
    }

    /// Who takes an output over changes more than contents.
    fn attributes_changed(&self) -> Option<String> {
        let found = fs::symlink_metadata(self.folder.join("canary")).ok()?;
        let is_linked = found.nlink() > 1;
        (found.permissions().mode() != self.mode || is_linked)
            .then(|| format!("the canary outside has mode {:o} and {} names", found.mode() & 0o7777, found.nlink()))
    }

    /// Puts it back as it was laid.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn restore(&self) -> io::Result<()> {
        let file = self.folder.join("canary");
        let _ = fs::remove_file(&file);
        fs::write(&file, &self.contents)?;
        fs::set_permissions(&file, Permissions::from_mode(0o666))
    }
}
