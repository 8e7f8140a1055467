//! One room: the options of `anchorhold run` and what runs in it.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::probe;
use crate::running::Running;

/// The program under test: `ANCHORHOLD_BIN`, else the one that cargo built beside this test.
pub fn anchorhold() -> PathBuf {
    if let Some(path) = std::env::var_os("ANCHORHOLD_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().expect("the path of this test");
    // target/<triple>/<profile>/deps/<test>
    let built = own.ancestors().nth(2).expect("a folder of the build").join("anchorhold");
    assert!(built.exists(), "{} is not built: run `cargo build`, or set ANCHORHOLD_BIN", built.display());
    built
}

/// A room to be.
#[must_use]
#[derive(Clone, Debug)]
pub struct Room {
    before: Vec<OsString>,
    subcommand: &'static str,
    options: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    stdin: Option<Vec<u8>>,
    probe: bool,
}

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}

impl Room {
    /// The room of `anchorhold run` without options.
    pub fn new() -> Self {
        Self {
            before: Vec::new(),
            subcommand: "run",
            options: Vec::new(),
            variables: Vec::new(),
            stdin: None,
            probe: false,
        }
    }

    /// A room of this profile.
    pub fn of_profile(name: &str) -> Self {
        Self::new().with(["--profile", name])
    }

    /// The same, with more options.
    pub fn with<T: AsRef<OsStr>>(mut self, options: impl IntoIterator<Item = T>) -> Self {
        self.options.extend(options.into_iter().map(|option| option.as_ref().to_owned()));
        self
    }

    /// The same, with a layer left out.
    pub fn without(self, layer: &str) -> Self {
        self.with(["--without", layer])
    }

    /// The same, with a host path shown read-only at `inside`.
    pub fn showing(self, inside: &str, outside: &Path) -> Self {
        self.with([OsStr::new("--ro"), &at(inside, outside)])
    }

    /// The same, with a host path shown writable at `inside`.
    pub fn lending(self, inside: &str, outside: &Path) -> Self {
        self.with([OsStr::new("--rw"), &at(inside, outside)])
    }

    /// The same, with a variable in the *caller's* environment.
    pub fn called_with(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// The same, with these bytes on a pipe as the caller's standard input.
    pub fn fed(mut self, bytes: &[u8]) -> Self {
        self.stdin = Some(bytes.to_owned());
        self
    }

    /// The same, with `anchorhold` itself started by another program, for example a shell that opens a descriptor.
    pub fn started_by(mut self, words: &[&str]) -> Self {
        self.before = words.iter().map(OsString::from).collect();
        self
    }

    /// The same, able to run the probe.
    pub fn with_probe(mut self) -> Self {
        if !self.probe {
            self = self.showing(probe::INSIDE, probe::path());
            self.probe = true;
        }
        self
    }

    /// Runs a command in it, to its end.
    pub fn run<T: AsRef<OsStr>>(self, command: impl IntoIterator<Item = T>) -> Ended {
        self.start(command).to_the_end()
    }

    /// Runs a line of shell in it, to its end.
    pub fn shell(self, line: &str) -> Ended {
        self.run(["/bin/sh", "-c", line])
    }

    /// Runs one command of the probe in it, to its end.
    pub fn probe<T: AsRef<OsStr>>(self, words: impl IntoIterator<Item = T>) -> Ended {
        self.start_probe(words).to_the_end()
    }

    /// Starts the probe in it.
    pub fn start_probe<T: AsRef<OsStr>>(self, words: impl IntoIterator<Item = T>) -> Running {
        let words: Vec<OsString> = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self.with_probe().start(std::iter::once(OsString::from(probe::INSIDE)).chain(words))
    }

    /// Starts a command in it.
    pub fn start<T: AsRef<OsStr>>(mut self, command: impl IntoIterator<Item = T>) -> Running {
        let stdin = self.stdin.take();
        let mut line = self.command_line();
        line.arg("--").args(command);
        line.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        line.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running::start(line);
        if let Some(bytes) = stdin
            && let Some(mut pipe) = running.stdin()
        {
            // A room that is refused, or a command that does not read, closes the other end: that is not this test's question.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        running
    }

    /// What `anchorhold explain --json` says of it.
    pub fn explain(mut self) -> Ended {
        self.subcommand = "explain";
        self.with(["--json"]).run(["/bin/true"])
    }

    /// The plan as `anchorhold explain --json` prints it.
    #[track_caller]
    pub fn explained(self) -> serde_json::Value {
        serde_json::from_str(&self.explain().expect_success().stdout).expect("explain prints JSON")
    }

    /// The plan as `anchorhold explain` prints it for people.
    pub fn explained_in_words(mut self) -> String {
        self.subcommand = "explain";
        self.run(["/bin/true"]).expect_success().stdout
    }

    /// Up to where the command of the room would follow, streams not set.
    pub fn command_line(&self) -> Command {
        let program = anchorhold();
        let mut line = match self.before.split_first() {
            Some((first, others)) => {
                let mut line = Command::new(first);
                line.args(others).arg(program);
                line
            }
            None => Command::new(program),
        };
        line.arg(self.subcommand).args(&self.options);
        line.envs(self.variables.iter().map(|(name, value)| (name, value)));
        line
    }
}

/// Nix's spelling of a path that stands elsewhere on the host.
fn at(inside: &str, outside: &Path) -> OsString {
    let mut spelled = OsString::from(inside);
    spelled.push("=");
    spelled.push(outside);
    spelled
}

/// How it ended, and what came out.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The exit status of `anchorhold`; 128 plus the signal's number when one ended `anchorhold` itself.
    pub status: i32,
    /// All of it.
    pub stdout: String,
    /// All of it.
    pub stderr: String,
}

impl Ended {
    /// The same, if the status is 0.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert_eq!(self.status, 0, "{self:?}");
        self
    }

    /// The only line of standard output, of a command that succeeded.
    #[track_caller]
    pub fn line(self) -> String {
        let ended = self.expect_success();
        let mut lines = ended.stdout.lines();
        match (lines.next(), lines.next()) {
            (Some(line), None) => line.to_owned(),
            _ => panic!("not one line: {ended:?}"),
        }
    }

    /// The lines of standard output, of a command that succeeded.
    #[track_caller]
    pub fn lines(self) -> Vec<String> {
        self.expect_success().stdout.lines().map(str::to_owned).collect()
    }

    /// What a refusal says: status 125, nothing on standard output, one line that names the program. Warnings that were asked for
    /// by `--without` may stand before it.
    #[track_caller]
    pub fn refusal(self) -> String {
        assert_eq!(self.status, 125, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let lines: Vec<_> = self.stderr.lines().filter(|line| !line.starts_with("anchorhold: warning: ")).collect();
        match lines.as_slice() {
            [line] => line.strip_prefix("anchorhold: ").unwrap_or_else(|| panic!("{self:?}")).to_owned(),
            _ => panic!("not one line: {self:?}"),
        }
    }
}
