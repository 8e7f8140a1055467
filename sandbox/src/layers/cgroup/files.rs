//! Reading and writing the small text files that groups are made of.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsFd;

use super::error::Error;

/// How long a state that the kernel does not announce is waited for between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

pub(super) fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|e| Error::kernel("reading", path, &e))
}

/// Writes in one `write(2)`, as the group files demand, without creating the file.
pub(super) fn write(path: &Path, value: &str) -> Result<(), Error> {
    let doing = || format!("writing '{value}' to");
    let mut file = OpenOptions::new().write(true).open(path).map_err(|e| Error::kernel(doing(), path, &e))?;
    file.write_all(value.as_bytes()).map_err(|e| Error::kernel(doing(), path, &e))
}

/// The process ids in a `cgroup.procs`. A process of a pid namespace that we cannot see is listed as 0.
pub(super) fn processes(group: &Path) -> Result<Vec<i32>, Error> {
    Ok(read(&group.join("cgroup.procs"))?.lines().filter_map(|l| l.trim().parse().ok()).collect())
}

/// The number beside `key` in a file of `key value` lines (`cpu.stat`, `memory.events`, `memory.oom_control`).
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

pub(super) fn read_keyed(path: &Path, key: &str) -> Option<u64> {
    keyed(&fs::read_to_string(path).ok()?, key)
}

pub(super) fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Waits until a key of v2's `cgroup.events` has a value. The kernel announces changes of that file to pollers
/// (cgroup-v2.rst, "cgroup.events"), so nothing is polled by time here.
pub(super) fn await_event(
    group: &Path,
    key: &str,
    wanted: u64,
    state: &'static str,
    limit: Duration,
) -> Result<(), Error> {
    let path = group.join("cgroup.events");
    let mut file = File::open(&path).map_err(|e| Error::kernel("opening", &path, &e))?;
    let started = Instant::now();
    loop {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.read_to_string(&mut text))
            .map_err(|e| Error::kernel("reading", &path, &e))?;
        if keyed(&text, key) == Some(wanted) {
            return Ok(());
        }
        let Some(left) = limit.checked_sub(started.elapsed()).filter(|d| !d.is_zero()) else {
            return Err(Error::Timeout { path: group.to_owned(), state, waited: limit });
        };
        // Rounded up: a timeout of 0 ms would spin through the last millisecond.
        let timeout = PollTimeout::try_from(left + LOOK_AGAIN).unwrap_or(PollTimeout::MAX);
        // An interrupted poll is only an early look at the file.
        let _ = poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], timeout);
    }
}

/// Looks again and again, at most for `limit`, until `done`. Only for states of v1 that the kernel announces to nobody.
pub(super) fn await_state(
    group: &Path,
    state: &'static str,
    limit: Duration,
    mut done: impl FnMut() -> Result<bool, Error>,
) -> Result<(), Error> {
    let started = Instant::now();
    while !done()? {
        if started.elapsed() >= limit {
            return Err(Error::Timeout { path: group.to_owned(), state, waited: limit });
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}
