use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::references::ReferenceScanner;
use super::rewrite::{Rewriter, hash_modulo, rewrite};
use super::*;
use crate::hash::{Algorithm, Hash};
use crate::store_path::StorePath;
use crate::tree;

/// Small deterministic numbers: a test that fails says the number of its tree, and that is enough to have it again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ value >> 31) % below
    }

    fn name(&mut self) -> Vec<u8> {
        const ODD: [&[u8]; 14] = [
            b" ",
            b"\n",
            b"a b",
            b"-rf",
            b"...",
            b".hidden",
            b"\xff\xfe",
            b"A",
            b"a",
            b"\\",
            b"\"'",
            b"a.b",
            b"\xc3\xa4",
            b"a-b",
        ];
        match self.roll(4) {
            0 => ODD[self.roll(ODD.len() as u64) as usize].to_vec(),
            1 => vec![b'x'; 1 + self.roll(255) as usize],
            _ => {
                let mut name: Vec<u8> = (0..1 + self.roll(9)).map(|_| 1 + self.roll(255) as u8).collect();
                name.iter_mut().filter(|byte| **byte == b'/').for_each(|byte| *byte = b'_');
                if name == b"." || name == b".." { b"dots".to_vec() } else { name }
            }
        }
    }

    fn tree(&mut self, path: &Path, depth: u64) {
        let kind = if depth == 0 { 2 } else { 0 };
        match kind + self.roll(6) {
            0 | 1 => {
                let size = [0, 1, 7, 8, 9, 100, 4096, 70_000][self.roll(8) as usize];
                let data: Vec<u8> = (0..size).map(|_| self.roll(256) as u8).collect();
                fs::write(path, data).unwrap();
                let mode = [0o644, 0o755, 0o444, 0o654, 0o700][self.roll(5) as usize];
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
            2 => symlink(OsStr::from_bytes(&self.name()), path).unwrap(),
            _ => {
                fs::create_dir(path).unwrap();
                if depth < 5 {
                    for _ in 0..self.roll(5) {
                        let child = path.join(OsStr::from_bytes(&self.name()));
                        if fs::symlink_metadata(&child).is_err() {
                            self.tree(&child, depth + 1);
                        }
                    }
                }
            }
        }
    }
}

fn dumped(path: &Path) -> Result<Vec<u8>, NarError> {
    let (parent, name) = tree::place(path).unwrap();
    let mut nar = Vec::new();
    let size = dump(parent.as_fd(), &name, &mut nar)?;
    assert_eq!(size, nar.len() as u64);
    Ok(nar)
}

fn restored(nar: &[u8], path: &Path) -> Result<(), NarError> {
    let (parent, name) = tree::place(path).unwrap();
    restore(&mut Reader::new(nar), parent.as_fd(), &name)
}

/// As Nix does it, or nothing where there is no Nix.
fn nix(program: &str, arguments: &[&OsStr], input: &[u8]) -> Option<Vec<u8>> {
    let child = Command::new(program)
        .args(arguments)
        .env("NIX_CONFIG", "substituters =\nexperimental-features = nix-command\nbuild-users-group =")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("SKIP: there is no {program} here to compare with");
        return None;
    };
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    Some(output.stdout)
}

#[test]
fn a_thousand_trees_are_archived_and_restored_as_nix_does() {
    const TREES: u64 = 1000;
    let place = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..TREES).map(|number| place.path().join(number.to_string())).collect();
    let mut hashes = Vec::new();
    for (number, path) in paths.iter().enumerate() {
        Dice(number as u64).tree(path, 0);
        let nar = dumped(path).unwrap();
        let back = path.with_extension("back");
        restored(&nar, &back).unwrap();
        assert!(dumped(&back).unwrap() == nar, "tree {number} is another one after it was restored");
        let mut copied = Vec::new();
        copy(nar.as_slice(), &mut copied).unwrap();
        assert!(copied == nar, "tree {number} is another one after its archive was copied");
        let (parent, name) = tree::place(path).unwrap();
        let survey = pass::survey(parent.as_fd(), &name, []).unwrap();
        assert_eq!((survey.hash, survey.size), (Hash::sha256(&nar), nar.len() as u64));
        hashes.push(survey.hash.base32());
    }
    let mut arguments: Vec<&OsStr> = ["--type", "sha256", "--base32"].map(OsStr::new).to_vec();
    arguments.extend(paths.iter().map(|path| path.as_os_str()));
    if let Some(theirs) = nix("nix-hash", &arguments, b"") {
        let theirs: Vec<_> = std::str::from_utf8(&theirs).unwrap().lines().collect();
        assert_eq!(theirs, hashes);
        for path in &paths[..40] {
            let nar = dumped(path).unwrap();
            assert!(nix("nix-store", &["--dump".as_ref(), path.as_ref()], b"").unwrap() == nar, "{path:?}");
            let back = path.with_extension("nix");
            nix("nix-store", &["--restore".as_ref(), back.as_ref()], &nar).unwrap();
            assert!(dumped(&back).unwrap() == nar, "{path:?}");
        }
    }
    // An ordinary user removes directories without w in no other way.
    let (parent, name) = tree::place(place.path()).unwrap();
    tree::remove(parent.as_fd(), &name).unwrap();
}

#[test]
fn what_is_restored_is_canonical_and_nothing_is_overwritten() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("program"), "x").unwrap();
    fs::set_permissions(path.join("program"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(path.join("data"), "y").unwrap();
    symlink("data", path.join("link")).unwrap();
    let nar = dumped(&path).unwrap();
    let back = place.path().join("b");
    restored(&nar, &back).unwrap();
    for (name, mode) in [("", 0o555), ("program", 0o555), ("data", 0o444), ("link", 0o777)] {
        let metadata = fs::symlink_metadata(back.join(name)).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime(), metadata.mtime_nsec()), (mode, 1, 0), "{name}");
    }
    let error = restored(&nar, &path).unwrap_err().to_string();
    assert!(error.contains("cannot make the directory ‘a’: File exists"), "{error}");
    assert_eq!(fs::read(path.join("data")).unwrap(), b"y", "what was there is untouched");
    symlink("elsewhere", place.path().join("c")).unwrap();
    let file = dumped(&path.join("data")).unwrap();
    assert!(restored(&file, &place.path().join("c")).is_err());
    assert!(!place.path().join("elsewhere").exists());
    let error = restored(&nar[..nar.len() - 8], &place.path().join("d")).unwrap_err();
    assert!(matches!(error, NarError::Truncated { .. }), "{error}");
    assert!(!place.path().join("d").exists(), "half a tree is left");
    let (parent, name) = tree::place(&back).unwrap();
    tree::remove(parent.as_fd(), &name).unwrap();
}

#[test]
fn what_no_archive_holds_is_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a");
    fs::create_dir(&path).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path.join("socket")).unwrap();
    let error = dumped(&path).unwrap_err().to_string();
    assert!(error.contains("‘a/socket’ is a socket"), "{error}");
    fs::remove_file(path.join("socket")).unwrap();
    let fifo = path.join("first\nin");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let error = dumped(&path).unwrap_err().to_string();
    assert!(error.contains("‘a/first\\nin’ is a FIFO"), "{error}");
    let error = dumped(&place.path().join("b")).unwrap_err().to_string();
    assert!(error.contains("cannot examine ‘b’: No such file"), "{error}");
}

/// `depth` directories inside each other below `path`, made without a path that would be too long.
pub(crate) fn make_deep(path: &Path, depth: usize) {
    use rustix::fs::{Mode, OFlags, mkdirat, open, openat};
    fs::create_dir(path).unwrap();
    let mut here = open(path, OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&here, "d", Mode::RWXU).unwrap();
        here = openat(&here, "d", OFlags::PATH, Mode::empty()).unwrap();
    }
}

#[test]
fn deep_trees_need_few_descriptors_and_too_deep_ones_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let deep = place.path().join("deep");
    make_deep(&deep, MAX_DEPTH - 1);
    let nar = dumped(&deep).unwrap();
    let back = place.path().join("back");
    restored(&nar, &back).unwrap();
    assert!(dumped(&back).unwrap() == nar);
    let deeper = place.path().join("deeper");
    make_deep(&deeper, MAX_DEPTH);
    let error = dumped(&deeper).unwrap_err();
    assert!(matches!(error, NarError::Depth { .. }), "{error}");
    assert!(error.to_string().len() < 2000, "a message that nobody can read");
    for name in ["deep", "back", "deeper"] {
        let (parent, name) = tree::place(&place.path().join(name)).unwrap();
        tree::remove(parent.as_fd(), &name).unwrap();
    }
}

#[test]
fn the_case_hack_is_undone_when_asked() {
    let place = tempfile::tempdir().unwrap();
    let hacked = Options { case_hack: true };
    let with = |path: &Path, options| {
        let (parent, name) = tree::place(path).unwrap();
        let mut nar = Vec::new();
        dump_with(parent.as_fd(), &name, &mut nar, options).map(|_| nar)
    };
    for (tree, files) in [("plain", ["A", "a"]), ("hacked", ["A", "a~nix~case~hack~1"])] {
        fs::create_dir(place.path().join(tree)).unwrap();
        files.iter().for_each(|file| fs::write(place.path().join(tree).join(file), "").unwrap());
    }
    let plain = dumped(&place.path().join("plain")).unwrap();
    assert!(with(&place.path().join("hacked"), hacked).unwrap() == plain);
    assert!(dumped(&place.path().join("hacked")).unwrap() != plain);
    fs::write(place.path().join("hacked/A~nix~case~hack~2"), "").unwrap();
    let error = with(&place.path().join("hacked"), hacked).unwrap_err().to_string();
    assert!(
        error.contains("‘hacked/A~nix~case~hack~2’ and another file") || error.contains("‘hacked/A’ and"),
        "{error}"
    );
}

/// Strings as an archive has them: length, bytes, padding.
fn nar(strings: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for string in strings {
        bytes.extend((string.len() as u64).to_le_bytes());
        bytes.extend(*string);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

fn directory(names: &[&[u8]]) -> Vec<u8> {
    let mut strings: Vec<&[u8]> = vec![MAGIC, b"(", b"type", b"directory"];
    for name in names {
        strings.extend::<[&[u8]; 10]>([b"entry", b"(", b"name", name, b"node", b"(", b"type", b"regular", b")", b")"]);
    }
    strings.push(b")");
    nar(&strings)
}

#[test]
fn hostile_archives_are_refused_each_in_its_own_words() {
    let long = |bytes: Vec<u8>, length: u64| [bytes, length.to_le_bytes().to_vec()].concat();
    let file: &[&[u8]] = &[MAGIC, b"(", b"type", b"regular"];
    let mut dirty = directory(&[b"a"]);
    let end = nar(&[MAGIC]).len() + 15;
    dirty[end] = 1;
    let mut deep = nar(&[MAGIC]);
    for _ in 0..100_000 {
        deep.extend(nar(&[b"(", b"type", b"directory", b"entry", b"(", b"name", b"a", b"node"]));
    }
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "it ends after 0 bytes, where the words ‘nix-archive-1’ should follow"),
        (nar(&[b"nix-archive-2"]), "‘nix-archive-2’ stands where the words ‘nix-archive-1’ should"),
        (b"hello, this is no archive".to_vec(), "bytes stands where the words"),
        (directory(&[b".."]), "an entry is called ‘..’, which stands for a directory itself"),
        (directory(&[b"."]), "an entry is called ‘.’"),
        (directory(&[b""]), "which is empty"),
        (directory(&[b"a/b"]), "an entry is called ‘a/b’, which has a slash"),
        (directory(&[b"/etc"]), "which has a slash"),
        (directory(&[b"a\0b"]), "which has a NUL byte"),
        (directory(&[b"a", b"a"]), "the name ‘a’ occurs twice in a directory"),
        (directory(&[b"b", b"a"]), "not sorted: ‘a’ follows ‘b’"),
        (directory(&[b"a", b"A"]), "not sorted: ‘A’ follows ‘a’"),
        (directory(&[&[b'a'; 256]]), "the name of an entry is said to have 256 bytes, at most 255 are possible"),
        (dirty, "the padding of a string is not zero"),
        (deep, "there are more than 2048 directories inside each other"),
        (long(nar(&[MAGIC, b"(", b"type"]), 1 << 63), "is said to have 9223372036854775808 bytes"),
        (long(nar(&[file, &[b"contents"]].concat()), 1 << 63), "a file is said to have 9223372036854775808 bytes"),
        (long(nar(&[file, &[b"contents"]].concat()), 1 << 62), "where more of a file's contents should follow"),
        (nar(&[MAGIC, b"(", b"type", b"fifo", b")"]), "a node has the unknown type ‘fifo’"),
        (nar(&[file, &[b"contents", b"", b"executable", b"", b")"]].concat()), "should (byte"),
        (nar(&[file, &[b"executable", b"yes"]].concat()), "where the empty string after ‘executable’ should"),
        (nar(&[file, &[b"mode"]].concat()), "‘mode’ stands where ‘executable’, ‘contents’ or the end of a file should"),
        (nar(&[MAGIC, b"(", b"type", b"symlink", b"target", b"", b")"]), "is empty or has a NUL"),
        (nar(&[MAGIC, b"(", b"type", b"symlink", b"target", b"a\0", b")"]), "is empty or has a NUL"),
        (nar(&[MAGIC, b"(", b"type", b"symlink", b"target", &[b'a'; 4096], b")"]), "4096 bytes, at most 4095"),
        (nar(&[MAGIC, b"(", b"type", b"directory", b"file"]), "‘file’ stands where an entry or the end of a directory"),
        (nar(&[MAGIC, b"(", b"type", b"directory", b"entry", b"(", b"node"]), "where the name of an entry should"),
        (nar(&[MAGIC, b"type", b"regular"]), "where the beginning of a node should"),
    ];
    let place = tempfile::tempdir().unwrap();
    for (bytes, words) in cases {
        let error = copy(bytes.as_slice(), std::io::sink()).unwrap_err().to_string();
        assert!(error.contains(words), "{words}\n{error}");
        assert!(error.len() < 1500, "{error}");
        assert!(restored(&bytes, &place.path().join("a")).is_err());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "something is left: {words}");
    }
}

#[test]
fn what_follows_an_archive_is_left_alone_and_contents_may_be_left_out() {
    let mut bytes = directory(&[b"a", b"b"]);
    let len = bytes.len();
    bytes.extend(b"and so on");
    let mut reader = Reader::new(bytes.as_slice());
    let mut names = Vec::new();
    while let Some(event) = reader.next().unwrap() {
        if let Event::Entry(name) = event {
            names.push(name);
        }
    }
    assert_eq!(names, [b"a", b"b"]);
    assert_eq!(reader.offset(), len as u64);
    assert_eq!(reader.into_source(), b"and so on");
    let mut with_contents = Vec::new();
    copy(nar(&[MAGIC, b"(", b"type", b"regular", b")"]).as_slice(), &mut with_contents).unwrap();
    assert_eq!(with_contents, nar(&[MAGIC, b"(", b"type", b"regular", b"contents", b"", b")"]));
}

fn path_of(digit: char, name: &str) -> StorePath {
    StorePath::from_parts(&digit.to_string().repeat(32), name).unwrap()
}

#[test]
fn a_survey_finds_references_wherever_they_are() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a");
    fs::create_dir(&path).unwrap();
    // Larger than several chunks, with a hash part across the border of the first two wherever that exactly is.
    let mut big = vec![b'.'; 1 << 20];
    let part = "1".repeat(32);
    for place in (0..20).map(|number| 250_000 + number * 1000) {
        big[place..place + 32].copy_from_slice("7".repeat(32).as_bytes());
    }
    let header = dumped(&path).unwrap().len() + nar(&[b"entry", b"(", b"name", b"big", b"node"]).len();
    let border = 256 * 1024 - header;
    let text = "1".repeat(2000);
    big[border - 1000..border + 1000].copy_from_slice(text.as_bytes());
    fs::write(path.join("big"), &big).unwrap();
    symlink(format!("/nix/store/{}-x", "2".repeat(32)), path.join("link")).unwrap();
    fs::write(path.join("3".repeat(32)), "").unwrap();
    fs::write(path.join("almost"), "4".repeat(31)).unwrap();
    assert_eq!(part.len(), 32);
    let candidates: Vec<_> = "12347".chars().map(|digit| path_of(digit, "x")).collect();
    let (parent, name) = tree::place(&path).unwrap();
    let survey = pass::survey(parent.as_fd(), &name, candidates).unwrap();
    let found: Vec<_> = survey.references.iter().map(|path| &path.hash_part()[..1]).collect();
    assert_eq!(found, ["1", "2", "3", "7"]);
    assert_eq!(survey.hash, Hash::sha256(&dumped(&path).unwrap()));
}

#[test]
fn a_rewritten_tree_mentions_the_new_path() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a");
    fs::create_dir(&path).unwrap();
    let (old, new) = (path_of('1', "x"), path_of('2', "x"));
    let text = |digit: &str| format!("#!/nix/store/{}-x/bin/sh\n", digit.repeat(32)).repeat(20_000);
    fs::write(path.join("script"), text("1")).unwrap();
    symlink(format!("../{}", old.as_str()), path.join("link")).unwrap();
    let (parent, name) = tree::place(&path).unwrap();
    let to = OsStr::new("b");
    rewrite(parent.as_fd(), &name, parent.as_fd(), to, [(old.clone(), new.clone())]).unwrap();
    assert!(fs::read_to_string(place.path().join("b/script")).unwrap() == text("2"));
    assert_eq!(fs::read_link(place.path().join("b/link")).unwrap().to_str(), Some(&*format!("../{}", new.as_str())));
    // The same tree under two names has one hash if its own name does not count.
    let modulo = |name: &OsStr, own, places| hash_modulo(parent.as_fd(), name, Algorithm::Sha256, own, places).unwrap();
    assert_eq!(modulo(&name, &old, false), modulo(to, &new, false));
    assert_eq!(modulo(&name, &old, true), modulo(to, &new, true));
    assert_ne!(modulo(&name, &old, true), modulo(&name, &old, false));
    // A failure on the writing side is the one that is reported.
    fs::write(path.join("z"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path.join("zz")).unwrap();
    let error = rewrite(parent.as_fd(), &name, parent.as_fd(), "c".as_ref(), [(old, new)]).unwrap_err();
    assert!(matches!(error, NarError::Kind { .. }), "{error}");
    assert!(!place.path().join("c").exists());
    tree::remove(parent.as_fd(), to).unwrap();
}

/// Text in which hash parts of a few digits are likely.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (28_usize..70, prop_oneof![Just(b'1'), Just(b'2'), Just(b'3')]).prop_map(|(len, digit)| vec![digit; len]),
        Just(b"0123456789abcdfghijklmnpqrsvwxyz".to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn in_pieces(mut bytes: &[u8], sizes: &[usize], sink: &mut impl Write) {
    for size in sizes.iter().cycle() {
        let (now, later) = bytes.split_at(bytes.len().min(*size));
        sink.write_all(now).unwrap();
        bytes = later;
        if bytes.is_empty() {
            return;
        }
    }
}

proptest! {
    #[test]
    fn the_scanner_finds_what_a_search_finds(
        bytes in stream(), sizes in prop::collection::vec(1_usize..90, 1..6)
    ) {
        let mut candidates: Vec<_> = "124".chars().map(|digit| path_of(digit, "x")).collect();
        candidates.push(StorePath::from_parts("0123456789abcdfghijklmnpqrsvwxyz", "x").unwrap());
        let mut scanner = ReferenceScanner::new(candidates.clone());
        in_pieces(&bytes, &sizes, &mut scanner);
        let expected: BTreeSet<_> = candidates
            .into_iter()
            .filter(|path| bytes.windows(32).any(|window| window == path.hash_part().as_bytes()))
            .collect();
        prop_assert_eq!(scanner.into_found(), expected);
    }

    #[test]
    fn the_rewriter_replaces_what_a_search_finds(
        bytes in stream(), sizes in prop::collection::vec(1_usize..90, 1..6)
    ) {
        let mut rewriter = Rewriter::new(Vec::new(), [(path_of('1', "x"), path_of('2', "x")), (path_of('2', "x"), path_of('1', "x"))]);
        in_pieces(&bytes, &sizes, &mut rewriter);
        let (rewritten, places) = rewriter.finish().unwrap();
        let (mut expected, mut expected_places, mut position) = (bytes.clone(), Vec::new(), 0);
        while position + 32 <= bytes.len() {
            let replacement = match &bytes[position..position + 32] {
                part if *part == [b'1'; 32] => b'2',
                part if *part == [b'2'; 32] => b'1',
                _ => { position += 1; continue; }
            };
            expected[position..position + 32].fill(replacement);
            expected_places.push(position as u64);
            position += 32;
        }
        prop_assert_eq!(rewritten, expected);
        prop_assert_eq!(places, expected_places);
    }

    #[test]
    fn a_changed_archive_is_read_or_refused_but_never_worse(
        seed in 0_u64..200, changes in prop::collection::vec((any::<u16>(), any::<u8>(), 0_u8..4), 1..6)
    ) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a");
        Dice(seed).tree(&path, 0);
        let mut bytes = dumped(&path).unwrap();
        for (place, value, kind) in changes {
            let place = usize::from(place) % bytes.len();
            match kind {
                0 => bytes[place] = value,
                1 => bytes[place] ^= 1 << (value % 8),
                2 => { bytes.remove(place); }
                _ => bytes.insert(place, value),
            }
            if bytes.is_empty() { bytes.push(0); }
        }
        let back = place.path().join("b");
        let mut copied = Vec::new();
        if copy(bytes.as_slice(), &mut copied).is_ok() {
            restored(&bytes, &back).unwrap();
            prop_assert!(dumped(&back).unwrap() == copied);
        } else {
            prop_assert!(restored(&bytes, &back).is_err());
            prop_assert!(!back.exists());
        }
        for name in ["a", "b"] {
            let (parent, name) = tree::place(&place.path().join(name)).unwrap();
            tree::remove(parent.as_fd(), &name).unwrap();
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = copy(bytes.as_slice(), std::io::sink());
        let _ = copy([nar(&[MAGIC, b"(", b"type"]), bytes].concat().as_slice(), std::io::sink());
    }
}
