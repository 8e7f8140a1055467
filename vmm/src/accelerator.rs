//! What executes a guest's instructions: the processor itself through KVM, or QEMU's emulation (TCG).
//!
//! That `/dev/kvm` is there and answers says little. A host without virtualisation in its processor can offer it all the
//! same (a hypervisor that translates, such as PVM); real mode code runs there, a thousand times slower, and a kernel
//! hangs for ever. So KVM counts as usable only if the device opens for reading and writing, speaks interface 12, the
//! processor shows that it virtualises, and a guest of twenty bytes has counted to 100,000 within its deadline.

mod kvm;

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// How long the tiny guest may count. Hardware takes under one millisecond, a hypervisor that translates was measured at 39.
const DEADLINE: Duration = Duration::from_millis(5);
/// How long we wait for it at all. One that hangs in the kernel is left behind; it ends with this process.
const GIVE_UP: Duration = Duration::from_secs(10);

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// KVM, or nothing at all.
    Kvm,
    /// Emulation.
    Tcg,
    /// KVM where it is usable, else emulation.
    #[default]
    Auto,
}

/// What is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// Emulation.
    Tcg,
}

/// What is used, and why: both belong into the log and the seal.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Choice {
    /// What is used.
    pub accelerator: Accelerator,
    /// Why, in words.
    pub reason: String,
}

/// KVM was asked for and cannot be used, or the request is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceleratorError {
    /// It cannot be used.
    #[error("KVM was asked for and is not usable: {reason}; ask for tcg (slow) or auto, or build on another machine")]
    Unusable {
        /// Why.
        reason: String,
    },
    /// No such accelerator.
    #[error("there is no accelerator {0:?}: it is one of kvm, tcg, auto")]
    Unknown(String),
}

impl FromStr for Wanted {
    type Err = AcceleratorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            "auto" => Ok(Self::Auto),
            other => Err(AcceleratorError::Unknown(other.to_owned())),
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// Where a host shows what it has.
#[derive(Clone, Debug)]
pub struct Host {
    /// The device.
    pub device: PathBuf,
    /// What the processor can.
    pub cpuinfo: PathBuf,
    /// This boot's own number.
    pub boot_id: PathBuf,
    /// The folder of the module of a KVM without hardware.
    pub translating: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            device: "/dev/kvm".into(),
            cpuinfo: "/proc/cpuinfo".into(),
            boot_id: "/proc/sys/kernel/random/boot_id".into(),
            translating: "/sys/module/kvm_pvm".into(),
        }
    }
}

/// Chooses on this host. What the tiny guest showed is kept in `cache` until the next boot; nothing else is.
///
/// # Errors
/// If KVM is asked for by name and is not usable.
pub fn choose(wanted: Wanted, host: &Host, cache: Option<&Path>) -> Result<Choice, AcceleratorError> {
    if wanted == Wanted::Tcg {
        return Ok(Choice { accelerator: Accelerator::Tcg, reason: "asked for".into() });
    }
    match (host.usable(cache), wanted) {
        (Ok(reason), _) => Ok(Choice { accelerator: Accelerator::Kvm, reason }),
        (Err(reason), Wanted::Kvm) => Err(AcceleratorError::Unusable { reason }),
        (Err(reason), _) => {
            Ok(Choice { accelerator: Accelerator::Tcg, reason: format!("KVM is not usable: {reason}") })
        }
    }
}

impl Host {
    /// How it showed that it is usable, or why it is not.
    fn usable(&self, cache: Option<&Path>) -> Result<String, String> {
        let device = self.device.display();
        let opened = fs::OpenOptions::new().read(true).write(true).open(&self.device);
        let opened = opened.map_err(|error| format!("opening {device} for reading and writing: {error}"))?;
        match kvm::interface(&opened) {
            Ok(12) => {}
            Ok(other) => return Err(format!("{device} has interface {other}, not 12")),
            Err(error) => return Err(format!("{device} does not answer as KVM does: {error}")),
        }
        if self.translating.exists() {
            return Err(format!(
                "{device} belongs to a hypervisor that translates (module kvm_pvm): a guest would hang"
            ));
        }
        let cpuinfo =
            fs::read_to_string(&self.cpuinfo).map_err(|error| format!("{}: {error}", self.cpuinfo.display()))?;
        if !shows_virtualisation(&cpuinfo) {
            return Err(format!(
                "{device} answers, but the processor shows neither vmx nor svm: a guest would hang; let the outer hypervisor pass virtualisation through"
            ));
        }
        let boot = fs::read_to_string(&self.boot_id).unwrap_or_default();
        let kept = cache.map(|folder| folder.join("kvm-probe"));
        let known = kept.as_ref().and_then(|path| fs::read_to_string(path).ok());
        if let Some(micros) = known.as_deref().and_then(|text| text.strip_prefix(boot.as_str())?.trim().parse().ok())
            && !boot.is_empty()
        {
            return judge(Duration::from_micros(micros));
        }
        let took = kvm::count(opened, DEADLINE, GIVE_UP).map_err(|why| format!("a tiny guest on {device}: {why}"))?;
        if let Some(path) = kept {
            // Whoever cannot keep it asks again the next time.
            let _ = keep(&path, &format!("{boot}{}\n", took.as_micros()));
        }
        judge(took)
    }
}

fn judge(took: Duration) -> Result<String, String> {
    if took > DEADLINE {
        return Err(format!(
            "a tiny guest took {took:?} to count to 100000, hardware takes under 1 ms (limit {DEADLINE:?}): it is emulated"
        ));
    }
    Ok(format!("a tiny guest counted to 100000 in {took:?}"))
}

fn keep(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

/// Architectures other than x86 have no such word; there the tiny guest, or the device itself, is the answer.
fn shows_virtualisation(cpuinfo: &str) -> bool {
    let Some(flags) = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")) else { return true };
    flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(folder: &Path, flags: &str) -> Host {
        fs::write(folder.join("cpuinfo"), format!("processor : 0\nflags\t\t: fpu {flags}\n")).unwrap();
        fs::write(folder.join("boot_id"), "of-this-boot\n").unwrap();
        Host {
            device: folder.join("kvm"),
            cpuinfo: folder.join("cpuinfo"),
            boot_id: folder.join("boot_id"),
            translating: folder.join("no-module"),
        }
    }

    #[test]
    fn what_is_asked_by_name_is_refused_with_the_reason_and_auto_goes_on_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut host = host(folder.path(), "vmx");
        let told = |host: &Host| choose(Wanted::Kvm, host, None).unwrap_err().to_string();
        assert!(told(&host).contains("kvm for reading and writing: No such file"), "{}", told(&host));
        fs::write(&host.device, "").unwrap();
        assert!(told(&host).contains("does not answer as KVM does"), "{}", told(&host));
        host.device = "/dev/null".into();
        let choice = choose(Wanted::Auto, &host, None).unwrap();
        assert_eq!(choice.accelerator, Accelerator::Tcg);
        assert!(choice.reason.starts_with("KVM is not usable: /dev/null does not answer"), "{choice:?}");
        assert_eq!(choose(Wanted::Tcg, &host, None).unwrap().accelerator, Accelerator::Tcg);
        assert!("kwm".parse::<Wanted>().unwrap_err().to_string().contains("kvm, tcg, auto"));
    }

    /// A device that answers, on a host that this machine's /proc/cpuinfo says cannot: the trap itself, where there is one.
    #[test]
    fn a_device_that_answers_without_the_processor_is_noticed() {
        let real = Host::default();
        if fs::OpenOptions::new().read(true).write(true).open(&real.device).is_err() {
            println!("SKIP: /dev/kvm does not open here");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let without = Host { device: real.device.clone(), ..host(folder.path(), "sse2") };
        let told = choose(Wanted::Kvm, &without, None).unwrap_err().to_string();
        assert!(told.contains("neither vmx nor svm"), "{told}");
    }

    /// Where the flag lies, the tiny guest still tells. What it tells depends on the host; that it answers does not.
    #[test]
    fn the_tiny_guest_answers_once_for_each_boot() {
        let real = Host::default();
        if fs::OpenOptions::new().read(true).write(true).open(&real.device).is_err() {
            println!("SKIP: /dev/kvm does not open here");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let lying = Host { device: real.device, ..host(folder.path(), "vmx") };
        let first = lying.usable(Some(folder.path()));
        let text = first.clone().unwrap_or_else(|why| why);
        assert!(text.contains("to count to 100000") || text.contains("counted to 100000"), "{text}");
        println!("{text}");
        // It is not asked again, and what is kept is believed only until the next boot.
        fs::write(folder.path().join("kvm-probe"), "of-this-boot\n12\n").unwrap();
        assert_eq!(lying.usable(Some(folder.path())), judge(Duration::from_micros(12)));
        fs::write(folder.path().join("kvm-probe"), "of-another\n12\n").unwrap();
        assert_ne!(lying.usable(Some(folder.path())), judge(Duration::from_micros(12)));
    }

    #[test]
    fn a_slow_guest_is_an_emulated_one() {
        assert!(judge(Duration::from_micros(400)).is_ok());
        assert!(judge(Duration::from_micros(38_500)).unwrap_err().contains("emulated"));
    }
}
