//! Terminals: pushing input into one that others read, and having one at all.

use anchorhold_probe::verdict::{Finding, Verdict, name_of};
use anchorhold_probe::world::World;

use crate::calls;
use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "tty.tiocsti.inherited",
        title: "Input can be pushed into the starter's terminal",
        severity: Severity::Critical,
        reference: "CVE-2017-5226",
        tries: "TIOCSTI on every inherited terminal, with a pointer that fails only after the permission check.",
        safe: "no terminal, ENOTTY, EPERM or EIO",
        meaning: "What is pushed is read by the starter's shell when the sandbox has ended: any command, outside, as the starter.",
        controls: &[Control::Terminal],
        order: Order::Any,
        root: false,
        run: inherited,
    },
    Probe {
        tries: "TIOCSTI on a terminal of its own, with a pointer that fails only after the permission check.",
        ..filtered("tty.tiocsti.filter", "TIOCSTI is not filtered", "CVE-2017-5226", |_| on_own(TIOCSTI))
    },
    Probe {
        tries: "The same with a bit set in the upper half of the command, which the kernel does not look at.",
        ..filtered("tty.tiocsti.high", "TIOCSTI with a filled upper half is not filtered", "CVE-2019-10063", |_| {
            on_own(TIOCSTI | 1 << 32)
        })
    },
    Probe {
        tries: "The same by int 0x80.",
        ..filtered("tty.tiocsti.int80", "TIOCSTI is not filtered at the i386 entry", "CVE-2017-5226", |_| {
            // ioctl(2) of asm/unistd_32.h.
            Finding::past(calls::int80(54, [u32::MAX, TIOCSTI as u32, 0, 0, 0]), &[libc::EBADF])
        })
    },
    filtered("tty.tioclinux", "TIOCLINUX is not filtered", "CVE-2023-28100", |_| on_none(TIOCLINUX)),
    Probe {
        tries: "The same with a bit set in the upper half of the command.",
        ..filtered("tty.tioclinux.high", "TIOCLINUX with a filled upper half is not filtered", "CVE-2023-28100", |_| {
            on_none(TIOCLINUX | 1 << 32)
        })
    },
    Probe {
        tries: "The same by int 0x80.",
        ..filtered("tty.tioclinux.int80", "TIOCLINUX is not filtered at the i386 entry", "CVE-2023-28100", |_| {
            Finding::past(calls::int80(54, [u32::MAX, TIOCLINUX as u32, 0, 0, 0]), &[libc::EBADF])
        })
    },
    Probe {
        severity: Severity::Low,
        meaning: "It sends the console's messages to a terminal of the caller's. The kernel itself asks for CAP_SYS_ADMIN.",
        ..filtered("tty.tioccons", "TIOCCONS is not filtered", "ioctl_console(2); nix-sandbox P5", |_| {
            on_none(TIOCCONS)
        })
    },
    Probe {
        id: "tty.ctty",
        title: "There is a controlling terminal",
        severity: Severity::Medium,
        reference: "setsid(2)",
        tries: "Opens /dev/tty.",
        safe: "ENXIO or ENOENT",
        meaning: "A payload in the starter's session can open its terminal whatever standard input is, and ask there for passwords.",
        controls: &[Control::Terminal],
        order: Order::Any,
        root: false,
        run: |_| {
            Finding::of(calls::open("/dev/tty", libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK, 0).map(i64::from))
        },
    },
];

/// Commands of asm-generic/ioctls.h.
const TCGETS: u64 = 0x5401;
const TIOCSCTTY: u64 = 0x540e;
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;
const TIOCCONS: u64 = 0x541d;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPTPEER: u64 = 0x5441;

const fn filtered(id: &'static str, title: &'static str, reference: &'static str, run: fn(&World) -> Finding) -> Probe {
    Probe {
        id,
        title,
        severity: Severity::Medium,
        reference,
        tries: "The command on a descriptor that is not open: that it is not open is what the kernel says, and not a filter.",
        safe: "EPERM",
        meaning: "If a terminal of the host's ever comes in, by inheritance or by a device, the filter is what keeps input from being \
                  pushed into it. Shows the filter, not a hole.",
        controls: &[Control::Seccomp, Control::Host],
        order: Order::Any,
        root: false,
        run,
    }
}

fn ioctl(file: i32, command: u64, argument: usize) -> Result<i64, i32> {
    calls::raw(libc::SYS_ioctl, &[file as usize, command as usize, argument])
}

/// `TIOCSTI` takes the character after all checks: without one it fails then, and nothing is pushed.
fn push(file: i32, command: u64) -> Finding {
    Finding::past(ioctl(file, command, 0), &[libc::EFAULT])
}

fn inherited(world: &World) -> Finding {
    let mut settings = [0_u8; 64];
    let buffer = settings.as_mut_ptr() as usize;
    let terminals: Vec<i32> = (0..256).filter(|&file| ioctl(file, TCGETS, buffer).is_ok()).collect();
    if terminals.is_empty() {
        return if world.terminal {
            Finding::absent("no terminal was handed down")
        } else {
            Finding::inconclusive("the starter had no terminal to hand down")
        };
    }
    Finding::worst(terminals.into_iter().map(|file| (format!("descriptor {file}"), push(file, TIOCSTI))))
}

/// On a new terminal, made the controlling one of a session of this process's own.
fn on_own(command: u64) -> Finding {
    match own_terminal() {
        Ok(slave) => push(slave, command),
        // Without terminals the filter can still be asked.
        Err(errno) => match ioctl(-1, command, 0) {
            Err(libc::EBADF) => {
                Finding::inconclusive(format!("not filtered, but no terminal can be made: {}", name_of(errno)))
            }
            result => Finding::of(result),
        },
    }
}

fn own_terminal() -> Result<i32, i32> {
    let master = calls::open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY, 0)
        .or_else(|_| calls::open("/dev/pts/ptmx", libc::O_RDWR | libc::O_NOCTTY, 0))?;
    let unlocked = 0_i32;
    ioctl(master, TIOCSPTLCK, &raw const unlocked as usize)?;
    let slave = ioctl(master, TIOCGPTPEER, (libc::O_RDWR | libc::O_NOCTTY) as usize)? as i32;
    calls::raw(libc::SYS_setsid, &[])?;
    ioctl(slave, TIOCSCTTY, 0)?;
    Ok(slave)
}

/// On no descriptor at all.
fn on_none(command: u64) -> Finding {
    match ioctl(-1, command, 0) {
        Err(libc::EBADF) => Finding::reached("the kernel answers, not a filter"),
        Err(errno) => Finding { verdict: Verdict::Refused, ..Finding::refused(errno) },
        Ok(_) => Finding::reached(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIONREAD: u64 = 0x541b;

    #[test]
    fn nothing_is_pushed_into_a_terminal() {
        let waiting = calls::in_child(|| {
            let Ok(terminal) = own_terminal() else { return 2 };
            let _ = push(terminal, TIOCSTI);
            let mut count = -1_i32;
            let _ = ioctl(terminal, FIONREAD, &raw mut count as usize);
            i32::from(count != 0)
        });
        match waiting {
            Ok(Some(2)) => println!("SKIP: no terminal can be made here"),
            waiting => assert_eq!(waiting, Ok(Some(0))),
        }
    }
}
