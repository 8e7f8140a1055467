//! The order that the kernel forces, whatever else a plan holds. Each test is named by its reason.

use anchorhold_sandbox::layers::{
    Action, capabilities, descriptors, devices, identity, keyring, landlock, limits, namespaces, network, proc,
    process, root,
};
use anchorhold_sandbox::plan::{Place, Stage};
use anchorhold_sandbox::room::{Entry, Outside, Profile};
use anchorhold_sandbox::{Host, Layer, Plan, Room};

/// The steps of a plan, to be asked who comes first.
struct Order {
    name: String,
    plan: Plan,
}

impl Order {
    /// Where a step is; every plan of these tests has exactly one.
    #[track_caller]
    fn of(&self, is_it: impl Fn(&Action) -> bool) -> usize {
        let found = self.all(is_it);
        assert_eq!(found.len(), 1, "{}: {found:?}", self.name);
        found[0]
    }

    /// Where steps are.
    fn all(&self, is_it: impl Fn(&Action) -> bool) -> Vec<usize> {
        let found = self.plan.steps.iter().enumerate().filter(|(_, step)| is_it(&step.action));
        found.map(|(number, _)| number).collect()
    }

    #[track_caller]
    fn before(&self, first: impl Fn(&Action) -> bool, then: impl Fn(&Action) -> bool) {
        let (first, then) = (self.all(first), self.all(then));
        assert!(!first.is_empty() && !then.is_empty(), "{}: nothing to compare", self.name);
        assert!(first.last() < then.first(), "{}: steps {first:?} are not all before {then:?}", self.name);
    }
}

/// The plans of all profiles, as root and as a user, with one id and with a range.
fn plans() -> Vec<Order> {
    let mut plans = Vec::new();
    for profile in Profile::ALL {
        for privileged in [true, false] {
            for outside in [Outside::Auto, Outside::Range] {
                let mut room = Room::new(profile);
                room.mounts = vec![
                    Entry::read_only("/nix/store/a/inner"),
                    Entry::read_only("/nix/store/a"),
                    Entry::bind("/build".as_ref(), true),
                ];
                room.identity.outside = outside;
                room.devices.kvm = true;
                room.process.program = "/bin/sh".into();
                let plan = Plan::compile(&room, &Host::made_up(privileged)).expect("the made-up host can do it");
                plans.push(Order { name: format!("{profile:?}, privileged {privileged}, {outside:?}"), plan });
            }
        }
    }
    plans
}

fn mounts_something(action: &Action) -> bool {
    match action {
        Action::Root(action) => matches!(
            action,
            root::Action::NewRoot { .. }
                | root::Action::Bind { .. }
                | root::Action::Tmpfs { .. }
                | root::Action::SealRoot { .. }
        ),
        Action::Devices(action) => !matches!(action, devices::Action::Link { .. }),
        Action::Proc(_) | Action::Landlock(landlock::Action::Queues) => true,
        _ => false,
    }
}

#[test]
fn stages_never_go_back() {
    for order in plans() {
        let stages: Vec<Stage> = order.plan.steps.iter().map(|step| step.stage).collect();
        assert!(stages.is_sorted(), "{}: {stages:?}", order.name);
    }
}

#[test]
fn once_the_room_is_born_the_warden_makes_its_network_and_nothing_else() {
    for order in plans() {
        let late = order.plan.steps_of(Place::Warden).filter(|(number, _)| *number >= order.plan.birth());
        let stages: Vec<_> = late.map(|(_, step)| step.stage).collect();
        assert!(stages.iter().all(|stage| *stage == Stage::Network), "{}: {stages:?}", order.name);
    }
}

#[test]
fn the_network_is_made_after_the_user_namespace_that_owns_it_and_joined_before_the_second_one_which_does_not() {
    for order in plans() {
        let make = |action: &Action| matches!(action, Action::Network(network::Action::Make));
        let join = |action: &Action| matches!(action, Action::Network(network::Action::Join));
        order.before(
            |action| {
                matches!(
                    action,
                    Action::Identity(identity::Action::MapSelf { .. } | identity::Action::BecomeInside { .. })
                )
            },
            make,
        );
        order.before(make, join);
        order.before(join, |action| matches!(action, Action::Identity(identity::Action::Lock { .. })));
    }
}

#[test]
fn the_policy_of_destinations_is_in_force_before_there_is_an_interface_to_get_out_by() {
    for order in plans().iter().filter(|order| order.name.contains("Fetch")) {
        let pasta = |action: &Action| matches!(action, Action::Network(network::Action::StartPasta(..)));
        order.before(|action| matches!(action, Action::Network(network::Action::InstallPolicy(_))), pasta);
        order.before(|action| matches!(action, Action::Network(network::Action::Join)), pasta);
        order.before(pasta, |action| matches!(action, Action::Network(network::Action::Configure(_))));
    }
}

#[test]
fn sources_are_opened_while_the_callers_ids_are_held_as_the_rooms_ids_may_not_reach_them() {
    for order in plans().iter().filter(|order| order.name.contains("privileged true")) {
        order.before(
            |action| matches!(action, Action::Root(root::Action::Open { .. })),
            |action| matches!(action, Action::Identity(identity::Action::Become { .. })),
        );
    }
}

#[test]
fn sources_are_bound_by_the_numbers_under_which_they_were_opened() {
    for order in plans().iter().filter(|order| order.name.contains("privileged true")) {
        let mut opened = Vec::new();
        let mut bound = Vec::new();
        for step in &order.plan.steps {
            match &step.action {
                Action::Root(root::Action::Open { number, path, .. }) => opened.push((*number, path.clone())),
                Action::Root(root::Action::Bind { source: root::Source::Opened(number), outside, .. }) => {
                    bound.push((*number, outside.clone()));
                }
                _ => {}
            }
        }
        assert_eq!(opened, bound, "{}", order.name);
        assert!(opened.iter().enumerate().all(|(place, (number, _))| place == *number), "{}: {opened:?}", order.name);
    }
}

#[test]
fn ids_are_given_up_before_the_user_namespace_is_made_so_that_root_never_owns_it() {
    for order in plans().iter().filter(|order| order.name.contains("privileged true")) {
        order.before(
            |action| matches!(action, Action::Identity(identity::Action::Become { .. })),
            |action| matches!(action, Action::Namespaces(namespaces::Action::Unshare(kinds)) if kinds.contains(&namespaces::Kind::User)),
        );
    }
}

#[test]
fn the_user_namespace_comes_first_so_that_it_owns_all_the_others() {
    for order in plans() {
        let unshares = order.all(|action| matches!(action, Action::Namespaces(namespaces::Action::Unshare(_))));
        let Action::Namespaces(namespaces::Action::Unshare(first)) = &order.plan.steps[unshares[0]].action else {
            unreachable!("found as such")
        };
        assert_eq!(first[0], namespaces::Kind::User, "{}", order.name);
    }
}

#[test]
fn ids_are_mapped_before_anything_is_made_as_nothing_has_an_owner_without_a_map() {
    for order in plans() {
        order.before(
            |action| {
                matches!(action, Action::Identity(identity::Action::MapSelf { .. } | identity::Action::MapRange { .. }))
            },
            mounts_something,
        );
    }
}

#[test]
fn a_whole_range_is_mapped_by_the_supervisor_which_alone_has_the_privilege() {
    for order in plans().iter().filter(|order| order.name.contains("Range")) {
        let map = order.of(|action| matches!(action, Action::Identity(identity::Action::MapRange { .. })));
        assert_eq!(order.plan.steps[map].place, Place::Supervisor, "{}", order.name);
        order.before(
            |action| matches!(action, Action::Identity(identity::Action::MapRange { .. })),
            |action| matches!(action, Action::Identity(identity::Action::BecomeInside { .. })),
        );
    }
}

#[test]
fn the_leash_is_on_before_anything_else_in_the_room_and_again_after_the_last_change_of_ids_which_clears_it() {
    for order in plans() {
        let leashes = order.all(|action| matches!(action, Action::Process(process::Action::DieWithSupervisor)));
        let first = order.plan.steps.iter().position(|step| step.place == Place::Room).unwrap();
        assert_eq!(leashes.first(), Some(&first), "{}", order.name);
        let lock = order.of(|action| matches!(action, Action::Identity(identity::Action::Lock { .. })));
        assert!(leashes.last().is_some_and(|last| *last > lock), "{}: {leashes:?}", order.name);
    }
}

#[test]
fn the_new_root_is_mounted_before_anything_can_be_attached_below_it() {
    for order in plans() {
        order.before(
            |action| matches!(action, Action::Root(root::Action::NewRoot { .. })),
            |action| mounts_something(action) && !matches!(action, Action::Root(root::Action::NewRoot { .. })),
        );
    }
}

#[test]
fn an_outer_mount_is_made_before_an_inner_one_which_it_would_hide() {
    for order in plans() {
        let at = |wanted: &str| {
            order.of(|action| matches!(action, Action::Root(root::Action::Bind { inside, .. }) if inside.as_os_str() == wanted))
        };
        assert!(at("/nix/store/a") < at("/nix/store/a/inner"), "{}", order.name);
    }
}

#[test]
fn procfs_is_mounted_while_the_old_root_is_still_there_as_the_kernel_wants_a_whole_one_in_sight() {
    for order in plans() {
        order.before(
            |action| matches!(action, Action::Proc(proc::Action::Mount | proc::Action::Pristine)),
            |action| matches!(action, Action::Root(root::Action::Pivot)),
        );
    }
}

#[test]
fn device_nodes_are_bound_while_the_old_root_is_still_there_as_they_are_the_hosts() {
    for order in plans() {
        order.before(
            |action| matches!(action, Action::Devices(_)),
            |action| matches!(action, Action::Root(root::Action::Pivot)),
        );
    }
}

#[test]
fn the_files_that_cover_others_are_made_before_procfs_is_mounted_over_them() {
    for order in plans() {
        order.before(
            |action| matches!(action, Action::Proc(proc::Action::Covers { .. })),
            |action| matches!(action, Action::Proc(proc::Action::Mount)),
        );
    }
}

#[test]
fn a_nested_rooms_uncovered_procfs_is_mounted_before_the_covers_make_the_kernel_refuse_it() {
    for order in plans().iter().filter(|order| order.name.contains("Nested")) {
        order.before(
            |action| matches!(action, Action::Proc(proc::Action::Pristine)),
            |action| matches!(action, Action::Proc(proc::Action::HideFiles { .. } | proc::Action::HideDirectories(_))),
        );
    }
}

#[test]
fn limits_on_namespaces_are_written_before_proc_sys_is_read_only() {
    for order in plans() {
        order.before(
            |action| matches!(action, Action::Proc(proc::Action::Mount)),
            |action| matches!(action, Action::Namespaces(namespaces::Action::Allow { .. })),
        );
        order.before(
            |action| matches!(action, Action::Namespaces(namespaces::Action::Allow { .. })),
            |action| matches!(action, Action::Proc(proc::Action::ReadOnlySys)),
        );
    }
}

#[test]
fn the_limit_on_user_namespaces_leaves_one_for_the_second_and_none_for_the_payload() {
    for order in plans().iter().filter(|order| !order.name.contains("Nested")) {
        let allow = order.of(|action| matches!(action, Action::Namespaces(namespaces::Action::Allow { .. })));
        let lock = order.of(|action| matches!(action, Action::Identity(identity::Action::Lock { .. })));
        assert!(allow < lock, "{}", order.name);
        let Action::Namespaces(namespaces::Action::Allow { kind, most }) = &order.plan.steps[allow].action else {
            unreachable!("found as such")
        };
        assert_eq!((*kind, *most), (namespaces::Kind::User, 1), "{}", order.name);
    }
}

#[test]
fn the_root_is_sealed_after_the_last_mount_point_was_made_in_it() {
    for order in plans() {
        order.before(
            |action| {
                matches!(action, Action::Etc(_))
                    || matches!(action, Action::Root(root::Action::Bind { .. } | root::Action::File { .. }))
                    || matches!(action, Action::Proc(proc::Action::Mount | proc::Action::Pristine))
                    || matches!(action, Action::Devices(_))
            },
            |action| matches!(action, Action::Root(root::Action::SealRoot { .. })),
        );
    }
}

#[test]
fn the_old_root_is_detached_at_once_after_pivot_root_put_it_over_the_new_one() {
    for order in plans() {
        let pivot = order.of(|action| matches!(action, Action::Root(root::Action::Pivot)));
        let detach = order.of(|action| matches!(action, Action::Root(root::Action::DetachOldRoot)));
        assert_eq!(pivot + 1, detach, "{}", order.name);
    }
}

#[test]
fn the_second_user_namespace_comes_after_the_last_mount_so_that_all_of_them_are_locked() {
    for order in plans() {
        let lock = |action: &Action| matches!(action, Action::Identity(identity::Action::Lock { .. }));
        order.before(mounts_something, lock);
        order.before(|action| matches!(action, Action::Root(root::Action::DetachOldRoot)), lock);
        order.before(|action| matches!(action, Action::Namespaces(_)), lock);
    }
}

#[test]
fn processes_are_limited_after_the_second_user_namespace_in_which_they_are_counted() {
    for order in plans() {
        order.before(
            |action| matches!(action, Action::Identity(identity::Action::Lock { .. })),
            |action| matches!(action, Action::Limits(limits::Action::Set { .. })),
        );
    }
}

#[test]
fn the_session_is_new_before_its_terminal_is_the_controlling_one() {
    let mut room = Room::default();
    room.process.program = "/bin/sh".into();
    room.process.output = anchorhold_sandbox::room::Output::Terminal;
    let plan = Plan::compile(&room, &Host::made_up(false)).unwrap();
    let order = Order { name: "terminal".into(), plan };
    let descriptor =
        |wanted: descriptors::Action| move |action: &Action| *action == Action::Descriptors(wanted.clone());
    order.before(descriptor(descriptors::Action::NewSession), descriptor(descriptors::Action::ControllingTerminal));
    order.before(
        |action| matches!(action, Action::Descriptors(descriptors::Action::Streams { .. })),
        descriptor(descriptors::Action::ControllingTerminal),
    );
}

#[test]
fn descriptors_are_closed_after_the_last_step_that_opens_one_of_the_host() {
    for order in plans() {
        let close = order.of(|action| matches!(action, Action::Descriptors(descriptors::Action::CloseOthers { .. })));
        assert!(
            order.plan.steps[close..].iter().all(|step| !mounts_something(&step.action)),
            "{}: a mount after the descriptors were closed",
            order.name
        );
    }
}

#[test]
fn capabilities_are_dropped_after_the_last_mount_and_the_last_change_of_ids() {
    for order in plans() {
        let drop = |action: &Action| matches!(action, Action::Capabilities(capabilities::Action::Drop));
        order.before(mounts_something, drop);
        order.before(|action| matches!(action, Action::Identity(_)), drop);
        order.before(|action| matches!(action, Action::Keyring(keyring::Action::Join)), drop);
        order.before(|action| matches!(action, Action::Limits(_)), drop);
    }
}

#[test]
fn no_new_privileges_is_set_before_landlock_which_needs_it_without_capabilities() {
    for order in plans() {
        order.before(
            |action| matches!(action, Action::Capabilities(capabilities::Action::NoNewPrivileges)),
            |action| matches!(action, Action::Landlock(landlock::Action::Restrict { .. })),
        );
    }
}

#[test]
fn the_filter_is_last_as_it_judges_everything_that_comes_after() {
    for order in plans() {
        let filter = order.of(|action| action.layer() == Layer::Seccomp);
        assert_eq!(filter + 1, order.plan.steps.len(), "{}", order.name);
    }
}
