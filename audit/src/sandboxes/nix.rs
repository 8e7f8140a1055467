//! A build of the Nix that is installed, sandboxed, in a store of the run's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anchorhold_probe::observation::{Launch, OutputKind};
use anchorhold_probe::world::World;

use super::{Ground, Inside, Sandbox, line, text, version_of};
use crate::user;

/// `nix-build`.
#[derive(Debug)]
pub struct Nix {
    /// A build whose output's hash is known beforehand, which has a network.
    pub fixed_output: bool,
}

/// SHA-256 of [`anchorhold_probe::observation::AGREED`].
const AGREED_HASH: &str = "adc515a79fad637645d8b96a66c23fe46ec4216058d9be10f697547ddd3c1cf2";

impl Nix {
    /// Options of every call: a store below the run's folder, and no configuration but the one given here.
    fn options(ground: &Ground) -> Vec<String> {
        let mut all = vec!["--store".into(), text(&ground.folder.join("nix"))];
        let group = fs::read_to_string("/etc/group").unwrap_or_default();
        // In a user namespace with few ids there are none to give to build users.
        let ids = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let has_ids = ids.split_whitespace().nth(2).and_then(|count| count.parse::<u32>().ok()) > Some(60_000);
        let has_group = group.lines().any(|line| line.starts_with("nixbld:"));
        let builders = if has_group && has_ids { "nixbld" } else { "" };
        for (name, value) in [
            ("build-users-group", builders),
            ("sandbox", "true"),
            ("sandbox-fallback", "false"),
            ("substituters", ""),
            ("substitute", "false"),
        ] {
            all.extend(["--option".into(), name.into(), value.into()]);
        }
        all
    }
}

impl Sandbox for Nix {
    fn name(&self) -> String {
        if self.fixed_output { "nix-fixed-output".into() } else { "nix".into() }
    }

    fn version(&self, _ground: &Ground) -> Result<String, String> {
        version_of("nix-build", &["--version"])
    }

    fn place(&self) -> &'static Path {
        // Newer ones refuse to build below a folder that everybody may write.
        let own = Path::new("/var/lib");
        if user::is_root() && own.is_dir() { own } else { Path::new("/var/tmp") }
    }

    fn prepare(&self, ground: &Ground) -> Result<Inside, String> {
        let added = Command::new("nix-store")
            .args(Self::options(ground))
            .args(["--add", &text(&ground.shown)])
            .env("HOME", &ground.folder)
            .output()
            .map_err(|error| format!("nix-store: {error}"))?;
        if !added.status.success() {
            return Err(format!("nix-store --add: {}", String::from_utf8_lossy(&added.stderr).trim()));
        }
        let shown = String::from_utf8_lossy(&added.stdout).trim().to_owned();
        Ok(Inside {
            program: format!("{shown}/anchorhold-probe").into(),
            input: format!("{shown}/input/file").into(),
            scratch: "/build".into(),
            output: Some("$out".into()),
        })
    }

    fn grant(&self, world: &mut World) {
        // What a fixed output needs is a way to the internet, and that is not asked for here.
        world.network_granted = self.fixed_output;
    }

    fn launch(&self, ground: &Ground, words: &[String]) -> Result<Launch, String> {
        let (program, arguments) = words.split_first().ok_or("no command")?;
        let input = program.strip_suffix("/anchorhold-probe").unwrap_or(program);
        let quoted =
            |word: &str| format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${"));
        let arguments: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
        let fixed = if self.fixed_output {
            // Any hash does for the battery: that it is wrong shows only after the build, and the log has been written by then.
            let is_output = words.get(1).is_some_and(|word| word == "output");
            let hash = if is_output { AGREED_HASH.to_owned() } else { "0".repeat(64) };
            format!("outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; outputHash = \"{hash}\";")
        } else {
            String::new()
        };
        let expression = format!(
            "derivation {{ name = \"audit\"; system = \"{}-linux\"; builder = builtins.storePath {input} + \"/anchorhold-probe\"; \
             args = [ {} ]; {fixed} }}",
            std::env::consts::ARCH,
            arguments.join(" "),
        );
        let file = ground.folder.join("audit.nix");
        fs::write(&file, expression).map_err(|error| format!("{}: {error}", file.display()))?;
        let mut all = vec!["nix-build".to_owned()];
        all.extend(Self::options(ground));
        all.extend(["--no-out-link".into(), text(&file)]);
        let mut launch = line(all);
        launch.environment.insert("HOME".into(), text(&ground.folder));
        Ok(launch)
    }

    fn registers(&self, kind: OutputKind) -> bool {
        // A fixed output is registered only if it is what was expected, which one kind is until it is written to too late.
        !self.fixed_output || kind == OutputKind::Late
    }

    fn registered(&self, ground: &Ground, stdout: &[u8]) -> Option<PathBuf> {
        let path = String::from_utf8_lossy(stdout);
        let path = path.lines().rev().find_map(|line| line.trim().strip_prefix("/nix/store/"))?;
        Some(ground.folder.join("nix/nix/store").join(path))
    }
}
