//! Derivations whose builder runs in a guest beside a controller: `requiredSystemFeatures = windows-vm`, with the stand-in as
//! the guest.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anchorhold_tests::host::poll_until;
use anchorhold_tests::machines::guest_images;
use anchorhold_tests::room::anchorhold;
use anchorhold_tests::skip;
use serde_json::json;

use crate::builds::Store;
use crate::world::PATIENCE;

/// A store whose builds have a pair, where there are images for one.
fn store() -> Option<Store> {
    store_with("pair")
}

/// The same, with guests served in this way.
pub fn store_with(topology: &str) -> Option<Store> {
    let images = guest_images()?;
    if topology == "direct" && !["/usr/sbin/smbd", "/usr/bin/ssh"].iter().all(|program| Path::new(program).exists()) {
        skip("there is no smbd or no ssh here");
        return None;
    }
    let mut store = Store::new()?;
    store.feature = "windows-vm";
    store.settings = vec![
        ("vm-guest", "standin".into()),
        ("vm-images", images.display().to_string()),
        ("vm-topology", topology.into()),
    ];
    Some(store)
}

/// Two machines under emulation want a processor each: what needs more than one of them is tested when somebody asks for it.
fn heavy_tests_are_wanted() -> bool {
    std::env::var_os("ANCHORHOLD_HEAVY_TESTS").is_some()
}

const ODD: &str = "a 'b' \"c\" %d $e\nsecond";

/// What a builder finds and makes in either topology.
const SCRIPT: &str = "echo said; echo complained >&2
    $b mkdir -p $out/bin; echo \"$odd\" >$out/odd; $b pwd >$out/where; $b hostname >>$out/where
    $b ln -s ../odd $out/bin/link; printf '#!/bin/sh\\necho run\\n' >$out/bin/script; $b cp $b $out/bin/busybox
    $b grep -c ' /nix/store cifs' /proc/mounts >>$out/where; $b grep -c ' /xchg cifs' /proc/mounts >>$out/where
    $b ls /nix/store | $b grep -v ${out##*/} | $b wc -l >>$out/where
    echo x >${b%/*}/new 2>/dev/null || echo kept >>$out/where
    $b cat $textPath >$out/text; echo $out >$out/self
    $b ip addr show eth0 | $b grep -o 'inet [0-9./]*' >>$out/where
    $b nc 192.168.0.2 445 </dev/null && echo server >>$out/where
    $b ls /run/drives/t >>$out/where
    echo in-build >note; $b cat /xchg/build/note >>$out/where
    $b sleep 1000 & echo left";

fn made(store: &Store) -> (String, std::path::PathBuf) {
    let drives = format!("T:={}", store.tools);
    let attributes = json!({ "odd": ODD, "text": "from a file", "passAsFile": "text", "drives": drives });
    let output = store.build(SCRIPT, attributes);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let path = store.world.real(String::from_utf8_lossy(&output.stdout).trim());
    (told, path)
}

fn is_as_expected(told: &str, made: &Path) {
    assert!(told.contains("the guest ‘standin’"), "{told}");
    assert!(told.contains("made> said") && told.contains("made> complained"), "{told}");
    let read = |name: &str| std::fs::read_to_string(made.join(name)).unwrap();
    assert_eq!(read("odd"), format!("{ODD}\n"));
    let expected = "/xchg/build\nguest\n1\n1\n1\nkept\ninet 192.168.0.1/24\nserver\nbusybox\nin-build\n";
    assert_eq!(read("where"), expected);
    assert_eq!(read("text"), "from a file");
    // What SMB does not carry is there again.
    assert_eq!(std::fs::read_link(made.join("bin/link")).unwrap(), Path::new("../odd"));
    let mode = |name: &str| std::fs::metadata(made.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(["bin/script", "bin/busybox", "odd"].map(mode), [0o555, 0o555, 0o444]);
}

#[test]
fn a_builder_runs_in_the_guest_of_a_pair_and_makes_its_output() {
    let Some(store) = store() else { return };
    let (told, made) = made(&store);
    is_as_expected(&told, &made);
    store.world.is_whole();
}

#[test]
fn a_builder_does_not_see_who_serves_its_guest() {
    let (Some(pair), Some(mut asking), Some(direct)) = (store(), store(), store_with("direct")) else { return };
    let (told, by_direct) = made(&direct);
    is_as_expected(&told, &by_direct);
    if heavy_tests_are_wanted() {
        // Nor whether the controller keeps what it has read of the inputs.
        asking.settings.push(("vm-store-cache", "none".into()));
        for pair in [pair, asking] {
            let (_, by_pair) = made(&pair);
            assert_eq!(by_pair.file_name(), by_direct.file_name());
            let same = std::process::Command::new("diff").arg("-r").args([&by_pair, &by_direct]).output().unwrap();
            assert!(same.status.success(), "{same:?}");
        }
    }
}

/// Machines that a build has saved make what cold ones make, and are revived by whoever wants the same.
#[test]
fn a_build_saves_the_machines_that_it_wants_and_the_next_revives_them() {
    if !heavy_tests_are_wanted() {
        return skip("ANCHORHOLD_HEAVY_TESTS is not set: two guests to be installed and saved take a minute");
    }
    let mut made_before = None;
    for topology in ["direct", "pair"] {
        let (Some(cold), Some(mut warm)) = (store_with(topology), store_with(topology)) else { return };
        if !guest_images().is_some_and(|images| images.join("installer.erofs").is_file()) {
            return skip("there are no media here: scripts/guest-images makes them");
        }
        let cache = warm.world.directory.path().join("stages");
        warm.settings.push(("vm-cache", cache.display().to_string()));
        let told = String::from_utf8_lossy(&cold.build("echo >$out", json!({})).stderr).into_owned();
        assert!(!told.contains("is made") && !told.contains("revived"), "nobody asked for it: {told}");

        warm.words = &["vm", "build"];
        let (told, by_first) = made(&warm);
        for line in
            ["install: is made", "install: done in", "suspend: is made", "suspend: done in", "is revived: suspend-"]
        {
            assert!(told.contains(line), "{line}: {told}");
        }
        is_as_expected(&told, &by_first);
        let first = std::fs::read_to_string(by_first.join("where")).unwrap();
        // What is there is not made again. Two processors and less memory are other machines, and so are other drives.
        warm.words = &["build"];
        let drives = json!({ "drives": format!("T:={}", warm.tools) });
        let nproc = "$b grep -c ^processor /proc/cpuinfo >$out";
        let cores = json!({ "vmCores": "2", "vmMemory": "300" });
        let told = String::from_utf8_lossy(&warm.build("echo again >$out", drives).stderr).into_owned();
        assert!(told.contains("is revived: suspend-") && !told.contains("is made"), "{told}");
        let told = String::from_utf8_lossy(&warm.build(nproc, cores.clone()).stderr).into_owned();
        assert!(!told.contains("revived") && !told.contains("is made"), "{told}");
        warm.settings.push(("vm-save", "true".into()));
        let output = warm.build(&format!("{nproc} "), cores);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && told.contains("suspend: is made") && told.contains("is revived"), "{told}");
        assert!(!told.contains("install: is made"), "{told}");
        let path = warm.world.real(String::from_utf8_lossy(&output.stdout).trim());
        assert_eq!(std::fs::read_to_string(path).unwrap(), "2\n");
        // Who serves the guest is not seen in what it makes.
        assert_eq!(made_before.get_or_insert_with(|| first.clone()), &first);
        is_kept_while_it_is_used(&warm, &cache);
    }
}

/// Nobody removes the machines that a build has revived, until it has ended: here by being killed, which undoes nothing.
fn is_kept_while_it_is_used(warm: &Store, cache: &Path) {
    let stages = || {
        let names = std::fs::read_dir(cache).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<_> =
            names.filter(|name| name.starts_with("install-") || name.starts_with("suspend-")).collect();
        names.sort();
        names
    };
    let prune = || {
        let mut command = Command::new(anchorhold());
        command.args(["vm", "prune", "--all", "--option", "vm-cache"]).arg(cache);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let (heard, says) = std::io::pipe().unwrap();
    let mut command =
        warm.to_build_script("echo in the guest; $b sleep 1000", json!({ "drives": format!("T:={}", warm.tools) }));
    let mut build = command.stdout(Stdio::null()).stderr(says).spawn().unwrap();
    drop(command);
    let mut lines = BufReader::new(heard).lines().map(Result::unwrap);
    let revived = lines.find_map(|line| line.split_once("is revived: ").map(|(_, name)| name.to_owned()));
    let revived = revived.expect("the machines are revived");
    assert!(lines.any(|line| line.ends_with("in the guest")), "the builder runs");
    let told = prune();
    assert!(told.contains(&format!("{revived} is in use, and stays")), "{told}");
    // With the disk that it stands on, and nothing else.
    let left = stages();
    assert!(left.len() == 2 && left[0].starts_with("install-") && left[1] == revived, "{left:?} {told}");
    build.kill().unwrap();
    build.wait().unwrap();
    assert!(poll_until(PATIENCE, || !prune().contains("is in use")), "nobody uses it any more");
    assert_eq!(stages(), [""; 0]);
}

/// A build that waits for a person, who finds it by its machine, sees what it has made, and lets it go on.
#[test]
fn a_person_comes_into_the_guest_of_a_build() {
    let mut topologies = vec!["direct"];
    if heavy_tests_are_wanted() {
        topologies.push("pair");
    }
    for topology in topologies {
        let Some(store) = store_with(topology) else { continue };
        let script = "echo noted >note; echo up; until [ -e /xchg/go ]; do $b sleep 0.1; done; $b cat /xchg/go >$out";
        let mut build = store.to_build_script(script, json!({}));
        let mut build = build.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(build.stderr.take().unwrap());
        let mut told = String::new();
        while !told.contains("made> up") {
            assert_ne!(log.read_line(&mut told).unwrap(), 0, "{told}");
        }
        let machine = format!("standin-{}", build.id());
        let go_on = "cat /xchg/build/note; hostname; echo from $USER >/xchg/went; mv /xchg/went /xchg/go; exit 3";
        let ssh = Command::new(anchorhold()).args(["vm", "ssh", &machine, "--", "sh", "-c", go_on]).output().unwrap();
        let said = String::from_utf8_lossy(&ssh.stdout);
        let complained = String::from_utf8_lossy(&ssh.stderr);
        assert_eq!((ssh.status.code(), &*said), (Some(3), "noted\nguest\n"), "{complained}");
        log.read_to_string(&mut told).unwrap();
        let output = build.wait_with_output().unwrap();
        assert!(output.status.success(), "{told}");
        let made = store.world.real(String::from_utf8_lossy(&output.stdout).trim());
        assert_eq!(std::fs::read_to_string(made).unwrap(), "from root\n");
        store.world.is_whole();
    }
}

/// Everybody whom a guest might reach is asked, from inside of it, while somebody listens on all addresses of the host.
#[test]
fn a_guest_reaches_its_server_and_nobody_else() {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(), "the host itself reaches it");
    let own = std::process::Command::new("hostname").arg("-I").output().map(|output| output.stdout).unwrap_or_default();
    let own = String::from_utf8_lossy(&own).into_owned();
    let mut all = vec!["127.0.0.1", "10.0.2.2", "192.168.0.2", "192.168.0.254", "169.254.169.254"];
    all.extend(own.split_whitespace().filter(|one| one.contains('.')));
    let script = "for a in $all; do $b nc -w 1 $a $port </dev/null && echo reached $a; done
        for s in 192.168.0.2 192.168.0.253 192.168.0.254 10.0.2.3; do
        $b timeout 3 $b nslookup example.com $s 2>&1 | $b grep -A1 ^Name: && echo resolved by $s; done
        $b nc -w 5 192.168.0.2 445 </dev/null && echo the server answers; echo asked >$out";
    let mut topologies = vec!["direct"];
    if heavy_tests_are_wanted() {
        topologies.push("pair");
    }
    for topology in topologies {
        let Some(store) = store_with(topology) else { continue };
        let output = store.build(script, json!({ "all": all.join(" "), "port": port.to_string() }));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.contains("made> the server answers"), "{told}");
        assert!(!told.contains("made> reached") && !told.contains("made> resolved"), "{topology}: {told}");
    }
}

/// The same over the wire of 2014, a switch in the room.
#[test]
fn a_switch_is_a_wire_too() {
    if !heavy_tests_are_wanted() {
        return skip("ANCHORHOLD_HEAVY_TESTS is not set: the wire by default is tested without");
    }
    if !Path::new("/usr/bin/vde_switch").exists() {
        return skip("there is no vde_switch here");
    }
    let Some(mut store) = store() else { return };
    store.settings.push(("vm-wire", "vde".into()));
    let (told, made) = made(&store);
    is_as_expected(&told, &made);
}

#[test]
fn a_builder_that_fails_does_so_with_its_own_status_and_one_without_a_status_by_its_class() {
    if !heavy_tests_are_wanted() {
        return skip("ANCHORHOLD_HEAVY_TESTS is not set: four pairs of machines take a minute");
    }
    let Some(mut store) = store() else { return };
    let after = "echo hook-after $vmStatus; echo in-room $(echo /xchg/build/*)";
    let told = store.failure("echo x >file; exit 9", json!({ "postVM": after }));
    assert!(told.contains("failed with exit code 9") && told.contains("hook-after 9"), "{told}");
    assert!(told.contains("in-room /xchg/build/file"), "{told}");
    let told = store.failure("exit 255", json!({}));
    assert!(told.contains("failed with exit code 255"), "{told}");
    // Its status is none: neither 0 nor ssh's 255.
    let told = store.failure("echo made >$out; $b poweroff -f; $b sleep 1000", json!({}));
    assert!(told.contains("guest: the guest was powered off") && told.contains("(power-off)"), "{told}");
    // A full exchange is told whatever the builder makes of it.
    store.settings.push(("vm-exchange", "2M".into()));
    let script = "$b dd if=/dev/zero of=/xchg/big bs=64k count=100 2>/dev/null; $b rm /xchg/big; echo made >$out";
    let told = store.failure(script, json!({}));
    assert!(told.contains("the exchange /xchg ran full") && told.contains("(exchange-full)"), "{told}");
}

#[test]
fn a_machine_without_a_guest_does_not_have_the_feature() {
    let Some(mut store) = store() else { return };
    let told = store.failure("echo >$out", json!({ "drives": "T:=/etc" }));
    assert!(told.contains("‘drives’: /etc is in no input"), "{told}");
    let told = store.failure("echo >$out", json!({ "vmImage": "../../etc" }));
    assert!(told.contains("is no guest's name"), "{told}");
    let told = store.failure("echo >$out", json!({ "vmImage": "os2" }));
    assert!(told.contains("(no-image)"), "{told}");
    store.settings.remove(0);
    let told = store.failure("echo >$out", json!({}));
    assert!(told.contains("it requires the feature ‘windows-vm’") && told.contains("vm-guest"), "{told}");
}
