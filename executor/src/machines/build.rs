//! Builds whose builder runs in a Linux machine: those that require the feature `linux-vm`.
//!
//! Every door describes the room of an ordinary builder first. [`in_machine`] makes of it the room of a machine whose guest sees the
//! same things at the same places: the store with the inputs and the outputs to be, the build directory, the paths of the
//! configuration. What the builder writes lies where it would lie without a machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anchorhold_sandbox::Room;
use anchorhold_sandbox::outcome::End;
use anchorhold_sandbox::quantity::Size;
use anchorhold_sandbox::room::{Entry, Output, Process};
use anchorhold_vmm::exchange::Command;
use anchorhold_vmm::failure::{Failure, FailureClass};
use anchorhold_vmm::linux::Directory;

use super::inputs::InputNames;
use super::supervisor::Report;
use super::{Hook, Machines, Wanted, plain_view, prepare};
use crate::derivation::Derivation;
use crate::derivation::attributes::{AttributeError, Attributes};

/// What a derivation wishes of its machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Memory, in MiB (`vmMemory`).
    memory: Option<u64>,
    /// Processors (`vmCores`).
    cores: Option<u32>,
    /// The bytes of a blank disk (`vmDiskSize`).
    pub disk: Option<u64>,
    /// What runs in the room before the machine (`preVM`).
    before: Option<String>,
    /// What runs in the room after the machine (`postVM`).
    after: Option<String>,
    /// Whether the program has the machine's console as its terminal: no wish of a derivation's.
    pub terminal: bool,
    /// Which guest (`vmImage`), of those that a pair can have.
    pub image: Option<String>,
    /// Further drives of such a guest (`drives`): the letter, and the path of the store behind it.
    pub drives: Vec<(String, PathBuf)>,
}

/// A wish that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum WishError {
    /// The attributes themselves.
    #[error(transparent)]
    Attributes(#[from] AttributeError),
    /// One of them.
    #[error("the attribute ‘{attribute}’ must be {expected}, not ‘{value}’")]
    Value {
        /// Its name.
        attribute: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        value: String,
    },
    /// A wish that is for the other kind of machine.
    #[error(
        "the attribute ‘vmDiskSize’ is for builds that require ‘linux-vm’: a guest beside a controller has the disk of its image"
    )]
    Disk,
}

impl Wishes {
    /// Reads those of a derivation.
    ///
    /// # Errors
    /// Values that cannot be followed.
    pub fn read(derivation: &Derivation) -> Result<Self, WishError> {
        let attributes = Attributes::new(derivation)?;
        let text = |name: &'static str| match attributes.structured() {
            Some(map) => map.get(name).map(|value| match value {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            }),
            None => derivation.variable(name).map(|value| String::from_utf8_lossy(value).into_owned()),
        };
        let wrong =
            |attribute, expected, value: &str| WishError::Value { attribute, expected, value: value.to_owned() };
        let memory = text("vmMemory").map(|value| {
            mebibytes(&value).ok_or_else(|| wrong("vmMemory", "a number of MiB, or a size such as \"2G\"", &value))
        });
        let cores = text("vmCores").map(|value| {
            let count = value.parse().ok().filter(|count| (1..=255).contains(count));
            count.ok_or_else(|| wrong("vmCores", "a number from 1 to 255", &value))
        });
        let disk = text("vmDiskSize").filter(|value| !value.is_empty()).map(|value| {
            let size = mebibytes(&value).and_then(|size| size.checked_mul(1 << 20));
            size.ok_or_else(|| wrong("vmDiskSize", "a number of MiB, or a size such as \"10G\"", &value))
        });
        let script = |name| text(name).filter(|script: &String| !script.trim().is_empty());
        Ok(Self {
            memory: memory.transpose()?,
            cores: cores.transpose()?,
            disk: disk.transpose()?,
            terminal: false,
            before: script("preVM"),
            after: script("postVM"),
            image: text("vmImage").filter(|name| !name.is_empty()),
            drives: match text("drives") {
                Some(value) => drives(&value).ok_or_else(|| {
                    wrong(
                        "drives",
                        "words such as \"T:=/nix/store/…\", or with structured attributes a map of them",
                        &value,
                    )
                })?,
                None => Vec::new(),
            },
        })
    }
}

impl Wishes {
    /// Those of a person: memory in MiB, processors, bytes of a blank disk.
    pub fn of_person(memory: u64, cores: u32, disk: Option<u64>, terminal: bool) -> Self {
        Self { memory: Some(memory), cores: Some(cores), disk, terminal, ..Self::default() }
    }

    /// The machine's memory, in MiB.
    pub fn memory(&self, machines: &Machines) -> u64 {
        self.memory.unwrap_or(machines.memory)
    }

    /// Its processors.
    pub fn cores(&self) -> u32 {
        self.cores.unwrap_or(1)
    }

    /// What runs around it, by the shell that `process` brings along.
    pub fn hooks(&self, process: &Process) -> Vec<Hook> {
        let shell = shell(process.program.0.as_ref(), process.arguments.first().map(|first| first.0.as_ref()));
        let hook = |script: &Option<String>, after: bool, name: &str| {
            let script = script.clone()?;
            let command = shell.iter().cloned().chain(["-ec".to_owned(), script]).collect();
            Some(Hook { after, name: name.to_owned(), command })
        };
        hook(&self.before, false, "preVM").into_iter().chain(hook(&self.after, true, "postVM")).collect()
    }
}

/// The program of a room, as what a guest is told to run.
pub(super) fn command(process: &Process) -> Command {
    let os = |text: &anchorhold_sandbox::text::Text| -> OsString { text.0.clone() };
    let mut command =
        Command::new(os(&process.program)).arguments(process.arguments.iter().map(os)).directory(&process.directory);
    for (name, value) in &process.environment {
        command = command.variable(os(name), os(value));
    }
    command
}

/// `T:=/nix/store/…`, several with spaces between them; or a JSON object.
fn drives(text: &str) -> Option<Vec<(String, PathBuf)>> {
    if text.trim_start().starts_with('{') {
        let map: std::collections::BTreeMap<String, PathBuf> = serde_json::from_str(text).ok()?;
        return Some(map.into_iter().collect());
    }
    let one = |word: &str| word.split_once('=').map(|(letter, path)| (letter.to_owned(), PathBuf::from(path)));
    text.split_ascii_whitespace().map(one).collect()
}

/// A plain number is MiB, as people give a machine's memory; others have their unit.
fn mebibytes(text: &str) -> Option<u64> {
    let count = match text.parse::<u64>() {
        Ok(count) => count,
        Err(_) => match text.parse().ok()? {
            Size::Bytes(bytes) => bytes >> 20,
            Size::Share(_) => return None,
        },
    };
    (1..=1 << 24).contains(&count).then_some(count)
}

/// The room of a machine in which the builder of `room` runs. What it is made of, and what comes of it, lies in `work`, which is
/// ours; `owner` is whom the room runs under, if that is somebody else.
///
/// # Errors
/// What is missing, or cannot be shown to a guest.
pub fn in_machine(
    room: &Room,
    machines: &Machines,
    wishes: &Wishes,
    work: &Path,
    owner: Option<(u32, u32)>,
) -> Result<Room, Failure> {
    let mut view = plain_view();
    let mut shown = Vec::new();
    let mut inputs = InputNames::default();
    // Outer ones first: what lies in a directory that is shown is shown by it.
    let mut mounts: Vec<&Entry> = room.mounts.iter().collect();
    mounts.sort_by_key(|entry| entry.inside().components().count());
    for entry in mounts {
        let Entry::Bind { inside, outside, writable, optional, .. } = entry else { continue };
        if inside == Path::new("/tmp") {
            continue;
        }
        let host = outside.as_ref().unwrap_or(inside);
        let parent = view.directories.iter().find(|directory| inside.starts_with(&directory.inside));
        if let Some(parent) = parent {
            // Where the room has it, so that it lies in the directory that the guest is given.
            let below = inside.strip_prefix(&parent.inside).unwrap_or(Path::new(""));
            if parent.writable && !writable && !optional {
                inputs.add(&parent.inside, below);
            }
            shown.push(moved(entry, parent.outside.join(below)));
            continue;
        }
        let place = PathBuf::from(format!("/machine/directories/{}", view.directories.len()));
        match std::fs::metadata(host) {
            Ok(found) if found.is_dir() => {
                view.directories.push(Directory {
                    outside: place.clone(),
                    inside: inside.clone(),
                    writable: *writable,
                });
                shown.push(moved(entry, place));
            }
            Ok(_) if !writable => view.copies.push((inside.clone(), host.clone())),
            Err(_) if *optional => {}
            found => {
                let why = found
                    .map_or_else(|error| error.to_string(), |_| "only directories can be written by a guest".into());
                return Err(Failure::new(FailureClass::QemuRefused, format!("{}: {why}", host.display())));
            }
        }
    }
    let process = &room.process;
    let command = command(process);
    let wanted = Wanted {
        name: "guest".to_owned(),
        memory: wishes.memory(machines),
        cores: wishes.cores(),
        view,
        inputs: Some(inputs),
        disk: wishes.disk,
        command,
        streams_apart: false,
        terminal: wishes.terminal,
        hooks: wishes.hooks(process),
        limit: None,
    };
    let prepared = prepare(machines, &wanted, work, owner)?;
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(FailureClass::QemuRefused, format!("finding this program: {error}")))?;
    let has_hooks = !wanted.hooks.is_empty();
    if has_hooks {
        // They see what the builder would see, where it would see it.
        let others = shown.iter().filter_map(|entry| original(entry, &wanted.view.directories)).collect::<Vec<_>>();
        shown.extend(others);
    }
    let mut made = super::room::room(super::room::Parts {
        prepared: &prepared,
        program: &program,
        shown,
        outside: room.identity.outside,
        limits: room.limits.clone(),
        output: if wishes.terminal { Output::Terminal } else { Output::Log },
    });
    if has_hooks {
        made.process.environment.clone_from(&process.environment);
        if wanted.disk.is_some() {
            made.process.environment.insert("vmDiskImage".into(), super::disk_in_room().as_os_str().into());
        }
        made.process.directory.clone_from(&process.directory);
    }
    Ok(made)
}

/// The same bind at another place of the room.
fn moved(entry: &Entry, place: PathBuf) -> Entry {
    let mut entry = entry.clone();
    if let Entry::Bind { inside, outside, .. } = &mut entry {
        let host = outside.take().unwrap_or_else(|| inside.clone());
        *outside = Some(host);
        *inside = place;
    }
    entry
}

/// The bind at the place that the guest has it at.
fn original(entry: &Entry, directories: &[Directory]) -> Option<Entry> {
    let inside = entry.inside();
    let directory = directories.iter().find(|directory| inside.starts_with(&directory.outside))?;
    let below = inside.strip_prefix(&directory.outside).ok()?;
    let place = if below.as_os_str().is_empty() { directory.inside.clone() } else { directory.inside.join(below) };
    Some(moved(entry, place))
}

/// What runs the scripts around a machine: the builder, where it is a shell, else `/bin/sh`.
fn shell(program: &std::ffi::OsStr, first_argument: Option<&std::ffi::OsStr>) -> Vec<String> {
    let name = Path::new(program).file_name().unwrap_or_default();
    let program = program.to_string_lossy().into_owned();
    match name.to_str() {
        Some("sh" | "bash" | "dash" | "ash") => vec![program],
        Some("busybox") if first_argument == Some("sh".as_ref()) => vec![program, "sh".to_owned()],
        _ => vec!["/bin/sh".to_owned()],
    }
}

/// Where in `work` a machine's room writes.
pub fn result(work: &Path) -> PathBuf {
    work.join("result")
}

/// Why the end of a machine's room is not that of its builder, if it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The machine could not be run: nothing that the builder did.
    NotRun(String),
    /// The machine was too slow.
    TimedOut(String),
    /// The builder, or what it did to its machine.
    Failed(String),
}

/// Looks at what a machine's room left in `result`, when everything in it is dead.
pub fn trouble(result: &Path, end: End) -> Option<Trouble> {
    match (Report::read(result), end) {
        // The limits of the room are told as everywhere.
        (_, End::Time | End::Silence | End::Output | End::Memory) => None,
        (Ok(Report::Ended { status, .. }), End::Exited(exited)) if status == exited => None,
        (Ok(Report::Failed(failure)), _) => {
            let text = failure.to_string();
            Some(match failure.class {
                FailureClass::Deadline | FailureClass::Stalled => Trouble::TimedOut(text),
                FailureClass::Panic
                | FailureClass::Reset
                | FailureClass::PowerOff
                | FailureClass::ConsoleFlood
                | FailureClass::BadReport
                | FailureClass::NoStatus
                | FailureClass::SessionLost
                | FailureClass::ExchangeFull
                | FailureClass::DiskError => Trouble::Failed(text),
                _ => Trouble::NotRun(text),
            })
        }
        (Ok(Report::NotStarted { why }), _) => {
            Some(Trouble::Failed(format!("the builder could not be started in the guest: {why}")))
        }
        (Ok(Report::Hook { name, how }), _) => Some(Trouble::Failed(format!("{name} failed: {how}"))),
        (Ok(Report::Ended { .. }), _) => Some(Trouble::NotRun("the machine's room and its report disagree".to_owned())),
        (Err(error), _) => Some(Trouble::NotRun(format!(
            "the machine's room ended without a report ({error}): there is no status of the builder"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_mebibytes_unless_it_has_a_unit() {
        assert_eq!(
            (mebibytes("512"), mebibytes("2G"), mebibytes("0"), mebibytes("50%"), mebibytes("x")),
            (Some(512), Some(2048), None, None, None)
        );
    }

    #[test]
    fn drives_are_letters_with_paths() {
        let two = vec![("T:".to_owned(), PathBuf::from("/nix/store/a")), ("U:".to_owned(), "/nix/store/b/c".into())];
        assert_eq!(drives("T:=/nix/store/a U:=/nix/store/b/c"), Some(two.clone()));
        assert_eq!(drives(r#"{"T:": "/nix/store/a", "U:": "/nix/store/b/c"}"#), Some(two));
        assert_eq!((drives(""), drives("T:"), drives("{]")), (Some(Vec::new()), None, None));
    }

    #[test]
    fn an_end_without_a_status_is_never_a_success() {
        let place = tempfile::tempdir().unwrap();
        let told = |report: Option<&Report>, end| {
            let file = place.path().join(super::super::supervisor::REPORT);
            let _ = std::fs::remove_file(&file);
            if let Some(report) = report {
                std::fs::write(&file, serde_json::to_vec(report).unwrap()).unwrap();
            }
            trouble(place.path(), end)
        };
        let ended = |status| Report::Ended {
            status,
            qemu: String::new(),
            kernel: String::new(),
            accelerator: "tcg".into(),
            ready_after: 0,
        };
        assert_eq!(told(Some(&ended(0)), End::Exited(0)), None);
        assert_eq!(told(Some(&ended(120)), End::Exited(120)), None);
        assert_eq!(told(None, End::Time), None);
        assert!(matches!(told(None, End::Exited(0)), Some(Trouble::NotRun(_))));
        assert!(matches!(told(Some(&ended(7)), End::Exited(0)), Some(Trouble::NotRun(_))));
        assert!(matches!(told(Some(&ended(0)), End::Signaled(9)), Some(Trouble::NotRun(_))));
        let failed = |class| Report::Failed(Failure::new(class, "x"));
        assert!(matches!(told(Some(&failed(FailureClass::Panic)), End::Exited(0)), Some(Trouble::Failed(_))));
        assert!(matches!(told(Some(&failed(FailureClass::NoQemu)), End::Exited(120)), Some(Trouble::NotRun(_))));
        std::os::unix::fs::symlink("/dev/zero", place.path().join("link")).unwrap();
        std::fs::remove_file(place.path().join("result.json")).unwrap();
        std::fs::rename(place.path().join("link"), place.path().join("result.json")).unwrap();
        assert!(matches!(trouble(place.path(), End::Exited(0)), Some(Trouble::NotRun(_))));
    }

    #[test]
    fn the_builders_own_shell_runs_the_scripts() {
        assert_eq!(shell("/nix/store/x/bin/bash".as_ref(), None), ["/nix/store/x/bin/bash"]);
        assert_eq!(shell("/nix/store/x/busybox".as_ref(), Some("sh".as_ref())), ["/nix/store/x/busybox", "sh"]);
        assert_eq!(shell("/nix/store/x/python".as_ref(), None), ["/bin/sh"]);
    }
}
