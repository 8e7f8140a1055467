//! Processes: who this one is, what it may do to others, and how it dies.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use crate::{Answer, done, errno, number};

pub fn answer(words: &[&str]) -> Option<Answer> {
    Some(match *words {
        ["ids"] => Ok(ids()),
        ["status", key] => status(key),
        ["umask"] => Ok(format!("{:04o}", nix::sys::stat::umask(nix::sys::stat::Mode::empty()).bits())),
        ["descriptors"] => descriptors(),
        ["environment"] => Ok(environment()),
        ["arguments", ..] => Ok(std::env::args().collect::<Vec<_>>().join(" ")),
        ["directory"] => std::env::current_dir().map_err(errno).map(|path| path.display().to_string()),
        ["signal-masks"] => signal_masks(),
        ["message-queue"] => message_queue(),
        ["address-of-stack"] => {
            let here = 0u8;
            Ok(format!("{:p}", &raw const here))
        }
        ["clock"] => nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(|time| time.tv_sec().to_string()),
        ["processes"] => processes(),
        ["kill", pid, number_of_signal] => {
            let signal = Signal::try_from(number::<i32>(number_of_signal)).ok();
            done(kill(Pid::from_raw(number(pid)), signal))
        }
        ["hold", ..] => hold(),
        ["hold-quietly", ..] => sleep_for_ever(),
        ["exit", status] => std::process::exit(number(status)),
        ["die", number_of_signal] => die(number(number_of_signal)),
        ["catch", ..] => catch(),
        ["catch-waiting", ..] => catch_waiting(),
        ["defy", ..] => defy(words, true),
        ["daemon", ..] => defy(words, false),
        ["step-aside", ..] => step_aside(words),
        ["survive", ..] => survive(),
        ["orphan", ..] => orphan(),
        ["leave-an-orphan"] => done(start_again("umask", &[], Stdio::null())),
        ["start-until-refused", most] => start_until_refused(number(most)),
        ["allocate", bytes] => allocate(number(bytes)),
        ["spin"] => loop {
            std::hint::spin_loop();
        },
        ["write-lines", most] => write_lines(number(most)),
        _ => return None,
    })
}

fn ids() -> String {
    let groups: Vec<_> = nix::unistd::getgroups().unwrap_or_default().iter().map(ToString::to_string).collect();
    format!(
        "uid {} {} gid {} {} groups {}",
        nix::unistd::getuid(),
        nix::unistd::geteuid(),
        nix::unistd::getgid(),
        nix::unistd::getegid(),
        groups.join(",")
    )
}

/// Sends itself a message by a POSIX queue of a name.
fn message_queue() -> Answer {
    use nix::mqueue::{MQ_OFlag, MqAttr, mq_open, mq_receive, mq_send, mq_unlink};
    let name = c"/anchorhold-probe";
    let flags = MQ_OFlag::O_CREAT | MQ_OFlag::O_EXCL | MQ_OFlag::O_RDWR;
    let size = MqAttr::new(0, 1, 64, 0);
    let queue = mq_open(name, flags, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR, Some(&size))?;
    mq_send(&queue, b"word", 1)?;
    let mut heard = [0; 64];
    let length = mq_receive(&queue, &mut heard, &mut 0)?;
    mq_unlink(name)?;
    Ok(String::from_utf8_lossy(&heard[..length]).into_owned())
}

fn status(key: &str) -> Answer {
    let text = fs::read_to_string("/proc/self/status").map_err(errno)?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    value.map(|value| value.trim().to_owned()).ok_or(Errno::ENODATA)
}

/// The descriptors that this process was given, with what they are.
fn descriptors() -> Answer {
    let mut lines = Vec::new();
    for number in 0..1024 {
        if let Ok(link) = fs::read_link(format!("/proc/self/fd/{number}")) {
            let kind = link.to_string_lossy().split(':').next().unwrap_or_default().to_owned();
            lines.push(format!("{number} {kind}"));
        }
    }
    Ok(lines.join("\n"))
}

fn environment() -> String {
    let mut lines: Vec<_> =
        std::env::vars_os().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect();
    lines.sort();
    lines.join("\n")
}

fn signal_masks() -> Answer {
    Ok(format!("blocked {} ignored {}", status("SigBlk")?, status("SigIgn")?))
}

fn processes() -> Answer {
    let entries = fs::read_dir("/proc").map_err(errno)?;
    let mut ids: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    ids.sort_unstable();
    Ok(ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

fn sleep_for_ever() -> ! {
    loop {
        nix::unistd::pause();
    }
}

/// Says that it is there, and stays.
fn hold() -> ! {
    say("ready");
    sleep_for_ever()
}

/// Ends by a signal.
fn die(number: i32) -> Answer {
    let last = Signal::try_from(number)?;
    // SAFETY: the default action runs no handler. Rust's runtime has one for stacks that overflow; that of SIGKILL cannot be set.
    let _ = unsafe { signal(last, SigHandler::SigDfl) };
    // A first process of a pid namespace cannot be ended by a signal of its own; a child can, and its end is handed on.
    kill(Pid::this(), last)?;
    sleep_for_ever()
}

/// Takes signals and names each; SIGTERM is the last.
fn catch() -> Answer {
    let all = SigSet::all();
    all.thread_block()?;
    let signals = SignalFd::new(&all)?;
    say("ready");
    loop {
        let Some(found) = signals.read_signal()? else { continue };
        let signal = Signal::try_from(found.ssi_signo as i32)?;
        say(signal.as_str());
        if signal == Signal::SIGTERM {
            return Ok("ended by choice".into());
        }
    }
}

/// As [`catch`], in sigwait(3): while it waits the kernel shows none of these signals as blocked.
fn catch_waiting() -> Answer {
    let all = SigSet::all();
    all.thread_block()?;
    say("ready");
    loop {
        let signal = all.wait()?;
        say(signal.as_str());
        if signal == Signal::SIGTERM {
            return Ok("ended by choice".into());
        }
    }
}

fn ignore_everything() {
    for one in Signal::iterator() {
        // SAFETY: to ignore a signal runs no handler.
        let _ = unsafe { signal(one, SigHandler::SigIgn) };
    }
}

/// Starts this program again with another command and the same marking words.
fn start_again(command: &str, words: &[&str], stdout: Stdio) -> Result<Child, Errno> {
    use std::os::unix::process::CommandExt;
    let marks = words.iter().skip(1);
    let own_name = std::env::args_os().next().unwrap_or_default();
    Command::new("/proc/self/exe").arg0(own_name).arg(command).args(marks).stdout(stdout).spawn().map_err(errno)
}

/// Does all that a process can do so as not to die with its room: no parent-death signal, a descendant in a session of its own,
/// every signal ignored. Stays or leaves the descendant alone.
fn defy(words: &[&str], stays: bool) -> Answer {
    done(nix::sys::prctl::set_pdeathsig(None))?;
    ignore_everything();
    let mut between = start_again("step-aside", words, Stdio::piped())?;
    let mut line = String::new();
    BufReader::new(between.stdout.take().ok_or(Errno::EPIPE)?).read_line(&mut line).map_err(errno)?;
    say(line.trim_end());
    if stays { sleep_for_ever() } else { Ok("left it alone".into()) }
}

/// The process between that makes an orphan of the next.
fn step_aside(words: &[&str]) -> Answer {
    nix::unistd::setsid()?;
    start_again("survive", words, Stdio::inherit())?;
    std::process::exit(0)
}

fn survive() -> ! {
    ignore_everything();
    let _ = nix::sys::prctl::set_pdeathsig(None);
    say("ready");
    sleep_for_ever()
}

/// Makes orphans that end, and tells whether somebody waits for them.
fn orphan() -> Answer {
    for _ in 0..5 {
        let mut between = start_again("leave-an-orphan", &[], Stdio::null())?;
        between.wait().map_err(errno)?;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let text = processes()?;
        let zombies = text.split(' ').filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
        });
        match zombies.count() {
            0 => return Ok("all reaped".into()),
            count if Instant::now() > deadline => return Ok(format!("{count} zombies")),
            // There is no event for the end of somebody else's child.
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Starts processes until the kernel refuses one: how many there were, and how it did.
fn start_until_refused(most: usize) -> Answer {
    let mut children = Vec::new();
    let mut answer = format!("none refused of {most}");
    while children.len() < most {
        match start_again("hold-quietly", &[], Stdio::null()) {
            Ok(child) => children.push(child),
            Err(errno) => {
                answer = format!("{errno:?} after {}", children.len());
                break;
            }
        }
    }
    for mut child in children {
        let _ = child.kill();
        let _ = child.wait();
    }
    Ok(answer)
}

/// Touches so much memory.
fn allocate(bytes: usize) -> Answer {
    let mut memory: Vec<u8> = Vec::new();
    memory.try_reserve_exact(bytes).map_err(|_| Errno::ENOMEM)?;
    memory.resize(bytes, 1);
    Ok(format!("done, {}", memory.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>()))
}

fn write_lines(most: u64) -> Answer {
    let mut out = std::io::stdout().lock();
    for number in 0..most {
        writeln!(out, "{number:063}").map_err(errno)?;
    }
    out.flush().map_err(errno)?;
    Ok("written".into())
}
