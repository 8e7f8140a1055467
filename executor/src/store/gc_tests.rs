//! The collector: what lives, what goes, and who may still change that.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::symlink;

use rustix::fs::FlockOperation;

use super::tests::{nix, nix_lines, open, path, put_file, register, temp};
use super::*;

/// Without what runs on the machine that the test runs on.
const POLICY: GcPolicy = GcPolicy { keep_derivations: true, keep_outputs: false, runtime_roots: false };

/// Registers `n-x` for each number, which refers to the next in the row.
fn chain(store: &Store, numbers: &[usize]) {
    let infos = numbers.iter().enumerate().map(|(position, number)| {
        let mut info = put_file(store, &path(*number, "x"), &number.to_string());
        info.references.extend(numbers.get(position + 1).map(|next| path(*next, "x")));
        info
    });
    let infos: Vec<_> = infos.collect();
    register(store, infos);
}

fn set(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<StorePath> {
    numbers.into_iter().map(|number| path(number, "x")).collect()
}

#[test]
fn each_kind_of_root_keeps_what_it_names_and_all_below() {
    let root = temp();
    let store = open(root.path());
    let state = root.path().join("nix/var/nix");
    for kind in 0..8 {
        chain(&store, &[kind * 2 + 10, kind * 2 + 11]);
    }
    let text = |number| store.dir().display(&path(number, "x"));
    symlink(text(10), state.join("gcroots/link")).unwrap();
    fs::create_dir(state.join("gcroots/deep")).unwrap();
    fs::write(state.join("gcroots/deep").join(path(12, "x").as_str()), "").unwrap();
    fs::write(state.join("gcroots/deep/no-path"), "").unwrap();
    store.add_indirect_root(&path(14, "x"), &root.path().join("result")).unwrap();
    symlink(text(16), state.join("profiles/default-1-link")).unwrap();
    symlink("default-1-link", state.join("profiles/default")).unwrap();
    let other = open(root.path());
    other.add_temp_root(&path(18, "x")).unwrap();
    let lock = store.lock_paths([&path(20, "x")], &mut |_| {}).unwrap();
    symlink(root.path().join("removed"), state.join("gcroots/auto/stale")).unwrap();
    drop(store);
    let store = open(root.path());

    let (live, dead) = store.live_and_dead(POLICY).unwrap();
    assert_eq!((live.clone(), dead.clone()), (set(10..22), set(22..26)));
    if let Some(theirs) = nix_lines(root.path(), "nix-store", &["--gc", "--print-dead"]) {
        // Nix takes no path for alive because it is locked.
        let lines: BTreeSet<_> = theirs.iter().filter_map(|line| store.dir().parse(line).ok()).collect();
        assert_eq!(
            lines.into_iter().filter(|path| store.is_valid(path).unwrap()).collect::<BTreeSet<_>>(),
            set(20..26)
        );
    }
    let roots = store.find_roots(false).unwrap();
    assert!(roots.paths[&path(14, "x")].contains(&root.path().join("result").display().to_string()));

    let report = store.collect_garbage(POLICY, None, &mut |_| {}).unwrap();
    assert_eq!(report.deleted.iter().cloned().collect::<BTreeSet<_>>(), dead);
    assert!(report.bytes_freed > 0, "{report:?}");
    assert_eq!(report.warnings, [""; 0]);
    assert_eq!(store.all_valid_paths().unwrap(), live);
    for number in 10..26 {
        assert_eq!(store.real_path(&path(number, "x")).exists(), number < 22, "{number}");
    }
    assert!(!state.join("gcroots/auto/stale").is_symlink());

    // What kept them ends, one after the other.
    drop((other, lock));
    fs::remove_file(root.path().join("result")).unwrap();
    fs::remove_file(state.join("gcroots/deep").join(path(12, "x").as_str())).unwrap();
    store.collect_garbage(POLICY, None, &mut |_| {}).unwrap();
    assert_eq!(store.all_valid_paths().unwrap(), set([10, 11, 16, 17]));
    nix_lines(root.path(), "nix-store", &["--verify", "--check-contents"]);
}

#[test]
fn derivations_and_outputs_are_kept_as_asked() {
    let root = temp();
    let store = open(root.path());
    let (drv, out) = (path(1, "a.drv"), path(2, "a"));
    let mut info = put_file(&store, &out, "out");
    info.deriver = Some(drv.clone());
    let outputs = [("out".to_owned(), out.clone())].into();
    store.register(&[info.into(), Registration { info: put_file(&store, &drv, "drv"), outputs }]).unwrap();
    let roots = root.path().join("nix/var/nix/gcroots");
    let dead = |keep_derivations, keep_outputs| {
        store.live_and_dead(GcPolicy { keep_derivations, keep_outputs, runtime_roots: false }).unwrap().1
    };
    symlink(store.dir().display(&out), roots.join("root")).unwrap();
    assert_eq!(dead(true, false), [].into());
    assert_eq!(dead(false, false), [drv.clone()].into());
    fs::remove_file(roots.join("root")).unwrap();
    symlink(store.dir().display(&drv), roots.join("root")).unwrap();
    assert_eq!(dead(true, false), [out.clone()].into());
    assert_eq!(dead(true, true), [].into());
}

#[test]
fn what_was_left_behind_goes_and_work_in_progress_stays() {
    let root = temp();
    let store = open(root.path());
    chain(&store, &[1]);
    let real = store.real_dir();
    let busy = real.join("tmp-busy");
    for name in ["tmp-busy", ".tmp-left", "trash"] {
        fs::create_dir(real.join(name)).unwrap();
        fs::write(real.join(name).join("file"), "").unwrap();
    }
    let holder = File::open(&busy).unwrap();
    rustix::fs::flock(&holder, FlockOperation::LockExclusive).unwrap();
    fs::write(store.real_path(&path(2, "unregistered")), "").unwrap();
    fs::write(store.real_path(&path(3, "stale.lock")), "").unwrap();
    fs::write(store.real_path(&path(4, "asked-for.chroot")), "").unwrap();
    store.add_temp_root(&path(4, "asked-for")).unwrap();
    let lock = store.lock_paths([&path(5, "in-the-making")], &mut |_| {}).unwrap();
    fs::write(store.real_path(&path(5, "in-the-making")), "").unwrap();
    fs::write(real.join(".links/unused"), "").unwrap();
    fs::write(real.join(".links/used"), "").unwrap();
    fs::hard_link(real.join(".links/used"), busy.join("linked")).unwrap();
    fs::write(root.path().join("nix/var/nix/gcroots").join(path(1, "x").as_str()), "").unwrap();

    let report = store.collect_garbage(POLICY, None, &mut |_| {}).unwrap();
    let names: BTreeSet<_> =
        fs::read_dir(&real).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let kept = [
        ".links".to_owned(),
        "tmp-busy".to_owned(),
        path(1, "x").to_string(),
        path(4, "asked-for.chroot").to_string(),
        path(5, "in-the-making").to_string(),
        path(5, "in-the-making.lock").to_string(),
    ];
    assert_eq!(names, kept.into());
    assert_eq!(report.links, 1);
    assert_eq!(report.leftovers.len(), 4, "{report:?}");
    drop(lock);
}

#[test]
fn a_path_can_be_kept_while_the_collector_works() {
    let root = temp();
    let store = open(root.path());
    chain(&store, &[1]);
    chain(&store, &[2, 3, 4]);
    chain(&store, &[5]);
    let client = open(root.path());
    let mut deleted = Vec::new();
    let mut late = None;
    // One at a time: a path that is being removed at this moment could not be answered for before it is gone.
    let report = store
        .collect_garbage(POLICY, Some(u64::MAX), &mut |line| {
            if deleted.is_empty() {
                client.add_temp_root(&path(2, "x")).unwrap();
                client.add_temp_root(&path(5, "x")).unwrap();
                // One that is not there yet, and the one that is being removed: that answer waits until it is gone.
                client.add_temp_root(&path(9, "x")).unwrap();
                let third = open(root.path());
                late = Some(std::thread::spawn(move || {
                    third.add_temp_root(&path(1, "x")).unwrap();
                    third.is_valid(&path(1, "x")).unwrap()
                }));
                // A real Nix asks in the same way.
                fs::write(root.path().join("added"), "added").unwrap();
                let file = root.path().join("added");
                if let Some(output) = nix(root.path(), "nix-store", &["--add", file.to_str().unwrap()]) {
                    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                }
            }
            deleted.push(line.to_owned());
        })
        .unwrap();
    assert_eq!(report.deleted, [path(1, "x")]);
    assert!(set(2..5).is_subset(&store.all_valid_paths().unwrap()));
    assert!(!root.path().join("nix/var/nix/gc-socket/socket").exists());
    // After the collector the lock is what counts again.
    client.add_temp_root(&path(7, "x")).unwrap();
}

#[test]
fn only_what_is_dead_can_be_deleted_by_name() {
    let root = temp();
    let store = open(root.path());
    chain(&store, &[1, 2]);
    chain(&store, &[3, 4]);
    fs::write(root.path().join("nix/var/nix/gcroots").join(path(1, "x").as_str()), "").unwrap();
    let delete = |numbers: &[usize]| store.delete_paths(&set(numbers.iter().copied()), POLICY, &mut |_| {});
    let alive = delete(&[2]).unwrap_err().to_string();
    assert!(alive.contains("is kept by") && alive.contains("gcroots"), "{alive}");
    let needed = delete(&[4]).unwrap_err();
    assert!(needed.to_string().contains(path(3, "x").as_str()), "{needed}");
    assert!(matches!(delete(&[8]), Err(StoreError::NotValid(_))));
    assert_eq!(delete(&[3, 4]).unwrap().deleted, [path(3, "x"), path(4, "x")]);
    assert_eq!(store.all_valid_paths().unwrap(), set([1, 2]));
}

#[test]
fn the_collector_stops_when_enough_is_free() {
    let root = temp();
    let store = open(root.path());
    for number in 0..5 {
        chain(&store, &[number]);
    }
    let report = store.collect_garbage(POLICY, Some(1), &mut |_| {}).unwrap();
    assert_eq!(report.deleted.len(), 1);
    assert_eq!(store.all_valid_paths().unwrap().len(), 4);
}

#[test]
fn what_a_process_uses_is_a_root() {
    let root = temp();
    let store = open(root.path());
    chain(&store, &[1]);
    chain(&store, &[2]);
    chain(&store, &[3]);
    let _open = File::open(store.real_path(&path(1, "x"))).unwrap();
    let mut child = std::process::Command::new("cat")
        .env("SOMETHING", format!("a:{}/bin:b", store.dir().display(&path(2, "x"))))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It answers, so it is started and has its environment.
    use std::io::{Read, Write};
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let roots = store.find_roots(true).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(roots.paths.keys().cloned().collect::<BTreeSet<_>>(), set([1, 2]));
}
