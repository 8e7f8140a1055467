//! The way out of a room of the profile `fetch`: pasta(1), and the device that it needs.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use super::{Diagnosis, Facts, Group, Verdict};
use crate::layers::Layer;

/// What pasta needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pasta {
    /// Where it is.
    pub program: Option<PathBuf>,
    /// Whether the room's user may open `/dev/net/tun`; if not, why, and what to do about it.
    pub device: Result<(), (String, String)>,
}

const DEVICE: &str = "/dev/net/tun";

impl Pasta {
    /// Looks for both.
    pub fn gather(privileged: bool) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path).map(|directory| directory.join("pasta")).find(|file| file.is_file());
        Self { program, device: device(privileged) }
    }
}

fn device(privileged: bool) -> Result<(), (String, String)> {
    let found = match fs::metadata(DEVICE) {
        Ok(found) if found.file_type().is_char_device() => found,
        Ok(_) => return Err((format!("{DEVICE} is not a device"), "remove it and load the module tun".into())),
        Err(error) => {
            let fix = "load the module tun (modprobe tun); in a container, pass the device in: --device /dev/net/tun";
            return Err((format!("{DEVICE}: {error}"), fix.into()));
        }
    };
    // Root's rooms run under ids that are in no group.
    let opened = fs::OpenOptions::new().read(true).write(true).open(DEVICE);
    may_open(found.mode(), found.uid(), found.gid(), privileged, opened.err().as_ref().map(ToString::to_string))
}

fn may_open(mode: u32, uid: u32, gid: u32, privileged: bool, refused: Option<String>) -> Result<(), (String, String)> {
    let for_everybody = mode & 0o006 == 0o006;
    let why = match refused {
        Some(why) => why,
        None if !privileged || for_everybody => return Ok(()),
        None => "we may open it, the room's own user may not".into(),
    };
    Err((
        format!("{DEVICE} has mode {:04o}, owner {uid}:{gid}: {why}", mode & 0o7777),
        "chmod 0666 /dev/net/tun, as the kernel's and udev's default is (it gives nobody a power over the host's network)".into(),
    ))
}

/// Judges both.
pub fn judge(facts: &Facts) -> Vec<Diagnosis> {
    let row = |verdict, found: String| Diagnosis::new(Group::Option, "pasta", Layer::Network, verdict, found);
    let pasta = &facts.pasta;
    let Some(program) = &pasta.program else {
        return vec![
            row(Verdict::Missing, "--network pasta: pasta(1) is not in PATH".into())
                .fix("install it: the package passt (Debian, Fedora, Arch, Nixpkgs)"),
        ];
    };
    vec![match &pasta.device {
        Ok(()) => row(Verdict::Works, format!("--network pasta: {}, and {DEVICE} can be opened", program.display())),
        Err((why, fix)) => {
            row(Verdict::Missing, format!("--network pasta: {} is there, but {why}", program.display())).fix(fix)
        }
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_only_root_may_open_is_no_good_for_roots_rooms() {
        assert!(may_open(0o20666, 0, 0, true, None).is_ok());
        let (why, fix) = may_open(0o20600, 0, 0, true, None).unwrap_err();
        assert!(why.contains("0600") && fix.contains("chmod 0666"), "{why}; {fix}");
        let (why, _) = may_open(0o20600, 0, 0, false, Some("Permission denied (os error 13)".into())).unwrap_err();
        assert!(why.contains("Permission denied"), "{why}");
        // A user's rooms run under that user's own id, and keep what it may open.
        assert!(may_open(0o20660, 0, 101, false, None).is_ok());
    }

    #[test]
    fn no_pasta_names_the_package() {
        let facts = Facts { pasta: Pasta { program: None, device: Ok(()) }, ..Facts::healthy() };
        assert!(judge(&facts).remove(0).fix.unwrap().contains("passt"));
    }
}
