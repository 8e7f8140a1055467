//! Where the store lies that Nix works on.

use std::path::{Path, PathBuf};

/// Why the host's store cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// It is one that is not on this host, or not known to be.
    #[error(
        "Nix works on the store ‘{0}’, whose files are not known to be on this host: a build hook works with ‘local’, ‘daemon’, ‘auto’, and a directory"
    )]
    Elsewhere(String),
    /// Nix was moved.
    #[error(
        "Nix has its store moved by the variable {name} to {value}, and only stores named /nix/store are built for: use the setting `store` to put the files of one elsewhere"
    )]
    Moved {
        /// The variable.
        name: &'static str,
        /// What it says.
        value: String,
    },
}

/// The directory below which the files of Nix's setting `store` lie, in `nix/store` and `nix/var/nix`.
///
/// # Errors
/// The store is not one that can be read here.
pub fn store_root(store: &str) -> Result<PathBuf, PlaceError> {
    for (name, usual) in [("NIX_STORE_DIR", "/nix/store"), ("NIX_STATE_DIR", "/nix/var/nix")] {
        if let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty() && *value != *usual) {
            return Err(PlaceError::Moved { name, value: value.to_string_lossy().into_owned() });
        }
    }
    let home = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".local/share")))
        .map(|data| data.join("nix/root"));
    by_setting(store, home.filter(|_| !Path::new("/nix/var/nix").exists()).as_deref())
}

/// `own` is where newer Nixes have the store of a user on a host without /nix, if this may be one.
fn by_setting(store: &str, own: Option<&Path>) -> Result<PathBuf, PlaceError> {
    let (place, parameters) = store.split_once('?').unwrap_or((store, ""));
    let elsewhere = || PlaceError::Elsewhere(store.to_owned());
    let mut root = None;
    for (name, value) in parameters.split('&').filter_map(|one| one.split_once('=')) {
        match name {
            "root" => root = Some(decoded(value).ok_or_else(elsewhere)?),
            // These say where parts of a store are.
            "real" | "state" | "store" => return Err(elsewhere()),
            _ => {}
        }
    }
    if let Some(root) = root.filter(|root| !root.is_empty()) {
        return match place {
            "local" | "local://" | "auto" | "" => Ok(root.into()),
            _ => Err(elsewhere()),
        };
    }
    match place {
        "auto" | "" => Ok(own.filter(|own| own.is_dir()).unwrap_or(Path::new("/")).to_owned()),
        "local" | "local://" | "daemon" | "unix://" => Ok("/".into()),
        _ => {
            let path = decoded(place.strip_prefix("local://").unwrap_or(place)).ok_or_else(elsewhere)?;
            if path.starts_with('/') { Ok(path.into()) } else { Err(elsewhere()) }
        }
    }
}

/// Without percent signs; nothing if they are not what they should be.
fn decoded(text: &str) -> Option<String> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(piece.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_of_this_host_are_found() {
        let root = |store: &str| by_setting(store, None).unwrap();
        for store in ["auto", "", "local", "daemon", "unix://", "local?trusted=1"] {
            assert_eq!(root(store), Path::new("/"), "{store}");
        }
        for store in ["/a root", "local?root=/a%20root", "local:///a root", "auto?trusted=1&root=/a root"] {
            assert_eq!(root(store), Path::new("/a root"), "{store}");
        }
    }

    #[test]
    fn a_user_s_own_store_counts_only_where_there_is_no_other() {
        let own = tempfile::tempdir().unwrap();
        assert_eq!(by_setting("auto", Some(own.path())).unwrap(), own.path());
        assert_eq!(by_setting("local", Some(own.path())).unwrap(), Path::new("/"));
        assert_eq!(by_setting("auto", Some(Path::new("/not/there"))).unwrap(), Path::new("/"));
    }

    #[test]
    fn other_stores_are_refused() {
        for store in ["ssh-ng://host", "https://cache", "dummy://", "local?real=/x", "unix:///socket?root=/x", "/a%zz"]
        {
            assert!(by_setting(store, None).is_err(), "{store}");
        }
    }
}
