//! bubblewrap, as its manual starts a sandbox with everything unshared.

use anchorhold_probe::observation::Launch;

use super::{Ground, Inside, Sandbox, line, text, version_of};

/// `bwrap`.
#[derive(Debug)]
pub struct Bubblewrap;

impl Sandbox for Bubblewrap {
    fn name(&self) -> String {
        "bubblewrap".into()
    }

    fn version(&self, _ground: &Ground) -> Result<String, String> {
        version_of("bwrap", &["--version"])
    }

    fn prepare(&self, _ground: &Ground) -> Result<Inside, String> {
        Ok(Inside::usual())
    }

    fn launch(&self, ground: &Ground, words: &[String]) -> Result<Launch, String> {
        let options = "bwrap --unshare-all --die-with-parent --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib \
                       --symlink usr/lib64 /lib64 --proc /proc --dev /dev --tmpfs /tmp --tmpfs /scratch --ro-bind";
        let mut all: Vec<String> = options.split_whitespace().map(str::to_owned).collect();
        all.extend([text(&ground.shown), "/audit".into(), "--".into()]);
        all.extend(words.iter().cloned());
        Ok(line(all))
    }
}
