//! What virtual machines need of the host.

use std::path::{Path, PathBuf};

use anchorhold_vmm::kernel::Kernel;
use anchorhold_vmm::qemu::Installed;

/// A kernel that `scripts/guest-kernel` has made: where it says, for this user or for all.
///
/// # Errors
/// Why there is none.
pub fn kernel() -> Result<Kernel, String> {
    let named = std::env::var_os("ANCHORHOLD_GUEST_KERNEL").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/anchorhold/guest-kernel"));
    let places: Vec<PathBuf> =
        named.into_iter().chain(home).chain(["/var/cache/anchorhold/guest-kernel".into()]).collect();
    Kernel::first_of(&places).map_err(|error| error.to_string())
}

/// The folder of what `scripts/guest-images` has made: where it says, for this user or for all; says why if there is none.
pub fn guest_images() -> Option<PathBuf> {
    let named = std::env::var_os("ANCHORHOLD_GUEST_IMAGES").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/anchorhold/guest-images"));
    let mut places = named.into_iter().chain(home).chain(["/var/cache/anchorhold/guest-images".into()]);
    let found = places.find(|place| place.join("controller.erofs").is_file());
    if found.is_none() {
        crate::skip("no guest images here: scripts/guest-images makes them");
    }
    found
}

/// The QEMU of this host.
///
/// # Errors
/// Why there is none.
pub fn qemu() -> Result<Installed, String> {
    Installed::find(None, std::env::var_os("PATH").as_deref()).map_err(|failure| failure.to_string())
}

/// The kernel with which `anchorhold` makes machines here; says why if it can make none.
pub fn guest_kernel() -> Option<Kernel> {
    let agent = crate::room::anchorhold().with_file_name("anchorhold-agent");
    if !agent.is_file() {
        crate::skip("the agent is not built: cargo build -p anchorhold-agent");
        return None;
    }
    match qemu().and_then(|_| kernel()) {
        Ok(kernel) => Some(kernel),
        Err(why) => {
            crate::skip(&why);
            None
        }
    }
}
