//! A server with a store of its own, and a Nix with another.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use anchorhold_tests::host::{Process, descendants, poll_until};
use anchorhold_tests::recipe::{THING, busybox, lay_out_tools};
use anchorhold_tests::room::anchorhold;
use anchorhold_tests::world::make_removable;
pub use anchorhold_tests::world::text;
use anchorhold_tests::{PATIENCE, skip};

/// A server with a store of its own, a Nix with another, and a program to build with in both.
pub struct World {
    directory: tempfile::TempDir,
    server: Child,
    /// The store path of the tools, in both stores.
    pub busybox: String,
}

impl World {
    /// Nothing if this machine has not got what it takes.
    pub fn new() -> Option<Self> {
        Self::with(&[])
    }

    /// A world whose server has these options more.
    pub fn with(options: &[&str]) -> Option<Self> {
        if Command::new("nix").arg("--version").stdout(Stdio::null()).status().is_err() {
            skip("no Nix is installed");
            return None;
        }
        let Some(busybox) = busybox() else {
            skip("no busybox is installed");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        // Clients may be somebody else.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(directory.path().join("tmp")).unwrap();
        anchorhold_tests::host::open_to_all(&directory.path().join("tmp"));
        let applets = ["sh", "cat", "head", "mkdir", "sed", "sleep", "yes"];
        lay_out_tools(&directory.path().join("busybox"), busybox, &applets);
        let server = Command::new(anchorhold())
            .args(["store-server", "--socket"])
            .arg(directory.path().join("socket"))
            .arg("--store")
            .arg(directory.path().join("served"))
            // A fixed output may have the network; nothing here wants it, and not everybody may have it.
            .args(["--option", "network", "none"])
            .args(options)
            // Where failed builds are kept.
            .env("TMPDIR", directory.path().join("tmp"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(directory.path().join("server.log")).unwrap())
            .spawn()
            .unwrap();
        let mut world = Self { directory, server, busybox: String::new() };
        assert!(poll_until(PATIENCE, || world.connect().is_some()), "the server does not listen");
        let tree = world.path("busybox");
        world.busybox = world.said("nix-store", &["--store", &world.local(), "--add", tree.to_str().unwrap()]);
        world.said("nix", &["copy", "--from", &world.local(), "--to", &world.served(), &world.busybox]);
        world.write("thing.nix", THING);
        let program = anchorhold();
        // What sshd does with a forced command: whatever was asked for is in a variable.
        let ssh = format!(
            "#!/bin/sh\nSSH_ORIGINAL_COMMAND=\"$*\" exec {} store-server --store {}\n",
            program.display(),
            world.path("served").display()
        );
        world.write("ssh/ssh", &ssh);
        fs::set_permissions(world.path("ssh/ssh"), fs::Permissions::from_mode(0o755)).unwrap();
        Some(world)
    }

    /// A path of the world.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file of the world.
    pub fn write(&self, name: &str, contents: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    /// A client of the server's socket that has said nothing yet.
    pub fn connect(&self) -> Option<UnixStream> {
        UnixStream::connect(self.path("socket")).ok()
    }

    /// The store of the Nix that is the client.
    pub fn local(&self) -> String {
        self.path("local").to_str().unwrap().to_owned()
    }

    /// The server's store, over its socket.
    pub fn served(&self) -> String {
        format!("unix://{}?root={}", self.path("socket").display(), self.path("served").display())
    }

    /// A program of Nix, to be called.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let path = format!("{}:{}", self.path("ssh").display(), std::env::var("PATH").unwrap());
        command
            .args(arguments)
            .env("PATH", path)
            .env(
                "NIX_CONFIG",
                "substituters =\nsubstitute = false\nexperimental-features = nix-command\nbuild-users-group =\n",
            )
            .env("HOME", self.directory.path())
            .env("TOOLS", &self.busybox)
            // What a client that is killed leaves behind goes with the test.
            .env("TMPDIR", self.path("tmp"))
            .env_remove("NIX_REMOTE")
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }

    /// What it does.
    pub fn ask(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments).output().unwrap()
    }

    /// Standard output, without its last newline, of what must succeed.
    #[track_caller]
    pub fn said(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.ask(program, arguments);
        let log = fs::read_to_string(self.path("server.log")).unwrap_or_default();
        assert!(output.status.success(), "{program} {arguments:?}: {}; the server: {log}", text(&output.stderr));
        text(&output.stdout).trim_end().to_owned()
    }

    /// Standard error of what must fail.
    #[track_caller]
    pub fn refused(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.ask(program, arguments);
        assert!(!output.status.success(), "{program} {arguments:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }

    /// The words of a build in a store.
    pub fn build<'a>(&self, store: &'a str, name: &'a str, script: &'a str) -> Vec<&'a str> {
        vec!["--store", store, "thing.nix", "--no-out-link", "--argstr", "name", name, "--argstr", "script", script]
    }

    /// Where a path of the served store lies.
    pub fn real(&self, path: &str) -> PathBuf {
        self.path("served").join(path.trim_start_matches('/'))
    }

    /// Locks, temporary roots, temporary directories and directories of builds in the served store.
    pub fn left_over(&self) -> Vec<String> {
        let names = |directory: &str| {
            let entries = fs::read_dir(self.path(directory)).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        let mut left = names("served/nix/store");
        left.retain(|name| name.ends_with(".lock") || name.starts_with("tmp-"));
        left.extend(names("served/nix/var/nix/temproots"));
        left.extend(names("served/nix/var/nix/anchorhold/builds"));
        left
    }

    /// The processes that the server has for its clients.
    pub fn attendants(&self) -> Vec<Process> {
        let server = self.server.id().cast_signed();
        let mut all = descendants(server);
        all.retain(|process| process.parent == server);
        all
    }

    /// All that the server has said.
    pub fn server_said(&self) -> String {
        fs::read_to_string(self.path("server.log")).unwrap_or_default()
    }

    /// A Nix finds nothing wrong with the served store.
    #[track_caller]
    pub fn is_whole(&self) {
        self.said("nix-store", &["--store", self.path("served").to_str().unwrap(), "--verify", "--check-contents"]);
    }
}

/// The directories of a store are read-only, and only the superuser removes what is in such.
impl Drop for World {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        make_removable(self.directory.path());
    }
}

/// The system of this machine, as Nix calls it.
pub fn system() -> String {
    format!("{}-linux", std::env::consts::ARCH)
}
