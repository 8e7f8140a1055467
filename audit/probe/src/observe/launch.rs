//! The command, with what it inherits: a terminal, a descriptor, a variable, the keyrings.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anchorhold_probe::observation::{Launch, Order, SetUp};
use anchorhold_probe::verdict::name_of;

use super::{INHERITED, survivors};
use crate::calls;

/// A pseudo-terminal: its master, which we hold, and its slave, which becomes the command's controlling terminal.
pub struct Terminal {
    master: i32,
    slave: i32,
}

impl Terminal {
    /// Opens one.
    pub fn open(set_up: &mut SetUp) -> Option<Self> {
        match pair() {
            Ok((master, slave)) => {
                set_up.terminal = true;
                Some(Self { master, slave })
            }
            Err(errno) => {
                set_up.miss("terminal", errno);
                None
            }
        }
    }
}

fn pair() -> Result<(i32, i32), i32> {
    let master = calls::open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY, 0)?;
    let unlocked = 0_i32;
    calls::raw(libc::SYS_ioctl, &[master as usize, libc::TIOCSPTLCK as usize, &raw const unlocked as usize])?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let slave = calls::raw(libc::SYS_ioctl, &[master as usize, libc::TIOCGPTPEER as usize, flags as usize])?;
    Ok((master, slave as i32))
}

impl Drop for Terminal {
    fn drop(&mut self) {
        calls::close(self.slave);
        calls::close(self.master);
    }
}

/// Starts the command. Its output and errors are ours.
pub fn start(launch: &Launch, order: &Order, terminal: Option<&Terminal>) -> Result<i32, String> {
    let (program, arguments) = launch.words.split_first().ok_or("no command")?;
    let mut command = Command::new(program);
    command.args(arguments).envs(&launch.environment).env(&order.variable, &order.nonce);
    command.current_dir(&launch.directory).stdin(Stdio::null());
    let slave = terminal.map(|terminal| terminal.slave);
    let folder = calls::open(&order.folder, libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(name_of)?;
    // SAFETY: between fork and exec there are system calls only, on numbers that were copied.
    unsafe {
        command.pre_exec(move || {
            let call =
                |number, arguments: &[usize]| calls::raw(number, arguments).map_err(std::io::Error::from_raw_os_error);
            call(libc::SYS_setsid, &[])?;
            if let Some(slave) = slave {
                call(libc::SYS_dup3, &[slave as usize, 0, 0])?;
                call(libc::SYS_ioctl, &[0, libc::TIOCSCTTY as usize, 0])?;
            }
            call(libc::SYS_dup3, &[folder as usize, INHERITED as usize, 0])?;
            call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize])?;
            Ok(())
        });
    }
    let started = command.spawn();
    calls::close(folder);
    started.map(|child| child.id() as i32).map_err(|error| format!("{program}: {error}"))
}

/// Waits for the command; ends it when the runner goes away. Its exit status, as shells count.
pub fn wait(child: i32, runner: &UnixStream) -> Option<i32> {
    let ended = survivors::pidfd(child);
    let mut asked = false;
    loop {
        if calls::either_readable(
            ended.unwrap_or(-1),
            if asked { -1 } else { raw(runner) },
            if asked { 2000 } else { -1 },
        ) {
            break;
        }
        // The runner speaks no more, so what can be read is its end.
        let signal = if asked { libc::SIGKILL } else { libc::SIGTERM };
        let _ = calls::raw(libc::SYS_kill, &[child as usize, signal as usize]);
        if asked {
            break;
        }
        asked = true;
    }
    if let Some(ended) = ended {
        calls::close(ended);
    }
    let status = calls::wait(child).ok()?;
    Some(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) })
}

fn raw(runner: &UnixStream) -> i32 {
    use std::os::fd::AsRawFd;
    runner.as_fd().as_raw_fd()
}
