//! The store against a real Nix, which must find nothing wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, FlockOperation, Timespec, Timestamps};

use super::*;
use crate::hash::Hash;

const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";

/// A directory that goes with the test, the read-only ones of a store in it too.
pub(super) struct Temp(tempfile::TempDir);

impl Temp {
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let (parent, name) = crate::tree::place(self.path()).unwrap();
        crate::tree::remove(std::os::fd::AsFd::as_fd(&parent), &name).unwrap();
    }
}

pub(super) fn temp() -> Temp {
    Temp(tempfile::tempdir().unwrap())
}

pub(super) fn open(root: &Path) -> Store {
    Store::open(root, Access::ReadWrite).unwrap()
}

pub(super) fn path(number: usize, name: &str) -> StorePath {
    let digits: String = format!("{number:032}").chars().rev().collect();
    StorePath::from_parts(&digits, name).unwrap()
}

/// What a Nix prints that takes `root` for its store; nothing if none is installed.
pub(super) fn nix(root: &Path, program: &str, arguments: &[&str]) -> Option<Output> {
    let home = root.join("home");
    let output = Command::new(program)
        .args(["--store", root.to_str().unwrap()])
        .args(arguments)
        .env("NIX_CONFIG", "substituters =\nexperimental-features = nix-command\nbuild-users-group =\n")
        .env("HOME", home)
        .stdin(Stdio::null())
        .output();
    if output.is_err() {
        println!("SKIP: {program} is not installed");
    }
    output.ok()
}

/// The lines that a Nix prints, which must succeed without a word on standard error.
pub(super) fn nix_lines(root: &Path, program: &str, arguments: &[&str]) -> Option<BTreeSet<String>> {
    let output = nix(root, program, arguments)?;
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
    Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

/// Puts a file into the store as if it had been built, and says what is to be registered.
pub(super) fn put_file(store: &Store, path: &StorePath, contents: &str) -> PathInfo {
    let file = store.real_path(path);
    fs::write(&file, contents).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = Timestamps { last_access: second, last_modification: second };
    rustix::fs::utimensat(CWD, &file, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let nar = nar_of_file(contents.as_bytes());
    PathInfo::new(path.clone(), Hash::sha256(&nar), nar.len() as u64)
}

fn nar_of_file(contents: &[u8]) -> Vec<u8> {
    let mut nar = Vec::new();
    for text in [&b"nix-archive-1"[..], b"(", b"type", b"regular", b"contents", contents, b")"] {
        nar.extend((text.len() as u64).to_le_bytes());
        nar.extend(text);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    nar
}

pub(super) fn register(store: &Store, infos: impl IntoIterator<Item = PathInfo>) {
    store.register(&infos.into_iter().map(Registration::from).collect::<Vec<_>>()).unwrap();
}

fn texts(store: &Store, paths: &BTreeSet<StorePath>) -> BTreeSet<String> {
    paths.iter().map(|path| store.dir().display(path)).collect()
}

#[test]
fn nix_finds_nothing_wrong_with_our_store() {
    let root = temp();
    let root = root.path();
    let store = open(root);
    let (base, lib, app, drv) = (path(1, "base"), path(2, "lib"), path(3, "app"), path(4, "app.drv"));
    let with = |mut info: PathInfo, references: &[&StorePath]| {
        info.references = references.iter().map(|path| (*path).clone()).collect();
        info
    };
    let mut app_info = with(put_file(&store, &app, "app"), &[&lib, &app]);
    app_info.deriver = Some(drv.clone());
    app_info.ultimate = true;
    app_info.registration_time = 1_700_000_000;
    app_info.signatures = ["a:AAAA".to_owned(), "b:BBBB".to_owned()].into();
    let drv_registration = Registration {
        info: put_file(&store, &drv, "not parsed here"),
        outputs: BTreeMap::from([("out".to_owned(), app.clone())]),
    };
    // The one that needs the others comes first: the order is not the caller's care.
    store
        .register(&[
            app_info.clone().into(),
            drv_registration,
            with(put_file(&store, &lib, "lib"), &[&base]).into(),
            put_file(&store, &base, "base").into(),
        ])
        .unwrap();

    let Some(_) = nix_lines(root, "nix-store", &["--verify", "--check-contents"]) else { return };
    let query =
        |what: &str, path: &StorePath| nix_lines(root, "nix-store", &["-q", what, &store.dir().display(path)]).unwrap();
    for one in [&base, &lib, &app] {
        assert_eq!(query("--references", one), texts(&store, &store.query_references(one).unwrap()));
        assert_eq!(query("--referrers", one), texts(&store, &store.query_referrers(one).unwrap()));
        assert_eq!(query("--requisites", one), texts(&store, &store.closure([one], Direction::Forward).unwrap()));
        assert_eq!(
            query("--referrers-closure", one),
            texts(&store, &store.closure([one], Direction::Backward).unwrap())
        );
    }
    assert_eq!(store.closure([&app], Direction::Forward).unwrap().len(), 3);
    assert_eq!(query("--deriver", &app), [store.dir().display(&drv)].into());
    assert_eq!(store.valid_derivers(&app).unwrap(), [drv.clone()].into());
    assert_eq!(store.derivation_outputs(&drv).unwrap()["out"], app);

    let json = nix(root, "nix", &["path-info", "--json", &store.dir().display(&app)]).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let json = &json[0];
    assert_eq!(json["narHash"], app_info.nar_hash.sri());
    assert_eq!(json["narSize"], app_info.nar_size);
    assert_eq!(json["registrationTime"], 1_700_000_000);
    assert_eq!(json["ultimate"], true);
    assert_eq!(json["signatures"], serde_json::json!(["a:AAAA", "b:BBBB"]));
    assert_eq!(store.query_path_info(&app).unwrap(), Some(app_info.clone()));
    assert!(store.all_path_infos().unwrap().contains(&app_info));
    assert_eq!(store.path_from_hash_part(app.hash_part()).unwrap(), Some(app.clone()));
    assert_eq!(store.path_from_hash_part(HASH).unwrap(), None);
}

#[test]
fn the_tables_are_those_that_nix_makes() {
    let (ours, theirs) = (temp(), temp());
    drop(open(ours.path()));
    let Some(_) = nix_lines(theirs.path(), "nix-store", &["--init"]) else { return };
    let schema = |root: &Path| -> BTreeSet<(String, String)> {
        let connection = rusqlite::Connection::open(root.join("nix/var/nix/db/db.sqlite")).unwrap();
        let mut statement = connection.prepare("select name, sql from sqlite_master where sql is not null").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(schema(ours.path()), schema(theirs.path()));
    let text = |root: &Path| fs::read_to_string(root.join("nix/var/nix/db/schema")).unwrap();
    assert_eq!(text(ours.path()), text(theirs.path()));
}

#[test]
fn we_read_a_store_that_nix_made() {
    let root = temp();
    let file = root.path().join("a-file");
    fs::write(&file, "hello").unwrap();
    let Some(added) = nix_lines(root.path(), "nix-store", &["--add", file.to_str().unwrap()]) else { return };
    let store = Store::open(root.path(), Access::ReadOnly).unwrap();
    let added = store.dir().parse(added.first().unwrap()).unwrap();
    let info = store.path_info(&added).unwrap();
    let nar = nar_of_file(b"hello");
    assert_eq!((info.nar_hash, info.nar_size), (Hash::sha256(&nar), nar.len() as u64));
    assert!(info.content_address.unwrap().starts_with("fixed:r:sha256:"));
    assert!(info.registration_time > 1_600_000_000);
    assert_eq!(store.all_valid_paths().unwrap(), [added].into());
}

#[test]
fn what_is_not_complete_is_not_registered() {
    let root = temp();
    let store = open(root.path());
    let info = |number, references: &[usize]| {
        let mut info = PathInfo::new(path(number, "x"), Hash::sha256(b""), 1);
        info.references = references.iter().map(|number| path(*number, "x")).collect();
        Registration::from(info)
    };
    let missing = store.register(&[info(1, &[]), info(2, &[1, 9])]).unwrap_err();
    assert!(missing.to_string().contains(&format!("refers to ‘{}’", path(9, "x"))), "{missing}");
    let cycle = store.register(&[info(1, &[2]), info(2, &[3]), info(3, &[2])]).unwrap_err().to_string();
    assert!(cycle.contains(&format!("{} → {} → {}", path(2, "x"), path(3, "x"), path(2, "x"))), "{cycle}");
    assert!(store.all_valid_paths().unwrap().is_empty(), "all or nothing");

    store.register(&[info(1, &[1]), info(2, &[1])]).unwrap();
    let late = store.register(&[info(1, &[2])]).unwrap_err();
    assert!(matches!(late, StoreError::Cycle { .. }), "{late}");
    assert_eq!(store.query_references(&path(1, "x")).unwrap(), [path(1, "x")].into(), "as it was");

    let used = store.invalidate([&path(1, "x")]).unwrap_err();
    assert!(used.to_string().contains(path(2, "x").as_str()), "{used}");
    store.invalidate([&path(1, "x"), &path(2, "x"), &path(7, "x")]).unwrap();
    assert!(store.all_valid_paths().unwrap().is_empty());
    assert!(matches!(store.closure([&path(1, "x")], Direction::Forward), Err(StoreError::NotValid(_))));
}

/// The figure is printed and judged elsewhere; here the answer must be right.
#[test]
fn a_closure_of_a_hundred_thousand_paths_is_whole() {
    let root = temp();
    let store = open(root.path());
    let count = 100_000;
    let all: Vec<_> = (0..count)
        .map(|number| {
            let mut info = PathInfo::new(path(number, "x"), Hash::sha256(b""), 1);
            info.references =
                [1, 2, 7].iter().filter_map(|back| number.checked_sub(*back)).map(|n| path(n, "x")).collect();
            Registration::from(info)
        })
        .collect();
    let start = Instant::now();
    store.register(&all).unwrap();
    let registered = start.elapsed();
    let start = Instant::now();
    let closure = store.closure([&path(count - 1, "x")], Direction::Forward).unwrap();
    println!("{count} paths: registered in {registered:?}, closure in {:?}", start.elapsed());
    assert_eq!(closure.len(), count);
    assert_eq!(store.closure([&path(0, "x")], Direction::Backward).unwrap().len(), count);
    assert_eq!(store.all_path_infos().unwrap().len(), count);
}

#[test]
fn a_newer_schema_is_refused_and_untouched() {
    let root = temp();
    drop(open(root.path()));
    let db = root.path().join("nix/var/nix/db");
    fs::write(db.join("schema"), "11").unwrap();
    let before = fs::read(db.join("db.sqlite")).unwrap();
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let error = Store::open(root.path(), access).unwrap_err();
        assert!(matches!(error, StoreError::NewerSchema { found: 11 }), "{error}");
    }
    assert_eq!(fs::read(db.join("db.sqlite")).unwrap(), before);
    assert_eq!(fs::read_to_string(db.join("schema")).unwrap(), "11");
    fs::write(db.join("schema"), "9").unwrap();
    assert!(matches!(Store::open(root.path(), Access::ReadWrite), Err(StoreError::OlderSchema { found: 9 })));
    fs::write(db.join("schema"), "ten").unwrap();
    assert!(matches!(Store::open(root.path(), Access::ReadWrite), Err(StoreError::BadSchema { .. })));
}

#[test]
fn a_damaged_database_is_refused_with_the_way_out() {
    let root = temp();
    drop(open(root.path()));
    let file = root.path().join("nix/var/nix/db/db.sqlite");
    for contents in [&b"This is not a database, but it is long enough to look like one at first sight......."[..], b""]
    {
        fs::write(&file, contents).unwrap();
        for access in [Access::ReadWrite, Access::ReadOnly] {
            let error = Store::open(root.path(), access).unwrap_err().to_string();
            assert!(error.contains("is damaged") && error.contains(".recover"), "{error}");
        }
    }
    assert_eq!(fs::read(&file).unwrap(), b"", "a damaged database is left as it is");
    fs::remove_file(&file).unwrap();
    let error = Store::open(root.path(), Access::ReadWrite).unwrap_err().to_string();
    assert!(error.contains("is gone"), "{error}");
}

#[test]
fn who_only_reads_writes_nothing() {
    let root = temp();
    let error = Store::open(root.path(), Access::ReadOnly).unwrap_err();
    assert!(matches!(error, StoreError::NoStore { .. }), "{error}");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    let one = PathInfo::new(path(1, "x"), Hash::sha256(b""), 1);
    register(&open(root.path()), [one.clone()]);

    let store = Store::open(root.path(), Access::ReadOnly).unwrap();
    assert!(store.is_valid(&one.path).unwrap());
    let error = store.register(&[one.clone().into()]).unwrap_err().to_string();
    assert!(error.starts_with("cannot register a path: the store at"), "{error}");
    for error in [
        store.invalidate([&one.path]).unwrap_err(),
        store.add_temp_root(&one.path).unwrap_err(),
        store.lock_paths([&one.path], &mut |_| {}).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
    }
    drop(store);

    // A directory that nobody may write has no place for the log's index. (The superuser may always write.)
    let db = root.path().join("nix/var/nix/db");
    fs::set_permissions(&db, fs::Permissions::from_mode(0o555)).unwrap();
    let result = Store::open(root.path(), Access::ReadOnly).and_then(|store| store.is_valid(&one.path));
    fs::set_permissions(&db, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(result.unwrap());
}

#[test]
fn a_lock_keeps_others_out_until_it_is_released() {
    let root = temp();
    let store = open(root.path());
    let (a, b) = (path(1, "a"), path(2, "b"));
    let file = store.real_path(&a).with_file_name(format!("{a}.lock"));
    let held = store.lock_paths([&a, &b], &mut |line| panic!("{line}")).unwrap();
    assert!(store.try_lock_paths([&a]).unwrap().is_none());
    // A copy of the descriptors, as in a child between fork and exec, must not keep the lock.
    let copy = held.held[0].1.try_clone().unwrap();

    let (sender, notices) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let locks = store.lock_paths([&b, &a], &mut |line| sender.send(line.to_owned()).unwrap()).unwrap();
            assert!(file.exists(), "a new file, not the one that was removed");
            locks.release();
        });
        let notice = notices.recv().unwrap();
        assert_eq!(notice, format!("waiting for the lock on ‘{}’", store.dir().display(&a)));
        held.release();
        waiter.join().unwrap();
    });
    assert!(!file.exists());
    assert_eq!(copy.metadata().unwrap().len(), 1, "marked as removed for those that wait");

    // Somebody died after marking the file and before removing it.
    fs::write(&file, "d").unwrap();
    store.try_lock_paths([&a]).unwrap().unwrap().release();
    assert!(!file.exists());
}

#[test]
fn temporary_roots_are_in_a_locked_file_of_this_process() {
    let root = temp();
    let store = open(root.path());
    let directory = root.path().join("nix/var/nix/temproots");
    store.add_temp_root(&path(1, "a")).unwrap();
    store.add_temp_root(&path(2, "b")).unwrap();
    let other = open(root.path());
    other.add_temp_root(&path(3, "c")).unwrap();
    let mut roots = BTreeSet::new();
    for entry in fs::read_dir(&directory).unwrap() {
        let entry = entry.unwrap();
        assert!(entry.file_name().to_str().unwrap().starts_with(&std::process::id().to_string()));
        let file = fs::File::open(entry.path()).unwrap();
        let taken = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(taken, Err(rustix::io::Errno::WOULDBLOCK));
        let text = fs::read_to_string(entry.path()).unwrap();
        roots.extend(text.split_terminator('\0').map(|text| store.dir().parse(text).unwrap()));
    }
    assert_eq!(roots, [path(1, "a"), path(2, "b"), path(3, "c")].into());
    drop((store, other));
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
}

/// A process is killed while it registers, as often as it takes to hit it in different places.
#[test]
fn a_killed_registration_leaves_all_or_nothing() {
    const ROOT: &str = "ANCHORHOLD_TEST_REGISTER_IN";
    const BATCH: usize = 50;
    if let Some(root) = std::env::var_os(ROOT) {
        let store = open(Path::new(&root));
        println!("ready");
        for batch in 0.. {
            let infos = (0..BATCH).map(|n| {
                let mut info = PathInfo::new(path(batch * BATCH + n, "x"), Hash::sha256(b""), 1);
                info.references.extend(n.checked_sub(1).map(|n| path(batch * BATCH + n, "x")));
                info
            });
            register(&store, infos);
        }
    }
    for round in 0..8u64 {
        let root = temp();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "store::tests::a_killed_registration_leaves_all_or_nothing"])
            .env(ROOT, root.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        assert!(lines.any(|line| line.unwrap().contains("ready")));
        // A different instant each time; that it is a different one is all that matters.
        std::thread::sleep(std::time::Duration::from_micros(1500 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(root.path());
        let valid = store.all_path_infos().unwrap();
        assert_eq!(valid.len() % BATCH, 0);
        let edges: usize = valid.iter().map(|info| info.references.len()).sum();
        assert_eq!(edges, valid.len() / BATCH * (BATCH - 1));
    }
}
