//! firejail, with the profile that it takes for a program that it does not know. It is named, because root's is another one, which
//! hides the program itself.

use std::path::Path;

use anchorhold_probe::observation::Launch;

use super::{Ground, Inside, Sandbox, line, version_of};

/// `firejail`.
#[derive(Debug)]
pub struct Firejail;

impl Sandbox for Firejail {
    fn name(&self) -> String {
        "firejail".into()
    }

    fn version(&self, _ground: &Ground) -> Result<String, String> {
        version_of("firejail", &["--version"])
    }

    fn place(&self) -> &'static Path {
        // Root gets a /var/tmp of its own as well.
        Path::new(if crate::user::is_root() { "/srv" } else { "/var/tmp" })
    }

    fn prepare(&self, ground: &Ground) -> Result<Inside, String> {
        Ok(Inside::of_host(ground))
    }

    fn launch(&self, _ground: &Ground, words: &[String]) -> Result<Launch, String> {
        let mut all: Vec<String> =
            ["firejail", "--quiet", "--profile=/etc/firejail/default.profile", "--"].map(str::to_owned).into();
        all.extend(words.iter().cloned());
        Ok(line(all))
    }
}
