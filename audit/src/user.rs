//! The ordinary user that sandboxes can be started as.

use std::path::PathBuf;

use crate::error::Error;

/// Somebody without privilege.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Their name.
    pub name: String,
    /// Their uid, never 0.
    pub uid: u32,
    /// Their primary gid.
    pub gid: u32,
    /// Their home.
    pub home: PathBuf,
}

impl User {
    /// The user of this name.
    ///
    /// # Errors
    /// That there is none, or that it is root.
    pub fn named(name: &str) -> Result<Self, Error> {
        match nix::unistd::User::from_name(name) {
            Ok(Some(user)) if !user.uid.is_root() => {
                Ok(Self { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), home: user.dir })
            }
            _ => Err(Error::NoUser(name.to_owned())),
        }
    }

    /// Who asked root for it by sudo, else `nobody`.
    ///
    /// # Errors
    /// That there is none.
    pub fn ordinary() -> Result<Self, Error> {
        let asked = std::env::var("SUDO_USER").ok();
        asked.and_then(|name| Self::named(&name).ok()).map_or_else(|| Self::named("nobody"), Ok)
    }
}

/// Whether we are root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
