//! What holds for any room, tried on many.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anchorhold_sandbox::layers::identity::{self, Ids};
use anchorhold_sandbox::layers::{Action, namespaces, proc, root};
use anchorhold_sandbox::plan::{Place, Stage};
use anchorhold_sandbox::quantity::{Duration, Size};
use anchorhold_sandbox::room::{Entry, Output, Outside, Personality, ProcSource, Profile, Stdin};
use anchorhold_sandbox::text::Text;
use anchorhold_sandbox::{Host, Layer, Plan, Room};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

/// Names that sort around the separator, so that `/a-b` and `/a/b` are tried against each other.
fn a_path() -> impl Strategy<Value = PathBuf> {
    let name = select(vec!["a", "b", "a-b", "a b", "a.b", "ä", "a\\040b", "zz", "...", "#", "~"]);
    prop::collection::vec(name, 1..5).prop_map(|names| Path::new("/").join(names.iter().collect::<PathBuf>()))
}

fn a_size() -> impl Strategy<Value = Size> {
    prop_oneof![(1..u64::MAX / 2).prop_map(Size::Bytes), (1..=100u8).prop_map(Size::Share)]
}

fn an_entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        4 => (a_path(), prop::option::of(a_path()), any::<[bool; 3]>()).prop_map(
            |(inside, outside, [writable, optional, noexec])| Entry::Bind { inside, outside, writable, optional, noexec }
        ),
        1 => (a_path(), a_size(), 0..=0o7777u32, any::<bool>())
            .prop_map(|(inside, size, mode, noexec)| Entry::Tmpfs { inside, size, mode, noexec }),
        1 => a_path().prop_map(|inside| Entry::Directory { inside }),
        1 => (a_path(), ".*", any::<bool>())
            .prop_map(|(inside, text, executable)| Entry::File { inside, text, executable }),
        1 => (a_path(), a_path()).prop_map(|(inside, target)| Entry::Symlink { inside, target }),
    ]
}

/// Some with different places.
fn entries() -> impl Strategy<Value = Vec<Entry>> {
    prop::collection::vec(an_entry(), 0..12).prop_map(|mut entries| {
        let mut seen = std::collections::BTreeSet::new();
        entries.retain(|entry| seen.insert(entry.inside().to_owned()));
        entries
    })
}

/// Any bytes that can be an argument.
fn a_text() -> impl Strategy<Value = Text> {
    prop::collection::vec(1..=255u8, 0..12).prop_map(|bytes| Text(OsString::from_vec(bytes)))
}

fn an_outside() -> impl Strategy<Value = Outside> {
    let id = prop_oneof![0..3u32, 29_999..30_003u32, Just(u32::MAX), any::<u32>()];
    prop_oneof![
        2 => Just(Outside::Auto),
        2 => Just(Outside::Range),
        1 => (id.clone(), id).prop_map(|(uid, gid)| Outside::User { uid, gid }),
    ]
}

/// A room of any kind. Its network is the profile's own.
fn a_room() -> impl Strategy<Value = Room> {
    let layers: Vec<Layer> = Layer::ALL.into_iter().filter(|layer| *layer != Layer::Process).collect();
    let few = layers.len() / 3;
    let whole = (
        select(Profile::ALL.to_vec()),
        prop_oneof![1 => Just(Vec::new()), 1 => subsequence(layers, 0..few)],
        entries(),
        an_outside(),
        (0..70_000u32, 0..70_000u32),
        any::<[bool; 6]>(),
    );
    let details = (
        prop::collection::vec(a_text(), 0..4),
        prop::collection::btree_map("[A-Z_][A-Za-z0-9_ .-]{0,8}", a_text(), 0..4),
        prop::option::of(a_text()),
        prop::option::of(1..100_000u64),
        prop::option::of((1..u64::MAX / 2).prop_map(Duration)),
        (0..=0o777u32, 0..3u8),
    );
    (whole, details).prop_map(|((profile, without, mounts, outside, (uid, gid), flags), details)| {
        let mut room = Room::new(profile);
        room.without = without.into_iter().collect();
        room.mounts = mounts;
        room.identity.outside = outside;
        (room.identity.uid, room.identity.gid) = (uid, gid);
        let [kvm, time, outer_proc, init, linux32, randomize] = flags;
        room.devices.kvm = kvm;
        room.namespaces.time = time;
        room.proc.source = if outer_proc { ProcSource::Outer } else { ProcSource::New };
        let (arguments, environment, argv0, pids, time, (umask, streams)) = details;
        room.limits.pids = pids;
        room.limits.time = time;
        let process = &mut room.process;
        process.program = "/bin/sh".into();
        process.arguments = arguments;
        process.environment = environment.into_iter().map(|(name, value)| (name.into(), value)).collect();
        process.argv0 = argv0;
        process.umask = umask;
        process.init = init;
        process.personality = if linux32 { Personality::Linux32 } else { Personality::Native };
        process.randomize_addresses = randomize;
        (process.stdin, process.output) = match streams {
            0 => (Stdin::Null, Output::Pipe),
            1 => (Stdin::Inherit, Output::Inherit),
            _ => (Stdin::Null, Output::Terminal),
        };
        room
    })
}

/// The ids that a plan takes from the kernel's, as (first, how many).
fn ids_outside(plan: &Plan) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for step in &plan.steps {
        let Action::Identity(action) = &step.action else { continue };
        if let identity::Action::Become { ids, .. } | identity::Action::MapRange { ids } = action {
            match ids {
                Ids::Own { uid, gid } | Ids::Given { uid, gid } => found.extend([(*uid, 1), (*gid, 1)]),
                Ids::Allocated { length } => {
                    let pool = plan.ids.as_ref().expect("allocated ids have a pool");
                    found.push((pool.first, pool.stride * pool.slots.min(u32::MAX / pool.stride)));
                    assert!(*length <= pool.stride, "{length} ids of a slot of {}", pool.stride);
                }
                Ids::Subordinate { uid, gid, length } => found.extend([(*uid, *length), (*gid, *length)]),
            }
        }
        if let identity::Action::Become { groups, .. } = action {
            found.extend(groups.iter().map(|group| (*group, 1)));
        }
    }
    found
}

fn numbers(plan: &Plan, is_it: impl Fn(&Action) -> bool) -> Vec<usize> {
    plan.steps.iter().enumerate().filter(|(_, step)| is_it(&step.action)).map(|(number, _)| number).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_room_survives_being_written_and_read(room in a_room()) {
        let written = toml::to_string(&room).unwrap();
        prop_assert_eq!(Room::from_toml(&written).unwrap(), room);
    }

    #[test]
    fn mounts_in_any_order_make_the_same_plan(
        (mounts, shuffled) in entries().prop_flat_map(|mounts| (Just(mounts.clone()), Just(mounts).prop_shuffle())),
        privileged: bool,
    ) {
        let host = Host::made_up(privileged);
        let compile = |mounts: Vec<Entry>| {
            let mut room = Room::default();
            room.process.program = "/bin/sh".into();
            room.mounts = mounts;
            Plan::compile(&room, &host).map(|plan| {
                // What Landlock is told has no order; the kernel takes it as a set.
                plan.steps.into_iter().filter(|step| step.action.layer() != Layer::Landlock).collect::<Vec<_>>()
            })
        };
        prop_assert_eq!(compile(mounts), compile(shuffled));
    }

    #[test]
    fn an_outer_mount_always_comes_before_an_inner_one(room in a_room(), privileged: bool) {
        let plan = Plan::compile(&room, &Host::made_up(privileged));
        prop_assume!(plan.is_ok());
        let plan = plan.unwrap();
        let places: Vec<&Path> = plan.steps.iter().filter_map(|step| match &step.action {
            Action::Root(
                root::Action::Bind { inside, .. }
                | root::Action::Tmpfs { inside, .. }
                | root::Action::File { inside, .. }
                | root::Action::Symlink { inside, .. }
                | root::Action::Directory(inside),
            ) => Some(inside.as_path()),
            _ => None,
        }).collect();
        for (number, inner) in places.iter().enumerate() {
            let later = places[number + 1..].iter().find(|outer| inner.starts_with(outer) && inner != *outer);
            prop_assert_eq!(later, None, "hides {}", inner.display());
        }
        // Nothing is lost on the way.
        prop_assert!(places.len() >= room.mounts.len());
    }

    #[test]
    fn no_plan_has_the_kernels_root_outside(room in a_room(), privileged: bool, uid in 0..3u32, gid in 0..3u32) {
        let mut host = Host::made_up(privileged);
        if !privileged {
            (host.uid, host.gid) = (uid, gid);
            host.subordinate = Ok(anchorhold_sandbox::ids::Subordinate { uid, gid, length: 65_536 });
        }
        let plan = Plan::compile(&room, &host);
        prop_assume!(plan.is_ok());
        let plan = plan.unwrap();
        for (first, length) in ids_outside(&plan) {
            prop_assert!(first > 0 && first.checked_add(length).is_some(), "{first}, {length} ids: {:?}", room.identity);
        }
        if privileged {
            // Root always becomes somebody else.
            let becomes = numbers(&plan, |action| matches!(action, Action::Identity(identity::Action::Become { .. })));
            prop_assert_eq!(becomes.len(), 1);
        } else {
            prop_assert!(host.uid != 0 && host.gid != 0);
        }
    }

    #[test]
    fn every_plan_has_one_of_each_turning_point_in_order(room in a_room(), privileged: bool, mount_setattr: bool) {
        let host = Host { mount_setattr, ..Host::made_up(privileged) };
        let plan = Plan::compile(&room, &host);
        prop_assume!(plan.is_ok());
        let plan = plan.unwrap();
        let one = |is_it: fn(&Action) -> bool| {
            let found = numbers(&plan, is_it);
            assert_eq!(found.len(), 1, "{found:?}");
            found[0]
        };
        let user = one(|action| match action {
            Action::Namespaces(namespaces::Action::Unshare(kinds)) => kinds.contains(&namespaces::Kind::User),
            _ => false,
        });
        let new_root = one(|action| matches!(action, Action::Root(root::Action::NewRoot { .. })));
        let pivot = one(|action| matches!(action, Action::Root(root::Action::Pivot)));
        let detach = one(|action| matches!(action, Action::Root(root::Action::DetachOldRoot)));
        prop_assert!(user < new_root && new_root < pivot && pivot + 1 == detach);
        let procs = numbers(&plan, |action| {
            matches!(action, Action::Proc(proc::Action::Mount { .. }))
                || matches!(action, Action::Root(root::Action::Bind { inside, .. }) if inside == Path::new("/proc"))
        });
        prop_assert_eq!(procs.len(), 1, "one /proc");
        let one_by_one = numbers(&plan, |action| matches!(action, Action::Root(root::Action::RestrictOneByOne)));
        prop_assert_eq!(one_by_one.len(), usize::from(!mount_setattr));
        prop_assert!(one_by_one.iter().all(|number| *number < new_root && *number >= plan.birth()));
        let stages: Vec<Stage> = plan.steps.iter().map(|step| step.stage).collect();
        prop_assert!(stages.is_sorted());
        // What a layer that is left out would have done is not there.
        for layer in [Layer::Capabilities, Layer::Landlock, Layer::Seccomp, Layer::Keyring, Layer::Limits] {
            let steps = numbers(&plan, |action| action.layer() == layer);
            prop_assert_eq!(steps.is_empty(), !room.has(layer) || plan.weakenings.iter().any(|weak| weak.layer == layer));
        }
        // Only the two that share the room's user namespace do its steps; the supervisor's are few.
        let supervisors = plan.steps_of(Place::Supervisor).count();
        prop_assert!(supervisors <= 4, "{supervisors}");
    }

    #[test]
    fn a_spelled_bind_is_read_as_nix_spells_it(inside in "/[a-z?/]{0,8}[a-z]", outside in prop::option::of("/[a-z=?/]{0,8}[a-z=]"), optional: bool, writable: bool) {
        let mut spelled = inside.clone();
        if let Some(outside) = &outside {
            spelled = format!("{spelled}={outside}");
        }
        if optional {
            spelled.push('?');
        }
        prop_assert_eq!(Entry::bind(spelled.as_ref(), writable), Entry::Bind {
            inside: inside.into(),
            outside: outside.map(Into::into),
            writable,
            optional,
            noexec: false,
        });
    }

    #[test]
    fn any_bytes_as_a_bind_are_read_without_a_panic_and_planned_or_refused(bytes: Vec<u8>, privileged: bool) {
        let mut room = Room::default();
        room.process.program = "/bin/sh".into();
        room.mounts.push(Entry::bind(&OsString::from_vec(bytes), false));
        if let Err(refusal) = Plan::compile(&room, &Host::made_up(privileged)) {
            prop_assert!(!refusal.to_string().contains(char::is_control), "{refusal:?}");
        }
    }
}
