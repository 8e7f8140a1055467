//! What kind of guest a machine holds, as data: how it is reached, by whom, which drives it has, how they are mounted at
//! each login, how a command is started in it and how it is shut down.
//!
//! A profile is TOML. Three come with the program: `windows`; `standin`, a Linux machine that plays it in tests; and `wine`, the
//! same with Wine in it, in which programs of Windows run. A person may give a file of their own. Whatever in a profile is a command line of the guest is a template, in which a word in
//! braces is replaced by a value that was found to be harmless first ([`Profile::mount`]).

mod names;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::shares::samba::Account;
use crate::shares::{EXCHANGE, STORE_SHARE, smb_options};

/// The longest profile that is read, in bytes.
const MAX_PROFILE: usize = 64 << 10;

/// The profiles that come with the program, by name.
const BUILT_IN: [(&str, &str); 3] = [
    ("windows", include_str!("windows.toml")),
    ("standin", include_str!("standin.toml")),
    ("wine", include_str!("wine.toml")),
];

/// What is wrong with a profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not one of ours.
    #[error(
        "there is no guest profile {0:?}: there are windows, standin and wine, and files of your own by their path"
    )]
    Unknown(String),
    /// Not TOML, or with something in it that is not known.
    #[error("the guest profile: {0}")]
    Toml(#[from] toml::de::Error),
    /// Far too long.
    #[error("a guest profile of {0} bytes is none: the limit is {MAX_PROFILE}")]
    TooLong(usize),
    /// Something in it that cannot be.
    #[error("the guest profile {profile:?}: {what} {value:?} {why}")]
    Value {
        /// Its name.
        profile: String,
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// A kind of guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// What runs in it.
    pub system: System,
    /// How it is reached.
    pub reach: Reach,
    /// What takes its command lines.
    pub shell: Shell,
    /// How a command is started.
    pub command: CommandStart,
    /// What installs it, if anything that we know does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub install: Option<Install>,
    /// How it is shut down.
    pub shutdown: Shutdown,
    /// How its clock is set.
    pub clock: Clock,
    /// How its drives are mounted.
    pub shares: ShareCommands,
    /// What is made of the files that it leaves.
    #[serde(default)]
    pub files: Files,
    /// Its drives: one table for all that asks.
    pub drives: Vec<Drive>,
}

/// What runs in a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// Windows, of any kind.
    Windows,
    /// Linux.
    Linux,
}

/// How a guest is reached over SSH.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Reach {
    /// Its address on the wire.
    pub address: Ipv4Addr,
    /// Its port.
    pub port: u16,
    /// As whom.
    pub user: String,
    /// What the port says first when it is ready.
    pub banner: String,
    /// How long a login may take from then on, in seconds.
    pub login_seconds: u32,
}

/// What takes a guest's command lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Shell {
    /// Its path in the guest.
    pub program: String,
    /// Its language.
    pub kind: Language,
}

/// A language of command lines, and the form in which a command is put into the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// POSIX: [`crate::exchange::sh`].
    Sh,
    /// PowerShell: [`crate::exchange::windows::files`].
    Powershell,
    /// cmd.exe: [`crate::exchange::windows::cmd`].
    Cmd,
}

/// How a command is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CommandStart {
    /// The whole line that is sent to the guest, for every command the same.
    pub start: String,
    /// The form of the command in the exchange.
    pub form: Language,
    /// The longest variable, with its name, that programs of the guest can be given, in bytes.
    #[serde(default = "longest_of_linux")]
    pub longest_variable: usize,
    /// The line that is run once in a guest that has started, when it can be logged into: what every command would wait for. A
    /// saved machine has it behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepare: Option<String>,
    /// The program that is given the name and the arguments of a program that the guest's shell cannot start by itself: one of
    /// Windows, in a guest that is none ([`Profile::command_for`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launcher: Option<String>,
    /// With what the names of variables begin that say the paths in others as programs of Windows call them; there are none
    /// without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows_names: Option<String>,
    /// Programs end their lines as DOS did: a log gets plain ones.
    #[serde(default)]
    pub dos_lines: bool,
}

fn longest_of_linux() -> usize {
    crate::exchange::sh::LONGEST_STRING
}

/// What a guest is installed from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Install {
    /// The file of its media, in the folder of images.
    pub media: String,
}

/// How a guest is shut down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Shutdown {
    /// The line that is sent to it.
    pub command: String,
    /// How long it may take, in seconds.
    pub seconds: u32,
}

/// How a guest's clock is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Clock {
    /// The line that is sent to it; `{seconds}` are those since 1970.
    pub set: String,
}

/// How a guest's drives are mounted, at each login. In the lines, `{letter}`, `{lower}` (the letter alone, small), `{share}`,
/// `{path}`, `{server}`, `{account}`, `{password}` and `{options}` (of mount.cifs) are replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ShareCommands {
    /// The line that mounts one.
    pub mount: String,
    /// The line that takes one away.
    pub unmount: String,
    /// The line that succeeds when the file `{probe}` can be read in one.
    pub probe: String,
}

/// What is made of the files that a guest leaves in the store, since SMB carries neither links nor the right to execute:
/// [`crate::pair::left`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Files {
    /// Of links.
    pub links: Links,
    /// Of programs.
    pub programs: Programs,
}

/// How the guest's SMB client writes a symbolic link down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Links {
    /// In no way.
    #[default]
    None,
    /// As a file of 1,067 bytes that begins with `XSym`: Linux (`mfsymlinks`) and macOS.
    Xsym,
}

/// Which files may be executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Programs {
    /// None.
    #[default]
    None,
    /// Those that begin as programs and scripts do, which is Cygwin's rule for file systems without rights.
    ByContent,
}

/// A drive of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Drive {
    /// Its letter, as `S:`.
    pub letter: String,
    /// The share behind it.
    pub share: String,
    /// Where it is for programs that know no letters.
    pub path: String,
    /// Nothing may be written.
    #[serde(default)]
    pub read_only: bool,
    /// The path of the store behind the share, as the guest names it, where the share is neither `nixstore` nor `xchg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
}

impl Profile {
    /// One of those that come with the program.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn built_in(name: &str) -> Result<Self, ProfileError> {
        let found = BUILT_IN.iter().find(|(known, _)| *known == name);
        Self::parse(found.ok_or_else(|| ProfileError::Unknown(name.to_owned()))?.1)
    }

    /// One of a person's own.
    ///
    /// # Errors
    /// If it is not TOML, has settings that there are not, or values that cannot be.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        if text.len() > MAX_PROFILE {
            return Err(ProfileError::TooLong(text.len()));
        }
        let profile: Self = toml::from_str(text)?;
        profile.check()?;
        Ok(profile)
    }

    /// With further drives, as a derivation may ask for them.
    ///
    /// # Errors
    /// If one has a letter, share or path that another has already.
    pub fn with_drives(mut self, drives: impl IntoIterator<Item = Drive>) -> Result<Self, ProfileError> {
        self.drives.extend(drives);
        self.check()?;
        Ok(self)
    }

    /// The directory behind a drive, of a server that has the store and the exchange at these.
    pub fn behind(&self, drive: &Drive, store: &Path, exchange: &Path) -> Option<PathBuf> {
        match (&drive.directory, drive.share.as_str()) {
            (Some(directory), _) => {
                let guests = &self.drives.iter().find(|drive| drive.share == STORE_SHARE)?.path;
                Some(store.join(directory.strip_prefix(guests).ok()?))
            }
            (None, STORE_SHARE) => Some(store.to_owned()),
            (None, EXCHANGE) => Some(exchange.to_owned()),
            (None, _) => None,
        }
    }

    /// That every value can be what it is for, and nothing is there twice.
    fn check(&self) -> Result<(), ProfileError> {
        let refuse = |what, value: &str, why| {
            Err(ProfileError::Value { profile: self.name.clone(), what, value: value.to_owned(), why })
        };
        let plain = |text: &str, more: &str| {
            !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric() || more.contains(letter))
        };
        if !plain(&self.name, "-_") {
            return refuse("name", &self.name, "is none: letters, digits, - and _");
        }
        if !plain(&self.reach.user, "-_.") {
            return refuse("user", &self.reach.user, "is no user's name");
        }
        let mut seen = BTreeSet::new();
        for drive in &self.drives {
            let letter = drive.letter.as_bytes();
            if !matches!(letter, [b'D'..=b'Z', b':']) {
                return refuse("drive", &drive.letter, "is no letter from D: to Z: with its colon");
            }
            if !plain(&drive.share, "_") || drive.share.eq_ignore_ascii_case("global") {
                return refuse("share", &drive.share, "is no share's name: letters, digits and _");
            }
            // It stands between single quotes in a command line of the guest.
            let behind = match drive.share.as_str() {
                STORE_SHARE | EXCHANGE => drive.directory.is_none(),
                _ => drive.directory.as_ref().is_some_and(|path| path.is_absolute() && is_straight(path)),
            };
            if !behind {
                return refuse(
                    "share",
                    &drive.share,
                    "is neither nixstore nor xchg, and has no directory of the store",
                );
            }
            if !drive.path.starts_with('/') || !plain(&drive.path, "/-_.+") || drive.path.contains("..") {
                return refuse("path", &drive.path, "is no plain absolute path");
            }
            for (what, value) in [
                ("drive", drive.letter.clone()),
                // Of one share, Windows and Samba see no difference between large and small letters.
                ("share", drive.share.to_ascii_lowercase()),
                ("path", drive.path.trim_end_matches('/').to_owned()),
            ] {
                if !seen.insert((what, value.clone())) {
                    return refuse(what, &value, "is in the table twice");
                }
            }
        }
        if let Some(install) = &self.install
            && (!plain(&install.media, "-_.") || install.media.starts_with('.'))
        {
            return refuse("media", &install.media, "is no plain name of a file");
        }
        if let Some(prefix) = &self.command.windows_names
            && !plain(prefix, "_")
        {
            return refuse("command.windows-names", prefix, "is no beginning of a variable's name");
        }
        let lines = [("command.prepare", &self.command.prepare), ("command.launcher", &self.command.launcher)];
        let lines = lines.iter().filter_map(|(what, line)| Some((*what, line.as_ref()?)));
        for (what, line) in lines.chain([
            ("command.start", &self.command.start),
            ("shutdown.command", &self.shutdown.command),
            ("clock.set", &self.clock.set),
            ("shares.mount", &self.shares.mount),
            ("shares.unmount", &self.shares.unmount),
            ("shares.probe", &self.shares.probe),
        ]) {
            if line.trim().is_empty() || line.contains(['\n', '\r', '\0']) {
                return refuse(what, line, "is not one line");
            }
            if let Some(word) = words(line).find(|word| !KNOWN.contains(word)) {
                return refuse(what, word, "is no word that is replaced in a line");
            }
        }
        Ok(())
    }

    /// The line that mounts a drive from the SMB server, as this account.
    pub fn mount(&self, drive: &Drive, server: Ipv4Addr, account: &Account) -> String {
        self.of_drive(&self.shares.mount, drive)
            .replace("{server}", &server.to_string())
            .replace("{account}", account.name())
            .replace("{password}", account.password())
            .replace("{options}", &self.options(drive, server, account))
    }

    fn options(&self, drive: &Drive, server: Ipv4Addr, account: &Account) -> String {
        let access = if drive.read_only { "ro" } else { "rw" };
        format!("{access},{}", smb_options(server, account, drive.read_only))
    }

    /// The line that takes a drive away.
    pub fn unmount(&self, drive: &Drive) -> String {
        self.of_drive(&self.shares.unmount, drive)
    }

    /// The line that succeeds when this file can be read on a drive. Of its name the letters that a path of the store can have are taken.
    pub fn probe(&self, drive: &Drive, file: &str) -> String {
        let file: String =
            file.chars().filter(|letter| letter.is_ascii_alphanumeric() || "-_.+=?".contains(*letter)).collect();
        self.of_drive(&self.shares.probe, drive).replace("{probe}", &file)
    }

    /// The line that sets the clock, to seconds since 1970.
    pub fn set_clock(&self, seconds: u64) -> String {
        self.clock.set.replace("{seconds}", &seconds.to_string())
    }

    /// How long a login may take once the port answers.
    pub fn login_limit(&self) -> Duration {
        Duration::from_secs(self.reach.login_seconds.into())
    }

    fn of_drive(&self, line: &str, drive: &Drive) -> String {
        line.replace("{letter}", &drive.letter)
            .replace("{lower}", &drive.letter[..1].to_ascii_lowercase())
            .replace("{share}", &drive.share)
            .replace("{path}", drive.path.trim_end_matches('/'))
    }
}

/// Without a way up.
fn is_straight(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// The words that are replaced in lines.
const KNOWN: [&str; 10] =
    ["letter", "lower", "share", "path", "server", "account", "password", "options", "probe", "seconds"];

/// The words in braces.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split('{').skip(1).filter_map(|rest| rest.split_once('}').map(|(word, _)| word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);

    #[test]
    fn all_profiles_are_whole_and_have_the_same_drives() {
        let [windows, standin, wine] = ["windows", "standin", "wine"].map(|name| Profile::built_in(name).unwrap());
        let letters = |profile: &Profile| {
            let letters = profile.drives.iter().map(|drive| (drive.letter.clone(), drive.share.clone()));
            letters.collect::<Vec<_>>()
        };
        assert_eq!(letters(&windows), letters(&standin));
        assert_eq!(letters(&windows), letters(&wine));
        assert_eq!(letters(&windows), [("S:".into(), "nixstore".into()), ("X:".into(), "xchg".into())]);
        for profile in [windows, standin, wine] {
            // What is written is read again.
            assert_eq!(Profile::parse(&toml::to_string(&profile).unwrap()).unwrap(), profile);
        }
        assert!(Profile::built_in("os2").unwrap_err().to_string().contains("windows, standin and wine"));
    }

    #[test]
    fn lines_are_filled_in_whole() {
        let account = Account::new("nixbld").unwrap();
        for name in ["windows", "standin", "wine"] {
            let profile = Profile::built_in(name).unwrap();
            for drive in &profile.drives {
                let lines = [
                    profile.mount(drive, SERVER, &account),
                    profile.unmount(drive),
                    profile.probe(drive, "nonce-1"),
                    profile.set_clock(1_262_304_000),
                ];
                for line in lines {
                    assert!(!line.contains(['{', '}']), "{line}");
                }
            }
        }
        let windows = Profile::built_in("windows").unwrap();
        let line = windows.mount(&windows.drives[0], SERVER, &account);
        assert!(line.starts_with(r"net use S: '\\192.168.0.2\nixstore' '"), "{line}");
        assert!(line.contains("'/cygdrive/s' '/nix/store'"), "{line}");
    }

    #[test]
    fn what_is_there_twice_is_refused_by_name() {
        let drive = |letter: &str, share: &str, path: &str| Drive {
            letter: letter.into(),
            share: share.into(),
            path: path.into(),
            read_only: false,
            directory: Some("/nix/store/a-tool".into()),
        };
        let told = |drive| Profile::built_in("standin").unwrap().with_drives([drive]).unwrap_err().to_string();
        assert!(told(drive("S:", "other", "/other")).contains("drive \"S:\" is in the table twice"));
        assert!(told(drive("Y:", "XCHG", "/other")).contains("share \"xchg\" is in the table twice"));
        assert!(told(drive("Y:", "other", "/xchg/")).contains("path \"/xchg\" is in the table twice"));
        assert!(told(drive("C:", "other", "/other")).contains("no letter from D: to Z:"));
        assert!(told(drive("Y:", "other", "/o'; rm -rf /")).contains("no plain absolute path"));
        assert!(told(drive("Y:", "a]\n[b", "/other")).contains("no share's name"));
        let with = |directory: Option<&str>| Drive {
            directory: directory.map(PathBuf::from),
            ..drive("Y:", "other", "/other")
        };
        assert!(told(with(None)).contains("no directory of the store"));
        assert!(told(with(Some("/nix/store/../../etc"))).contains("no directory of the store"));
        let profile = Profile::built_in("standin").unwrap().with_drives([with(Some("/nix/store/a-tool/x"))]).unwrap();
        let behind = |number: usize| profile.behind(&profile.drives[number], Path::new("/s"), Path::new("/x"));
        assert_eq!([behind(0), behind(1), behind(2)], ["/s", "/x", "/s/a-tool/x"].map(|path| Some(path.into())));
        assert_eq!(
            profile.behind(&with(Some("/etc")), Path::new("/s"), Path::new("/x")),
            None,
            "nothing but the store"
        );
    }

    #[test]
    fn a_setting_or_a_word_that_there_is_not_is_refused() {
        let text = include_str!("standin.toml");
        let told = |text: String| Profile::parse(&text).unwrap_err().to_string();
        assert!(told(text.replace("login-seconds", "login-second")).contains("login-second"));
        assert!(told(text.replace("{options}", "{option}")).contains("\"option\" is no word"));
        assert!(told(text.replace("poweroff -f", "")).contains("shutdown.command"));
        assert!(told(" ".repeat(MAX_PROFILE + 1)).contains("the limit"));
    }

    proptest! {
        #[test]
        fn foreign_text_is_an_error_and_nothing_worse(text: String) {
            prop_assert!(Profile::parse(&text).is_err());
        }
    }
}
