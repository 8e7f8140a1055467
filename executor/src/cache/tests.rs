use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Output};

use proptest::prelude::*;

use super::*;
use crate::hash::Hash;
use crate::nar;
use crate::store_path::{StoreDir, StorePath};
use crate::tree;

const NIX: &str = "substituters =\nexperimental-features = nix-command\nbuild-users-group =\n";

/// Runs a program of Nix, or gives nothing where there is none.
fn nix(program: &str, arguments: &[&str], settings: &str) -> Option<Output> {
    let output = Command::new(program).args(arguments).env("NIX_CONFIG", format!("{NIX}{settings}")).output();
    output.inspect_err(|_| println!("SKIP: there is no {program} here to compare with")).ok()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn path(digit: &str, name: &str) -> StorePath {
    StorePath::from_parts(&digit.repeat(32), name).unwrap()
}

/// A tree below `place` and what a store would say of it.
fn sample(place: &Path) -> PathInfo {
    let tree = place.join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("text"), format!("see /nix/store/{}\n", path("1", "dep").as_str()).repeat(10_000)).unwrap();
    std::os::unix::fs::symlink("text", tree.join("link")).unwrap();
    let (parent, name) = tree::place(&tree).unwrap();
    let survey = nar::pass::survey(parent.as_fd(), &name, [path("1", "dep"), path("2", "x")]).unwrap();
    PathInfo {
        path: path("2", "x"),
        nar_hash: survey.hash,
        nar_size: survey.size,
        references: survey.references,
        deriver: Some(path("3", "x.drv")),
        signatures: vec![],
        ca: None,
    }
}

fn push(cache: &Directory, info: &PathInfo, tree: &Path, compression: Compression, keys: &[SecretKey]) -> NarInfo {
    let (parent, name) = tree::place(tree).unwrap();
    let write = |sink: &mut dyn io::Write| nar::dump(parent.as_fd(), &name, sink).map(drop);
    cache.push(info, write, compression, keys).unwrap()
}

fn hash_of(tree: &Path) -> Hash {
    let (parent, name) = tree::place(tree).unwrap();
    nar::pass::survey(parent.as_fd(), &name, []).unwrap().hash
}

fn gone(tree: &Path) {
    let (parent, name) = tree::place(tree).unwrap();
    tree::remove(parent.as_fd(), &name).unwrap();
}

#[test]
fn what_is_pushed_is_fetched_whatever_the_compression() {
    let place = tempfile::tempdir().unwrap();
    let store = StoreDir::default();
    let info = sample(place.path());
    let key = SecretKey::generate("cache.example-1").unwrap();
    for compression in [Compression::None, Compression::Xz, Compression::Zstd] {
        let cache = Directory::create(&place.path().join(compression.name()), &store).unwrap();
        let pushed = push(&cache, &info, &place.path().join("tree"), compression, std::slice::from_ref(&key));
        assert_eq!(cache.info(info.path.hash_part()).unwrap().as_ref(), Some(&pushed));
        assert_eq!(pushed.signed_by(&[key.public()], &store), Some(&key.public()));
        let back = place.path().join("back");
        let (parent, name) = tree::place(&back).unwrap();
        assert_eq!(cache.restore(info.path.hash_part(), parent.as_fd(), &name).unwrap(), pushed);
        assert_eq!(hash_of(&back), info.nar_hash);
        gone(&back);
        let left: Vec<_> = fs::read_dir(place.path().join(compression.name()).join("nar")).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
    let cache = Directory::open(&place.path().join("xz"), &store).unwrap();
    assert_eq!(cache.info(path("5", "a").hash_part()).unwrap(), None);
    assert!(matches!(cache.fetch(path("5", "a").hash_part()), Err(CacheError::Missing { .. })));
    for digits in ["", "../../etc/passwd", "2222222222222222222222222222222e"] {
        assert!(cache.info(digits).is_err(), "{digits}");
    }
    let error = Directory::open(&place.path().join("xz"), &StoreDir::new("/gnu/store").unwrap()).unwrap_err();
    assert!(error.to_string().contains("is for the store ‘/nix/store’, not for ‘/gnu/store’"), "{error}");
    let error = Directory::open(&place.path().join("tree"), &store).unwrap_err().to_string();
    assert!(error.contains("nix-cache-info"), "{error}");
}

#[test]
fn an_archive_that_is_not_what_was_promised_leaves_no_trace() {
    let place = tempfile::tempdir().unwrap();
    let store = StoreDir::default();
    let info = sample(place.path());
    let tree = place.path().join("tree");
    let cache = Directory::create(&place.path().join("cache"), &store).unwrap();
    let (parent, name) = tree::place(&tree).unwrap();
    let write = |sink: &mut dyn io::Write| nar::dump(parent.as_fd(), &name, sink).map(drop);
    let wrong = PathInfo { nar_hash: Hash::sha256(b""), ..info.clone() };
    let error = cache.push(&wrong, write, Compression::None, &[]).unwrap_err();
    assert!(matches!(error, CacheError::Mismatch { .. }), "{error}");
    let error = cache.push(&info, write, Compression::Bzip2, &[]).unwrap_err().to_string();
    assert!(error.contains("not compressed with bzip2 here"), "{error}");
    assert_eq!(fs::read_dir(place.path().join("cache/nar")).unwrap().count(), 0);
    assert_eq!(cache.info(info.path.hash_part()).unwrap(), None);
}

#[test]
fn what_was_tampered_with_is_refused_and_not_kept() {
    let place = tempfile::tempdir().unwrap();
    let store = StoreDir::default();
    let info = sample(place.path());
    let back = place.path().join("back");
    let (parent, name) = tree::place(&back).unwrap();
    let part = info.path.hash_part();
    for compression in [Compression::None, Compression::Xz, Compression::Zstd] {
        let top = place.path().join(compression.name());
        let cache = Directory::create(&top, &store).unwrap();
        let good = push(&cache, &info, &place.path().join("tree"), compression, &[]);
        let archive = top.join(&good.url);
        let bytes = fs::read(&archive).unwrap();
        let refused = |what: &str, words: &[&str]| {
            let error = cache.restore(part, parent.as_fd(), &name).unwrap_err().to_string();
            assert!(words.iter().any(|word| error.contains(word)), "{compression}, {what}: {error}");
            assert!(!back.exists(), "{compression}, {what}: something is left");
        };
        let mut flipped = bytes.clone();
        let middle = bytes.len() / 2;
        flipped[middle] ^= 1;
        fs::write(&archive, &flipped).unwrap();
        refused("a bit", &["hash", "cannot read", "archive"]);
        fs::write(&archive, &bytes[..bytes.len() - 1]).unwrap();
        refused("cut", &["cannot read", "cut off", "bytes"]);
        fs::write(&archive, [bytes.as_slice(), b"more"].concat()).unwrap();
        refused("more", &["bytes", "cannot read"]);
        fs::write(&archive, &bytes).unwrap();
        let narinfo = top.join(format!("{part}.narinfo"));
        let say = |changed: NarInfo| fs::write(&narinfo, changed.to_text(&store)).unwrap();
        say(NarInfo { nar_size: good.nar_size - 8, ..good.clone() });
        refused("less said", &["has more than"]);
        say(NarInfo { nar_size: good.nar_size + 8, ..good.clone() });
        refused("more said", &["should have"]);
        say(NarInfo { nar_hash: Hash::sha256(b""), ..good.clone() });
        refused("another hash", &["its hash should be sha256-"]);
        say(NarInfo { file_hash: Some(Hash::sha256(b"")), ..good.clone() });
        refused("another file hash", &["the hash of its compressed file should be"]);
        say(NarInfo { url: "../tree/text".to_owned(), ..good.clone() });
        refused("a way out", &["cannot open the archive"]);
        say(NarInfo { url: "/etc/passwd".to_owned(), ..good.clone() });
        refused("an absolute way", &["cannot open the archive"]);
        say(NarInfo { path: path("6", "x"), ..good.clone() });
        refused("another path", &["it describes another path"]);
        fs::write(&narinfo, vec![b'a'; 5 << 20]).unwrap();
        refused("an endless narinfo", &["it is too long"]);
        say(good);
        cache.restore(part, parent.as_fd(), &name).unwrap();
        gone(&back);
    }
}

#[test]
fn a_bomb_is_not_unpacked_further_than_promised() {
    let place = tempfile::tempdir().unwrap();
    let store = StoreDir::default();
    let info = sample(place.path());
    let cache = Directory::create(&place.path().join("cache"), &store).unwrap();
    let good = push(&cache, &info, &place.path().join("tree"), Compression::Zstd, &[]);
    let mut bomb = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    bomb.write_all(&vec![0; 64 << 20]).unwrap();
    let mut nar = nar::Reader::new(io::empty());
    assert!(nar.next().is_err());
    let mut fetched =
        FetchedNar::new(NarInfo { file_hash: None, file_size: None, ..good }, io::Cursor::new(bomb.finish().unwrap()))
            .unwrap();
    let mut sink = Vec::new();
    let error = io::Read::read_to_end(&mut fetched, &mut sink).unwrap_err().to_string();
    assert!(error.contains("has more than"), "{error}");
    assert!(sink.len() as u64 <= info.nar_size);
}

#[test]
fn keys_and_signatures_that_are_none_say_why() {
    let key = SecretKey::generate("k-1").unwrap();
    let text = key.to_secret_text();
    assert_eq!(text.parse::<SecretKey>().unwrap().public(), key.public());
    assert_eq!(key.public().to_string().parse::<PublicKey>().unwrap(), key.public());
    assert!(!format!("{key:?}").contains(&text[4..]), "a secret is shown");
    let signature = key.sign(b"a");
    assert!(key.public().verifies(b"a", &signature) && !key.public().verifies(b"b", &signature));
    let renamed = signature.to_string().replacen("k-1", "k-2", 1).parse().unwrap();
    assert!(!key.public().verifies(b"a", &renamed), "the name of a key counts");
    let other = SecretKey::generate("k-1").unwrap().to_secret_text();
    let halves = format!("{}{}", &text[..40], &other[40..]);
    for (text, words) in [
        ("abc", "no colon"),
        (":abc", "is empty"),
        ("a b:abc", "has a space"),
        ("k:abc", "‘k’ is not valid: what follows its colon has not the length"),
        (&*format!("k:{}", "!".repeat(88)), "is not base 64"),
        (&*halves, "second half"),
    ] {
        let error = text.parse::<SecretKey>().unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert!(!error.contains(&halves[4..]));
    }
    assert!(SecretKey::generate("with space").is_err());
}

#[test]
fn a_narinfo_that_is_none_says_why() {
    let store = StoreDir::default();
    let place = tempfile::tempdir().unwrap();
    let cache = Directory::create(&place.path().join("cache"), &store).unwrap();
    let good = push(&cache, &sample(place.path()), &place.path().join("tree"), Compression::None, &[]);
    let text = good.to_text(&store);
    assert_eq!(NarInfo::parse(&text, &store).unwrap(), good);
    assert_eq!(NarInfo::parse(&format!("{text}Future: yes\n"), &store).unwrap(), good);
    let without = |key: &str| text.lines().filter(|line| !line.starts_with(key)).collect::<Vec<_>>().join("\n");
    let old = NarInfo::parse(&without("Compression"), &store).unwrap();
    assert_eq!(old.compression, Compression::Bzip2);
    for (text, words) in [
        (without("StorePath"), "it has no field StorePath"),
        (without("URL"), "no field URL"),
        (without("NarHash"), "no field NarHash"),
        (without("NarSize"), "no field NarSize"),
        (format!("{text}NarSize: 5\n"), "the field NarSize occurs twice"),
        (format!("{text}nonsense\n"), "the line ‘nonsense’ has no colon"),
        (text.replace('\n', "\r\n"), "it has control characters"),
        (format!("{text}CA: fixed\u{1b}[31m\n"), "it has control characters"),
        (text.replace("URL: nar/", "URL: \nOther: "), "its URL is empty"),
        (format!("{text}Sig: x\n"), "the signature is not valid: it has no colon"),
        (text.replace("NarSize: ", "NarSize: -"), "no number of bytes"),
        (text.replace("NarSize: ", "NarSize: 99999999999999999"), "no number of bytes"),
        (text.replace("NarHash: sha256:", "NarHash: md5:"), "NarHash"),
        (text.replace("/nix/store/2", "/etc/2"), "not in the store"),
        (text.replace("References: ", "References: ../"), "its field References"),
        (text.replace("Compression: none", "Compression: arc"), "none, xz, zstd and bzip2 are known"),
    ] {
        let error = NarInfo::parse(&text, &store).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

/// A store root of real Nix with two text files, one of which mentions the other.
fn nix_store(root: &str) -> Option<Vec<StorePath>> {
    let expression = "let a = builtins.toFile \"a\" \"hello\"; in builtins.toFile \"b\" \"see ${a}\"";
    let arguments = ["eval", "--impure", "--raw", "--store", root, "--expr", expression];
    let second = StoreDir::default().parse(&said(&nix("nix", &arguments, "")?)).unwrap();
    let full = StoreDir::default().display(&second);
    let all = said(&nix("nix-store", &["--store", root, "--query", "--requisites", &full], "")?);
    let all: Vec<_> = all.lines().map(|line| StoreDir::default().parse(line).unwrap()).collect();
    assert_eq!(all.len(), 2);
    Some(all)
}

#[test]
fn caches_of_nix_are_read() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let Some(paths) = nix_store(&at("root")) else { return };
    let store = StoreDir::default();
    let secret = said(&nix("nix", &["key", "generate-secret", "--key-name", "nix-1"], "").unwrap());
    fs::write(at("secret"), &secret).unwrap();
    let key = secret.parse::<SecretKey>().unwrap().public();
    for compression in Compression::ALL {
        let url = format!("file://{}?compression={compression}&secret-key={}", at(compression.name()), at("secret"));
        said(&nix("nix", &["copy", "--store", &at("root"), "--to", &url, "--all"], "").unwrap());
        let cache = Directory::open(Path::new(&at(compression.name())), &store).unwrap();
        for path in &paths {
            let info = cache.info(path.hash_part()).unwrap().unwrap();
            assert_eq!((&info.path, info.compression), (path, compression));
            assert_eq!(info.signed_by(std::slice::from_ref(&key), &store), Some(&key));
            let stranger = SecretKey::generate("nix-1").unwrap().public();
            assert_eq!(info.signed_by(&[stranger], &store), None);
            let original = format!("{}/nix/store/{path}", at("root"));
            assert_eq!(hash_of(Path::new(&original)), info.nar_hash);
            let (parent, name) = tree::place(Path::new(&at("back"))).unwrap();
            cache.restore(path.hash_part(), parent.as_fd(), &name).unwrap();
            assert_eq!(hash_of(Path::new(&at("back"))), info.nar_hash);
            gone(Path::new(&at("back")));
            let text = fs::read_to_string(format!("{}/{}.narinfo", at(compression.name()), path.hash_part())).unwrap();
            assert_eq!(info.to_text(&store), text, "what is read is written again as Nix wrote it");
        }
    }
    gone(Path::new(&at("root")));
}

#[test]
fn our_caches_are_read_by_nix() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let store = StoreDir::default();
    let mut info = sample(place.path());
    // Without a reference to something that is not in the cache.
    info.references = BTreeSet::from([info.path.clone()]);
    let key = SecretKey::generate("ours-1").unwrap();
    let full = store.display(&info.path);
    for compression in [Compression::None, Compression::Xz, Compression::Zstd] {
        let cache = Directory::create(Path::new(&at(compression.name())), &store).unwrap();
        push(&cache, &info, &place.path().join("tree"), compression, std::slice::from_ref(&key));
        let url = format!("file://{}", at(compression.name()));
        let Some(output) = nix("nix", &["path-info", "--store", &url, "--json", &full], "") else { return };
        let json: serde_json::Value = serde_json::from_str(&said(&output)).unwrap();
        assert_eq!(json[0]["path"], full.as_str());
        assert_eq!(json[0]["narSize"], info.nar_size);
        assert_eq!(json[0]["references"][0], full.as_str());
        let root = at(&format!("root-{compression}"));
        let copy = ["copy", "--from", &url, "--to", &root, &full];
        let strict = "require-sigs = true\n";
        let output = nix("nix", &copy, strict).unwrap();
        assert!(!output.status.success(), "an unknown key was trusted");
        said(&nix("nix", &copy, &format!("{strict}trusted-public-keys = {}\n", key.public())).unwrap());
        assert_eq!(hash_of(Path::new(&format!("{root}{full}"))), info.nar_hash);
        said(&nix("nix-store", &["--store", &root, "--verify", "--check-contents"], "").unwrap());
        gone(Path::new(&root));
    }
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(
        text in "(StorePath|URL|NarHash|NarSize|References|Sig|CA|FileHash|.{0,9}): ?.{0,60}(\n.{0,40}){0,4}"
    ) {
        let _ = NarInfo::parse(&text, &StoreDir::default());
        let _ = text.parse::<Signature>();
        let _ = text.parse::<PublicKey>();
        let _ = text.parse::<SecretKey>();
    }
}

#[test]
fn what_a_killed_copy_left_is_swept_and_what_is_written_is_not() {
    let place = tempfile::tempdir().unwrap();
    let cache = Directory::create(place.path(), &StoreDir::default()).unwrap();
    drop(cache);
    let left = |name: &str, age: u64| {
        let path = place.path().join(name);
        let file = fs::File::create(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        (path, file)
    };
    let old = [left(".tmp-a", 3600).0, left("nar/.tmp-b", 3600).0];
    let (fresh, _) = left("nar/.tmp-c", 1);
    let (held, file) = left("nar/.tmp-d", 3600);
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockShared).unwrap();
    let (archive, _) = left("nar/e.nar", 3600);
    Directory::create(place.path(), &StoreDir::default()).unwrap();
    assert!(old.iter().all(|path| !path.exists()));
    assert!([fresh, held, archive].iter().all(|path| path.exists()));
}
