//! Control groups on the machine that runs the tests. Whatever is not writable here is skipped, with the reason printed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anchorhold_sandbox::layers::cgroup::{
    Asked, Cgroup, Controller, CpuMax, Error, Freezer, GroupName, Kind, Layout, Placement, Version, place, sweep_stale,
};
use nix::unistd::Pid;

/// The groups of one test, ended and removed also when an assertion fails.
struct Guard(Option<Cgroup>);

impl std::ops::Deref for Guard {
    type Target = Cgroup;
    fn deref(&self) -> &Cgroup {
        self.0.as_ref().expect("taken only at the end")
    }
}

impl Guard {
    fn remove(mut self) {
        let group = self.0.take().expect("taken only here");
        let directories: Vec<PathBuf> = group.directories().map(Path::to_owned).collect();
        group.remove().expect("groups are removed");
        for directory in directories {
            assert!(!directory.exists(), "{} is left behind", directory.display());
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(group) = self.0.take() {
            let _ = group.kill();
            let _ = group.remove();
        }
    }
}

fn placement(asked: &Asked) -> Option<Placement> {
    match place(&Layout::detect().expect("/proc is readable"), asked) {
        Ok(placement) => Some(placement),
        Err(unusable) => {
            println!("skipped: {unusable}");
            None
        }
    }
}

fn room(asked: &Asked) -> Option<Guard> {
    let placement = placement(asked)?;
    let group = Cgroup::create(&placement, &GroupName::unique().expect("a name")).expect("groups are made");
    Some(Guard(Some(group)))
}

/// A shell that waits for a line before it runs `script`, so that it can be moved first.
fn waiting_shell(script: &str) -> Child {
    Command::new("/bin/sh")
        .args(["-c", &format!("read line; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell starts")
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a pid fits"))
}

fn go(child: &mut Child) {
    child.stdin.as_mut().expect("piped").write_all(b"\n").expect("the shell reads");
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "{what} did not come true");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn nothing_asked_makes_nothing() {
    let placement = placement(&Asked::default()).expect("nothing can always be had");
    assert!(placement.sites.is_empty());
    let group = Cgroup::create(&placement, &GroupName::unique().unwrap()).unwrap();
    assert_eq!(group.directories().count(), 0);
    assert!(matches!(group.kill(), Err(Error::Absent(_))));
    group.remove().unwrap();
}

#[test]
fn memory_limit_ends_what_takes_too_much_and_says_so() {
    let asked = Asked { memory_max: Some(32 << 20), account: true, ..Asked::default() };
    let Some(group) = room(&asked) else { return };
    assert_eq!(group.oom_kills(), Some(0));
    // Without a newline in its input, tail keeps all of it.
    let mut child = waiting_shell("head -c 200000000 /dev/zero | tail -n 1 > /dev/null");
    group.attach(pid(&child)).unwrap();
    go(&mut child);
    let status = child.wait().unwrap();
    assert!(status.signal() == Some(9) || status.code() == Some(137), "{status:?}");
    assert!(group.oom_kills().unwrap() >= 1);
    assert!(group.memory_limit_hits().unwrap() >= 1);
    let peak = group.account().memory_peak.expect("memory is measured here");
    assert!((16 << 20..=32 << 20).contains(&peak), "{peak}");
    group.kill().unwrap();
    group.remove();
}

#[test]
fn a_crash_is_no_oom_kill() {
    let asked = Asked { memory_max: Some(64 << 20), ..Asked::default() };
    let Some(group) = room(&asked) else { return };
    let mut child = waiting_shell("kill -9 $$");
    group.attach(pid(&child)).unwrap();
    go(&mut child);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(group.oom_kills(), Some(0));
    group.remove();
}

#[test]
fn pids_limit_refuses_forks_and_counts_them() {
    let asked = Asked { pids_max: Some(6), ..Asked::default() };
    let Some(group) = room(&asked) else { return };
    let mut child = waiting_shell("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 20 & done; wait");
    group.attach(pid(&child)).unwrap();
    go(&mut child);
    // dash gives up with 2 at the first fork that fails.
    assert_eq!(child.wait().unwrap().code(), Some(2));
    assert!(group.pids_refused().is_none_or(|n| n >= 1), "{:?}", group.pids_refused());
    assert_eq!(group.account().pids_peak.unwrap_or(6), 6);
    group.kill().unwrap();
    group.remove();
}

#[test]
fn kill_ends_a_tree_that_keeps_forking() {
    let asked = Asked { pids_max: Some(100), ..Asked::default() };
    let Some(group) = room(&asked) else { return };
    let mut child = end_a_forking_tree(&group);
    // Zombies do not hold a group: the supervisor may reap later.
    group.remove();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

fn end_a_forking_tree(group: &Cgroup) -> Child {
    let mut child = waiting_shell(
        "trap '' TERM HUP; for i in 1 2 3 4 5; do (end=$(($(date +%s)+20)); \
         while [ $(date +%s) -lt $end ]; do sleep 0.01 & wait; done) & done; echo up; wait",
    );
    group.attach(pid(&child)).unwrap();
    go(&mut child);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    group.kill().unwrap();
    for directory in group.directories() {
        assert_eq!(lines(&directory.join("cgroup.procs")), Vec::<String>::new());
    }
    child
}

/// The v1 way of killing, by signals, on a machine that would use v2's: only the v1 part of the layout is offered.
fn legacy_only() -> Layout {
    Layout { unified: None, ..Layout::detect().unwrap() }
}

#[test]
fn kill_without_v2_ends_a_tree_that_keeps_forking() {
    for freezer in [true, false] {
        let asked = Asked { pids_max: Some(100), freezer, ..Asked::default() };
        let placement = match place(&legacy_only(), &asked) {
            Ok(placement) => placement,
            Err(unusable) => return println!("skipped: {unusable}"),
        };
        let group = Cgroup::create(&placement, &GroupName::unique().unwrap()).unwrap();
        let group = Guard(Some(group));
        let mut child = end_a_forking_tree(&group);
        group.remove();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}

#[test]
fn a_room_is_frozen_by_who_knows_only_one_of_its_processes() {
    let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap());
    assert_eq!(Freezer::of(own).unwrap(), None, "a group that is no room's is left alone");
    let asked = Asked { freezer: true, ..Asked::default() };
    for layout in [Layout::detect().unwrap(), legacy_only()] {
        let placement = match place(&layout, &asked) {
            Ok(placement) => placement,
            Err(unusable) => {
                println!("skipped: {unusable}");
                continue;
            }
        };
        let group = Guard(Some(Cgroup::create(&placement, &GroupName::unique().unwrap()).unwrap()));
        let mut child = waiting_shell("echo ran");
        group.attach(pid(&child)).unwrap();
        let freezer = Freezer::of(pid(&child)).unwrap().expect("its group is a room's");
        freezer.set(true).unwrap();
        go(&mut child);
        assert!(child.try_wait().unwrap().is_none(), "it cannot have run");
        freezer.set(false).unwrap();
        assert!(child.wait().unwrap().success());
        group.remove();
    }
}

#[test]
fn freezing_stops_and_thawing_lets_run() {
    let asked = Asked { freezer: true, ..Asked::default() };
    for layout in [Layout::detect().unwrap(), legacy_only()] {
        let placement = match place(&layout, &asked) {
            Ok(placement) => placement,
            Err(unusable) => {
                println!("skipped: {unusable}");
                continue;
            }
        };
        let version = placement.sites[0].version;
        let group = Guard(Some(Cgroup::create(&placement, &GroupName::unique().unwrap()).unwrap()));
        let (file, frozen, thawed) = match version {
            Version::V2 => ("cgroup.freeze", "1", "0"),
            Version::V1 => ("freezer.state", "FROZEN", "THAWED"),
        };
        let state = group.directories().next().unwrap().join(file);
        let mut child = waiting_shell("echo ran");
        group.attach(pid(&child)).unwrap();
        group.freeze().unwrap();
        assert_eq!(lines(&state), [frozen]);
        go(&mut child);
        assert!(child.try_wait().unwrap().is_none(), "it cannot have run");
        group.thaw().unwrap();
        assert_eq!(lines(&state), [thawed]);
        assert!(child.wait().unwrap().success());
        // And a frozen room can be killed.
        let mut child = waiting_shell("echo ran");
        group.attach(pid(&child)).unwrap();
        group.freeze().unwrap();
        group.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        group.remove();
    }
}

#[test]
fn a_process_that_gave_up_its_ids_joins_through_inherited_files() {
    let asked = Asked {
        memory_max: Some(64 << 20),
        pids_max: Some(50),
        cpu_weight: Some(50),
        freezer: true,
        ..Asked::default()
    };
    let Some(group) = room(&asked) else { return };
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: only root can give up its ids");
    }
    for (file, directory) in group.join_files().unwrap().into_iter().zip(group.directories()) {
        // The shell's standard output is the membership list: its echo is the shell's own write(2).
        let mut child = Command::new("/bin/sh")
            .args(["-c", "echo 0; read line"])
            .uid(65534)
            .gid(65534)
            .stdin(Stdio::piped())
            .stdout(file)
            .spawn()
            .unwrap();
        let name = directory.file_name().unwrap().to_str().unwrap();
        let memberships = PathBuf::from(format!("/proc/{}/cgroup", child.id()));
        eventually("membership", || lines(&memberships).iter().any(|l| l.contains(name)));
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
        go(&mut child);
        assert!(child.wait().unwrap().success());
    }
    group.remove();
}

#[test]
fn every_limit_is_read_back() {
    let asked = Asked {
        memory_max: Some((64 << 20) + 1),
        swap_max: Some(0),
        pids_max: Some(50),
        cpu_weight: Some(50),
        cpu_max: Some(CpuMax { quota_us: 50_000, period_us: 100_000 }),
        ..Asked::default()
    };
    let Some(group) = room(&asked) else { return };
    let limits = group.read_back().unwrap();
    for controller in [Controller::Memory, Controller::Pids, Controller::Cpu] {
        assert!(limits.iter().any(|l| l.controller == controller), "{controller}");
    }
    let memory = limits.iter().find(|l| l.asked == ((64 << 20) + 1).to_string()).unwrap();
    assert_eq!(memory.holds, (64 << 20).to_string());
    // Somebody lifts a limit: the proof at the end of the build finds it.
    let pids = limits.iter().find(|l| l.controller == Controller::Pids).unwrap();
    fs::write(&pids.file, "max").unwrap();
    assert!(matches!(group.read_back(), Err(Error::NotAsAsked { .. })));
    group.remove();
}

#[test]
fn a_limit_that_the_kernel_refuses_leaves_nothing() {
    // A quota of more CPUs than a machine can count is invalid (kernel/sched/core.c, `max_cfs_runtime`).
    let asked = Asked {
        pids_max: Some(5),
        cpu_max: Some(CpuMax { quota_us: u64::MAX / 1000, period_us: 1000 }),
        ..Asked::default()
    };
    let Some(placement) = placement(&asked) else { return };
    let name = GroupName::unique().unwrap();
    let error = Cgroup::create(&placement, &name).unwrap_err();
    assert_eq!(error.errno(), Some(nix::errno::Errno::EINVAL), "{error}");
    for site in &placement.sites {
        assert!(!site.parent.join(name.to_string()).exists());
    }
}

#[test]
fn cpu_time_is_accounted() {
    let asked = Asked { account: true, ..Asked::default() };
    let Some(group) = room(&asked) else { return };
    let mut child = waiting_shell("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done");
    group.attach(pid(&child)).unwrap();
    go(&mut child);
    assert!(child.wait().unwrap().success());
    let account = group.account();
    println!("{account:?}");
    match account.cpu_user_us.zip(account.cpu_system_us) {
        Some((user, system)) => assert!(user + system > 10_000),
        None => println!("skipped: CPU time is not measured here"),
    }
    group.remove();
}

#[test]
fn an_io_weight_is_set_where_the_kernel_has_one() {
    let Some(placement) = placement(&Asked { io_weight: Some(300), ..Asked::default() }) else { return };
    match Cgroup::create(&placement, &GroupName::unique().unwrap()) {
        Ok(group) => {
            let group = Guard(Some(group));
            let limits = group.read_back().unwrap();
            let io = limits.iter().find(|l| l.controller == Controller::Io).unwrap();
            assert!(io.holds.contains(&io.asked), "{io:?}");
            group.remove();
        }
        // A kernel with the controller and neither cost model nor bfq: asked, so refused.
        Err(error) => {
            assert_eq!(error.errno(), Some(nix::errno::Errno::ENOENT), "{error}");
            println!("skipped: {error}");
        }
    }
}

/// Set for a copy of this test program that plays the supervisor.
const AS_SUPERVISOR: &str = "ANCHORHOLD_TEST_AS_SUPERVISOR";

/// Not a test by itself: what the copy does that [`sweep_ends_what_a_killed_supervisor_left`] starts.
#[test]
fn as_supervisor() {
    if std::env::var_os(AS_SUPERVISOR).is_none() {
        return;
    }
    let asked = Asked { pids_max: Some(20), freezer: true, ..Asked::default() };
    let Some(group) = room(&asked) else { return };
    let mut child = Command::new("/bin/sleep").arg("30").spawn().unwrap();
    group.attach(pid(&child)).unwrap();
    group.freeze().unwrap();
    for directory in group.directories() {
        println!("\ngroup {}", directory.display());
    }
    println!("\nup");
    // Until it is killed: a frozen child does not end.
    let _ = child.wait();
}

#[test]
fn sweep_ends_what_a_killed_supervisor_left() {
    let mut supervisor = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_supervisor", "--nocapture"])
        .env(AS_SUPERVISOR, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut groups = Vec::new();
    for line in BufReader::new(supervisor.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        match line.strip_prefix("group ") {
            Some(directory) => groups.push(PathBuf::from(directory)),
            None if line == "up" => break,
            None => {}
        }
    }
    let layout = Layout::detect().unwrap();
    if groups.is_empty() {
        supervisor.wait().unwrap();
        return println!("skipped: no group could be made");
    }
    let _ = sweep_stale(&layout);
    assert!(groups.iter().all(|g| g.exists()), "a supervised group was swept");
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    assert!(groups.iter().all(|g| g.exists()), "the test is void: the groups went by themselves");
    // Other tests of this program start processes; between fork and exec those hold copies of locks for a moment.
    eventually("an empty sweep", || {
        let _ = sweep_stale(&layout);
        groups.iter().all(|g| !g.exists())
    });
}

#[test]
fn a_lock_protects_a_group_whose_supervisor_cannot_be_seen() {
    let Some(placement) = placement(&Asked { freezer: true, ..Asked::default() }) else { return };
    // As from another pid namespace: nobody here has this pid and start time.
    let directory = placement.sites[0].parent.join(format!("anchorhold-1-{}-{}", u64::MAX, std::process::id()));
    fs::create_dir(&directory).unwrap();
    let lock = File::open(&directory).unwrap();
    lock.lock().unwrap();
    let layout = Layout::detect().unwrap();
    let _ = sweep_stale(&layout);
    assert!(directory.exists(), "locked, so not stale");
    drop(lock);
    eventually("the sweep", || {
        let _ = sweep_stale(&layout);
        !directory.exists()
    });
}

/// Set for a copy of this test program that runs where only the v2 tree can be seen.
const IN_V2_VIEW: &str = "ANCHORHOLD_TEST_IN_V2_VIEW";

#[test]
fn only_v2_in_sight() {
    if std::env::var_os(IN_V2_VIEW).is_some() {
        return in_v2_view();
    }
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    if !nix::unistd::geteuid().is_root() || !hybrid.exists() {
        return println!("skipped: needs root and a hybrid layout");
    }
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "/bin/sh", "-c"])
        .arg("mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup && exec \"$0\" --exact only_v2_in_sight --nocapture")
        .arg(std::env::current_exe().unwrap())
        .env(IN_V2_VIEW, "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn in_v2_view() {
    let layout = Layout::detect().unwrap();
    assert_eq!(layout.kind(), Kind::Unified);
    let Some(group) = room(&Asked { freezer: true, account: true, ..Asked::default() }) else { return };
    assert!(group.v2_directory().is_some());
    assert_eq!(group.directories().count(), 1);
    let mut child = waiting_shell("sleep 20");
    group.attach(pid(&child)).unwrap();
    group.freeze().unwrap();
    group.thaw().unwrap();
    group.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(group.account().cpu_user_us.is_some());
    group.remove();
    // The controllers are in v1 trees that nobody can see: a refusal, not an absence.
    if layout.legacy_tree(Controller::Pids).is_some() {
        let unusable = place(&layout, &Asked { pids_max: Some(3), ..Asked::default() }).unwrap_err();
        assert_eq!(unusable.controller, Controller::Pids);
        assert!(unusable.why.contains("not mounted"), "{unusable}");
    }
}

/// A build whose ids own the group's directories may mount cgroup2 in a user namespace of its own; what it sees there starts at
/// its own group, and the limits are above.
#[test]
fn limits_in_v2_are_out_of_the_rooms_sight() {
    let asked = Asked { memory_max: Some(64 << 20), pids_max: Some(50), ..Asked::default() };
    let Some(placement) = placement(&asked) else { return };
    if placement.sites.iter().any(|s| s.version == Version::V1) {
        return println!("skipped: the limits are in v1 here");
    }
    let group = Guard(Some(Cgroup::create(&placement, &GroupName::unique().unwrap()).unwrap()));
    let mut child = waiting_shell(
        "exec unshare --user --map-root-user --mount --cgroup /bin/sh -c \
         'mount -t cgroup2 cgroup2 /mnt && echo $$ > /mnt/cgroup.procs && ls /mnt && cat /proc/self/cgroup'",
    );
    group.attach(pid(&child)).unwrap();
    go(&mut child);
    let output = child.wait_with_output().unwrap();
    let seen = String::from_utf8(output.stdout).unwrap();
    if seen.is_empty() {
        return println!("skipped: no user namespaces here");
    }
    assert!(seen.contains("cgroup.procs") && seen.ends_with("0::/\n"), "{seen}");
    assert!(!seen.contains("memory.max") && !seen.contains("pids.max"), "{seen}");
    group.remove();
}

/// Set for the copies of this test program that run in a kernel of their own.
const IN_OWN_KERNEL: &str = "ANCHORHOLD_TEST_IN_OWN_KERNEL";

/// Boots User-mode Linux (Debian's package `user-mode-linux`; `linux.uml` in `PATH`) on the host's files, read-only, and
/// runs these tests there with all controllers in v2: as root in the root group, as a user who is alone in a delegated
/// group, and as one who is not.
#[test]
fn delegation_in_a_kernel_with_v2_only() {
    if std::env::var_os(IN_OWN_KERNEL).is_some() {
        return;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(kernel) = std::env::split_paths(&path).map(|d| d.join("linux.uml")).find(|f| f.exists()) else {
        return println!("skipped: no linux.uml in PATH");
    };
    let scratch = tempfile::tempdir().unwrap();
    let (init, program) = (scratch.path().join("init"), scratch.path().join("tests"));
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let program = program.to_str().unwrap();
    let as_user = format!(
        "exec setpriv --reuid 65534 --regid 65534 --clear-groups timeout --foreground 60 {program} --nocapture --test-threads 1"
    );
    fs::write(
        &init,
        format!(
            "#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin; export PATH {IN_OWN_KERNEL}=1
mount -t proc proc /proc; mount -t tmpfs tmpfs /run; mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd /sys/fs/cgroup
timeout 60 {program} --nocapture --test-threads 1; echo \"end root $?\"
mkdir alone.scope shared.scope; chown -R 65534:65534 alone.scope shared.scope
sh -c 'echo 0 > shared.scope/cgroup.procs; {as_user}'; echo \"end shared $?\"
sh -c 'echo 0 > alone.scope/cgroup.procs; {setpriv}'; echo \"end alone $?\"
cat alone.scope/cgroup.subtree_control
echo left: $(find . -name 'anchorhold-[0-9]*' -o -name room)
echo o > /proc/sysrq-trigger; sleep 5
",
            // Without timeout(1), which would be a second process of the group.
            setpriv = as_user.replace("timeout --foreground 60 ", ""),
        ),
    )
    .unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&init, executable).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(scratch.path(), executable).unwrap();
    let output = Command::new("timeout")
        .args(["--kill-after=5", "200"])
        .arg(kernel)
        .args(["rootfstype=hostfs", "ro", "mem=512M", "quiet", "con=null", "con0=null,fd:1"])
        .arg(format!("uml_dir={}", scratch.path().display()))
        .arg(format!("init={}", init.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stdout);
    println!("{log}");
    for end in ["end root 0", "end shared 0", "end alone 0"] {
        assert!(log.contains(end), "no '{end}' in:\n{log}");
    }
    assert!(log.contains("left:\r\n") || log.contains("left:\n"), "{log}");
    let handed = log.lines().find(|l| l.trim_end().ends_with("memory pids"));
    assert!(handed.is_some(), "nothing was handed out:\n{log}");
}

#[test]
fn what_groups_cost() {
    let layout = Layout::detect().unwrap();
    let started = Instant::now();
    let _ = sweep_stale(&layout);
    println!("sweep: {} µs", started.elapsed().as_micros());
    let limits: [(&str, Asked); 5] = [
        ("freezer", Asked { freezer: true, ..Asked::default() }),
        ("memory", Asked { memory_max: Some(1 << 30), ..Asked::default() }),
        ("memory pids", Asked { memory_max: Some(1 << 30), pids_max: Some(100), ..Asked::default() }),
        (
            "memory pids cpu",
            Asked { memory_max: Some(1 << 30), pids_max: Some(100), cpu_weight: Some(50), ..Asked::default() },
        ),
        (
            "memory pids cpu account",
            Asked {
                memory_max: Some(1 << 30),
                pids_max: Some(100),
                cpu_weight: Some(50),
                account: true,
                ..Asked::default()
            },
        ),
    ];
    for (name, asked) in limits {
        let mut times: Vec<[u128; 4]> = Vec::new();
        let mut groups = 0;
        for _ in 0..9 {
            let started = Instant::now();
            let Some(placement) = placement(&asked) else { break };
            let placed = started.elapsed();
            let started = Instant::now();
            let group = Cgroup::create(&placement, &GroupName::unique().unwrap()).unwrap();
            let created = started.elapsed();
            groups = group.directories().count();
            let group = Guard(Some(group));
            let mut child = waiting_shell("true");
            let started = Instant::now();
            group.attach(pid(&child)).unwrap();
            let joined = started.elapsed();
            go(&mut child);
            child.wait().unwrap();
            let started = Instant::now();
            group.remove();
            times.push([placed, created, joined, started.elapsed()].map(|t| t.as_micros()));
        }
        if times.is_empty() {
            continue;
        }
        let median = |i: usize| {
            let mut column: Vec<u128> = times.iter().map(|t| t[i]).collect();
            column.sort_unstable();
            (column[column.len() / 2], column[column.len() - 1])
        };
        println!(
            "{name} ({groups} groups), µs median/max: place {:?} create {:?} join {:?} remove {:?}",
            median(0),
            median(1),
            median(2),
            median(3)
        );
    }
}
