//! A store of a test's own, and what `anchorhold store` and a real Nix say of it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::room::anchorhold;
use crate::skip;

/// A store of its own, and files to put into it.
pub struct World {
    /// Where all of it is.
    pub directory: tempfile::TempDir,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// A world with nothing in it.
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// The root of its store, which the first command makes.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// A file beside the store.
    pub fn file(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    /// `anchorhold store` on it, with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(anchorhold());
        command.args(["store", "--store"]).arg(self.root()).args(arguments).stdin(Stdio::null());
        command
    }

    /// What that does.
    pub fn ask(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of what must succeed.
    pub fn said(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The lines of standard output of what must succeed.
    pub fn lines(&self, arguments: &[&str]) -> BTreeSet<String> {
        self.said(arguments).lines().map(str::to_owned).collect()
    }

    /// Standard error of what must fail with the status of a failure.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }

    /// What it does with this on its standard input.
    pub fn fed(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that refuses early closes its end.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        child.wait_with_output().unwrap()
    }

    /// The path of a file with these contents, which is added.
    pub fn add(&self, name: &str, contents: &str) -> String {
        let file = self.file(name, contents);
        self.said(&["add", file.to_str().unwrap()]).trim().to_owned()
    }

    /// Where the files of a path of the store really are.
    pub fn real(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// What a Nix says to it; nothing if there is none here.
    pub fn nix(&self, program: &str, arguments: &[&str]) -> Option<Output> {
        let output = Command::new(program)
            .arg("--store")
            .arg(self.root())
            .args(arguments)
            .env("NIX_CONFIG", "substituters =\nexperimental-features = nix-command\nbuild-users-group =\n")
            .env("HOME", self.directory.path())
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) => {
                assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
                Some(output)
            }
            Err(_) => {
                skip("no Nix is installed");
                None
            }
        }
    }

    /// Checks that we, and a Nix, find nothing wrong with it.
    pub fn is_whole(&self) {
        self.said(&["verify", "--check-contents"]);
        self.nix("nix-store", &["--verify", "--check-contents"]);
    }
}

/// The directories of a store are read-only, and only the superuser removes what is in such.
impl Drop for World {
    fn drop(&mut self) {
        make_removable(self.directory.path());
    }
}

/// Makes every directory of a tree writable for its owner, which those of a store are not, so that it can be removed.
pub fn make_removable(tree: &Path) {
    let mut left = vec![tree.to_owned()];
    while let Some(directory) = left.pop() {
        let _ = fs::set_permissions(&directory, fs::Permissions::from_mode(0o755));
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
        }
    }
}

/// Bytes as a text to be shown or searched.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
