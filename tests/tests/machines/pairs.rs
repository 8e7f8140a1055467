//! Derivations whose builder runs in a guest beside a controller: `requiredSystemFeatures = windows-vm`, with the stand-in as
//! the guest.

use anchorhold_tests::machines::guest_images;
use serde_json::json;

use crate::builds::Store;

/// A store whose builds have a pair, where there are images for one.
fn store() -> Option<Store> {
    let images = guest_images()?;
    let mut store = Store::new()?;
    store.feature = "windows-vm";
    store.settings = vec![("vm-guest", "standin".into()), ("vm-images", images.display().to_string())];
    Some(store)
}

#[test]
fn a_builder_runs_in_the_guest_and_makes_its_output() {
    let Some(store) = store() else { return };
    let odd = "a 'b' \"c\" %d $e\nsecond";
    let script = "echo said; echo complained >&2
        $b mkdir -p $out/bin; echo \"$odd\" >$out/odd; $b pwd >$out/where; $b hostname >>$out/where
        $b grep -c ' /nix/store cifs' /proc/mounts >>$out/where
        echo x >${b%/*}/new 2>/dev/null || echo kept >>$out/where
        $b cat $textPath >$out/text
        echo in-build >note; $b cat /xchg/build/note >>$out/where";
    let output = store.build(script, json!({ "odd": odd, "text": "from a file", "passAsFile": "text" }));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("the guest ‘standin’ beside a controller"), "{told}");
    let made = store.world.real(String::from_utf8_lossy(&output.stdout).trim());
    let read = |name: &str| std::fs::read_to_string(made.join(name)).unwrap();
    assert_eq!(read("odd"), format!("{odd}\n"));
    assert_eq!(read("where"), "/xchg/build\nguest\n1\nkept\nin-build\n");
    assert_eq!(read("text"), "from a file");
    assert!(made.join("bin").is_dir());
    store.world.is_whole();
}
