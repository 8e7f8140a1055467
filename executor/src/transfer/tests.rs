//! What lies is refused in its own words, and leaves nothing valid.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::derivation::paths::Calculator;
use crate::derivation::{Derivation, aterm};
use crate::hash::{Algorithm, Hash};
use crate::store::{Access, Naming, PathInfo, Registration};
use crate::{nar, tree};

/// Directories that go with the test, the read-only ones of a store in it too.
struct World(tempfile::TempDir);

impl Drop for World {
    fn drop(&mut self) {
        let (parent, name) = tree::place(self.0.path()).unwrap();
        tree::remove(parent.as_fd(), &name).unwrap();
    }
}

impl World {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn store(&self, name: &str) -> Place {
        Place::Store(Store::open(&self.at(name), Access::ReadWrite).unwrap())
    }

    fn cache(&self, name: &str) -> Place {
        Place::Cache(Directory::create(&self.at(name), &StoreDir::default()).unwrap())
    }
}

fn quiet(_: &str) {}

fn store_of(place: &Place) -> &Store {
    match place {
        Place::Store(store) => store,
        Place::Cache(_) => panic!("this is a cache"),
    }
}

fn digits(digit: &str, name: &str) -> StorePath {
    StorePath::from_parts(&digit.repeat(32), name).unwrap()
}

/// A path that is named by nothing, with these references, as a build would register it.
fn put(store: &Store, path: &StorePath, contents: &str, references: &[&StorePath]) {
    let temp = store.temp_dir().unwrap();
    let file = temp.path().join("x");
    fs::write(&file, contents).unwrap();
    let canonical = store.add("plain", &file, Naming::Recursive(Algorithm::Sha256), &mut quiet).unwrap();
    let (parent, name) = tree::place(&store.real_path(&canonical.path)).unwrap();
    tree::copy(parent.as_fd(), &name, temp.directory(), "y".as_ref()).unwrap();
    let mut info = PathInfo::new(path.clone(), canonical.nar_hash, canonical.nar_size);
    info.references = references.iter().map(|path| (*path).clone()).collect();
    info.ultimate = true;
    assert!(store.move_in(temp.directory(), "y".as_ref(), info.into(), &mut quiet).unwrap());
}

fn request(paths: impl IntoIterator<Item = StorePath>, trust: Trust) -> Request {
    Request { paths: paths.into_iter().collect(), trust, compression: Compression::Zstd, keys: vec![], jobs: 2 }
}

fn go(from: &Place, to: &Place, request: &Request) -> Result<Report, TransferError> {
    copy(from, to, request, &|_| {}, &mut quiet)
}

fn names(report: &Report) -> Vec<&str> {
    report.copied.iter().map(|one| one.path.name()).collect()
}

/// A chain of paths, of which the last needs all the others, in a store and signed in a cache.
fn chain(world: &World, count: usize) -> (Place, Place, StorePath, SecretKey) {
    let store = world.store("chain");
    let mut before: Option<StorePath> = None;
    for number in 0..count {
        let path = StorePath::from_parts(&format!("{number:032}"), &format!("n{number}")).unwrap();
        put(store_of(&store), &path, &number.to_string(), &before.iter().chain([&path]).collect::<Vec<_>>());
        before = Some(path);
    }
    let (top, key) = (before.unwrap(), SecretKey::generate("k-1").unwrap());
    let cache = world.cache("cache");
    let mut request = request([top.clone()], Trust::Everybody);
    request.keys = vec![key.clone()];
    go(&store, &cache, &request).unwrap();
    (store, cache, top, key)
}

#[test]
fn a_long_chain_arrives_in_order_and_only_once() {
    let world = World::new();
    // More than a batch.
    let (store, cache, top, key) = chain(&world, BATCH + 20);
    let to = world.store("to");
    let report = go(&cache, &to, &request([top.clone()], Trust::Keys(vec![key.public()]))).unwrap();
    assert_eq!(names(&report), (0..BATCH + 20).map(|number| format!("n{number}")).collect::<Vec<_>>());
    assert!(report.copied.iter().all(|one| one.vouched_by.as_deref() == Some("k-1")));
    let ours = store_of(&to).path_info(&top).unwrap();
    let theirs = store_of(&store).path_info(&top).unwrap();
    assert_eq!((ours.references, ours.nar_hash), (theirs.references, theirs.nar_hash));
    assert!(!ours.ultimate && ours.signatures.len() == 1, "it was not built here, and its signature came along");
    let report = store_of(&to).verify(true, false, &mut quiet).unwrap();
    assert_eq!((report.checked, report.left), (BATCH + 20, 0));

    let again = go(&cache, &to, &request([top.clone()], Trust::Keys(vec![]))).unwrap();
    assert_eq!((again.copied.len(), again.present), (0, [top.clone()].into()));
    let again = go(&store, &cache, &request([top.clone()], Trust::Everybody)).unwrap();
    assert_eq!((again.copied.len(), again.present.len()), (0, BATCH + 20));
    let left: Vec<_> = fs::read_dir(store_of(&to).real_dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), BATCH + 21, "nothing but the paths and .links: {left:?}");
}

#[test]
fn a_step_is_bounded_in_paths_and_in_bytes() {
    let infos: Vec<NarInfo> = (0..400u64)
        .map(|number| {
            let mut info = some_info();
            info.nar_size = if number < 10 { BATCH_BYTES / 2 } else { 1 };
            info
        })
        .collect();
    let order: Vec<&NarInfo> = infos.iter().collect();
    let sizes: Vec<usize> = batches(&order).map(<[_]>::len).collect();
    assert_eq!(sizes, [2, 2, 2, 2, 2, BATCH, BATCH, BATCH, 400 - 10 - 3 * BATCH]);
}

fn some_info() -> NarInfo {
    NarInfo {
        path: digits("1", "x"),
        url: String::new(),
        compression: Compression::None,
        file_hash: None,
        file_size: None,
        nar_hash: crate::hash::Hash::sha256(b""),
        nar_size: 0,
        references: BTreeSet::new(),
        deriver: None,
        signatures: vec![],
        ca: None,
    }
}

#[test]
fn a_store_takes_only_what_somebody_vouches_for() {
    let world = World::new();
    let (store, cache, top, key) = chain(&world, 2);
    let to = world.store("to");
    let refused = |from: &Place, keys: Vec<PublicKey>| {
        let error = go(from, &to, &request([top.clone()], Trust::Keys(keys))).unwrap_err().to_string();
        assert!(store_of(&to).all_valid_paths().unwrap().is_empty());
        error
    };
    let stranger = SecretKey::generate("stranger-1").unwrap().public();
    let error = refused(&cache, vec![stranger.clone()]);
    assert!(error.contains("is signed by ‘k-1’ only, which is not trusted here"), "{error}");
    let error = refused(&cache, vec![SecretKey::generate("k-1").unwrap().public()]);
    assert!(error.contains("has a wrong signature of the trusted key ‘k-1’"), "{error}");
    let error = refused(&store, vec![stranger.clone()]);
    assert!(error.contains("has no signature: trust its key with --trusted-key"), "{error}");
    // What its contents vouch for needs no key.
    let text = store_of(&store).add_text("text", b"text", [], [], &mut quiet).unwrap().path;
    let file = world.at("file");
    fs::write(&file, "flat").unwrap();
    let flat = store_of(&store).add("flat", &file, Naming::Flat(Algorithm::Md5), &mut quiet).unwrap().path;
    let deep = store_of(&store).add("deep", &file, Naming::Recursive(Algorithm::Sha512), &mut quiet).unwrap().path;
    let report = go(&store, &to, &request([text, flat, deep], Trust::Keys(vec![stranger]))).unwrap();
    assert_eq!(report.copied.len(), 3);
    go(&cache, &to, &request([top.clone()], Trust::Keys(vec![key.public()]))).unwrap();
    assert_eq!(store_of(&to).verify(true, false, &mut quiet).unwrap().left, 0);
}

/// Changes what the cache says of `path`.
fn say(world: &World, path: &StorePath, change: impl FnOnce(&mut NarInfo)) {
    let file = world.at("cache").join(format!("{}.narinfo", path.hash_part()));
    let dir = StoreDir::default();
    let mut info = NarInfo::parse(&fs::read_to_string(&file).unwrap(), &dir).unwrap();
    change(&mut info);
    fs::write(&file, info.to_text(&dir)).unwrap();
}

fn archive_of(world: &World, cache: &Place, path: &StorePath) -> PathBuf {
    let Place::Cache(directory) = cache else { panic!("this is a store") };
    world.at("cache").join(directory.info(path.hash_part()).unwrap().unwrap().url)
}

#[test]
fn every_lie_of_a_cache_is_refused_in_its_own_words_and_nothing_becomes_valid() {
    type Lie = fn(&World, &Place, &StorePath);
    let lies: [(&str, Lie, &[&str]); 12] = [
        ("hash", |w, _, p| say(w, p, |info| info.nar_hash = Hash::sha256(b"")), &["its hash should be sha256-"]),
        ("more", |w, _, p| say(w, p, |info| info.nar_size += 8), &["bytes, and has"]),
        ("less", |w, _, p| say(w, p, |info| info.nar_size -= 8), &["the archive has more than"]),
        ("giant", |w, _, p| say(w, p, |info| info.nar_size = i64::MAX as u64), &["should have 9223372036854775807"]),
        ("file size", |w, _, p| say(w, p, |info| info.file_size = Some(3)), &["the compressed file has more than 3"]),
        ("way out", |w, _, p| say(w, p, |info| info.url = "../file".into()), &["cannot open the archive"]),
        ("absolute", |w, _, p| say(w, p, |info| info.url = "/etc/passwd".into()), &["cannot open the archive"]),
        (
            "reference",
            |w, _, p| say(w, p, |info| info.references.extend([digits("9", "gone")])),
            &["has no ‘99999999999999999999999999999999-gone’, which is needed by"],
        ),
        (
            "circle",
            |w, _, p| {
                let low = StorePath::from_parts(&format!("{:032}", 0), "n0").unwrap();
                say(w, &low, |info| info.references.extend([p.clone()]));
            },
            &["cannot copy a cycle of references", "→"],
        ),
        (
            "content address",
            |w, _, p| say(w, p, |info| info.ca = Some(format!("fixed:r:{}", Hash::sha256(b"x")))),
            &["is not what its content address ‘fixed:r:sha256:", "another name"],
        ),
        (
            "cut",
            |w, c, p| {
                let file = archive_of(w, c, p);
                let bytes = fs::read(&file).unwrap();
                fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
            },
            &["cannot read the archive"],
        ),
        ("no archive", |w, c, p| fs::remove_file(archive_of(w, c, p)).unwrap(), &["cannot open the archive"]),
    ];
    for (what, lie, words) in lies {
        let world = World::new();
        let (_, cache, top, _) = chain(&world, 3);
        lie(&world, &cache, &top);
        let to = world.store("to");
        let error = go(&cache, &to, &request([top.clone()], Trust::Everybody)).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{what}: {error}");
        assert!(error.contains(top.as_str()), "{what} does not name the path: {error}");
        let store = store_of(&to);
        assert!(store.all_valid_paths().unwrap().is_empty(), "{what}: something became valid");
        let left: Vec<_> = fs::read_dir(store.real_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [".links"], "{what}");
        // Into another cache it is not published either.
        let mirror = world.cache("mirror");
        if what != "content address" {
            assert!(go(&cache, &mirror, &request([top.clone()], Trust::Everybody)).is_err(), "{what}");
            let Place::Cache(mirror) = &mirror else { panic!() };
            assert_eq!(mirror.info(top.hash_part()).unwrap(), None, "{what}");
        }
    }
}

#[test]
fn a_signed_lie_of_references_does_not_fit_its_signature() {
    let world = World::new();
    let (_, cache, top, key) = chain(&world, 2);
    say(&world, &top, |info| info.references.clear());
    let to = world.store("to");
    let error = go(&cache, &to, &request([top], Trust::Keys(vec![key.public()]))).unwrap_err();
    assert!(matches!(error, TransferError::WrongSignature { .. }), "{error}");
}

#[test]
fn contents_that_are_not_what_they_are_named_by_are_refused() {
    let world = World::new();
    let from = world.store("from");
    // Its name follows from the text, and its files are others: their own hash is right.
    let path = StoreDir::default().text_path("t", &Hash::sha256(b"said"), []).unwrap();
    put(store_of(&from), &path, "done", &[]);
    let mut info = store_of(&from).path_info(&path).unwrap();
    info.content_address = Some(format!("text:{}", Hash::sha256(b"said")));
    store_of(&from).register(&[info.into()]).unwrap();
    let to = world.store("to");
    for trust in [Trust::Everybody, Trust::Keys(vec![])] {
        let error = go(&from, &to, &request([path.clone()], trust)).unwrap_err().to_string();
        assert!(error.contains("is not what its content address") && error.contains("the hash is"), "{error}");
        assert!(store_of(&to).all_valid_paths().unwrap().is_empty());
    }
}

#[test]
fn an_archive_that_nix_would_write_otherwise_is_refused() {
    let world = World::new();
    let (_, cache, top, _) = chain(&world, 1);
    // An empty file that says nothing of its contents.
    let mut bytes = Vec::new();
    for text in [&b"nix-archive-1"[..], b"(", b"type", b"regular", b")"] {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    assert!(nar::Reader::new(&bytes[..]).next().is_ok());
    fs::write(world.at("cache/nar/odd"), &bytes).unwrap();
    say(&world, &top, |info| {
        *info = NarInfo {
            url: "nar/odd".to_owned(),
            compression: Compression::None,
            file_hash: None,
            file_size: None,
            nar_hash: Hash::sha256(&bytes),
            nar_size: bytes.len() as u64,
            ..info.clone()
        };
    });
    let to = world.store("to");
    let error = go(&cache, &to, &request([top], Trust::Everybody)).unwrap_err().to_string();
    assert!(error.contains("says nothing of the contents of an empty file"), "{error}");
}

#[test]
fn a_changed_path_does_not_leave_its_store() {
    let world = World::new();
    let (from, _, top, _) = chain(&world, 1);
    let file = store_of(&from).real_path(&top);
    fs::remove_file(&file).unwrap();
    fs::write(&file, "other").unwrap();
    for to in [world.store("to"), world.cache("other")] {
        let error = go(&from, &to, &request([top.clone()], Trust::Everybody)).unwrap_err().to_string();
        assert!(error.contains("its hash was") || error.contains("is not what it should be"), "{error}");
    }
    let gone = digits("5", "gone");
    let error = go(&from, &world.store("to"), &request([gone], Trust::Everybody)).unwrap_err().to_string();
    assert!(error.contains("has no ‘55555555555555555555555555555555-gone’") && !error.contains("needed"), "{error}");
}

#[test]
fn derivations_bring_their_outputs_along() {
    let world = World::new();
    let from = world.store("from");
    let text = |out: &str| {
        format!("Derive([(\"out\",\"{out}\",\"\",\"\")],[],[],\"x86_64-linux\",\"/bin/sh\",[],[(\"out\",\"{out}\")])")
    };
    let store = store_of(&from);
    let dir = store.dir();
    let out_of = |name: &str| {
        let derivation = aterm::read(text("").as_bytes(), name, dir).unwrap();
        let mut calculator = Calculator::new(dir, BTreeMap::<StorePath, Derivation>::new());
        calculator.output_paths(&derivation).unwrap().remove("out").unwrap()
    };
    // Whoever finds an output of another in the store would take it for what this one makes.
    let lie = text(&dir.display(&digits("4", "a")));
    let refused = store.add_text("a.drv", lie.as_bytes(), [], [], &mut quiet).unwrap_err().to_string();
    assert!(refused.contains("for its output ‘out’, which should be"), "{refused}");
    assert!(store.all_valid_paths().unwrap().is_empty());
    let out = out_of("a");
    let drv = store.add_text("a.drv", text(&dir.display(&out)).as_bytes(), [], [], &mut quiet).unwrap().path;
    assert_eq!(store.valid_derivers(&out).unwrap(), [drv.clone()].into(), "added as a text");
    let file = world.at("b.drv");
    let other = out_of("b");
    fs::write(&file, text(&dir.display(&other))).unwrap();
    let added = store.add("b.drv", &file, Naming::Recursive(Algorithm::Sha256), &mut quiet).unwrap().path;
    assert_eq!(store.valid_derivers(&other).unwrap(), [added.clone()].into(), "added as a file");
    let (imported, copied) = (world.store("imported"), world.store("copied"));
    let mut stream = Vec::new();
    store.export(&[drv.clone()].into(), &mut stream).unwrap();
    store_of(&imported).import(&stream[..], &mut quiet).unwrap();
    go(&from, &copied, &request([drv.clone()], Trust::Keys(vec![]))).unwrap();
    for place in [&imported, &copied] {
        let store = store_of(place);
        assert_eq!(store.derivation_outputs(&drv).unwrap(), [("out".to_owned(), out.clone())].into());
        assert_eq!(store.valid_derivers(&out).unwrap(), [drv.clone()].into());
    }
    // What is called a derivation and is none is registered by nobody.
    fs::write(&file, "Derive(").unwrap();
    let error = store.add("c.drv", &file, Naming::Recursive(Algorithm::Sha256), &mut quiet).unwrap_err().to_string();
    assert!(error.contains("which is named as a derivation"), "{error}");
    let registered: Vec<Registration> = vec![];
    store.register(&registered).unwrap();
    assert_eq!(store.all_valid_paths().unwrap(), [drv, added].into());
}

#[test]
fn a_lock_of_somebody_else_is_waited_for_and_theirs_is_taken() {
    let world = World::new();
    let (from, _, top, _) = chain(&world, 1);
    let to = world.store("to");
    let theirs = Store::open(Path::new(&world.at("to")), Access::ReadWrite).unwrap();
    let lock = theirs.lock_paths([&top], &mut quiet).unwrap();
    let (waiting, told) = std::sync::mpsc::channel();
    let request = request([top.clone()], Trust::Everybody);
    let report = std::thread::scope(|scope| {
        let copying =
            scope.spawn(|| copy(&from, &to, &request, &|_| {}, &mut |line| waiting.send(line.to_owned()).unwrap()));
        let line = told.recv().unwrap();
        assert!(line.contains("waiting for the lock"), "{line}");
        put_with_lock_held(&theirs, store_of(&from), &top);
        lock.release();
        copying.join().unwrap().unwrap()
    });
    assert_eq!((report.copied, report.present), (vec![], [top.clone()].into()));
    assert!(theirs.path_info(&top).unwrap().ultimate, "theirs stays");
}

/// Makes `path` valid in `to` as a builder does that holds its lock.
fn put_with_lock_held(to: &Store, from: &Store, path: &StorePath) {
    let (parent, name) = tree::place(&from.real_path(path)).unwrap();
    let (store, into) = tree::place(&to.real_path(path)).unwrap();
    tree::copy(parent.as_fd(), &name, store.as_fd(), &into).unwrap();
    to.register(&[from.path_info(path).unwrap().into()]).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_damaged_cache_gives_what_was_signed_or_nothing(
        archive: bool, at in 0..4096_usize, byte: u8, cut in 0..4_u8, compression in 0..3_usize, trusting: bool,
    ) {
        let world = World::new();
        let (store, cache, top, key) = (world.store("from"), world.cache("cache"), digits("1", "top"), SecretKey::generate("k").unwrap());
        put(store_of(&store), &top, &"contents\n".repeat(20), &[&top]);
        let mut into = request([top.clone()], Trust::Everybody);
        into.compression = [Compression::None, Compression::Zstd, Compression::Xz][compression];
        into.keys = vec![key.clone()];
        go(&store, &cache, &into).unwrap();
        let file = if archive {
            archive_of(&world, &cache, &top)
        } else {
            world.at("cache").join(format!("{}.narinfo", top.hash_part()))
        };
        let mut bytes = fs::read(&file).unwrap();
        let at = at % bytes.len();
        if cut == 0 {
            bytes.truncate(at);
        } else {
            bytes[at] = byte;
        }
        fs::write(&file, &bytes).unwrap();
        let to = world.store("to");
        let trust = if trusting { Trust::Everybody } else { Trust::Keys(vec![key.public()]) };
        let copied = go(&cache, &to, &request([top.clone()], trust)).is_ok();
        let valid = store_of(&to).all_valid_paths().unwrap();
        prop_assert_eq!(copied, valid.contains(&top));
        prop_assert_eq!(valid.len(), usize::from(copied));
        prop_assert_eq!(store_of(&to).verify(true, false, &mut quiet).unwrap().left, 0);
        if copied && !trusting {
            let (ours, theirs) = (store_of(&to).path_info(&top).unwrap(), store_of(&store).path_info(&top).unwrap());
            prop_assert_eq!((ours.nar_hash, ours.references), (theirs.nar_hash, theirs.references));
        }
    }
}
