//! nsjail, with a root of its own and an id that is nobody's.

use anchorhold_probe::observation::Launch;

use super::{Ground, Inside, Sandbox, line, rootfs, text, version_of};

/// `nsjail`.
#[derive(Debug)]
pub struct Nsjail;

impl Sandbox for Nsjail {
    fn name(&self) -> String {
        "nsjail".into()
    }

    fn version(&self, _ground: &Ground) -> Result<String, String> {
        // It has no --version; that it starts at all is what can be asked.
        version_of("nsjail", &["--help"])
    }

    fn prepare(&self, ground: &Ground) -> Result<Inside, String> {
        rootfs::make(ground).map(|_| Inside::usual())
    }

    fn launch(&self, ground: &Ground, words: &[String]) -> Result<Launch, String> {
        let root = text(&ground.folder.join("rootfs"));
        let mut all: Vec<String> =
            ["nsjail", "--quiet", "--mode", "o", "--chroot", &root, "--user", "99999", "--group", "99999"]
                .map(str::to_owned)
                .into();
        all.extend(["--tmpfsmount".into(), "/scratch".into(), "--rlimit_as".into(), "inf".into(), "--".into()]);
        all.extend(words.iter().cloned());
        Ok(line(all))
    }
}
