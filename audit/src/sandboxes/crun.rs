//! crun with the specification that it makes itself: what container engines start from.

use std::fs;
use std::process::Command;

use anchorhold_probe::observation::Launch;
use serde_json::{Value, json};

use super::{Ground, Inside, Sandbox, in_own_mounts, line, rootfs, text, version_of};

/// `crun run`.
#[derive(Debug)]
pub struct Crun;

impl Sandbox for Crun {
    fn name(&self) -> String {
        "crun".into()
    }

    fn version(&self, _ground: &Ground) -> Result<String, String> {
        version_of("crun", &["--version"])
    }

    fn prepare(&self, ground: &Ground) -> Result<Inside, String> {
        rootfs::make(ground)?;
        let _ = fs::remove_file(ground.folder.join("config.json"));
        let made = Command::new("crun")
            .arg("spec")
            .current_dir(&ground.folder)
            .output()
            .map_err(|error| format!("crun spec: {error}"))?;
        if !made.status.success() {
            return Err(format!("crun spec: {}", String::from_utf8_lossy(&made.stderr).trim()));
        }
        Ok(Inside::usual())
    }

    fn launch(&self, ground: &Ground, words: &[String]) -> Result<Launch, String> {
        let file = ground.folder.join("config.json");
        let failed = |error: String| format!("{}: {error}", file.display());
        let text_of = fs::read_to_string(&file).map_err(|error| failed(error.to_string()))?;
        let mut specification: Value = serde_json::from_str(&text_of).map_err(|error| failed(error.to_string()))?;
        specification["process"]["args"] = json!(words);
        specification["process"]["terminal"] = json!(false);
        if let Some(mounts) = specification["mounts"].as_array_mut() {
            mounts.push(json!({ "destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"] }));
        }
        fs::write(&file, specification.to_string()).map_err(|error| failed(error.to_string()))?;
        let name = format!("audit-{}", ground.nonce);
        let state = text(&ground.folder.join("crun"));
        let mut all = in_own_mounts();
        let bundle = text(&ground.folder);
        all.extend(
            ["crun", "--root", &state, "--cgroup-manager=disabled", "run", "--bundle", &bundle, &name]
                .map(str::to_owned),
        );
        Ok(line(all))
    }

    fn clean_up(&self, ground: &Ground) {
        let state = text(&ground.folder.join("crun"));
        let _ = Command::new("crun")
            .args(["--root", &state, "delete", "--force", &format!("audit-{}", ground.nonce)])
            .output();
    }
}
