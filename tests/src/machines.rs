//! What virtual machines need of the host.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// The same folder, when it has a guest with Wine; says why if not, or if nobody asked for what takes so long.
pub fn wine_images() -> Option<PathBuf> {
    if std::env::var_os("ANCHORHOLD_HEAVY_TESTS").is_none() {
        crate::skip("ANCHORHOLD_HEAVY_TESTS is not set: Wine under emulation takes half a minute each time");
        return None;
    }
    let images = guest_images()?;
    if !images.join("wine.erofs").is_file() {
        crate::skip("no guest with Wine here: scripts/guest-images wine makes it");
        return None;
    }
    Some(images)
}

/// Compiles the tests' program of Windows (`tests/programs/show.c`) to this file; says why if it cannot.
pub fn windows_program(to: &Path) -> bool {
    // Relative to this package, which is the working directory of tests.
    let source = Path::new("programs/show.c");
    let mut compiler = Command::new("x86_64-w64-mingw32-gcc");
    match compiler.args(["-municode", "-Wall", "-Werror", "-O1", "-s", "-o"]).arg(to).arg(source).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => panic!("{}: {}", source.display(), String::from_utf8_lossy(&output.stderr)),
        Err(_) => {
            crate::skip("no compiler for Windows here: apt-get install gcc-mingw-w64-x86-64-win32");
            false
        }
    }
}

/// What that program wrote down, in its parts.
#[derive(Debug)]
pub struct Shown {
    /// Its arguments from the third one on.
    pub arguments: Vec<String>,
    /// Its environment.
    pub environment: HashMap<String, String>,
    /// Its working directory and its place for temporary files.
    pub places: [String; 2],
    /// What it read from files.
    pub read: Vec<String>,
}

impl Shown {
    /// From its file.
    #[track_caller]
    pub fn of(file: &Path) -> Self {
        let text = String::from_utf8(std::fs::read(file).unwrap()).unwrap();
        let mut parts = text.split('\x01').map(|part| part.split_terminator('\0').map(str::to_owned));
        let arguments = parts.next().unwrap().collect();
        let split = |variable: String| {
            let at = 1 + variable[1..].find('=').unwrap();
            (variable[..at].to_owned(), variable[at + 1..].to_owned())
        };
        let environment = parts.next().unwrap().map(split).collect();
        let places: Vec<String> = parts.next().unwrap().collect();
        Self { arguments, environment, places: places.try_into().unwrap(), read: parts.next().unwrap().collect() }
    }
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
