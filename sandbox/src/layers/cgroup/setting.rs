//! One limit as a file of a group: what is written, and what may be read back.

use std::path::Path;

use super::{Controller, Error, files};

/// A limit to write into a group.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Setting {
    pub controller: Controller,
    pub file: &'static str,
    pub value: String,
    #[serde(skip)]
    pub accept: Accept,
    /// What stands in for it in a group that does not have the file: kernels differ in what they were built with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<Box<Setting>>,
}

/// What the kernel may answer when the limit is read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Accept {
    /// The very text.
    Exactly,
    /// A number of bytes that is at most the asked one, and short of it by less than a page; the kernel counts in pages.
    /// A number beyond what it can count is no limit at all, and it says so.
    Bytes(u64),
    /// A weight, alone or as `default <weight>`, the first line of a table of devices.
    Weight(u32),
}

impl Setting {
    pub(super) fn new(controller: Controller, file: &'static str, value: impl Into<String>) -> Self {
        Setting { controller, file, value: value.into(), accept: Accept::Exactly, otherwise: None }
    }

    pub(super) fn bytes(controller: Controller, file: &'static str, bytes: u64) -> Self {
        Setting { controller, file, value: bytes.to_string(), accept: Accept::Bytes(bytes), otherwise: None }
    }

    pub(super) fn weight(controller: Controller, file: &'static str, weight: u32) -> Self {
        Setting { controller, file, value: weight.to_string(), accept: Accept::Weight(weight), otherwise: None }
    }

    /// With another setting for groups that lack this one's file.
    pub(super) fn or(mut self, other: Setting) -> Self {
        self.otherwise = Some(Box::new(other));
        self
    }

    /// The setting that fits the files of a group.
    pub(super) fn for_group(&self, group: &Path) -> &Setting {
        match &self.otherwise {
            Some(other) if !group.join(self.file).exists() => other.for_group(group),
            _ => self,
        }
    }

    /// Writes the limit and returns what the kernel holds then.
    pub(super) fn apply(&self, group: &Path) -> Result<String, Error> {
        files::write(&group.join(self.file), &self.value)?;
        self.verify(group)
    }

    /// Reads the limit back: the text that the kernel holds, or an error when it is not what was asked.
    pub(super) fn verify(&self, group: &Path) -> Result<String, Error> {
        let path = group.join(self.file);
        let holds = files::read(&path)?.trim().to_owned();
        if self.accepts(&holds) { Ok(holds) } else { Err(Error::NotAsAsked { path, asked: self.value.clone(), holds }) }
    }

    fn accepts(&self, holds: &str) -> bool {
        match &self.accept {
            Accept::Exactly => holds == self.value,
            Accept::Weight(weight) => {
                let first = holds.lines().next().unwrap_or_default();
                first.strip_prefix("default ").unwrap_or(first).trim().parse() == Ok(*weight)
            }
            Accept::Bytes(asked) => match holds {
                "max" => *asked >= UNCOUNTABLE,
                number => number
                    .parse::<u64>()
                    .is_ok_and(|held| held <= *asked && (asked - held < LARGEST_PAGE || held >= UNCOUNTABLE)),
            },
        }
    }
}

/// The largest page of any Linux machine (arm64, ppc64), in bytes. A limit short of the asked one by less than this was
/// rounded; one that is shorter still is not ours.
const LARGEST_PAGE: u64 = 64 * 1024;

/// From here on the kernel holds "no limit": `PAGE_COUNTER_MAX` pages (include/linux/page_counter.h), in bytes, rounded
/// down to the largest page.
const UNCOUNTABLE: u64 = i64::MAX as u64 / LARGEST_PAGE * LARGEST_PAGE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_may_be_rounded_down_by_less_than_a_page_and_never_up() {
        let page = LARGEST_PAGE;
        let setting = Setting::bytes(Controller::Memory, "memory.max", 10 * page + 5);
        assert!(setting.accepts(&(10 * page).to_string()));
        assert!(!setting.accepts(&(11 * page).to_string()), "weaker than asked");
        assert!(!setting.accepts(&(9 * page).to_string()), "a page less than asked is somebody else's limit");
        assert!(!setting.accepts("max"));
        assert!(!setting.accepts(""));
    }

    #[test]
    fn what_cannot_be_counted_is_no_limit() {
        assert!(Setting::bytes(Controller::Memory, "memory.max", u64::MAX).accepts("max"));
        assert!(
            Setting::bytes(Controller::Memory, "memory.limit_in_bytes", u64::MAX).accepts(&UNCOUNTABLE.to_string())
        );
    }

    #[test]
    fn weights_are_read_from_both_forms() {
        let setting = Setting::weight(Controller::Io, "io.weight", 250);
        assert!(setting.accepts("250"));
        assert!(setting.accepts("default 250\n8:0 100"));
        assert!(!setting.accepts("default 100"));
    }

    #[test]
    fn other_values_must_be_the_very_text() {
        let setting = Setting::new(Controller::Cpu, "cpu.max", "50000 100000");
        assert!(setting.accepts("50000 100000"));
        assert!(!setting.accepts("max 100000"));
    }
}
