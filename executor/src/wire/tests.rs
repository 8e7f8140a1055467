use std::io::{BufRead, Cursor, Read};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::build::result::{BuildResult, Status};
use crate::hash::{Algorithm, Hash};
use crate::store::PathInfo;
use crate::store_path::{StoreDir, StorePath};

fn path(name: &str) -> StorePath {
    StorePath::from_parts("00bgd045z0d4icpbc2yyz4gx48ak44la", name).unwrap()
}

fn source(message: &Message) -> Source<Cursor<Vec<u8>>> {
    Source::new(Cursor::new(message.0.clone()))
}

#[test]
fn strings_are_padded_as_nix_does_it() {
    let mut message = Message::new();
    message.string("nix");
    assert_eq!(message.0, b"\x03\0\0\0\0\0\0\0nix\0\0\0\0\0");
    message = Message::new();
    message.string("").string("12345678");
    assert_eq!(message.0, b"\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\x0012345678");
}

#[test]
fn a_giant_length_takes_no_memory_and_says_so() {
    let mut giant = Message::new();
    giant.number(u64::MAX);
    let error = source(&giant).bytes("a name", 100).unwrap_err();
    assert!(matches!(error, WireError::TooLong { length: u64::MAX, most: 100, .. }), "{error}");
    // Within the bound, and cut off: what was announced is not set aside.
    let mut cut = Message::new();
    cut.number(1000);
    assert!(matches!(source(&cut).bytes("a name", 2000), Err(WireError::Ended("a name"))));
    // An endless list of nothing.
    let mut endless = Message::new();
    endless.number(u64::MAX);
    let mut source = Source::new(std::io::BufReader::new(Cursor::new(endless.0).chain(std::io::repeat(0))));
    assert!(matches!(source.texts("a path"), Err(WireError::Budget)));
    source.renew();
    assert_eq!(source.number("a number").unwrap(), 0, "the next request has a budget of its own");
}

#[test]
fn padding_that_is_not_zero_is_refused() {
    let mut message = Message::new();
    message.string("abc");
    message.0[15] = 1;
    assert!(source(&message).bytes("a name", 100).unwrap_err().to_string().contains("padding"));
}

#[test]
fn wishes_are_understood() {
    let dir = StoreDir::default();
    let drv = format!("{dir}/{}", path("x.drv"));
    let outputs = |text: &str| match wanted(text, &dir).unwrap() {
        Asked::Built(wanted) => wanted.outputs.into_iter().collect::<Vec<_>>().join("+"),
        Asked::Path(_) => "as it is".to_owned(),
    };
    assert_eq!(outputs(&drv), "as it is");
    assert_eq!(outputs(&format!("{drv}!*")), "");
    assert_eq!(outputs(&format!("{drv}!out,dev")), "dev+out");
    let other = format!("{dir}/{}", path("x"));
    for bad in ["", "/tmp/x", &format!("{other}!out"), &format!("{drv}!out!out"), &format!("{drv}!,")] {
        assert!(wanted(bad, &dir).is_err(), "{bad}");
    }
}

#[test]
fn results_have_what_their_version_has() {
    let dir = StoreDir::default();
    let mut result = BuildResult::new(path("x.drv"), Status::Built, "");
    result.outputs.insert("out".to_owned(), path("x"));
    let bytes = |form| {
        let mut message = Message::new();
        build_result(&mut message, &dir, &result, "", form);
        message
    };
    let old = ResultForm { processor_time: false, outputs: true, plain_outputs: false };
    let message = bytes(old);
    let mut read = source(&message);
    let numbers: Vec<u64> = (0..2).map(|_| read.number("").unwrap()).collect();
    assert_eq!(numbers, [0, 0], "the status, and an empty message");
    let numbers: Vec<u64> = (0..5).map(|_| read.number("").unwrap()).collect();
    assert_eq!(numbers, [0, 0, 0, 0, 1], "times, and one output");
    assert!(read.text("", 1000).unwrap().ends_with("0!out"));
    let realisation: serde_json::Value = serde_json::from_str(&read.text("", 1000).unwrap()).unwrap();
    assert_eq!(realisation["outPath"], path("x").as_str());
    assert_eq!(read.number_or_end("").unwrap(), None);
    assert_eq!(bytes(ResultForm { processor_time: true, ..old }).0.len(), message.0.len() + 16);
}

/// A reader that gives a few bytes at a time.
struct Drops(Cursor<Vec<u8>>, usize);

impl Read for Drops {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = into.len().min(self.1);
        self.0.read(&mut into[..count])
    }
}

proptest! {
    #[test]
    fn strings_come_back(strings in vec(vec(any::<u8>(), 0..40), 0..20), number: u64) {
        let mut message = Message::new();
        message.strings(&strings).number(number);
        let mut source = source(&message);
        prop_assert_eq!(source.list("a string", |source| source.bytes("a string", 40)).unwrap(), strings);
        prop_assert_eq!(source.number("a number").unwrap(), number);
        prop_assert_eq!(source.number_or_end("nothing").unwrap(), None);
    }

    #[test]
    fn infos_come_back(size: u64, time in 0..i64::MAX, ultimate: bool, count in 0..5usize, ca: bool) {
        let dir = StoreDir::default();
        let mut info = PathInfo::new(path("x"), Hash::of(Algorithm::Sha256, &size.to_le_bytes()), size);
        info.registration_time = time;
        info.ultimate = ultimate;
        info.references = (0..count).map(|number| path(&format!("r{number}"))).collect();
        info.signatures = (0..count).map(|number| format!("key-{number}:abc=")).collect();
        info.deriver = ca.then(|| path("x.drv"));
        info.content_address = ca.then(|| "text:sha256:abc".to_owned());
        let mut message = Message::new();
        write_info(&mut message, &dir, &info);
        let mut source = source(&message);
        let own = source.path("a path", &dir).unwrap();
        prop_assert_eq!(unkeyed_info(&mut source, &dir, own).unwrap(), info);
        prop_assert_eq!(source.number_or_end("nothing").unwrap(), None);
    }

    #[test]
    fn frames_of_any_size_are_one_stream(frames in vec(vec(any::<u8>(), 1..50), 0..10), drops in 1..9usize) {
        let mut message = Message::new();
        for frame in &frames {
            message.number(frame.len() as u64);
            message.0.extend(frame);
        }
        message.number(0).number(7);
        let mut source = Source::new(std::io::BufReader::with_capacity(drops, Drops(Cursor::new(message.0), drops)));
        let mut hashed = Hashed::new(Framed::new(&mut source), Algorithm::Sha256);
        let mut read = Vec::new();
        // By both ways of reading.
        while let Ok(bytes @ [_, ..]) = hashed.fill_buf() {
            read.push(bytes[0]);
            hashed.consume(1);
            let mut two = [0; 2];
            let count = hashed.read(&mut two).unwrap();
            read.extend(&two[..count]);
        }
        prop_assert_eq!(&read, &frames.concat());
        prop_assert_eq!(hashed.finish(), (Hash::sha256(&read), read.len() as u64));
        prop_assert_eq!(source.number("what follows").unwrap(), 7);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        let dir = StoreDir::default();
        let mut source = Source::new(Cursor::new(bytes));
        let _ = basic_derivation(&mut source, &dir);
        let _ = unkeyed_info(&mut source, &dir, path("x"));
        let _ = Framed::new(&mut source).drain();
    }
}
