//! Decisions on trees of plain files that look like the kernel's.

use std::collections::BTreeSet;
use std::fs;

use super::super::layout::Layout;
use super::*;

/// A v2 tree in a scratch directory.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Tree {
        Tree(tempfile::tempdir().unwrap())
    }

    fn group(&self, path: &str, controllers: &str, handed: &str, members: &[i32]) -> &Tree {
        let directory = self.path(path);
        fs::create_dir_all(&directory).unwrap();
        let put = |file: &str, text: &str| fs::write(directory.join(file), text).unwrap();
        put("cgroup.controllers", &format!("{controllers}\n"));
        put("cgroup.subtree_control", &format!("{handed}\n"));
        put("cgroup.procs", &members.iter().map(|p| format!("{p}\n")).collect::<String>());
        if !path.is_empty() {
            put("cgroup.type", "domain\n");
        }
        self
    }

    fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.0.path().to_owned() } else { self.0.path().join(path) }
    }

    fn layout(&self, own: &str) -> Layout {
        Layout {
            unified: Some(Hierarchy {
                version: Version::V2,
                controllers: BTreeSet::new(),
                own: format!("/{own}"),
                directory: Ok(self.path(own)),
                mount_point: Some(self.path("")),
            }),
            legacy: Vec::new(),
        }
    }

    fn with_legacy(&self, own: &str, trees: &[&str]) -> Layout {
        let mut layout = self.layout(own);
        for tree in trees {
            let directory = self.path(tree);
            fs::create_dir_all(&directory).unwrap();
            layout.legacy.push(Hierarchy {
                version: Version::V1,
                controllers: tree.split(',').map(str::to_owned).collect(),
                own: "/".to_owned(),
                directory: Ok(directory.clone()),
                mount_point: Some(directory),
            });
        }
        layout
    }
}

fn me() -> i32 {
    getpid().as_raw()
}

fn limits() -> Asked {
    Asked { memory_max: Some(1 << 20), pids_max: Some(10), ..Asked::default() }
}

#[test]
fn alone_in_a_delegated_scope_we_move_to_a_leaf() {
    let tree = Tree::new();
    tree.group("app.slice", "cpu memory pids", "memory pids", &[]).group(
        "app.slice/run.scope",
        "memory pids",
        "",
        &[me()],
    );
    let placement = place(&tree.layout("app.slice/run.scope"), &limits()).unwrap();
    let [site] = placement.sites.as_slice() else { panic!("{placement:?}") };
    assert_eq!(site.parent, tree.path("app.slice/run.scope"));
    assert_eq!(site.enable, [Controller::Memory, Controller::Pids]);
    assert!(site.vacate);
}

#[test]
fn not_alone_is_a_refusal_with_a_fix() {
    let tree = Tree::new();
    tree.group("s.scope", "memory pids", "", &[me(), me() + 1]);
    let unusable = place(&tree.layout("s.scope"), &limits()).unwrap_err();
    assert!(unusable.why.contains("1 other process "), "{unusable}");
    assert!(unusable.fix.contains("systemd-run --user --scope -p Delegate=yes"), "{unusable}");
    // A process of a pid namespace that we cannot see into is another process too.
    tree.group("s.scope", "memory pids", "", &[me(), 0]);
    assert!(place(&tree.layout("s.scope"), &limits()).is_err());
}

#[test]
fn a_leaf_made_before_places_beside_itself() {
    let tree = Tree::new();
    tree.group("a.service", "memory pids", "memory pids", &[]).group(
        "a.service/anchorhold-supervisor",
        "",
        "",
        &[me(), me() + 1],
    );
    let placement = place(&tree.layout("a.service/anchorhold-supervisor"), &limits()).unwrap();
    assert_eq!(placement.sites[0].parent, tree.path("a.service"));
    assert_eq!(placement.sites[0].enable, []);
    assert!(!placement.sites[0].vacate);
}

#[test]
fn systemds_delegate_subgroup_is_such_a_leaf() {
    let tree = Tree::new();
    tree.group("a.service", "memory pids", "", &[]).group("a.service/main", "", "", &[me()]);
    let placement = place(&tree.layout("a.service/main"), &limits()).unwrap();
    assert_eq!(placement.sites[0].parent, tree.path("a.service"));
    assert_eq!(placement.sites[0].enable, [Controller::Memory, Controller::Pids]);
}

#[test]
fn a_slice_is_never_ours_even_if_it_is_writable() {
    let tree = Tree::new();
    tree.group("app.slice", "memory pids", "memory pids", &[]).group(
        "app.slice/b.scope",
        "memory pids",
        "",
        &[me(), me() + 1],
    );
    assert!(place(&tree.layout("app.slice/b.scope"), &limits()).is_err());
    tree.group("docker", "memory pids", "memory pids", &[]).group(
        "docker/c0ffee",
        "memory pids",
        "",
        &[me(), me() + 1],
    );
    assert!(place(&tree.layout("docker/c0ffee"), &limits()).is_err());
}

#[test]
fn the_root_group_may_hold_processes_and_hand_out() {
    let tree = Tree::new();
    tree.group("", "memory pids", "pids", &[1, 2, me()]);
    let placement = place(&tree.layout(""), &limits()).unwrap();
    assert_eq!(placement.sites[0].enable, [Controller::Memory]);
    assert!(!placement.sites[0].vacate);
}

#[test]
fn a_controller_that_was_not_delegated_is_named() {
    let tree = Tree::new();
    tree.group("s.scope", "memory pids", "", &[me()]);
    let asked = Asked { cpu_weight: Some(10), ..limits() };
    let unusable = place(&tree.layout("s.scope"), &asked).unwrap_err();
    assert_eq!(unusable.controller, Controller::Cpu);
    assert!(unusable.why.contains("'memory pids'"), "{unusable}");
    assert!(unusable.fix.contains("Delegate=cpu io memory pids"), "{unusable}");
}

#[test]
fn threaded_groups_are_refused() {
    let tree = Tree::new();
    tree.group("t", "memory pids", "", &[me()]);
    fs::write(tree.path("t/cgroup.type"), "threaded\n").unwrap();
    assert!(place(&tree.layout("t"), &limits()).unwrap_err().why.contains("threaded"));
}

#[test]
fn accounting_is_a_wish_and_its_absence_is_reported() {
    let tree = Tree::new();
    tree.group("s.scope", "memory", "", &[me(), me() + 1]);
    let placement = place(&tree.layout("s.scope"), &Asked { account: true, ..Asked::default() }).unwrap();
    assert_eq!(placement.sites[0].controllers, [], "CPU time is there without controllers");
    assert_eq!(placement.absent.len(), 1);
    let asked = Asked { freezer: true, ..Asked::default() };
    assert_eq!(place(&tree.layout("s.scope"), &asked).unwrap().absent, []);
}

#[test]
fn accounting_in_a_leaf_uses_what_the_group_above_has() {
    let tree = Tree::new();
    tree.group("a.service", "memory pids", "", &[]).group("a.service/anchorhold-supervisor", "", "", &[me()]);
    let asked = Asked { pids_max: Some(5), account: true, ..Asked::default() };
    let placement = place(&tree.layout("a.service/anchorhold-supervisor"), &asked).unwrap();
    assert_eq!(placement.sites[0].controllers, [Controller::Pids, Controller::Memory]);
    assert_eq!(placement.absent, []);
}

#[test]
fn limits_in_v1_take_killing_and_freezing_from_v2() {
    let tree = Tree::new();
    tree.group("unified", "", "", &[me(), 1]);
    fs::remove_file(tree.path("unified/cgroup.type")).unwrap();
    let layout = tree.with_legacy("unified", &["memory", "pids", "cpu,cpuacct", "freezer"]);
    let asked = Asked { cpu_weight: Some(50), freezer: true, account: true, ..limits() };
    let placement = place(&layout, &asked).unwrap();
    let sites: Vec<_> = placement.sites.iter().map(|s| (s.version, s.controllers.clone())).collect();
    let expected = [
        (Version::V2, vec![]),
        (Version::V1, vec![Controller::Memory]),
        (Version::V1, vec![Controller::Pids]),
        (Version::V1, vec![Controller::Cpu]),
    ];
    assert_eq!(sites, expected);
    // Without v2: the freezer's tree, and one group for the controllers that share a tree.
    let placement = place(&Layout { unified: None, ..layout }, &asked).unwrap();
    let sites: Vec<_> = placement.sites.iter().map(|s| s.controllers.clone()).collect();
    let expected = [
        vec![Controller::Memory],
        vec![Controller::Pids],
        vec![Controller::Cpu, Controller::Cpuacct],
        vec![Controller::Freezer],
    ];
    assert_eq!(sites, expected);
    assert_eq!(placement.absent[0].controller, Controller::Kill);
}

#[test]
fn swap_alone_cannot_be_said_in_v1() {
    let tree = Tree::new();
    let layout = Layout { unified: None, ..tree.with_legacy("", &["memory"]) };
    let asked = Asked { swap_max: Some(0), ..Asked::default() };
    assert!(place(&layout, &asked).unwrap_err().fix.contains("memory limit"));
}

#[test]
fn no_tree_at_all_refuses_limits_and_nothing_else() {
    assert_eq!(place(&Layout::default(), &limits()).unwrap_err().controller, Controller::Memory);
    assert_eq!(
        place(&Layout::default(), &Asked { freezer: true, ..Asked::default() }).unwrap_err().controller,
        Controller::Freezer
    );
    let placement = place(&Layout::default(), &Asked { account: true, ..Asked::default() }).unwrap();
    assert!(placement.sites.is_empty());
    assert!(!placement.absent.is_empty());
}

#[test]
fn figures_out_of_range_are_refused_by_name() {
    for (asked, controller) in [
        (Asked { cpu_weight: Some(0), ..Asked::default() }, Controller::Cpu),
        (Asked { io_weight: Some(10_001), ..Asked::default() }, Controller::Io),
        (Asked { pids_max: Some(0), ..Asked::default() }, Controller::Pids),
        (
            Asked { cpu_max: Some(super::super::CpuMax { quota_us: 1, period_us: 100_000 }), ..Asked::default() },
            Controller::Cpu,
        ),
    ] {
        let unusable = place(&Layout::default(), &asked).unwrap_err();
        assert_eq!(unusable.controller, controller);
        assert!(unusable.why.contains("is not between"), "{unusable}");
    }
}

#[test]
fn a_placement_can_be_printed() {
    let tree = Tree::new();
    tree.group("s.scope", "memory pids", "", &[me()]);
    let placement = place(&tree.layout("s.scope"), &limits()).unwrap();
    let limits: Vec<_> = placement.sites[0].limits().collect();
    let expected =
        [("cgroup.max.descendants", "64"), ("memory.max", "1048576"), ("memory.oom.group", "1"), ("pids.max", "10")];
    assert_eq!(limits, expected);
    let json = serde_json::to_value(&placement).unwrap();
    assert_eq!(json["sites"][0]["version"], "v2");
    assert_eq!(json["sites"][0]["settings"][1]["file"], "memory.max");
}
