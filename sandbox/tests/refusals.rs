//! What a plan refuses before anything is touched: each with what was asked, why not, and what to do.

use anchorhold_sandbox::quantity::Size;
use anchorhold_sandbox::room::{Entry, Output, Outside, Profile, Stdin};
use anchorhold_sandbox::{Host, Layer, Plan, Room};

fn room() -> Room {
    let mut room = Room::default();
    room.process.program = "/bin/true".into();
    room
}

/// Asserts that this room is refused by `layer` on a host that was made up and then changed, in three whole parts of one line each.
#[track_caller]
fn refused_on(layer: Layer, host: &Host, change: impl FnOnce(&mut Room)) -> String {
    let mut room = room();
    change(&mut room);
    let refusal = match Plan::compile(&room, host) {
        Err(refusal) => refusal,
        Ok(_) => panic!("not refused: {room:?}"),
    };
    assert_eq!(refusal.layer, layer, "{refusal}");
    for (part, text) in [("what", &refusal.what), ("why", &refusal.why), ("fix", &refusal.fix)] {
        assert!(!text.trim().is_empty(), "{part} is empty: {refusal:?}");
        assert!(!text.contains(['\n', '\0']), "{part} is not one line: {refusal:?}");
        assert!(!text.ends_with('.'), "{part} ends a sentence that goes on: {refusal:?}");
    }
    refusal.to_string()
}

/// Asserts that it is refused to root and to a user alike.
#[track_caller]
fn refused(layer: Layer, change: impl Fn(&mut Room)) -> String {
    refused_on(layer, &Host::made_up(true), &change);
    refused_on(layer, &Host::made_up(false), &change)
}

#[track_caller]
fn accepted_on(host: &Host, change: impl FnOnce(&mut Room)) -> Plan {
    let mut room = room();
    change(&mut room);
    Plan::compile(&room, host).unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn file(inside: &str) -> Entry {
    Entry::File { inside: inside.into(), text: String::new(), executable: false }
}

#[test]
fn a_mount_point_is_an_absolute_plain_path() {
    for inside in ["relative", "./relative", "", "/a/../b", "/..", "/a/..", "/a\0b", "/a\nb", "/a\n"] {
        for entry in [
            Entry::read_only(inside),
            file(inside),
            Entry::Directory { inside: inside.into() },
            Entry::Symlink { inside: inside.into(), target: "/x".into() },
            Entry::Tmpfs { inside: inside.into(), size: Size::Share(1), mode: 0o700, noexec: false },
        ] {
            refused(Layer::Root, |room| room.mounts.push(entry.clone()));
        }
    }
}

#[test]
fn a_source_is_an_absolute_plain_path() {
    for outside in ["relative", "", "/a/../b", "/a\0b", "/a\nb"] {
        let entry = Entry::Bind {
            inside: "/a".into(),
            outside: Some(outside.into()),
            writable: false,
            optional: true,
            noexec: false,
        };
        refused(Layer::Root, |room| room.mounts.push(entry.clone()));
    }
}

#[test]
fn two_things_at_one_place_would_hide_each_other() {
    for (one, other) in [("/a", "/a"), ("/a", "/a/"), ("/a/b", "/a/./b"), ("/a/b", "//a//b")] {
        let message = refused(Layer::Root, |room| room.mounts.extend([Entry::read_only(one), file(other)]));
        assert!(message.contains("twice"), "{message}");
    }
    accepted_on(&Host::made_up(false), |room| room.mounts.extend([Entry::read_only("/a"), file("/a-b")]));
}

#[test]
fn what_the_room_makes_itself_cannot_be_mounted_over() {
    for inside in
        ["/", "//", "/.", "/proc", "/proc/", "/proc/self", "/proc/sys/kernel", "/dev", "/dev/null", "/dev/shm"]
    {
        refused(Layer::Root, |room| room.mounts.push(Entry::read_only(inside)));
    }
    for inside in ["/procfs", "/device", "/a/proc", "/a/dev"] {
        accepted_on(&Host::made_up(false), |room| room.mounts.push(Entry::read_only(inside)));
    }
}

#[test]
fn the_generated_etc_cannot_be_mounted_over_unless_it_is_left_out() {
    refused(Layer::Root, |room| room.mounts.push(Entry::read_only("/etc")));
    accepted_on(&Host::made_up(false), |room| {
        room.mounts.push(Entry::read_only("/etc"));
        room.without.insert(Layer::Etc);
    });
    accepted_on(&Host::made_up(false), |room| room.mounts.push(Entry::read_only("/etc/ssl")));
}

#[test]
fn a_generated_file_of_etc_is_there_already() {
    for name in ["passwd", "group", "hosts"] {
        refused(Layer::Etc, |room| room.mounts.push(Entry::read_only(format!("/etc/{name}"))));
    }
}

#[test]
fn names_are_words_that_passwd_can_hold() {
    for name in ["", "a:b", "a\nroot:x:0:0", "a\0b", "a/b"] {
        refused(Layer::Etc, |room| room.identity.user = name.into());
        refused(Layer::Etc, |room| room.identity.group = name.into());
    }
}

#[test]
fn a_home_directory_cannot_add_fields_or_lines_to_passwd() {
    for home in ["/home:/bin/sh", "/home\nroot::0:0", "home", "/a\0b", "/a/../b"] {
        refused(Layer::Etc, |room| room.identity.home = home.into());
    }
}

#[test]
fn a_line_for_hosts_is_one_line() {
    for line in ["10.0.0.1 a\n10.0.0.2 b", "10.0.0.1 a\0"] {
        refused(Layer::Etc, |room| room.etc.hosts.push(line.into()));
    }
}

#[test]
fn names_of_the_machine_are_what_the_kernel_takes() {
    let long = "a".repeat(65);
    for name in [long.as_str(), "a\0b", "a\nb"] {
        refused(Layer::Namespaces, |room| room.names.host = name.into());
        refused(Layer::Namespaces, |room| room.names.domain = name.into());
    }
    accepted_on(&Host::made_up(false), |room| room.names.host = "a".repeat(64));
}

#[test]
fn no_id_outside_is_ever_root() {
    for (uid, gid) in [(0, 0), (0, 1000), (1000, 0)] {
        let message = refused(Layer::Identity, |room| room.identity.outside = Outside::User { uid, gid });
        assert!(message.contains("uid 0 or gid 0"), "{message}");
    }
}

/// For setresuid(2) it means "leave it as it is", which for root is uid 0.
#[test]
fn no_id_is_minus_one() {
    const MINUS_ONE: u32 = u32::MAX;
    for (uid, gid) in [(MINUS_ONE, MINUS_ONE), (MINUS_ONE, 1000), (1000, MINUS_ONE)] {
        refused(Layer::Identity, |room| room.identity.outside = Outside::User { uid, gid });
        refused(Layer::Identity, |room| (room.identity.uid, room.identity.gid) = (uid, gid));
    }
}

#[test]
fn a_user_becomes_nobody_else() {
    refused_on(Layer::Identity, &Host::made_up(false), |room| {
        room.identity.outside = Outside::User { uid: 30001, gid: 30000 };
    });
    accepted_on(&Host::made_up(true), |room| room.identity.outside = Outside::User { uid: 30001, gid: 30000 });
}

#[test]
fn root_without_its_capabilities_has_no_other_id_to_take() {
    for (uid, gid) in [(0, 0), (0, 1000), (1000, 0)] {
        let host = Host { uid, gid, ..Host::made_up(false) };
        for outside in [Outside::Auto, Outside::Range] {
            let message = refused_on(Layer::Identity, &host, |room| room.identity.outside = outside);
            assert!(message.contains("capabilities"), "{message}");
        }
    }
}

#[test]
fn ids_inside_are_within_the_range() {
    for (uid, gid) in [(65_536, 0), (0, 65_536), (70_000, 70_000)] {
        refused(Layer::Identity, |room| {
            room.identity.outside = Outside::Range;
            (room.identity.uid, room.identity.gid) = (uid, gid);
        });
    }
    for privileged in [true, false] {
        accepted_on(&Host::made_up(privileged), |room| {
            room.identity.outside = Outside::Range;
            (room.identity.uid, room.identity.gid) = (65_535, 65_535);
        });
    }
}

#[test]
fn a_range_needs_subordinate_ids_that_are_not_roots() {
    use anchorhold_sandbox::ids::{RANGE_LENGTH, Subordinate};
    let wants_range = |room: &mut Room| room.identity.outside = Outside::Range;
    let none = Host { subordinate: Err("/etc/subuid has no line".into()), ..Host::made_up(false) };
    let message = refused_on(Layer::Identity, &none, wants_range);
    assert!(message.contains("/etc/subuid has no line"), "{message}");
    for (uid, gid) in [(0, 100_000), (100_000, 0)] {
        let roots = Host { subordinate: Ok(Subordinate { uid, gid, length: RANGE_LENGTH }), ..Host::made_up(false) };
        refused_on(Layer::Identity, &roots, wants_range);
    }
    // In a user namespace the kernel's root may have another name.
    for (uid, gid) in [(150_000, 7), (7, 265_535)] {
        let kernel_root = anchorhold_sandbox::host::KernelRoot { uid, gid };
        refused_on(Layer::Identity, &Host { kernel_root, ..Host::made_up(false) }, wants_range);
    }
}

#[test]
fn roots_rooms_need_a_pool_of_ids() {
    let host = Host { ids: Err("this user namespace maps only 1 ids".into()), ..Host::made_up(true) };
    refused_on(Layer::Identity, &host, |_| {});
    accepted_on(&host, |room| room.identity.outside = Outside::User { uid: 30001, gid: 30000 });
}

#[test]
fn limits_are_figures_that_can_be_kept() {
    refused(Layer::Limits, |room| room.limits.pids = Some(0));
    for most in [0, 1, 2] {
        refused(Layer::Limits, |room| room.limits.open_files = Some(most));
    }
    refused(Layer::Limits, |room| room.limits.open_files = Some((1 << 20) + 1));
    for cpu in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0001] {
        refused(Layer::Cgroup, |room| room.limits.cpu = Some(cpu));
    }
    for weight in [0, 10_001, u32::MAX] {
        refused(Layer::Limits, |room| room.limits.cpu_weight = Some(weight));
        refused(Layer::Limits, |room| room.limits.io_weight = Some(weight));
    }
    refused(Layer::Limits, |room| room.limits.memory = Some(Size::Bytes(0)));
    accepted_on(&Host::made_up(false), |room| {
        room.limits.pids = Some(1);
        room.limits.open_files = Some(3);
    });
}

#[test]
fn limits_and_a_room_without_limits_exclude_each_other() {
    type Change = fn(&mut Room);
    let changes: [Change; 4] = [
        |room| room.limits.open_files = Some(100),
        |room| room.limits.file_size = Some(Size::mebibytes(1)),
        |room| room.limits.address_space = Some(Size::mebibytes(1)),
        |room| room.limits.process_time = Some(anchorhold_sandbox::quantity::Duration(1000)),
    ];
    for change in changes {
        refused(Layer::Limits, |room| {
            room.without.insert(Layer::Limits);
            change(room);
        });
    }
}

#[test]
fn landlock_is_never_less_than_required() {
    refused(Layer::Landlock, |room| room.landlock.require = Some(7));
    refused(Layer::Landlock, |room| {
        room.landlock.require = Some(1);
        room.without.insert(Layer::Landlock);
    });
    for privileged in [true, false] {
        accepted_on(&Host::made_up(privileged), |room| room.landlock.require = Some(6));
    }
}

#[test]
fn a_kernel_without_landlock_is_refused_unless_the_layer_is_left_out_by_name() {
    for privileged in [true, false] {
        let host = Host { landlock: 0, ..Host::made_up(privileged) };
        let message = refused_on(Layer::Landlock, &host, |_| {});
        assert!(message.contains("--without landlock"), "{message}");
        accepted_on(&host, |room| {
            room.without.insert(Layer::Landlock);
        });
    }
}

#[test]
fn kvm_that_is_asked_for_and_unusable_is_no_silent_emulation() {
    let host = Host { kvm: Err(("there is no /dev/kvm".into(), "load kvm_intel".into())), ..Host::made_up(false) };
    let message = refused_on(Layer::Devices, &host, |room| room.devices.kvm = true);
    assert!(message.contains("there is no /dev/kvm") && message.contains("load kvm_intel"), "{message}");
    accepted_on(&host, |_| {});
}

#[test]
fn a_masked_proc_is_refused_unless_the_weaker_tier_is_asked_for() {
    let host = Host { masked_proc: Some(("masked".into(), "unmask it".into())), ..Host::made_up(false) };
    refused_on(Layer::Proc, &host, |_| {});
    let plan = accepted_on(&host, |room| room.proc.source = anchorhold_sandbox::room::ProcSource::Outer);
    assert!(plan.weakenings.iter().any(|weakening| weakening.layer == Layer::Proc), "{:?}", plan.weakenings);
}

#[test]
fn a_kernel_without_user_namespaces_is_refused() {
    let host = Host { no_user_namespaces: Some(("the sysctl is 0".into(), "raise it".into())), ..Host::made_up(false) };
    refused_on(Layer::Namespaces, &host, |_| {});
}

#[test]
fn a_time_namespace_needs_the_namespaces() {
    refused(Layer::Namespaces, |room| {
        room.namespaces.time = true;
        room.without.insert(Layer::Namespaces);
    });
}

#[test]
fn a_room_runs_a_command() {
    refused(Layer::Process, |room| room.process.program = "".into());
}

#[test]
fn arguments_and_variables_are_what_the_kernel_takes() {
    refused(Layer::Process, |room| room.process.program = "/bin/a\0b".into());
    refused(Layer::Process, |room| room.process.argv0 = Some("a\0b".into()));
    refused(Layer::Process, |room| room.process.arguments.push("a\0b\nc".into()));
    refused(Layer::Process, |room| {
        room.process.environment.insert("NAME".into(), "a\0b".into());
    });
    for name in ["", "A=B", "=", "A\0B", "A=\nB"] {
        refused(Layer::Process, |room| {
            room.process.environment.insert(name.into(), "value".into());
        });
    }
    accepted_on(&Host::made_up(false), |room| {
        room.process.environment.insert("a b\u{e9}".into(), "=\n".into());
    });
}

#[test]
fn the_current_directory_is_an_absolute_plain_path() {
    for directory in ["", "relative", "/a/../b", "/a\0b", "/a\nb"] {
        refused(Layer::Process, |room| room.process.directory = directory.into());
    }
}

#[test]
fn a_umask_has_nine_bits() {
    refused(Layer::Process, |room| room.process.umask = 0o1000);
}

#[test]
fn a_terminal_is_the_rooms_standard_input() {
    refused(Layer::Descriptors, |room| {
        room.process.output = Output::Terminal;
        room.process.stdin = Stdin::Inherit;
    });
}

#[test]
fn a_tmpfs_has_a_bound_and_a_mode() {
    // For tmpfs(5) a size of 0 means no bound at all.
    refused(Layer::Root, |room| room.root.size = Size::Bytes(0));
    refused(Layer::Devices, |room| room.devices.shm_size = Size::Bytes(0));
    let tmpfs = |size, mode| Entry::Tmpfs { inside: "/tmp".into(), size, mode, noexec: false };
    refused(Layer::Root, |room| room.mounts.push(tmpfs(Size::Bytes(0), 0o700)));
    refused(Layer::Root, |room| room.mounts.push(tmpfs(Size::mebibytes(1), 0o10000)));
}

#[test]
fn every_profile_is_refused_alike() {
    for profile in Profile::ALL {
        refused(Layer::Root, |room| {
            room.profile = profile;
            room.mounts.push(Entry::read_only("/proc"));
        });
    }
}
