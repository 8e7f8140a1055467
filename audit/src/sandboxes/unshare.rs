//! The namespaces alone, by `unshare`: what they are worth without anything else.

use anchorhold_probe::observation::Launch;

use super::{Ground, Inside, Sandbox, line, version_of};

/// `unshare`.
#[derive(Debug)]
pub struct Unshare;

impl Sandbox for Unshare {
    fn name(&self) -> String {
        "unshare".into()
    }

    fn version(&self, _ground: &Ground) -> Result<String, String> {
        version_of("unshare", &["--version"])
    }

    fn prepare(&self, ground: &Ground) -> Result<Inside, String> {
        Ok(Inside::of_host(ground))
    }

    fn launch(&self, _ground: &Ground, words: &[String]) -> Result<Launch, String> {
        let mut all: Vec<String> =
            ["unshare", "-Urmpniu", "--fork", "--mount-proc", "--kill-child", "--"].map(str::to_owned).into();
        all.extend(words.iter().cloned());
        Ok(line(all))
    }
}
