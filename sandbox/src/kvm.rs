//! `/dev/kvm`: there, openable, and of use.
//!
//! The last is a trap of its own: a host may offer the device and answer its interface although its processor has no virtualisation
//! (nested guests without it, binary-translating hypervisors); a guest kernel then hangs at its first privileged instruction.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::host::Kvm;

/// Looks at it as a process that is about to give its privileges up.
///
/// # Errors
/// Why it is unusable, and what to do about it.
pub fn probe(privileged: bool) -> Result<Kvm, (String, String)> {
    let say = |why: String, fix: &str| Err((why, fix.to_owned()));
    let found = match fs::metadata("/dev/kvm") {
        Ok(found) if found.file_type().is_char_device() => found,
        Ok(_) => return say("/dev/kvm is not a device".into(), "remove it and load the module kvm"),
        Err(error) => {
            return say(
                format!("/dev/kvm: {error}"),
                "load kvm_intel or kvm_amd, or enable virtualisation in the firmware",
            );
        }
    };
    if let Some(missing) = processor_without_virtualisation(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()) {
        return say(
            missing,
            "let the outer hypervisor pass virtualisation through (nested), or build without kvm: the system emulator works",
        );
    }
    let mode = found.mode();
    let kvm = match mode {
        _ if mode & 0o006 == 0o006 => Kvm { group_needed: None },
        _ if mode & 0o060 == 0o060 && found.gid() != 0 => Kvm { group_needed: Some(found.gid()) },
        _ => {
            return say(
                format!(
                    "/dev/kvm has mode {:04o}, owner {}:{}: only root may open it",
                    mode & 0o7777,
                    found.uid(),
                    found.gid()
                ),
                "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm (a udev rule makes it last)",
            );
        }
    };
    if !privileged && let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return say(
            format!("opening /dev/kvm: {error}"),
            "add this user to the group that owns it (usermod -aG kvm USER)",
        );
    }
    match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(device) => match crate::sys::device::kvm_interface_version(device.as_raw_fd()) {
            Ok(12) => Ok(kvm),
            Ok(other) => say(format!("/dev/kvm has interface {other}, not 12"), "use a kernel of this century"),
            Err(errno) => say(format!("/dev/kvm does not answer: {}", errno.desc()), "reload the module kvm"),
        },
        Err(error) => say(format!("opening /dev/kvm: {error}"), "check the device policy of the container around us"),
    }
}

/// Why the processor cannot virtualise, if `/proc/cpuinfo` shows that it cannot.
fn processor_without_virtualisation(cpuinfo: &str) -> Option<String> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"))?;
    let has = |flag: &str| flags.split_ascii_whitespace().any(|one| one == flag);
    (!has("vmx") && !has("svm"))
        .then(|| "/dev/kvm answers, but the processor shows neither vmx nor svm: a guest would hang".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_without_vmx_or_svm_is_a_trap() {
        assert!(processor_without_virtualisation("processor : 0\nflags\t\t: fpu vme sse2\n").is_some());
        assert!(processor_without_virtualisation("flags\t\t: fpu vmx sse2\n").is_none());
        // Other architectures have no such line; there the device itself is the answer.
        assert!(processor_without_virtualisation("processor : 0\nBogoMIPS : 50\n").is_none());
    }
}
