//! Bad input, the same list for both protocols: the connection ends with what the protocol has for an error, and nothing is
//! registered.

use std::io::{Cursor, Read};

use super::operation::Operation;
use super::tests::{Answers, Sent, World, add, greeting, info, nar, operation, path, serve_greeting};
use super::*;
use crate::hash::Hash;
use crate::store::PathInfo;
use crate::wire::{Message, write_info};

/// A request of each protocol that is wrong in the same way, and what is said of it.
struct Wrong {
    worker: Message,
    serve: Message,
    words: &'static str,
}

impl Wrong {
    fn new(words: &'static str, write: impl Fn(&mut Message, bool)) -> Self {
        let (mut worker, mut serve) = (greeting(0x126), serve_greeting(0x207));
        write(&mut worker, false);
        write(&mut serve, true);
        Self { worker, serve, words }
    }
}

fn add_nar(message: &mut Message, serve: bool, info: &PathInfo, bytes: &[u8]) {
    if !serve {
        return add(message, info, false, bytes);
    }
    write_info(message.number(9), &crate::store_path::StoreDir::default(), info);
    message.0.extend(bytes);
}

fn cases() -> Vec<Wrong> {
    let long = |message: &mut Message, serve| {
        message.number(if serve { 3 } else { Operation::IsValidPath as u64 }).number(1 << 40);
    };
    let no_path = |message: &mut Message, serve| {
        message.number(if serve { 3 } else { Operation::IsValidPath as u64 }).string("/etc/passwd");
    };
    let half_path = |message: &mut Message, serve| {
        message.number(if serve { 3 } else { Operation::IsValidPath as u64 }).number(64);
        message.0.extend(b"/nix/store/");
    };
    let padding = |message: &mut Message, serve| {
        message.number(if serve { 3 } else { Operation::IsValidPath as u64 }).number(1);
        message.0.extend(b"/notzero");
    };
    let lie = PathInfo { nar_hash: Hash::sha256(b"other"), ..info("lie", "hello") };
    vec![
        Wrong::new("4711", |message, _| {
            message.number(4711);
        }),
        Wrong::new("length of 1099511627776", long),
        Wrong::new("/etc/passwd", no_path),
        Wrong::new("ended", half_path),
        Wrong::new("padding", padding),
        Wrong::new("hash mismatch", move |message, serve| add_nar(message, serve, &lie, &nar("hello"))),
        Wrong::new("", |message, serve| {
            add_nar(message, serve, &info("half", "hello"), &nar("hello"));
            message.0.truncate(message.0.len() - 60);
        }),
        Wrong::new("archive", |message, serve| {
            let size = nar("hello").len();
            add_nar(message, serve, &info("none", "hello"), &vec![b'x'; size]);
        }),
    ]
}

#[test]
fn either_protocol_says_what_was_wrong_and_registers_nothing() {
    for Wrong { worker, serve, words } in cases() {
        let world = World::new(true);
        let (_, sent) = world.talk_over(Cursor::new(worker.0));
        let mut answers = Answers::new(sent);
        answers.greeting(38);
        assert_eq!(answers.messages(), Ok(()));
        answers.refused(words);
        answers.ended();
        let (result, sent) = world.talk_over(Cursor::new(serve.0));
        let error = result.unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert_eq!(sent.len(), 16, "{words}: there is nothing but the greeting to be sent");
        assert!(world.valid().is_empty());
        world.is_clean();
    }
}

#[test]
fn a_stream_without_end_is_bounded() {
    // A list of as many elements as there can be: each is counted, the empty ones too.
    for (serve, mut input) in [(false, greeting(0x126)), (true, serve_greeting(0x207))] {
        let world = World::new(true);
        input.number(if serve { 6 } else { Operation::BuildPathsWithResults as u64 }).number(u64::MAX);
        let (result, _) = world.talk_over(Cursor::new(input.0).chain(std::io::repeat(0)));
        assert!(matches!(result, Err(ServerError::Wire(WireError::Budget))), "{result:?}");
    }
}

#[test]
fn the_other_protocol_and_no_protocol_are_refused_where_one_is_wanted() {
    let world = World::new(true);
    for (protocol, input) in [
        (Protocol::Worker, serve_greeting(0x207)),
        (Protocol::Serve, greeting(0x126)),
        (Protocol::Worker, Message(b"GET / HTTP/1.1\r\n\r\n".to_vec())),
        (Protocol::Serve, Message(b"GET / HTTP/1.1\r\n\r\n".to_vec())),
    ] {
        let (result, sent) = world.talk_by(protocol, true, Cursor::new(input.0));
        assert!(matches!(result, Err(ServerError::Magic(_))) && sent.is_empty(), "{protocol:?}: {result:?}");
    }
}

#[test]
fn a_version_to_come_is_spoken_to_in_ours() {
    let world = World::new(true);
    for (input, answer) in [(greeting(0x7fff), 0x126), (serve_greeting(0x7fff), 0x208)] {
        let (result, sent) = world.talk_over(Cursor::new(input.0));
        result.unwrap();
        assert_eq!(sent[8..16], u64::to_le_bytes(answer));
    }
}

#[test]
fn a_version_of_old_is_refused() {
    let world = World::new(true);
    for input in [greeting(0x10a), serve_greeting(0x200), serve_greeting(0x100)] {
        let (result, _) = world.talk_over(Cursor::new(input.0));
        assert!(matches!(result, Err(ServerError::TooOld { .. })), "{result:?}");
    }
}

#[test]
fn a_user_who_may_not_connect_learns_nothing_by_either_protocol() {
    for (input, told) in [(greeting(0x126), true), (serve_greeting(0x207), false)] {
        let sent = Sent::default();
        refuse("mallory", Cursor::new(input.0), sent.clone()).unwrap_err();
        let sent = String::from_utf8_lossy(&sent.0.lock().unwrap()).into_owned();
        assert_eq!(sent.contains("user ‘mallory’ is not allowed"), told, "{sent}");
    }
}

#[test]
fn without_leave_to_write_the_serve_protocol_gives_and_takes_nothing() {
    let world = World::new(true);
    let dir = world.store.dir();
    let mut add = serve_greeting(0x207);
    add_nar(&mut add, true, &info("a", "hello"), &nar("hello"));
    let mut import = serve_greeting(0x207);
    import.number(4).number(0);
    let mut build = serve_greeting(0x207);
    build.number(6).strings([dir.display(&path("a.drv"))]).number(0).number(0).number(0).number(0).number(0).number(0);
    for input in [add, import, build] {
        let (result, _) = world.talk_by(Protocol::Serve, false, Cursor::new(input.0));
        assert!(result.unwrap_err().to_string().contains("without --write"));
    }
    let mut ask = serve_greeting(0x207);
    ask.number(1).truth(true).truth(false).paths(dir, &[path("a")]);
    world.talk_by(Protocol::Serve, false, Cursor::new(ask.0)).0.unwrap();
    assert!(world.valid().is_empty());
    world.is_clean();
}

#[test]
fn who_may_not_is_told_in_the_middle_and_goes_on() {
    let world = World::new(false);
    let mut requests = Message::new();
    add(&mut requests, &info("unsigned", "hello"), false, &nar("hello"));
    operation(&mut requests, Operation::IsValidPath).path(world.store.dir(), &path("unsigned"));
    let (result, mut answers) = world.ask(&requests);
    result.unwrap();
    answers.refused("lacks a signature");
    assert_eq!((answers.messages(), answers.number()), (Ok(()), 0));
    answers.ended();
}
