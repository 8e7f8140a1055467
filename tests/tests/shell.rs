//! `anchorhold shell` from outside: what a visitor of a failed or a running build sees, and what the build sees of the visitor.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anchorhold_tests::host::{self, Process, is_root, poll_until};
use anchorhold_tests::room::{Ended, anchorhold};
use anchorhold_tests::running::Running;
use anchorhold_tests::terminal::Terminal;
use anchorhold_tests::{PATIENCE, skip};
use nix::sys::signal::Signal;

/// A store with a busybox in it, which is all that the builds here need.
struct World {
    directory: tempfile::TempDir,
    tools: String,
}

/// A static busybox, which is what a visitor brings by default.
fn busybox() -> Option<PathBuf> {
    let found = ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        skip("there is no busybox (apt-get install busybox-static)");
    }
    found
}

impl World {
    fn new() -> Option<Self> {
        let busybox = busybox()?;
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("tools/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir(directory.path().join("tmp")).unwrap();
        fs::copy(busybox, bin.join("busybox")).unwrap();
        for name in ["sh", "cat", "sleep", "env", "sort", "ls", "kill", "grep"] {
            symlink("busybox", bin.join(name)).unwrap();
        }
        let mut world = Self { directory, tools: String::new() };
        let tools = world.path("tools").display().to_string();
        world.tools = world.said(&["store", "add", &tools]);
        Some(world)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(anchorhold());
        command.args(arguments).env("ANCHORHOLD_STORE", self.path("root")).env("TMPDIR", self.path("tmp"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments))
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.start(arguments).to_the_end()
    }

    fn said(&self, arguments: &[&str]) -> String {
        self.run(arguments).expect_success().stdout.trim().to_owned()
    }

    /// A derivation whose builder is this script.
    fn derivation(&self, name: &str, script: &str) -> String {
        let tools = &self.tools;
        let json = serde_json::json!({
            "name": name, "system": format!("{}-linux", std::env::consts::ARCH),
            "builder": format!("{tools}/bin/sh"), "args": ["-c", script],
            "env": { "out": "", "GREETING": "it's $HOME\n", "PATH": format!("{tools}/bin") },
            "inputSrcs": [tools], "inputDrvs": {}, "outputs": { "out": {} },
        });
        let file = self.path(&format!("{name}.json"));
        fs::write(&file, json.to_string()).unwrap();
        self.said(&["derivation", "add", file.to_str().unwrap()])
    }

    /// A build that has failed, and the directory where it is kept.
    fn failed(&self, name: &str, script: &str) -> (String, String) {
        let derivation = self.derivation(name, script);
        let ended = self.run(&["build", "--keep-failed", "--json", &derivation]);
        assert_eq!(ended.status, 100, "{ended:?}");
        let results: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        let kept = results[0]["kept"].as_str().unwrap_or_else(|| panic!("{ended:?}")).to_owned();
        (derivation, kept)
    }

    /// A build that counts in the file `count` until there is a file `stop`.
    fn counting(&self, name: &str) -> Build<'_> {
        self.build(name, "i=0; while ! [ -e stop ]; do i=$((i+1)); echo $i > count; sleep 0.02; done; ls -a / > $out")
    }

    /// A build, from when its builder runs.
    fn build(&self, name: &str, script: &str) -> Build<'_> {
        let derivation = self.derivation(name, script);
        let running = self.start(&["build", &derivation]);
        let entered = || self.run(&["shell", "--running", &derivation, "--", "true"]).status == 0;
        assert!(poll_until(PATIENCE, entered), "it cannot be entered");
        Build { world: self, derivation, running }
    }
}

struct Build<'a> {
    world: &'a World,
    derivation: String,
    running: Running,
}

impl Build<'_> {
    /// What a visitor's line of shell says.
    fn visit(&self, line: &str) -> Ended {
        self.world.run(&["shell", "--running", &self.derivation, "--", "sh", "-c", line])
    }

    /// The first process of its room, as the host sees it.
    fn first(&self) -> Process {
        let all = self.running.processes();
        all.iter().find(|process| process.inner_pids.len() == 2 && process.inner_pids[1] == 1).unwrap().clone()
    }

    /// Lets it end.
    #[track_caller]
    fn stop(self) -> Ended {
        // The build may be gone, and with it the visitor, before the visitor's shell has ended.
        let ended = self.visit("echo > stop");
        assert!([0, 137].contains(&ended.status), "{ended:?}");
        self.running.to_the_end().expect_success()
    }

    fn is_frozen(&self) -> bool {
        Process::read(self.first().pid).is_some_and(|process| process.field("State").starts_with('T'))
    }
}

const NO_CAPABILITY: &str = "0000000000000000";

/// Every line of `/proc/self/status` that says what a process may do.
#[track_caller]
fn assert_bare(status: &str) {
    for (key, value) in [
        ("CapInh", NO_CAPABILITY),
        ("CapPrm", NO_CAPABILITY),
        ("CapEff", NO_CAPABILITY),
        ("CapBnd", NO_CAPABILITY),
        ("CapAmb", NO_CAPABILITY),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("Uid", "1000\t1000\t1000\t1000"),
        ("Gid", "100\t100\t100\t100"),
    ] {
        assert!(status.contains(&format!("{key}:\t{value}\n")), "{key} is not {value}: {status}");
    }
}

#[test]
fn a_visitor_of_a_failed_build_is_its_builder() {
    let Some(world) = World::new() else { return };
    let (_, kept) = world.failed("failed", "echo left > file; exit 3");
    let ended =
        world.run(&["shell", &kept, "--", "sh", "-c", "pwd; cat file; printf %s \"$GREETING\"; ls -a /; exit 7"]);
    assert_eq!(ended.status, 7, "{ended:?}");
    let said = "/build\nleft\nit's $HOME\n.\n..\n.visitor\nbin\nbuild\ndev\netc\nnix\nproc\ntmp\n";
    assert_eq!(ended.stdout, said, "the room holds the build's own and the visitor's, nothing of the host");
    assert_bare(&world.said(&["shell", &kept, "--", "cat", "/proc/self/status"]));
    let seen = world.said(&["shell", &kept, "--", "sh", "-c", "ls /nix/store; ls /proc/1/ns >&2; id -un"]);
    assert_eq!(seen, format!("{}\nnixbld", world.tools.rsplit('/').next().unwrap()));
}

#[test]
fn the_builder_is_run_again_with_exactly_its_environment() {
    let Some(world) = World::new() else { return };
    let (_, kept) = world.failed("again", "env | sort >> environment; exit 3");
    let ended = world.run(&["shell", &kept, "--", "sh", "-c", "export LOUD=1; exec /.visitor/build"]);
    assert_eq!(ended.status, 3, "{ended:?}");
    let text = fs::read_to_string(Path::new(&kept).join("build/environment")).unwrap();
    let (first, second) = text.split_at(text.len() / 2);
    assert!(first.contains("GREETING=it's $HOME\n"), "{text}");
    assert_eq!(first, second);
}

#[test]
fn what_a_visitor_writes_stays_and_belongs_to_who_asked() {
    let Some(world) = World::new() else { return };
    let (_, kept) = world.failed("kept", "mkdir -p a/b; exit 3");
    world.run(&["shell", &kept, "--", "sh", "-c", "echo mine > a/b/new"]).expect_success();
    let file = Path::new(&kept).join("build/a/b/new");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine\n");
    assert_eq!(file.metadata().unwrap().uid(), nix::unistd::geteuid().as_raw());
    assert_eq!(world.said(&["shell", &kept, "--", "cat", "a/b/new"]), "mine");
    let visits: Vec<_> = fs::read_dir(Path::new(&kept).join("visits")).unwrap().collect();
    assert!(visits.is_empty(), "a visit left {visits:?}");
}

#[test]
fn a_shell_at_a_terminal_names_the_build_and_passes_its_status_on() {
    let Some(world) = World::new() else { return };
    let (_, kept) = world.failed("named-1.2", "exit 3");
    let mut terminal = Terminal::start(&world.command(&["shell", &kept]));
    terminal.shows("[failed named-1.2] ");
    terminal.types("tty; id -u; [ -t 2 ] && exit 5\r");
    let (shown, status) = terminal.to_the_end();
    assert!(shown.contains("/dev/pts/0\r\n1000\r\n"), "{shown}");
    assert_eq!(status, 5, "{shown}");
}

#[test]
fn a_line_that_is_piped_in_is_done() {
    let Some(world) = World::new() else { return };
    let (_, kept) = world.failed("piped", "exit 3");
    let mut command = world.command(&["shell", &kept]);
    let file = world.path("lines");
    fs::write(&file, "ls -d /.visitor; exit 4\n").unwrap();
    command.stdin(fs::File::open(file).unwrap());
    let ended = Running::start(command).to_the_end();
    assert_eq!((ended.status, ended.stdout.as_str()), (4, "/.visitor\n"), "{ended:?}");
}

#[test]
fn the_callers_terminal_is_not_handed_over() {
    let Some(world) = World::new() else { return };
    let (_, kept) = world.failed("aside", "exit 3");
    let mut line = Command::new("/bin/sh");
    line.args(["-c", "\"$@\" | cat", "sh"]).arg(anchorhold());
    line.args(["shell", &kept, "--", "sh", "-c", "[ -t 0 ] || echo none; tty; cat"]);
    let (shown, status) = Terminal::start(&line).to_the_end();
    assert!(shown.contains("none\r\nnot a tty\r\n"), "{shown}");
    assert_eq!(status, 0, "{shown}");
}

#[test]
fn kept_builds_are_named_by_path_hash_and_name() {
    let Some(world) = World::new() else { return };
    let (derivation, kept) = world.failed("unmistakable", "exit 3");
    let base = derivation.rsplit('/').next().unwrap();
    assert!(world.said(&["shell"]).contains(&format!("{base}  {kept}")));
    for name in [derivation.as_str(), base, &base[..8], "unmistakable", "unmistakable.drv"] {
        assert_eq!(world.said(&["shell", name, "--", "pwd"]), "/build", "{name}");
    }
    let ended = world.run(&["shell", "unheard-of", "--", "pwd"]);
    assert_eq!(ended.status, 125);
    assert!(ended.stderr.contains("no failed build that is kept is called ‘unheard-of’"), "{ended:?}");
}

#[test]
fn one_visitor_at_a_time_is_in_a_kept_build() {
    let Some(world) = World::new() else { return };
    let (_, kept) = world.failed("busy", "exit 3");
    let mut command = world.command(&["shell", &kept, "--", "sh", "-c", "echo in; read word; echo $word"]);
    command.stdin(Stdio::piped());
    let mut first = Running::start(command);
    assert_eq!(first.line(), "in");
    let second = world.run(&["shell", &kept, "--", "true"]);
    assert_eq!(second.status, 125, "{second:?}");
    assert!(second.stderr.contains("is being visited already"), "{second:?}");
    drop(first.stdin());
    first.to_the_end().expect_success();
    world.run(&["shell", &kept, "--", "true"]).expect_success();
}

#[test]
fn a_kept_build_of_somebody_else_is_not_entered() {
    let Some(world) = World::new() else { return };
    let (_, kept) = world.failed("foreign", "exit 3");
    if is_root() {
        chown(&kept, Some(4711), None).unwrap();
    } else {
        fs::set_permissions(&kept, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let ended = world.run(&["shell", &kept, "--", "true"]);
    assert_eq!(ended.status, 125, "{ended:?}");
    assert!(ended.stderr.contains("is entered by the user that it was kept for"), "{ended:?}");
}

#[test]
fn tools_may_be_a_store_path_and_must_be_able_to_run() {
    let Some(world) = World::new() else { return };
    let (_, kept) = world.failed("tools", "exit 3");
    let other = world.path("other/bin");
    fs::create_dir_all(&other).unwrap();
    fs::copy(busybox().unwrap(), other.join("sh")).unwrap();
    let path = world.said(&["store", "add", "--name", "other-tools", world.path("other").to_str().unwrap()]);
    let said = world.said(&["shell", &kept, "--tools", &path, "--", "sh", "-c", "echo $PATH"]);
    assert!(said.ends_with(&format!(":{path}/bin")), "{said}");
    let said =
        world.said(&["shell", &kept, "--tools", world.path("other").to_str().unwrap(), "--", "sh", "-c", "echo $PATH"]);
    assert!(said.ends_with(":/.visitor/tools/bin"), "{said}");
    fs::write(other.join("sh"), "#!/usr/bin/env sh\n").unwrap();
    let ended = world.run(&["shell", &kept, "--tools", world.path("other").to_str().unwrap(), "--", "true"]);
    assert_eq!(ended.status, 125);
    assert!(ended.stderr.contains("needs the loader /usr/bin/env sh"), "{ended:?}");
}

#[test]
fn a_visitor_of_a_running_build_is_in_its_room() {
    let Some(world) = World::new() else { return };
    let build = world.counting("counting");
    let base = build.derivation.rsplit('/').next().unwrap();
    let first = build.first();
    assert_eq!(world.said(&["shell", "--running"]), format!("running  {base}  {}", first.pid));
    let ended = build.visit("pwd; printf %s \"$GREETING\"; until [ -e count ]; do sleep 0.02; done; echo counts; cat /proc/1/cmdline; exit 7");
    assert_eq!(ended.status, 7, "{ended:?}");
    assert!(ended.stdout.starts_with("/build\nit's $HOME\ncounts\n"), "{ended:?}");
    assert!(ended.stdout.contains("while ! [ -e stop ]"), "its processes are in sight: {ended:?}");
    assert_bare(&build.visit("cat /proc/self/status").stdout);
    let said = build.visit("ls -a /").expect_success().stdout;
    assert_eq!(said, ".\n..\n.visitor\nbin\nbuild\ndev\netc\nnix\nproc\ntmp\n");
    // All of its namespaces but the one of mounts, which is a copy with the tools in it.
    let inside = build.visit("ls -l /proc/self/ns").expect_success().stdout;
    for kind in ["user", "pid", "net", "ipc", "uts", "cgroup"] {
        let link = fs::read_link(format!("/proc/{}/ns/{kind}", first.pid)).unwrap();
        assert!(inside.contains(link.to_str().unwrap()), "{kind}: {inside}");
    }
    for name in ["counting", &first.pid.to_string()] {
        world.run(&["shell", "--running", name, "--", "true"]).expect_success();
    }
    let ended = build.stop();
    assert!(ended.stderr.contains("somebody was in the room"), "{ended:?}");
    let output = world.path("root").join(ended.stdout.trim().trim_start_matches('/'));
    let seen = fs::read_to_string(output).unwrap();
    assert_eq!(seen, ".\n..\nbin\nbuild\ndev\netc\nnix\nproc\ntmp\n", "the build's own room was not changed");
}

#[test]
fn a_shell_at_a_terminal_is_in_the_running_build() {
    let Some(world) = World::new() else { return };
    let build = world.counting("shown-1.2");
    let mut terminal = Terminal::start(&world.command(&["shell", "--running", &build.derivation]));
    terminal.shows("[running shown-1.2] ");
    terminal.types("tty; id -u; exit 5\r");
    let (shown, status) = terminal.to_the_end();
    assert!(shown.contains("/dev/pts/1\r\n1000\r\n"), "the build's own terminal is number 0: {shown}");
    assert_eq!(status, 5, "{shown}");
}

#[test]
fn a_frozen_build_stands_still_and_goes_on_afterwards() {
    let Some(world) = World::new() else { return };
    let build = world.counting("frozen");
    let states =
        "grep -h ^State /proc/[0-9]*/status; echo c$(cat count); grep -h ^State /proc/1/status; echo c$(cat count)";
    let said = world.said(&["shell", "--running", "--freeze", &build.derivation, "--", "sh", "-c", states]);
    let lines: Vec<_> = said.lines().collect();
    let [states @ .., before, state, after] = lines.as_slice() else { panic!("{said}") };
    assert!(state.contains("stopped") && states.contains(state), "{said}");
    assert_eq!(before, after, "{said}");
    assert!(!build.is_frozen());
    build.stop();
}

#[test]
fn a_frozen_build_goes_on_when_the_shell_is_killed() {
    let Some(world) = World::new() else { return };
    let build = world.counting("killed");
    let shell = ["shell", "--running", "--freeze", &build.derivation, "--", "sh", "-c", "echo in; sleep 1000"];
    let mut visitor = world.start(&shell);
    assert_eq!(visitor.line(), "in");
    assert!(build.is_frozen());
    visitor.signal(Signal::SIGKILL);
    assert!(poll_until(PATIENCE, || !build.is_frozen()), "it stands for ever");
    drop(visitor);
    build.stop();
}

#[test]
fn what_a_visitor_leaves_running_ends_with_the_visit() {
    let Some(world) = World::new() else { return };
    let build = world.counting("leftovers");
    let said = build.visit("sleep 1007 & echo started").expect_success().stdout;
    assert_eq!(said, "started\n");
    let gone = || !build.running.processes().iter().any(|process| process.command_line().contains("1007"));
    assert!(poll_until(PATIENCE, gone));
    let left = build.visit("grep -l 1007 /proc/[0-9]*/cmdline; true").stdout;
    let named = left.lines().filter(|line| !line.contains("self")).count();
    // The visitor's own line names it.
    assert!(named <= 2, "{left}");
}

#[test]
fn a_visit_ends_with_the_build() {
    let Some(world) = World::new() else { return };
    let build = world.counting("ending");
    let mut visitor =
        world.start(&["shell", "--running", &build.derivation, "--", "sh", "-c", "echo in; echo > stop; sleep 1000"]);
    assert_eq!(visitor.line(), "in");
    let ended = visitor.to_the_end();
    assert_eq!(ended.status, 137, "{ended:?}");
    assert!(ended.stderr.contains("the build has ended"), "{ended:?}");
    build.running.to_the_end().expect_success();
}

#[test]
fn the_build_cannot_look_into_its_visitor() {
    let Some(world) = World::new() else { return };
    let script = "while ! [ -e who ]; do sleep 0.02; done; v=$(cat who); \
                  for f in environ root/.visitor/rc fd/0 maps; do cat /proc/$v/$f > seen-$v 2>&1 && echo read $f; done > answer; \
                  kill -STOP $v 2>> answer && echo signalled >> answer; echo done > ready; \
                  while ! [ -e stop ]; do sleep 0.02; done; echo ok > $out";
    let build = world.build("curious", script);
    let look = "echo $$ > who; while ! [ -e ready ]; do sleep 0.02; done; cat answer";
    let ended = build.visit(look).expect_success();
    assert!(!ended.stdout.contains("read "), "{ended:?}");
    assert!(!ended.stdout.contains("signalled"), "{ended:?}");
    build.stop();
}

#[test]
fn freezing_is_for_running_builds_and_unknown_ones_are_named() {
    let Some(world) = World::new() else { return };
    let ended = world.run(&["shell", "--freeze", "anything"]);
    assert_eq!(ended.status, 125, "{ended:?}");
    assert!(ended.stderr.contains("--running"), "{ended:?}");
    let ended = world.run(&["shell", "--running", "unheard-of", "--", "true"]);
    assert_eq!(ended.status, 125, "{ended:?}");
    assert!(ended.stderr.contains("no build called ‘unheard-of’ is running"), "{ended:?}");
    assert_eq!(world.said(&["shell", "--running"]), "");
    assert!(host::processes_that_name(world.directory.path().to_str().unwrap()).is_empty());
}
