//! Golden plans: what is done, in which order, by whom, for each profile and each variant, on a made-up host.
//!
//! The files in `tests/plans/` are read in review; a change of a plan is a change there. To write them anew:
//!
//! ```text
//! ANCHORHOLD_WRITE_PLANS=1 cargo test -p anchorhold-sandbox --test plans
//! ```
//!
//! What must come before what, whatever the steps are, is in `tests/order.rs`.

use std::fmt::Write;
use std::path::Path;

use anchorhold_sandbox::plan::Place;
use anchorhold_sandbox::room::{Entry, Output, Outside, ProcSource, Profile};
use anchorhold_sandbox::{Host, Layer, Plan, Room};

/// A room with one entry of each kind.
fn room(profile: Profile) -> Room {
    let mut room = Room::new(profile);
    let closure = ["/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-bash", "/nix/store/zx1s-glibc"];
    room.mounts.extend(closure.map(Entry::read_only));
    room.mounts.push(Entry::bind("/build=/var/lib/anchorhold/1/build".as_ref(), true));
    room.mounts.push(Entry::bind("/etc/ssl/certs?".as_ref(), false));
    room.mounts.push(Entry::Tmpfs {
        inside: "/tmp".into(),
        size: anchorhold_sandbox::quantity::Size::Share(50),
        mode: 0o1777,
        noexec: false,
    });
    room.mounts.push(Entry::Symlink { inside: "/bin/sh".into(), target: "/nix/store/zx1s-bash/bin/sh".into() });
    room.mounts.push(Entry::Directory { inside: "/empty".into() });
    room.mounts.push(Entry::File { inside: "/greeting".into(), text: "hello\n".into(), executable: false });
    room.devices.kvm = profile == Profile::Machines;
    room.process.program = "/bin/sh".into();
    room.process.directory = "/build".into();
    room
}

/// A plan as the goldens have it: the steps of each process under its name, each with its stage and layer, and what is weaker.
fn in_words(room: &Room, host: &Host) -> String {
    let plan = Plan::compile(room, host).expect("the made-up host can do it");
    let mut text = String::new();
    let mut place = None;
    for step in &plan.steps {
        if place != Some(step.place) {
            place = Some(step.place);
            let heading = match step.place {
                Place::Supervisor => "the supervisor:",
                Place::Warden => "the warden:",
                Place::Room => "the room's first process:",
            };
            writeln!(text, "{heading}").unwrap();
        }
        // The words of serde are those of the stages' names.
        let stage = serde_json::to_value(step.stage).unwrap();
        // A rule of a policy is a line of its own.
        let words = step.action.to_string().replace("; ipv", ";\n    ipv");
        writeln!(text, "  {:<18} {:<13} {words}", stage.as_str().unwrap(), step.action.layer().name()).unwrap();
    }
    for weakening in &plan.weakenings {
        writeln!(text, "weaker: {}: {}", weakening.layer, weakening.what).unwrap();
    }
    text
}

/// Lines that come and go from one text to the other, by their longest common subsequence.
fn difference(before: &str, after: &str) -> String {
    let (before, after): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
    // longest[i][j]: of before[i..] and after[j..].
    let mut longest = vec![vec![0; after.len() + 1]; before.len() + 1];
    for i in (0..before.len()).rev() {
        for j in (0..after.len()).rev() {
            longest[i][j] = if before[i] == after[j] {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut text = String::new();
    while i < before.len() || j < after.len() {
        if i < before.len() && j < after.len() && before[i] == after[j] {
            (i, j) = (i + 1, j + 1);
        } else if i < before.len() && (j == after.len() || longest[i + 1][j] >= longest[i][j + 1]) {
            writeln!(text, "-{}", before[i]).unwrap();
            i += 1;
        } else {
            writeln!(text, "+{}", after[j]).unwrap();
            j += 1;
        }
    }
    text
}

/// Compares with a golden file, or writes it.
#[track_caller]
fn golden(name: &str, found: &str) {
    // Relative: the tests may run on a copy of the tree.
    let path = Path::new("tests/plans").join(name);
    if std::env::var_os("ANCHORHOLD_WRITE_PLANS").is_some() {
        std::fs::write(&path, found).unwrap();
        return;
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        wanted == found,
        "the plan is not that of {}; where the change is meant, write it anew with ANCHORHOLD_WRITE_PLANS=1:\n{}",
        path.display(),
        difference(&wanted, found)
    );
}

#[test]
fn each_profile_started_as_root_and_as_a_user() {
    for profile in Profile::ALL {
        for (who, privileged) in [("root", true), ("user", false)] {
            let text = in_words(&room(profile), &Host::made_up(privileged));
            golden(&format!("{}-as-{who}.txt", profile.name()), &text);
        }
    }
}

/// The ways in which a room can differ from an ordinary one, and what each changes in the plan.
#[test]
fn what_each_wish_changes() {
    type Change = fn(&mut Room, &mut Host);
    let changes: [(&str, Change); 15] = [
        ("kvm granted", |room, _| room.devices.kvm = true),
        ("kvm granted, which everybody may open", |room, host| {
            room.devices.kvm = true;
            host.kvm = Ok(anchorhold_sandbox::host::Kvm { group_needed: None });
        }),
        ("a range of ids", |room, _| room.identity.outside = Outside::Range),
        ("a range of ids, uid 0 inside", |room, _| {
            room.identity.outside = Outside::Range;
            (room.identity.uid, room.identity.gid) = (0, 0);
        }),
        ("the build user 30001:30000", |room, host| {
            room.identity.outside = Outside::User { uid: 30001, gid: 30000 };
            if !host.privileged {
                (host.uid, host.gid) = (30001, 30000);
            }
        }),
        ("a time namespace", |room, _| room.namespaces.time = true),
        ("the outer proc where it is masked", |room, host| {
            room.proc.source = ProcSource::Outer;
            host.masked_proc = Some(("masked".into(), "unmask it".into()));
        }),
        ("a terminal", |room, _| room.process.output = Output::Terminal),
        ("the caller's own streams", |room, _| {
            room.process.output = Output::Inherit;
            room.process.stdin = anchorhold_sandbox::room::Stdin::Inherit;
        }),
        ("a 32-bit machine, random addresses, umask 077", |room, _| {
            room.process.personality = anchorhold_sandbox::room::Personality::Linux32;
            room.process.randomize_addresses = true;
            room.process.umask = 0o077;
        }),
        ("limits of processes", |room, _| {
            let limits = &mut room.limits;
            limits.pids = Some(100);
            limits.open_files = Some(1024);
            limits.file_size = Some(anchorhold_sandbox::quantity::Size::mebibytes(100));
            limits.address_space = Some(anchorhold_sandbox::quantity::Size::mebibytes(4096));
            limits.process_time = Some(anchorhold_sandbox::quantity::Duration(1500));
        }),
        ("a generated program", |room, _| {
            room.mounts.push(Entry::File { inside: "/init".into(), text: "#!/bin/sh\n".into(), executable: true });
        }),
        ("changes of owner ignored", |room, _| room.seccomp.ignore_chown = true),
        ("a kernel before 5.12", |_, host| host.mount_setattr = false),
        ("the first Landlock, without scopes", |_, host| host.landlock = 1),
    ];
    for (who, privileged) in [("root", true), ("user", false)] {
        let ordinary = in_words(&room(Profile::Build), &Host::made_up(privileged));
        let mut text = format!("Lines that go (-) and come (+) against build-as-{who}.txt.\n");
        for (name, change) in changes {
            let (mut room, mut host) = (room(Profile::Build), Host::made_up(privileged));
            change(&mut room, &mut host);
            write!(text, "\n{name}:\n{}", difference(&ordinary, &in_words(&room, &host))).unwrap();
        }
        golden(&format!("wishes-as-{who}.txt"), &text);
    }
}

#[test]
fn what_leaving_out_each_layer_changes() {
    let host = Host::made_up(false);
    let ordinary = in_words(&room(Profile::Build), &host);
    let mut text = "Lines that go (-) and come (+) against build-as-user.txt.\n".to_owned();
    for layer in Layer::ALL.into_iter().filter(|layer| *layer != Layer::Process) {
        let mut room = room(Profile::Build);
        room.without.insert(layer);
        write!(text, "\nwithout {layer}:\n{}", difference(&ordinary, &in_words(&room, &host))).unwrap();
    }
    golden("without.txt", &text);
}

/// Where control groups are is asked while planning: here of plain files that look like the kernel's.
#[test]
fn limits_of_the_whole_room_are_a_control_groups() {
    use anchorhold_sandbox::layers::cgroup::{Hierarchy, Layout, Version};
    let tree = tempfile::tempdir().unwrap();
    let own = tree.path().join("own");
    std::fs::create_dir(&own).unwrap();
    for (file, text) in [
        ("cgroup.controllers", "cpu io memory pids\n"),
        ("cgroup.subtree_control", "cpu io memory pids\n"),
        ("cgroup.procs", ""),
        ("cgroup.type", "domain\n"),
    ] {
        std::fs::write(own.join(file), text).unwrap();
    }
    let unified = Hierarchy {
        version: Version::V2,
        controllers: Default::default(),
        own: "/own".into(),
        directory: Ok(own),
        mount_point: Some(tree.path().to_owned()),
    };
    let host = Host { cgroups: Ok(Layout { unified: Some(unified), legacy: Vec::new() }), ..Host::made_up(false) };
    let mut limited = room(Profile::Build);
    let limits = &mut limited.limits;
    limits.memory = Some(anchorhold_sandbox::quantity::Size::mebibytes(512));
    limits.cpu = Some(1.5);
    (limits.cpu_weight, limits.io_weight, limits.pids) = (Some(50), Some(200), Some(100));
    let ordinary = in_words(&room(Profile::Build), &Host::made_up(false));
    let changed = difference(&ordinary, &in_words(&limited, &host));
    let changed = changed.replace(tree.path().to_str().unwrap(), "/sys/fs/cgroup");
    golden("limits.txt", &format!("Lines that go (-) and come (+) against build-as-user.txt.\n\n{changed}"));
}

/// A nested room on a kernel without Landlock's scopes has nothing of it left, and says so.
#[test]
fn a_nested_room_without_scopes_is_weaker() {
    let host = Host { landlock: 5, ..Host::made_up(false) };
    let text = in_words(&room(Profile::Nested), &host);
    assert!(!text.contains("restrict by Landlock"), "{text}");
    assert!(text.lines().last().is_some_and(|line| line.starts_with("weaker: landlock: ")), "{text}");
}
