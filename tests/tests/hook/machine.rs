//! The machine that Nix's program sends builds to, with clients that are not Nix's.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use anchorhold_tests::room::anchorhold;
use anchorhold_tests::skip;

use crate::world::World;

const CLIENT: u64 = 0x6e69_7863;
const SERVER: u64 = 0x6478_696f;
const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;

/// What a client says.
#[derive(Default)]
struct Said(Vec<u8>);

impl Said {
    /// The greeting of a client of protocol 1.34, as Nix 2.8's.
    fn hello() -> Self {
        Self::default().number(CLIENT).number(0x122).number(0).number(0)
    }

    fn number(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        let mut said = self.number(text.len() as u64);
        said.0.extend(text.as_bytes());
        said.0.resize(said.0.len().next_multiple_of(8), 0);
        said
    }
}

/// What a machine answers.
struct Heard(Vec<u8>);

impl Heard {
    #[track_caller]
    fn number(&mut self) -> u64 {
        assert!(self.0.len() >= 8, "nothing more was said");
        let rest = self.0.split_off(8);
        u64::from_le_bytes(std::mem::replace(&mut self.0, rest).try_into().unwrap())
    }

    #[track_caller]
    fn text(&mut self) -> String {
        let length = usize::try_from(self.number()).unwrap();
        let rest = self.0.split_off(length.next_multiple_of(8));
        let mut bytes = std::mem::replace(&mut self.0, rest);
        bytes.truncate(length);
        String::from_utf8(bytes).unwrap()
    }

    /// The message of an error that comes next.
    #[track_caller]
    fn error(&mut self) -> String {
        assert_eq!(
            (self.number(), self.text(), self.number(), self.text()),
            (ERROR, "Error".into(), 0, "Error".into())
        );
        let message = self.text();
        assert_eq!((self.number(), self.number()), (0, 0));
        message
    }
}

/// All that the machine answers until the client has ended, and whether it ended well.
fn talk(world: &World, said: &Said) -> (Heard, bool) {
    let carried = serde_json::json!({
        "store": world.root(), "timeout": null, "max_silent_time": null, "max_build_log_size": null, "cores": 0,
        "keep_failed": false, "log_lines": null, "platforms": [], "features": [], "sandbox_paths": [],
        "pre_build_hook": null, "report": null, "config": [], "options": [],
    });
    let mut child = Command::new(anchorhold())
        .args(["hook", "--stdio"])
        .env("ANCHORHOLD_HOOK", carried.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It may have ended the conversation already.
    let _ = child.stdin.take().unwrap().write_all(&said.0);
    let mut heard = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut heard).unwrap();
    let status = child.wait().unwrap();
    (Heard(heard), status.success())
}

/// The greeting of the machine to a client of 1.34.
#[track_caller]
fn greeted(heard: &mut Heard) {
    assert_eq!((heard.number(), heard.number()), (SERVER, 0x126));
    assert!(heard.text().starts_with("anchorhold "));
    assert_eq!(heard.number(), LAST);
}

#[test]
fn a_path_of_the_host_is_known_and_not_given_out() {
    let world = match World::new() {
        Ok(world) => world,
        Err(reason) => return skip(&reason),
    };
    let (tools, other) = (world.tools(), format!("/nix/store/{}-other", "a".repeat(32)));
    let said = Said::hello();
    let said = said.number(31).number(2).text(tools).text(&other).number(0);
    let said = said.number(38).text(tools).number(1).text(&other);
    let (mut heard, well) = talk(&world, &said);
    assert!(well);
    greeted(&mut heard);
    assert_eq!((heard.number(), heard.number(), heard.text()), (LAST, 1, tools.to_owned()), "the valid one of two");
    assert!(heard.error().contains("is not valid"), "Nix reads its own store itself");
    assert_eq!((heard.number(), heard.number()), (LAST, 0), "it goes on after a refusal");
    assert!(heard.0.is_empty());
}

#[test]
fn what_is_sent_is_not_taken() {
    let world = match World::new() {
        Ok(world) => world,
        Err(reason) => return skip(&reason),
    };
    // One path in one frame, of which only the count is there; then a request as if nothing were.
    let said = Said::hello().number(44).number(0).number(1).number(8).number(1).number(0);
    let said = said.number(1).text(world.tools());
    let (mut heard, well) = talk(&world, &said);
    assert!(well);
    greeted(&mut heard);
    assert!(heard.error().contains("no path is taken here"));
    assert_eq!((heard.number(), heard.number()), (LAST, 1));
}

#[test]
fn what_is_not_understood_ends_the_conversation_with_an_error() {
    let world = match World::new() {
        Ok(world) => world,
        Err(reason) => return skip(&reason),
    };
    for (said, words) in [
        (Said::hello().number(7777), "7777"),
        // To collect garbage is an operation, and none of a machine's.
        (Said::hello().number(20), "20"),
        (Said::hello().number(1).number(u64::MAX), "length"),
        (Said::hello().number(31).number(u64::MAX).text("x"), "path"),
        (Said::hello().number(1).text("/etc/passwd"), "/etc/passwd"),
        (Said::hello().number(36).text("/nix/store/x"), "derivation"),
        (Said::hello().number(44).number(0), "ended"),
    ] {
        let (mut heard, well) = talk(&world, &said);
        assert!(!well, "{words}");
        greeted(&mut heard);
        let message = heard.error();
        assert!(message.contains(words), "{message}");
        assert!(heard.0.is_empty());
    }
    let (heard, well) = talk(&world, &Said::default().number(0x390c_9deb).number(0x207));
    assert!(!well && heard.0.is_empty(), "the other protocol is not spoken");
}
