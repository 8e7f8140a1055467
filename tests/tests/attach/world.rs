//! A request, the store and the directories that it names, as Nix would have made them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anchorhold_tests::recipe::{busybox, lay_out_tools};
use anchorhold_tests::room::anchorhold;
use serde_json::{Value, json};

/// One build to be asked for. Its store's files lie elsewhere than the store is said to be.
pub struct World {
    directory: tempfile::TempDir,
    /// What will be written to `build.json`.
    pub request: Value,
}

impl World {
    /// A world in which a shell runs `script`, and its outputs.
    pub fn new(script: &str, outputs: &[&str]) -> Option<Self> {
        let busybox = busybox()?;
        let directory = tempfile::tempdir().unwrap();
        // The room of root's build has another id than root.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let world = Self { request: Value::Null, directory };
        let tools = format!("{}-busybox", "a".repeat(32));
        let applets =
            ["sh", "cat", "chmod", "env", "hostname", "id", "ln", "ls", "mkdir", "mkfifo", "pwd", "sleep", "touch"];
        lay_out_tools(&world.store().join(&tools), busybox, &applets);
        fs::create_dir_all(world.top().join("build")).unwrap();
        for directory in [world.top(), world.top().join("build")] {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
        }
        let path = |name: &str| format!("/nix/store/{}-{}", "b".repeat(32), output_name(name));
        let mut env = json!({
            "PATH": format!("/nix/store/{tools}/bin"), "HOME": "/homeless-shelter", "NIX_STORE": "/nix/store",
            "NIX_BUILD_TOP": "/build", "TMPDIR": "/build", "PWD": "/build", "TERM": "xterm-256color", "name": "thing",
        });
        for name in outputs {
            env[*name] = path(name).into();
        }
        let named: serde_json::Map<_, _> = outputs.iter().map(|name| ((*name).to_owned(), path(name).into())).collect();
        let request = json!({
            "version": 1,
            "system": format!("{}-linux", std::env::consts::ARCH),
            "builder": format!("/nix/store/{tools}/bin/sh"),
            "args": ["-c", script],
            "env": env,
            "inputPaths": [format!("/nix/store/{tools}")],
            "outputs": named,
            "storeDir": "/nix/store",
            "realStoreDir": world.store(),
            "topTmpDir": world.top(),
            "tmpDir": world.top().join("build"),
            "tmpDirInSandbox": "/build",
        });
        Some(Self { request, ..world })
    }

    /// Where the store's files lie.
    pub fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// What Nix makes for one build.
    pub fn top(&self) -> PathBuf {
        self.directory.path().join("top")
    }

    /// Where the file of an output lies.
    pub fn output(&self, name: &str) -> PathBuf {
        self.store().join(format!("{}-{}", "b".repeat(32), output_name(name)))
    }

    /// The names in the store besides the tools.
    pub fn made(&self) -> Vec<String> {
        let names = fs::read_dir(self.store()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with("-busybox")).collect()
    }

    /// The call, with the request written. Started as Nix does it: in the build directory, with the daemon's environment.
    pub fn command(&self, options: &[&str]) -> Command {
        let file = self.top().join("build.json");
        fs::write(&file, self.request.to_string()).unwrap();
        let mut command = Command::new(anchorhold());
        command.arg("attach").args(options).arg(file).current_dir(self.top().join("build"));
        command.env("OF_THE_DAEMON", "secret").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub fn attach(&self, options: &[&str]) -> Attached {
        Attached::of(&self.command(options).output().unwrap())
    }
}

fn output_name(name: &str) -> String {
    if name == "out" { "thing".to_owned() } else { format!("thing-{name}") }
}

/// What came of a call.
#[derive(Debug)]
pub struct Attached {
    /// Its exit status.
    pub status: Option<i32>,
    /// What was said before the room stood, or instead.
    pub before: String,
    /// The build's log, if the room stood.
    pub log: Option<String>,
    /// The message of an error in Nix's own form, if there was one.
    pub error: Option<String>,
}

impl Attached {
    fn of(output: &Output) -> Self {
        let heard = &output.stdout;
        assert!(
            output.stderr.is_empty(),
            "all of it belongs on one stream: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let line = |byte: u8| heard.windows(2).position(|two| two == [byte, b'\n']);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (mut log, mut error) = (None, None);
        let end = match (line(2), line(1)) {
            (Some(at), _) => {
                log = Some(text(&heard[at + 2..]));
                at
            }
            (None, Some(at)) => {
                error = Some(message(&heard[at + 2..]));
                at
            }
            (None, None) => heard.len(),
        };
        Self { status: output.status.code(), before: text(&heard[..end]), log, error }
    }

    /// The log of a room that stood.
    #[track_caller]
    pub fn log(&self) -> &str {
        self.log.as_deref().unwrap_or_else(|| panic!("no room stood: {self:?}"))
    }

    /// The error of a build that was not started.
    #[track_caller]
    pub fn error(&self) -> &str {
        assert_eq!(self.status, Some(1), "{self:?}");
        self.error.as_deref().unwrap_or_else(|| panic!("no error in Nix's form: {self:?}"))
    }
}

/// Reads an error as Nix does: type, level, name, message, no position, no traces.
fn message(mut bytes: &[u8]) -> String {
    fn number(bytes: &mut &[u8]) -> u64 {
        let (head, rest) = bytes.split_at(8);
        *bytes = rest;
        u64::from_le_bytes(head.try_into().unwrap())
    }
    fn text(bytes: &mut &[u8]) -> String {
        let length = number(bytes) as usize;
        let (head, rest) = bytes.split_at(length.next_multiple_of(8));
        *bytes = rest;
        String::from_utf8(head[..length].to_vec()).unwrap()
    }
    assert_eq!(text(&mut bytes), "Error");
    assert_eq!(number(&mut bytes), 0, "the level of an error");
    assert_eq!(text(&mut bytes), "Error");
    let message = text(&mut bytes);
    assert_eq!((number(&mut bytes), number(&mut bytes)), (0, 0));
    assert!(bytes.is_empty(), "nothing comes after it");
    message
}
