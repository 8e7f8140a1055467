//! A child that is handed descriptors and that the kernel ends when we end.
//!
//! The standard library can do neither: it closes everything but standard input, output and error, and knows no parent-death
//! signal. Clearing close-on-exec in the parent instead would hand the descriptors to whatever another thread starts meanwhile.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets the child that `command` will start keep `descriptors`, under the numbers that they have here, and has the kernel kill it
/// when the calling *thread* ends: that thread must live as long as the child is to live. Our side of the descriptors is closed
/// when `command` is dropped.
///
/// The child's own children do not inherit the signal; whoever starts such a child wants a pid namespace around it.
pub fn tie(command: &mut Command, descriptors: Vec<OwnedFd>) {
    let parent = std::process::id().cast_signed();
    let prepare = move || {
        // SAFETY: prctl with this option takes a number and no pointer; it is async-signal-safe.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: takes nothing, cannot fail, is async-signal-safe. Another parent means that ours died before we asked.
        if unsafe { libc::getppid() } != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        for descriptor in &descriptors {
            // SAFETY: the descriptor is open, for this closure owns it; fcntl with F_SETFD takes a number and no pointer.
            if unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: what runs between fork and exec calls only async-signal-safe functions and allocates nothing: an error made of an
    // errno holds no memory.
    unsafe { command.pre_exec(prepare) };
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_descriptor_reaches_the_child_and_only_by_being_tied() {
        for handed in [true, false] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let number = theirs.as_raw_fd();
            let mut command = Command::new("/bin/sh");
            command.args(["-c", &format!("echo here >&{number}")]).stderr(std::process::Stdio::null());
            let kept = if handed {
                tie(&mut command, vec![theirs.into()]);
                None
            } else {
                tie(&mut command, Vec::new());
                Some(theirs)
            };
            let status = command.status().unwrap();
            drop((command, kept));
            let mut text = String::new();
            ours.read_to_string(&mut text).unwrap();
            assert_eq!(text, if handed { "here\n" } else { "" });
            assert_eq!(status.success(), handed);
        }
    }

    #[test]
    fn the_child_is_killed_when_the_thread_that_started_it_ends() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let starter = std::thread::spawn(move || {
            let number = theirs.as_raw_fd();
            let mut command = Command::new("/bin/sh");
            // It says that it runs, and then waits for what never comes.
            command.args(["-c", &format!("echo up >&{number}; read line <&{number}")]);
            tie(&mut command, vec![theirs.into()]);
            let child = command.spawn().unwrap();
            drop(command);
            child
        });
        let mut child = starter.join().unwrap();
        let mut text = String::new();
        // The end of file comes only from its death: we never close our side.
        ours.read_to_string(&mut text).unwrap();
        assert!(text.is_empty() || text == "up\n", "{text}");
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        let _ = ours.write(b"x");
    }
}
