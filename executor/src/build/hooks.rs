//! The operator's programs around a build, by the rules of Nix's settings of the same names.
//!
//! Both run as who builds, outside of any room, and are trusted: only what they say is looked at before it is used.
//!
//! Source: `pre-build-hook` and `post-build-hook` in `src/libstore/globals.hh`, `src/libstore/build/` of Nix.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use super::room::SandboxPath;

/// Most bytes that a hook may say to us, and the longest of its lines.
const MOST: u64 = 1 << 20;

/// The programs, as far as there are any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Run before each build with the derivation's path; may show the build further paths.
    pub pre_build: Option<PathBuf>,
    /// Run after each build that ended well, when its outputs are registered.
    pub post_build: Option<PathBuf>,
}

/// Why a hook stops a build.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It cannot be run or read.
    #[error("running the hook {}: {error}", .hook.display())]
    System {
        /// The program.
        hook: PathBuf,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// It failed.
    #[error("the hook {} failed: {status}; what it said is above", .hook.display())]
    Failed {
        /// The program.
        hook: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
    /// It said something that is not understood, so nothing that it said is done.
    #[error(
        "the hook {} said ‘{}’, {why}: it may say ‘extra-sandbox-paths’, then a path a line (INSIDE, INSIDE=OUTSIDE, ? for one that may be missing), then an empty line",
        .hook.display(), .line.escape_debug()
    )]
    Unknown {
        /// The program.
        hook: PathBuf,
        /// Its line.
        line: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Hooks {
    /// Asks the hook before a build which further paths it is to see. `tell` is given what the hook writes to standard error.
    ///
    /// # Errors
    /// The hook cannot be run, fails, or says what is not understood.
    pub fn before(
        &self,
        derivation: &str,
        real_store: &Path,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Vec<SandboxPath>, HookError> {
        let Some(hook) = &self.pre_build else { return Ok(Vec::new()) };
        let system = |error| HookError::System { hook: hook.clone(), error };
        let mut child = Command::new(hook)
            .arg(derivation)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(system)?;
        let stdout = child.stdout.take();
        // Beside each other: a hook that fills one pipe while we read the other would stand still.
        let (said, complaints) = std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut text = Vec::new();
                stdout.map_or(Ok(0), |pipe| pipe.take(MOST).read_to_end(&mut text)).map(|_| text)
            });
            let complaints = child.stderr.take().map_or(Ok(()), |pipe| each_line(pipe, tell));
            (reader.join().unwrap_or_else(|_| Ok(Vec::new())), complaints)
        });
        let status = child.wait().map_err(system)?;
        let said = said.map_err(system)?;
        complaints.map_err(system)?;
        if !status.success() {
            return Err(HookError::Failed { hook: hook.clone(), status });
        }
        parse(hook, &String::from_utf8_lossy(&said), real_store)
    }

    /// Tells the hook after a build of `outputs`. `tell` is given what the hook writes.
    ///
    /// # Errors
    /// The hook cannot be run, or fails.
    pub fn after(
        &self,
        derivation: &str,
        outputs: &[String],
        store_root: &Path,
        tell: &mut dyn FnMut(&str),
    ) -> Result<(), HookError> {
        let Some(hook) = &self.post_build else { return Ok(()) };
        let system = |error| HookError::System { hook: hook.clone(), error };
        let (from, to) = std::io::pipe().map_err(system)?;
        // In a statement of its own: the command holds the writing ends, and the pipe ends only without them.
        let mut child = Command::new(hook)
            .env("DRV_PATH", derivation)
            .env("OUT_PATHS", outputs.join(" "))
            .env("ANCHORHOLD_STORE", store_root)
            .stdin(Stdio::null())
            .stdout(to.try_clone().map_err(system)?)
            .stderr(to)
            .spawn()
            .map_err(system)?;
        let told = each_line(from, tell);
        let status = child.wait().map_err(system)?;
        told.map_err(system)?;
        if status.success() { Ok(()) } else { Err(HookError::Failed { hook: hook.clone(), status }) }
    }
}

fn each_line(pipe: impl Read, tell: &mut dyn FnMut(&str)) -> std::io::Result<()> {
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        if pipe.by_ref().take(MOST).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        tell(String::from_utf8_lossy(&line).trim_end_matches('\n'));
    }
}

/// What a hook said: a word, and lines up to an empty one.
fn parse(hook: &Path, said: &str, real_store: &Path) -> Result<Vec<SandboxPath>, HookError> {
    let unknown = |line: &str, why| HookError::Unknown { hook: hook.to_owned(), line: line.to_owned(), why };
    let mut paths = Vec::new();
    let mut in_paths = false;
    for line in said.lines() {
        match (in_paths, line) {
            (false, "extra-sandbox-paths" | "extra-chroot-dirs") => in_paths = true,
            (false, "") => {}
            (false, _) => return Err(unknown(line, "which is no word that is known")),
            (true, "") => in_paths = false,
            (true, _) => {
                let path = SandboxPath::parse(line);
                for side in [&path.inside, &path.outside] {
                    if !is_plain(side) {
                        return Err(unknown(line, "which is not an absolute path without ‘..’"));
                    }
                }
                // What lies around the store shows more than the store: its database, its locks, other builds.
                if path.outside == Path::new("/") || real_store.starts_with(&path.outside) {
                    return Err(unknown(line, "which would show the build the whole store"));
                }
                paths.push(path);
            }
        }
    }
    Ok(paths)
}

fn is_plain(path: &Path) -> bool {
    use std::path::Component;
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(said: &str) -> Result<Vec<SandboxPath>, String> {
        parse(Path::new("/hook"), said, Path::new("/nix/store")).map_err(|error| error.to_string())
    }

    #[test]
    fn paths_end_with_an_empty_line() {
        let paths =
            parsed("extra-sandbox-paths\n/bin/sh=/usr/bin/dash\n/dev/nvidia0?\n\nextra-sandbox-paths\n/etc/ssl\n");
        let paths: Vec<_> = paths.expect("understood").into_iter().map(|path| (path.inside, path.optional)).collect();
        assert_eq!(paths, [("/bin/sh".into(), false), ("/dev/nvidia0".into(), true), ("/etc/ssl".into(), false)]);
        assert_eq!(parsed("").expect("nothing is fine"), []);
    }

    #[test]
    fn what_is_not_understood_stops_the_build() {
        for said in ["no-sandbox\n", "extra-sandbox-paths\nrelative\n", "extra-sandbox-paths\n/a/../b\n"] {
            assert!(parsed(said).is_err(), "{said:?}");
        }
    }

    #[test]
    fn the_store_as_a_whole_is_shown_to_nobody() {
        for path in ["/", "/nix", "/nix/store", "/nix/store/", "/a=/nix"] {
            let error = parsed(&format!("extra-sandbox-paths\n{path}\n")).expect_err(path);
            assert!(error.contains("whole store"), "{error}");
        }
        assert!(parsed("extra-sandbox-paths\n/nix/store/x\n").is_ok());
    }

    #[test]
    fn a_hook_that_floods_one_pipe_is_read_to_its_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let hook = directory.path().join("hook");
        let script =
            "#!/bin/sh\nhead -c 300000 /dev/zero | tr '\\0' x >&2\necho extra-sandbox-paths\necho \"/seen=$1\"\n";
        write_program(&hook, script);
        let hooks = Hooks { pre_build: Some(hook), post_build: None };
        let mut told = 0;
        let paths = hooks.before("/tmp", Path::new("/nix/store"), &mut |line| told += line.len());
        assert_eq!(paths.expect("a path"), [SandboxPath::parse("/seen=/tmp")]);
        assert_eq!(told, 300_000);
    }

    #[test]
    fn a_hook_that_fails_says_so_and_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let hook = directory.path().join("after");
        write_program(&hook, "#!/bin/sh\necho \"got $OUT_PATHS of $DRV_PATH\"\nexit 7\n");
        let hooks = Hooks { pre_build: None, post_build: Some(hook.clone()) };
        let mut lines = Vec::new();
        let outputs = ["/nix/store/a".to_owned(), "/nix/store/b".to_owned()];
        let error = hooks.after("/x.drv", &outputs, Path::new("/"), &mut |line| lines.push(line.to_owned()));
        let error = error.expect_err("it failed").to_string();
        assert!(error.contains("after") && error.contains('7'), "{error}");
        assert_eq!(lines, ["got /nix/store/a /nix/store/b of /x.drv"]);
    }

    /// Through a process of its own: while another test forks, a descriptor open for writing makes execve(2) say ETXTBSY.
    fn write_program(path: &Path, text: &str) {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"])
            .arg(path)
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh starts");
        std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), text.as_bytes()).expect("it is written");
        assert!(child.wait().expect("sh ends").success());
    }
}
