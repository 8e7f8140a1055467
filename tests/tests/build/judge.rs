//! A real Nix as the judge, with a store of its own that is given the same derivations.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anchorhold_tests::skip;
use serde_json::Value;

use crate::world::{World, text};

pub struct Judge<'a> {
    world: &'a World,
}

impl<'a> Judge<'a> {
    /// The judge beside a world; nothing if there is no Nix here, which is then said.
    pub fn beside(world: &'a World) -> Option<Self> {
        let there = Command::new("nix-store").arg("--version").output().is_ok();
        if !there {
            skip("no Nix is installed");
        }
        there.then_some(Self { world })
    }

    fn root(&self) -> PathBuf {
        self.world.path("judge")
    }

    /// A command of Nix on a store.
    pub fn on(&self, root: PathBuf, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let settings =
            "substituters =\nexperimental-features = nix-command\nbuild-users-group =\ncores = 3\nsandbox-paths =\n";
        command
            .arg("--store")
            .arg(root)
            .args(arguments)
            .env("NIX_CONFIG", settings)
            .env("HOME", self.world.directory.path())
            .env("TMPDIR", self.world.path("tmp"))
            .env("UNICORN", "from outside")
            .env_remove("NIX_REMOTE")
            .stdin(Stdio::null());
        command
    }

    /// What Nix says of its own store.
    pub fn ask(&self, program: &str, arguments: &[&str]) -> Output {
        self.on(self.root(), program, arguments).output().unwrap()
    }

    /// The same of what must succeed.
    #[track_caller]
    pub fn said(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.ask(program, arguments);
        assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// What Nix says of *our* store, which must please it.
    #[track_caller]
    pub fn accepts(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.on(self.world.root(), program, arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Gives Nix derivations of ours, with all that they need.
    #[track_caller]
    pub fn give(&self, derivations: &[String]) {
        // Not by export and import: what a path was computed from gets lost in Nix's old stream.
        let mut copy = self.on(self.world.root(), "nix", &["copy", "--no-check-sigs", "--derivation", "--to"]);
        let copied = copy.arg(self.root()).args(derivations).output().unwrap();
        assert!(copied.status.success(), "{}", text(&copied.stderr));
    }

    /// Lets Nix build.
    pub fn realise(&self, derivations: &[String]) -> Output {
        let arguments: Vec<_> = ["--realise"].into_iter().chain(derivations.iter().map(String::as_str)).collect();
        self.ask("nix-store", &arguments)
    }

    /// What a file in its store holds.
    pub fn read(&self, path: &str) -> std::io::Result<String> {
        std::fs::read_to_string(self.root().join(path.trim_start_matches('/')))
    }

    /// What Nix knows of its paths, without what is only its own: when each was registered.
    pub fn facts(&self, paths: &[String]) -> Vec<Value> {
        let arguments: Vec<_> = ["path-info", "--json"].into_iter().chain(paths.iter().map(String::as_str)).collect();
        let mut facts: Vec<Value> = serde_json::from_str(&self.said("nix", &arguments)).unwrap();
        facts.sort_by_key(|one| one["path"].to_string());
        facts
    }
}
