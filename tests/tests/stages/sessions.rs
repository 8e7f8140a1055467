//! People in a guest that has something else to do: `anchorhold vm ssh MACHINE`.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anchorhold_tests::room::anchorhold;
use anchorhold_tests::running::Running;
use anchorhold_tests::terminal::Terminal;

use crate::world::{World, text};

/// A guest that is revived and works until it is let go on; it ends with 9 then.
struct Guest {
    running: Running,
    name: String,
    exchange: PathBuf,
}

/// Says the word when it is told to, and takes its leave.
const WORK: &str =
    "echo from-the-work >/xchg/word; echo up; until [ -e /xchg/go ]; do sleep 0.1; done; cat /xchg/go; exit 9";

impl Guest {
    fn begin(world: &World) -> Self {
        world.must(&["suspend"]);
        let exchange = world.place.path().join("xchg");
        std::fs::create_dir(&exchange).unwrap();
        std::fs::set_permissions(&exchange, std::fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = world.vm(&["revive", "--env", "OF=the-work", "--exchange"]);
        command.arg(&exchange).args(["--", "/bin/sh", "-c", WORK]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running::start(command);
        assert_eq!(running.line(), "up");
        let name = format!("standin-{}", running.pid());
        Self { running, name, exchange }
    }

    fn ssh<T: AsRef<OsStr>>(&self, words: &[T]) -> Command {
        let mut command = Command::new(anchorhold());
        command.args(["vm", "ssh", &self.name, "--"]).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The same with this as its input.
    fn told(&self, words: &[&str], input: Vec<u8>) -> Output {
        let mut child = self.ssh(words).stdin(Stdio::piped()).spawn().unwrap();
        let mut typed = child.stdin.take().unwrap();
        let typing = std::thread::spawn(move || typed.write_all(&input));
        let output = child.wait_with_output().unwrap();
        typing.join().unwrap().unwrap();
        output
    }

    /// Lets the work end, which must end well and as ever.
    #[track_caller]
    fn ends_well(self) {
        std::fs::write(self.exchange.join("go"), "let go\n").unwrap();
        let ended = self.running.to_the_end();
        assert_eq!((ended.status, ended.stdout.as_str()), (9, "up\nlet go\n"), "{}", ended.stderr);
        assert!(!self.name.is_empty());
    }
}

fn in_either_topology(test: impl Fn(&World)) {
    for topology in ["direct", "pair"] {
        if let Some(world) = World::new().and_then(|world| world.with(topology)) {
            test(&world);
        }
    }
}

#[test]
fn a_command_runs_beside_the_work_with_streams_and_a_status_of_its_own() {
    in_either_topology(|world| {
        let guest = Guest::begin(world);
        let script = "cat /xchg/word; grep -ls OF=the-work /proc/[0-9]*/environ | wc -l; printf '<%s>' \"$@\"; echo
            echo complained >&2; cat; exit 37";
        let words = ["sh", "-c", script, "sh", "two words", "it's", "", "$x `y`"];
        let output = guest.told(&words, b"typed\nlines".to_vec());
        assert_eq!(output.status.code(), Some(37), "{}", text(&output.stderr));
        let (said, complained) = (text(&output.stdout), text(&output.stderr));
        let (seen, rest) = said.strip_prefix("from-the-work\n").and_then(|rest| rest.split_once('\n')).unwrap();
        assert!(seen.parse::<u32>().unwrap() >= 1, "the work is not seen: {said}");
        assert_eq!((rest, complained.as_str()), ("<two words><it's><><$x `y`>\ntyped\nlines", "complained\n"));
        for status in [0, 120, 255] {
            let ended = guest.ssh(&["sh", "-c", &format!("exit {status}")]).output().unwrap();
            assert_eq!(ended.status.code(), Some(status), "{}", text(&ended.stderr));
        }
        // More than any window, both ways and of every byte.
        let much: Vec<u8> = (0..1_500_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let output = guest.told(&["cat"], much.clone());
        assert!(output.status.success() && output.stdout == much, "{} bytes came back", output.stdout.len());
        guest.ends_well();
    });
}

#[test]
fn who_stalls_goes_away_or_stays_in_a_drive_does_not_disturb_the_work() {
    in_either_topology(|world| {
        let guest = Guest::begin(world);
        // One takes nothing of a flood.
        let mut stalled = guest.ssh(&["sh", "-c", "echo here; exec cat /dev/zero"]).spawn().unwrap();
        // One is killed in the middle, where he sits in a drive.
        let sits = |number: &str| guest.ssh(&["sh", "-c", &format!("cd /xchg; echo here; exec sleep {number}")]);
        let mut killed = Running::start(sits("54321"));
        assert_eq!(killed.line(), "here");
        killed.signal(nix::sys::signal::Signal::SIGKILL);
        killed.to_the_end();
        let script = "while ps | grep -q '[s]leep 54321'; do sleep 0.1; done; echo gone";
        let mut looking = Running::start(guest.ssh(&["sh", "-c", script]));
        assert_eq!(looking.line(), "gone");
        looking.to_the_end();
        // One sits there still when the work ends: it is his session that ends, and with words.
        let mut sitting = Running::start(sits("65432"));
        assert_eq!(sitting.line(), "here");
        let name = guest.name.clone();
        guest.ends_well();
        let ended = sitting.to_the_end();
        assert_eq!(ended.status, 120);
        let words = format!("the session in {name} is over: what the guest was there for has ended");
        assert!(ended.stderr.contains(&words), "{}", ended.stderr);
        stalled.kill().unwrap();
        stalled.wait().unwrap();
    });
}

/// What ends the sessions is what keeps them from the work: one that it cannot find is in its way.
#[test]
fn who_hides_in_a_drive_keeps_it_and_that_is_told() {
    let Some(world) = World::new().and_then(|world| world.with("direct")) else { return };
    let guest = Guest::begin(&world);
    let hidden =
        guest.ssh(&["sh", "-c", "cd /xchg; exec env -i /bin/sleep 1000 >/dev/null 2>&1 </dev/null &"]).output();
    assert!(hidden.unwrap().status.success());
    std::fs::write(guest.exchange.join("go"), "").unwrap();
    let ended = guest.running.to_the_end();
    assert_eq!(ended.status, 120, "{}", ended.stderr);
    assert!(ended.stderr.contains("taking away the drive X: (xchg) failed"), "{}", ended.stderr);
}

#[test]
fn a_session_without_a_command_is_a_shell_on_the_callers_terminal() {
    in_either_topology(|world| {
        let guest = Guest::begin(world);
        let mut command = Command::new("/bin/sh");
        let script = "stty rows 33 cols 101; \"$0\" vm ssh \"$1\"; s=$?; stty -a | grep -wo icanon; exit $s";
        command.args(["-c", script]).arg(anchorhold()).arg(&guest.name).env("TERM", "vt220");
        let mut terminal = Terminal::start(&command);
        terminal.shows("# ");
        // Each is typed when the one before is shown to be done.
        terminal.types("stty size; echo $TERM; tty\r");
        terminal.shows("\n33 101\r\nvt220\r\n/dev/pts/");
        terminal.resize(40, 120);
        terminal.types("until stty size | grep '40 120'; do sleep 0.1; done; echo ready; cat\r");
        terminal.shows("\n40 120\r\nready\r\n");
        terminal.types("word\r");
        terminal.shows("word\r\nword\r\n");
        terminal.types("\x03");
        terminal.shows_behind("^C", "# ");
        terminal.types("echo status $?; exit 7\r");
        terminal.shows("status 130");
        let (shown, status) = terminal.to_the_end();
        assert_eq!(status, 7, "{shown}");
        assert!(shown.ends_with("icanon\r\n"), "the terminal stays raw: {shown}");
        // A tilde and a dot leave one that does not end by itself.
        let mut left = Command::new(anchorhold());
        left.args(["vm", "ssh", "-t", &guest.name, "--", "sh", "-c", "echo stuck; exec sleep 1000"]);
        let mut terminal = Terminal::start(&left);
        terminal.shows("stuck");
        terminal.types("~.");
        let (shown, status) = terminal.to_the_end();
        assert_eq!(status, 255, "{shown}");
        assert!(shown.contains("was left, and what ran in it is ended"), "{shown}");
        guest.ends_well();
    });
}

#[test]
fn a_machine_that_does_not_run_is_told_with_those_that_do() {
    let Some(world) = World::new().and_then(|world| world.with("direct")) else { return };
    let guest = Guest::begin(&world);
    let refused = |words: &[&str]| {
        let output = Command::new(anchorhold()).args(["vm", "ssh"]).args(words).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{words:?}");
        text(&output.stderr)
    };
    let told = refused(&["nobody-1", "--", "true"]);
    assert!(told.contains("no machine nobody-1 runs, but ") && told.contains(&guest.name), "{told}");
    let told = refused(&[&guest.name, "--guest", "standin", "--", "true"]);
    assert!(told.contains("--guest"), "{told}");
    let told = refused(&[&guest.name]);
    assert!(told.contains("a session wants a terminal"), "{told}");
    let told = refused(&[&guest.name, "--", ""]);
    assert!(told.contains("the program has no name"), "{told}");
    guest.ends_well();
}
