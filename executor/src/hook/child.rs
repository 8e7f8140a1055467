//! Nix's own helper for remote builds, as our child.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use super::{Settings, carried};
use crate::wire::Message;

/// Where Debian has the helper.
const LIBEXEC: &str = "/usr/libexec/nix/build-remote";

/// The word by which a Nix without a helper in libexec becomes one (2.10 and later).
const WORD: &str = "__build-remote";

/// Why the helper does not do the work.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// There is none.
    #[error("cannot find Nix's build-remote: there is no nix in PATH, and no {LIBEXEC}; name it with --build-remote")]
    NotFound,
    /// It cannot be run.
    #[error("cannot run {program}: {error}")]
    Run {
        /// The program.
        program: String,
        /// What the kernel said.
        error: io::Error,
    },
}

/// The helper: a program, and what it is to be told before all else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRemote {
    program: PathBuf,
    word: Option<&'static str>,
}

impl BuildRemote {
    /// This program, whatever it is: a helper, or a `nix` that is one by a word.
    pub fn named(program: PathBuf) -> Self {
        let word = (program.file_name() == Some(OsStr::new("nix"))).then_some(WORD);
        Self { program, word }
    }

    /// That of the Nix that has started us, else of the first `nix` in PATH, else Debian's.
    ///
    /// # Errors
    /// There is none.
    pub fn find() -> Result<Self, ChildError> {
        // The Nix that is running understands its own helper best: an upgrade may have put another one into PATH.
        let parent = rustix::process::getppid().map(|pid| format!("/proc/{}/exe", pid.as_raw_nonzero()));
        let parent = parent.and_then(|link| std::fs::read_link(link).ok());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let in_path = std::env::split_paths(&path).map(|directory| directory.join("nix"));
        let nixes = parent.into_iter().filter(|exe| exe.file_name() == Some(OsStr::new("nix"))).chain(in_path);
        Self::among(nixes.filter(|nix| nix.is_absolute())).ok_or(ChildError::NotFound)
    }

    fn among(nixes: impl Iterator<Item = PathBuf>) -> Option<Self> {
        let nix = nixes.into_iter().filter_map(|nix| nix.canonicalize().ok()).find(|nix| nix.is_file());
        let beside = nix.as_deref().and_then(libexec).into_iter();
        let debian = nix.is_none().then(|| PathBuf::from(LIBEXEC));
        beside.chain(debian).find(|helper| helper.exists()).map(Self::named).or_else(|| {
            // Its name need not be ‘nix’ any more, where it is a link's target.
            nix.map(|program| Self { program, word: Some(WORD) })
        })
    }

    /// Runs it to its end: `settings` first, then what comes from `input`. It inherits our standard output and error, and
    /// every descriptor that is not marked to be closed: 4 and 5 are the pipe for the builder's log.
    ///
    /// # Errors
    /// It cannot be started or waited for.
    pub fn run(
        &self,
        verbosity: &OsStr,
        settings: &Settings,
        environment: &[(&str, OsString)],
        mut input: impl Read + Send + 'static,
    ) -> Result<ExitStatus, ChildError> {
        let failed = |error| ChildError::Run { program: self.program.display().to_string(), error };
        let mut child = Command::new(&self.program)
            .args(self.word)
            .arg(verbosity)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut to) = child.stdin.take() {
            let mut first = Message::new();
            settings.write(&mut first);
            // It ends with our process: when the helper has ended, nobody reads what Nix may still say.
            std::thread::Builder::new()
                .name("input".to_owned())
                .spawn(move || to.write_all(&first.0).and_then(|()| io::copy(&mut input, &mut to)).map(drop))
                .map_err(failed)?;
        }
        child.wait().map_err(failed)
    }
}

/// The helper in the package that has this `nix`: beside its `bin`.
fn libexec(nix: &Path) -> Option<PathBuf> {
    Some(nix.parent()?.parent()?.join("libexec/nix/build-remote"))
}

/// The environment of the helper beyond our own: what is carried to the endpoint, and the experimental features. Newer Nixes
/// keep these apart from the settings that a hook is sent and reads, so that those of a command line would be lost.
pub fn environment(settings: &Settings, carried: &str) -> Vec<(&'static str, OsString)> {
    let mut variables = vec![(carried::VARIABLE, OsString::from(carried))];
    if let Some(features) = settings.get("experimental-features").filter(|words| !words.trim().is_empty()) {
        let mut config = std::env::var_os("NIX_CONFIG").unwrap_or_default();
        config.push(format!("\nextra-experimental-features = {}\n", features.replace(['\n', '\r'], " ")));
        variables.push(("NIX_CONFIG", config));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }

    #[test]
    fn a_helper_beside_nix_is_taken_and_else_nix_itself() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let (old, new) = (root.join("old/bin/nix"), root.join("new/bin/nix"));
        program(&old);
        program(&new);
        let helper = root.join("old/libexec/nix/build-remote");
        program(&helper);
        let among = |nixes: &[&Path]| BuildRemote::among(nixes.iter().map(|path| path.to_path_buf()));
        assert_eq!(among(&[&old, &new]), Some(BuildRemote { program: helper, word: None }));
        let gone = root.join("gone/bin/nix");
        assert_eq!(among(&[&gone, &new]), Some(BuildRemote { program: new, word: Some(WORD) }));
    }

    #[test]
    fn a_nix_that_is_named_is_told_what_to_be() {
        assert_eq!(BuildRemote::named("/a/bin/nix".into()).word, Some(WORD));
        assert_eq!(BuildRemote::named("/a/build-remote".into()).word, None);
    }

    #[test]
    fn features_of_a_command_line_reach_the_helper() {
        let mut settings = Settings::default();
        assert_eq!(environment(&settings, "{}").len(), 1);
        settings.set("experimental-features", "nix-command flakes");
        let variables = environment(&settings, "{}");
        let config = variables.iter().find(|(name, _)| *name == "NIX_CONFIG").unwrap();
        assert!(config.1.to_str().unwrap().ends_with("\nextra-experimental-features = nix-command flakes\n"));
    }
}
