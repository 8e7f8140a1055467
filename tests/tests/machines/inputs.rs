//! How a Linux machine reads the inputs of its build: the same in every way that the setting `vm-store` has.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anchorhold_tests::room::anchorhold;
use anchorhold_tests::skip;
use serde_json::json;

use crate::builds::Store;
use crate::world::is_alive;

/// A way, as settings.
type Way = &'static [(&'static str, &'static str)];

const IMAGE: Way = &[("vm-store", "image")];
const NINE_P: Way = &[("vm-store", "9p")];
const VIRTIOFS: Way = &[("vm-store", "virtiofs")];
const UNCACHED: Way = &[("vm-store", "9p"), ("vm-store-cache", "none")];

fn has_mksquashfs() -> bool {
    let is_there = ["/usr/bin/mksquashfs", "/usr/sbin/mksquashfs"].iter().any(|path| Path::new(path).exists());
    if !is_there {
        skip("there is no mksquashfs here");
    }
    is_there
}

/// A store with inputs of every kind, and a path that is no input.
struct World {
    store: Store,
    inputs: Vec<String>,
    other: String,
}

impl World {
    fn new() -> Option<Self> {
        let store = Store::new()?;
        let place = store.world.directory.path();
        let tree = place.join("tree");
        std::fs::create_dir_all(tree.join("empty")).unwrap();
        for number in 0..100 {
            std::fs::write(tree.join(format!("small {number}")), format!("{number}\n").repeat(number)).unwrap();
        }
        std::fs::write(tree.join("odd\n\\ name\u{ff}"), "odd").unwrap();
        std::fs::write(tree.join("large"), vec![7; (3 << 20) + 11]).unwrap();
        std::fs::hard_link(tree.join("large"), tree.join("empty-not")).unwrap();
        std::os::unix::fs::symlink("small 7", tree.join("link")).unwrap();
        std::os::unix::fs::symlink("../nowhere", tree.join("dangling")).unwrap();
        let program = tree.join("program");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("somewhere", place.join("alone")).unwrap();
        let file = store.world.add("file", "a file that is an input by itself\n");
        let other = store.world.add("other", "no input\n");
        let add = |name: &str| store.world.said(&["add", place.join(name).to_str().unwrap()]).trim().to_owned();
        let inputs = vec![store.tools.clone(), add("tree"), file, add("alone")];
        Some(Self { store, inputs, other })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(anchorhold());
        command.args(words).env("ANCHORHOLD_STORE", self.store.world.root()).stdin(Stdio::null());
        command
    }

    /// A derivation with these outputs, and what `more` says of it.
    fn derivation(&self, name: &str, outputs: &serde_json::Value, script: &str) -> String {
        let busybox = format!("{}/busybox", self.store.tools);
        let [_, tree, file, alone] = self.inputs.as_slice() else { panic!() };
        let derivation = json!({
            "name": name, "system": format!("{}-linux", std::env::consts::ARCH), "builder": busybox,
            "args": ["sh", "-ec", format!("b={busybox}\n{script}")], "inputDrvs": {}, "inputSrcs": self.inputs,
            "outputs": outputs,
            "env": {
                "requiredSystemFeatures": "linux-vm", "tree": tree, "file": file, "alone": alone, "other": other_name(&self.other),
            },
        });
        let file = self.store.world.file("made.json", &derivation.to_string());
        let added = self.command(&["derivation", "add"]).arg(&file).output().unwrap();
        assert!(added.status.success(), "{}", text(&added.stderr));
        text(&added.stdout).trim().to_owned()
    }

    /// Builds it this way; with `check`, once more, and compares.
    fn build(&self, derivation: &str, way: Way, check: bool) -> Output {
        self.build_with(derivation, way, check, |_| ())
    }

    fn build_with(&self, derivation: &str, way: Way, check: bool, change: impl FnOnce(&mut Command)) -> Output {
        let mut command = self.command(&["build", "--option", "accel", "tcg"]);
        for (name, value) in way {
            command.args(["--option", name, value]);
        }
        if check {
            command.arg("--check");
        }
        command.arg(derivation);
        change(&mut command);
        command.output().unwrap()
    }
}

/// The name of a path without what scanning for references would find.
fn other_name(path: &str) -> String {
    path.rsplit_once('/').unwrap().1.split_once('-').unwrap().1.to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads all inputs, and makes outputs of every kind.
const ODD: &str = "
    $b mkdir -p $out/bin $out/empty/emptier \"$out/odd name\"
    cd $tree; $b find . | $b sort >$out/names; $b find . -type f -exec $b sha256sum {} + | $b sort >$out/sums
    $b stat -c '%a %u:%g %Y %F %n' ./* $tree $file | $b sort >$out/modes; $b find . -type f -exec $b stat -c '%s %n' {} + | $b sort >$out/sizes
    $b cat $file >$out/file; $b readlink $alone >$out/alone; { $b readlink link; $b readlink dangling; } >$out/links
    $b cp -r $tree $out/copy; $b chmod -R u+w $out/copy; (umask 333; echo for reading alone >$out/read-only); $b cp $tree/program $out/bin/program; $b chmod 755 $out/bin/program
    $b ln $out/file $out/hard; $b ln $out/file \"$out/odd name/hard\"; $b ln -s ../file $out/bin/soft
    $b ln $file $out/of-input 2>/dev/null || echo a link to an input is refused >$out/refused
    $b mv $out/names $out/renamed; echo first >$out/again; $b rm $out/again; echo second >$out/again
    $b ln -s $file $link; echo a file >$plain; $b chmod 755 $plain";

#[test]
fn a_build_makes_the_same_whatever_way_its_inputs_are_read() {
    let Some(world) = World::new() else { return };
    let odd = world.derivation("odd", &json!({ "out": {}, "link": {}, "plain": {} }), ODD);
    // Of what it is known beforehand: sha256 of nothing but "fixed\n", which it reads from an input.
    let fixed = json!({ "out": { "method": "flat", "hashAlgo": "sha256", "hash": FIXED } });
    let fixed = world.derivation("fixed", &fixed, "$b sed -n 's/^5$/fixed/p' \"$tree/small 5\" | $b head -n 1 >$out");
    // What differs is found: it must be, or nothing here says anything.
    let telling = world.derivation("telling", &json!({ "out": {} }), "$b grep -c squashfs /proc/mounts >$out || true");
    let ways: &[Way] = if has_mksquashfs() { &[IMAGE, NINE_P, UNCACHED] } else { &[NINE_P, UNCACHED] };
    for derivation in [&odd, &fixed] {
        for (number, way) in ways.iter().enumerate() {
            let done = world.build(derivation, way, number > 0);
            assert!(done.status.success(), "{way:?}: {}", text(&done.stderr));
            assert!(!text(&done.stderr).contains("the inputs are read by 9p"), "{way:?}: {}", text(&done.stderr));
        }
    }
    if ways.contains(&IMAGE) {
        assert!(world.build(&telling, IMAGE, false).status.success());
        let done = world.build(&telling, NINE_P, true);
        assert!(!done.status.success() && text(&done.stderr).contains("determin"), "{}", text(&done.stderr));
    }
    world.store.world.is_whole();
}

/// Of "fixed\n".
const FIXED: &str = "sha256-DDBxQY5jVuYUiYyE7QZMqV6IVRvAgRtTS98ZUuza5TQ=";

/// The builder is root in its guest, and does what root can do there.
#[test]
fn no_way_shows_more_than_the_inputs_or_lets_them_be_written() {
    let Some(world) = World::new() else { return };
    let script = "
        set +e
        $b ls /nix/store | $b grep -v ${out##*/} | $b sed 's/^[^-]*-//' | $b sort | $b tr '\\n' ' '; echo are there
        $b cp $b /tmp/busybox; b=/tmp/busybox
        attack() {
            echo x >$tree/new && echo new file in $1; echo x >>$tree/large && echo written $1
            $b rm -f $tree/large && echo removed $1; $b mv $tree $tree.moved && echo moved $1
            $b chmod 777 $tree/large && echo changed $1; $b touch $tree && echo touched $1
            echo x >$file && echo written file $1
            $b find / -xdev -name \"*-$other\" | $b grep . && echo found $1
            for place in /nix /nix/store /anchorhold /run; do $b find $place -name \"*-$other\" | $b grep . && echo found $1; done
        }
        attack at first 2>/dev/null
        $b mount -o remount,rw /nix/store; $b mount -o remount,rw $tree; $b mount -o remount,rw,bind $tree; attack remounted 2>/dev/null
        n=0; while $b umount $tree && [ $n -lt 10 ]; do n=$(($n + 1)); done
        $b umount $file; attack uncovered 2>/dev/null
        $b grep . $tree/link | $b tail -n 1; $b cat $file
        for disk in /sys/block/*/dev; do [ -e $disk ] || continue
            IFS=: read major minor <$disk
            $b mknod /dev/found b $major $minor; $b mkdir -p /tmp/image
            $b mount -t squashfs /dev/found /tmp/image && {
                $b ls /tmp/image | $b sed 's/^[^-]*-//' | $b sort | $b tr '\\n' ' '; echo in the image
                echo x >/tmp/image/new && echo written image
            }
            $b blockdev --setrw /dev/found; echo x >/dev/found && echo written disk
        done
        $b mkdir $out; echo x >$out/new && echo an output is written";
    let derivation = world.derivation("attack", &json!({ "out": {} }), script);
    let ways: &[Way] = if has_mksquashfs() { &[IMAGE, NINE_P] } else { &[NINE_P] };
    for (number, way) in ways.iter().enumerate() {
        let done = world.build(&derivation, way, number > 0);
        let told = text(&done.stderr);
        assert!(done.status.success(), "{told}");
        assert!(told.contains("alone file tools tree are there"), "{way:?}: {told}");
        assert!(told.contains("an output is written"), "{way:?}: {told}");
        for bad in ["new file", "written", "removed", "moved", "changed", "touched", "found"] {
            let is_bad = |line: &&str| line.starts_with(&format!("attack> {bad}"));
            assert_eq!(told.lines().find(is_bad), None, "{way:?}: {told}");
        }
        // Without what covers them they are the same.
        assert!(told.contains("> 7\nattack> a file that is an input by itself\n"), "{way:?}: {told}");
        let in_image = told.contains("file tools tree in the image");
        assert_eq!(in_image, *way == IMAGE, "{way:?}: {told}");
    }
}

#[test]
fn without_its_tool_9p_is_taken_and_told_or_the_machine_is_refused() {
    let Some(world) = World::new() else { return };
    let qemu = anchorhold_tests::machines::qemu().unwrap().program;
    let derivation = world.derivation("made", &json!({ "out": {} }), "$b cat \"$tree/small 3\" >$out");
    // A path without mksquashfs, and a QEMU that is named.
    let without = |command: &mut Command| {
        command.args(["--option", "vm-qemu"]).arg(&qemu).env("PATH", "/nowhere");
    };
    let refused = world.build_with(&derivation, IMAGE, false, without);
    let told = text(&refused.stderr);
    assert!(!refused.status.success() && told.contains("vm-store is image: there is no mksquashfs here"), "{told}");
    assert!(told.contains("(no-image)") && told.contains("install squashfs-tools"), "{told}");
    let done = world.build_with(&derivation, &[], false, without);
    let told = text(&done.stderr);
    assert!(done.status.success(), "{told}");
    assert!(told.contains("the inputs are read by 9p: there is no mksquashfs here: install squashfs-tools"), "{told}");
}

/// A virtiofsd that will do, where there is one; the machine's room has what is in /usr.
fn has_virtiofsd() -> bool {
    let is_fit = anchorhold_vmm::shares::virtiofs::program().is_ok_and(|program| program.starts_with("/usr"));
    if !is_fit {
        skip("there is no virtiofsd written in Rust here");
    }
    is_fit
}

#[test]
fn virtiofs_is_one_of_the_ways_or_is_refused_with_what_is_missing() {
    let Some(world) = World::new() else { return };
    let odd = world.derivation("odd", &json!({ "out": {}, "link": {}, "plain": {} }), ODD);
    if !has_virtiofsd() {
        let told = text(&world.build(&odd, VIRTIOFS, false).stderr);
        assert!(told.contains("vm-store is virtiofs: ") && told.contains("(no-share)"), "{told}");
        assert!(
            told.contains("install the virtiofsd written in Rust") || told.contains("there is no virtiofsd"),
            "{told}"
        );
        return;
    }
    for (number, way) in [NINE_P, VIRTIOFS, &[("vm-store", "virtiofs"), ("vm-store-cache", "never")]].iter().enumerate()
    {
        let done = world.build(&odd, way, number > 0);
        assert!(done.status.success(), "{way:?}: {}", text(&done.stderr));
    }
    let told = world.derivation("told", &json!({ "out": {} }), "$b grep -c virtiofs /proc/mounts >$out
        echo x >$tree/new && exit 1; $b mount -o remount,rw $tree; echo x >$tree/new && exit 1; $b cat $file >/dev/null");
    let done = world.build(&told, VIRTIOFS, false);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let made = world.store.world.real(text(&done.stdout).trim());
    // All inputs but the link.
    assert_eq!(std::fs::read_to_string(made).unwrap(), "3\n");
}

/// All that is below a process, itself too.
fn below(process: u32) -> Vec<u32> {
    let children = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let children = children.flat_map(|thread| {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.split_whitespace().map(|word| word.parse().unwrap()).collect::<Vec<u32>>()
    });
    std::iter::once(process).chain(children.flat_map(below)).collect()
}

#[test]
fn a_virtiofsd_that_is_killed_ends_the_build_and_is_told() {
    let Some(world) = World::new() else { return };
    if !has_virtiofsd() {
        return;
    }
    let (heard, says) = std::io::pipe().unwrap();
    let derivation = world.derivation(
        "made",
        &json!({ "out": {} }),
        "echo in the guest; while :; do $b cat $tree/large >/dev/null; done",
    );
    let mut command = world.command(&["build", "--option", "accel", "tcg", "--option", "vm-store", "virtiofs"]);
    command.args(["--option", "vm-store-cache", "never"]).arg(derivation).stdout(Stdio::null()).stderr(says);
    let mut build = command.spawn().unwrap();
    drop(command);
    let mut lines = BufReader::new(heard).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.ends_with("> in the guest")), "the builder runs");
    let processes = below(build.id());
    let is_server = |process: &&u32| {
        let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(line.split(|byte| *byte == 0).next().unwrap_or_default()).ends_with("/virtiofsd")
    };
    let server = processes.iter().find(is_server).expect("a virtiofsd below the build").to_string();
    assert!(Command::new("kill").args(["-KILL", &server]).status().unwrap().success());
    let told: Vec<_> = lines.collect();
    let told = told.join("\n");
    assert!(!build.wait().unwrap().success(), "{told}");
    assert!(told.contains("the server of a directory, which must not end, has ended (signal 9"), "{told}");
    assert!(told.contains("(no-share)"), "{told}");
    assert!(!processes.iter().any(|process| is_alive(*process)), "nothing of it runs on");
    world.store.world.is_whole();
}
