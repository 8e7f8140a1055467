//! A store of a real Nix in a directory, with anchorhold as its build hook.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anchorhold_tests::PATIENCE;
use anchorhold_tests::host::poll_until;
use anchorhold_tests::recipe::{THING, busybox, lay_out_tools};
use anchorhold_tests::room::anchorhold;

/// The store and its settings. Whoever runs the tests works on it without a daemon.
pub struct World {
    directory: tempfile::TempDir,
    tools: String,
}

impl World {
    /// A store with tools in it, or why there is none.
    pub fn new() -> Result<Self, String> {
        Self::with("")
    }

    /// A store with further lines of settings.
    pub fn with(settings: &str) -> Result<Self, String> {
        let busybox = busybox().ok_or("no busybox (package busybox-static)")?;
        if Command::new("nix-build").arg("--version").output().is_err() {
            return Err("no Nix (package nix-bin)".to_owned());
        }
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut world = Self { directory, tools: String::new() };
        for made in ["conf", "home", "tmp"] {
            fs::create_dir_all(world.path(made)).unwrap();
        }
        let applets = ["sh", "cat", "echo", "env", "id", "mkdir", "sed", "sleep", "yes"];
        lay_out_tools(&world.path("tools"), busybox, &applets);
        symlink(anchorhold(), world.path("anchorhold-hook")).unwrap();
        // Older Nixes have no place for options behind the program. Not every host has what an ordinary user's network needs.
        world.write_hook("hook", "--option network none");
        let root = world.root();
        let conf = format!(
            "substituters =\nsubstitute = false\nexperimental-features = nix-command\nbuild-users-group =\nmax-jobs = 2\nstore = {}\nbuild-hook = {}\n{settings}\n",
            root.display(),
            world.path("hook").display()
        );
        fs::write(world.path("conf/nix.conf"), conf).unwrap();
        fs::write(world.path("thing.nix"), THING).unwrap();
        let added = world.nix("nix-store").arg("--add").arg(world.path("tools")).output().unwrap();
        if !added.status.success() {
            return Err(format!("Nix cannot make a store: {}", String::from_utf8_lossy(&added.stderr).trim()));
        }
        world.tools = String::from_utf8(added.stdout).unwrap().trim().to_owned();
        Ok(world)
    }

    /// Writes a hook that is `anchorhold hook` with some options; its path.
    pub fn write_hook(&self, name: &str, options: &str) -> String {
        let path = self.path(name);
        let text = format!("#!/bin/sh\nexec {} {options} \"$@\"\n", self.path("anchorhold-hook").display());
        write_program(&path, &text);
        path.to_str().unwrap().to_owned()
    }

    /// A path of the world.
    pub fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    /// The store path of the tools.
    pub fn tools(&self) -> &str {
        &self.tools
    }

    /// The store's root.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// Where a store path's files really lie.
    pub fn real(&self, path: &str) -> PathBuf {
        self.root().join(path.strip_prefix('/').unwrap())
    }

    /// What a valid path that is a file holds.
    #[track_caller]
    pub fn contents(&self, path: &str) -> String {
        fs::read_to_string(self.real(path)).unwrap()
    }

    /// A program of Nix.
    pub fn nix(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for variable in ["NIX_REMOTE", "NIX_PATH", "NIX_STORE_DIR", "NIX_STATE_DIR", "NIX_LOG_DIR", "NIX_CONFIG"] {
            command.env_remove(variable);
        }
        command.env("NIX_CONF_DIR", self.path("conf")).env("HOME", self.path("home")).env("TMPDIR", self.path("tmp"));
        command.env("XDG_CACHE_HOME", self.path("home")).env("TOOLS", &self.tools);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir(self.directory.path());
        command
    }

    /// A call that builds an expression, in which `thing` is the function of a derivation.
    pub fn build_command(&self, expression: &str, options: &[&str]) -> Command {
        let mut command = self.nix("nix-build");
        let whole = format!("let thing = import {}; in {expression}", self.path("thing.nix").display());
        command.args(["--no-out-link", "-E", &whole]).args(options);
        command
    }

    /// Builds an expression.
    pub fn build(&self, expression: &str, options: &[&str]) -> Built {
        Built::of(&self.build_command(expression, options).output().unwrap())
    }

    /// What a program of Nix prints, which must succeed.
    #[track_caller]
    pub fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.nix(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Waits until nothing is left of any build but its outputs. It is removed by a process that nobody waits for.
    #[track_caller]
    pub fn assert_swept(&self) {
        let builds = self.root().join("nix/var/nix/anchorhold/builds");
        let left = || fs::read_dir(&builds).map_or(0, Iterator::count);
        assert!(poll_until(PATIENCE, || left() == 0), "{} has {} entries", builds.display(), left());
    }
}

/// What came of a call of `nix-build`.
#[derive(Debug)]
pub struct Built {
    /// Its exit status.
    pub status: Option<i32>,
    /// The paths that it printed.
    pub paths: Vec<String>,
    /// All else that it said.
    pub said: String,
}

impl Built {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            status: output.status.code(),
            paths: text(&output.stdout).lines().map(str::to_owned).collect(),
            said: text(&output.stderr),
        }
    }

    /// The only path of a build that ended well, and was built here.
    #[track_caller]
    pub fn path(&self) -> &str {
        assert_eq!(self.status, Some(0), "{}", self.said);
        assert!(self.was_ours(), "{}", self.said);
        assert_eq!(self.paths.len(), 1, "{:?}", self.paths);
        &self.paths[0]
    }

    /// Fails unless it failed like this and said so.
    #[track_caller]
    pub fn assert_failed(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status, Some(status), "{}", self.said);
        for word in words {
            assert!(self.said.contains(word), "‘{word}’ was not said: {}", self.said);
        }
    }

    /// Whether a build went to our machine, by what Nix says.
    pub fn was_ours(&self) -> bool {
        self.said.contains("' on 'ssh-ng://localhost?remote-program=")
    }
}

/// Through a process of its own: while another test forks, a descriptor open for writing makes execve(2) say ETXTBSY.
pub fn write_program(path: &Path, text: &str) {
    let mut child = Command::new("/bin/sh")
        .args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}
