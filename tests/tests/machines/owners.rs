//! Root's tools set owners, most without being asked to. A guest's root may, and what QEMU does in its name succeeds; whose the files
//! are stays what it was, since the room has one user.

use std::path::Path;
use std::process::Command;

use anchorhold_tests::skip;
use serde_json::json;

use crate::builds::Store;

/// Programs of GNU, which end in failure where busybox's only complain. Dynamic ones, so their libraries and loader lie beside them.
const PROGRAMS: [&str; 5] = ["tar", "cp", "install", "chown", "mv"];

fn bring(tools: &Path) -> bool {
    for name in PROGRAMS {
        let Some(program) = ["/usr/bin", "/bin"].iter().map(|place| Path::new(place).join(name)).find(|it| it.exists())
        else {
            skip(&format!("there is no {name} here"));
            return false;
        };
        let listed = Command::new("ldd").arg(&program).output();
        let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        // `libc.so.6 => /lib/… (0x…)`, and the loader alone by its path.
        for library in listed.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new) {
            std::fs::copy(library, tools.join(library.file_name().unwrap())).unwrap();
            if library.file_name().unwrap().to_string_lossy().starts_with("ld-") {
                std::fs::copy(library, tools.join("loader")).unwrap();
            }
        }
        std::fs::copy(&program, tools.join(name)).unwrap();
    }
    let tree = tools.join("tree");
    std::fs::create_dir_all(tree.join("below")).unwrap();
    std::fs::write(tree.join("below/file"), "of the tree\n").unwrap();
    std::os::unix::fs::symlink("below/file", tree.join("link")).unwrap();
    let mut archive = Command::new("tar");
    archive
        .args(["--owner=4711", "--group=815", "--numeric-owner", "--mtime=@1", "-cf"])
        .arg(tools.join("foreign.tar"));
    let made = archive.arg("-C").arg(&tree).arg(".").status();
    assert!(made.unwrap().success());
    if !tools.join("loader").exists() {
        skip("the programs of GNU here are not dynamic ones");
        return false;
    }
    true
}

const SCRIPT: &str = r#"
    t=${b%/*}; gnu() { n=$1; shift; $t/loader --library-path $t $t/$n "$@"; }
    owner() { $b stat -c %u:%g "$1"; }
    for place in /build/here $out; do
        $b mkdir $place; cd $place
        echo x >file; $b ln -s file link; before=$(owner file); echo "before $before"
        gnu chown 1000:1000 file; gnu chown -h 7:8 link; gnu chown -R 12:34 .; $b chown 5:6 file
        test $(owner file) = $before
        $b mkdir tar busybox-tar; gnu tar -xpf $t/foreign.tar -C tar; $b tar -xpf $t/foreign.tar -C busybox-tar
        gnu cp -a $t/tree copy; $b cp -a $t/tree busybox-copy
        gnu install -o 1234 -g 1234 -m 755 file installed; gnu install -d -o 1 -g 2 directory
        $b mkdir /tmp/other; $b cp -r $t/tree /tmp/other; $b chown -R 99:99 /tmp/other/tree; gnu mv /tmp/other/tree moved; $b rm -r /tmp/other
        for copy in tar busybox-tar copy busybox-copy moved; do
            $b cat $copy/below/file; test "$($b readlink $copy/link)" = below/file; $b chmod -R u+w $copy
            test $(owner $copy/below/file) = $before
        done
        test $(owner installed) = $before; test $($b stat -c %a installed) = 755
    done
    : >/tmp/kept; gnu chown 5:6 /tmp/kept; test $(owner /tmp/kept) = 5:6
    gnu chown 5:6 /build/missing 2>/dev/null && exit 9
    echo all done"#;

#[test]
fn owners_that_a_guests_root_sets_are_taken_and_not_kept() {
    let Some(store) = Store::with(bring) else { return };
    let output = store.build(SCRIPT, json!({}));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.contains("made> all done"), "{told}");
    assert_eq!(told.matches("made> of the tree").count(), 10, "{told}");
    for complaint in ["Invalid argument", "not permitted", "can't", "cannot"] {
        assert!(!told.contains(complaint), "{told}");
    }
    store.world.is_whole();
}
