//! Descriptors 0, 1 and 2 and no other; a session of its own; no controlling terminal, or one that was made for the room.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::errno::Errno;
use serde::Serialize;

use super::Layer;
use crate::error::Refusal;
use crate::host::Host;
use crate::launcher::Report;
use crate::plan::{Draft, Stage};
use crate::room::{Output, Outside, Room, Stdin};
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site, Trouble};

/// The steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// setsid(2).
    NewSession,
    /// Puts the standard streams in place.
    Streams {
        /// Standard input.
        stdin: Stdin,
        /// Standard output and error.
        output: Output,
    },
    /// `TIOCSCTTY` on the room's own pseudo-terminal.
    ControllingTerminal,
    /// Closes every descriptor above 2, but the one to the supervisor, which exec closes.
    CloseOthers {
        /// Whether the room lists what is left itself: a supervisor without privileges may not look into a process with
        /// subordinate ids.
        report: bool,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewSession => f.write_str("start a new session, without a controlling terminal"),
            Self::Streams { stdin, output } => {
                let stdin = match (stdin, output) {
                    (_, Output::Terminal) => "the room's own terminal",
                    (Stdin::Null, _) => "/dev/null",
                    (Stdin::Inherit, _) => "the caller's standard input",
                };
                let output = match output {
                    Output::Pipe => "pipes to the supervisor",
                    Output::Terminal => "the room's own terminal",
                    Output::Log => "a raw terminal of the room's own, whose master goes to the supervisor",
                    Output::Inherit => "the caller's own",
                };
                write!(f, "set standard input to {stdin}, standard output and error to {output}")
            }
            Self::ControllingTerminal => f.write_str("make the room's own terminal the controlling one"),
            Self::CloseOthers { .. } => {
                f.write_str("close every descriptor above 2 (the one to the supervisor: by exec)")
            }
        }
    }
}

pub(super) fn plan(room: &Room, host: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    let process = &room.process;
    if process.output == Output::Terminal && process.stdin == Stdin::Inherit {
        return Err(Refusal::new(
            Layer::Descriptors,
            "the caller's standard input beside a terminal of its own",
            "the room's terminal is its standard input",
            "leave out one of them",
        ));
    }
    if matches!(process.output, Output::Terminal | Output::Log) && !room.has(Layer::Devices) {
        return Err(Refusal::new(
            Layer::Descriptors,
            "a terminal of the room's own",
            "it would stand in the room's /dev/pts, and the layer devices is left out",
            "leave out one of them",
        ));
    }
    let whole = room.has(Layer::Descriptors);
    if whole {
        draft.add(Stage::Session, Action::NewSession);
    }
    draft.add(Stage::Session, Action::Streams { stdin: process.stdin, output: process.output });
    if process.output == Output::Terminal {
        draft.add(Stage::Session, Action::ControllingTerminal);
    }
    if whole {
        let report = room.identity.outside == Outside::Range && !host.privileged;
        draft.add(Stage::Descriptors, Action::CloseOthers { report });
    }
    Ok(())
}

pub(super) fn apply(action: &Action, site: &mut Site<'_>) -> Outcome {
    match action {
        Action::NewSession => match site.sys.new_session() {
            // The room's first process is never a group leader when it is forked; if it were, it would lead a session already.
            Ok(()) | Err(Errno::EPERM) => {}
            Err(errno) => return Err(errno.into()),
        },
        Action::Streams { output, .. } => {
            if let Output::Terminal | Output::Log = output {
                open_terminal(*output, site)?;
            }
            for (number, stream) in
                [(0, site.streams.stdin.take()), (1, site.streams.stdout.take()), (2, site.streams.stderr.take())]
            {
                if let Some(stream) = stream {
                    site.sys.set_standard_stream(stream.as_fd(), number)?;
                }
            }
        }
        Action::ControllingTerminal => site.sys.set_controlling_terminal()?,
        Action::CloseOthers { report } => {
            // The queues go before the payload comes: with Landlock's step, and with exec should there be none.
            let queues = site.queues.as_ref().map(AsFd::as_fd);
            let kept: Vec<_> = site.hatch.iter().map(|hatch| hatch.as_fd()).chain(queues).collect();
            site.sys.close_others(&kept)?;
            if *report {
                let queues = queues.map(|queues| queues.as_raw_fd() as u32);
                let open = site.sys.open_descriptors()?;
                let open: Vec<_> = open.iter().filter(|one| Some(**one) != queues).map(ToString::to_string).collect();
                site.note(Layer::Descriptors, "open", open.join(" "));
            }
        }
    }
    Ok(())
}

/// Opens the terminal in the room, where it has a name, and hands its master out. The hatch stays the only way out.
fn open_terminal(output: Output, site: &mut Site<'_>) -> Outcome {
    let (master, peer) = site.sys.open_terminal(Path::new("/dev/pts/ptmx"), output == Output::Log)?;
    if let Some(hatch) = &site.hatch {
        hatch.send(&Report::Terminal, Some(master.as_fd()))?;
    }
    let copy = || peer.try_clone().map_err(|error| Trouble::new(Errno::EMFILE, error.to_string()));
    site.streams.stdout = Some(copy()?);
    site.streams.stderr = Some(copy()?);
    if output == Output::Terminal {
        site.streams.stdin = Some(peer);
    }
    Ok(())
}

pub(super) fn verify(room: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    match view.stat_field(6) {
        // Field 6 is the session: seen from outside it is the first process's own id.
        Some(session) if session == view.pid.to_string() => finding.fact("session", "own"),
        Some(_) | None => finding.wrong("the room is not in a session of its own"),
    }
    match (view.stat_field(7).as_deref(), room.process.output) {
        (Some("0"), Output::Pipe | Output::Inherit | Output::Log) => finding.fact("controlling-terminal", "none"),
        (Some("0"), Output::Terminal) | (None, _) => finding.wrong("the room has no controlling terminal"),
        (Some(_), Output::Terminal) => finding.fact("controlling-terminal", "own"),
        (Some(_), _) => finding.wrong("the room has a controlling terminal"),
    }
    match view.open_after_exec() {
        Ok(numbers) if numbers.iter().all(|number| *number <= 2) => finding.fact("open", format!("{numbers:?}")),
        Ok(numbers) => finding.wrong(format!("descriptors {numbers:?} would stay open")),
        // 0, 1, 2 and the one to the supervisor, which was made close-on-exec.
        Err(error) => match view.note(Layer::Descriptors, "open") {
            Some(open) if open.split(' ').count() == 4 && open.starts_with("0 1 2 ") => {
                finding.fact("open", format!("{open}, by the room's own account"));
            }
            Some(open) => finding.wrong(format!("descriptors {open} are open")),
            None => finding.wrong(format!("/proc/PID/fd: {error}")),
        },
    }
    finding
}
