//! Which store a command works on.

use std::path::PathBuf;

use anchorhold::config::{Config, Sources};
use anchorhold::store::{Access, Store};
use clap::Args;

/// Which store, for every command that needs one.
#[derive(Clone, Debug, Args)]
pub(super) struct StorePlace {
    /// The store's root: its files are in ROOT/nix/store and ROOT/nix/var/nix, / is that of a Nix on this machine
    ///
    /// Without it: the setting `store`; else /var/lib/anchorhold for the superuser, and for others
    /// $XDG_STATE_HOME/anchorhold or ~/.local/state/anchorhold.
    #[arg(long = "store", value_name = "ROOT", global = true, env = "ANCHORHOLD_STORE")]
    store_root: Option<PathBuf>,
}

impl StorePlace {
    /// The root that is meant.
    pub(super) fn root(&self) -> Result<PathBuf, Failure> {
        match &self.store_root {
            Some(root) => Ok(root.clone()),
            None => self.root_by(&Config::load(&Sources::standard())?),
        }
    }

    /// The root that is meant, where the settings are read already.
    pub(super) fn root_by(&self, config: &Config) -> Result<PathBuf, Failure> {
        if let Some(root) = self.store_root.clone().or_else(|| config.settings().store) {
            return Ok(root);
        }
        if rustix::process::geteuid().is_root() {
            return Ok("/var/lib/anchorhold".into());
        }
        // A relative directory in this variable counts for nothing (XDG base directory specification).
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || std::env::home_dir().filter(|home| home.is_absolute()).map(|home| home.join(".local/state"));
        match state.or_else(home) {
            Some(state) => Ok(state.join("anchorhold")),
            None => Err(Failure("cannot tell where the store is: set HOME, or name it with --store ROOT".to_owned())),
        }
    }

    pub(super) fn open(&self, access: Access) -> Result<Store, Failure> {
        Ok(Store::open(&self.root()?, access)?)
    }
}

/// Why a command was not done, for a person.
pub(super) struct Failure(pub String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}
