//! Derivations whose builder runs in a Linux machine: `requiredSystemFeatures = linux-vm`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anchorhold_tests::room::anchorhold;
use anchorhold_tests::world::World;
use serde_json::{Value, json};

use crate::world::has_machines;

/// A store with busybox in it.
pub struct Store {
    pub world: World,
    /// The store path of the directory that has busybox.
    pub tools: String,
    /// What its derivations require.
    pub feature: &'static str,
    /// The command that builds.
    pub words: &'static [&'static str],
    /// Settings for its builds, by `--option`.
    pub settings: Vec<(&'static str, String)>,
}

impl Store {
    pub fn new() -> Option<Self> {
        Self::with(|_| true)
    }

    /// With more beside busybox, which this puts there; it says why and gives nothing where it cannot.
    pub fn with(more: impl FnOnce(&Path) -> bool) -> Option<Self> {
        if !has_machines() {
            return None;
        }
        let world = World::new();
        let tools = world.directory.path().join("tools");
        std::fs::create_dir(&tools).unwrap();
        if !more(&tools) {
            return None;
        }
        let Ok(_) = std::fs::copy("/bin/busybox", tools.join("busybox")) else {
            anchorhold_tests::skip("there is no /bin/busybox");
            return None;
        };
        let tools = world.said(&["add", tools.to_str().unwrap()]).trim().to_owned();
        Some(Self { world, tools, feature: "linux-vm", words: &["build"], settings: Vec::new() })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(anchorhold());
        command.args(words).env("ANCHORHOLD_STORE", self.world.root()).stdin(Stdio::null());
        command
    }

    /// Builds what this script of busybox's shell makes; `b` is busybox. These attributes are added.
    pub fn build(&self, script: &str, attributes: Value) -> Output {
        self.to_build_script(script, attributes).output().unwrap()
    }

    /// Builds what this builder makes.
    pub fn build_by(&self, builder: &str, arguments: &[&str], attributes: Value) -> Output {
        self.to_build(builder, arguments, attributes).output().unwrap()
    }

    /// What will build what this script of busybox's shell makes, as [`Store::build`].
    pub fn to_build_script(&self, script: &str, attributes: Value) -> Command {
        let busybox = format!("{}/busybox", self.tools);
        self.to_build(&busybox, &["sh", "-ec", &format!("b={busybox}\n{script}")], attributes)
    }

    fn to_build(&self, builder: &str, arguments: &[&str], attributes: Value) -> Command {
        let mut derivation = json!({
            "name": "made", "system": format!("{}-linux", std::env::consts::ARCH), "builder": builder,
            "args": arguments, "inputDrvs": {}, "inputSrcs": [self.tools],
            "outputs": { "out": {} }, "env": { "requiredSystemFeatures": self.feature },
        });
        for (name, value) in attributes.as_object().unwrap() {
            derivation["env"][name] = value.clone();
        }
        let file = self.world.file("made.json", &derivation.to_string());
        let added = self.command(&["derivation", "add"]).arg(&file).output().unwrap();
        assert!(added.status.success(), "{}", text(&added.stderr));
        let path = text(&added.stdout);
        let mut command = self.command(self.words);
        command.args(["--option", "accel", "tcg"]);
        for (name, value) in &self.settings {
            command.args(["--option", name, value]);
        }
        command.arg(path.trim());
        command
    }

    /// What the only output holds.
    #[track_caller]
    pub fn built(&self, script: &str, attributes: Value) -> String {
        let output = self.build(script, attributes);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let path: PathBuf = self.world.real(text(&output.stdout).trim());
        std::fs::read_to_string(path).unwrap()
    }

    /// What a failure says.
    #[track_caller]
    pub fn failure(&self, script: &str, attributes: Value) -> String {
        let output = self.build(script, attributes);
        assert!(!output.status.success());
        text(&output.stderr)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_builder_runs_under_a_kernel_of_its_own_and_makes_its_output() {
    let Some(store) = Store::new() else { return };
    let script = "$b uname -r >$out; $b id -u >>$out; $b cat /proc/1/comm >>$out; echo $odd >>$out
        $b mount -t tmpfs tmpfs /mnt 2>/dev/null || { $b mkdir /mnt; $b mount -t tmpfs tmpfs /mnt; }; echo mounted >>$out
        echo x >$(echo ${b%/*})/new 2>/dev/null || echo kept >>$out
        $b pwd >>$out; echo \"$NIX_BUILD_TOP\" >>$out; $b ls /sys/class/net >>$out; $b grep MemTotal /proc/meminfo >>$out
        $b nproc >>$out";
    let made = store.built(script, json!({ "odd": "a 'b' \"c\" %d $e", "vmMemory": "700", "vmCores": "2" }));
    let lines: Vec<_> = made.lines().collect();
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(lines[0], host.trim());
    // Its root, as builders of images need it, and our agent before it.
    assert_eq!(lines[1..4], ["0", "init", "a 'b' \"c\" %d $e"], "{made}");
    assert_eq!(lines[4..9], ["mounted", "kept", "/build", "/build", "lo"], "{made}");
    let kibibytes: u64 = lines[9].split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((500 << 10..700 << 10).contains(&kibibytes), "{made}");
    assert_eq!(lines[10], "2", "{made}");
    store.world.is_whole();
}

#[test]
fn what_runs_around_a_machine_sees_the_build_and_its_status() {
    let Some(store) = Store::new() else { return };
    let busybox = format!("{}/busybox", store.tools);
    let before = "echo before >/build/note; echo hook-before";
    let after = format!("{busybox} chmod u+w $out; echo after $vmStatus >>$out; echo hook-after $vmStatus");
    let made = store.built("read word </build/note; echo $word >$out", json!({ "preVM": before, "postVM": after }));
    assert_eq!(made, "before\nafter 0\n");
    // After a failure too.
    let told = store.failure("exit 9", json!({ "postVM": "echo hook-after $vmStatus" }));
    assert!(told.contains("hook-after 9") && told.contains("failed with exit code 9"), "{told}");
    // What fails before keeps the machine from being started.
    let told = store.failure("echo never", json!({ "preVM": "exit 3" }));
    assert!(told.contains("preVM failed: it ended with exit code 3") && !told.contains("never"), "{told}");
}

#[test]
fn a_disk_of_its_own_is_the_guests_and_the_scripts_around_it() {
    let Some(store) = Store::new() else { return };
    let busybox = format!("{}/busybox", store.tools);
    // As people do it: the file system is made by the host's tools, which the room has with its QEMU.
    let before = "/usr/sbin/mkfs.ext4 -q $vmDiskImage";
    let script = "$b mkdir /disk; $b mount -t ext4 /dev/vda /disk
        $b dd if=/dev/zero of=/disk/zeroes bs=1M count=20 2>/dev/null; echo on the disk >/disk/note; $b umount /disk
        $b blockdev --getsize64 /dev/vda >$out";
    let after = format!("{busybox} chmod u+w $out; {busybox} grep -c 'on the disk' $vmDiskImage >>$out");
    let wishes = json!({ "vmDiskSize": "32M", "preVM": before, "postVM": after });
    assert_eq!(store.built(script, wishes), format!("{}\n1\n", 32 << 20));
    // None, where none was asked for.
    assert_eq!(store.built("$b ls /dev | $b grep -c vda >$out || true", json!({})), "0\n");
}

#[test]
fn a_failed_build_leaves_what_runs_in_its_machine_again() {
    let Some(mut store) = Store::new() else { return };
    store.settings.push(("keep-failed", "true".into()));
    let told = store.failure("echo from the build >note; exit 4", json!({ "vmMemory": "700", "vmCores": "2" }));
    let script = told.lines().find_map(|line| line.trim().strip_prefix("to enter its machine: "));
    let script = script.unwrap_or_else(|| panic!("{told}"));
    let kept = script.strip_suffix("/run-vm").unwrap();
    let run = |words: &[&str]| Command::new(script).args(words).stdin(Stdio::null()).output().unwrap();
    let output = run(&["sh", "-c", "cat note; pwd; nproc; uname -r; echo by hand >>note; exit 5"]);
    let kernel = anchorhold_tests::machines::kernel().unwrap().version;
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), format!("from the build\n/build\n2\n{kernel}\n"), "{}", text(&output.stderr));
    assert_eq!(std::fs::read_to_string(format!("{kept}/build/note")).unwrap(), "from the build\nby hand\n");
    // Without a terminal there is no shell.
    assert_eq!(run(&[]).status.code(), Some(125));
    std::fs::remove_dir_all(kept).unwrap();
}

#[test]
fn a_build_without_a_status_is_a_failure_with_its_class() {
    let Some(store) = Store::new() else { return };
    let script = "echo made >$out; $b sync; echo c >/proc/sysrq-trigger; while :; do :; done";
    let told = store.failure(script, json!({}));
    assert!(told.contains("kernel panicked") && told.contains("(panic)"), "{told}");
    let script = "echo made >$out; $b sync; echo o >/proc/sysrq-trigger; while :; do :; done";
    let told = store.failure(script, json!({}));
    assert!(told.contains("(power-off)"), "{told}");
}

#[test]
fn wishes_that_cannot_be_followed_are_refused() {
    let Some(store) = Store::new() else { return };
    for (name, value, words) in [
        ("vmMemory", "lots", "‘vmMemory’ must be a number of MiB"),
        ("vmCores", "0", "‘vmCores’ must be a number from 1"),
    ] {
        let told = store.failure("echo >$out", json!({ name: value }));
        assert!(told.contains(words), "{told}");
    }
}
