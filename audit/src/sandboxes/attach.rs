//! Builds that a Nix hands over, by `anchorhold attach`. The request is ours, and so are the store and the directories that Nix
//! would have made: the room is the same, and no Nix is needed.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anchorhold_probe::observation::{Launch, OutputKind};
use serde_json::json;

use super::{Ground, Inside, Sandbox, line, text, version_of};

/// `anchorhold attach`. Each launch is a build of its own, with an output and a directory of its own.
#[derive(Debug, Default)]
pub struct Attach {
    launches: AtomicU32,
}

/// The name of the input in the store. Nobody asks an external builder where the letters come from.
const INPUT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-audited";

/// Where the store's files lie.
fn store(ground: &Ground) -> PathBuf {
    ground.folder.join("store")
}

/// The name of the output of a launch.
fn output(launch: u32) -> String {
    format!("{}-audit-{launch}", "b".repeat(32))
}

impl Sandbox for Attach {
    fn name(&self) -> String {
        "attach".into()
    }

    fn version(&self, ground: &Ground) -> Result<String, String> {
        version_of(&ground.anchorhold, &["--version"])
    }

    fn prepare(&self, ground: &Ground) -> Result<Inside, String> {
        let input = store(ground).join(INPUT);
        let made = || {
            fs::create_dir_all(input.join("input"))?;
            for (name, mode) in [("anchorhold-probe", 0o555), ("input/file", 0o444)] {
                fs::copy(ground.shown.join(name), input.join(name))?;
                fs::set_permissions(input.join(name), Permissions::from_mode(mode))?;
            }
            // The directories are those of the user who builds; inputs are not.
            give(&store(ground), ground)
        };
        made().map_err(|error: std::io::Error| format!("making a store in {}: {error}", store(ground).display()))?;
        let shown = Path::new("/nix/store").join(INPUT);
        Ok(Inside {
            program: shown.join("anchorhold-probe"),
            input: shown.join("input/file"),
            scratch: "/build".into(),
            output: Some("$out".into()),
        })
    }

    fn launch(&self, ground: &Ground, words: &[String]) -> Result<Launch, String> {
        let (program, arguments) = words.split_first().ok_or("no command")?;
        let number = self.launches.fetch_add(1, Ordering::Relaxed) + 1;
        let output = format!("/nix/store/{}", output(number));
        let top = ground.folder.join(format!("top-{number}"));
        let build = top.join("build");
        let made = || {
            for folder in [&top, &build] {
                fs::create_dir(folder)?;
                fs::set_permissions(folder, Permissions::from_mode(0o700))?;
                give(folder, ground)?;
            }
            Ok(())
        };
        made().map_err(|error: std::io::Error| format!("making {}: {error}", build.display()))?;
        let request = json!({
            "version": 1,
            "system": format!("{}-linux", std::env::consts::ARCH),
            "builder": program,
            "args": arguments,
            "env": {
                "PATH": "/path-not-set", "HOME": "/homeless-shelter", "NIX_STORE": "/nix/store", "NIX_BUILD_CORES": "0",
                "NIX_BUILD_TOP": "/build", "TMPDIR": "/build", "TEMPDIR": "/build", "TMP": "/build", "TEMP": "/build",
                "PWD": "/build", "TERM": "xterm-256color", "NIX_LOG_FD": "2", "name": "audit", "out": output,
                "builder": program, "system": format!("{}-linux", std::env::consts::ARCH),
            },
            "inputPaths": [format!("/nix/store/{INPUT}")],
            "outputs": { "out": output },
            "storeDir": "/nix/store",
            "realStoreDir": store(ground),
            "topTmpDir": top,
            "tmpDir": build,
            "tmpDirInSandbox": "/build",
        });
        let file = ground.folder.join("build.json");
        fs::write(&file, request.to_string()).map_err(|error| format!("{}: {error}", file.display()))?;
        let mut launch = line([text(&ground.anchorhold), "attach".into(), text(&file)]);
        launch.directory = build;
        Ok(launch)
    }

    fn registers(&self, _kind: OutputKind) -> bool {
        true
    }

    fn registered(&self, ground: &Ground, _stdout: &[u8]) -> Option<PathBuf> {
        let output = store(ground).join(output(self.launches.load(Ordering::Relaxed)));
        fs::symlink_metadata(&output).is_ok().then_some(output)
    }
}

/// Gives a directory to the user who builds.
fn give(folder: &Path, ground: &Ground) -> std::io::Result<()> {
    ground.user.as_ref().map_or(Ok(()), |user| chown(folder, Some(user.uid), Some(user.gid)))
}
