//! Which store a command works on.

use std::path::PathBuf;

use anchorhold::config::settings::Settings;
use clap::Args;

/// The option that names a store.
#[derive(Debug, Clone, Args)]
pub struct StoreRoot {
    /// The root of the store: its files are in nix/store and nix/var below [default: your own]
    #[arg(long = "store", value_name = "ROOT", env = "ANCHORHOLD_STORE")]
    given: Option<PathBuf>,
}

impl StoreRoot {
    /// The root: as given, or as configured, or the person's own.
    pub fn root(&self, settings: &Settings) -> PathBuf {
        self.given.clone().or_else(|| settings.store.clone()).unwrap_or_else(own)
    }
}

/// The system's for root; for others, in the place that the XDG base directory specification gives to state.
fn own() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/lib/anchorhold".into();
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("anchorhold")
}
