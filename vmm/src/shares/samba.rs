//! Directories of the host's over SMB, by Samba.
//!
//! One account with a password of this run, instead of guest access, which current Windows refuses. Whoever comes by it
//! works as one user of the machine where smbd runs: in a controller root, in a room the build's own. Rights beyond that
//! user's there are none to give.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use md4::{Digest, Md4};

/// The file of the accounts, in the folder.
pub const ACCOUNTS: &str = "private/smbpasswd";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum SambaError {
    /// A word that Samba would not read as it is meant.
    #[error("{what} {value:?} cannot be in Samba's configuration: {why}")]
    Word {
        /// What it is.
        what: &'static str,
        /// As given.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two shares of one name.
    #[error("there are two shares {0:?}")]
    Twice(String),
    /// No password without chance.
    #[error("reading /dev/urandom for a password: {0}")]
    Chance(io::Error),
}

/// The account of a run.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    name: String,
    password: String,
}

/// Without the password: what is printed may end in a log.
impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Account {
    /// An account of this name, which the machine's /etc/passwd must have too, with a new password of 128 bits.
    ///
    /// # Errors
    /// If the name is none, or there is no chance to be had.
    pub fn new(name: &str) -> Result<Self, SambaError> {
        let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if name.is_empty() || name.len() > 20 || !plain {
            let why = "it wants 1 to 20 small letters, digits and underscores";
            return Err(SambaError::Word { what: "the account", value: name.into(), why });
        }
        let mut chance = [0; 16];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut chance))
            .map_err(SambaError::Chance)?;
        let password = chance.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { name: name.into(), password })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its password, of letters and digits alone.
    pub fn password(&self) -> &str {
        &self.password
    }
}

/// A directory that is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// As clients call it.
    pub name: String,
    /// The directory, where smbd runs.
    pub path: PathBuf,
    /// Nothing may be written.
    pub read_only: bool,
}

/// A configuration of smbd, all of whose files are in one folder.
#[derive(Clone, Debug)]
pub struct Samba {
    /// A folder of its own, in memory, where smbd runs. Nothing of Samba's is anywhere else.
    pub folder: PathBuf,
    /// Who may come in.
    pub account: Account,
    /// What is exported.
    pub shares: Vec<Share>,
}

/// A file to be written before smbd starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Where.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// What is in it.
    pub content: Vec<u8>,
}

impl Samba {
    /// The path of the configuration.
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("smb.conf")
    }

    /// The arguments with which smbd stays in the foreground and tells what it does on its standard output.
    pub fn arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments: Vec<std::ffi::OsString> =
            ["--foreground", "--no-process-group", "--debug-stdout", "--configfile"].map(Into::into).to_vec();
        arguments.push(self.configuration().into());
        arguments
    }

    /// The directories that smbd wants to find.
    pub fn directories(&self) -> Vec<PathBuf> {
        ["private", "lock", "state", "cache", "pid", "ncalrpc"].map(|name| self.folder.join(name)).to_vec()
    }

    /// The files that smbd wants to find.
    ///
    /// # Errors
    /// If a path or a name would be read as something else.
    pub fn files(&self) -> Result<Vec<File>, SambaError> {
        let folder = word("the folder", &self.folder)?;
        let name = &self.account.name;
        let mut text = format!(
            "[global]\n\
             server role = standalone server\n\
             workgroup = ANCHORHOLD\n\
             smb ports = 445\n\
             disable netbios = yes\n\
             server min protocol = SMB2_10\n\
             map to guest = never\n\
             valid users = {name}\n\
             force user = {name}\n\
             passdb backend = smbpasswd:{folder}/{ACCOUNTS}\n\
             load printers = no\n\
             printcap name = /dev/null\n\
             disable spoolss = yes\n\
             rpc start on demand helpers = no\n\
             store dos attributes = no\n\
             map archive = no\n\
             ea support = no\n\
             unix extensions = no\n\
             wide links = no\n\
             dos charset = ASCII\n\
             log level = 1\n\
             max log size = 1000\n"
        );
        for (option, name) in [
            ("private dir", "private"),
            ("lock directory", "lock"),
            ("state directory", "state"),
            ("cache directory", "cache"),
            ("pid directory", "pid"),
            ("ncalrpc dir", "ncalrpc"),
        ] {
            text.push_str(&format!("{option} = {folder}/{name}\n"));
        }
        let mut names = std::collections::BTreeSet::new();
        for share in &self.shares {
            let name = share.name.to_ascii_lowercase();
            if name.is_empty()
                || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                || name == "global"
            {
                let why = "it wants letters, digits and underscores";
                return Err(SambaError::Word { what: "the share", value: name, why });
            }
            if !names.insert(name.clone()) {
                return Err(SambaError::Twice(name));
            }
            let (path, read_only) = (word("the path", &share.path)?, if share.read_only { "yes" } else { "no" });
            text.push_str(&format!("[{name}]\npath = {path}\nread only = {read_only}\n"));
            if share.read_only {
                // Nobody changes it, so that a client may keep what it has read, and nothing has to be asked about it.
                text.push_str("oplocks = yes\nkernel oplocks = no\nlocking = no\n");
            } else {
                // A client that may keep what was written reports lost writes as done when there is no room for them.
                text.push_str("oplocks = no\n");
            }
        }
        let hash = nt_hash(&self.account.password);
        // smbpasswd(5): name, uid, no LANMAN hash, the NT hash, a user account, when the password was set.
        let passwords = format!("{name}:0:{}:{hash}:[U          ]:LCT-00000001:\n", "X".repeat(32));
        Ok(vec![
            File { path: self.configuration(), mode: 0o600, content: text.into_bytes() },
            File { path: self.folder.join(ACCOUNTS), mode: 0o600, content: passwords.into_bytes() },
        ])
    }
}

/// A path as Samba reads it: it substitutes `%`, and a line is a line.
fn word(what: &'static str, path: &Path) -> Result<String, SambaError> {
    let refuse = |why| Err(SambaError::Word { what, value: path.to_string_lossy().into_owned(), why });
    match path.to_str() {
        None => refuse("it is not UTF-8"),
        Some(_) if !path.is_absolute() => refuse("it is not absolute"),
        Some(text) if text.contains(|letter: char| letter.is_control() || "%\"';#".contains(letter)) => {
            refuse("it has a line's end, a percent sign, a quote or a sign of a comment in it")
        }
        Some(text) if text.trim() != text => refuse("it begins or ends with a space"),
        Some(text) => Ok(text.to_owned()),
    }
}

/// MD4 of the password in UTF-16, which is all that NTLM knows of it (MS-NLMP 3.3.2). A password of 128 bits that lives as
/// long as a build is not guessed from it.
fn nt_hash(password: &str) -> String {
    let wide: Vec<u8> = password.encode_utf16().flat_map(u16::to_le_bytes).collect();
    Md4::digest(&wide).iter().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samba(path: &str) -> Samba {
        Samba {
            folder: "/run/samba".into(),
            account: Account { name: "nixbld".into(), password: "password".into() },
            shares: vec![
                Share { name: "nixstore".into(), path: path.into(), read_only: true },
                Share { name: "xchg".into(), path: "/xchg".into(), read_only: false },
            ],
        }
    }

    #[test]
    fn the_account_is_the_only_way_in() {
        let files = samba("/nix/store").files().unwrap();
        let text = String::from_utf8(files[0].content.clone()).unwrap();
        for line in ["map to guest = never", "force user = nixbld", "[nixstore]\npath = /nix/store\nread only = yes"] {
            assert!(text.contains(line), "{text}");
        }
        assert!(!text.contains("guest ok"), "{text}");
        assert_eq!(files[1].mode, 0o600);
        // The well-known hash of the well-known password.
        let passwords = String::from_utf8(files[1].content.clone()).unwrap();
        assert!(passwords.contains(":8846F7EAEE8FB117AD06BDD830B7586C:"), "{passwords}");
    }

    #[test]
    fn words_that_samba_would_read_otherwise_are_refused() {
        for path in ["/nix/%U", "/nix\nguest ok = yes", "relative", "/a;b", "/a "] {
            assert!(samba(path).files().is_err(), "{path:?}");
        }
        let mut twice = samba("/nix/store");
        twice.shares[1].name = "NixStore".into();
        assert!(matches!(twice.files(), Err(SambaError::Twice(_))));
        assert!(Account::new("a b").is_err());
    }

    #[test]
    fn passwords_are_of_one_run_and_not_printed() {
        let (one, two) = (Account::new("nixbld").unwrap(), Account::new("nixbld").unwrap());
        assert_ne!(one.password(), two.password());
        assert!(!format!("{one:?}").contains(one.password()));
    }
}
