//! Our own builds, by `anchorhold build`, in a store of the run's own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anchorhold_probe::observation::{Launch, OutputKind};
use serde_json::json;

use super::{Ground, Inside, Sandbox, line, text, version_of};

/// `anchorhold build`.
#[derive(Debug)]
pub struct Build;

impl Build {
    fn anchorhold(&self, ground: &Ground, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&ground.anchorhold);
        command.args(words).env("ANCHORHOLD_STORE", ground.folder.join("store"));
        if let Some(user) = &ground.user {
            use std::os::unix::process::CommandExt;
            command.uid(user.uid).gid(user.gid).env("HOME", &user.home).env_remove("XDG_RUNTIME_DIR");
        }
        let ended = command.output().map_err(|error| format!("{}: {error}", ground.anchorhold.display()))?;
        if ended.status.success() {
            Ok(String::from_utf8_lossy(&ended.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&ended.stderr).trim().to_owned())
        }
    }
}

impl Sandbox for Build {
    fn name(&self) -> String {
        "build".into()
    }

    fn version(&self, ground: &Ground) -> Result<String, String> {
        version_of(&ground.anchorhold, &["--version"])
    }

    fn prepare(&self, ground: &Ground) -> Result<Inside, String> {
        let store = ground.folder.join("store");
        let failed = |error: std::io::Error| format!("{}: {error}", store.display());
        fs::create_dir_all(&store).map_err(failed)?;
        if let Some(user) = &ground.user {
            std::os::unix::fs::chown(&store, Some(user.uid), Some(user.gid)).map_err(failed)?;
        }
        let shown = self.anchorhold(ground, &["store", "add", &text(&ground.shown)])?;
        Ok(Inside {
            program: format!("{shown}/anchorhold-probe").into(),
            input: format!("{shown}/input/file").into(),
            scratch: "/build".into(),
            output: Some("$out".into()),
        })
    }

    fn launch(&self, ground: &Ground, words: &[String]) -> Result<Launch, String> {
        let (program, arguments) = words.split_first().ok_or("no command")?;
        let input = program.strip_suffix("/anchorhold-probe").unwrap_or(program);
        let derivation = json!({
            "name": "audit", "system": format!("{}-linux", std::env::consts::ARCH), "builder": program, "args": arguments,
            "env": {}, "inputDrvs": {}, "inputSrcs": [input], "outputs": { "out": {} },
        });
        let file = ground.folder.join("audit.json");
        fs::write(&file, derivation.to_string()).map_err(|error| format!("{}: {error}", file.display()))?;
        let derivation = self.anchorhold(ground, &["derivation", "add", &text(&file)])?;
        let mut launch = line([&text(&ground.anchorhold), "build", &derivation]);
        launch.environment.insert("ANCHORHOLD_STORE".into(), text(&ground.folder.join("store")));
        Ok(launch)
    }

    fn registers(&self, _kind: OutputKind) -> bool {
        true
    }

    fn registered(&self, ground: &Ground, stdout: &[u8]) -> Option<PathBuf> {
        let path = String::from_utf8_lossy(stdout);
        let path = path.lines().rev().find_map(|line| line.trim().strip_prefix("/nix/store/"))?;
        Some(ground.folder.join("store/nix/store").join(path))
    }
}
