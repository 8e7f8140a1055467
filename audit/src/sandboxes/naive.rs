//! A registrar as one would write it on an afternoon: no sandbox, and what the builder makes is taken over as it is. The control of
//! the probes that look at outputs.

use std::fs;
use std::path::PathBuf;

use anchorhold_probe::observation::{Launch, OutputKind};

use super::{Ground, Inside, Sandbox, line, text};

/// The registrar.
#[derive(Debug)]
pub struct Naive;

/// In the folder whose read-only ones are opened before the run's own is taken away.
fn output(ground: &Ground) -> PathBuf {
    ground.folder.join("store/output")
}

impl Sandbox for Naive {
    fn name(&self) -> String {
        "naive".into()
    }

    fn version(&self, _ground: &Ground) -> Result<String, String> {
        Ok("a shell".into())
    }

    fn prepare(&self, ground: &Ground) -> Result<Inside, String> {
        let store = ground.folder.join("store");
        fs::create_dir(&store).map_err(|error| format!("making {}: {error}", store.display()))?;
        Ok(Inside { output: Some(text(&output(ground))), ..Inside::of_host(ground) })
    }

    fn registers(&self, _kind: OutputKind) -> bool {
        true
    }

    fn registered(&self, ground: &Ground, _stdout: &[u8]) -> Option<PathBuf> {
        Some(output(ground)).filter(|output| fs::symlink_metadata(output).is_ok())
    }

    fn launch(&self, ground: &Ground, words: &[String]) -> Result<Launch, String> {
        // Without -h, chmod follows the link that it is given: the mistake that is meant.
        let script =
            "chmod -R u+w \"$1\" 2>/dev/null; rm -rf \"$1\"; out=$1; shift; \"$@\" || exit; chmod -R a-w \"$out\"";
        let mut all = ["/bin/sh", "-c", script, "sh"].map(str::to_owned).to_vec();
        all.push(text(&output(ground)));
        all.extend(words.iter().cloned());
        Ok(line(all))
    }
}
