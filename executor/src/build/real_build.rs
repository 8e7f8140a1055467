//! A real Nix as the judge of what a builder gets: it builds, its builder copies out what it got, and that is compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::environment::{BuilderInput, File, Settings, prepare};
use super::reference_graph::{Inputs, PathFacts};
use crate::derivation::options::Options;
use crate::derivation::{Derivation, EXTENSION, aterm, real_nix};
use crate::hash::Hash;
use crate::store_path::{StoreDir, StorePath};

/// Attributes of one build: all that the cases of [`the_builder_gets_what_nix_gives_it`] have in common.
const COMMON: &str = r#"
  common = {
    system = "x86_64-linux"; builder = "/bin/bash"; dump = DUMP;
    args = [ "-c" ''
      if [ -n "$NIX_ATTRS_SH_FILE" ]; then . "$NIX_ATTRS_SH_FILE"; paths=("''${outputs[@]}")
      else paths=(); for output in $outputs; do paths+=("''${!output}"); done; fi
      /bin/cat /proc/$$/environ > "$dump/environ"
      /bin/cat /proc/$$/cmdline > "$dump/cmdline"
      /bin/cp -r "$NIX_BUILD_TOP/." "$dump/files"
      for path in "''${paths[@]}"; do printf hello > "$path"; done
    '' (placeholder "out") "-${placeholder "out"}-${placeholder "dev"}-" "last" ];
    outputs = [ "out" "dev" ];
  };
  leaf = builtins.toFile "leaf" "leaf";
  text = builtins.toFile "text" "see ${leaf}";
  built = derivation { name = "built"; system = "x86_64-linux"; builder = "/bin/bash"; args = [ "-c" "echo ${text} > $out" ]; };
"#;

const CASES: [(&str, &str); 5] = [
    (
        "classic",
        r#"{ name = "classic"; odd = "a\nb\"\\'$x ü"; PATH = "/somewhere"; TMP = "/lost"; NIX_LOG_FD = "9"; number = 5;
             list = [ "a" true false null 7 ]; own = "${placeholder "dev"}/bin"; passAsFile = [ "long" "with-dash" "TERM" ];
             long = "contents of ${placeholder "out"}\n"; with-dash = "x"; TERM = "dumb";
             exportReferencesGraph = [ "graph.txt" text "_g-2" built ]; }"#,
    ),
    ("derivations", r#"{ name = "derivations"; exportReferencesGraph = [ "graph" built.drvPath ]; }"#),
    (
        "structured",
        r#"{ name = "structured"; __structuredAttrs = true; odd = "a\nb\"\\'$x ü"; PATH = "/somewhere"; number = 5; big = 5000000000;
             floats = [ 0.5 1.0e15 1.0e20 0.00001 123456.789 ]; list = [ "a" true false null 7 "it's" ]; nested.a.b = [ { } [ ] ];
             own = "${placeholder "dev"}/bin"; map = { a = "x y"; "b c'" = 5; n = null; }; control = "\t\r${builtins.fromJSON "\"\\u0001\\u007f\""}";
             exportReferencesGraph = { graph = [ text built ]; other = [ built.drvPath ]; }; }"#,
    ),
    (
        "spelled",
        r#"{ name = "spelled"; __json = ''
             { "dump" : DUMP, "twice": 1, "z": "\u00fc\/\u0000\b\f", "twice": [2], "a": [0, -7, 18446744073709551615, -0.0, 2.5, 1e3,
               18446744073709551616, -9223372036854775808, 123456789012345.0, 1e14, 1e15, 999999999999999.9, 1.5e300, 0.001, 0.0001, 1E-7,
               0.00012, 4.9e-324, 1.7976931348623157e308, 0.30000000000000004, 9007199254740993.0, 16777217.5] }
           ''; }"#,
    ),
    (
        "fixed",
        r#"{ name = "fixed"; outputs = [ "out" ]; outputHash = "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";
             impureEnvVars = [ "UNICORN" "ABSENT" "PATH" ]; UNICORN = "from the derivation"; }"#,
    ),
];

struct Nix {
    directory: tempfile::TempDir,
    root: PathBuf,
}

impl Nix {
    fn command(&self, program: &str) -> Command {
        let root = &self.root;
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", root)
            .env("TMPDIR", root.join("tmp"))
            .env("NIX_STORE_DIR", root.join("store"))
            .env("NIX_STATE_DIR", root.join("var"))
            .env("NIX_LOG_DIR", root.join("log"))
            .env("NIX_LOCALSTATE_DIR", root.join("var"))
            .env("NIX_CONF_DIR", root.join("etc"))
            .env("UNICORN", "from outside")
            .env(
                "NIX_CONFIG",
                "substituters =\nsandbox = false\ncores = 3\nexperimental-features = nix-command\nbuild-users-group =\n",
            );
        command
    }

    fn run(command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Nix {
    /// Store paths are read-only, which keeps an ordinary user from removing them.
    fn drop(&mut self) {
        let _ = Command::new("chmod").arg("-R").arg("u+w").arg(self.directory.path()).output();
    }
}

struct Known {
    store_dir: StoreDir,
    all: BTreeMap<StorePath, PathFacts>,
}

impl Known {
    fn new(nix: &Nix, store_dir: &StoreDir) -> Self {
        let text = Nix::run(nix.command("nix").args(["path-info", "--json", "--all"]));
        let list: Vec<Value> = serde_json::from_str(&text).unwrap();
        let parse = |value: &Value| store_dir.parse(value.as_str().unwrap()).unwrap();
        let all = list.iter().filter(|value| value["valid"] != false).map(|value| {
            let facts = PathFacts {
                nar_hash: value["narHash"].as_str().unwrap().parse::<Hash>().unwrap(),
                nar_size: value["narSize"].as_u64().unwrap(),
                references: value["references"].as_array().unwrap().iter().map(parse).collect(),
                content_address: value["ca"].as_str().map(str::to_owned),
            };
            (parse(&value["path"]), facts)
        });
        Self { store_dir: store_dir.clone(), all: all.collect() }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Inputs for Known {
    fn is_input(&self, path: &StorePath) -> bool {
        self.all.contains_key(path)
    }

    fn facts(&self, path: &StorePath) -> Result<Option<PathFacts>, Failure> {
        Ok(self.all.get(path).cloned())
    }

    fn outputs(&self, path: &StorePath) -> Result<Vec<StorePath>, Failure> {
        let derivation = read_derivation(&self.store_dir, path);
        Ok(derivation.outputs.values().filter_map(|output| output.path().cloned()).collect())
    }
}

fn read_derivation(store_dir: &StoreDir, path: &StorePath) -> Derivation {
    let bytes = std::fs::read(store_dir.display(path)).unwrap();
    aterm::read(&bytes, path.name().strip_suffix(EXTENSION).unwrap(), store_dir).unwrap()
}

/// What the builder copied out.
fn dumped(dump: &Path, program: &[u8]) -> BuilderInput {
    let split = |name: &str| -> Vec<Vec<u8>> {
        let bytes = std::fs::read(dump.join(name)).unwrap();
        let all: Vec<_> = bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
        all[..all.len() - 1].to_vec()
    };
    let pair = |line: Vec<u8>| {
        let equals = line.iter().position(|byte| *byte == b'=').unwrap();
        (line[..equals].to_vec(), line[equals + 1..].to_vec())
    };
    let files = std::fs::read_dir(dump.join("files")).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let contents = std::fs::read(entry.path()).unwrap();
        File { name: entry.file_name().into_string().unwrap(), contents }
    });
    let mut files: Vec<_> = files.collect();
    files.sort_by(|left, right| left.name.cmp(&right.name));
    BuilderInput {
        program: program.to_vec(),
        arguments: split("cmdline"),
        environment: split("environ").into_iter().map(pair).collect(),
        files,
    }
}

fn show(input: &BuilderInput) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut lines = vec![text(&input.program)];
    lines.extend(input.arguments.iter().map(|argument| format!("argument {}", text(argument))));
    lines.extend(input.environment.iter().map(|(name, value)| format!("{}={}", text(name), text(value))));
    lines.extend(input.files.iter().map(|file| format!("file {}: {}", file.name, text(&file.contents))));
    lines.join("\n")
}

#[test]
fn the_builder_gets_what_nix_gives_it() {
    if !real_nix::is_there() {
        return;
    }
    if !Path::new("/bin/bash").exists() {
        println!("SKIP: there is no /bin/bash");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    let nix = Nix { directory, root: root.clone() };
    std::fs::create_dir(root.join("tmp")).unwrap();
    let store_dir = StoreDir::new(root.join("store").to_str().unwrap()).unwrap();
    for (name, attributes) in CASES {
        let dump = root.join(format!("dump-{name}"));
        let file = root.join("expression.nix");
        let text = format!("let {COMMON} in derivation (common // {attributes})");
        std::fs::write(&file, text.replace("DUMP", &format!("{:?}", dump.to_str().unwrap()))).unwrap();
        let path = Nix::run(nix.command("nix-instantiate").arg(&file));
        let path = store_dir.parse(path.trim()).unwrap();
        let derivation = read_derivation(&store_dir, &path);
        let options = Options::read(&derivation, &store_dir).unwrap();

        // The first build makes the outputs where they belong, the second beside them.
        for arguments in [&[][..], &["--check"]] {
            let _ = std::fs::remove_dir_all(&dump);
            std::fs::create_dir(&dump).unwrap();
            Nix::run(nix.command("nix-build").arg("--no-out-link").args(arguments).arg(store_dir.display(&path)));
            let theirs = dumped(&dump, &derivation.builder);
            let value = |name: &str| String::from_utf8(theirs.environment[name.as_bytes()].clone()).unwrap();
            let outputs: BTreeMap<_, _> = match theirs.files.iter().find(|file| file.name == ".attrs.json") {
                Some(file) => {
                    let attributes: Value = serde_json::from_slice(&file.contents).unwrap();
                    serde_json::from_value(attributes["outputs"].clone()).unwrap()
                }
                None => derivation.outputs.keys().map(|name| (name.clone(), value(name))).collect(),
            };
            let is_beside = outputs["out"] != store_dir.display(derivation.outputs["out"].path().unwrap());
            assert_eq!(is_beside, !arguments.is_empty());

            let settings = Settings {
                cores: 3,
                build_directory: value("NIX_BUILD_TOP"),
                impure_environment: [
                    ("UNICORN".to_owned(), b"from outside".to_vec()),
                    ("PATH".to_owned(), std::env::var("PATH").unwrap_or_default().into_bytes()),
                ]
                .into(),
            };
            let inputs = Known::new(&nix, &store_dir);
            let mut ours = prepare(&derivation, &options, &store_dir, &settings, &outputs, &inputs).unwrap();
            ours.files.sort_by(|left, right| left.name.cmp(&right.name));
            assert_eq!(show(&ours), show(&theirs), "{name} {arguments:?}");
            assert_eq!(ours, theirs);
        }
    }
}
