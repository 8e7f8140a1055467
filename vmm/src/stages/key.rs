//! Keys of stages: everything that a stage depends on, each by its name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Stage;
use super::cache::hexadecimal;
use crate::failure::Failure;
use crate::memory::{Key, Remembered};
use crate::profile::Profile;
use crate::qemu::Installed;
use crate::spec::MachineSpec;

/// What QEMU loads of its own: a newer one is another machine.
const FIRMWARE: [&str; 5] = ["bios-256k.bin", "pvh.bin", "kvmvapic.bin", "linuxboot_dma.bin", "vgabios-stdvga.bin"];

/// The field with everything on a machine's board.
const DEVICES: &str = "devices";

/// The field with which machines there are.
pub(super) const TOPOLOGY: &str = "topology";

/// QEMU's options that have fields of their own, or are the same for all machines.
const OWN_FIELDS: [&str; 7] = ["-name", "-machine", "-accel", "-cpu", "-smp", "-m", "-object"];

/// What is on a board, without what has a field of its own.
fn devices(words: &[String]) -> String {
    let mut rest = words.iter();
    let mut kept = Vec::new();
    while let Some(word) = rest.next() {
        if OWN_FIELDS.contains(&word.as_str()) {
            rest.next();
        } else {
            kept.push(word.as_str());
        }
    }
    kept.join(" ")
}

/// A key: fields by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fields(BTreeMap<String, String>);

/// A field that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name.
    pub field: String,
    /// What it was when the stage was made.
    pub made: String,
    /// What it is now.
    pub wanted: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |text: &str| match text.char_indices().nth(60) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text.to_owned(),
        };
        write!(f, "{} was ‘{}’ and is ‘{}’ now", self.field, short(&self.made), short(&self.wanted))
    }
}

impl Difference {
    /// Leaves the words out that both have.
    fn keep_what_differs(&mut self) {
        let missing = |text: &str, other: &str| {
            let others: std::collections::BTreeSet<_> = other.split(' ').collect();
            let words: Vec<_> = text.split(' ').filter(|word| !others.contains(word)).collect();
            if words.is_empty() { "without it".to_owned() } else { words.join(" ") }
        };
        (self.made, self.wanted) = (missing(&self.made, &self.wanted), missing(&self.wanted, &self.made));
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Fields {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(fields: I) -> Self {
        Self(fields.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

impl Fields {
    /// The name of the stage with this key.
    pub fn name(&self, stage: Stage) -> String {
        let text = serde_json::to_vec(self).expect("fields are JSON");
        format!("{}-{}", stage.name(), &hexadecimal(&Sha256::digest(text))[..20])
    }

    /// A field's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All fields.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Where they differ, in the order of their names.
    pub fn differences(&self, wanted: &Self) -> Vec<Difference> {
        let names: std::collections::BTreeSet<_> = self.0.keys().chain(wanted.0.keys()).collect();
        let value = |fields: &Self, name: &str| fields.get(name).unwrap_or("nothing").to_owned();
        let mut differences: Vec<Difference> = names
            .into_iter()
            .map(|field| Difference { field: field.clone(), made: value(self, field), wanted: value(wanted, field) })
            .filter(|difference| difference.made != difference.wanted)
            .collect();
        for difference in differences.iter_mut().filter(|difference| difference.field.ends_with(DEVICES)) {
            difference.keep_what_differs();
        }
        // Other machines altogether: everything else follows from that.
        if let Some(topology) = differences.iter().position(|difference| difference.field == TOPOLOGY) {
            return vec![differences.swap_remove(topology)];
        }
        // What a person can do something about comes first.
        differences.sort_by_key(|difference| difference.field.ends_with(DEVICES));
        differences
    }

    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.insert(name.to_owned(), value.into());
    }

    pub(super) fn file(&mut self, name: &str, path: &Path, remembered: &mut Remembered) -> Result<(), Failure> {
        self.set(name, remembered.digest(path)?);
        Ok(())
    }

    pub(super) fn content(&mut self, name: &str, bytes: &[u8]) {
        self.set(name, hexadecimal(&Sha256::digest(bytes)));
    }

    /// All that a machine is, under names that begin with `prefix`.
    pub(super) fn machine(
        &mut self,
        prefix: &str,
        spec: &MachineSpec,
        remembered: &mut Remembered,
    ) -> Result<(), Failure> {
        // The build of QEMU is a field of its own.
        let key = Key::of(spec, "", remembered)?;
        for (name, value) in [
            ("machine-type", key.machine_type.clone()),
            ("cpu", key.cpu.clone()),
            ("accelerator", key.accelerator.clone()),
            ("processor", key.processor.clone()),
            ("memory", format!("{} MiB", key.memory)),
            ("cores", key.cores.to_string()),
            ("devices", devices(&key.devices)),
        ] {
            self.set(&format!("{prefix}{name}"), value);
        }
        for (name, digest) in &key.files {
            self.set(&format!("{prefix}{name}"), digest.clone());
        }
        Ok(())
    }

    /// Which QEMU, and what it brings along.
    pub(super) fn qemu(&mut self, installed: &Installed, remembered: &mut Remembered) -> Result<(), Failure> {
        self.set("qemu", format!("{} {}", installed.version, remembered.digest(&installed.program)?));
        for folder in installed.data_folders() {
            for name in FIRMWARE {
                let path = folder.join(name);
                let field = format!("firmware {name}");
                if path.is_file() && self.get(&field).is_none() {
                    self.file(&field, &path, remembered)?;
                }
            }
        }
        Ok(())
    }

    /// What a guest is, without its share table: an installation does not depend on that.
    pub(super) fn profile(&mut self, profile: &Profile) {
        let mut bare = profile.clone();
        bare.drives.clear();
        let text = serde_json::to_vec(&bare).expect("a profile is JSON");
        self.set("profile", format!("{} {}", profile.name, hexadecimal(&Sha256::digest(text))));
    }

    /// A guest's share table, as a person would write it.
    pub(super) fn shares(&mut self, profile: &Profile) {
        let row = |drive: &crate::profile::Drive| {
            let access = if drive.read_only { "ro" } else { "rw" };
            let of = drive.directory.as_ref().map(|path| format!(" of {}", path.display())).unwrap_or_default();
            format!("{} {} {} {access}{of}", drive.letter, drive.share, drive.path)
        };
        self.set("shares", profile.drives.iter().map(row).collect::<Vec<_>>().join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_boards_the_device_is_named_that_one_of_them_has() {
        let mut remembered = Remembered::default();
        let fields = |spec: &MachineSpec, remembered: &mut Remembered| {
            let mut fields = Fields::default();
            fields.machine("guest.", spec, remembered).unwrap();
            fields
        };
        let place = tempfile::NamedTempFile::new().unwrap();
        let spec = MachineSpec::linux("guest", place.path(), place.path(), 256);
        let mut other = spec.clone();
        other.memory = 512;
        let mut differences = fields(&spec, &mut remembered).differences(&fields(&other, &mut remembered));
        assert_eq!(differences.len(), 1, "{differences:?}");
        assert_eq!(differences.remove(0).to_string(), "guest.memory was ‘256 MiB’ and is ‘512 MiB’ now");
        other.memory = 256;
        other.display = true;
        let told = fields(&spec, &mut remembered).differences(&fields(&other, &mut remembered))[0].to_string();
        assert_eq!(told, "guest.devices was ‘without it’ and is ‘VGA,id=display’ now");
    }

    #[test]
    fn an_installation_does_not_depend_on_the_share_table_and_a_saved_machine_does() {
        let standin = Profile::built_in("standin").unwrap();
        let drive = crate::profile::Drive {
            letter: "Y:".into(),
            share: "other".into(),
            path: "/other".into(),
            read_only: true,
            directory: Some("/nix/store/other".into()),
        };
        let more = standin.clone().with_drives([drive]).unwrap();
        let fields = |profile: &Profile, with_shares| {
            let mut fields = Fields::default();
            fields.profile(profile);
            if with_shares {
                fields.shares(profile);
            }
            fields
        };
        assert_eq!(fields(&standin, false), fields(&more, false));
        let differences = fields(&standin, true).differences(&fields(&more, true));
        assert_eq!(differences.len(), 1);
        assert_eq!(differences[0].field, "shares");
        assert!(
            differences[0].wanted.ends_with("X: xchg /xchg rw, Y: other /other ro of /nix/store/other"),
            "{}",
            differences[0]
        );
        assert_ne!(
            fields(&standin, false).name(Stage::Install),
            fields(&Profile::built_in("windows").unwrap(), false).name(Stage::Install)
        );
    }
}
