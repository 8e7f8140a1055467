//! Whole conversations, with clients that do wrong in all the ways that there are.

use std::collections::BTreeSet;
use std::io::{self, BufReader, Cursor, Read, Write};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::operation::Operation;
use super::*;
use crate::build::policy::native_system;
use crate::cache::{Compression, NarInfo, SecretKey};
use crate::derivation::{Derivation, Output, aterm};
use crate::hash::{Algorithm, Hash};
use crate::store::{Access, PathInfo};
use crate::store_path::StorePath;
use crate::wire::{Message, write_info, write_unkeyed_info};

/// A store that goes with the test.
pub(super) struct World {
    directory: Option<tempfile::TempDir>,
    pub(super) store: Store,
    trusted: bool,
    keys: Vec<PublicKey>,
}

impl Drop for World {
    fn drop(&mut self) {
        let directory = self.directory.take().unwrap();
        let (parent, name) = crate::tree::place(directory.path()).unwrap();
        crate::tree::remove(std::os::fd::AsFd::as_fd(&parent), &name).unwrap();
    }
}

/// What the server sends, kept.
#[derive(Clone, Default)]
pub(super) struct Sent(pub(super) Arc<Mutex<Vec<u8>>>);

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;

impl World {
    pub(super) fn new(trusted: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), Access::ReadWrite).unwrap();
        Self { directory: Some(directory), store, trusted, keys: Vec::new() }
    }

    pub(super) fn talk_over(&self, input: impl Read) -> (Result<(), ServerError>, Vec<u8>) {
        self.talk_by(Protocol::ByMagic, true, input)
    }

    pub(super) fn talk_by(
        &self,
        protocol: Protocol,
        may_write: bool,
        input: impl Read,
    ) -> (Result<(), ServerError>, Vec<u8>) {
        let sent = Sent::default();
        let watch = Watch::nothing();
        let server = Server {
            store: &self.store,
            policy: Policy::granting_nothing(&native_system(), "/nonexistent".as_ref()),
            jobs: 1,
            keep_going: false,
            trusted: self.trusted,
            require_signatures: true,
            keys: self.keys.clone(),
            collector: GcPolicy::default(),
            watch: &watch,
        };
        let result = attend(&server, protocol, may_write, BufReader::new(input), sent.clone());
        let sent = sent.0.lock().unwrap().clone();
        (result, sent)
    }

    /// A conversation of version 1.38 with these requests; what is sent after the greeting.
    pub(super) fn ask(&self, requests: &Message) -> (Result<(), ServerError>, Answers) {
        let mut input = greeting(1 << 8 | 38);
        input.0.extend(&requests.0);
        let (result, sent) = self.talk_over(Cursor::new(input.0));
        let mut answers = Answers(Source::new(Cursor::new(sent)));
        answers.greeting(38);
        assert_eq!(answers.messages(), Ok(()));
        (result, answers)
    }

    pub(super) fn valid(&self) -> Vec<String> {
        self.store.all_valid_paths().unwrap().iter().map(|path| path.name().to_owned()).collect()
    }

    /// Nothing lies in the store but what is valid, and that is whole.
    pub(super) fn is_clean(&self) {
        let valid = self.store.all_valid_paths().unwrap();
        for entry in std::fs::read_dir(self.store.real_dir()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name == ".links" || name.parse().is_ok_and(|path: StorePath| valid.contains(&path)), "{name}");
        }
        assert_eq!(self.store.verify(true, false, &mut |_| {}).unwrap().left, 0);
    }
}

pub(super) struct Answers(Source<Cursor<Vec<u8>>>);

impl Answers {
    pub(super) fn new(sent: Vec<u8>) -> Self {
        Self(Source::new(Cursor::new(sent)))
    }

    pub(super) fn greeting(&mut self, minor: u64) {
        assert_eq!(self.number(), 0x6478_696f);
        assert_eq!(self.number(), 1 << 8 | 38);
        if minor >= 38 {
            assert_eq!(self.number(), 0, "no features");
        }
        if minor >= 33 {
            assert!(self.text().starts_with("anchorhold "));
        }
        if minor >= 35 {
            assert!([1, 2].contains(&self.number()));
        }
    }

    pub(super) fn number(&mut self) -> u64 {
        self.0.number("a number").unwrap()
    }

    fn text(&mut self) -> String {
        self.0.text("a text", 1 << 20).unwrap()
    }

    /// Reads up to the reply, or gives the error.
    pub(super) fn messages(&mut self) -> Result<(), String> {
        loop {
            match self.number() {
                LAST => return Ok(()),
                ERROR => {
                    assert_eq!((self.text().as_str(), self.number(), self.text().as_str()), ("Error", 0, "Error"));
                    let text = self.text();
                    assert_eq!((self.number(), self.number()), (0, 0));
                    return Err(text);
                }
                0x6f6c_6d67 => drop(self.text()),
                other => panic!("an unknown message {other:#x}"),
            }
        }
    }

    #[track_caller]
    pub(super) fn refused(&mut self, with: &str) {
        let error = self.messages().unwrap_err();
        assert!(error.contains(with), "{error}");
    }

    #[track_caller]
    pub(super) fn ended(&mut self) {
        assert_eq!(self.0.number_or_end("nothing").unwrap(), None);
    }
}

pub(super) fn greeting(version: u64) -> Message {
    let mut message = Message::new();
    message.number(WORKER_MAGIC).number(version);
    if version.min(1 << 8 | 38) >= 1 << 8 | 38 {
        message.strings(["a-feature-to-come"]);
    }
    message.number(0).number(0);
    message
}

pub(super) fn nar(contents: &str) -> Vec<u8> {
    let mut message = Message::new();
    for word in ["nix-archive-1", "(", "type", "regular", "contents", contents, ")"] {
        message.string(word);
    }
    message.0
}

pub(super) fn path(name: &str) -> StorePath {
    StorePath::from_parts("00bgd045z0d4icpbc2yyz4gx48ak44la", name).unwrap()
}

pub(super) fn info(name: &str, contents: &str) -> PathInfo {
    let nar = nar(contents);
    PathInfo::new(path(name), Hash::sha256(&nar), nar.len() as u64)
}

fn framed(message: &mut Message, bytes: &[u8]) {
    for frame in bytes.chunks(13) {
        message.number(frame.len() as u64);
        message.0.extend(frame);
    }
    message.number(0);
}

pub(super) fn operation(message: &mut Message, operation: Operation) -> &mut Message {
    message.number(operation as u64)
}

pub(super) fn add(message: &mut Message, info: &PathInfo, check: bool, bytes: &[u8]) {
    write_info(operation(message, Operation::AddToStoreNar), &StoreDirs::default(), info);
    message.truth(false).truth(!check);
    framed(message, bytes);
}

type StoreDirs = crate::store_path::StoreDir;

fn is_valid(message: &mut Message, name: &str) {
    operation(message, Operation::IsValidPath).path(&StoreDirs::default(), &path(name));
}

#[test]
fn every_version_is_greeted_as_it_wants_to_be() {
    let world = World::new(true);
    for version in [0x120, 0x121, 0x122, 0x123, 0x125, 0x126, 0x1ff, 0x205] {
        let mut input = greeting(version);
        is_valid(&mut input, "a");
        let (result, sent) = world.talk_over(Cursor::new(input.0));
        result.unwrap();
        let mut answers = Answers(Source::new(Cursor::new(sent)));
        answers.greeting(if version > 0x126 { 38 } else { version & 0xff });
        assert_eq!(answers.messages(), Ok(()), "{version:#x}");
        assert_eq!(answers.messages(), Ok(()), "{version:#x}");
        assert_eq!(answers.number(), 0);
        answers.ended();
    }
    let (result, sent) = world.talk_over(Cursor::new(greeting(0x11f).0));
    assert!(matches!(result, Err(ServerError::TooOld { major: 1, minor: 31, .. })));
    assert!(String::from_utf8_lossy(&sent).contains("too old"));
    let (result, sent) = world.talk_over(&b"GET / HTTP/1.1\r\n"[..]);
    assert!(matches!(result, Err(ServerError::Magic(_))));
    assert!(sent.is_empty());
    assert!(world.talk_over(io::empty()).0.is_ok(), "whoever says nothing has done nothing wrong");
}

#[test]
fn an_unknown_operation_ends_the_connection_with_an_error() {
    let world = World::new(true);
    let mut requests = Message::new();
    requests.number(4711);
    let (result, mut answers) = world.ask(&requests);
    assert!(result.is_err());
    answers.refused("there is no operation 4711");
    answers.ended();
}

#[test]
fn operations_have_the_numbers_of_the_protocol() {
    for operation in Operation::ALL {
        assert_eq!(Operation::of(*operation as u64), Some(*operation));
    }
    assert_eq!(Operation::of(44), Some(Operation::AddMultipleToStore));
    assert_eq!(Operation::of(2), None);
}

#[test]
fn an_archive_is_taken_once_it_is_what_was_said() {
    let world = World::new(true);
    let mut requests = Message::new();
    let good = info("good", "hello");
    let lie = PathInfo { nar_hash: Hash::sha256(b"other"), ..info("lie", "hello") };
    let short = PathInfo { nar_size: 3, ..info("short", "hello") };
    let lost = PathInfo { references: [path("nowhere")].into(), ..info("lost", "hello") };
    add(&mut requests, &lie, false, &nar("hello"));
    add(&mut requests, &short, false, &nar("hello"));
    add(&mut requests, &lost, false, &nar("hello"));
    add(&mut requests, &info("no-archive", "hello"), false, b"that is no archive, and long enough to be drained");
    add(&mut requests, &good, false, &nar("hello"));
    add(&mut requests, &good, false, &nar("hello"));
    operation(&mut requests, Operation::NarFromPath).path(world.store.dir(), &good.path);
    let (result, mut answers) = world.ask(&requests);
    result.unwrap();
    answers.refused("hash mismatch importing path");
    answers.refused("size mismatch importing path");
    answers.refused("which is not valid here");
    answers.refused("archive");
    assert_eq!(answers.messages(), Ok(()));
    assert_eq!(answers.messages(), Ok(()), "once more does no harm");
    assert_eq!(answers.messages(), Ok(()));
    let mut archive = vec![0; nar("hello").len()];
    answers.0.stream().read_exact(&mut archive).unwrap();
    assert_eq!(archive, nar("hello"));
    answers.ended();
    assert_eq!(world.valid(), ["good"]);
    world.is_clean();
}

#[test]
fn an_archive_in_another_spelling_is_taken_by_the_hash_of_ours() {
    let world = World::new(true);
    let mut other = Message::new();
    for word in ["nix-archive-1", "(", "type", "regular", ")"] {
        other.string(word);
    }
    let claimed = PathInfo { nar_hash: Hash::sha256(&other.0), nar_size: other.0.len() as u64, ..info("empty", "") };
    let mut requests = Message::new();
    add(&mut requests, &claimed, false, &other.0);
    add(&mut requests, &info("empty", ""), false, &other.0);
    let (result, mut answers) = world.ask(&requests);
    result.unwrap();
    answers.refused("hash mismatch");
    assert_eq!(answers.messages(), Ok(()));
    world.is_clean();
}

#[test]
fn half_an_archive_leaves_nothing() {
    let world = World::new(true);
    let mut requests = Message::new();
    add(&mut requests, &info("half", "hello"), false, &nar("hello"));
    requests.0.truncate(requests.0.len() - 60);
    let (result, _) = world.ask(&requests);
    assert!(matches!(result, Err(ServerError::Wire(WireError::Ended(_)))), "{result:?}");
    assert!(world.valid().is_empty());
    world.is_clean();
}

#[test]
fn several_paths_come_at_once_up_to_the_first_that_is_wrong() {
    let world = World::new(true);
    let bad = PathInfo { nar_hash: Hash::sha256(b""), ..info("bad", "2") };
    let mut stream = Message::new();
    stream.number(3);
    for (info, contents) in [(info("one", "1"), "1"), (bad, "2"), (info("three", "3"), "3")] {
        write_info(&mut stream, world.store.dir(), &info);
        stream.0.extend(nar(contents));
    }
    let mut requests = Message::new();
    operation(&mut requests, Operation::AddMultipleToStore).truth(false).truth(true);
    framed(&mut requests, &stream.0);
    is_valid(&mut requests, "one");
    let (result, mut answers) = world.ask(&requests);
    result.unwrap();
    answers.refused("hash mismatch");
    assert_eq!(answers.messages(), Ok(()), "the stream is in step again");
    assert_eq!(answers.number(), 1);
    assert_eq!(world.valid(), ["one"]);
    world.is_clean();
}

#[test]
fn who_is_not_believed_needs_a_signature_or_a_name_that_says_it_all() {
    let mut world = World::new(false);
    let key = SecretKey::generate("key-1").unwrap();
    world.keys = vec![key.public()];
    let signed = |mut info: PathInfo| {
        let mut narinfo = NarInfo {
            path: info.path.clone(),
            url: String::new(),
            compression: Compression::None,
            file_hash: None,
            file_size: None,
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            references: info.references.clone(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        };
        narinfo.sign(&key, &StoreDirs::default());
        info.signatures = narinfo.signatures.iter().map(ToString::to_string).collect();
        info
    };
    let contents = nar("named");
    let dir = world.store.dir().clone();
    let hash = Hash::sha256(&contents);
    let mut named = PathInfo::new(dir.fixed_path("named", true, &hash).unwrap(), hash, contents.len() as u64);
    named.content_address = Some(format!("fixed:r:{hash}"));
    let stolen = PathInfo { path: path("stolen"), ..named.clone() };
    let mut flat_hash = named.clone();
    let wrong = Hash::sha256(b"not this");
    flat_hash.path = dir.fixed_path("flat", false, &wrong).unwrap();
    flat_hash.content_address = Some(format!("fixed:{wrong}"));
    let ultimate = PathInfo { ultimate: true, ..signed(info("ultimate", "signed")) };

    let mut requests = Message::new();
    add(&mut requests, &info("unsigned", "x"), false, &nar("x"));
    add(&mut requests, &PathInfo { nar_size: 1, ..signed(info("forged", "x")) }, false, &nar("x"));
    add(&mut requests, &stolen, false, &contents);
    add(&mut requests, &flat_hash, false, &contents);
    add(&mut requests, &named, false, &contents);
    add(&mut requests, &ultimate, true, &nar("signed"));
    let (result, mut answers) = world.ask(&requests);
    result.unwrap();
    answers.refused("lacks a signature by a trusted key");
    answers.refused("lacks a signature by a trusted key");
    answers.refused("not the one that follows from its content address");
    answers.refused("content hash mismatch");
    assert_eq!(answers.messages(), Ok(()));
    assert_eq!(answers.messages(), Ok(()));
    assert_eq!(BTreeSet::from_iter(world.valid()), BTreeSet::from(["named".to_owned(), "ultimate".to_owned()]));
    assert!(
        !world.store.path_info(&ultimate.path).unwrap().ultimate,
        "that it was built here is not for others to say"
    );
    world.is_clean();
}

#[test]
fn a_derivation_that_claims_the_outputs_of_another_is_refused() {
    let world = World::new(false);
    let dir = world.store.dir().clone();
    let victim = path("victim");
    let derivation = Derivation {
        name: "forged".to_owned(),
        outputs: [("out".to_owned(), Output::InputAddressed(victim.clone()))].into(),
        input_derivations: Default::default(),
        input_sources: Default::default(),
        system: "x".to_owned(),
        builder: b"/bin/sh".to_vec(),
        arguments: Vec::new(),
        environment: [(b"out".to_vec(), dir.display(&victim).into_bytes())].into(),
    };
    let text = aterm::write(&derivation, &dir);
    let mut requests = Message::new();
    operation(&mut requests, Operation::AddToStore).string("forged.drv").string("text:sha256").number(0).number(0);
    framed(&mut requests, &text);
    operation(&mut requests, Operation::AddToStore).string("plain").string("text:sha256").number(0).number(0);
    framed(&mut requests, b"a text");
    let (result, mut answers) = world.ask(&requests);
    result.unwrap();
    answers.refused("which should be");
    assert_eq!(answers.messages(), Ok(()));
    assert_eq!(world.valid(), ["plain"]);
    world.is_clean();
}

#[test]
fn what_is_not_for_everybody_is_refused_and_the_connection_goes_on() {
    let world = World::new(false);
    let mut requests = Message::new();
    let drv = path("x.drv");
    operation(&mut requests, Operation::BuildDerivation).path(world.store.dir(), &drv);
    requests.number(1).string("out").path(world.store.dir(), &path("x")).string("").string("");
    requests.number(0).string("x86_64-linux").string("/bin/sh").number(0).number(0).number(0);
    operation(&mut requests, Operation::VerifyStore).truth(false).truth(true);
    operation(&mut requests, Operation::AddBuildLog).path(world.store.dir(), &drv);
    framed(&mut requests, b"a false log");
    operation(&mut requests, Operation::CollectGarbage);
    requests.number(2).number(0).truth(true).number(0).number(0).number(0).number(0);
    operation(&mut requests, Operation::AddPermRoot).path(world.store.dir(), &path("x")).string("/tmp/link");
    operation(&mut requests, Operation::RegisterDrvOutput).string("{}");
    operation(&mut requests, Operation::EnsurePath).path(world.store.dir(), &path("x"));
    operation(&mut requests, Operation::QueryAllValidPaths);
    let (result, mut answers) = world.ask(&requests);
    result.unwrap();
    for with in [
        "not privileged to build input-addressed",
        "not privileged to repair",
        "not privileged to add logs",
        "not allowed to ignore liveness",
        "not privileged to create perm roots",
        "content-addressed derivations",
        "is not valid here",
    ] {
        answers.refused(with);
    }
    assert_eq!(answers.messages(), Ok(()));
    assert_eq!(answers.number(), 0);
    answers.ended();
}

#[test]
fn whoever_may_not_connect_is_told_so_after_the_greeting() {
    let sent = Sent::default();
    let refused = refuse("mallory", Cursor::new(greeting(0x122).0), sent.clone());
    assert!(matches!(refused, Err(ServerError::NotAllowed(_))));
    let mut answers = Answers(Source::new(Cursor::new(sent.0.lock().unwrap().clone())));
    answers.greeting(34);
    answers.refused("user ‘mallory’ is not allowed");
    answers.ended();
}

pub(super) fn serve_greeting(version: u64) -> Message {
    let mut message = Message::new();
    message.number(SERVE_MAGIC).number(version);
    message
}

#[test]
fn the_serve_protocol_takes_and_gives_paths() {
    let world = World::new(true);
    let dir = world.store.dir();
    for (asked, spoken) in [(0x205, 0x205), (0x207, 0x207), (0x208, 0x208), (0x2ff, 0x208)] {
        let (result, sent) = world.talk_over(Cursor::new(serve_greeting(asked).0));
        result.unwrap();
        let mut answers = Answers(Source::new(Cursor::new(sent)));
        assert_eq!((answers.number(), answers.number()), (0x5452_eecb, spoken));
        answers.ended();
    }
    let good = info("good", "hello");
    let mut input = serve_greeting(0x207);
    input.number(9).path(dir, &good.path);
    write_unkeyed_info(&mut input, dir, &good);
    input.0.extend(nar("hello"));
    input.number(1).truth(true).truth(false).paths(dir, &[good.path.clone(), path("other")]);
    input.number(7).truth(false).paths(dir, [&good.path]);
    input.number(2).paths(dir, [&good.path]);
    input.number(3).path(dir, &good.path);
    let (result, sent) = world.talk_over(Cursor::new(input.0));
    result.unwrap();
    let mut answers = Answers(Source::new(Cursor::new(sent)));
    answers.number();
    answers.number();
    assert_eq!(answers.number(), 1, "it was taken");
    for _ in 0..2 {
        assert_eq!(answers.number(), 1);
        assert_eq!(answers.text(), dir.display(&good.path));
    }
    assert_eq!(answers.text(), dir.display(&good.path));
    assert_eq!((answers.text().as_str(), answers.number()), ("", 0));
    assert_eq!((answers.number(), answers.number()), (good.nar_size, good.nar_size));
    assert_eq!(answers.text(), good.nar_hash.to_string());
    assert_eq!((answers.text().as_str(), answers.number(), answers.text().as_str()), ("", 0, ""));
    let mut archive = Vec::new();
    answers.0.stream().read_to_end(&mut archive).unwrap();
    assert_eq!(archive, nar("hello"));
    world.is_clean();

    let mut input = serve_greeting(0x207);
    input.number(99);
    assert!(matches!(world.talk_over(Cursor::new(input.0)).0, Err(ServerError::Request(_))));
}

#[test]
fn a_flat_file_is_named_by_its_bytes_and_a_tree_by_its_archive() {
    let world = World::new(false);
    let dir = world.store.dir();
    let mut requests = Message::new();
    for (name, method, bytes) in [
        ("flat", "fixed:sha1", b"hello".to_vec()),
        ("tree", "fixed:r:sha512", nar("hello")),
        ("odd", "fixed:git:sha1", vec![1]),
    ] {
        operation(&mut requests, Operation::AddToStore).string(name).string(method).number(0).number(0);
        framed(&mut requests, &bytes);
    }
    let (result, mut answers) = world.ask(&requests);
    result.unwrap();
    let expected = [
        dir.fixed_path("flat", false, &Hash::of(Algorithm::Sha1, b"hello")).unwrap(),
        dir.fixed_path("tree", true, &Hash::of(Algorithm::Sha512, &nar("hello"))).unwrap(),
    ];
    for path in &expected {
        assert_eq!(answers.messages(), Ok(()));
        assert_eq!(answers.text(), dir.display(path));
        unkeyed(&mut answers, path);
    }
    answers.refused("no way to name a path");
    world.is_clean();
}

fn unkeyed(answers: &mut Answers, path: &StorePath) {
    crate::wire::unkeyed_info(&mut answers.0, &StoreDirs::default(), path.clone()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_damaged_stream_ends_the_connection_and_harms_nothing(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        trusted: bool,
        serve: bool,
    ) {
        let world = World::new(trusted);
        let dir = world.store.dir();
        let mut input;
        if serve {
            input = serve_greeting(0x207);
            input.number(9);
            write_info(&mut input, dir, &info("a", "hello"));
            input.0.extend(nar("hello"));
            input.number(7).truth(true).paths(dir, &[path("a")]);
        } else {
            input = greeting(0x126);
            add(&mut input, &info("a", "hello"), false, &nar("hello"));
            is_valid(&mut input, "a");
            operation(&mut input, Operation::QueryPathInfo).path(dir, &path("a"));
            operation(&mut input, Operation::QueryMissing).strings([dir.display(&path("a"))]);
            operation(&mut input, Operation::NarFromPath).path(dir, &path("a"));
        }
        for (place, byte) in damage {
            let place = place.index(input.0.len());
            input.0[place] = byte;
        }
        let cut = cut.index(2 * input.0.len());
        input.0.truncate(cut);
        let _ = world.talk_over(Cursor::new(input.0));
        world.is_clean();
    }
}
