//! A store of its own with tools for builders in it, and `anchorhold` working on that store.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anchorhold_tests::probe;
use anchorhold_tests::room::anchorhold;
use anchorhold_tests::running::Running;
use anchorhold_tests::world::make_removable;
pub use anchorhold_tests::world::text;
use serde_json::Value;

use crate::recipe::Recipe;

/// Seconds after which a build of ours has hung, unless a test says otherwise.
const LIMIT: &str = "60";

/// Where Debian's busybox-static is.
const BUSYBOX: &str = "/bin/busybox";

/// A store of its own.
pub struct World {
    /// Everything of it lies in here; `tmp` is where the program keeps failed builds.
    pub directory: tempfile::TempDir,
    /// A store path with busybox and its applets in `bin`.
    pub tools: String,
}

impl World {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("tmp")).unwrap();
        let mut world = Self { directory, tools: String::new() };
        let bin = world.path("tools/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy(BUSYBOX, bin.join("busybox")).expect("busybox-static is installed");
        let applets = Command::new(BUSYBOX).arg("--list").output().unwrap();
        for applet in text(&applets.stdout).lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        world.tools = world.add(&world.path("tools"));
        world
    }

    /// A path in its directory, outside the store.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// A file in its directory.
    pub fn file(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        path
    }

    /// Where a store path's files are.
    pub fn real(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// What a file in the store holds.
    #[track_caller]
    pub fn read(&self, path: &str) -> String {
        let real = self.real(path);
        text(&fs::read(&real).unwrap_or_else(|error| panic!("{}: {error}", real.display())))
    }

    /// The program, at work on this store.
    pub fn command<T: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = T>) -> Command {
        let mut command = Command::new(anchorhold());
        command
            .args(arguments)
            .env("ANCHORHOLD_STORE", self.root())
            .env("TMPDIR", self.path("tmp"))
            .env("HOME", self.directory.path())
            .env_remove("XDG_CONFIG_HOME")
            .stdin(Stdio::null());
        command
    }

    pub fn ask(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of what must succeed.
    #[track_caller]
    pub fn said(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// The same with something on its standard input.
    pub fn fed(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // One that refuses early closes its end.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        child.wait_with_output().unwrap()
    }

    /// Adds a file or directory.
    #[track_caller]
    pub fn add(&self, file: &Path) -> String {
        self.said(&["store", "add", file.to_str().unwrap()]).trim().to_owned()
    }

    /// Adds a file of this name with these contents.
    #[track_caller]
    pub fn add_file(&self, name: &str, contents: &str) -> String {
        self.add(&self.file(name, contents))
    }

    /// Adds the probe: the store path of the program.
    pub fn add_probe(&self) -> String {
        let program = self.path("room-probe");
        fs::copy(probe::path(), &program).unwrap();
        self.add(&program)
    }

    /// Puts a derivation into the store; its path.
    #[track_caller]
    pub fn derivation(&self, recipe: &Recipe) -> String {
        let added = self.fed(&["derivation", "add"], recipe.json().to_string().as_bytes());
        assert!(added.status.success(), "{}", text(&added.stderr));
        text(&added.stdout).trim().to_owned()
    }

    /// Where an output of a derivation will be.
    #[track_caller]
    pub fn output(&self, derivation: &str, name: &str) -> String {
        let shown = self.said(&["derivation", "show", "--old", derivation]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        shown[derivation]["outputs"][name]["path"].as_str().unwrap().to_owned()
    }

    /// Runs `anchorhold build` on derivations, with these options. Fixed outputs have no network unless these say so: not every
    /// user here can have one.
    pub fn build<T: AsRef<str>>(&self, derivations: &[T], options: &[&str]) -> Ended {
        let derivations = derivations.iter().map(AsRef::as_ref);
        let arguments = ["build", "--json", "--option", "timeout", LIMIT, "--option", "network", "none"]
            .into_iter()
            .chain(options.iter().copied())
            .chain(derivations);
        Ended::of(&self.command(arguments).output().unwrap())
    }

    /// Starts the program; its lines are those of standard output *and* error.
    pub fn start<T: AsRef<str>>(&self, arguments: &[T]) -> Started {
        let inner = self.command(arguments.iter().map(AsRef::as_ref));
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"exec "$0" "$@" 2>&1"#]).arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Started(Running::start(command))
    }

    /// A gate that builders can wait at, shut.
    pub fn gate(&self) -> Gate {
        let directory = self.path("gate");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).unwrap();
        Gate { option: format!("/gate={}", directory.display()), directory }
    }

    /// Builds what must succeed; the path of its output `out`.
    #[track_caller]
    pub fn built(&self, recipe: &Recipe) -> String {
        self.built_with(recipe, &[])
    }

    /// The same with options.
    #[track_caller]
    pub fn built_with(&self, recipe: &Recipe, options: &[&str]) -> String {
        let derivation = self.derivation(recipe);
        let ended = self.build(&[&derivation], options);
        assert_eq!((ended.code, ended.status(&derivation)), (0, "Built"), "{}", ended.err);
        ended.result(&derivation)["outputs"]["out"].as_str().unwrap_or_default().to_owned()
    }

    /// What the builder of a script writes to its output.
    #[track_caller]
    pub fn seen(&self, script: &str) -> String {
        self.read(&self.built(&Recipe::new(self, "seen", script)))
    }

    /// Builds what must fail in this class; all that was said, in `errorMsg` and on standard error.
    #[track_caller]
    pub fn fails(&self, recipe: &Recipe, class: &str) -> Ended {
        self.fails_with(recipe, class, &[])
    }

    /// The same with options.
    #[track_caller]
    pub fn fails_with(&self, recipe: &Recipe, class: &str, options: &[&str]) -> Ended {
        let derivation = self.derivation(recipe);
        let ended = self.build(&[&derivation], options);
        assert_eq!(ended.status(&derivation), class, "{}", ended.err);
        let code = match class {
            "PermanentFailure" | "InputRejected" => 100,
            "TimedOut" => 101,
            "HashMismatch" => 102,
            "NotDeterministic" => 104,
            _ => 1,
        };
        assert_eq!(ended.code, code, "{}", ended.err);
        if class != "NotDeterministic" {
            for output in recipe.output_names() {
                let path = self.output(&derivation, &output);
                assert!(fs::symlink_metadata(self.real(&path)).is_err(), "{path} is reachable after a failure");
                assert!(!self.valid().contains(&path), "{path} is valid after a failure");
            }
        }
        assert_eq!(self.leftovers(), Vec::<String>::new(), "directories of builds are left");
        ended
    }

    /// All valid paths.
    #[track_caller]
    pub fn valid(&self) -> Vec<String> {
        self.said(&["store", "query", "--all"]).lines().map(str::to_owned).collect()
    }

    /// What is left of builds that are over.
    pub fn leftovers(&self) -> Vec<String> {
        let builds = self.root().join("nix/var/nix/anchorhold/builds");
        let entries = fs::read_dir(builds).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Fails if the store is not what its database says.
    #[track_caller]
    pub fn is_whole(&self) {
        self.said(&["store", "verify", "--check-contents"]);
    }

    /// What is known of a valid path.
    #[track_caller]
    pub fn facts(&self, path: &str) -> Value {
        let said = self.said(&["store", "path-info", "--json", path]);
        let facts: Value = serde_json::from_str(&said).unwrap();
        facts[0].clone()
    }
}

/// The directories of a store are read-only, and only the superuser removes what is in such.
impl Drop for World {
    fn drop(&mut self) {
        make_removable(self.directory.path());
    }
}

/// Builders see `/gate/open` when it is open.
pub struct Gate {
    /// The value of `extra-sandbox-paths` that shows it to them.
    pub option: String,
    directory: PathBuf,
}

impl Gate {
    pub fn open(&self) {
        fs::write(self.directory.join("open"), "").unwrap();
    }
}

/// The program at work.
pub struct Started(pub Running);

impl Started {
    /// Waits for a line with these words.
    #[track_caller]
    pub fn line_with(&mut self, words: &str) -> String {
        loop {
            let line = self.0.line();
            if line.contains(words) {
                return line;
            }
        }
    }

    pub fn ended(self) -> anchorhold_tests::room::Ended {
        self.0.to_the_end()
    }
}

/// A call of `anchorhold build` that is over.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    /// The objects of `--json`; none if nothing could be begun.
    pub results: Vec<Value>,
    /// Standard error.
    pub err: String,
}

impl Ended {
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            results: serde_json::from_slice(&output.stdout).unwrap_or_default(),
            err: text(&output.stderr),
        }
    }

    #[track_caller]
    pub fn result(&self, derivation: &str) -> &Value {
        let result = self.results.iter().find(|result| result["drvPath"] == derivation);
        result.unwrap_or_else(|| panic!("there is no result of {derivation}: {}", self.err))
    }

    /// The class of a derivation's result; `-` if it was not begun.
    pub fn status(&self, derivation: &str) -> &str {
        let result = self.results.iter().find(|result| result["drvPath"] == derivation);
        result.and_then(|result| result["status"].as_str()).unwrap_or("-")
    }

    /// Fails unless a person reads all these words.
    #[track_caller]
    pub fn says(&self, words: &[&str]) -> &Self {
        for word in words {
            assert!(self.err.contains(word), "‘{word}’ is not said: {}", self.err);
        }
        self
    }
}
