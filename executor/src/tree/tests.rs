use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, FileType, IFlags, Mode, XattrFlags, chown, ioctl_setflags, listxattr, lsetxattr, mknodat, setxattr,
};
use rustix::process::{geteuid, getuid};

use super::*;
use crate::nar::tests::make_deep;

fn policy() -> Policy {
    let uid = getuid().as_raw();
    Policy { owners: uid..=uid, store_owner: None, outside_links: OutsideLinks::Refuse }
}

fn settle_with(path: &Path, policy: &Policy) -> Result<(), TreeError> {
    let (parent, name) = place(path).unwrap();
    canonicalise(parent.as_fd(), &name, policy)
}

fn settle(path: &Path) -> Result<(), TreeError> {
    settle_with(path, &policy())
}

fn gone(path: &Path) {
    let (parent, name) = place(path).unwrap();
    remove(parent.as_fd(), &name).unwrap();
    assert!(fs::symlink_metadata(path).is_err());
}

/// A directory for outputs, emptied by our own remove, because others fail at directories without permissions.
struct Outputs(tempfile::TempDir);

impl Outputs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        if let (Ok((parent, _)), Ok(listed)) = (place(&self.path("x")), fs::read_dir(self.0.path())) {
            for entry in listed.flatten() {
                let _ = remove(parent.as_fd(), &entry.file_name());
            }
        }
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn form(path: &Path) -> (u32, i64, i64) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.mode() & 0o7777, metadata.mtime(), metadata.mtime_nsec())
}

#[test]
fn whatever_its_modes_a_good_tree_gets_the_form_of_a_store() {
    let outputs = Outputs::new();
    let top = outputs.directory("out");
    for (name, mode) in [("plain", 0o666), ("program", 0o755), ("setuid", 0o6755), ("secret", 0), ("groupx", 0o610)] {
        fs::write(top.join(name), name).unwrap();
        chmod(&top.join(name), mode);
    }
    for (name, mode) in [("closed", 0), ("open", 0o1777), ("setgid", 0o2755)] {
        fs::create_dir(top.join(name)).unwrap();
        fs::write(top.join(name).join("file\nwith newline"), "").unwrap();
        chmod(&top.join(name), mode);
    }
    fs::write(top.join("x".repeat(255)), "").unwrap();
    symlink("/", top.join("root")).unwrap();
    symlink("nowhere", top.join("dangling")).unwrap();
    chmod(&top, 0o300);
    let root = form(Path::new("/"));
    settle(&top).unwrap();
    for (name, mode) in [
        ("", 0o555),
        ("plain", 0o444),
        ("program", 0o555),
        ("setuid", 0o555),
        ("secret", 0o444),
        ("groupx", 0o444),
        ("closed", 0o555),
        ("closed/file\nwith newline", 0o444),
        ("open", 0o555),
        ("setgid", 0o555),
        (&"x".repeat(255), 0o444),
        ("root", 0o777),
        ("dangling", 0o777),
    ] {
        assert_eq!(form(&top.join(name)), (mode, 1, 0), "{name}");
    }
    assert_eq!(form(Path::new("/")), root, "what a link leads to is untouched");
    settle(&top).unwrap();
}

#[test]
fn a_top_may_be_a_file_or_a_link_but_must_be_there() {
    let outputs = Outputs::new();
    let (file, link) = (outputs.path("file"), outputs.path("link"));
    fs::write(&file, "").unwrap();
    chmod(&file, 0);
    symlink("/", &link).unwrap();
    settle(&file).unwrap();
    settle(&link).unwrap();
    assert_eq!(form(&file), (0o444, 1, 0));
    assert_eq!(form(&link), (0o777, 1, 0));
    let error = settle(&outputs.path("missing")).unwrap_err().to_string();
    assert_eq!(error, "‘missing’ was not made by the builder");
    let (parent, _) = place(&file).unwrap();
    for name in ["..", ".", "", "file/..", "a/b"] {
        let error = canonicalise(parent.as_fd(), OsStr::new(name), &policy()).unwrap_err();
        assert!(matches!(error, TreeError::Name(_)), "{name}: {error}");
    }
}

#[test]
fn what_is_no_file_is_refused_in_its_own_words() {
    let outputs = Outputs::new();
    let top = outputs.directory("out");
    fs::create_dir(top.join("dir")).unwrap();
    let bad = top.join("dir/bad");
    let refused = |words: &str| {
        let error = settle(&top).unwrap_err().to_string();
        assert!(error.contains(words), "{words}\n{error}");
        fs::remove_file(&bad).unwrap();
    };
    mknodat(CWD, &bad, FileType::Fifo, Mode::RUSR, 0).unwrap();
    refused("‘out/dir/bad’ is a FIFO: only regular files, directories and symlinks can be kept");
    let socket = std::os::unix::net::UnixListener::bind(&bad).unwrap();
    refused("‘out/dir/bad’ is a socket");
    drop(socket);
    match mknodat(CWD, &bad, FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3)) {
        Ok(()) => refused("‘out/dir/bad’ is a character device"),
        Err(errno) => println!("SKIP: no device can be made here: {errno}"),
    }
}

#[test]
fn a_top_that_others_may_write_to_is_suspicious() {
    let outputs = Outputs::new();
    for (name, mode) in [("group", 0o775), ("world", 0o757)] {
        let top = outputs.directory(name);
        chmod(&top, mode);
        let error = settle(&top).unwrap_err().to_string();
        assert!(error.contains(&format!("suspicious ownership or permission on ‘{name}’")), "{error}");
        assert!(error.contains(&format!("{mode:04o}")), "{error}");
        assert_eq!(form(&top).0, mode, "untouched");
    }
}

#[test]
fn files_of_others_are_refused_and_files_of_the_builder_given_to_the_store() {
    let outputs = Outputs::new();
    let top = outputs.directory("out");
    fs::write(top.join("file"), "").unwrap();
    let nobody = Policy { owners: 65_000..=65_001, ..policy() };
    let error = settle_with(&top, &nobody).unwrap_err().to_string();
    assert!(error.contains("suspicious ownership or permission on ‘out’: it belongs to user"), "{error}");
    if !geteuid().is_root() {
        println!("SKIP: only root gives files away");
        return;
    }
    let builder = rustix::fs::Uid::from_raw(65_000);
    chown(&top, Some(builder), None).unwrap();
    let error = settle_with(&top, &nobody).unwrap_err().to_string();
    assert!(error.contains("‘out/file’: it belongs to user 0, not to the builder"), "{error}");
    assert_eq!(form(&top.join("file")).0, 0o644, "the file of another one is untouched");
    chown(top.join("file"), Some(builder), None).unwrap();
    fs::hard_link(top.join("file"), top.join("again")).unwrap();
    symlink("file", top.join("link")).unwrap();
    rustix::fs::chownat(CWD, top.join("link"), Some(builder), None, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    settle_with(&top, &Policy { store_owner: Some((0, 0)), ..nobody }).unwrap();
    for name in ["", "file", "again", "link"] {
        assert_eq!(fs::symlink_metadata(top.join(name)).unwrap().uid(), 0, "{name}");
    }
}

#[test]
fn hard_links_may_lead_to_other_outputs_but_not_outside() {
    let outputs = Outputs::new();
    let (out, dev) = (outputs.directory("out"), outputs.directory("dev"));
    let input = outputs.path("input");
    fs::write(out.join("a"), "").unwrap();
    for number in 0..50 {
        fs::hard_link(out.join("a"), out.join(number.to_string())).unwrap();
    }
    settle(&out).unwrap();
    assert_eq!(form(&out.join("49")), (0o444, 1, 0));
    chmod(&out, 0o755);
    fs::write(out.join("b"), "").unwrap();
    fs::hard_link(out.join("b"), dev.join("b")).unwrap();
    let (parent, _) = place(&input).unwrap();
    let both = [(parent.as_fd(), OsStr::new("out")), (parent.as_fd(), OsStr::new("dev"))];
    canonicalise_all(&both, &policy()).unwrap();
    assert_eq!(form(&dev.join("b")), (0o444, 1, 0));
    chmod(&out, 0o755);
    fs::write(&input, "precious").unwrap();
    chmod(&input, 0o600);
    fs::hard_link(&input, out.join("stolen")).unwrap();
    let before = fs::metadata(&input).unwrap();
    let error = canonicalise_all(&both, &policy()).unwrap_err().to_string();
    assert!(error.contains("‘out/stolen’ has hard links outside the outputs (1)"), "{error}");
    let after = fs::metadata(&input).unwrap();
    assert_eq!((before.ctime_nsec(), before.mode()), (after.ctime_nsec(), after.mode()), "the input is untouched");
    chmod(&out, 0o755);
    settle_with(&out, &Policy { outside_links: OutsideLinks::Keep, ..policy() }).unwrap();
    assert_eq!(form(&input), (0o444, 1, 0), "as in Nix, where the owner decides");
}

#[test]
fn extended_attributes_and_access_lists_are_stripped() {
    let outputs = Outputs::new();
    let top = outputs.directory("out");
    let file = top.join("file");
    fs::write(&file, "").unwrap();
    if let Err(errno) = setxattr(&file, "user.mark", b"x", XattrFlags::empty()) {
        println!("SKIP: this file system takes no attributes: {errno}");
        return;
    }
    // user:4242 may read and write, as setfacl -m u:4242:rw writes it.
    let list: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x06\0\x92\x10\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x06\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
    let listed = setxattr(&file, "system.posix_acl_access", list, XattrFlags::empty());
    setxattr(&top, "user.mark", b"x", XattrFlags::empty()).unwrap();
    chmod(&file, 0);
    chmod(&top, 0o500);
    if geteuid().is_root() {
        chmod(&top, 0o700);
        symlink("file", top.join("link")).unwrap();
        lsetxattr(top.join("link"), "trusted.mark", b"x", XattrFlags::empty()).unwrap();
    }
    if let Err(errno) = listed {
        println!("SKIP: this file system takes no access control lists: {errno}");
    }
    settle(&top).unwrap();
    for path in [&top, &file] {
        let mut names = [0; 1000];
        let len = listxattr(path, &mut names).unwrap();
        let left = String::from_utf8_lossy(&names[..len]).into_owned();
        let foreign = left.split_terminator('\0').filter(|name| !KEPT_ATTRIBUTES.contains(name)).count();
        assert_eq!(foreign, 0, "{left}");
    }
    if geteuid().is_root() {
        assert_eq!(rustix::fs::llistxattr(top.join("link"), &mut [0; 1000]), Ok(0));
    }
    assert_eq!((form(&top).0, form(&file)), (0o555, (0o444, 1, 0)));
}

#[test]
fn immutable_and_append_only_files_are_named_as_such() {
    let outputs = Outputs::new();
    let top = outputs.directory("out");
    let path = top.join("file");
    fs::write(&path, "").unwrap();
    let file = fs::File::open(&path).unwrap();
    for (flag, word) in [(IFlags::IMMUTABLE, "immutable"), (IFlags::APPEND, "append-only")] {
        if let Err(errno) = ioctl_setflags(&file, flag) {
            println!("SKIP: no file can be made {word} here: {errno}");
            continue;
        }
        let refused = settle(&top);
        let removed = remove(place(&top).unwrap().0.as_fd(), "out".as_ref());
        ioctl_setflags(&file, IFlags::empty()).unwrap();
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(&format!("‘out/file’ is {word}")), "{error}");
        let error = removed.unwrap_err().to_string();
        assert!(error.contains("cannot remove ‘out/file’") && error.contains("immutable"), "{error}");
    }
}

#[test]
fn trees_of_4096_levels_are_settled_copied_and_removed() {
    let outputs = Outputs::new();
    let top = outputs.path("deep");
    make_deep(&top, 4096);
    settle(&top).unwrap();
    let (parent, name) = place(&top).unwrap();
    copy(parent.as_fd(), &name, parent.as_fd(), "copy".as_ref()).unwrap();
    gone(&top);
    gone(&outputs.path("copy"));
}

#[test]
fn removal_opens_closed_directories_and_follows_no_link() {
    let outputs = Outputs::new();
    let canary = outputs.directory("canary");
    fs::write(canary.join("alive"), "").unwrap();
    let top = outputs.directory("out");
    fs::create_dir_all(top.join("a/b/c")).unwrap();
    symlink(&canary, top.join("a/b/link")).unwrap();
    symlink("/", top.join("a/root")).unwrap();
    fs::write(top.join("a/b/c/file"), "").unwrap();
    for path in ["a/b/c", "a/b", "a", ""] {
        chmod(&top.join(path), 0);
    }
    gone(&top);
    let link = outputs.path("link");
    symlink(&canary, &link).unwrap();
    gone(&link);
    assert!(canary.join("alive").exists());
    gone(&outputs.path("never there"));
}

#[test]
fn removal_survives_somebody_who_exchanges_directories_for_links() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let outputs = Outputs::new();
    let canary = outputs.directory("canary");
    fs::create_dir_all(canary.join("b/c/d")).unwrap();
    fs::write(canary.join("b/c/d/alive"), "").unwrap();
    let stop = AtomicBool::new(false);
    let (trap, top) = (outputs.path("trap"), outputs.path("out"));
    symlink(canary.join("b"), &trap).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let _ = rustix::fs::renameat_with(CWD, &trap, CWD, top.join("b"), flags);
            }
        });
        for _ in 0..200 {
            fs::create_dir_all(top.join("b/c/d")).ok();
            fs::write(top.join("b/c/d/file"), "").ok();
            let (parent, name) = place(&top).unwrap();
            // Whether it wins the race does not matter, only what else is touched.
            let _ = remove(parent.as_fd(), &name);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(canary.join("b/c/d/alive").exists());
}

#[test]
fn a_copy_keeps_contents_modes_times_and_holes() {
    let outputs = Outputs::new();
    let top = outputs.directory("out");
    fs::create_dir(top.join("dir")).unwrap();
    fs::write(top.join("dir/file"), vec![7; 300_000]).unwrap();
    let sparse = fs::File::create(top.join("sparse")).unwrap();
    sparse.write_at(b"end", 1 << 40).unwrap();
    symlink("dir/file", top.join("link")).unwrap();
    settle(&top).unwrap();
    let (parent, name) = place(&top).unwrap();
    copy(parent.as_fd(), &name, parent.as_fd(), "copy".as_ref()).unwrap();
    let copied = outputs.path("copy");
    for path in ["", "dir", "dir/file", "sparse", "link"] {
        assert_eq!(form(&copied.join(path)), form(&top.join(path)), "{path}");
    }
    assert_eq!(fs::read(copied.join("dir/file")).unwrap(), vec![7; 300_000]);
    assert_eq!(fs::read_link(copied.join("link")).unwrap(), Path::new("dir/file"));
    let metadata = fs::metadata(copied.join("sparse")).unwrap();
    assert_eq!(metadata.len(), (1 << 40) + 3);
    assert!(metadata.blocks() < 1000, "the hole was filled");
    let mut end = [0; 3];
    fs::File::open(copied.join("sparse")).unwrap().read_exact_at(&mut end, 1 << 40).unwrap();
    assert_eq!(&end, b"end");
    let error = copy(parent.as_fd(), &name, parent.as_fd(), "copy".as_ref()).unwrap_err().to_string();
    assert!(error.contains("File exists"), "{error}");
    assert!(copied.join("dir/file").exists(), "what was there before is untouched");
}

#[test]
fn a_move_replaces_nothing() {
    let outputs = Outputs::new();
    let (scratch, b) = (outputs.directory("scratch"), outputs.path("b"));
    fs::create_dir(scratch.join("a")).unwrap();
    fs::write(scratch.join("a/file"), "").unwrap();
    settle(&scratch.join("a")).unwrap();
    let (scratch, _) = place(&scratch.join("a")).unwrap();
    let (parent, _) = place(&b).unwrap();
    rename(scratch.as_fd(), "a".as_ref(), parent.as_fd(), "b".as_ref()).unwrap();
    assert_eq!((form(&b), form(&b.join("file"))), ((0o555, 1, 0), (0o444, 1, 0)));
    outputs.directory("c");
    let error = rename(parent.as_fd(), "c".as_ref(), parent.as_fd(), "b".as_ref()).unwrap_err().to_string();
    assert!(error.contains("cannot move a tree to ‘b’: File exists"), "{error}");
    symlink("nowhere", outputs.path("d")).unwrap();
    assert!(rename(parent.as_fd(), "c".as_ref(), parent.as_fd(), "d".as_ref()).is_err());
}
