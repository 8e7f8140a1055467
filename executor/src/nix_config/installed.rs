//! The Nix that is on this machine, asked for its settings.
//!
//! With a daemon, what counts is how the daemon is configured: its files and its environment, not those of whoever asks us. They are
//! taken from the daemon's own process where we may look at it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anchorhold_sandbox::diagnosis::Verdict;
use serde::Serialize;

use super::files::{Places, configuration_directory};
use super::judge::{Door, Facts, Finding, judge};
use super::{NixSettings, machines, version};

/// The variables by which Nix finds its settings.
const VARIABLES: [&str; 3] = ["NIX_CONF_DIR", "NIX_USER_CONF_FILES", "NIX_CONFIG"];
/// More of them, by which it finds those of its user.
const USER_VARIABLES: [&str; 3] = ["HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"];

/// What is known of the Nix on this machine.
#[derive(Clone, Debug, Serialize)]
pub struct NixReport {
    /// Whether there is one: a `nix` in PATH, or a `nix.conf` where it would be.
    pub present: bool,
    /// The program that was asked.
    pub program: Option<PathBuf>,
    /// What it calls itself.
    pub version: Option<String>,
    /// The doors that are in force, the strongest first.
    pub doors: Vec<Door>,
    /// Everything that was found.
    pub diagnoses: Vec<Finding>,
}

/// Finds it, asks it, and judges what it says. Changes nothing, and opens no store.
pub fn examine() -> NixReport {
    let own = |name: &str| std::env::var_os(name);
    let program = in_path(own("PATH").as_deref());
    let (environment, of) = chosen_environment(own);
    let variable = |name: &str| match &environment {
        Environment::Own => own(name),
        Environment::WithoutFilesOfUsers if name == "NIX_USER_CONF_FILES" => Some(OsString::new()),
        Environment::WithoutFilesOfUsers => own(name),
        Environment::Daemon(pairs) => pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()),
    };
    let directory = configuration_directory(variable);
    let mut report = NixReport { present: true, program, version: None, doors: Vec::new(), diagnoses: Vec::new() };
    if report.program.is_none() && !directory.join("nix.conf").exists() {
        report.present = false;
        return report;
    }
    // Some do not even tell their version where the configuration has a mistake.
    let blank = |name: &str| match name {
        "NIX_CONF_DIR" => Some("/proc/self/nowhere".into()),
        "NIX_USER_CONF_FILES" => Some(OsString::new()),
        // Nix insists on a home, though it reads nothing there now.
        "HOME" => own(name),
        _ => None,
    };
    let told = report.program.as_deref().map(|program| ask(program, &["--version"], blank));
    let why_not = match &told {
        None => "there is no program nix in PATH".to_owned(),
        Some(Err(why)) => format!("it cannot be asked ({why})"),
        Some(Ok(text)) => format!("it cannot be asked (it calls itself ‘{text}’)"),
    };
    report.version = told.and_then(Result::ok);
    let number = report.version.as_deref().and_then(version);
    let asked = match (&report.program, number) {
        (Some(program), Some(number)) => {
            let command: &[&str] = if number >= (2, 20) { &["config", "show"] } else { &["show-config"] };
            let arguments = [&["--extra-experimental-features", "nix-command"], command].concat();
            Some(ask(program, &arguments, variable).map(|text| NixSettings::shown(&text)))
        }
        _ => None,
    };
    let (settings, how) = match asked {
        Some(Ok(mut settings)) => {
            // A Nix that does not know this setting, or has the feature for it off, does not show it.
            const EXPERIMENTAL: &str = "external-builders";
            if settings.get(EXPERIMENTAL).is_empty()
                && let Ok(written) = Places::of(variable).read()
            {
                settings.set(EXPERIMENTAL, written.get(EXPERIMENTAL));
            }
            (Ok(settings), "it was asked".to_owned())
        }
        Some(Err(why)) => (Err(why), String::new()),
        None => {
            let read = Places::of(variable).read().map_err(|error| error.to_string());
            (read, format!("{why_not}, so {} was read", directory.join("nix.conf").display()))
        }
    };
    let name = report.version.clone().unwrap_or_else(|| "a Nix".to_owned());
    let settings = match settings {
        Ok(settings) => settings,
        Err(why) => {
            let found = format!("{name} does not start with this configuration: {why}");
            report.diagnoses.push(Finding::new("nix", Verdict::Missing, found).fix("mend what it names"));
            return report;
        }
    };
    report.diagnoses.push(Finding::new("nix", Verdict::Info, format!("{name}: {how}{of}")));
    let named = match settings.get("builders") {
        // What we read ourselves has no default for it.
        "" if report.program.is_none() => format!("@{}", directory.join("machines").display()),
        value => value.to_owned(),
    };
    let machines = machines::addresses(&named);
    let facts = Facts { settings: &settings, version: number, machines, is_executable };
    let (doors, findings) = judge(&facts);
    report.doors = doors;
    report.diagnoses.extend(findings);
    report
}

/// Whose environment counts.
enum Environment {
    Own,
    WithoutFilesOfUsers,
    Daemon(Vec<(OsString, OsString)>),
}

/// Whose environment counts, and how to say so.
fn chosen_environment(own: impl Fn(&str) -> Option<OsString>) -> (Environment, &'static str) {
    // Whoever names a configuration asks about that one.
    if VARIABLES.iter().any(|name| own(name).is_some()) {
        return (Environment::Own, " with the configuration that the environment names");
    }
    match daemon() {
        Daemon::None => (Environment::Own, ""),
        Daemon::Seen(pairs) => (Environment::Daemon(pairs), " with the environment of the daemon that runs"),
        Daemon::Hidden => {
            (Environment::WithoutFilesOfUsers, "; a daemon runs, and only root can see what its environment adds")
        }
    }
}

enum Daemon {
    None,
    Seen(Vec<(OsString, OsString)>),
    Hidden,
}

/// The environment of a nix-daemon of root's.
fn daemon() -> Daemon {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Daemon::None };
    for process in processes.flatten() {
        let numbered = process.file_name().as_bytes().iter().all(u8::is_ascii_digit);
        let roots = || process.metadata().is_ok_and(|found| found.uid() == 0);
        if !numbered || !roots() || !std::fs::read(process.path().join("cmdline")).is_ok_and(|line| is_daemon(&line)) {
            continue;
        }
        return match std::fs::read(process.path().join("environ")) {
            Ok(environment) => Daemon::Seen(pairs(&environment)),
            Err(_) => Daemon::Hidden,
        };
    }
    Daemon::None
}

fn is_daemon(command_line: &[u8]) -> bool {
    let mut words = command_line.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let name = words.next().and_then(|program| Path::new(program).file_name());
    name == Some(OsStr::new("nix-daemon")) || (name == Some(OsStr::new("nix")) && words.any(|word| word == "daemon"))
}

fn pairs(environment: &[u8]) -> Vec<(OsString, OsString)> {
    let entries = environment.split(|byte| *byte == 0);
    entries
        .filter_map(|entry| {
            let equals = entry.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (entry.get(..equals)?, entry.get(equals + 1..)?);
            Some((OsStr::from_bytes(name).to_owned(), OsStr::from_bytes(value).to_owned()))
        })
        .collect()
}

fn in_path(path: Option<&OsStr>) -> Option<PathBuf> {
    let directories = std::env::split_paths(path?).filter(|directory| directory.is_absolute());
    directories.map(|directory| directory.join("nix")).find(|program| is_executable(program))
}

fn is_executable(program: &Path) -> bool {
    program.is_absolute() && std::fs::metadata(program).is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0)
}

/// What a nix prints, run with these settings; or its complaint.
fn ask(program: &Path, arguments: &[&str], variable: impl Fn(&str) -> Option<OsString>) -> Result<String, String> {
    let mut command = Command::new(program);
    for name in VARIABLES.iter().chain(&USER_VARIABLES) {
        match variable(name) {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let error = said.lines().find(|line| line.contains("error:")).or(said.lines().next()).unwrap_or_default();
    let printable: String = error.chars().filter(|c| !c.is_control()).take(400).collect();
    Err(printable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_are_known_by_their_command_lines() {
        assert!(is_daemon(b"/usr/bin/nix-daemon\0"));
        assert!(is_daemon(b"nix-daemon\0--daemon\0"));
        assert!(is_daemon(b"/nix/store/x/bin/nix\0--extra-experimental-features\0nix-command\0daemon\0"));
        assert!(!is_daemon(b"/usr/bin/nix\0build\0"));
        assert!(!is_daemon(b"vi\0nix-daemon\0"));
        assert!(!is_daemon(b""));
    }

    #[test]
    fn an_environment_is_taken_apart() {
        let found = pairs(b"A=b=c\0NIX_CONFIG=system = x\ny = z\0odd\0");
        let text = |name: &str| found.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_str().unwrap());
        assert_eq!((text("A"), text("NIX_CONFIG"), found.len()), (Some("b=c"), Some("system = x\ny = z"), 2));
    }
}
