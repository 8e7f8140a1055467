//! Builds that are at work: how a visitor finds them.
//!
//! A build's own directory (see [`super::scratch`]) holds a note of it: which derivation, which launcher process, which room. The
//! directory is the build's for as long as it lives, so a note cannot outlive its build by more than a crash; and the launcher is
//! named by its id *and* the time of its start, so no later process is taken for it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anchorhold_sandbox::Room;
use anchorhold_sandbox::launcher::Resident;
use serde::{Deserialize, Serialize};

use super::scratch::Scratch;
use crate::store_path::StorePath;

/// The note, in a build's directory.
const NOTE: &str = "running.json";
/// Stands beside the note when somebody has been in the room.
const VISITED: &str = "visited";
/// The longest note that is read: a room's environment is far below it.
const MAX_NOTE: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Note<R> {
    derivation: String,
    launcher: i32,
    launcher_start: u64,
    room: R,
}

/// Notes a build whose room is about to be made.
///
/// # Errors
/// What the file system says. The build can go on: it is only not found by visitors.
pub fn announce(scratch: &Scratch, derivation: &StorePath, launcher: u32, room: &Room) -> io::Result<()> {
    let launcher = i32::try_from(launcher).map_err(io::Error::other)?;
    let launcher_start = start_time(launcher).ok_or_else(|| io::Error::other("the launcher process is gone"))?;
    let note = Note { derivation: derivation.to_string(), launcher, launcher_start, room };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(scratch.path().join(NOTE))?;
    let mut file = io::BufWriter::new(file);
    serde_json::to_writer(&mut file, &note)?;
    file.flush()
}

/// Whether somebody has been in the room of this build.
pub fn was_visited(scratch: &Scratch) -> bool {
    scratch.path().join(VISITED).exists()
}

/// A build at work.
#[derive(Debug)]
pub struct Running {
    /// The derivation's name in the store.
    pub derivation: String,
    /// The launcher process.
    pub launcher: i32,
    /// The room's first process.
    pub resident: Resident,
    /// The kernel uid and gid that it runs under.
    pub ids: (u32, u32),
    /// The room.
    pub room: Room,
    directory: PathBuf,
}

impl Running {
    /// Says, for the one who builds, that somebody enters the room.
    ///
    /// # Errors
    /// What the file system says.
    pub fn mark_visited(&self) -> io::Result<()> {
        File::create(self.directory.join(VISITED)).map(drop)
    }
}

/// The builds at work below `builds` whose builder runs now, in the order of their names.
///
/// # Errors
/// When the directory cannot be read, as by any user but the one who builds and root.
pub fn list(builds: &Path) -> io::Result<Vec<Running>> {
    let listed = match std::fs::read_dir(builds) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in listed {
        let directory = entry?.path();
        // A build that ends meanwhile, or one that has no room yet, is none that can be entered.
        if let Some(note) = read_note(&directory)
            && let Some((resident, ids)) = first_process(note.launcher, note.launcher_start)
        {
            let Note { derivation, launcher, room, .. } = note;
            found.push(Running { derivation, launcher, resident, ids, room, directory });
        }
    }
    found.sort_by(|one, other| one.derivation.cmp(&other.derivation));
    Ok(found)
}

fn read_note(directory: &Path) -> Option<Note<Room>> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(directory.join(NOTE)).ok()?;
    let owner = file.metadata().ok()?.uid();
    let me = rustix::process::geteuid();
    // Root may visit anybody's build, and nobody else may make us visit theirs.
    if owner != me.as_raw() && !me.is_root() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_NOTE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The first process of the room that a launcher watches: its child that is number 1 of a pid namespace below ours.
fn first_process(launcher: i32, launcher_start: u64) -> Option<(Resident, (u32, u32))> {
    if start_time(launcher) != Some(launcher_start) {
        return None;
    }
    let processes = std::fs::read_dir("/proc").ok()?;
    let found = processes.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let start = start_time(pid)?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let numbers = |key: &str| -> Vec<u32> {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.unwrap_or_default().split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
        };
        let is_first = matches!(numbers("NSpid")[..], [_, 1]);
        let is_child = numbers("PPid").first() == u32::try_from(launcher).ok().as_ref();
        let ids = (*numbers("Uid").first()?, *numbers("Gid").first()?);
        (is_first && is_child).then_some((Resident { pid, start }, ids))
    });
    // The same launcher still: then its child is its child.
    found.filter(|_| start_time(launcher) == Some(launcher_start))
}

/// When a process was started, in clock ticks after boot: field 22 of proc_pid_stat(5).
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_of_a_launcher_that_is_no_more_is_no_build() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(directory.path(), None).unwrap();
        let derivation: StorePath = "0rnclafi1f0l52p7cfk3k99jpddk2bmq-a.drv".parse().unwrap();
        let me = std::process::id();
        announce(&scratch, &derivation, me, &Room::default()).unwrap();
        let note = read_note(scratch.path()).unwrap();
        assert_eq!(note.derivation, derivation.to_string());
        assert_eq!(start_time(note.launcher), Some(note.launcher_start));
        // Our id with another start is another process, which has no room.
        assert!(first_process(note.launcher, note.launcher_start + 1).is_none());
        assert!(list(directory.path()).unwrap().is_empty(), "this test watches no room");
        assert!(!was_visited(&scratch));
    }

    #[test]
    fn a_damaged_note_is_no_build() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(directory.path(), None).unwrap();
        std::fs::write(scratch.path().join(NOTE), "{\"derivation\":").unwrap();
        assert!(list(directory.path()).unwrap().is_empty());
    }
}
