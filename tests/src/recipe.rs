//! What suites let a real Nix build: a derivation that needs nothing but a static program that is a whole user land.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// The function of a derivation that runs a script. `TOOLS` is the store path of the tools. It begins and ends with a newline.
pub const THING: &str = r#"
{ script ? "echo $out; echo hello > $out", name ? "thing", more ? { } }:
let tools = builtins.storePath (builtins.getEnv "TOOLS"); in
derivation ({
  inherit name;
  system = builtins.currentSystem;
  builder = "${tools}/bin/sh";
  PATH = "${tools}/bin";
  args = [ "-c" script ];
} // more)
"#;

/// Where the static program is, if it is anywhere.
pub fn busybox() -> Option<&'static Path> {
    ["/usr/bin/busybox", "/bin/busybox"].into_iter().map(Path::new).find(|path| path.exists())
}

/// Makes `directory/bin` with the program and these names of it. A directory, because the program goes by what it is called.
pub fn lay_out_tools(directory: &Path, busybox: &Path, applets: &[&str]) {
    let bin = directory.join("bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy(busybox, bin.join("busybox")).unwrap();
    for applet in applets {
        symlink("busybox", bin.join(applet)).unwrap();
    }
}
