//! What a guest leaves is an enemy's work, taken as a room's builder's is: it may be root under a kernel of its own, and whatever it
//! does reaches the host by QEMU's hands, which are the room's unprivileged user's.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;

use crate::builds::Store;

/// Each is tried, and none of it may have an effect outside.
fn what_is_left_is_judged(store: &Store) {
    let script = "set +e; $b mkdir $out; for mode in 4755 2755 6755; do echo x >$out/$mode; $b chmod $mode $out/$mode; done
        $b mknod $out/disk b 8 0; $b mknod $out/null c 1 3; $b mkfifo $out/pipe; $b ln ${b%/*}/busybox $out/twin; $b chmod 6777 ${b%/*}/busybox
        $b mkdir -m 7777 $out/shared; $b chown 65534:65534 $out/4755; $b ln -s /etc/shadow $out/link; $b touch $out/made
        $b rm -f ${b%/*}/busybox; echo x >>${b%/*}/busybox; $b mv $out/made ${b%/*}/made; echo tried";
    let output = store.build(script, json!({}));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.contains("made> tried"), "{told}");
    let made = store.world.real(String::from_utf8_lossy(&output.stdout).trim());
    for entry in std::fs::read_dir(&made).unwrap() {
        let path = entry.unwrap().path();
        let found = std::fs::symlink_metadata(&path).unwrap();
        let plain = found.is_file() || found.is_dir() || found.is_symlink();
        assert!(plain, "{} is neither a file, a directory nor a link", path.display());
        assert_eq!(found.uid(), nix::unistd::geteuid().as_raw(), "{}", path.display());
        assert!(found.is_symlink() || found.mode() & 0o7222 == 0, "{}: {:o}", path.display(), found.mode());
    }
    assert_eq!(std::fs::read_link(made.join("link")).unwrap().to_str(), Some("/etc/shadow"));
    let tools = store.world.real(&store.tools);
    assert_eq!(std::fs::metadata(tools.join("busybox")).unwrap().permissions().mode() & 0o7777, 0o555);
    assert!(!tools.join("made").exists());
    store.world.is_whole();
}

#[test]
fn what_a_guest_leaves_is_judged_as_what_a_room_leaves() {
    let Some(store) = Store::new() else { return };
    what_is_left_is_judged(&store);
}

#[test]
fn what_a_guest_leaves_over_smb_is_judged_so_too() {
    let Some(store) = crate::pairs::store_with("direct") else { return };
    what_is_left_is_judged(&store);
}
