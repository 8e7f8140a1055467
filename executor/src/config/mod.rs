//! Settings: where each value comes from, and what it means.
//!
//! A value holds until a later source says another: the default, the system's file, the user's file, the files named by
//! `--config` in their order, the command line's `--option`. The system's file can name settings in a list `locked`: nobody
//! after it may give these another value.

pub mod settings;
pub mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use toml::{Spanned, Value};

pub use settings::{MaxJobs, Network, Sandbox, Settings};
use table::{SETTINGS, Setting};

/// Largest file that is read, in bytes.
const MAX_FILE_LEN: u64 = 1 << 20;

/// The key of the system's file that is no setting.
const LOCKED: &str = "locked";

/// The system's file.
pub const SYSTEM_FILE: &str = "/etc/anchorhold/anchorhold.toml";

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A file, and the line in it, from 1.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// The command line.
    Option,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.pad("default"),
            Self::File { path, line } => formatter.pad(&format!("{}:{line}", path.display())),
            Self::Option => formatter.pad("--option"),
        }
    }
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file refused to be read.
    #[error("cannot read the configuration ‘{}’: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is no TOML.
    #[error("{origin}: {message}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What the parser says.
        message: String,
    },
    /// There is no such setting.
    #[error("{origin}: there is no setting ‘{name}’{hint}; `anchorhold config show` prints all of them")]
    Unknown {
        /// Where.
        origin: Origin,
        /// As it was written.
        name: String,
        /// The nearest one that there is, beginning with a separator, or nothing.
        hint: String,
    },
    /// It does not take such a value.
    #[error("{origin}: ‘{name}’ {why}")]
    Value {
        /// Where.
        origin: Origin,
        /// The setting.
        name: String,
        /// What it wants.
        why: String,
    },
    /// The system does not let it be changed.
    #[error("{origin}: ‘{name}’ is locked by {by}: take it out here, or ask whoever looks after this machine")]
    Locked {
        /// Where it is tried.
        origin: Origin,
        /// The setting.
        name: &'static str,
        /// Where it is locked.
        by: Origin,
    },
}

/// What is read.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The system's file; it may be missing.
    pub system: Option<PathBuf>,
    /// The user's file; it may be missing.
    pub user: Option<PathBuf>,
    /// Files that were asked for, and must be there.
    pub files: Vec<PathBuf>,
    /// Names and values of the command line.
    pub options: Vec<(String, String)>,
}

impl Sources {
    /// The files of this machine and of who runs this program.
    pub fn standard() -> Self {
        // A directory that is not absolute is to be ignored, says the XDG base directory specification.
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let user = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
        Self {
            system: Some(SYSTEM_FILE.into()),
            user: user.map(|directory| directory.join("anchorhold/anchorhold.toml")),
            ..Self::default()
        }
    }
}

/// A setting with its value.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The setting.
    pub setting: &'static Setting,
    /// Its value, which its kind has accepted.
    pub value: Value,
    /// Who said so.
    pub origin: Origin,
    /// Where it is locked, if it is.
    pub locked: Option<Origin>,
}

/// All settings with their values.
#[derive(Debug, Clone)]
pub struct Config(BTreeMap<&'static str, Resolved>);

impl Config {
    /// The defaults.
    pub fn defaults() -> Self {
        let resolved = |setting: &'static Setting| Resolved {
            setting,
            value: setting.default_value(),
            origin: Origin::Default,
            locked: None,
        };
        Self(SETTINGS.iter().map(|setting| (setting.name, resolved(setting))).collect())
    }

    /// Reads all sources, the first error ends it.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut config = Self::defaults();
        if let Some(path) = &sources.system
            && let Some(text) = read(path, true)?
        {
            config.take_file(path, &text, true)?;
        }
        if let Some(path) = &sources.user
            && let Some(text) = read(path, true)?
        {
            config.take_file(path, &text, false)?;
        }
        for path in &sources.files {
            if let Some(text) = read(path, false)? {
                config.take_file(path, &text, false)?;
            }
        }
        for (name, text) in &sources.options {
            let setting = find(name, &Origin::Option)?;
            let value = setting.kind.parse(text).map_err(|why| ConfigError::Value {
                origin: Origin::Option,
                name: name.clone(),
                why,
            })?;
            config.set(setting, value, Origin::Option)?;
        }
        Ok(config)
    }

    /// All of them, in the order of the documentation.
    pub fn iter(&self) -> impl Iterator<Item = &Resolved> {
        SETTINGS.iter().filter_map(|setting| self.0.get(setting.name))
    }

    /// The values as the program uses them.
    pub fn settings(&self) -> Settings {
        Settings::new(self)
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).map(|resolved| &resolved.value)
    }

    fn take_file(&mut self, path: &Path, text: &str, system: bool) -> Result<(), ConfigError> {
        let at = |offset: usize| Origin::File { path: path.to_owned(), line: line_of(text, offset) };
        let table: BTreeMap<Spanned<String>, Value> = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            origin: at(error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', " "),
        })?;
        // In the order of the file, so that the first error is the first one there.
        let mut entries: Vec<_> = table.into_iter().map(|(key, value)| (at(key.span().start), key, value)).collect();
        entries.sort_by_key(|(_, key, _)| key.span().start);
        let mut locked = Vec::new();
        for (origin, key, value) in entries {
            let name = key.into_inner();
            if name == LOCKED {
                locked = locks(&origin, &value, system)?;
                continue;
            }
            let setting = find(&name, &origin)?;
            if let Err(why) = setting.kind.check(&value) {
                return Err(ConfigError::Value { origin, name, why });
            }
            self.set(setting, value, origin)?;
        }
        // The file that locks may say what it likes, before or after.
        for (name, by) in locked {
            if let Some(resolved) = self.0.get_mut(name) {
                resolved.locked = Some(by);
            }
        }
        Ok(())
    }

    fn set(&mut self, setting: &'static Setting, value: Value, origin: Origin) -> Result<(), ConfigError> {
        let Some(resolved) = self.0.get_mut(setting.name) else { return Ok(()) };
        match &resolved.locked {
            Some(_) if resolved.value == value => {}
            Some(by) => return Err(ConfigError::Locked { origin, name: setting.name, by: by.clone() }),
            None => (resolved.value, resolved.origin) = (value, origin),
        }
        Ok(())
    }
}

/// The names in a list `locked`.
fn locks(origin: &Origin, value: &Value, system: bool) -> Result<Vec<(&'static str, Origin)>, ConfigError> {
    let wrong = |why: String| ConfigError::Value { origin: origin.clone(), name: LOCKED.into(), why };
    if !system {
        return Err(wrong(format!("can be given by the system's file alone, {SYSTEM_FILE}")));
    }
    let names = value.as_array().ok_or_else(|| wrong("wants a list of settings".into()))?;
    let one = |name: &Value| {
        let name = name.as_str().ok_or_else(|| wrong("wants names of settings in its list".into()))?;
        Ok((find(name, origin)?.name, origin.clone()))
    };
    names.iter().map(one).collect()
}

/// The text of a file; nothing if it is missing and may be.
fn read(path: &Path, may_be_missing: bool) -> Result<Option<String>, ConfigError> {
    let refused = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Err(error) if may_be_missing && error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(refused)?,
    };
    let mut text = String::new();
    file.take(MAX_FILE_LEN + 1).read_to_string(&mut text).map_err(refused)?;
    if text.len() as u64 > MAX_FILE_LEN {
        return Err(refused(io::Error::other(format!("it is larger than {MAX_FILE_LEN} bytes"))));
    }
    Ok(Some(text))
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// Settings of Nix that people bring along, and what to say of them.
const FOREIGN: &[(&str, &str)] = &[
    ("sandbox-fallback", ": a room that cannot be made is an error, never replaced by a weaker one"),
    ("filter-syscalls", ": the system call filter is always on"),
    ("allow-new-privileges", ": no build is ever given new privileges"),
    ("use-cgroups", ": a room has a cgroup wherever one can be had"),
    ("auto-allocate-uids", ": each room has ids of its own unless ‘build-users-group’ is given"),
];

fn find(name: &str, origin: &Origin) -> Result<&'static Setting, ConfigError> {
    table::find(name).ok_or_else(|| {
        let told = FOREIGN.iter().find(|(foreign, _)| *foreign == name).map(|(_, told)| (*told).to_owned());
        let hint = told.or_else(|| nearest(name).map(|near| format!(": is ‘{near}’ meant?"))).unwrap_or_default();
        let name = name.chars().take(80).flat_map(char::escape_debug).collect();
        ConfigError::Unknown { origin: origin.clone(), name, hint }
    })
}

/// The setting whose name is most like `name`, if one is.
fn nearest(name: &str) -> Option<&'static str> {
    // Comparing takes the product of the lengths.
    if name.len() > 80 {
        return None;
    }
    let name = name.replace('_', "-");
    let likeness = |setting: &Setting| strsim::jaro_winkler(&name, setting.name);
    let best = SETTINGS.iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)))?;
    (likeness(best) > 0.8).then_some(best.name)
}

#[cfg(test)]
mod tests;
