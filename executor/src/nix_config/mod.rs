//! How the Nix on this machine is configured, and whether its builds come to us.
//!
//! What Nix itself says of its settings counts ([`installed`]); where there is none to ask, its files are read as it would read
//! them ([`files`]). What they come to is judged by pure functions ([`judge`]): which door is in force, and who can walk around it.

pub mod files;
pub mod installed;
pub mod judge;
pub mod machines;

use std::collections::BTreeMap;

/// The settings of a Nix: what was said, and Nix's defaults for what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NixSettings {
    values: BTreeMap<String, String>,
}

impl NixSettings {
    /// What `nix show-config` (`nix config show`) prints: lines `NAME = VALUE`. Others are passed over.
    pub fn shown(text: &str) -> Self {
        let mut values = BTreeMap::new();
        for line in text.lines() {
            if let Some((name, value)) = line.split_once(" =") {
                // Names are plain words; a line of a value that has several is none.
                if !name.is_empty() && !name.contains(char::is_whitespace) {
                    values.insert(name.to_owned(), value.trim().to_owned());
                }
            }
        }
        Self { values }
    }

    /// Sets one, as a line of `nix.conf` does: `extra-NAME` adds to the list NAME.
    pub fn set(&mut self, name: &str, value: &str) {
        // `extra-platforms` is a list of its own, and so `extra-extra-platforms` adds to it.
        let list = name.strip_prefix("extra-").filter(|list| LISTS.contains(list));
        match list {
            Some(list) if !self.get(list).is_empty() => {
                let longer = format!("{} {value}", self.get(list));
                self.values.insert(list.to_owned(), longer.trim_end().to_owned());
            }
            Some(list) => drop(self.values.insert(list.to_owned(), value.to_owned())),
            None => drop(self.values.insert(name.to_owned(), value.to_owned())),
        }
    }

    /// The value, or Nix's default; empty where there is neither.
    pub fn get(&self, name: &str) -> &str {
        match self.values.get(name) {
            Some(value) => value,
            None => DEFAULTS.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value),
        }
    }

    /// The words of a list.
    pub fn words(&self, name: &str) -> impl Iterator<Item = &str> {
        self.get(name).split_ascii_whitespace()
    }
}

/// The lists among those that are looked at here.
const LISTS: [&str; 3] = ["experimental-features", "extra-platforms", "trusted-users"];

/// Nix's defaults on Linux, where they are not empty.
const DEFAULTS: [(&str, &str); 7] = [
    ("build-hook", "nix __build-remote"),
    ("extra-platforms", DEFAULT_PLATFORMS),
    ("max-jobs", "1"),
    ("sandbox", "true"),
    ("sandbox-fallback", "true"),
    ("system", DEFAULT_SYSTEM),
    ("trusted-users", "root"),
];

#[cfg(target_arch = "x86_64")]
const DEFAULT_SYSTEM: &str = "x86_64-linux";
#[cfg(target_arch = "aarch64")]
const DEFAULT_SYSTEM: &str = "aarch64-linux";
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const DEFAULT_SYSTEM: &str = "unknown-linux";

/// Nix adds the levels of x86_64 that the processor has; every one has the first.
const DEFAULT_PLATFORMS: &str = if cfg!(target_arch = "x86_64") { "i686-linux x86_64-v1-linux" } else { "" };

/// A version of Nix, as far as it matters here: 2.32 is `(2, 32)`.
pub type Version = (u32, u32);

/// The version in what `nix --version` prints: `nix (Nix) 2.8.0`, with more in the parentheses for Nix's relatives.
pub fn version(text: &str) -> Option<Version> {
    let last = text.lines().next()?.split_ascii_whitespace().last()?;
    let mut numbers = last.split(['.', '-', '+']).map_while(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).map_or(part, |end| &part[..end]);
        digits.parse().ok()
    });
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nix_shows_is_read() {
        let settings = NixSettings::shown(
            "build-hook = /usr/libexec/nix/build-remote\nbuilders = \nmax-jobs = 4\nan odd line = x\n",
        );
        assert_eq!(settings.get("build-hook"), "/usr/libexec/nix/build-remote");
        assert_eq!((settings.get("builders"), settings.get("max-jobs")), ("", "4"));
        assert_eq!(settings.get("sandbox"), "true", "a default");
        assert_eq!(settings.get("an odd line"), "");
    }

    #[test]
    fn extra_adds_to_lists_and_to_nothing_else() {
        let mut settings = NixSettings::default();
        settings.set("extra-trusted-users", "alice");
        assert_eq!(settings.get("trusted-users"), "root alice");
        settings.set("trusted-users", "bob");
        settings.set("extra-trusted-users", "");
        assert_eq!(settings.get("trusted-users"), "bob");
        settings.set("extra-platforms", "i686-linux");
        assert_eq!(settings.get("extra-platforms"), "i686-linux");
        settings.set("extra-extra-platforms", "armv7l-linux");
        assert_eq!(settings.words("extra-platforms").collect::<Vec<_>>(), ["i686-linux", "armv7l-linux"]);
    }

    #[test]
    fn versions_are_read_from_what_nix_and_its_relatives_print() {
        assert_eq!(version("nix (Nix) 2.8.0\n"), Some((2, 8)));
        assert_eq!(version("nix (Nix) 2.36pre20260801_abc"), Some((2, 36)));
        assert_eq!(version("nix (Determinate Nix 3.5.2) 2.28.3"), Some((2, 28)));
        assert_eq!(version("nix (Lix, like Nix) 2.93.0\nmore"), Some((2, 93)));
        assert_eq!(version(""), None);
        assert_eq!(version("nix"), None);
    }
}
