//! The finished programs, as `build.rs` made them for the machine this binary runs on.

use super::choices::{COMBINATIONS, Choices};
use super::interpret;
use super::show::{Notation, Show};
use crate::sys::seccomp as sys;
use std::io;
use std::os::fd::OwnedFd;

// PROGRAMS, one per combination of choices; ROWS, one per row of the table; NAMES of recorded calls, sorted; NATIVE, this
// machine's own architecture as a filter sees it.
include!(concat!(env!("OUT_DIR"), "/seccomp_programs.rs"));

/// What the supervisor knows about a row whose refusals it answers.
pub(super) struct Recorded {
    /// The errno that the program sees.
    pub errno: u16,
    /// The argument that tells a person what was refused.
    pub show: Option<Show>,
    /// What the person can do about it.
    pub hint: &'static str,
    /// Whether the supervisor looks closer first.
    pub made: bool,
}

/// What the policy says of a call.
pub(super) enum Judgement {
    /// It may be made.
    Allowed,
    /// This row refuses it.
    Refused(&'static Recorded),
    /// Refused, or worse, by what is no recorded row.
    Unknown,
}

/// The program to load for a room with these choices. Nothing is compiled at run time: it is a constant.
pub fn program(choices: Choices) -> &'static [libc::sock_filter] {
    let place = (0..COMBINATIONS).find(|place| Choices::at(*place) == choices);
    PROGRAMS[place.expect("every combination has a place")]
}

/// Loads the filter into the calling thread, which must have no_new_privs, and gives the listener for a
/// [`Recorder`](super::Recorder).
///
/// Recording is given up, and nothing else, when the kernel refuses a listener: an outer sandbox has one already
/// (`EBUSY`), or the kernel is older than 5.0 (`EINVAL`). The same calls are then refused with the same errno, unseen;
/// that the answer is `None` although `choices.record` was set tells the caller to say so.
///
/// From here until the supervisor holds the listener, this thread must make no call that is recorded: nobody would
/// answer. Sending the descriptor and executing the builder are none; the latter closes this side's copy, which the
/// build must never have.
///
/// Errors: those of `seccomp(2)`; the room must not start.
pub fn load(choices: Choices) -> io::Result<Option<OwnedFd>> {
    if choices.record {
        match sys::install(program(choices), true) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINVAL)) => {}
            loaded => return loaded,
        }
    }
    sys::install(program(Choices { record: false, ..choices }), false)
}

/// The row that refused a call, found by asking the program again: a notification does not carry the filter's answer.
///
/// It asks the strictest recording program. A looser one differs only in calls that it allows or answers by itself, and
/// those are not reported, so both find the same row.
pub(super) fn refusing_row(call: &libc::seccomp_data) -> Option<&'static Recorded> {
    match judge(call) {
        Judgement::Refused(row) => Some(row),
        _ => None,
    }
}

/// What the strictest recording program decides about a call, made or not.
pub(super) fn judge(call: &libc::seccomp_data) -> Judgement {
    let strictest = Choices { record: true, nested: false, compat: true, ignore_chown: false };
    let Some(action) = interpret::run(program(strictest), call) else { return Judgement::Unknown };
    let row = || ROWS.get((action & libc::SECCOMP_RET_DATA) as usize)?.as_ref();
    match action & libc::SECCOMP_RET_ACTION_FULL {
        libc::SECCOMP_RET_ALLOW => Judgement::Allowed,
        libc::SECCOMP_RET_USER_NOTIF => row().map_or(Judgement::Unknown, Judgement::Refused),
        _ => Judgement::Unknown,
    }
}

/// The name of a recorded call.
pub(super) fn name(call: &libc::seccomp_data) -> Option<&'static str> {
    let number = u32::try_from(call.nr).ok()?;
    let place = NAMES.binary_search_by_key(&(call.arch, number), |(key, _)| *key).ok()?;
    Some(NAMES[place].1)
}
