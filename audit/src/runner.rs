//! One sandbox: observers up, battery in, observers down.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anchorhold_probe::verdict::{Finding, Verdict};
use anchorhold_probe::world::World;
use tempfile::TempDir;

use crate::battery::Battery;
use crate::error::Error;
use crate::interrupt;
use crate::observers::launcher::Launcher;
use crate::observers::{Observers, Sighting};
use crate::program;
use crate::report::Run;
use crate::sandboxes::{Ground, Sandbox};
use crate::trials::Trials;
use crate::user::{self, User};

/// The programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `anchorhold`.
    pub anchorhold: PathBuf,
    /// `anchorhold-probe`, which also watches from outside.
    pub probe: PathBuf,
    /// What runs inside: the same, or a reviewer's own program.
    pub battery: PathBuf,
}

/// Runs the battery, or those of its probes that are named, in a sandbox. What goes wrong in it is in the result.
///
/// # Errors
/// What goes wrong outside: files, observers, a signal.
pub fn run(
    sandbox: &dyn Sandbox,
    programs: &Programs,
    user: Option<&User>,
    room_options: &[String],
    only: &[String],
) -> Result<Run, Error> {
    let who = match user {
        Some(user) => user.name.clone(),
        None if user::is_root() => "root".to_owned(),
        None => std::env::var("USER").unwrap_or_else(|_| "user".to_owned()),
    };
    let mut result = Run {
        sandbox: sandbox.name(),
        user: who,
        baseline: sandbox.name() == "host",
        version: None,
        command: Vec::new(),
        problem: None,
        missing: Vec::new(),
        granted: sandbox.granted().iter().map(ToString::to_string).collect(),
        milliseconds: 0,
        battery: Battery::default(),
    };
    let nonce = nonce()?;
    let (folder, ground, outside) = ground(programs, sandbox.place(), user, room_options, &nonce)?;
    match sandbox.version(&ground) {
        Ok(version) => result.version = Some(version),
        Err(problem) => {
            result.problem = Some(problem);
            return Ok(result);
        }
    }
    let inside = match sandbox.prepare(&ground) {
        Ok(inside) => inside,
        Err(problem) => {
            result.problem = Some(problem);
            return Ok(result);
        }
    };
    let observers = Observers::start(&nonce, &outside)?;
    let mut world =
        World { input: Some(inside.input.clone()), scratch: Some(inside.scratch.clone()), ..World::default() };
    observers.describe(&mut world);
    world.namespaces = namespaces();
    sandbox.grant(&mut world);
    let told = world.clone();
    let probe = ground.folder.join("observer");
    let launcher = Launcher::start(&probe, user, &outside, &mut world)?;
    result.missing.clone_from(&launcher.missing);
    let mut words = vec![inside.program.to_string_lossy().into_owned(), "run".into(), "--world".into()];
    words.push(serde_json::to_string(&world).expect("plain data has a JSON form"));
    for word in only {
        words.extend(["--only".into(), word.clone()]);
    }
    if let Some(output) = &inside.output {
        words.extend(["--output".into(), output.clone()]);
    }
    match sandbox.launch(&ground, &words) {
        Ok(launch) => {
            result.command = launch.words.iter().map(|word| shown(word, &words[3], folder.path())).collect();
            let started = Instant::now();
            let ended = launcher.run(&probe, &launch)?;
            result.milliseconds = started.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
            let lines = sandbox.output(&ground, &ended.output).unwrap_or_default();
            result.battery = Battery::parse(&lines);
            if result.battery.rows.is_empty() {
                result.battery = Battery::parse(&[&ended.output[..], b"\n", &ended.errors].concat());
            }
            for row in &mut result.battery.rows {
                row.finding.detail = shown(&row.finding.detail, &nonce, folder.path());
            }
            // A reviewer's own program may leave the last line out; then its status says whether anything was lost.
            if programs.battery != programs.probe && ended.status == Some(0) && !result.battery.rows.is_empty() {
                result.battery.complete = true;
            }
            if ended.watched {
                settle(&mut result.battery);
            }
            upgrade(&mut result.battery, ended.sightings.into_iter().chain(observers.sightings()));
            result.problem = ended.problem.or_else(|| {
                (!result.battery.complete).then(|| {
                    let said = String::from_utf8_lossy(&ended.errors);
                    let said: Vec<&str> =
                        said.lines().filter(|line| !line.trim().is_empty() && !line.contains("{\"")).collect();
                    let last = said.iter().rev().take(3).rev().copied().collect::<Vec<_>>().join("; ");
                    let status = ended.status.map_or("?".to_owned(), |status| status.to_string());
                    format!("the battery did not come to its end (status {status}): {last}")
                })
            });
            if result.problem.is_none() && programs.battery == programs.probe {
                let trials = Trials {
                    sandbox,
                    ground: &ground,
                    inside: &inside,
                    user,
                    world: &told,
                    outside: &outside,
                    probe: &probe,
                    observers: &observers,
                };
                trials.make(&mut result.battery)?;
                for row in &mut result.battery.rows {
                    row.finding.detail = shown(&row.finding.detail, &nonce, folder.path());
                }
            }
        }
        Err(problem) => result.problem = Some(problem),
    }
    sandbox.clean_up(&ground);
    if interrupt::asked() { Err(Error::Interrupted) } else { Ok(result) }
}

/// What only the outside can tell, when it looked and before what it saw is counted.
fn settle(battery: &mut Battery) {
    for row in &mut battery.rows {
        let is_outside = matches!(row.id.as_str(), "life.daemon" | "life.pipe.hold");
        if is_outside && row.finding.verdict == Verdict::Inconclusive && row.finding.detail.contains("was left behind")
        {
            row.finding = Finding::held("gone with the sandbox");
        }
    }
}

/// What was seen from outside counts, whatever the probe could tell.
fn upgrade(battery: &mut Battery, sightings: impl Iterator<Item = Sighting>) {
    for sighting in sightings {
        if let Some(row) = battery.rows.iter_mut().find(|row| row.id == sighting.id)
            && row.finding.verdict != Verdict::Reached
        {
            row.finding = Finding::reached(sighting.detail);
        }
    }
}

/// Text as reports show it, the same in every run: without the description of the observers or their mark, and with `$RUN` for
/// the run's folder.
fn shown(text: &str, own: &str, folder: &Path) -> String {
    text.replace(own, "{…}").replace(&*folder.to_string_lossy(), "$RUN")
}

/// Ours, which are the launcher's.
fn namespaces() -> std::collections::BTreeMap<String, String> {
    let entries = fs::read_dir("/proc/self/ns").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let link = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), link.to_string_lossy().into_owned()))
        })
        .collect()
}

fn nonce() -> Result<String, Error> {
    let mut bytes = [0_u8; 12];
    let source = Path::new("/dev/urandom");
    fs::File::open(source)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .map_err(Error::file("reading", source))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The folder of a run, taken away when dropped.
struct Folder(TempDir);

impl Folder {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Folders of a store are read-only, and for whoever is not root that keeps them from being removed.
        for store in ["store", "nix"] {
            open_folders(&self.path().join(store), 0);
        }
    }
}

/// Lets folders be changed by their owner. Links are not followed, and nothing of the sandbox runs any more.
fn open_folders(folder: &Path, depth: usize) {
    const DEEPEST: usize = 100;
    let is_folder = fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir());
    if !is_folder || depth > DEEPEST {
        return;
    }
    let _ = fs::set_permissions(folder, Permissions::from_mode(0o700));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        open_folders(&entry.path(), depth + 1);
    }
}

/// Makes the folder of a run: what is shown, what is outside, where is room to write.
fn ground(
    programs: &Programs,
    place: &Path,
    user: Option<&User>,
    room_options: &[String],
    nonce: &str,
) -> Result<(Folder, Ground, PathBuf), Error> {
    let folder = tempfile::Builder::new()
        .prefix("anchorhold-audit-")
        .tempdir_in(place)
        .map(Folder)
        .map_err(Error::file("making a folder in", place))?;
    let top = folder.path().to_owned();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::file("changing the mode of", path))
    };
    mode(&top, 0o755)?;
    let (visible, scratch, outside) = (top.join("shown"), top.join("scratch"), top.join("outside"));
    for path in [&visible, &visible.join("input"), &scratch, &outside] {
        fs::create_dir(path).map_err(Error::file("making", path))?;
    }
    mode(&scratch, 0o777)?;
    let probe = visible.join(program::NAME);
    for (from, to) in [(&programs.battery, &probe), (&programs.probe, &top.join("observer"))] {
        fs::copy(from, to).map_err(Error::file("copying the probe program to", to))?;
        mode(to, 0o755)?;
    }
    let input = visible.join("input/file");
    fs::write(&input, "an input\n").map_err(Error::file("writing", &input))?;
    let mut anchorhold = programs.anchorhold.clone();
    if let Some(user) = user {
        // Theirs, so that nothing but the sandbox keeps them from changing it; and the program where they can walk to.
        for path in [&visible, &visible.join("input"), &input, &scratch, &probe] {
            chown(path, Some(user.uid), Some(user.gid)).map_err(Error::file("giving away", path))?;
        }
        anchorhold = top.join("anchorhold");
        fs::copy(&programs.anchorhold, &anchorhold).map_err(Error::file("copying anchorhold to", &anchorhold))?;
        mode(&anchorhold, 0o755)?;
    }
    let ground = Ground {
        folder: top,
        shown: visible,
        scratch,
        anchorhold,
        user: user.cloned(),
        room_options: room_options.to_owned(),
        nonce: nonce.to_owned(),
    };
    Ok((folder, ground, outside))
}
