//! `anchorhold store-server`, with a real Nix as its client.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anchorhold_tests::host::{is_root, poll_until, processes_that_name};
use anchorhold_tests::room::anchorhold;
use anchorhold_tests::{PATIENCE, skip};

const NOBODY: u32 = 65534;

/// A server with a store of its own, a Nix with another, and a program to build with in both.
struct World {
    directory: tempfile::TempDir,
    server: Child,
    busybox: String,
}

impl World {
    /// Nothing if this machine has not got what it takes.
    fn new() -> Option<Self> {
        Self::with(&[])
    }

    fn with(options: &[&str]) -> Option<Self> {
        if Command::new("nix").arg("--version").stdout(Stdio::null()).status().is_err() {
            skip("no Nix is installed");
            return None;
        }
        let Some(busybox) = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists()) else {
            skip("no busybox is installed");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        // Clients may be somebody else.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(directory.path().join("tmp")).unwrap();
        anchorhold_tests::host::open_to_all(&directory.path().join("tmp"));
        let tree = directory.path().join("busybox/bin");
        fs::create_dir_all(&tree).unwrap();
        fs::copy(busybox, tree.join("busybox")).unwrap();
        for applet in ["sh", "sleep", "mkdir", "cat", "head"] {
            symlink("busybox", tree.join(applet)).unwrap();
        }
        let server = Command::new(anchorhold())
            .args(["store-server", "--socket"])
            .arg(directory.path().join("socket"))
            .arg("--store")
            .arg(directory.path().join("served"))
            // A fixed output may have the network; nothing here wants it, and not everybody may have it.
            .args(["--option", "network", "none"])
            .args(options)
            .stdin(Stdio::null())
            .stderr(fs::File::create(directory.path().join("server.log")).unwrap())
            .spawn()
            .unwrap();
        let mut world = Self { directory, server, busybox: String::new() };
        assert!(poll_until(PATIENCE, || world.connect().is_some()), "the server does not listen");
        let tree = world.path("busybox");
        world.busybox = world.said("nix-store", &["--store", &world.local(), "--add", tree.to_str().unwrap()]);
        world.said("nix", &["copy", "--from", &world.local(), "--to", &world.served(), &world.busybox]);
        let expression = format!(
            "{{ name, script, attrs ? {{ }} }}: derivation ({{ inherit name; system = builtins.currentSystem;
               builder = \"${{builtins.storePath {bb}}}/bin/sh\"; PATH = \"{bb}/bin\"; args = [ \"-c\" script ]; }} // attrs)",
            bb = world.busybox
        );
        world.write("build.nix", &expression);
        let program = anchorhold();
        // What sshd does with a forced command: whatever was asked for is in a variable.
        let ssh = format!(
            "#!/bin/sh\nSSH_ORIGINAL_COMMAND=\"$*\" exec {} store-server --store {}\n",
            program.display(),
            world.path("served").display()
        );
        world.write("ssh/ssh", &ssh);
        fs::set_permissions(world.path("ssh/ssh"), fs::Permissions::from_mode(0o755)).unwrap();
        Some(world)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, contents: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    fn connect(&self) -> Option<UnixStream> {
        UnixStream::connect(self.path("socket")).ok()
    }

    /// The store of the Nix that is the client.
    fn local(&self) -> String {
        self.path("local").to_str().unwrap().to_owned()
    }

    /// The server's store, over its socket.
    fn served(&self) -> String {
        format!("unix://{}?root={}", self.path("socket").display(), self.path("served").display())
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let path = format!("{}:{}", self.path("ssh").display(), std::env::var("PATH").unwrap());
        command
            .args(arguments)
            .env("PATH", path)
            .env(
                "NIX_CONFIG",
                "substituters =\nsubstitute = false\nexperimental-features = nix-command\nbuild-users-group =\n",
            )
            .env("HOME", self.directory.path())
            // What a client that is killed leaves behind goes with the test.
            .env("TMPDIR", self.path("tmp"))
            .env_remove("NIX_REMOTE")
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }

    fn ask(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments).output().unwrap()
    }

    /// Standard output, without its last newline, of what must succeed.
    #[track_caller]
    fn said(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.ask(program, arguments);
        let log = fs::read_to_string(self.path("server.log")).unwrap_or_default();
        assert!(output.status.success(), "{program} {arguments:?}: {}; the server: {log}", text(&output.stderr));
        text(&output.stdout).trim_end().to_owned()
    }

    /// Standard error of what must fail.
    #[track_caller]
    fn refused(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.ask(program, arguments);
        assert!(!output.status.success(), "{program} {arguments:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }

    /// The words of a build in a store.
    fn build<'a>(&self, store: &'a str, name: &'a str, script: &'a str) -> Vec<&'a str> {
        vec!["--store", store, "build.nix", "--no-out-link", "--argstr", "name", name, "--argstr", "script", script]
    }

    /// Where a path of the served store lies.
    fn real(&self, path: &str) -> PathBuf {
        self.path("served").join(path.trim_start_matches('/'))
    }

    /// A Nix finds nothing wrong with the served store.
    #[track_caller]
    fn is_whole(&self) {
        self.said("nix-store", &["--store", self.path("served").to_str().unwrap(), "--verify", "--check-contents"]);
    }
}

/// The directories of a store are read-only, and only the superuser removes what is in such.
impl Drop for World {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let mut left = vec![self.directory.path().to_owned()];
        while let Some(directory) = left.pop() {
            let _ = fs::set_permissions(&directory, fs::Permissions::from_mode(0o755));
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    left.push(entry.path());
                }
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn paths_are_copied_both_ways_and_looked_at() {
    let Some(world) = World::new() else { return };
    let (local, served) = (world.local(), world.served());
    world.write("tree/file", "hello\n");
    world.write("tree/empty", "");
    symlink("file", world.path("tree/link")).unwrap();
    let path = world.said("nix-store", &["--store", &local, "--add", "tree"]);
    let ping = world.ask("nix", &["store", "ping", "--store", &served]);
    assert!(text(&ping.stderr).contains("Version: anchorhold"), "{}", text(&ping.stderr));
    world.said("nix", &["copy", "--from", &local, "--to", &served, &path]);
    assert_eq!(fs::read(world.real(&path).join("file")).unwrap(), b"hello\n");
    assert_eq!(world.said("nix", &["store", "cat", "--store", &served, &format!("{path}/file")]), "hello");
    assert!(world.said("nix", &["store", "ls", "-lR", "--store", &served, &path]).contains("./link -> file"));
    assert_eq!(
        world.said("nix", &["path-info", "--json", "--store", &served, &path]).replace(char::is_numeric, ""),
        world.said("nix", &["path-info", "--json", "--store", &local, &path]).replace(char::is_numeric, ""),
    );
    world.said("nix", &["store", "verify", "--no-trust", "--all", "--store", &served]);
    world.said("nix-store", &["--store", &served, "--verify", "--check-contents"]);
    let direct = world.said("nix", &["store", "add-path", "--store", &served, "tree", "--name", "direct"]);
    world.said("nix", &["store", "optimise", "--store", &served]);
    let back = world.path("back");
    world.said("nix", &["copy", "--no-check-sigs", "--from", &served, "--to", back.to_str().unwrap(), &direct]);
    assert_eq!(fs::read_link(back.join(direct.trim_start_matches('/')).join("link")).unwrap(), Path::new("file"));
    world.is_whole();

    let kept = world.path("kept");
    world.said("nix-store", &["--store", &served, "--realise", &path, "--add-root", kept.to_str().unwrap()]);
    let roots = world.said("nix-store", &["--store", &served, "--gc", "--print-roots"]);
    assert!(roots.contains(kept.to_str().unwrap()), "{roots}");
    world.said("nix", &["store", "gc", "--store", &served]);
    assert!(world.real(&path).exists() && !world.real(&direct).exists());
    world.is_whole();
}

#[test]
fn the_server_builds_and_says_what_went_wrong() {
    let Some(world) = World::new() else { return };
    let served = world.served();
    let built = world.ask("nix-build", &world.build(&served, "good", "echo hello from $name; echo $out > $out"));
    assert!(built.status.success(), "{}", text(&built.stderr));
    assert!(text(&built.stderr).contains("hello from good"), "{}", text(&built.stderr));
    let out = text(&built.stdout).trim().to_owned();
    assert_eq!(fs::read_to_string(world.real(&out)).unwrap().trim(), out);
    world.said("nix-build", &world.build(&served, "good", "echo hello from $name; echo $out > $out"));

    let failing = world.build(&served, "bad", "echo the last words; exit 3");
    let story = world.refused("nix-build", &failing);
    assert!(story.contains("failed with exit code 3") && story.contains("> the last words"), "{story}");
    let mut nix_build = world.build(&served, "bad", "echo the last words; exit 3");
    nix_build.splice(0..0, ["build"]);
    let at = nix_build.iter().position(|word| *word == "build.nix").unwrap();
    nix_build.splice(at..at + 2, ["-f", "build.nix", "--no-link"]);
    let story = world.refused("nix", &nix_build);
    assert!(story.contains("failed with exit code 3") && story.contains("> the last words"), "{story}");

    let attrs = r#"{ outputHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="; }"#;
    let mut mismatch = world.build(&served, "fixed", "echo other > $out");
    mismatch.extend(["--arg", "attrs", attrs]);
    let story = world.refused("nix-build", &mismatch);
    assert!(story.contains("sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), "{story}");

    let mut two = world.build(&served, "two", "echo 1 > $out; echo 2 > $dev");
    two.extend(["--arg", "attrs", r#"{ outputs = [ "out" "dev" ]; }"#, "-A", "dev"]);
    assert!(world.said("nix-build", &two).ends_with("-two-dev"));

    let drv = world
        .ask("nix-instantiate", &failing.iter().copied().filter(|word| *word != "--no-out-link").collect::<Vec<_>>());
    let drv = text(&drv.stdout).trim().to_owned();
    assert_eq!(world.said("nix", &["log", "--store", &served, &drv]), "the last words");
    let mut timed = world.build(&served, "timed", "sleep 1000");
    timed.extend(["--timeout", "1"]);
    let story = world.refused("nix-build", &timed);
    assert!(story.contains("timed out"), "{story}");
    world.is_whole();
}

#[test]
fn it_is_a_remote_builder_by_both_protocols() {
    let Some(world) = World::new() else { return };
    let local = world.local();
    for protocol in ["ssh", "ssh-ng"] {
        let machine = format!("{protocol}://machine {} - 1 1", system());
        let name = format!("by-{protocol}");
        let mut good = world.build(&local, &name, "echo hello from $name; echo $out > $out");
        good.extend(["-j0", "--builders", &machine]);
        let built = world.ask("nix-build", &good);
        assert!(built.status.success(), "{}", text(&built.stderr));
        assert!(text(&built.stderr).contains(&format!("hello from {name}")), "{}", text(&built.stderr));
        let out = text(&built.stdout).trim().to_owned();
        assert_eq!(fs::read_to_string(world.path("local").join(&out[1..])).unwrap().trim(), out);
        let mut bad = world.build(&local, &name, "echo the last words; exit 4");
        bad.extend(["-j0", "--builders", &machine]);
        let story = world.refused("nix-build", &bad);
        assert!(story.contains("failed with exit code 4") && story.contains("> the last words"), "{story}");
    }
    world.is_whole();
}

#[test]
fn closures_are_copied_over_ssh() {
    let Some(world) = World::new() else { return };
    let local = world.local();
    world.write("leaf", "leaf");
    let leaf = world.said("nix-store", &["--store", &local, "--add", "leaf"]);
    world.said("nix-copy-closure", &["--store", &local, "--to", "machine", &leaf]);
    assert!(world.real(&leaf).exists());
    let back = world.path("back").to_str().unwrap().to_owned();
    world.said("nix-copy-closure", &["--store", &back, "--from", "machine", &leaf]);
    world.said("nix", &["copy", "--no-check-sigs", "--from", "ssh-ng://machine", "--to", &back, &world.busybox]);
    world.said("nix-store", &["--store", &back, "--verify", "--check-contents"]);
    world.write("direct", "direct");
    let direct = world.said("nix-store", &["--store", &local, "--add", "direct"]);
    world.said("nix", &["copy", "--from", &local, "--to", "ssh-ng://machine", &direct]);
    assert!(world.real(&direct).exists());
    // Input-addressed and unsigned: taken because the client is believed and asks for no check.
    let out = world.said("nix-build", &world.build(&world.served(), "served", "echo $out > $out"));
    world.said("nix", &["copy", "--no-check-sigs", "--from", "ssh-ng://machine", "--to", &local, &out]);
    world.is_whole();
}

#[test]
fn a_client_that_goes_away_takes_its_build_with_it() {
    let Some(world) = World::new() else { return };
    let served = world.served();
    // In the command line of the builder, and of nothing else on this machine.
    let marker = format!("31{}", std::process::id());
    let script = format!("echo started; sleep {marker}; echo $out > $out");
    let log = fs::File::create(world.path("client.log")).unwrap();
    let mut client = world.command("nix-build", &world.build(&served, "slow", &script));
    let mut client = client.stderr(log).stdout(Stdio::null()).spawn().unwrap();
    let word = format!("sleep\0{marker}");
    let started = poll_until(PATIENCE, || !processes_that_name(&word).is_empty());
    assert!(started, "{}", fs::read_to_string(world.path("client.log")).unwrap());
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(poll_until(PATIENCE, || processes_that_name(&word).is_empty()), "the builder is still there");
    let builds = world.path("served/nix/var/nix/anchorhold/builds");
    let empty = || fs::read_dir(&builds).map_or(0, Iterator::count) == 0;
    assert!(poll_until(PATIENCE, empty), "its directory is still there");
    // Nobody holds its lock.
    let quick = "echo started; echo $out > $out";
    world.said("nix-build", &world.build(&served, "slow", quick));
    world.is_whole();
}

#[test]
fn clients_that_do_wrong_harm_nobody_else() {
    let Some(world) = World::new() else { return };
    let (local, served) = (world.local(), world.served());
    // Taken in, and never read from: more than any buffer on the way holds.
    let big = world.path("big");
    fs::write(&big, vec![7; 8 << 20]).unwrap();
    let big = world.said("nix-store", &["--store", &local, "--add", big.to_str().unwrap()]);
    world.said("nix", &["copy", "--from", &local, "--to", &served, &big]);
    let numbers = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let greeting = numbers(&[0x6e69_7863, 0x122, 0, 0]);
    let mut deaf = world.connect().unwrap();
    let mut request = [greeting.clone(), numbers(&[38, big.len() as u64])].concat();
    request.extend(big.as_bytes());
    request.resize(request.len().next_multiple_of(8), 0);
    deaf.write_all(&request).unwrap();
    // Says half a sentence, and waits.
    let mut slow = world.connect().unwrap();
    slow.write_all(&[greeting.clone(), numbers(&[1, 1 << 40])].concat()).unwrap();
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).unwrap();
    assert!(text(&answer).contains("length"), "{}", text(&answer));
    let mut silent = world.connect().unwrap();
    silent.write_all(&greeting[..20]).unwrap();
    // Speaks something else, or of something that is not there.
    let mut stranger = world.connect().unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    answer.clear();
    let _ = stranger.read_to_end(&mut answer);
    assert!(answer.is_empty());
    let mut unknown = world.connect().unwrap();
    unknown.write_all(&[greeting, numbers(&[4711])].concat()).unwrap();
    unknown.read_to_end(&mut answer).unwrap();
    assert!(text(&answer).contains("there is no operation 4711"), "{}", text(&answer));

    // Everybody else is served meanwhile.
    let out = world.said("nix-build", &world.build(&served, "meanwhile", "echo $out > $out"));
    assert!(world.real(&out).exists());
    drop((deaf, silent));
    world.is_whole();
}

#[test]
fn who_the_client_is_says_the_kernel() {
    if !is_root() {
        return skip("only root can be two users");
    }
    let Some(world) = World::new() else { return };
    fs::create_dir(world.path("theirs")).unwrap();
    std::os::unix::fs::chown(world.path("theirs"), Some(NOBODY), Some(NOBODY)).unwrap();
    let theirs = world.path("theirs/root").to_str().unwrap().to_owned();
    let home = world.path("theirs");
    let as_nobody = |program: &str, arguments: &[&str]| {
        let mut command = world.command(program, arguments);
        command.env("HOME", &home).uid(NOBODY).gid(NOBODY).output().unwrap()
    };
    let socket = format!("unix://{}", world.path("socket").display());
    // A path that says by its name what it holds is taken from anybody.
    world.write("leaf", "leaf");
    let leaf = as_nobody("nix-store", &["--store", &theirs, "--add", "leaf"]);
    let leaf = text(&leaf.stdout).trim().to_owned();
    let copied = as_nobody("nix", &["copy", "--from", &theirs, "--to", &socket, &leaf]);
    assert!(copied.status.success(), "{}", text(&copied.stderr));
    // Derivations come with all that they need, and so can be built.
    let built = as_nobody("nix-build", &world.build(&socket, "theirs", "echo $out > $out"));
    assert!(built.status.success(), "{}", text(&built.stderr));
    // What somebody says was built is not taken without a signature, whatever they ask for.
    let out = world.said(
        "nix-build",
        &world
            .build(&world.local(), "claimed", "echo $out > $out")
            .iter()
            .copied()
            .chain(["--option", "sandbox", "false"])
            .collect::<Vec<_>>(),
    );
    let stream = world.path("stream");
    let export = world.said(
        "sh",
        &[
            "-c",
            &format!(
                "nix-store --store {} --export $(nix-store --store {} -qR {out}) > {}",
                world.local(),
                world.local(),
                stream.display()
            ),
        ],
    );
    assert!(export.is_empty());
    as_nobody("sh", &["-c", &format!("nix-store --store {theirs} --import < {}", stream.display())]);
    let claimed = as_nobody("nix", &["copy", "--no-check-sigs", "--from", &theirs, "--to", &socket, &out]);
    assert!(text(&claimed.stderr).contains("lacks a signature by a trusted key"), "{}", text(&claimed.stderr));
    assert!(!world.real(&out).exists());
    world.is_whole();

    let Some(closed) = World::with(&["--option", "allowed-users", "root @root"]) else { return };
    let socket = format!("unix://{}", closed.path("socket").display());
    let refused = as_nobody("nix", &["store", "ping", "--store", &socket]);
    assert!(text(&refused.stderr).contains("is not allowed to connect"), "{}", text(&refused.stderr));
}

fn system() -> String {
    format!("{}-linux", std::env::consts::ARCH)
}
