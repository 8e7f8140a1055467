//! A guest that stands and can be logged into, whoever serves it: what a build needs of it, the same for all topologies.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::SSH_FAILED;
use crate::controller;
use crate::failure::{Failure, FailureClass};
use crate::linux::End;
use crate::profile::{Drive, Language, Profile};
use crate::readiness::Wait;
use crate::shares;
use crate::shares::samba::Account;
use crate::spec::Clock;

/// How long a line may take that has nothing to wait for: on a host that is overloaded.
const PATIENCE: Duration = Duration::from_secs(120);
/// How much longer than ssh's own deadline a login may take.
const GRACE: Duration = Duration::from_secs(20);
/// What a guest's shell says before each of several lines.
const AT: &str = "anchorhold-at-";
/// How much of what a line in the guest says is kept for whoever asks why it failed, in bytes.
const KEPT_WORDS: usize = 8 << 10;

/// A guest at [`Profile::reach`]'s address, its SSH session open, and a server at [`controller::ADDRESS`] that can give it drives.
pub trait Standing {
    /// What kind of guest it is.
    fn profile(&self) -> &Profile;

    /// As whom its drives are mounted: since the last [`Standing::open_shares`].
    fn account(&self) -> &Account;

    /// The build of QEMU.
    fn qemu(&self) -> String;

    /// The release of our own kernel in it, where there is one that has told it.
    fn kernel(&self) -> String;

    /// Serves the directories, to a new account.
    ///
    /// # Errors
    /// [`FailureClass::NoShare`].
    fn open_shares(&mut self) -> Result<(), Failure>;

    /// Serves them no more: all that was written is on the host then.
    ///
    /// # Errors
    /// [`FailureClass::NoShare`].
    fn close_shares(&mut self) -> Result<(), Failure>;

    /// Runs a line in the guest over the session. Its output goes to `output`.
    ///
    /// # Errors
    /// All that ends a wait. A status of 255 may be ssh's own: see [`super::job`].
    fn run(&mut self, line: &str, wait: &Wait, output: &mut dyn FnMut(&[u8]) -> io::Result<()>)
    -> Result<End, Failure>;

    /// Sets the clock of the server that gives it drives, to a time since 1970, where that has one of its own.
    ///
    /// # Errors
    /// All that ends a wait.
    fn set_servers_clock(&mut self, time: Duration) -> Result<(), Failure>;

    /// A session in the guest for a person: of a pair at its controller's console, of a lone guest at our own terminal.
    ///
    /// # Errors
    /// All that ends a wait.
    fn session(&mut self) -> Result<End, Failure>;

    /// Lets people in by a socket at this path, each into a session of his own, while anything is waited for.
    ///
    /// # Errors
    /// What the system says.
    fn admit(&mut self, door: &Path) -> Result<(), Failure>;

    /// Ends the sessions of people, with what they have left running, and says why; nobody is let in any more.
    ///
    /// # Errors
    /// All that ends a wait.
    fn dismiss(&mut self, why: &str) -> Result<(), Failure>;

    /// A failure that is the guest's, with what was seen of it.
    fn guest_failed(&mut self, class: FailureClass, what: &str) -> Failure;
}

/// The first login, which opens the session.
pub(super) fn log_in(standing: &mut dyn Standing) -> Result<(), Failure> {
    let limit = standing.profile().login_limit();
    let said = say(standing, "exit 0", &Wait::new("the first login", limit + GRACE))?;
    if said.end == End::Status(0) {
        return prepare(standing);
    }
    let class = of_login(&said.words).unwrap_or(FailureClass::NoLogin);
    let what = format!("logging into the guest failed ({}): {}", in_words(&said.end), last_line(&said.words));
    Err(standing.guest_failed(class, &what))
}

/// What the profile has for a guest that has started.
fn prepare(standing: &mut dyn Standing) -> Result<(), Failure> {
    let Some(line) = standing.profile().command.prepare.clone() else { return Ok(()) };
    let said = say(standing, &line, &Wait::new("the guest's own preparation", PATIENCE))?;
    if said.end == End::Status(0) {
        return Ok(());
    }
    let what = format!("{line} failed in the guest ({}): {}", in_words(&said.end), last_line(&said.words));
    Err(standing.guest_failed(FailureClass::GuestRefused, &what))
}

/// What kept ssh from a login, by its words.
fn of_login(words: &str) -> Option<FailureClass> {
    if words.contains("Host key verification failed") || words.contains("HOST IDENTIFICATION") {
        return Some(FailureClass::WrongKey);
    }
    words.contains("Permission denied (").then_some(FailureClass::NoLogin)
}

/// Gives the guest its drives, and tries each. `store` and `exchange` are the directories behind two of them, as this process
/// sees them. With the host's clock all are set to that first: files get their times from whoever writes them, and a program
/// that compares one of its own with another's must find one clock.
pub(super) fn mount(standing: &mut dyn Standing, store: &Path, exchange: &Path, clock: Clock) -> Result<(), Failure> {
    let now = (clock == Clock::Host).then(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    if let Some(now) = now {
        standing.set_servers_clock(now)?;
    }
    standing.open_shares()?;
    let nonce = format!("probe-{}", std::process::id());
    let probe = exchange.join(&nonce);
    let io = |doing: &str| {
        let what = format!("{doing} {}", probe.display());
        move |error: io::Error| Failure::new(FailureClass::NoShare, format!("{what}: {error}"))
    };
    std::fs::write(&probe, b"").map_err(io("writing"))?;
    let in_store = std::fs::read_dir(store).ok().and_then(|mut entries| entries.next()?.ok());
    let in_store = in_store.and_then(|entry| entry.file_name().into_string().ok());
    let profile = standing.profile().clone();
    let mut lines = Vec::new();
    if let Some(now) = now {
        lines.push(("setting the guest's clock".to_owned(), profile.set_clock(now.as_secs())));
    }
    for drive in &profile.drives {
        let line = profile.mount(drive, controller::ADDRESS, standing.account());
        let name = format!("{} ({})", drive.letter, drive.share);
        lines.push((format!("mounting the drive {name}"), line));
        let file = match drive.share.as_str() {
            shares::EXCHANGE => Some(&nonce),
            shares::STORE_SHARE => in_store.as_ref(),
            _ => None,
        };
        if let Some(file) = file {
            lines.push((format!("reading from the drive {name}"), profile.probe(drive, file)));
        }
    }
    must_all(standing, &lines)?;
    std::fs::remove_file(&probe).map_err(io("removing"))
}

/// Takes the drives away: all that was written is on the host then.
pub(super) fn unmount(standing: &mut dyn Standing) -> Result<(), Failure> {
    let profile = standing.profile().clone();
    let taking = |drive: &Drive| format!("taking away the drive {} ({})", drive.letter, drive.share);
    let lines: Vec<_> = profile.drives.iter().map(|drive| (taking(drive), profile.unmount(drive))).collect();
    must_all(standing, &lines)?;
    standing.close_shares()
}

/// What a line in the guest came to.
struct Said {
    end: End,
    words: String,
}

fn say(standing: &mut dyn Standing, line: &str, wait: &Wait) -> Result<Said, Failure> {
    let mut said = Vec::new();
    let end = standing.run(line, wait, &mut |bytes| {
        let room = KEPT_WORDS.saturating_sub(said.len());
        said.extend(&bytes[..bytes.len().min(room)]);
        Ok(())
    })?;
    Ok(Said { end, words: String::from_utf8_lossy(&said).into_owned() })
}

/// A line that must succeed, and what it is for.
pub(super) fn must(standing: &mut dyn Standing, line: &str, doing: &str) -> Result<(), Failure> {
    must_all(standing, &[(doing.to_owned(), line.to_owned())])
}

/// Lines of which each must succeed, each behind what it is for. A login takes longer than most of them do, so that a guest's
/// shell gets all at once where it can say which one it is at.
fn must_all(standing: &mut dyn Standing, lines: &[(String, String)]) -> Result<(), Failure> {
    if standing.profile().shell.kind != Language::Sh {
        for (doing, line) in lines {
            let said = say(standing, line, &Wait::new(format!("the end of {doing}"), PATIENCE))?;
            if said.end != End::Status(0) {
                return Err(failed(standing, doing, &said));
            }
        }
        return Ok(());
    }
    let all: Vec<String> =
        lines.iter().enumerate().map(|(number, (_, line))| format!("echo {AT}{number}; ( {line} )")).collect();
    // Some programs end with what is ssh's own.
    let all = format!("( {} ); s=$?; test $s != {SSH_FAILED} || s=254; exit $s", all.join(" && "));
    let doing = lines.first().map_or("nothing", |(doing, _)| doing.as_str());
    let said = say(standing, &all, &Wait::new(format!("the end of {doing}"), PATIENCE))?;
    if said.end == End::Status(0) {
        return Ok(());
    }
    let at = said.words.lines().rev().find_map(|line| line.strip_prefix(AT)?.trim().parse::<usize>().ok());
    let doing = at.and_then(|at| lines.get(at)).map_or(doing, |(doing, _)| doing.as_str());
    let words: Vec<&str> = said.words.lines().filter(|line| !line.starts_with(AT)).collect();
    Err(failed(standing, doing, &Said { end: said.end, words: words.join("\n") }))
}

fn failed(standing: &mut dyn Standing, doing: &str, said: &Said) -> Failure {
    // A guest that was revived may be logged into by the first line that it is told.
    let class = match said.end {
        End::Status(SSH_FAILED) => of_login(&said.words).unwrap_or(FailureClass::SessionLost),
        _ => FailureClass::NoShare,
    };
    // The line itself has a password in it.
    let words = said.words.replace(standing.account().password(), "…");
    let what = format!("{doing} failed ({}): {}", in_words(&said.end), last_line(&words));
    standing.guest_failed(class, &what)
}

pub(super) fn last_line(words: &str) -> String {
    let line = words.trim().lines().next_back().unwrap_or("it said nothing");
    line.escape_debug().take(300).collect()
}

fn in_words(end: &End) -> String {
    match end {
        End::Status(status) => format!("status {status}"),
        End::Signal(signal) => format!("signal {signal}"),
        End::NotStarted(why) => why.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that answers each line by what is next in its list.
    struct Scripted {
        profile: Profile,
        account: Account,
        answers: Vec<(u8, String)>,
        lines: Vec<String>,
    }

    impl Standing for Scripted {
        fn profile(&self) -> &Profile {
            &self.profile
        }
        fn account(&self) -> &Account {
            &self.account
        }
        fn qemu(&self) -> String {
            String::new()
        }
        fn kernel(&self) -> String {
            String::new()
        }
        fn open_shares(&mut self) -> Result<(), Failure> {
            Ok(())
        }
        fn close_shares(&mut self) -> Result<(), Failure> {
            Ok(())
        }
        fn run(
            &mut self,
            line: &str,
            _: &Wait,
            output: &mut dyn FnMut(&[u8]) -> io::Result<()>,
        ) -> Result<End, Failure> {
            self.lines.push(line.to_owned());
            let (status, words) = self.answers.remove(0);
            output(words.as_bytes()).unwrap();
            Ok(End::Status(status))
        }
        fn set_servers_clock(&mut self, _: Duration) -> Result<(), Failure> {
            Ok(())
        }
        fn session(&mut self) -> Result<End, Failure> {
            Ok(End::Status(0))
        }
        fn admit(&mut self, _: &Path) -> Result<(), Failure> {
            Ok(())
        }
        fn dismiss(&mut self, _: &str) -> Result<(), Failure> {
            Ok(())
        }
        fn guest_failed(&mut self, class: FailureClass, what: &str) -> Failure {
            Failure::new(class, what)
        }
    }

    fn scripted(answers: &[(u8, &str)]) -> Scripted {
        Scripted {
            profile: Profile::built_in("standin").unwrap(),
            account: Account::new("nixbld").unwrap(),
            answers: answers.iter().map(|(status, words)| (*status, (*words).to_owned())).collect(),
            lines: Vec::new(),
        }
    }

    #[test]
    fn a_login_that_fails_is_told_by_its_cause() {
        let class = |status, words| log_in(&mut scripted(&[(status, words)])).map_err(|failure| failure.class);
        assert_eq!(class(0, ""), Ok(()));
        assert_eq!(class(255, "Host key verification failed.\r\n"), Err(FailureClass::WrongKey));
        assert_eq!(class(255, "root@192.168.0.1: Permission denied (publickey)."), Err(FailureClass::NoLogin));
        assert_eq!(class(1, "This account is currently not available."), Err(FailureClass::NoLogin));
    }

    #[test]
    fn a_guest_is_prepared_once_it_can_be_logged_into() {
        let mut guest = scripted(&[(0, ""), (0, "")]);
        guest.profile = Profile::built_in("wine").unwrap();
        log_in(&mut guest).unwrap();
        assert_eq!(guest.lines, ["exit 0", "/usr/sbin/wine-begin"]);
        guest.answers = vec![(0, String::new()), (3, "no such program\n".into())];
        let failure = log_in(&mut guest).unwrap_err();
        assert_eq!(failure.class, FailureClass::GuestRefused);
        assert!(failure.what.contains("(status 3): no such program"), "{}", failure.what);
    }

    #[test]
    fn a_drive_that_cannot_be_had_is_named_and_its_password_is_not() {
        let place = tempfile::tempdir().unwrap();
        let mut guest = scripted(&[(2, "")]);
        guest.answers[0].1 = format!("{AT}0\n{AT}1\nmount: bad option password={}\n", guest.account.password());
        let failure = mount(&mut guest, &place.path().join("none"), place.path(), Clock::Virtual).unwrap_err();
        assert_eq!(failure.class, FailureClass::NoShare);
        assert!(failure.what.starts_with("mounting the drive X: (xchg) failed (status 2): "), "{}", failure.what);
        assert!(!failure.what.contains(guest.account.password()), "{}", failure.what);
        // With ssh's own status nothing is known of the drive.
        let mut guest = scripted(&[(255, "Timeout, server 192.168.0.1 not responding.")]);
        let failure = mount(&mut guest, Path::new("/none"), place.path(), Clock::Virtual).unwrap_err();
        assert_eq!(failure.class, FailureClass::SessionLost);
        // A guest that was revived is logged into by it.
        for (words, class) in [
            ("Host key verification failed.", FailureClass::WrongKey),
            ("root@127.0.0.1: Permission denied (publickey).", FailureClass::NoLogin),
        ] {
            let failure =
                mount(&mut scripted(&[(255, words)]), Path::new("/none"), place.path(), Clock::Virtual).unwrap_err();
            assert_eq!(failure.class, class);
        }
    }

    #[test]
    fn every_drive_is_tried_by_a_file_of_its_own() {
        let (store, exchange) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(store.path().join("abc-in-1.0"), "").unwrap();
        let mut guest = scripted(&[(0, "")]);
        mount(&mut guest, store.path(), exchange.path(), Clock::Virtual).unwrap();
        assert!(!guest.lines[0].contains("date"), "{:?}", guest.lines);
        assert!(guest.lines[0].contains("( test -r '/nix/store/abc-in-1.0' )"), "{:?}", guest.lines);
        assert!(guest.lines[0].contains("( test -r '/xchg/probe-"), "{:?}", guest.lines);
        assert_eq!(std::fs::read_dir(exchange.path()).unwrap().count(), 0, "the probe is gone");
        // Before them the clock, in the same line: each costs a shell of the guest's.
        guest.answers = vec![(0, String::new())];
        mount(&mut guest, store.path(), exchange.path(), Clock::Host).unwrap();
        let (clock, drives) = guest.lines[1].split_once("mount -t cifs").unwrap();
        assert!(clock.contains("( date -u -s @") && !drives.contains("date"), "{:?}", guest.lines);
    }
}
