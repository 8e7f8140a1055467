//! A root by chroot(2) alone, which is no sandbox: what it does not keep from getting out.

use anchorhold_probe::observation::Launch;

use super::{Ground, Inside, Sandbox, line, rootfs, text, version_of};

/// `chroot`.
#[derive(Debug)]
pub struct Chroot;

impl Sandbox for Chroot {
    fn name(&self) -> String {
        "chroot".into()
    }

    fn version(&self, _ground: &Ground) -> Result<String, String> {
        version_of("chroot", &["--version"])
    }

    fn prepare(&self, ground: &Ground) -> Result<Inside, String> {
        rootfs::make(ground).map(|_| Inside::usual())
    }

    fn launch(&self, ground: &Ground, words: &[String]) -> Result<Launch, String> {
        let mut all = vec!["chroot".to_owned(), text(&ground.folder.join("rootfs"))];
        all.extend(words.iter().cloned());
        Ok(line(all))
    }
}
