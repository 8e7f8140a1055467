//! What is added gets the name that Nix gives it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::tests::{nix_lines, open, path, temp};
use super::*;
use crate::hash::Algorithm;

fn quiet(_: &str) {}

#[test]
fn added_paths_are_those_of_nix() {
    let (ours, theirs) = (temp(), temp());
    let store = open(ours.path());
    let tree = theirs.path().join("tree");
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("sub/run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("sub/run"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(tree.join("a file with spaces"), vec![7; 300_000]).unwrap();
    symlink("/nowhere", tree.join("link")).unwrap();
    let file = tree.join("sub/run");
    // Nix 2.8 keeps the x bit of a flat file, which its hash says nothing of; later ones drop it as here.
    let flat = theirs.path().join("flat");
    fs::write(&flat, "flat").unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (arguments, name, source, naming) in [
        (vec!["--add".to_owned(), text(&tree)], "tree", &tree, Naming::Recursive(Algorithm::Sha256)),
        (vec!["--add".to_owned(), text(&file)], "run", &file, Naming::Recursive(Algorithm::Sha256)),
        (
            vec!["--add-fixed".to_owned(), "sha256".to_owned(), text(&flat)],
            "flat",
            &flat,
            Naming::Flat(Algorithm::Sha256),
        ),
        (vec!["--add-fixed".to_owned(), "md5".to_owned(), text(&flat)], "flat", &flat, Naming::Flat(Algorithm::Md5)),
        (
            vec!["--add-fixed".to_owned(), "--recursive".to_owned(), "sha512".to_owned(), text(&tree)],
            "tree",
            &tree,
            Naming::Recursive(Algorithm::Sha512),
        ),
    ] {
        let info = store.add(name, source, naming, &mut quiet).unwrap();
        assert_eq!(store.add(name, source, naming, &mut quiet).unwrap(), info, "twice is the same");
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let Some(expected) = nix_lines(theirs.path(), "nix-store", &arguments) else { return };
        assert_eq!(expected, [store.dir().display(&info.path)].into(), "{naming:?}");
        let their_store = Store::open(theirs.path(), Access::ReadOnly).unwrap();
        let mut their_info = their_store.path_info(&info.path).unwrap();
        their_info.registration_time = info.registration_time;
        // What Nix adds itself it also trusts.
        their_info.ultimate = info.ultimate;
        assert_eq!(their_info, info);
    }
    nix_lines(ours.path(), "nix-store", &["--verify", "--check-contents"]);
    let names: Vec<_> = fs::read_dir(store.real_dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_str().unwrap().starts_with("tmp-")), "{names:?}");
}

#[test]
fn texts_have_references_and_outputs() {
    let root = temp();
    let store = open(root.path());
    let base = store.add_text("base", b"base", [], [], &mut quiet).unwrap();
    let out = path(1, "x");
    let drv = store.add_text("x.drv", b"drv", [&base.path], [("out".to_owned(), out.clone())], &mut quiet).unwrap();
    assert_eq!(drv.references, [base.path.clone()].into());
    assert_eq!(store.valid_derivers(&out).unwrap(), [drv.path.clone()].into());
    assert_eq!(drv.content_address, Some(format!("text:{}", crate::hash::Hash::sha256(b"drv"))));
    let missing = store.add_text("y", b"y", [&out], [], &mut quiet).unwrap_err();
    assert!(matches!(missing, StoreError::MissingReference { .. }), "{missing}");
    nix_lines(root.path(), "nix-store", &["--verify", "--check-contents"]);
}

#[test]
fn what_cannot_be_added_says_why() {
    let root = temp();
    let store = open(root.path());
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    let recursive = Naming::Recursive(Algorithm::Sha256);
    let add = |name: &str, source: &Path, naming| store.add(name, source, naming, &mut quiet).unwrap_err().to_string();
    assert!(add("a b", &file, recursive).contains("only letters"));
    assert!(add("..", &file, recursive).contains("mistaken"));
    let nothing = add("a", &root.path().join("nothing"), recursive);
    assert!(nothing.contains("No such file"), "{nothing}");
    let directory = add("a", root.path(), Naming::Flat(Algorithm::Sha256));
    assert!(directory.contains("directory"), "{directory}");
    let socket = root.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let odd = add("a", &socket, recursive);
    assert!(odd.contains("socket"), "{odd}");
    assert!(store.all_valid_paths().unwrap().is_empty());
}
