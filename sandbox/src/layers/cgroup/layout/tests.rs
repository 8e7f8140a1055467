//! Real texts of machines and containers, shortened to the lines that matter.

use super::*;

const SYSTEMD_MOUNTS: &str = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
";

fn directory(hierarchy: &Hierarchy) -> &str {
    hierarchy.directory.as_ref().expect("it can be seen").to_str().expect("UTF-8")
}

fn hidden(hierarchy: &Hierarchy) -> &Hidden {
    hierarchy.directory.as_ref().expect_err("it cannot be seen")
}

#[test]
fn pure_v2_under_systemd() {
    let own = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-r1f.scope\n";
    let layout = Layout::parse(own, SYSTEMD_MOUNTS);
    assert_eq!(layout.kind(), Kind::Unified);
    let tree = layout.unified.as_ref().unwrap();
    let app = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice";
    assert_eq!(directory(tree), format!("{app}/run-r1f.scope"));
    assert_eq!(tree.parent_directory().unwrap().to_str(), Some(app));
    assert_eq!(layout.legacy_tree(Controller::Memory), None);
}

#[test]
fn the_root_group_has_no_parent() {
    let tree = Layout::parse("0::/\n", SYSTEMD_MOUNTS).unified.unwrap();
    assert_eq!(directory(&tree), "/sys/fs/cgroup");
    assert_eq!(tree.parent_directory(), None);
}

#[test]
fn docker_on_v2_with_its_own_namespace() {
    let mounts = "\
612 506 0:56 / / rw,relatime master:199 - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
614 612 0:60 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
617 612 0:64 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
618 617 0:28 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot
";
    let tree = Layout::parse("0::/\n", mounts).unified.unwrap();
    assert_eq!(directory(&tree), "/sys/fs/cgroup");
}

#[test]
fn docker_on_v1_shares_the_hosts_names_but_mounts_only_its_part() {
    let id = "3f5ee9b1d9e7";
    let own = format!(
        "12:pids:/docker/{id}\n6:cpu,cpuacct:/docker/{id}\n4:memory:/docker/{id}\n1:name=systemd:/docker/{id}\n0::/system.slice/containerd.service\n"
    );
    let mounts = format!(
        "\
700 650 0:100 / / rw,relatime - overlay overlay rw
705 700 0:110 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
706 705 0:111 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
707 706 0:29 /docker/{id} /sys/fs/cgroup/systemd ro,nosuid,nodev,noexec,relatime master:11 - cgroup cgroup rw,xattr,name=systemd
708 706 0:31 /docker/{id} /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:15 - cgroup cgroup rw,memory
709 706 0:32 /docker/{id} /sys/fs/cgroup/cpu,cpuacct ro,nosuid,nodev,noexec,relatime master:16 - cgroup cgroup rw,cpu,cpuacct
"
    );
    let layout = Layout::parse(&own, &mounts);
    assert_eq!(layout.kind(), Kind::Legacy);
    assert_eq!(directory(layout.legacy_tree(Controller::Memory).unwrap()), "/sys/fs/cgroup/memory");
    let cpu = layout.legacy_tree(Controller::Cpu).unwrap();
    assert_eq!(directory(cpu), "/sys/fs/cgroup/cpu,cpuacct");
    assert_eq!(layout.legacy_tree(Controller::Cpuacct), Some(cpu));
    assert_eq!(hidden(layout.legacy_tree(Controller::Pids).unwrap()), &Hidden::NotMounted);
    assert_eq!(hidden(layout.unified.as_ref().unwrap()), &Hidden::NotMounted);
}

const HYBRID_MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
const HYBRID_OWN: &str = "\
9:name=systemd:/
8:pids:/
7:blkio:/
6:freezer:/
4:memory:/ci/job-17
2:cpuacct:/
1:cpu:/
0::/
";

#[test]
fn hybrid_with_a_group_of_our_own_in_one_tree_only() {
    let layout = Layout::parse(HYBRID_OWN, HYBRID_MOUNTS);
    assert_eq!(layout.kind(), Kind::Hybrid);
    assert_eq!(directory(layout.unified.as_ref().unwrap()), "/sys/fs/cgroup/unified");
    assert_eq!(directory(layout.legacy_tree(Controller::Memory).unwrap()), "/sys/fs/cgroup/memory/ci/job-17");
    assert_eq!(directory(layout.legacy_tree(Controller::Io).unwrap()), "/sys/fs/cgroup/blkio");
    assert_eq!(layout.legacy.len(), 6, "a named tree has no controllers and is of no use");
}

#[test]
fn a_mount_over_the_others_hides_them() {
    let mounts = format!("{HYBRID_MOUNTS}77 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n");
    let layout = Layout::parse(HYBRID_OWN, &mounts);
    assert_eq!(layout.kind(), Kind::Unified);
    assert_eq!(directory(layout.unified.as_ref().unwrap()), "/sys/fs/cgroup");
    assert_eq!(hidden(layout.legacy_tree(Controller::Memory).unwrap()), &Hidden::NotMounted);
}

#[test]
fn kubernetes_pod_on_v2_without_a_namespace() {
    let group = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1d.slice/cri-containerd-9a.scope";
    let whole = "900 850 0:28 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n";
    let tree = Layout::parse(&format!("0::{group}\n"), whole).unified.unwrap();
    assert_eq!(directory(&tree), format!("/sys/fs/cgroup{group}"));
    // With only its own part mounted there is nothing above it to be seen.
    let part = format!("900 850 0:28 {group} /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n");
    let tree = Layout::parse(&format!("0::{group}\n"), &part).unified.unwrap();
    assert_eq!(directory(&tree), "/sys/fs/cgroup");
    assert_eq!(tree.parent_directory(), None);
}

#[test]
fn kubernetes_pod_on_v1() {
    let group = "/kubepods/burstable/pod7e/c0ffee";
    let own = format!("5:memory:{group}\n3:cpu,cpuacct:{group}\n");
    let mounts = format!(
        "1 0 0:1 / / rw - overlay overlay rw\n\
         2 1 0:2 {group} /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
         3 1 0:3 {group} /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpuacct,cpu\n"
    );
    let layout = Layout::parse(&own, &mounts);
    assert_eq!(directory(layout.legacy_tree(Controller::Memory).unwrap()), "/sys/fs/cgroup/memory");
    assert_eq!(directory(layout.legacy_tree(Controller::Cpuacct).unwrap()), "/sys/fs/cgroup/cpu,cpuacct");
}

#[test]
fn a_namespace_entered_after_the_mount() {
    // unshare --cgroup: our group became the root of our view, the old mount's root lies two above.
    let mounts = "30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    let tree = Layout::parse("0::/\n", mounts).unified.unwrap();
    let outside = Hidden::OutsideMount { own: "/".to_owned(), root: "/../..".to_owned() };
    assert_eq!(hidden(&tree), &outside);
    // Moved to a group beside the namespace's root: named relative to the mount.
    let mounts = "30 23 0:26 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    let tree = Layout::parse("0::/../other/leaf\n", mounts).unified.unwrap();
    assert_eq!(directory(&tree), "/sys/fs/cgroup/other/leaf");
    // Moved above what a later mount shows.
    let mounts = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    assert!(matches!(hidden(&Layout::parse("0::/..\n", mounts).unified.unwrap()), Hidden::OutsideMount { .. }));
}

#[test]
fn the_mount_that_shows_our_group_is_found_among_several() {
    let mounts = "\
30 23 0:26 /machine /mnt/part rw - cgroup2 cgroup2 rw
31 23 0:26 / /mnt/with\\040blank rw - cgroup2 cgroup2 rw
";
    let tree = Layout::parse("0::/user/me:too\n", mounts).unified.unwrap();
    assert_eq!(directory(&tree), "/mnt/with blank/user/me:too");
}

#[test]
fn a_longer_name_is_not_below() {
    assert_eq!(below("/docker/abc", "/docker/ab"), None);
    assert_eq!(below("/docker/abc", "/docker/abc"), Some(String::new()));
    assert_eq!(below("/docker/abc/d", "/docker/abc"), Some("d".to_owned()));
    assert_eq!(below("/a", "/"), Some("a".to_owned()));
}

#[test]
fn nothing_and_nonsense_are_no_layout() {
    assert_eq!(Layout::parse("", "").kind(), Kind::None);
    for text in ["::", "0:", "\n\n", "x y z - ", "1 2 3 4 5 -", "30 30 0:1 / / rw - cgroup2", "\\", "0::\0"] {
        let _ = Layout::parse(text, text);
    }
    assert_eq!(unescape("a\\040b\\134c\\9\\"), "a b\\c\\9\\");
}

proptest::proptest! {
    #[test]
    fn any_text_is_parsed_without_a_panic(own in "(0:|1:memory|2:cpu,cpuacct)?:?[/.a-z:]{0,20}\n?", mounts in "([0-9]{1,2} [0-9]{1,2} 0:1 [/.a-z\\\\0-9é]{1,9} [/a-zé\\\\0-9]{1,9} rw - cgroup2? c rw,memory\n){0,6}") {
        if let Some(tree) = Layout::parse(&own, &mounts).unified
            && let Ok(directory) = tree.directory
        {
            proptest::prop_assert!(directory.starts_with(tree.mount_point.unwrap()));
        }
    }
}
