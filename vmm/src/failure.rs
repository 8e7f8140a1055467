//! How machines fail: one table of classes, and what is told of one failure.
//!
//! A class is what programs look at: its name does not change. The words are for people.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

macro_rules! failure_classes {
    ($( $(#[doc = $doc:literal])+ $class:ident, $name:literal, $advice:literal; )+) => {
        /// A kind of failure. Its name, in kebab case, is what reports hold.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum FailureClass {
            $( $(#[doc = $doc])+ $class, )+
        }

        impl FailureClass {
            /// All of them, in the order in which a machine's life meets them.
            pub const ALL: &[Self] = &[$(Self::$class),+];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$class => $name,)+ }
            }

            /// What it is.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$class => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// What to do about it.
            pub fn advice(self) -> &'static str {
                match self { $(Self::$class => $advice,)+ }
            }
        }
    };
}

failure_classes! {
    /// There is no QEMU.
    NoQemu, "no-qemu", "install qemu-system-x86, or name the program by the setting vm-qemu";
    /// The QEMU there is lacks something that the machine needs.
    QemuTooOld, "qemu-too-old", "install QEMU 7.2 or newer";
    /// The kernel image, the initramfs or another file that the machine starts from is not there or cannot be read.
    NoKernel, "no-kernel", "name a kernel by the setting vm-kernel; scripts/guest-kernel fetches Debian's";
    /// There is no image of the guest, of the controller beside it, or of the inputs of a build.
    NoImage, "no-image", "scripts/guest-images makes those of the stand-in, vm-images names their folder, vm-guest the guest; vm-store = \"auto\" does without one of the inputs";
    /// The kernel has not got a module that the guest needs.
    KernelLacksModule, "kernel-lacks-module", "use a kernel with this module: Debian's linux-image-amd64 has all that are needed, its cloud kernel has no 9p";
    /// There is no wire between the guest and its controller.
    NoWire, "no-wire", "install vde2 for vm-wire = \"vde\", or leave that setting out";
    /// The initramfs is more than the guest's memory can unpack, of which Linux would unpack a part in silence.
    InitramfsTooLarge, "initramfs-too-large", "give the machine more memory";
    /// The asked-for accelerator cannot be used.
    AcceleratorUnusable, "accelerator-unusable", "use tcg, or let the host give /dev/kvm that works";
    /// QEMU ended before the machine stood.
    QemuRefused, "qemu-refused", "read what QEMU said";
    /// QEMU did not answer its control socket.
    QemuSilent, "qemu-silent", "the host may be overloaded; try again";
    /// Somebody else's signal killed QEMU.
    QemuKilled, "qemu-killed", "look for the kernel's out-of-memory killer and for limits of the room";
    /// QEMU ended with an error while the guest ran.
    QemuFailed, "qemu-failed", "read what QEMU said";
    /// The guest's kernel panicked.
    Panic, "panic", "read the console's last lines";
    /// The guest restarted itself.
    Reset, "reset", "read the console's last lines; a triple fault looks like this too";
    /// The guest was powered off before the command's status came.
    PowerOff, "power-off", "the command, or something it started, shut the machine down; read the console";
    /// The guest did nothing at all: no output, no disk, no processor time.
    Stalled, "stalled", "read the console's last lines; the screenshot shows what the guest waits for";
    /// What was waited for did not come in time, though the guest was at work.
    Deadline, "deadline", "allow more time, or read the console for what takes it";
    /// The guest wrote more to its console than is allowed.
    ConsoleFlood, "console-flood", "make the guest quieter, or raise the limit of the console";
    /// The guest's own program reported that it cannot go on.
    GuestRefused, "guest-refused", "read what the guest said";
    /// The guest sent what is no report.
    BadReport, "bad-report", "the agent in the guest is not ours, or not of this version";
    /// The command ended and no exit status came.
    NoStatus, "no-status", "the agent in the guest ended early; read the console";
    /// The guest's SSH port is open and says nothing.
    SshSilent, "ssh-silent", "read the guest's console; its SSH server may wait for an installation to end, or lack chance for its keys";
    /// The guest's SSH server shows another key than the image's.
    WrongKey, "wrong-key", "the image's known_hosts is not of this image: make the image again";
    /// The guest's SSH server lets nobody in.
    NoLogin, "no-login", "the image's key is not of this image, or the guest's user is missing: make the image again";
    /// A drive of the guest, or the inputs of its build, could not be mounted, read or taken away.
    NoShare, "no-share", "read what the guest, its controller or the directory's server said";
    /// The connection to the guest was lost before the command's status came.
    SessionLost, "session-lost", "the guest froze, ended its SSH server, or the wire was cut; read its console";
    /// A disk of the machine failed under it.
    DiskError, "disk-error", "look at free space where the machine's images lie";
    /// The exchange between host and guest has no space left.
    ExchangeFull, "exchange-full", "give the exchange more space";
    /// The machine's memory cannot be saved.
    SaveFailed, "save-failed", "unmount 9p shares before saving, and look at free space";
    /// A saved state is not what was written.
    CorruptState, "corrupt-state", "delete the state and make it again";
    /// A saved state is for another machine than this one.
    StateMismatch, "state-mismatch", "make the state again with this machine, or use the machine that it was made with";
    /// QEMU could not load a saved state.
    LoadFailed, "load-failed", "make the state again";
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FailureClass {
    /// The table for people and programs: one line of JSON for each class.
    pub fn table() -> String {
        let line = |class: &Self| {
            serde_json::json!({ "class": class.name(), "meaning": class.meaning(), "advice": class.advice() })
                .to_string()
        };
        Self::ALL.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// One failure of one machine: what happened, what was waited for, what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub struct Failure {
    /// Its kind.
    pub class: FailureClass,
    /// The machine's name; empty before there is one.
    pub machine: String,
    /// What happened, as a clause.
    pub what: String,
    /// What was being waited for, and how long.
    pub wait: Option<Waited>,
    /// What was seen until then. Much, and rarely there.
    pub evidence: Box<Evidence>,
}

/// A wait that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Waited {
    /// For what, as a noun with its article.
    pub what: String,
    /// How long it had lasted.
    pub lasted: Duration,
}

/// What was seen of a machine until it failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Evidence {
    /// The last lines of its console, oldest first.
    pub console: Vec<String>,
    /// The last lines that QEMU itself wrote.
    pub qemu: Vec<String>,
    /// The last events of its control socket, oldest first.
    pub events: Vec<String>,
    /// How the QEMU process ended, if it did.
    pub exit: Option<String>,
    /// A picture of its display, if it has one.
    pub screenshot: Option<PathBuf>,
}

impl Failure {
    /// A failure before there is a machine, or without more to tell.
    pub fn new(class: FailureClass, what: impl Into<String>) -> Self {
        Self { class, machine: String::new(), what: what.into(), wait: None, evidence: Box::default() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.machine.is_empty() {
            write!(f, "{}: ", self.machine)?;
        }
        f.write_str(&self.what)?;
        if let Some(wait) = &self.wait {
            write!(f, ", while waiting for {} ({:.1} s)", wait.what, wait.lasted.as_secs_f64())?;
        }
        let last = |f: &mut fmt::Formatter<'_>, who: &str, lines: &[String]| match lines.last() {
            Some(line) => write!(f, "; {who} last said “{}”", line.escape_debug()),
            None => Ok(()),
        };
        last(f, "the console", &self.evidence.console)?;
        last(f, "QEMU", &self.evidence.qemu)?;
        if let Some(picture) = &self.evidence.screenshot {
            write!(f, "; its display is in {}", picture.display())?;
        }
        write!(f, " ({}): {}", self.class, self.class.advice())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_table_is_what_programs_are_promised() {
        let names: BTreeSet<_> = FailureClass::ALL.iter().map(|class| class.name()).collect();
        assert_eq!(names.len(), FailureClass::ALL.len(), "two classes of one name");
        for class in FailureClass::ALL {
            assert_eq!(
                serde_json::to_value(class).unwrap(),
                class.name(),
                "a report and the table name it differently"
            );
            assert!(class.meaning().ends_with('.') && !class.advice().is_empty(), "{class}");
        }
        for line in FailureClass::table().lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(names.contains(row["class"].as_str().unwrap()));
        }
        let documented = include_str!("../../docs/machines.md");
        for name in names {
            assert!(documented.contains(&format!("\n| `{name}` | ")), "docs/machines.md has no {name}");
        }
    }

    #[test]
    fn a_failure_says_what_it_waited_for_and_what_it_saw() {
        let mut failure = Failure::new(FailureClass::Deadline, "nothing came");
        failure.machine = "guest".into();
        failure.wait = Some(Waited { what: "the agent".into(), lasted: Duration::from_millis(2500) });
        failure.evidence.console = vec!["one".into(), "two\u{1b}[m".into()];
        assert_eq!(
            failure.to_string(),
            "guest: nothing came, while waiting for the agent (2.5 s); the console last said “two\\u{1b}[m” (deadline): \
             allow more time, or read the console for what takes it"
        );
        let told: Failure = serde_json::from_str(&serde_json::to_string(&failure).unwrap()).unwrap();
        assert_eq!(told, failure);
    }
}
