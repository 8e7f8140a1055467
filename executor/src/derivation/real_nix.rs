//! A real Nix as the judge of what this module reads, writes and computes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use super::options::Options;
use super::paths::Calculator;
use super::{Derivation, EXTENSION, Output, aterm, json};
use crate::hash::{Algorithm, Hash};
use crate::store_path::{StoreDir, StorePath};

/// Whether the Nix that these tests know is installed. Newer ones show derivations and paths in other forms.
pub(crate) fn is_there() -> bool {
    let version = Command::new("nix-instantiate").arg("--version").output();
    let is_there = version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(" 2.8."));
    if !is_there {
        println!("SKIP: Nix 2.8 is not installed");
    }
    is_there
}

/// A Nix with a store of its own, which goes away with it.
pub(crate) struct RealNix {
    root: tempfile::TempDir,
}

impl RealNix {
    /// Nothing where this Nix is not installed, after saying so.
    pub(crate) fn find() -> Option<Self> {
        is_there().then(|| Self { root: tempfile::tempdir().unwrap() })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root.path())
            .env(
                "NIX_CONFIG",
                "substituters =\nexperimental-features = nix-command ca-derivations\nbuild-users-group =\n",
            )
            .arg("--store")
            .arg(self.path("root"));
        command
    }

    pub(crate) fn run(command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// All `.drv` files that `expression` gives, also those below the ones that it names.
    pub(crate) fn instantiate(&self, expression: &str) -> BTreeMap<StorePath, Vec<u8>> {
        let file = self.path("expression.nix");
        std::fs::write(&file, expression).unwrap();
        Self::run(self.command("nix-instantiate").arg(file));
        let store = self.path("root/nix/store");
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(store).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.ends_with(EXTENSION) {
                all.insert(name.parse().unwrap(), std::fs::read(entry.path()).unwrap());
            }
        }
        all
    }
}

pub(crate) fn read_all(all: &BTreeMap<StorePath, Vec<u8>>) -> BTreeMap<StorePath, Derivation> {
    all.iter()
        .map(|(path, bytes)| {
            let name = path.name().strip_suffix(EXTENSION).unwrap();
            (path.clone(), aterm::read(bytes, name, &StoreDir::default()).unwrap())
        })
        .collect()
}

/// Four levels, all kinds of hashes, outputs, attributes and strings.
const MANY: &str = r#"
let
  base = { system = "x86_64-linux"; builder = "/bin/sh"; };
  make = attributes: derivation (base // attributes);
  fixed = name: mode: hash: make { inherit name; outputHashMode = mode; outputHash = hash; outputHashAlgo = null; };
  hashes = {
    md5 = "md5-XUFAKrxLKna5cZ2REBfFkg==";
    sha1 = "sha1-qvTGHdzF6KLavt4PO0gs2a6pQ00=";
    sha256 = "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";
    sha512 = "sha512-m3HSJL1i83hdltRq0+o9czGb+8KJDKra4t/3JRlnPKcjI8PZm6XBHXx6zG4UuMXaDEZjR1wuXDre9G9zvN7AQw==";
  };
  mode = which: map (name: fixed "${which}-${name}" which hashes.${name}) (builtins.attrNames hashes);
  fetch = url: make { name = "fetched"; inherit url; outputHashAlgo = "sha256"; outputHashMode = "flat";
    outputHash = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"; };
  middle = url: make { name = "middle"; outputs = [ "out" "dev" "doc" ]; source = fetch url; };
  level = n: if n == 0 then make { name = "level-0"; } else make {
    name = "level-${toString n}";
    outputs = [ "out" "lib" ];
    below = level (n - 1);
    beside = if n > 1 then (level (n - 2)).out else "";
    all = mode "flat";
  };
  strings = [ "" "\n" "\r\n\t" "\"\\\"" "ünïcödé →" "$out \${x}" "'" "\\n" "a\tb" "] ) , (" (builtins.fromJSON "\"\\u0001\\u007f\"") ];
in [
  (mode "flat") (mode "recursive") (level 6)
  (make { name = "strings"; args = strings; inherit strings; odd = "\n\"\\"; "ä ö=" = "x"; })
  (make { name = "two-fetches"; a = (middle "a").out; b = (middle "b").dev; c = (middle "b").doc; })
  (make { name = "one-fetch"; a = (middle "b").out; b = (middle "b").dev; c = (middle "b").doc; })
  (make { name = "placeholders"; outputs = [ "bin" "out" ]; own = [ (placeholder "out") (placeholder "bin") ]; })
  (make { name = "first-not-out"; outputs = [ "lib" ]; })
  (make { name = "source"; src = builtins.toFile "text" "some text"; })
  (make { name = "text-with-reference"; src = builtins.toFile "text" "see ${builtins.toFile "other" "x"}"; })
  (make { name = "derivation-as-source"; drv = (make { name = "below"; }).drvPath; })
  (make { name = "bytes"; value = builtins.readFile ./bytes; })
  (make { name = "structured"; __structuredAttrs = true; outputs = [ "out" "dev" ]; inherit strings;
          numbers = [ 1 (-2) 2.5 1.0e20 0.1 9223372036854775807 ]; nested.a.b = [ null true false {} [] ];
          exportReferencesGraph.graph = [ (level 1) ]; outputChecks.out.maxSize = 5; input = level 2; })
]
"#;

#[test]
fn files_paths_and_json_are_those_of_nix() {
    let Some(nix) = RealNix::find() else { return };
    let store_dir = StoreDir::default();
    std::fs::write(nix.path("bytes"), b"\xff\xfe \x01 \xe4").unwrap();
    let files = nix.instantiate(MANY);
    assert!(files.len() >= 30, "{}", files.len());
    let derivations = read_all(&files);
    let mut calculator = Calculator::new(&store_dir, derivations.clone());
    for (path, derivation) in &derivations {
        assert_eq!(aterm::write(derivation, &store_dir), files[path], "{path}");
        calculator.check(path, derivation).unwrap();

        let mut bare = without_paths(derivation);
        calculator.complete(&mut bare).unwrap();
        assert_eq!(bare, *derivation, "{path}");

        if derivation.name == "bytes" {
            // Nix itself cannot show this one.
            assert!(json::write_one(derivation).unwrap_err().to_string().contains("not UTF-8"));
            continue;
        }
        let shown = RealNix::run(nix.command("nix").arg("show-derivation").arg(format!("/nix/store/{path}")));
        let ours = json::write_old([(path, derivation)], &store_dir).unwrap();
        assert_eq!(ours, serde_json::from_str::<Value>(&shown).unwrap());
        let named = json::Named { path: Some(path.clone()), derivation: derivation.clone() };
        assert_eq!(json::read(shown.as_bytes(), &store_dir).unwrap(), [named]);
    }
}

/// What random derivations are made of; the evaluator makes strings of it all.
fn any_specification() -> impl Strategy<Value = Value> {
    let text = || "([^\0]{0,10}|[ -~]{0,20}|[\"\\\\\n\r\t$'{}]{0,8})";
    let kind = prop::sample::select(&["plain", "plain", "plain", "structured", "flat", "recursive"]);
    let hash = (prop::sample::select(&Algorithm::ALL), any::<u64>())
        .prop_map(|(algorithm, seed)| Hash::of(algorithm, &seed.to_le_bytes()).sri());
    (
        ("[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{0,15}", kind, hash, btree_set("[a-ce-z][a-z]{0,4}", 1..4)),
        (vec(text(), 0..4), btree_map("v[^\0]{0,6}", text(), 0..6)),
        vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..4),
    )
        .prop_map(|((name, kind, hash, outputs), (args, env), inputs)| {
            let inputs: Vec<_> =
                inputs.iter().map(|(one, output)| [one.index(1 << 20), output.index(1 << 20)]).collect();
            let outputs: Vec<_> = if matches!(kind, "flat" | "recursive") {
                vec!["out".to_owned()]
            } else {
                outputs.into_iter().collect()
            };
            json!({
                "name": name, "kind": kind, "hash": hash, "outputs": outputs, "args": args, "env": env, "inputs": inputs,
            })
        })
}

/// Each may depend on any outputs of those before it.
const RANDOM: &str = r#"
let
  specifications = builtins.fromJSON (builtins.readFile ./specifications.json);
  mod = a: b: a - (a / b) * b;
  all = builtins.genList make (builtins.length specifications);
  make = i: let
    s = builtins.elemAt specifications i;
    input = pair: let
      below = builtins.elemAt all (mod (builtins.elemAt pair 0) i);
      names = below.outputs;
    in below.${builtins.elemAt names (mod (builtins.elemAt pair 1) (builtins.length names))};
    fixed = if s.kind == "flat" || s.kind == "recursive" then { outputHash = s.hash; outputHashMode = s.kind; } else { };
    structured = if s.kind == "structured" then { __structuredAttrs = true; } else { };
  in derivation (s.env // fixed // structured // {
    inherit (s) name args outputs;
    system = "x86_64-linux";
    builder = "/bin/sh";
    inputs = if i == 0 then [ ] else map input s.inputs;
  });
in all
"#;

#[test]
fn random_derivations_are_those_of_nix() {
    let Some(nix) = RealNix::find() else { return };
    // The same ones each time, so that a failure can be looked at.
    let mut runner = TestRunner::deterministic();
    let specifications = vec(any_specification(), 150).new_tree(&mut runner).unwrap().current();
    std::fs::write(nix.path("specifications.json"), json!(specifications).to_string()).unwrap();
    let files = nix.instantiate(RANDOM);
    assert!(files.len() > 100, "{}", files.len());
    let store_dir = StoreDir::default();
    let derivations = read_all(&files);
    let mut calculator = Calculator::new(&store_dir, derivations.clone());
    for (path, derivation) in &derivations {
        assert_eq!(aterm::write(derivation, &store_dir), files[path], "{path}");
        calculator.check(path, derivation).unwrap();
        Options::read(derivation, &store_dir).unwrap();
        let json = json::write([(path, derivation)]).unwrap().to_string();
        let read = json::read(json.as_bytes(), &store_dir).unwrap();
        assert_eq!(read, [json::Named { path: Some(path.clone()), derivation: derivation.clone() }]);
    }
}

/// As a person would write it, before anything is computed.
fn without_paths(derivation: &Derivation) -> Derivation {
    let mut bare = derivation.clone();
    for (name, output) in &mut bare.outputs {
        if matches!(output, Output::InputAddressed(_)) {
            *output = Output::Deferred;
        }
        bare.environment.insert(name.clone().into_bytes(), Vec::new());
    }
    bare
}

#[test]
fn floating_derivations_are_read_and_refused_by_name() {
    let Some(nix) = RealNix::find() else { return };
    let store_dir = StoreDir::default();
    let files = nix.instantiate(
        r#"
        let base = { system = "x86_64-linux"; builder = "/bin/sh"; };
            floating = derivation (base // { name = "floating"; __contentAddressed = true; outputHashMode = "recursive";
                                             outputHashAlgo = "sha256"; });
        in derivation (base // { name = "above"; inherit floating; })
        "#,
    );
    let derivations = read_all(&files);
    let mut calculator = Calculator::new(&store_dir, derivations.clone());
    for (path, derivation) in &derivations {
        assert_eq!(aterm::write(derivation, &store_dir), files[path]);
        let error = calculator.check(path, derivation).unwrap_err().to_string();
        let part = "‘floating’ is floating content-addressed (its paths follow from what is built); anchorhold does not build these yet";
        assert!(error.contains(part), "{error}");
        assert_eq!(error.contains("needed by"), derivation.name == "above", "{error}");
    }
}
