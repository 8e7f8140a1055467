//! A door whose other side is played by the test.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tempfile::TempDir;

use super::*;

const SOON: Duration = Duration::from_secs(60);

/// A door, and what it asks for.
struct Played {
    place: TempDir,
    door: Door,
    teller: Teller,
    asked: Receiver<Asked>,
}

impl Played {
    fn open() -> Self {
        let place = tempfile::tempdir().unwrap();
        let (teller, hearing) = hearing().unwrap();
        let (asks, asked) = mpsc::channel();
        let ask = move |one| drop(asks.send(one));
        let door = Door::open(&place.path().join("door"), (teller.clone(), hearing), ask).unwrap();
        Self { place, door, teller, asked }
    }

    fn come(&self) -> Person {
        let stream = UnixStream::connect(self.place.path().join("door")).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Person { stream, frames: Frames::new() }
    }

    /// A person in a session, and its number.
    fn come_in(&self) -> (Person, u32) {
        let mut person = self.come();
        person.says(&Said::Open(wanted("top")));
        match self.next() {
            Asked::Open(number, what) if what == wanted("top") => (person, number),
            other => panic!("{other:?}"),
        }
    }

    fn next(&self) -> Asked {
        self.asked.recv_timeout(SOON).unwrap()
    }

    fn said(&self, number: u32, bytes: &[u8]) {
        self.teller.tell(Told::Flowed(number, Flowed::Output { error: false, bytes: bytes.to_vec() }));
    }
}

fn wanted(word: &str) -> Wanted {
    Wanted { words: vec![word.into()], terminal: None }
}

struct Person {
    stream: UnixStream,
    frames: Frames,
}

impl Person {
    fn says(&mut self, said: &Said) {
        self.stream.write_all(&said.encode().unwrap()).unwrap();
    }

    /// The next thing that is told; nothing at the end.
    fn hears(&mut self) -> Option<Answer> {
        let mut piece = vec![0; 64 << 10];
        loop {
            if let Some(message) = self.frames.next_message().unwrap() {
                return Some(Answer::decode(&message).unwrap());
            }
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(length) => self.frames.feed(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn a_session_is_opened_fed_and_ended() {
    let played = Played::open();
    assert!(!played.door.was_used());
    let (mut person, number) = played.come_in();
    assert!(played.door.was_used());
    person.says(&Said::Input(b"typed".to_vec()));
    assert_eq!(played.next(), Asked::Feed(number, b"typed".to_vec()));
    person.says(&Said::Input(Vec::new()));
    assert_eq!(played.next(), Asked::Feed(number, Vec::new()));
    played.said(number, b"shown");
    assert_eq!(person.hears(), Some(Answer::Output { error: false, bytes: b"shown".to_vec() }));
    played.teller.tell(Told::Ended(number, End::Status(7)));
    assert_eq!(person.hears(), Some(Answer::Ended(End::Status(7))));
    assert_eq!(person.hears(), None);
    // What it has left running is to go, too; and no number is used twice.
    assert_eq!(played.next(), Asked::Close(number));
    assert_ne!(played.come_in().1, number);
}

#[test]
fn who_goes_away_has_his_session_closed() {
    let played = Played::open();
    let (person, number) = played.come_in();
    drop(person);
    assert_eq!(played.next(), Asked::Close(number));
    // So has one who has said as much as may be under way, and whom nobody hears any more.
    let (mut person, number) = played.come_in();
    for _ in 0..WINDOW / 4096 {
        person.says(&Said::Input(vec![b'x'; 4096]));
    }
    let mut fed = 0;
    while fed < WINDOW {
        let Asked::Feed(of, bytes) = played.next() else { panic!() };
        assert_eq!(of, number);
        fed += bytes.len();
    }
    drop(person);
    assert_eq!(played.next(), Asked::Close(number));
}

#[test]
fn no_more_input_is_under_way_than_may_be() {
    let played = Played::open();
    let (person, number) = played.come_in();
    let mut flood = person.stream.try_clone().unwrap();
    let flooding = std::thread::spawn(move || {
        let frame = Said::Input(vec![b'x'; 4096]).encode().unwrap();
        for _ in 0..8 * WINDOW / 4096 {
            flood.write_all(&frame).unwrap();
        }
    });
    // He goes on as it is taken, and never further than that and what one read takes.
    let (mut fed, mut taken) = (0, 0);
    while fed < 8 * WINDOW {
        let Asked::Feed(_, bytes) = played.next() else { panic!() };
        fed += bytes.len();
        assert!(fed - taken <= WINDOW + (128 << 10), "{fed} bytes were passed on, and {taken} taken");
        while fed - taken >= WINDOW {
            played.teller.tell(Told::Flowed(number, Flowed::Taken(4096)));
            taken += 4096;
        }
    }
    flooding.join().unwrap();
}

#[test]
fn what_is_shown_is_allowed_again_and_what_is_not_is_not() {
    let played = Played::open();
    let (mut person, number) = played.come_in();
    // He takes nothing: no more is allowed than what lies in the socket, however long it takes.
    let (mut sent, mut allowed) = (0, 0);
    while sent - allowed < WINDOW {
        played.said(number, &[b'x'; 4096]);
        sent += 4096;
        while let Ok(asked) = played.asked.try_recv() {
            let Asked::Allow(_, bytes) = asked else { panic!("{asked:?}") };
            allowed += bytes as usize;
        }
    }
    assert!(sent < 8 * WINDOW, "{sent} bytes went to somebody who takes nothing");
    // Now he does, and all of it arrives.
    let mut shown = 0;
    while shown < sent {
        let Some(Answer::Output { bytes, .. }) = person.hears() else { panic!() };
        shown += bytes.len();
    }
    while allowed + ALLOWED_AT_ONCE <= sent {
        let Asked::Allow(_, bytes) = played.next() else { panic!() };
        allowed += bytes as usize;
    }
    // A room that says what was never allowed loses its person, and not our memory.
    for _ in 0..6 * WINDOW / 4096 {
        played.said(number, &[b'x'; 4096]);
    }
    while let asked = played.next()
        && asked != Asked::Close(number)
    {
        assert!(matches!(asked, Asked::Allow(..)), "{asked:?}");
    }
}

#[test]
fn a_terminal_gets_its_last_size_when_it_has_the_one_before() {
    let played = Played::open();
    let (mut person, number) = played.come_in();
    let size = |rows| Size { rows, columns: 80 };
    for rows in 1..=100 {
        person.says(&Said::Resize(size(rows)));
    }
    let Asked::Resize(_, Size { rows: first, .. }) = played.next() else { panic!() };
    // Behind all sizes: he is heard in order.
    person.says(&Said::Input(b"x".to_vec()));
    assert_eq!(played.next(), Asked::Feed(number, b"x".to_vec()));
    if first < 100 {
        played.teller.tell(Told::Resized(number));
        assert_eq!(played.next(), Asked::Resize(number, size(100)));
    }
}

#[test]
fn foreign_words_and_too_many_people_are_refused() {
    let played = Played::open();
    let refused = |bytes: &[u8]| {
        let mut person = played.come();
        person.stream.write_all(bytes).unwrap();
        let Some(Answer::Over(why)) = person.hears() else { panic!() };
        why
    };
    assert!(refused(b"console\n").contains("speaks something else"));
    assert!(refused(&Said::Input(Vec::new()).encode().unwrap()).contains("must be said first"));
    assert!(refused(&crate::report::frame::frame(&[9]).unwrap()).contains("has no choice 9"));
    assert!(refused(&Said::Open(wanted("")).encode().unwrap()).contains("has no name"));
    assert!(!played.door.was_used());
    let inside: Vec<_> = (0..MOST).map(|_| played.come_in()).collect();
    assert_eq!(played.come().hears(), Some(Answer::Over("there are 4 sessions in this guest already".into())));
    // Who says in the middle what cannot be said goes, and makes room.
    let (mut person, number) = inside.into_iter().next().unwrap();
    person.says(&Said::Open(wanted("top")));
    assert!(matches!(person.hears(), Some(Answer::Over(why)) if why.contains("once")));
    loop {
        // The others have gone with the list that held them.
        if played.next() == Asked::Close(number) {
            break;
        }
    }
    drop(person);
    played.come_in_after_others();
}

impl Played {
    /// As soon as there is room again.
    fn come_in_after_others(&self) {
        loop {
            let mut person = self.come();
            person.says(&Said::Open(wanted("top")));
            match self.next() {
                Asked::Open(..) => return,
                Asked::Close(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn when_all_is_over_everybody_is_told_and_nobody_let_in() {
    let played = Played::open();
    let (mut person, number) = played.come_in();
    let mut undecided = played.come();
    // He has been let in when what he says is heard, as everybody who came before is.
    undecided.says(&Said::Open(wanted("later")));
    let Asked::Open(other, _) = played.next() else { panic!() };
    played.door.close("the build has ended");
    for told in [person.hears(), undecided.hears()] {
        assert_eq!(told, Some(Answer::Over("the build has ended".into())));
    }
    let closed: Vec<_> = played.asked.try_iter().collect();
    assert_eq!(closed, [Asked::Close(number), Asked::Close(other)], "all is asked for when it is closed");
    assert!(UnixStream::connect(played.place.path().join("door")).is_err());
    // What comes of them now is nobody's.
    played.teller.tell(Told::Ended(number, End::Status(0)));
    assert_eq!(person.hears(), None);
    // One who takes nothing keeps nobody.
    drop(played.door);
}
