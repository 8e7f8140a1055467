//! No sandbox: what the kernel lets a process of this user do. The row against which others are read.

use anchorhold_probe::observation::Launch;

use super::{Ground, Inside, Sandbox, line, version_of};

/// The bare host.
#[derive(Debug)]
pub struct Host;

impl Sandbox for Host {
    fn name(&self) -> String {
        "host".into()
    }

    fn version(&self, _ground: &Ground) -> Result<String, String> {
        version_of("uname", &["-sr"])
    }

    fn prepare(&self, ground: &Ground) -> Result<Inside, String> {
        Ok(Inside::of_host(ground))
    }

    fn launch(&self, _ground: &Ground, words: &[String]) -> Result<Launch, String> {
        Ok(line(words))
    }
}
