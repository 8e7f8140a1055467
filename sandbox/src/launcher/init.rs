//! A first process that only reaps and hands signals on, for payloads that expect an ordinary parent (`process.init`).

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::inside::Command;
use crate::sys::process::{Forked, exit_now, fork};

/// Forks the command and lives until it ends, with its exit status or 128 plus its signal; the errno when it could not be executed.
pub fn live(command: &Command) -> Errno {
    // Before there is a payload: it must not find its launcher's command line and environment here.
    if let Err(errno) = crate::sys::process::hide_launcher() {
        return errno;
    }
    let everything = SigSet::all();
    if let Err(errno) = everything.thread_block() {
        return errno;
    }
    let Ok((failed, report)) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC) else { return Errno::EMFILE };
    let payload = match fork() {
        Ok(Forked::Child) => {
            drop(failed);
            let _ = everything.thread_unblock();
            let errno = command.exec();
            let _ = nix::unistd::write(&report, &(errno as i32).to_ne_bytes());
            exit_now(127)
        }
        Ok(Forked::Parent { pid, .. }) => pid,
        Err(errno) => return errno,
    };
    drop(report);
    // The pipe's other end is closed by a successful exec.
    let mut number = [0; 4];
    if matches!(nix::unistd::read(&failed, &mut number), Ok(4)) {
        return Errno::from_raw(i32::from_ne_bytes(number));
    }
    drop(failed);
    crate::sys::process::close_from(0);
    loop {
        match everything.wait() {
            Ok(Signal::SIGCHLD) => loop {
                match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::Exited(pid, status)) if pid == payload => exit_now(status),
                    Ok(WaitStatus::Signaled(pid, signal, _)) if pid == payload => exit_now(128 + signal as i32),
                    Ok(WaitStatus::StillAlive) | Err(_) => break,
                    Ok(_) => {}
                }
            },
            Ok(signal) => {
                let _ = kill(payload, signal);
            }
            Err(_) => {}
        }
    }
}
