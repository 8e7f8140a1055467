//! Nix's configuration files, read as Nix reads them.
//!
//! A line is a comment behind `#`, and else words with blanks between them: `NAME = VALUE...`, `include FILE`, or `!include FILE`, which
//! may be missing. Source: `src/libutil/config.cc` (later `configuration.cc`) and `src/libstore/globals.cc` of Nix.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::NixSettings;

/// How long a file may be, in bytes.
const LONGEST: u64 = 1 << 20;
/// How deep files may include each other.
const DEEPEST: usize = 16;
/// How many files are read altogether: they may include each other many times.
const MOST: usize = 256;

/// Why Nix's settings cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file that is there, or has to be, cannot be read.
    #[error("cannot read {}, which has settings of Nix: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// Nix does not start over such a line.
    #[error("{place}: line {line} is not `NAME = VALUE` with blanks around the sign, nor `include FILE`")]
    Line {
        /// The file, or the variable.
        place: String,
        /// Its number, from 1.
        line: usize,
    },
    /// Files that include each other, most likely in a circle.
    #[error(
        "{place}: more than {DEEPEST} files include each other, or more than {MOST} are included: look for a circle"
    )]
    Include {
        /// Where it was noticed.
        place: String,
    },
}

/// Where Nix would look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The files, in the order in which they are read. The first may be missing, and so may the others.
    pub files: Vec<PathBuf>,
    /// `$NIX_CONFIG`, which is read last.
    pub last: Option<String>,
}

impl Places {
    /// Those that this environment names.
    pub fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let mut files = vec![configuration_directory(&variable).join("nix.conf")];
        if let Some(list) = variable("NIX_USER_CONF_FILES") {
            // The first named wins, so it is read last.
            let mut named: Vec<PathBuf> = std::env::split_paths(&list).filter(|one| one.is_absolute()).collect();
            named.reverse();
            files.extend(named);
        } else {
            let home = path("HOME").map(|home| home.join(".config"));
            let system = variable("XDG_CONFIG_DIRS").unwrap_or_else(|| "/etc/xdg".into());
            let mut named: Vec<PathBuf> = path("XDG_CONFIG_HOME").or(home).into_iter().collect();
            named.extend(std::env::split_paths(&system).filter(|one| one.is_absolute()));
            files.extend(named.iter().rev().map(|directory| directory.join("nix/nix.conf")));
        }
        let last = variable("NIX_CONFIG").map(|text| text.to_string_lossy().into_owned());
        Self { files, last }
    }

    /// Reads all of them.
    ///
    /// # Errors
    /// Those for which Nix does not start either, and files that are not finite.
    pub fn read(&self) -> Result<NixSettings, FilesError> {
        let mut reader = Reader { settings: NixSettings::default(), files: 0 };
        for path in &self.files {
            reader.file(path, 0, true)?;
        }
        if let Some(text) = &self.last {
            reader.text(text, "NIX_CONFIG", Path::new("/"), 0)?;
        }
        Ok(reader.settings)
    }
}

/// Where the system's `nix.conf` is, and `machines` beside it.
pub fn configuration_directory(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    variable("NIX_CONF_DIR").filter(|value| !value.is_empty()).map_or_else(|| "/etc/nix".into(), PathBuf::from)
}

struct Reader {
    settings: NixSettings,
    files: usize,
}

impl Reader {
    fn file(&mut self, path: &Path, depth: usize, may_be_missing: bool) -> Result<(), FilesError> {
        self.files += 1;
        if depth > DEEPEST || self.files > MOST {
            return Err(FilesError::Include { place: path.display().to_string() });
        }
        let text = match contents(path) {
            Ok(text) => text,
            Err(error) if may_be_missing && is_absence(&error) => return Ok(()),
            Err(error) => return Err(FilesError::Read { path: path.to_owned(), error }),
        };
        let directory = path.parent().unwrap_or(Path::new("/"));
        self.text(&text, &path.display().to_string(), directory, depth)
    }

    fn text(&mut self, text: &str, place: &str, directory: &Path, depth: usize) -> Result<(), FilesError> {
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words[..] {
                [] => {}
                [include @ ("include" | "!include"), file] => {
                    self.file(&directory.join(file), depth + 1, include == "!include")?;
                }
                [name, "=", ref value @ ..] => self.settings.set(name, &value.join(" ")),
                _ => return Err(FilesError::Line { place: place.to_owned(), line: index + 1 }),
            }
        }
        Ok(())
    }
}

/// What a file of settings has in it: a regular one of a bounded length. What is not UTF-8 can only be in values, and is replaced.
pub(super) fn contents(path: &Path) -> io::Result<String> {
    use std::os::unix::fs::OpenOptionsExt;
    // A FIFO would otherwise be waited for.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = std::fs::File::options().read(true).custom_flags(nonblocking).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {LONGEST} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn is_absence(error: &io::Error) -> bool {
    // Somebody else's home is as good as empty, as it is for Nix.
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<NixSettings, FilesError> {
        Places { files: Vec::new(), last: Some(text.to_owned()) }.read()
    }

    #[test]
    fn includes_comments_and_order_are_nixs() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(
            at("nix.conf"),
            "system = a # b\nextra-trusted-users = x\ninclude more.conf\n!include none.conf\n\tcores=\n",
        )
        .unwrap();
        let places = Places { files: vec![at("nix.conf")], last: None };
        assert!(matches!(places.read(), Err(FilesError::Read { .. })), "more.conf is missing");
        fs::write(at("more.conf"), "extra-trusted-users = y z\nsystem = from-more\n").unwrap();
        assert!(matches!(places.read(), Err(FilesError::Line { line: 5, .. })));
        fs::write(at("nix.conf"), "system = a # b\nextra-trusted-users = x\ninclude more.conf\n!include none.conf\n")
            .unwrap();
        let settings = places.read().unwrap();
        assert_eq!((settings.get("system"), settings.get("trusted-users")), ("from-more", "root x y z"));
        let settings = Places { last: Some("system = last\nbuilders =\n".into()), ..places }.read().unwrap();
        assert_eq!(settings.get("system"), "last");
    }

    #[test]
    fn a_circle_and_a_file_without_end_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nix.conf");
        fs::write(&path, "include nix.conf\n").unwrap();
        let places = Places { files: vec![path.clone()], last: None };
        assert!(matches!(places.read(), Err(FilesError::Include { .. })));
        // Two at every level would be many before the depth is reached.
        fs::write(&path, "!include nix.conf\n!include nix.conf\n").unwrap();
        assert!(matches!(places.read(), Err(FilesError::Include { .. })));
        fs::write(&path, "# ".repeat(600_000)).unwrap();
        assert!(places.read().unwrap_err().to_string().contains("longer than"));
        assert!(read("include /dev/zero").unwrap_err().to_string().contains("regular"));
    }

    #[test]
    fn the_environment_names_the_files() {
        let environment = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        };
        let files = |pairs| Places::of(environment(pairs)).files;
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(
            files(&[("HOME", "/home/a")]),
            paths(&["/etc/nix/nix.conf", "/etc/xdg/nix/nix.conf", "/home/a/.config/nix/nix.conf"])
        );
        assert_eq!(
            files(&[("HOME", "/home/a"), ("NIX_CONF_DIR", "/c"), ("NIX_USER_CONF_FILES", "/x:/y")]),
            paths(&["/c/nix.conf", "/y", "/x"])
        );
        assert_eq!(files(&[("NIX_USER_CONF_FILES", "")]), paths(&["/etc/nix/nix.conf"]));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(include |!include |extra-|a|=|#| |\t|\n|\\PC){0,60}") {
            let _ = read(&text);
        }

        #[test]
        fn what_is_set_is_read(name in "[a-z][a-z-]{0,12}", value in "[!-\"$-~]{1,8}( [!-\"$-~]{1,8}){0,3}") {
            prop_assume!(name != "include" && !name.starts_with("extra-"));
            let settings = read(&format!(" {name}  =\t{value} # x\n")).unwrap();
            prop_assert_eq!(settings.get(&name), value);
        }
    }
}
