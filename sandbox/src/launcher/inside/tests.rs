//! A plan carried out on a kernel that only writes down: order, arguments, and what happens when any call is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use nix::errno::Errno;

use super::super::supervisor::failure;
use super::*;
use crate::host::Host;
use crate::ids::Pool;
use crate::layers::Layer;
use crate::room::{Entry, Outside, Room};
use crate::sys::recorder::{Recorder, Thing};

/// One thing of each kind.
fn small_room() -> Room {
    let mounts = vec![
        Entry::read_only("/store/input/inner"),
        Entry::read_only("/store/input"),
        Entry::bind("/build=/scratch".as_ref(), true),
        Entry::bind("/etc/resolv.conf?".as_ref(), false),
        Entry::read_only("/store/file"),
        Entry::read_only("/bin"),
        Entry::Tmpfs { inside: "/tmp".into(), size: crate::quantity::Size::mebibytes(1), mode: 0o1777, noexec: true },
        Entry::File { inside: "/greeting".into(), text: "hello\n".into(), executable: true },
        Entry::Symlink { inside: "/usr/bin/env".into(), target: "/store/env".into() },
        Entry::Directory { inside: "/empty/below".into() },
    ];
    let mut room = Room { mounts, ..Room::default() };
    room.process.program = "/bin/sh".into();
    room.process.directory = "/build".into();
    room
}

/// A host that has what the small room asks for.
fn host() -> BTreeMap<PathBuf, Thing> {
    let mut host = BTreeMap::new();
    let mut add = |path: &str, thing: Thing| host.insert(path.into(), thing);
    for path in ["/store/input", "/store/input/inner", "/scratch"] {
        add(path, Thing::Directory);
    }
    add("/store/file", Thing::File);
    add("/bin", Thing::Link("usr/bin".into()));
    for (name, major, minor) in crate::layers::devices::NODES {
        add(&format!("/dev/{name}"), Thing::Device(major, minor));
    }
    // What the new procfs shows of what is covered: one file is enough to see how.
    add("/proc/kmsg", Thing::File);
    host
}

/// Carries the warden's and the room's part out: what was called, and what failed.
fn carry_out(plan: &Plan, recorder: &Recorder) -> Result<(), (usize, Trouble)> {
    let no_pool = Pool { first: 0, stride: 0, slots: 0, locks: PathBuf::new() };
    let mut site = Site::new(recorder, no_pool, (1000, 1000));
    site.streams.stdin = Some(recorder.descriptor("stdin"));
    site.streams.stdout = Some(recorder.descriptor("stdout"));
    site.streams.stderr = Some(recorder.descriptor("stderr"));
    let (hatch, _supervisor) = Hatch::pair().unwrap();
    let hatch = Rc::new(hatch);
    let birth = plan.birth();
    let part =
        |place, range, site: &mut Site<'_>| interpret(plan, place, range, site, &hatch, Options::default()).map(drop);
    let first = plan.steps.iter().position(|step| step.place == Place::Warden).unwrap();
    part(Place::Warden, first..birth, &mut site)?;
    // The two are at work at the same time; here one after the other.
    let end = plan.steps.len();
    part(Place::Warden, birth..end, &mut site)?;
    let (bridge, other) = Hatch::pair().unwrap();
    bridge.send(&Vec::<(usize, u64)>::new(), Some(recorder.descriptor("network namespace").as_fd())).unwrap();
    site.bridge = Some(other);
    site.hatch = Some(Rc::clone(&hatch));
    part(Place::Room, birth..end, &mut site)
}

fn plans() -> [(&'static str, Plan); 2] {
    let as_user = Plan::compile(&small_room(), &Host::made_up(false)).unwrap();
    let mut room = small_room();
    room.identity.outside = Outside::User { uid: 30001, gid: 30000 };
    let as_root = Plan::compile(&room, &Host::made_up(true)).unwrap();
    [("user", as_user), ("root", as_root)]
}

#[test]
fn the_calls_of_a_small_room_are_these() {
    for (who, plan) in plans() {
        let recorder = Recorder::new(host());
        carry_out(&plan, &recorder).unwrap();
        let found = recorder.calls().join("\n") + "\n";
        let path = format!("src/launcher/inside/calls-as-{who}.txt");
        if std::env::var_os("ANCHORHOLD_WRITE_PLANS").is_some() {
            std::fs::write(&path, &found).unwrap();
        }
        let wanted = std::fs::read_to_string(&path).unwrap_or_default();
        for (number, (found, wanted)) in found.lines().zip(wanted.lines()).enumerate() {
            assert_eq!(found, wanted, "call {number} of {path}; write it anew with ANCHORHOLD_WRITE_PLANS=1");
        }
        assert_eq!(found.lines().count(), wanted.lines().count(), "{path}");
    }
}

/// An errno that no step forgives.
const REFUSED: Errno = Errno::EL2HLT;

#[test]
fn whichever_call_is_refused_its_step_fails_with_its_errno_and_nothing_is_called_after_it() {
    for (who, plan) in plans() {
        let whole = Recorder::new(host());
        carry_out(&plan, &whole).unwrap();
        let calls = whole.calls();
        let mut last = 0;
        let mut failed = BTreeSet::new();
        for number in 0..calls.len() {
            let recorder = Recorder::new(host()).refusing(number, REFUSED);
            let (step, trouble) = carry_out(&plan, &recorder).expect_err("a refused call is a failure");
            let call = &calls[number];
            assert_eq!(trouble.errno, REFUSED, "{who}: call {number}, {call}");
            assert_eq!(recorder.calls(), calls[..=number], "{who}: after call {number}, {call}");
            // The warden's late steps are carried out first here, so only the room's own go forward.
            if plan.steps[step].place == Place::Room {
                assert!(step >= last, "{who}: call {number}, {call}, is of step {step}, the one before of {last}");
                last = step;
            }
            failed.insert(step);
            let told = failure(&plan, step, &trouble).to_string();
            assert!(told.contains(&plan.steps[step].action.to_string()) && told.contains("EL2HLT"), "{told}");
        }
        // Every step does something that can be refused, but what is left out because its source is not there.
        let all: Vec<_> = plan.steps.iter().enumerate().filter(|(_, step)| step.place != Place::Supervisor).collect();
        let idle: Vec<_> = all
            .iter()
            .filter(|(number, _)| !failed.contains(number))
            .map(|(_, step)| step.to_string())
            .filter(|words| !words.ends_with("if it is there"))
            .collect();
        assert!(idle.is_empty(), "{who}: {idle:?}");
    }
}

#[test]
fn a_step_that_is_made_to_fail_calls_nothing() {
    let [(_, plan), _] = plans();
    let recorder = Recorder::new(host());
    let no_pool = Pool { first: 0, stride: 0, slots: 0, locks: PathBuf::new() };
    let mut site = Site::new(&recorder, no_pool, (1000, 1000));
    let fault = super::super::Fault { step: plan.birth(), errno: Errno::ENOSPC };
    let options = Options { fault: Some(fault), ..Options::default() };
    let trouble = do_step(&plan, plan.birth(), &mut site, options).unwrap_err();
    assert_eq!(trouble.errno, Errno::ENOSPC);
    assert!(recorder.calls().is_empty(), "{:?}", recorder.calls());
}

#[test]
fn what_may_be_missing_is_left_out_and_what_may_not_fails_its_own_step() {
    let [(_, plan), _] = plans();
    let missing = "/store/input";
    let mut host = host();
    host.remove(Path::new(missing));
    let (step, trouble) = carry_out(&plan, &Recorder::new(host)).unwrap_err();
    assert_eq!(trouble.errno, Errno::ENOENT);
    let failure = failure(&plan, step, &trouble);
    assert_eq!(failure.layer, Layer::Root);
    assert!(failure.doing.contains(missing), "{failure}");
    assert!(failure.fix.as_ref().is_some_and(|fix| fix.contains("optional")), "{failure}");
}

#[test]
fn many_sources_are_held_under_a_higher_limit_which_the_payload_does_not_get() {
    let mut room = small_room();
    let mut host = host();
    for number in 0..600 {
        let path = PathBuf::from(format!("/store/{number}"));
        host.insert(path.clone(), Thing::Directory);
        room.mounts.push(Entry::read_only(path));
    }
    room.identity.outside = Outside::User { uid: 30001, gid: 30000 };
    let plan = Plan::compile(&room, &Host::made_up(true)).unwrap();
    let recorder = Recorder::new(host);
    carry_out(&plan, &recorder).unwrap();
    let calls = recorder.calls();
    let at = |wanted: &str| calls.iter().position(|call| call == wanted).unwrap_or_else(|| panic!("no {wanted}"));
    assert_eq!(at("raise the limit of open files"), 0, "before the first source is opened");
    let lowered = at(&format!("setrlimit {} 1024 infinity", libc::RLIMIT_NOFILE));
    assert!(lowered > calls.iter().rposition(|call| call.starts_with("open_tree")).unwrap());
}

#[test]
fn a_device_that_is_not_the_one_of_its_name_is_not_let_in() {
    let [(_, plan), _] = plans();
    for thing in [Thing::Device(8, 0), Thing::File] {
        let mut host = host();
        host.insert("/dev/null".into(), thing);
        let (step, trouble) = carry_out(&plan, &Recorder::new(host)).unwrap_err();
        assert_eq!((plan.steps[step].action.layer(), trouble.errno), (Layer::Devices, Errno::ENODEV));
    }
}

#[test]
fn a_device_does_not_come_in_as_an_ordinary_source() {
    let mut room = small_room();
    room.mounts.push(Entry::read_only("/disk"));
    let plan = Plan::compile(&room, &Host::made_up(false)).unwrap();
    let mut host = host();
    host.insert("/disk".into(), Thing::Device(8, 0));
    let (step, trouble) = carry_out(&plan, &Recorder::new(host)).unwrap_err();
    assert_eq!((plan.steps[step].action.layer(), trouble.errno), (Layer::Root, Errno::EPERM));
}
