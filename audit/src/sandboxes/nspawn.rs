//! systemd-nspawn, on a folder; without the machine manager, which not every host has.

use anchorhold_probe::observation::Launch;

use super::{Ground, Inside, Sandbox, line, rootfs, text, version_of};

/// `systemd-nspawn`.
#[derive(Debug)]
pub struct Nspawn;

impl Sandbox for Nspawn {
    fn name(&self) -> String {
        "nspawn".into()
    }

    fn version(&self, _ground: &Ground) -> Result<String, String> {
        version_of("systemd-nspawn", &["--version"])
    }

    fn prepare(&self, ground: &Ground) -> Result<Inside, String> {
        rootfs::make(ground).map(|_| Inside::usual())
    }

    fn launch(&self, ground: &Ground, words: &[String]) -> Result<Launch, String> {
        let root = text(&ground.folder.join("rootfs"));
        let mut all: Vec<String> = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "-D", &root]
            .map(str::to_owned)
            .into();
        all.push(format!("--bind-ro={}:/audit", text(&ground.shown)));
        all.extend(["--tmpfs=/scratch".into(), format!("--machine=audit-{}", &ground.nonce[..8]), "--".into()]);
        all.extend(words.iter().cloned());
        Ok(line(all))
    }
}
