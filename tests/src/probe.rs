//! Where the program `room-probe` is, for rooms to be shown it.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Where rooms see it.
pub const INSIDE: &str = "/probe";

/// Its path on the host: beside this test, as cargo puts the executables of all tests into one folder, and as whoever copies them for
/// another user does.
pub fn path() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let own = std::env::current_exe().expect("the path of this test");
        let folder = own.parent().expect("a folder");
        let is_probe = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("room_probe-") && !name.contains('.')
        };
        let entries = fs::read_dir(folder).expect("the folder of this test").flatten();
        // Builds with other settings may have left others there.
        entries
            .map(|entry| entry.path())
            .filter(is_probe)
            .max_by_key(|path| fs::metadata(path).and_then(|found| found.modified()).ok())
            .unwrap_or_else(|| panic!("there is no room_probe-* in {}: build all tests", folder.display()))
    })
}
