//! A guest that stands and can be logged into, whoever serves it: what a build needs of it, the same for all topologies.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::SSH_FAILED;
use crate::controller;
use crate::failure::{Failure, FailureClass};
use crate::linux::End;
use crate::profile::{Language, Profile};
use crate::readiness::Wait;
use crate::shares;
use crate::shares::samba::Account;

/// How long a line may take that has nothing to wait for: on a host that is overloaded.
const PATIENCE: Duration = Duration::from_secs(120);
/// How much longer than ssh's own deadline a login may take.
const GRACE: Duration = Duration::from_secs(20);
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

    /// A failure that is the guest's, with what was seen of it.
    fn guest_failed(&mut self, class: FailureClass, what: &str) -> Failure;
}

/// The first login, which opens the session.
pub(super) fn log_in(standing: &mut dyn Standing) -> Result<(), Failure> {
    let limit = standing.profile().login_limit();
    let said = say(standing, "exit 0", &Wait::new("the first login", limit + GRACE))?;
    let class = match said.end {
        End::Status(0) => return Ok(()),
        _ if said.words.contains("Host key verification failed") || said.words.contains("HOST IDENTIFICATION") => {
            FailureClass::WrongKey
        }
        _ => FailureClass::NoLogin,
    };
    let what = format!("logging into the guest failed ({}): {}", in_words(&said.end), last_line(&said.words));
    Err(standing.guest_failed(class, &what))
}

/// Gives the guest its drives, and tries each. `store` and `exchange` are the directories behind two of them, as this process
/// sees them.
pub(super) fn mount(standing: &mut dyn Standing, store: &Path, exchange: &Path) -> Result<(), Failure> {
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
    for drive in &profile.drives {
        let line = profile.mount(drive, controller::ADDRESS, standing.account());
        let name = format!("{} ({})", drive.letter, drive.share);
        must(standing, &line, &format!("mounting the drive {name}"))?;
        let file = match drive.share.as_str() {
            shares::EXCHANGE => Some(&nonce),
            shares::STORE_SHARE => in_store.as_ref(),
            _ => None,
        };
        if let Some(file) = file {
            must(standing, &profile.probe(drive, file), &format!("reading from the drive {name}"))?;
        }
    }
    std::fs::remove_file(&probe).map_err(io("removing"))
}

/// Takes the drives away: all that was written is on the host then.
pub(super) fn unmount(standing: &mut dyn Standing) -> Result<(), Failure> {
    let profile = standing.profile().clone();
    for drive in &profile.drives {
        let what = format!("taking away the drive {} ({})", drive.letter, drive.share);
        must(standing, &profile.unmount(drive), &what)?;
    }
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

fn must(standing: &mut dyn Standing, line: &str, doing: &str) -> Result<(), Failure> {
    let line = match standing.profile().shell.kind {
        // Some programs end with what is ssh's own.
        Language::Sh => format!("( {line} ); s=$?; test $s != {SSH_FAILED} || s=254; exit $s"),
        Language::Powershell | Language::Cmd => line.to_owned(),
    };
    let said = say(standing, &line, &Wait::new(format!("the end of {doing}"), PATIENCE))?;
    if said.end == End::Status(0) {
        return Ok(());
    }
    let class = if said.end == End::Status(SSH_FAILED) { FailureClass::SessionLost } else { FailureClass::NoShare };
    // The line itself has a password in it.
    let words = said.words.replace(standing.account().password(), "…");
    let what = format!("{doing} failed ({}): {}", in_words(&said.end), last_line(&words));
    Err(standing.guest_failed(class, &what))
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
    fn a_drive_that_cannot_be_had_is_named_and_its_password_is_not() {
        let place = tempfile::tempdir().unwrap();
        let mut guest = scripted(&[(0, ""), (2, "")]);
        guest.answers[1].1 = format!("mount: bad option password={}\n", guest.account.password());
        let failure = mount(&mut guest, &place.path().join("none"), place.path()).unwrap_err();
        assert_eq!(failure.class, FailureClass::NoShare);
        assert!(failure.what.starts_with("mounting the drive X: (xchg) failed (status 2): "), "{}", failure.what);
        assert!(!failure.what.contains(guest.account.password()), "{}", failure.what);
        // With ssh's own status nothing is known of the drive.
        let mut guest = scripted(&[(255, "Timeout, server 192.168.0.1 not responding.")]);
        let failure = mount(&mut guest, Path::new("/none"), place.path()).unwrap_err();
        assert_eq!(failure.class, FailureClass::SessionLost);
    }

    #[test]
    fn every_drive_is_tried_by_a_file_of_its_own() {
        let (store, exchange) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(store.path().join("abc-in-1.0"), "").unwrap();
        let mut guest = scripted(&[(0, ""); 4]);
        mount(&mut guest, store.path(), exchange.path()).unwrap();
        assert!(guest.lines[1].starts_with("( test -r '/nix/store/abc-in-1.0' ); "), "{:?}", guest.lines);
        assert!(guest.lines[3].starts_with("( test -r '/xchg/probe-"), "{:?}", guest.lines);
        assert_eq!(std::fs::read_dir(exchange.path()).unwrap().count(), 0, "the probe is gone");
    }
}
