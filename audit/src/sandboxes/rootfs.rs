//! A root for containers: the probe program is static, so that it needs nothing but itself.

use std::fs;
use std::path::PathBuf;

use super::Ground;

/// Makes it, once for each run: `/audit` with what sandboxes show, `/scratch`, and the usual mount points.
pub fn make(ground: &Ground) -> Result<PathBuf, String> {
    let root = ground.folder.join("rootfs");
    let failed = |error: std::io::Error| format!("making a root in {}: {error}", root.display());
    for name in ["audit/input", "scratch", "tmp", "proc", "sys", "dev", "etc", "usr", "run", "var/tmp"] {
        fs::create_dir_all(root.join(name)).map_err(failed)?;
    }
    for name in ["anchorhold-probe", "input/file"] {
        fs::copy(ground.shown.join(name), root.join("audit").join(name)).map_err(failed)?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/false\n").map_err(failed)?;
    // nspawn looks for a system before it starts anything.
    fs::write(root.join("etc/os-release"), "ID=audit\n").map_err(failed)?;
    Ok(root)
}
