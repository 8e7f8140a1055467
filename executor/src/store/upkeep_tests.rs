//! Verifying and optimising.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::tests::{nix_lines, open, path, put_file, register, temp};
use super::*;
use crate::hash::Algorithm;

fn quiet(_: &str) {}

#[test]
fn verify_finds_what_is_missing_or_changed_and_repairs_what_it_can() {
    let root = temp();
    let store = open(root.path());
    let with = |mut info: PathInfo, reference: usize| {
        info.references.insert(path(reference, "x"));
        info
    };
    // 1 needs 2; 3 needs 4; 5 is alone; 6 stays whole.
    let infos = [1, 2, 3, 4, 5, 6].map(|number| put_file(&store, &path(number, "x"), &number.to_string()));
    let [one, two, three, four, five, six] = infos;
    register(&store, [with(one, 2), two, with(three, 4), four, five.clone(), six]);
    assert_eq!(store.verify(true, false, &mut quiet).unwrap(), VerifyReport { checked: 6, ..VerifyReport::default() });

    for gone in [1, 2, 4] {
        fs::remove_file(store.real_path(&path(gone, "x"))).unwrap();
    }
    fs::remove_file(store.real_path(&path(5, "x"))).unwrap();
    fs::write(store.real_path(&path(5, "x")), "changed").unwrap();
    fs::write(store.real_dir().join(".links/0000000000000000000000000000000000000000000000000000"), "bad").unwrap();

    let set = |numbers: &[usize]| numbers.iter().map(|number| path(*number, "x")).collect::<BTreeSet<_>>();
    let names_only = store.verify(false, false, &mut quiet).unwrap();
    assert_eq!((names_only.missing, names_only.changed.len(), names_only.left), (set(&[1, 2, 4]), 0, 3));
    let found = store.verify(true, false, &mut quiet).unwrap();
    assert_eq!((found.missing, found.bad_links.len(), found.left), (set(&[1, 2, 4]), 1, 5));
    assert_eq!((&found.changed[0].0, found.changed[0].1), (&five.path, five.nar_hash));

    let repaired = store.verify(true, true, &mut quiet).unwrap();
    assert_eq!(repaired.missing, set(&[4]), "3 needs it");
    assert_eq!((repaired.repaired.len(), repaired.left), (3, 2));
    assert_eq!(store.all_valid_paths().unwrap(), set(&[3, 4, 5, 6]));
    assert_eq!(store.verify(true, false, &mut quiet).unwrap().bad_links.len(), 0);
}

/// Two trees with equal files, with and without the x bit.
fn twins(store: &Store, source: &std::path::Path) -> [PathInfo; 2] {
    ["first", "second"].map(|name| {
        let tree = source.join(name);
        fs::create_dir_all(tree.join("deep/er")).unwrap();
        fs::write(tree.join("deep/er/data"), vec![1; 10_000]).unwrap();
        fs::write(tree.join("data"), vec![1; 10_000]).unwrap();
        fs::write(tree.join("run"), vec![1; 10_000]).unwrap();
        fs::set_permissions(tree.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(tree.join("own"), name).unwrap();
        fs::write(tree.join("empty"), "").unwrap();
        std::os::unix::fs::symlink("data", tree.join("link")).unwrap();
        store.add(name, &tree, Naming::Recursive(Algorithm::Sha256), &mut quiet).unwrap()
    })
}

#[test]
fn optimising_makes_equal_files_one_and_changes_nothing_else() {
    let root = temp();
    let source = temp();
    let store = open(root.path());
    let [first, second] = twins(&store, source.path());
    let report = store.optimise(&mut quiet).unwrap();
    // Of four equal files three go, of two that can be executed one.
    assert_eq!((report.linked, report.already, report.full), (4, 0, 0), "{report:?}");
    assert!(report.bytes_saved >= 40_000, "{report:?}");
    assert_eq!(report.warnings, [""; 0]);
    let file = |info: &PathInfo, name: &str| store.real_path(&info.path).join(name);
    let inode = |info: &PathInfo, name: &str| fs::metadata(file(info, name)).unwrap().ino();
    assert_eq!(inode(&first, "data"), inode(&second, "deep/er/data"));
    assert_eq!(inode(&first, "run"), inode(&second, "run"));
    assert_ne!(inode(&first, "run"), inode(&first, "data"));
    for info in [&first, &second] {
        for name in ["", "deep", "deep/er", "data", "run"] {
            let meta = fs::symlink_metadata(file(info, name)).unwrap();
            let mode = if ["data"].contains(&name) { 0o444 } else { 0o555 };
            assert_eq!((meta.mode() & 0o7777, meta.mtime()), (mode, 1), "{name}");
        }
    }
    let again = store.optimise(&mut quiet).unwrap();
    assert_eq!((again.linked, again.already, again.bytes_saved), (0, 8, 0), "{again:?}");
    assert_eq!(store.verify(true, false, &mut quiet).unwrap().left, 0);
    nix_lines(root.path(), "nix-store", &["--verify", "--check-contents"]);
    // Nix goes on where we stopped, and finds nothing to do but links.
    nix_lines(root.path(), "nix-store", &["--optimise"]);
    assert_eq!(inode(&first, "data"), inode(&second, "deep/er/data"));

    // The space comes back when the last path with a file goes.
    let policy = GcPolicy { runtime_roots: false, ..GcPolicy::default() };
    drop(store);
    let store = open(root.path());
    let report = store.collect_garbage(policy, None, &mut quiet).unwrap();
    assert_eq!(report.deleted.len(), 2);
    assert_eq!(fs::read_dir(store.real_dir().join(".links")).unwrap().count(), 0, "{report:?}");
}

#[test]
fn what_an_optimiser_that_was_killed_left_is_set_right() {
    let root = temp();
    let source = temp();
    let store = open(root.path());
    let [first, second] = twins(&store, source.path());
    let deep = store.real_path(&first.path).join("deep");
    fs::set_permissions(&deep, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(deep.join("../../.tmp-link-1-1"), "").unwrap();
    // A file of the right name with another size is no file to link to.
    let mut hasher = crate::hash::Hasher::new(Algorithm::Sha256);
    let (parent, name) = crate::tree::place(&store.real_path(&first.path).join("data")).unwrap();
    crate::nar::dump(std::os::fd::AsFd::as_fd(&parent), &name, &mut hasher).unwrap();
    let link = store.real_dir().join(".links").join(hasher.finish().base32());
    fs::write(&link, "damaged").unwrap();

    let report = store.optimise(&mut quiet).unwrap();
    assert_eq!((report.linked, report.warnings.len()), (4, 1), "{report:?}");
    assert_eq!(fs::metadata(&link).unwrap().len(), 10_000);
    assert_eq!(fs::metadata(&deep).unwrap().mode() & 0o777, 0o555);
    assert_eq!(fs::metadata(&deep).unwrap().mtime(), 1);
    for info in [&first, &second] {
        store.add_indirect_root(&info.path, &root.path().join(info.path.name())).unwrap();
    }
    let policy = GcPolicy { runtime_roots: false, ..GcPolicy::default() };
    let report = store.collect_garbage(policy, None, &mut quiet).unwrap();
    assert_eq!(report.leftovers, [".tmp-link-1-1"]);
    assert_eq!(store.verify(true, false, &mut quiet).unwrap().left, 0);
}
