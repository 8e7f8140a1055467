//! The process between the supervisor and the room.
//!
//! It enters the room's user namespace and forks the room's first process. After that it has one task left: a payload that is the
//! first process of its pid namespace can clear its own parent-death signal, so should the supervisor vanish, the warden ends the
//! room. It is in no namespace that the payload can see, and in a session of its own, so that what kills the supervisor's process group
//! does not kill it.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Options;
use super::inside::{fail, interpret, live};
use super::message::{Hatch, Report};
use crate::plan::{Place, Plan};
use crate::site::{Site, Trouble};
use crate::sys::process::{Forked, close_all_but, exit_now, fork_sibling, pidfd_signal};

/// The warden's whole life. `leash` ends when the supervisor does.
pub fn live_as_warden(
    plan: &Plan,
    first_step: usize,
    mut site: Site<'_>,
    hatch: Hatch,
    leash: OwnedFd,
    options: Options,
) -> ! {
    let birth = plan.birth();
    let timings = match interpret(plan, Place::Warden, first_step..birth, &mut site, &hatch, options) {
        Ok(timings) => timings,
        Err((step, trouble)) => fail(&hatch, step, &trouble),
    };
    let first_namespace = std::fs::read_link("/proc/self/ns/user").unwrap_or_default();
    let bridge = Hatch::pair();
    match fork_sibling() {
        Ok(Forked::Child) => {
            drop(leash);
            site.note(crate::layers::Layer::Identity, "first-user-namespace", first_namespace.to_string_lossy());
            site.bridge = bridge.ok().map(|(_, room)| room);
            site.timings = timings;
            live(plan, birth, site, hatch, options)
        }
        Ok(Forked::Parent { pid, pidfd }) => {
            let _ = hatch.send(&Report::Born(pid.as_raw()), None);
            // The child of a fork leads no process group, so this cannot fail. Not earlier: the room waits for its birth.
            let _ = nix::unistd::setsid();
            meanwhile(plan, birth, &mut site, &hatch, bridge.map(|(warden, _)| warden), options);
            // Whatever else it holds would keep pipes and mounts open beyond the room's end.
            close_all_but(&[leash.as_fd(), pidfd.as_fd()]);
            watch(&leash, &pidfd)
        }
        Err(errno) => fail(&hatch, birth.saturating_sub(1), &Trouble::new(errno, "fork of the room's first process")),
    }
}

/// What the warden does while the room is being built: the network.
fn meanwhile(
    plan: &Plan,
    birth: usize,
    site: &mut Site<'_>,
    hatch: &Hatch,
    bridge: nix::Result<Hatch>,
    options: Options,
) {
    let mine: Vec<usize> =
        plan.steps_of(Place::Warden).map(|(number, _)| number).filter(|number| *number >= birth).collect();
    let (Some(first), Some(last)) = (mine.first(), mine.last()) else { return };
    // They stand together: the plan has them in a stage of their own.
    let done = interpret(plan, Place::Warden, *first..*last + 1, site, hatch, options);
    let handed = done.and_then(|timings| {
        let hand = || {
            let namespace = std::fs::File::open("/proc/self/ns/net").map_err(Trouble::from)?;
            Ok::<_, Trouble>(bridge?.send(&timings, Some(namespace.as_fd()))?)
        };
        hand().map_err(|trouble| (*last, trouble))
    });
    if let Err((step, trouble)) = handed {
        fail(hatch, step, &trouble);
    }
}

fn watch(leash: &OwnedFd, room: &OwnedFd) -> ! {
    loop {
        let mut waited = [PollFd::new(leash.as_fd(), PollFlags::POLLIN), PollFd::new(room.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waited, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(_) => {}
            Ok(_) => {
                let [leash, room] = waited.map(|one| one.any().unwrap_or(false));
                if room {
                    exit_now(0);
                }
                if !leash {
                    continue;
                }
            }
        }
        let _ = pidfd_signal(room.as_fd(), libc::SIGKILL);
        exit_now(0)
    }
}
