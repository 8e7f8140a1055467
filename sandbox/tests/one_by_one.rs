//! A room made without mount_setattr(2), as on a kernel before Linux 5.12, is the room that is made with it.
//!
//! Not under the test runner: a room is entered from a process with one thread. Started as root it goes a second time, as a user.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anchorhold_sandbox::host::Wanted;
use anchorhold_sandbox::launcher::{Launcher, Options, Sink, Stream};
use anchorhold_sandbox::outcome::End;
use anchorhold_sandbox::room::Entry;
use anchorhold_sandbox::{Error, Host, Layer, Plan, Room};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Somebody without privileges, for the second time.
const USER: u32 = 30_123;

/// What a payload wrote.
#[derive(Default)]
struct Written(Vec<u8>);

impl Sink for Written {
    fn output(&mut self, _: Stream, bytes: &[u8]) -> io::Result<()> {
        self.0.extend(bytes);
        Ok(())
    }
}

/// A room in which a tree of the host stands twice, read-only at /src and writable at "/out put", with a shell.
fn room(tree: &Path, script: &str) -> Room {
    let bind = |inside: &str, writable| Entry::Bind {
        inside: inside.into(),
        outside: Some(tree.into()),
        writable,
        optional: false,
        noexec: false,
    };
    let mut mounts = vec![bind("/src", false), bind("/out put", true)];
    for path in ["/bin", "/lib", "/lib64", "/usr"] {
        mounts.push(Entry::bind(format!("{path}?").as_ref(), false));
    }
    let mut room = Room { mounts, ..Room::default() };
    room.process.program = "/bin/sh".into();
    room.process.arguments = ["-c", script].map(Into::into).into();
    room.process.environment.insert("PATH".into(), "/usr/bin:/bin".into());
    room
}

/// Runs it, with mount_setattr(2) or without. `None` where this host cannot make a room at all.
fn run(room: &Room, mount_setattr: bool) -> Option<Result<String, Error>> {
    let mut room = room.clone();
    let host = Host { mount_setattr, ..Host::probe(Wanted::default()) };
    if host.landlock == 0 {
        room.without.insert(Layer::Landlock);
    }
    let plan = match Plan::compile(&room, &host) {
        Ok(plan) => plan,
        Err(refusal) => {
            println!("SKIP: {refusal}");
            return None;
        }
    };
    let one_by_one = plan.steps.iter().any(|step| step.action.to_string().contains("each mount by itself"));
    assert_eq!(one_by_one, !mount_setattr, "the plan says how it is done");
    let mut written = Written::default();
    let outcome = Launcher::new(&plan, Options::default()).run(&mut written);
    let text = String::from_utf8_lossy(&written.0).into_owned();
    Some(outcome.map(|outcome| {
        assert_eq!(outcome.end, End::Exited(0), "{text}");
        // The seal has been verified, or the command would not have run; and nothing of it is weaker for the old way.
        assert!(outcome.seal.layers.iter().any(|sealed| sealed.layer == Layer::Root), "{:?}", outcome.seal);
        text
    }))
}

/// The mounts of a room: where, options, propagation.
fn mounts(mountinfo: &str) -> BTreeMap<String, Vec<(String, String)>> {
    let mut mounts = BTreeMap::<_, Vec<_>>::new();
    for line in mountinfo.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let [_, _, _, _, point, options, propagation, ..] = fields.as_slice() else { continue };
        mounts.entry((*point).to_owned()).or_default().push(((*options).to_owned(), (*propagation).to_owned()));
    }
    mounts.values_mut().for_each(|stacked| stacked.sort());
    mounts
}

fn every_mount_has_the_flags_that_it_would_have_otherwise(tree: &Path) -> Option<()> {
    let room = room(tree, "cat /proc/self/mountinfo");
    let with = mounts(&run(&room, true)?.expect("a room with mount_setattr"));
    let without = mounts(&run(&room, false)?.expect("a room without mount_setattr"));
    assert_eq!(with, without);
    for point in ["/src", "/src/sub", "/src/sub/deep", "/src/with\\040blank", "/src/file"] {
        for (options, propagation) in &without[point] {
            for option in ["ro", "nosuid", "nodev"] {
                assert!(options.split(',').any(|one| one == option), "{point} is {options}, without {option}");
            }
            assert_eq!(propagation, "-", "{point}");
        }
    }
    let options = |point: &str| without[point][0].0.split(',').map(str::to_owned).collect::<Vec<_>>();
    assert!(options("/src/sub/deep").contains(&"noexec".into()), "what was there before is kept");
    assert!(options("/out\\040put/sub/deep").contains(&"noexec".into()), "what was there before is kept");
    assert!(options("/out\\040put/sub").contains(&"rw".into()), "writable below is writable");
    Some(())
}

fn what_is_mounted_below_a_read_only_source_cannot_be_written(tree: &Path) -> Option<()> {
    // Both sides: the same files can be written where they are shown writable.
    let script = "cd /src; for file in here sub/here sub/deep/here 'with blank/here' file; do \
        if echo x >\"/src/$file\"; then echo \"WRITTEN $file\"; fi; \
        if echo x >\"/out put/$file\"; then echo \"out $file\"; fi; done 2>&1; true";
    let text = run(&room(tree, script), false)?.expect("a room without mount_setattr");
    assert!(!text.contains("WRITTEN"), "{text}");
    assert_eq!(text.matches("Read-only file system").count(), 5, "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("out ")).count(), 5, "{text}");
    Some(())
}

fn a_mount_that_another_one_covers_cannot_be_restricted_and_fails_the_room(covered: &Path) -> Option<()> {
    let room = room(covered, "true");
    run(&room, true)?.expect("with mount_setattr it is restricted all the same");
    let error = run(&room, false)?.expect_err("a mount that nobody can reach was called restricted");
    let Error::SetUp(failure) = &error else { panic!("{error}") };
    assert_eq!(failure.errno, nix::errno::Errno::EOPNOTSUPP, "{error}");
    assert_eq!(failure.layer, Layer::Root, "{error}");
    assert!(error.to_string().contains("unmount what covers another mount"), "{error}");
    Some(())
}

fn tmpfs(on: &Path, flags: MsFlags) {
    std::fs::create_dir_all(on).expect("a mount point");
    mount(Some("tmpfs"), on, Some("tmpfs"), flags, Some("mode=0777")).expect("a tmpfs is mounted");
    for name in ["here", "file"] {
        let file = on.join(name);
        if !flags.contains(MsFlags::MS_RDONLY) {
            std::fs::write(&file, "").expect("a file");
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).expect("its mode");
        }
    }
}

/// Two trees with mounts in them, in a mount namespace of our own; and whom the room runs for.
fn prepare(scratch: &Path) -> Result<(PathBuf, PathBuf), String> {
    let root = nix::unistd::geteuid().is_root();
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let namespaces = if root { CloneFlags::CLONE_NEWNS } else { CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS };
    unshare(namespaces).map_err(|errno| format!("a mount namespace: {errno}"))?;
    if !root {
        // Not uid 0: a room is never entered for that one.
        for (file, text) in [
            ("setgroups", "deny".into()),
            ("uid_map", format!("{USER} {uid} 1")),
            ("gid_map", format!("{USER} {gid} 1")),
        ] {
            std::fs::write(format!("/proc/self/{file}"), text).map_err(|error| format!("{file}: {error}"))?;
        }
    }
    let whole = |flags| mount(None::<&str>, "/", None::<&str>, flags | MsFlags::MS_REC, None::<&str>);
    whole(MsFlags::MS_PRIVATE).map_err(|errno| format!("making / private: {errno}"))?;
    std::fs::set_permissions(scratch, PermissionsExt::from_mode(0o755)).map_err(|error| error.to_string())?;
    let (tree, covered) = (scratch.join("tree"), scratch.join("covered"));
    tmpfs(&tree, MsFlags::empty());
    tmpfs(&tree.join("sub"), MsFlags::empty());
    tmpfs(&tree.join("sub/deep"), MsFlags::MS_NOEXEC);
    tmpfs(&tree.join("with blank"), MsFlags::empty());
    // A file as a mount point, too.
    let file = tree.join("file");
    mount(Some(&tree.join("sub/file")), &file, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("a file is bound");
    tmpfs(&covered, MsFlags::empty());
    tmpfs(&covered.join("twice"), MsFlags::empty());
    tmpfs(&covered.join("twice"), MsFlags::empty());
    // Shared, as most mounts of a host are: the room must not stay in that group.
    if root {
        whole(MsFlags::MS_SHARED).map_err(|errno| format!("making / shared: {errno}"))?;
    }
    Ok((tree, covered))
}

fn run_all(tree: &Path, covered: &Path) -> usize {
    [
        every_mount_has_the_flags_that_it_would_have_otherwise(tree),
        what_is_mounted_below_a_read_only_source_cannot_be_written(tree),
        a_mount_that_another_one_covers_cannot_be_restricted_and_fails_the_room(covered),
    ]
    .iter()
    .flatten()
    .count()
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if let [_, word, tree, covered] = arguments.as_slice()
        && word == "as-user"
    {
        return ExitCode::from(run_all(tree.as_ref(), covered.as_ref()) as u8);
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let (tree, covered) = match prepare(scratch.path()) {
        Ok(made) => made,
        Err(why) => {
            println!("SKIP: {why}");
            return ExitCode::SUCCESS;
        }
    };
    let mut passed = run_all(&tree, &covered);
    if nix::unistd::geteuid().is_root() {
        let mut again = Command::new("/proc/self/exe");
        again.args(["as-user".as_ref(), tree.as_os_str(), covered.as_os_str()]).uid(USER).gid(USER);
        let status = again.status().expect("this program starts again");
        passed += status.code().filter(|code| *code <= 3).expect("the second time went well") as usize;
    }
    for mounted in [&tree, &covered] {
        nix::mount::umount2(mounted, nix::mount::MntFlags::MNT_DETACH).expect("unmounted");
    }
    println!("test result: ok. {passed} passed; 0 failed;");
    ExitCode::SUCCESS
}
