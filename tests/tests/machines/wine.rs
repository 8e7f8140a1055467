//! Derivations whose builder is a program of Windows, in a guest with Wine: `vm-guest = wine`.
//!
//! Each takes half a minute under emulation, and they want scripts/guest-images wine and a compiler for Windows: these run when
//! ANCHORHOLD_HEAVY_TESTS is set.

use std::process::Output;

use anchorhold_tests::machines::{Shown, windows_program, wine_images};
use serde_json::json;

use crate::builds::Store;

/// What is the drive `S:` to Windows.
const STORE: &str = "/nix/store/";

/// What begins each line of a builder in the log.
const PREFIX: &str = "made> ";

/// A store with the program, a file of commands and a word in it.
fn store() -> Option<Store> {
    let images = wine_images()?;
    let commands = "@echo off\r\necho began in %CD% with \"%~1\"\r\ntype T:\\word\r\n\
        copy \"%WINDOWS_input%\\word\" \"%WINDOWS_out%\" >nul\r\n\
        \"%WINDOWS_input%\\show.exe\" X:\\shown 8 >nul 2>&1\r\necho ended with %ERRORLEVEL%\r\nexit /b %wanted%\r\n";
    let mut store = Store::with(|tools| {
        std::fs::write(tools.join("word"), "from the store\n").unwrap();
        std::fs::write(tools.join("build.cmd"), commands).unwrap();
        windows_program(&tools.join("show.exe"))
    })?;
    store.feature = "windows-vm";
    store.settings = vec![("vm-guest", "wine".into()), ("vm-images", images.display().to_string())];
    Some(store)
}

impl Store {
    /// The name of something in the tools on the drive `S:`.
    fn on_drive(&self, name: &str) -> String {
        format!("S:\\{}\\{name}", self.tools.strip_prefix(STORE).unwrap())
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What the builder said, in its order; nothing of it may be meant for a terminal, and lines end as lines do.
#[track_caller]
fn said(told: &str) -> Vec<&str> {
    assert!(!told.contains(['\r', '\x1b', '\x08']), "{told:?}");
    told.lines().filter_map(|line| line.strip_prefix(PREFIX)).collect()
}

const ODD: [&str; 9] =
    ["a b", "", "say \"it's\"", "100% %PATH%", "back\\", "b\\\\\" c\\\\", "ünï 日本", "two\nlines", "e^&|<*>!;$HOME"];

#[test]
fn a_program_of_windows_is_a_builder() {
    let Some(store) = store() else { return };
    let arguments: Vec<&str> = ["-", "0"].into_iter().chain(ODD).collect();
    let odd = ODD.join("|");
    let attributes = json!({
        "odd": odd, "input": store.tools, "drives": format!("T:={}", store.tools), "both": format!("{0} {0}", store.tools),
    });
    let output = store.build_by(&store.on_drive("show.exe"), &arguments, attributes);
    let told = told(&output);
    assert!(output.status.success(), "{told}");
    let mut lines = said(&told);
    lines.sort();
    assert_eq!(lines, ["complained", "said"], "{told}");
    let out = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let shown = Shown::of(&store.world.real(&out).join("shown"));
    assert_eq!(shown.arguments, ODD);
    let drive = |path: &str| path.replace(STORE, "S:\\");
    for (name, value) in [
        // Nix's own names stay, and Windows' are beside them.
        ("odd", odd.clone()),
        ("out", out.clone()),
        ("WINDOWS_out", drive(&out)),
        ("WINDOWS_both", drive(&format!("{0} {0}", store.tools))),
        ("NIX_BUILD_TOP", "/xchg/build".into()),
        ("WINDOWS_NIX_BUILD_TOP", "X:\\build".into()),
        ("HOME", "/homeless-shelter".into()),
        ("WINDOWS_TMPDIR", "X:\\build".into()),
        // These are the system's own.
        ("TEMP", "X:\\build".into()),
        ("TMP", "X:\\build".into()),
    ] {
        assert_eq!(shown.environment.get(name), Some(&value), "{name}");
    }
    assert_eq!(shown.places, ["X:\\build", "X:\\build\\"]);
    assert_eq!(shown.read, ["from the store\n", "from the store\n"], "from S: and from T:");
    store.world.is_whole();
}

#[test]
fn the_status_of_a_program_of_windows_arrives() {
    let Some(store) = store() else { return };
    let path = format!("{}/show.exe", store.tools);
    let output = store.build_by(&path, &["-", "37"], json!({}));
    let told = told(&output);
    assert!(!output.status.success() && told.contains("failed with exit code 37"), "{told}");
    assert!(said(&told).contains(&"said"), "{told}");
}

#[test]
fn a_file_of_commands_is_a_builder() {
    let Some(store) = store() else { return };
    for (wanted, words) in [("0", ""), ("37", "failed with exit code 37")] {
        let attributes = json!({
            "input": store.tools, "drives": format!("T:={}", store.tools), "wanted": wanted,
        });
        let output = store.build_by(&format!("{}/build.cmd", store.tools), &["a word"], attributes);
        let told = told(&output);
        assert_eq!(output.status.success(), wanted == "0", "{told}");
        assert!(told.contains(words), "{told}");
        let expected = ["began in X:\\build with \"a word\"", "from the store", "ended with 8"];
        assert_eq!(said(&told)[..3], expected, "{told}");
        if wanted == "0" {
            let out = store.world.real(String::from_utf8_lossy(&output.stdout).trim());
            assert_eq!(std::fs::read_to_string(out).unwrap(), "from the store\n");
        }
    }
}

#[test]
fn a_script_starts_programs_of_windows_by_their_names() {
    let Some(store) = store() else { return };
    // What is left running holds no drive: the build ends.
    let script = "show=${b%/*}/show.exe; $show X:\\\\build\\\\shown 9 || echo came to $?
        echo \"out is $(PATH=/usr/bin:/bin /usr/bin/cygpath -w $out)\"; $b cat shown >$out
        $b mkfifo /tmp/words; $show X:\\\\build\\\\left -1 >/tmp/words & read word </tmp/words; echo left, and $word";
    let output = store.build(script, json!({}));
    let told = told(&output);
    assert!(output.status.success(), "{told}");
    let lines = said(&told);
    let out = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let drive = format!("out is {}", out.replace(STORE, "S:\\"));
    for line in ["came to 9", &drive, "left, and said"] {
        assert!(lines.contains(&line), "{line}: {told}");
    }
}
