//! One probe, in a process of its own: whatever it breaks, the next one starts whole.

use anchorhold_probe::verdict::Finding;
use anchorhold_probe::world::World;

use crate::calls;
use crate::probe::Probe;

/// Seconds after which an attempt is ended.
pub const LIMIT: u32 = 10;

/// The longest finding that is taken, in bytes.
const LONGEST: usize = 64 * 1024;

/// Runs the probe in a child and takes its finding. Killed by the filter's SIGSYS is refused; ended by the limit or by
/// any other signal shows nothing.
pub fn attempt(probe: &Probe, world: &World) -> Finding {
    let [reader, writer] = match calls::pipe() {
        Ok(ends) => ends,
        Err(errno) => return Finding::inconclusive(format!("no pipe: {}", anchorhold_probe::verdict::name_of(errno))),
    };
    let child = match calls::fork() {
        Ok(0) => {
            calls::close(reader);
            calls::default_signals();
            calls::alarm(LIMIT);
            let finding = (probe.run)(world);
            let mut line = serde_json::to_vec(&finding).expect("plain data has a JSON form");
            line.push(b'\n');
            let mut rest = &line[..];
            while !rest.is_empty() {
                match calls::write(writer, rest) {
                    Ok(taken) => rest = &rest[taken..],
                    Err(libc::EINTR) => {}
                    Err(_) => break,
                }
            }
            calls::exit(0)
        }
        Ok(child) => child,
        Err(errno) => {
            calls::close(reader);
            calls::close(writer);
            return Finding::inconclusive(format!("no process: {}", anchorhold_probe::verdict::name_of(errno)));
        }
    };
    calls::close(writer);
    let line = first_line(reader);
    calls::close(reader);
    let status = calls::wait(child).unwrap_or(0);
    if libc::WIFSIGNALED(status) {
        return match libc::WTERMSIG(status) {
            libc::SIGSYS => Finding::refused(libc::EPERM).with("killed by the filter (SIGSYS)"),
            libc::SIGALRM => Finding::inconclusive(format!("did not end within {LIMIT} s")),
            signal => Finding::inconclusive(format!("ended by signal {signal}")),
        };
    }
    serde_json::from_slice(&line).unwrap_or_else(|_| Finding::inconclusive("ended without a finding"))
}

/// What comes up to the end of the line. A descendant that the attempt left behind may hold the pipe open, so its end is
/// not waited for; nor is anything much longer than the attempt may run.
fn first_line(reader: i32) -> Vec<u8> {
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    while line.len() < LONGEST && calls::readable(reader, (LIMIT as i32 + 2) * 1000) {
        match calls::read(reader, &mut buffer) {
            Ok(0) => break,
            Ok(length) => line.extend_from_slice(&buffer[..length]),
            Err(libc::EINTR) => continue,
            Err(_) => break,
        }
        if line.ends_with(b"\n") {
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Order, Severity};
    use anchorhold_probe::verdict::Verdict;

    fn probe(run: fn(&World) -> Finding) -> Probe {
        Probe {
            id: "test.one",
            title: "",
            severity: Severity::Fact,
            reference: "",
            tries: "",
            safe: "",
            meaning: "",
            controls: &[],
            order: Order::Any,
            root: false,
            run,
        }
    }

    #[test]
    fn the_finding_comes_back_from_the_child() {
        let finding = attempt(&probe(|_| Finding::refused(libc::EROFS).with("read-only")), &World::default());
        assert_eq!(finding, Finding::refused(libc::EROFS).with("read-only"));
    }

    #[test]
    fn an_attempt_that_dies_shows_nothing_and_one_killed_by_the_filter_was_refused() {
        let killed = attempt(
            &probe(|_| {
                let _ = calls::raw(libc::SYS_kill, &[std::process::id() as usize, libc::SIGKILL as usize]);
                Finding::reached("still here")
            }),
            &World::default(),
        );
        assert_eq!(killed.verdict, Verdict::Inconclusive);
        let filtered = attempt(
            &probe(|_| {
                let _ = calls::raw(libc::SYS_kill, &[std::process::id() as usize, libc::SIGSYS as usize]);
                Finding::reached("still here")
            }),
            &World::default(),
        );
        assert_eq!(filtered.verdict, Verdict::Refused);
    }
}
